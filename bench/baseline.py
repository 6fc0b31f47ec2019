"""What no encoder is needed for: TF-IDF with a logistic regression, and a gazetteer of the entities of the training data.

    python bench/baseline.py classify --train FILE --test FILE [--dev FILE] [--separator ,]
    python bench/baseline.py ner --train FILE --test FILE [--format conll]

The files are read, and the numbers and their intervals taken, as `unmask finetune` and `unmask evaluate` do it. Several labels a text
(`--separator`) have a threshold each, from the dev files. A gazetteer has each sequence of words that is more often an entity than not in
the training data, with its most frequent type; the longest match from the left counts. The result is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from unmask.evaluate.stats import RESAMPLES, units, weights, with_interval
from unmask.tasks import tuning
from unmask.tasks.classify_data import TextItem, parted, read_items
from unmask.tasks.classify_scores import MultiLabel, SingleLabel
from unmask.tasks.ner_data import TaggedText, read_tagged
from unmask.tasks.ner_scores import Entities
from unmask.tasks.ner_tags import Span
from unmask.tasks.recipe import TaskData


def classify(train: str, test: str, dev: str | None, separator: str | None) -> tuple[Any, int, list[str]]:
    """Return the scores of words and pairs of words by TF-IDF, the number of test items, and which of the scores to print."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    def read(file: str) -> list[TextItem]:
        return parted(read_items([file], TaskData(on_bad="drop"))[0], separator)

    items, held = read(train), read(test)
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    known, asked = vectors.fit_transform(texts(items)), vectors.transform(texts(held))
    labels = sorted({label for item in items for label in item.label})
    if separator is None:
        number = {label: place for place, label in enumerate(labels)}
        model = LogisticRegression(C=10, max_iter=1000).fit(known, [number[item.label[0]] for item in items])
        gold = np.array([number[item.label[0]] for item in held])
        return SingleLabel(gold, model.predict_proba(asked), labels), len(held), ["accuracy", "macro_f1"]
    if dev is None:
        raise SystemExit("several labels a text: name --dev, too, for the thresholds")
    tuned = read(dev)
    several = OneVsRestClassifier(LogisticRegression(C=3, max_iter=1000)).fit(known, table(items, labels).astype(int))
    cuts = tuning.thresholds(several.predict_proba(vectors.transform(texts(tuned))), table(tuned, labels))
    probs = several.predict_proba(asked)
    return MultiLabel(table(held, labels), probs, probs >= cuts, labels), len(held), ["macro_f1", "micro_f1"]


def texts(items: Iterable[TextItem]) -> list[str]:
    """Return the texts of items."""
    return [item.text for item in items]


def table(items: Sequence[TextItem], labels: Sequence[str]) -> np.ndarray:
    """Return which labels each item has, (n, L) bool."""
    return np.array([[label in item.label for label in labels] for item in items])


def ner(train: str, test: str, format: str) -> tuple[Any, int, list[str]]:
    """Return the scores of a gazetteer, the number of test texts, and which of the scores to print."""
    data = TaskData(format=format, on_bad="drop")
    items, held = read_tagged([train], data)[0], read_tagged([test], data)[0]
    kinds: dict[tuple[str, ...], Counter[str]] = {}
    for item in items:
        words = words_of(item)
        places = {start: place for place, (start, _) in enumerate(item.words)}
        ends = {stop: place + 1 for place, (_, stop) in enumerate(item.words)}
        for start, stop, kind in item.entities or ():
            kinds.setdefault(tuple(words[places[start] : ends[stop]]), Counter())[kind] += 1
    longest = max(map(len, kinds), default=0)
    there: Counter[tuple[str, ...]] = Counter()
    for item in items:
        words = words_of(item)
        there.update(key for at in range(len(words)) for size in range(1, longest + 1) if (key := tuple(words[at : at + size])) in kinds)
    known = {key: found.most_common(1)[0][0] for key, found in kinds.items() if 2 * found.total() > there[key]}
    said = [found_in(item, known, longest) for item in held]
    return Entities([item.entities or () for item in held], said, [item.words for item in held]), len(held), ["f1", "precision", "recall"]


def words_of(item: TaggedText) -> list[str]:
    """Return the words of a text."""
    return [item.text[start:stop] for start, stop in item.words]


def found_in(item: TaggedText, known: dict[tuple[str, ...], str], longest: int) -> list[Span]:
    """Return the entities that a gazetteer finds in a text."""
    words, at, spans = words_of(item), 0, []
    while at < len(words):
        size = next((size for size in range(min(longest, len(words) - at), 0, -1) if tuple(words[at : at + size]) in known), 0)
        if size:
            spans.append((item.words[at][0], item.words[at + size - 1][1], known[tuple(words[at : at + size])]))
        at += max(1, size)
    return spans


def main() -> None:
    """Print the numbers of a baseline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("task", choices=["classify", "ner"])
    parser.add_argument("--train", required=True, help="labelled file to learn from")
    parser.add_argument("--test", required=True, help="labelled file to measure on")
    parser.add_argument("--dev", help="labelled file for the thresholds")
    parser.add_argument("--separator", help="what parts the labels of a text that has several")
    parser.add_argument("--format", default="conll", help="of files with entities")
    options = parser.parse_args()
    if options.task == "classify":
        scores, count, shown = classify(options.train, options.test, options.dev, options.separator)
    else:
        scores, count, shown = ner(options.train, options.test, options.format)
    point, unit = scores.of(np.ones((1, count))), units(count)
    drawn = [scores.of(part[:, unit]) for part in weights(int(unit.max()) + 1, RESAMPLES, 0)]
    found = {name: with_interval(float(point[name][0]), np.concatenate([part[name] for part in drawn]), count, count) for name in shown}
    print(json.dumps({"task": options.task, "train": options.train, "test": options.test, **found}, indent=1))


if __name__ == "__main__":
    main()
