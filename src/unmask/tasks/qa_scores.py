"""The numbers of answers: exact match and F1 by the rules of SQuAD's official scripts, and by rules that hold for any script.

SQuAD's rules: lower case, without ASCII punctuation, without "a", "an" and "the", words parted by spaces; of several right answers the
best counts. v2.0 differs from v1.1 in answers that these rules leave nothing of: right answers that are nothing are passed over (a question
that has no others has none), and nothing said of nothing is right. All numbers are shares, where the scripts print percent.
The rules for any script: characters are words where a script has no spaces (Chinese, Japanese, Thai ...), and punctuation is Unicode's.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.words import ALONE, character_class

if TYPE_CHECKING:
    from .qa import Answered
    from .qa_data import QuestionItem

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# the first of these that stands in a question is its question word
QUESTION_WORDS = ("how many", "how much", "who", "whom", "whose", "what", "when", "where", "which", "why", "how")
_QUESTION_WORD = re.compile(rf"\b({'|'.join(QUESTION_WORDS)})\b", re.IGNORECASE)
LENGTHS = ((1, 1), (2, 3), (4, 6), (7, 10), (11, None))  # words of the right answer


def normalised(text: str) -> str:
    """Return an answer as SQuAD's rules compare it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def any_script(text: str) -> list[str]:
    """Return the words of an answer as they are compared in any script: characters, with their marks, where it has no spaces."""
    words: list[str] = []
    inside = False
    for char in _ARTICLES.sub(" ", unicodedata.normalize("NFKC", text).lower()):
        kind = unicodedata.category(char)
        if kind[0] == "P" or char in string.punctuation:
            continue  # "u.s." is "us", as above
        if char.isspace():
            inside = False
        elif kind[0] == "M" and words:
            words[-1] += char
        elif character_class(char) == ALONE:
            words.append(char)
            inside = False
        elif inside:
            words[-1] += char
        else:
            words.append(char)
            inside = True
    return words


def f1(said: Sequence[str], right: Sequence[str]) -> float:
    """Return the F1 of two bags of words; of two empty ones 1, where one is empty 0."""
    if not said or not right:
        return float(list(said) == list(right))
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def squad(said: str, answers: Sequence[str], *, version: str) -> tuple[float, float]:
    """Return exact match and F1 of what was said beside all right answers, by the rules of SQuAD "1.1" or "2.0"."""
    mine = normalised(said)
    rights = [normalised(answer) for answer in answers]
    if version == "2.0":
        rights = [right for right in rights if right] or [""]
    exact = max((float(mine == right) for right in rights), default=0.0)
    # v1.1 asks for a common word: of two empty answers there is none
    some = [f1(mine.split(), right.split()) for right in rights if version == "2.0" or (mine and right)]
    return exact, max(some, default=0.0)


