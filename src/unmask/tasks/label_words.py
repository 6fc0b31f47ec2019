"""Classification without a trained head: which label's words does the masked language model expect in a template?

The words' probabilities are set against what the model expects there whatever the text says, its prior, or else frequent words would
always win (Holtzman et al. 2021; Zhao et al. 2021). With a few labelled texts, a logistic regression learns from the words' scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.over import Over, Place, along, here
from ..data.tokenizer import frame
from ..errors import TaskError
from ..infer.backends import Backend
from ..infer.engine import Engine
from ..infer.targets import Question, mask_marker, score_targets
from .classify import Classified, Text, as_item
from .classify_data import TextItem
from .encode import chunks, cuts, tokenize
from .predictor import USUAL

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEMPLATE = "{text} This is about [MASK]."
NOTHING = ("", "N/A")  # texts that say nothing, over which the prior is taken
CHUNK = 256


class LabelWords:
    """Classifies texts by label words in a template with a masked language model; `options` go to the Engine.

    `words` has for each label the words that stand for it; `template` holds {text} (and {pair} for pairs) and one mask. A text too long for
    the model is read in windows, whose scores are averaged.
    """

    def __init__(
        self,
        model: PreTrainedModel | Backend,
        tokenizer: Any,
        words: Mapping[str, Sequence[str]],
        *,
        template: str = TEMPLATE,
        calibrated: bool = True,
        **options: Any,
    ) -> None:
        self.engine, self.tokenizer = Engine(model, **options), tokenizer
        self.over: Over | None = None  # where chunks of texts are classified: here, unless a Cluster has set it
        self.labels = list(words)
        self.words = [[word] if isinstance(word, str) else list(word) for word in words.values()]
        if len(self.labels) < 2 or not all(self.words):
            raise TaskError(f"label words = {dict(words)!r}; give two labels or more, and for each of them a word or several")
        self.template = template
        if "{text}" not in template or len(mask_marker(tokenizer).findall(template)) != 1:
            raise TaskError(f"template = {template!r}; it has to hold {{text}} and one mask ([MASK]), as in {TEMPLATE!r}")
        self.targets = [word for several in self.words for word in several]
        self.owner = np.repeat(np.arange(len(self.labels)), [len(several) for several in self.words])
        before, after = frame(tokenizer)
        self.longest = len(before) + len(after) + max(map(len, tokenize(tokenizer, self.targets)))  # tokens beside text and template
        self.regression: Any = None
        self.prior = np.zeros(len(self.targets))
        if calibrated:
            self.prior = np.log(np.mean([np.exp(row) for row in self._scores(self._fill(text, "") for text in NOTHING)], axis=0))

    @classmethod
    def load(
        cls, name_or_path: str | Path, words: Mapping[str, Sequence[str]], *, device: str = "auto", on: Place | None = None, **options: Any
    ) -> LabelWords:
        """Return one of a masked language model: a folder, an exported one or a Hub id; `options` as of the class.

        `on` is a Cluster that classifies what `stream` is given, with the model sent to its workers.
        Raises: CheckpointError, TokenizerError, TaskError.
        """
        from ..infer.load import load

        model, tokenizer = load(name_or_path, device=device if on is None else "cpu")
        made = cls(model, tokenizer, words, **options)
        if on is not None:
            on.spread(
                made, name_or_path, partial(cls.load, words=words, **{**options, "precision": made.engine.precision_name}), device=device
            )
        return made

    def features(self, texts: Iterable[str | tuple[str, str]]) -> np.ndarray:
        """Return for each text the log-probability of each label word, less its prior. Shapes: (n, words)."""
        found = [row for row, _ in self._rows(texts)]
        return np.stack(found) - self.prior if found else np.zeros((0, len(self.targets)))

    def fit(self, texts: Sequence[str | tuple[str, str]], labels: Sequence[str], *, strength: float = 1.0) -> LabelWords:
        """Learn from a few labelled texts how far which word speaks for which label, and return self.

        `strength` is scikit-learn's C: a lower one trusts the words more and the texts less.
        Raises: TaskError for a label without words.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        wrong = sorted(set(labels) - set(self.labels))
        if wrong or len(set(labels)) < 2:
            raise TaskError(f"the label {wrong[0]!r} has no words" if wrong else "texts of one label only teach nothing; give some of two")
        self.regression = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        self.regression.fit(self.features(texts), list(labels))
        return self

    def predict(self, texts: str | tuple[str, str] | Iterable[str | tuple[str, str]]) -> Any:
        """Return what the label words say of a text (a tuple of two is a pair), or a list for many.

        Raises: TaskError for an empty text.
        """
        if isinstance(texts, (str, tuple)):
            return self.predict([texts])[0]
        rows = list(self._rows(texts))
        if not rows:
            return []
        features = np.stack([row for row, _ in rows]) - self.prior
        if self.regression is not None:
            known = list(self.regression.classes_)
            logits = np.full((len(features), len(self.labels)), -np.inf)
            logits[:, [self.labels.index(label) for label in known]] = self.regression.predict_log_proba(features)
        else:
            logits = np.stack([features[:, self.owner == number].mean(1) for number in range(len(self.labels))], 1)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        probs = odds / odds.sum(1, keepdims=True)
        return [
            Classified(
                (self.labels[int(row.argmax())],), dict(zip(self.labels, row.tolist(), strict=True)), tuple(logit.tolist()), windows
            )
            for row, logit, (_, windows) in zip(probs, logits, rows, strict=True)
        ]  # fmt: skip

    def stream(self, items: Iterable[Text]) -> Iterator[tuple[TextItem, Classified]]:
        """Yield each of any number of items with what the label words say of it, in bounded memory."""
        for chunk, results in along(self.over or here(self), _predicted, chunks(map(as_item, items), CHUNK), lambda chunk: chunk):
            yield from zip(chunk, results, strict=True)

    def _rows(self, texts: Iterable[str | tuple[str, str]]) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the log-probabilities of the label words for each text, and in how many windows it was read."""
        for chunk in chunks(texts, CHUNK):
            parts = [list(self._windows(*((text, "") if isinstance(text, str) else text))) for text in chunk]
            rows = list(self._scores(part for several in parts for part in several))
            start = 0
            for several in parts:
                yield np.mean(rows[start : start + len(several)], axis=0), len(several)
                start += len(several)

    def _windows(self, text: str, pair: str) -> Iterator[str]:
        if not text.strip():
            raise TaskError("a text is empty; give a text")
        room = (self.engine.max_length or USUAL) - len(tokenize(self.tokenizer, [self._fill("", pair)])[0]) - self.longest
        if room < 1:
            raise TaskError(f"template = {self.template!r} (with the second text of a pair) leaves no room for the text; shorten it")
        (encoding,) = tokenize(self.tokenizer, [text], offsets=True)
        if len(encoding.ids) <= room:
            yield self._fill(text, pair)
            return
        for start, stop in cuts(len(encoding.ids), room):
            yield self._fill(text[encoding.offsets[start][0] : encoding.offsets[stop - 1][1]], pair)

    def _fill(self, text: str, pair: str) -> str:
        """Return the template with a text in it; masks that the text itself has are taken out of it."""
        marker = mask_marker(self.tokenizer)
        parts = {"{text}": marker.sub("…", text), "{pair}": marker.sub("…", pair)}
        return re.sub(r"\{text\}|\{pair\}", lambda found: parts[found[0]], self.template).strip()

    def _scores(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        for answer in score_targets(self.engine, self.tokenizer, (Question(text, self.targets) for text in texts)):
            wrong = answer.error or next((target.error for target in answer.targets if target.error is not None), None)
            if wrong is not None:
                raise TaskError(wrong)
            yield np.array([target.log_prob for target in answer.targets])


def _predicted(words: LabelWords, chunks: Iterable[Sequence[TextItem]]) -> Iterator[list[Classified]]:
    for chunk in chunks:
        yield words.predict([item.text if item.pair is None else (item.text, item.pair) for item in chunk])


def parse(given: Sequence[str]) -> dict[str, list[str]]:
    """Return label -> words from "label=word|word" each.

    Raises: TaskError for what is of another form.
    """
    found: dict[str, list[str]] = {}
    for text in given:
        label, equals, words = text.partition("=")
        if not equals or not label.strip() or not all(word.strip() for word in words.split("|")):
            raise TaskError(f"label words {text!r} are not of the form label=word|word (health=doctor|hospital)")
        found[label.strip()] = [word.strip() for word in words.split("|")]
    return found
