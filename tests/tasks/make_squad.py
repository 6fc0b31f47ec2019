"""Writes squad.json: what SQuAD's official scripts say of answers. python make_squad.py evaluate-v1.1.py evaluate-v2.0.py"""

import importlib.util
import json
import random
import sys
from pathlib import Path

CASES = [
    (["Denver Broncos", "The Denver Broncos"], "denver broncos!"),
    (["the"], "a"), (["the"], ""), (["The The"], "the the"), ([], ""), ([], "something"), ([], "the"), (["a", "b"], ""),
    (["..."], "..."), (["..."], ""), (["..."], "the"), (["$"], "$"), (["$5.50"], "5 50"), (["$5.50"], "550"), (["3,000"], "3000"),
    (["U.S."], "US"), (["U.S."], "u s"), (["a.m."], "am"), (["an apple a day"], "apple day"), (["anthem"], "an them"),
    (["Beyoncé"], "Beyonce"), (["Beyoncé"], "beyonce\u0301"), (["İstanbul"], "istanbul"), (["STRASSE"], "straße"), (["ﬁve"], "five"),
    (["the\u00a0end"], "end"), (["a\u2009b"], "b"), (["b\u200bc"], "bc"), (["“quoted”"], "quoted"), (["1990–1995"], "1990-1995"),
    (["l'arte"], "larte"), (["don’t"], "dont"), (["don't"], "dont"), (["rock 'n' roll"], "rock n roll"), (["the-end"], "theend"),
    (["人工智能"], "人工 智能"), (["人工智能"], "人工智能。"), (["東京タワー"], "東京"), (["กรุงเทพ"], "กรุงเทพ"), (["👩‍🚀"], "👩‍🚀 a"),
    (["x x y"], "x y y"), (["x x x"], "x"), (["x y", "y z", "q"], "x y z"), (["A", "An"], "the"),
    (["  spaces \t in\nthe middle "], "spaces in middle"),
    (["ª"], "a"), (["a_b"], "a b"), (["\\"], "/"), (["theatre"], "the atre"), (["La La Land"], "La Land"),
    (["Ǆ"], "ǆ"), (["Σίσυφος"], "ΣΊΣΥΦΟΣ"),
]  # fmt: skip
PIECES = [
    "a",
    "an",
    "the",
    "The",
    "x",
    "y",
    "Z",
    "é",
    "e\u0301",
    ".",
    ",",
    "-",
    "’",
    "“",
    "$",
    "3",
    "\u00a0",
    "中",
    "文",
    "ทีi",
    "U.S.",
    "l'a",
    "",
]


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem.replace(".", "_").replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    old, new = map(load, sys.argv[1:])
    random.seed(0)

    def text() -> str:
        return "".join(random.choice(PIECES) + random.choice(("", " ")) for _ in range(random.randint(0, 5)))

    pairs = [*CASES, *(([text() for _ in range(random.randint(0, 3))], text()) for _ in range(150))]
    questions = [{"id": str(number), "answers": [{"text": one} for one in gold]} for number, (gold, _) in enumerate(pairs)]
    data = [{"paragraphs": [{"qas": questions}]}]
    said = {str(number): answer for number, (_, answer) in enumerate(pairs)}
    exact, f1 = new.get_raw_scores(data, said)
    cases = []
    for number, (gold, answer) in enumerate(pairs):
        case = {"gold": gold, "said": answer, "2.0": [exact[str(number)], f1[str(number)]]}
        if gold:
            case["1.1"] = [
                int(old.metric_max_over_ground_truths(old.exact_match_score, answer, gold)),
                old.metric_max_over_ground_truths(old.f1_score, answer, gold),
            ]
        cases.append(case)
    has = new.make_qid_to_has_ans(data)
    whole = new.make_eval_dict(exact, f1)
    for prefix, names in (("HasAns", [k for k, v in has.items() if v]), ("NoAns", [k for k, v in has.items() if not v])):
        new.merge_eval(whole, new.make_eval_dict(exact, f1, qid_list=names), prefix)
    path = Path(__file__).with_name("squad.json")
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    path.write_text(f'{{"cases": [\n{lines}\n],\n"whole": {json.dumps(whole)}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