def in_any_script(said: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 of what was said beside all right answers, by the rules for any script."""
    mine = any_script(said)
    rights = [words for words in map(any_script, answers) if words] or [[]]
    # exact: the same characters, wherever spaces stand between scripts
    return float(any("".join(mine) == "".join(right) for right in rights)), max(f1(mine, right) for right in rights)


class AnswerScores:
    """Answers beside what is right, an item each; an item whose result is an error was answered with nothing."""

    def __init__(self, items: Sequence[QuestionItem], results: Sequence[Answered]) -> None:
        self.items, self.results = items, results
        self.right = [[gold.text for gold in item.answers or ()] for item in items]
        # as the script of v2.0 has it: a question has an answer where one is given
        self.has: np.ndarray = np.array([bool(right) for right in self.right], bool)
        self.version = "1.1" if self.has.all() else "2.0"
        self.said = [result.text or "" for result in results]
        self.exact, self.f1 = self._columns(
            squad(said, right, version=self.version) for said, right in zip(self.said, self.right, strict=True)
        )
        self.any_exact, self.any_f1 = self._columns(in_any_script(said, right) for said, right in zip(self.said, self.right, strict=True))

    @staticmethod
    def _columns(pairs: Any) -> tuple[np.ndarray, np.ndarray]:
        table = np.array(list(pairs), float).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def of(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each number for each row of weights, (R,)."""

        def mean(values: np.ndarray, some: np.ndarray | None = None) -> np.ndarray:
            chosen = weights if some is None else weights * some
            total = chosen.sum(1)
            return np.divide(chosen @ values, total, out=np.full(len(weights), np.nan), where=total > 0)

        found = {"f1": mean(self.f1), "exact_match": mean(self.exact)}
        if self.version == "2.0":
            found |= {
                "has_answer_f1": mean(self.f1, self.has), "has_answer_exact_match": mean(self.exact, self.has),
                "no_answer_accuracy": mean(self.exact, ~self.has),
            }  # fmt: skip
        return {**found, "any_script_f1": mean(self.any_f1), "any_script_exact_match": mean(self.any_exact)}

    def counts(self) -> dict[str, int]:
        """Return over how many questions each number is taken."""
        has = int(self.has.sum())
        return {"has_answer_f1": has, "has_answer_exact_match": has, "no_answer_accuracy": len(self.has) - has}

    def details(self) -> dict[str, Any]:
        """Return the numbers by question word and by the answer's length, what kinds of errors there are, and the best threshold."""
        lengths = [len(any_script(right[0])) if right else 0 for right in self.right]
        names = [_between(low, high) for low, high in LENGTHS]
        which = [_group(size) for size in lengths]
        found: dict[str, Any] = {
            "rules": f"SQuAD v{self.version}",
            "by_question_word": self._by([question_word(item.question) for item in self.items]),
            "by_answer_length": self._by(which, [*names, "none"]),
            "errors": dict(Counter(error_kind(*one) for one in zip(self.items, self.results, self.exact, strict=True)).most_common()),
        }
        if self.version == "2.0":
            found["best_threshold"] = self.best_thresholds()
        return found

    def _by(self, groups: Sequence[str], order: Sequence[str] | None = None) -> list[dict[str, Any]]:
        names = order or [name for name, _ in Counter(groups).most_common()]
        labels = np.array(groups)
        return [
            {
                "group": name,
                "count": int(inside.sum()),
                "f1": float(self.f1[inside].mean()),
                "exact_match": float(self.exact[inside].mean()),
            }
            for name in names
            if (inside := labels == name).any()
        ]

    def best_thresholds(self) -> dict[str, float]:
        """Return the highest exact match and F1 that any threshold on these questions gives, and these thresholds."""
        found: dict[str, float] = {}
        for name, place in (("exact_match", 0), ("f1", 1)):
            threshold, value = best_threshold(*self.if_answered(place))
            found |= {name: value, f"{name}_threshold": threshold}
        return found

    def if_answered(self, place: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for each question the odds of its best answer, what that is worth (exact match: 0, F1: 1), and whether it has one."""
        best = [result.answers[0].text if result.answers else "" for result in self.results]
        worth = np.array([squad(said, right, version="2.0")[place] for said, right in zip(best, self.right, strict=True)], float)
        return np.array([result.margin for result in self.results], float), worth, self.has


def best_threshold(margins: np.ndarray, worth: np.ndarray, has: np.ndarray) -> tuple[float, float]:
    """Return from which odds on to answer so that the mean is highest, and that mean; halfway between the odds on either side.

    A question that is not answered is worth 1 where it has no answer. Shapes: all (n,).
    """
    order = np.argsort(-margins, kind="stable")
    ordered = margins[order]
    # of the k surest answered, what all are worth
    gain = np.where(has, worth, -1.0)[order]
    values = (~has).sum() + np.concatenate([[0.0], np.cumsum(gain)])
    last = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])  # of equal odds, all are answered or none
    best = int(np.where(last, values, -np.inf).argmax())
    finite = ordered[np.isfinite(ordered)]
    if not len(finite):
        return 0.0, float(values[best] / len(has))
    above = ordered[best - 1] if best else finite[0] + 2.0
    below = ordered[best] if best < len(ordered) and np.isfinite(ordered[best]) else finite[-1] - 2.0
    return float((above + below) / 2), float(values[best] / len(has))


def question_word(question: str) -> str:
    """Return the question word of an English question, "other" where there is none."""
    found = _QUESTION_WORD.search(" ".join(question.split()))
    return found[1].lower() if found else "other"


def error_kind(item: QuestionItem, result: Answered, exact: float) -> str:
    """Return what is wrong with an answer: where it stands beside the nearest right one."""
    if result.error is not None:
        return "failed"
    if exact:
        return "right"
    best = result.best
    if best is None:
        return "not answered, though there is an answer"
    if not item.answers:
        return "answered, though there is no answer"
    same = [gold for gold in item.answers if gold.context == best.context]
    near = [gold for gold in same if gold.start < best.end and best.start < gold.end]
    if any(best.start <= gold.start and gold.end <= best.end for gold in near):
        return "too long: the answer and more"
    if any(gold.start <= best.start and best.end <= gold.end for gold in near):
        return "too short: a part of the answer"
    if near:
        return "overlaps the answer"
    if len(item.contexts) > 1 and not same:
        return "in another context"
    return "elsewhere"


def _group(size: int) -> str:
    return next((_between(low, high) for low, high in LENGTHS if low <= size and (high is None or size <= high)), "none")


def _between(low: int, high: int | None) -> str:
    return f"{low}+ words" if high is None else f"{low} word{'s' if low > 1 else ''}" if low == high else f"{low} to {high} words"
