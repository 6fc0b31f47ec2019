"""The prose in reStructuredText, docstrings of the usual styles, and Markdown: sentences without the markup, code and tables."""

from __future__ import annotations

import re

# directives whose body is prose; the body of any other is left out
PROSE_DIRECTIVES = {
    "note",
    "warning",
    "tip",
    "important",
    "caution",
    "attention",
    "hint",
    "admonition",
    "seealso",
    "topic",
    "versionchanged",
    "deprecated",
}
SKIPPED_SECTIONS = {
    "example",
    "examples",
    "see also",
    "references",
    "reference",
    "methods",
    "usage",
    "citation",
    "citations",
    "license",
    "test",
    "tests",
    "authors",
}
NAMED_SECTIONS = {
    "parameters", "other parameters", "returns", "yields", "raises", "attributes", "warns", "receives", "keyword arguments",
    "args", "arguments", "keyword args", "return", "yield", "inputs", "outputs", "shape", "params", "kwargs", "properties",
    "class attributes",
}  # fmt: skip
RULE = re.compile(r"\s*([=\-~^\"'`#*+.:_])\1{2,}\s*")
DIRECTIVE = re.compile(r"(\s*)\.\.\s+(?:\|[^|]+\|\s*)?([\w:.-]+?)::(.*)")
COMMENT = re.compile(r"(\s*)\.\.(\s|$)")
FIELD = re.compile(r"\s*:(\w+)[^:`]*:(?:\s+|$)(.*)")
SECTION = re.compile(r"(\s*)([A-Z][A-Za-z]+(?: [A-Za-z]+)?):\s*")
ARGUMENT = re.compile(r"\s+[`*]{0,3}\w[\w.,`* ]{0,60}?\s*(?:\((?:[^()]|\([^)]*\))*\))?\s*:(?:\s+|$)(.*)")
BULLET = re.compile(r"\s*(?:[-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+(?=\S)")
TABLE = re.compile(r"\s*(?:[|+].*[|+]|[=\-]{2,}(?:\s+[=\-]{2,})+)\s*")
INLINE = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\s?\[[#\w]+\]_", ""),
        (r"!\[[^\]]*\]\([^)]*\)", ""),
        (r"\[([^\[\]]+)\](?:\([^)]*\)|\[[^\]]*\])", r"\1"),
        (r"\[`?[~!]?([\w.]+)`?\](?!\()", r"`\1`"),
        (r":[\w:.+-]+:`[~!](?:[\w.]*\.)?(\w+)`", r"\1"),
        (r":[\w:.+-]+:`[~!]?([^`<]*?)\s*(?:<[^>`]*>)?`", r"\1"),
        (r"`([^`<]+?)\s*<[^>`]*>`__?", r"\1"),
        (r"``([^`]+)``", r"\1"),
        (r"`([^`]+)`_{0,2}", r"\1"),
        (r"\*\*(\S[^*]*?)\*\*", r"\1"),
        (r"(?<![\w*])\*(\S[^*]*?)\*(?![\w*])", r"\1"),
        (r"\|([A-Za-z][\w .-]*)\|_?", r"\1"),
        (r"</?[a-zA-Z][^<>]{0,200}>", ""),
        (r"<?(?:https?|ftp)://[^\s>)]+>?", ""),
        (r"\\([*`_|<>])", r"\1"),
        (r"(?<!\w)\(\s*\)", ""),
        (r"\s+", " "),
        (r" ([.,;])(?=\s|$)", r"\1"),
    )
)
MARKED = re.compile(r"[`*\[|<\\]|://|\(\s*\)|\s[.,;](?:\s|$)")  # most paragraphs have none of what INLINE looks for
CODE = re.compile(r"[=_{}\[\]<>\\/|@#$%^~*`]")


def rst_prose(text: str) -> str:
    """Return the prose of reStructuredText or of a docstring (NumPy, Google, Sphinx styles), a paragraph a line."""
    return "\n".join(paragraphs(text))


def markdown_prose(text: str) -> str:
    """Return the prose of Markdown, a paragraph a line: no front matter, code, headings, tables, link targets or HTML."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->|<(script|style|svg)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r"^ {0,3}#{1,6}\s.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*\[[^\]]+\]:\s+\S+.*$", "", text, flags=re.MULTILINE)
    return "\n".join(paragraphs(re.sub(r"^ {0,3}>\s?", "", text, flags=re.MULTILINE)))


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of prose of a marked-up text, each on one line."""
    result: list[str] = []
    held: list[str] = []

    def end() -> None:
        if held:
            paragraph = inline(" ".join(held))
            if is_prose(paragraph):
                result.append(paragraph)
            held.clear()

    lines = text.expandtabs(4).split("\n")
    section, section_indent = "", -1  # the named section we are in, and how far its title is indented
    skip_over: int | None = None  # lines indented deeper than this are left out
    fenced = doctest = False
    for number, line in enumerate(lines):
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare.startswith(("```", "~~~")):
            end()
            fenced = not fenced
            continue
        if fenced:
            continue
        if not bare:
            end()
            doctest = False
            continue
        if bare.startswith(">>>") or doctest:
            end()
            doctest = True
            continue
        if skip_over is not None:
            if indent > skip_over:
                continue
            skip_over = None
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if RULE.fullmatch(line):
            end()
            continue
        if RULE.fullmatch(below) and len(bare) <= 80 and len(below.strip()) >= min(3, len(bare)):
            # a title with its underline; NumPy's sections are such titles
            end()
            section, section_indent = bare.lower().rstrip(":"), indent - 1
            continue
        if (title := SECTION.fullmatch(line)) and title[2].lower() in NAMED_SECTIONS | SKIPPED_SECTIONS | {"note", "notes"}:
            end()
            section, section_indent = title[2].lower(), indent
            continue
        if section and indent <= section_indent:
            section, section_indent = "", -1
        if section in SKIPPED_SECTIONS:
            continue
        if directive := DIRECTIVE.match(line):
            end()
            if directive[2] not in PROSE_DIRECTIVES:
                skip_over = indent
            elif directive[2] in ("note", "warning", "tip", "important") and directive[3].strip():
                held.append(directive[3].strip())
            continue
        if COMMENT.match(line):
            end()
            skip_over = indent
            continue
        if TABLE.fullmatch(line):
            end()
            continue
        if field := FIELD.match(line):
            end()
            if not field[1].endswith("type") and field[2]:
                held.append(field[2])
            continue
        if section in NAMED_SECTIONS:
            deeper = len(below) - len(below.lstrip()) > indent and below.strip() != ""
            if indent == section_indent + 1 and (deeper or " : " in line or not re.search(r"\s", bare)):
                end()  # NumPy: the name and type of a parameter
                continue
            if section_indent >= 0 and (argument := ARGUMENT.fullmatch(line)):
                end()
                if argument[1]:
                    held.append(argument[1])
                continue
        if bullet := BULLET.match(line):
            end()
            line = line[bullet.end() :]
        if bare.endswith("::"):
            held.append(line.strip()[:-1])
            end()
            skip_over = indent
            continue
        held.append(line.strip())
    end()
    return result


def inline(text: str) -> str:
    """Return a paragraph without inline markup."""
    if not MARKED.search(text):
        return " ".join(text.split())
    for pattern, new in INLINE:
        text = pattern.sub(new, text)
    return text.strip()


def is_prose(paragraph: str) -> bool:
    """Return whether a paragraph reads as words of a sentence rather than as code, a table or a list of names."""
    num_words = len(paragraph.split())
    if num_words < 3 or not any(char.islower() for char in paragraph):
        return False
    if paragraph[-1] not in ".!?:" and num_words < 7:
        return False
    letters = sum(map(str.isalpha, paragraph)) + paragraph.count(" ")
    return letters >= 0.82 * len(paragraph) and len(CODE.findall(paragraph)) <= 0.04 * len(paragraph)
