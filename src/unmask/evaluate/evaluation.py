"""Measure a masked language model on text: `unmask.evaluate` and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..box import or_box
from ..config import read_toml
from ..data.frozen import EVAL_SEED, POLICIES
from ..data.manifest import write_manifest
from ..data.over import Place
from ..data.store import TokenStore
from ..data.tokenizer import load_tokenizer, tokenizer_hash
from ..data.whole import alone, whole_file
from ..errors import CheckpointError, ConfigError, DataError
from ..infer.load import spread
from ..tasks.kinds import task_of
from .metrics import metrics as metrics_of
from .records import ACTIONS, DOCUMENTS, RECORDS, Records
from .report import REPORT
from .report import write as write_report
from .stats import RESAMPLES, check_resamples
from .text import open_text
from .worst import WORST, keep_worst

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..infer.engine import Engine
    from .items import Outcome

METRICS, PREDICTIONS = "metrics.json", "predictions.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What was measured: the numbers, as in metrics.json, and what they were computed from."""

    metrics: dict[str, Any]
    records: Records

    def __getitem__(self, name: str) -> Any:
        return self.metrics[name]["value"] if isinstance(self.metrics[name], dict) and "value" in self.metrics[name] else self.metrics[name]


def evaluate(
    model: str | Path | PreTrainedModel | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    tokenizer: Any = None,
    policy: str = "corrupt",
    views: int = 1,
    seed: int = EVAL_SEED,
    max_length: int | None = None,
    max_tokens: int | None = None,
    slice_by: str | None = None,
    frequencies: str | Path | None = None,
    resamples: int = RESAMPLES,
    output: str | Path | None = None,
    predictions: bool = False,
    precision: str = "fp32",
    device: str = "auto",
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on: Place | None = None,
    **reading: Any,
) -> Evaluation | Outcome:
    """Return the numbers of a masked language model on the frozen masks of a text, each with its count and a 95% interval.

    A model that is fine-tuned for a task is measured on labelled data, as `evaluate_task` does it: `reading` are then fields of TaskData.

    `model` is a folder, a Hub id, a run's folder (its finished model; on its own held-out text where `data` is not given), or a model with
    its `tokenizer`; by default the model in the box. `data` is what `read` takes, or a packed corpus. `policy` is "corrupt" (80/10/10, as
    in training) or "mask" (the mask token alone): their numbers do not compare. On the corpus of the run that made the model, `max_length`
    and `max_tokens` are the run's.
    `frequencies` names the store whose token frequencies the slices go by (a packed corpus: its training text); by default the text's own.
    `output` is a folder for metrics.json, the records, report.html and, with `predictions`, predictions.jsonl; by its manifest a change is
    seen when they are read again. `on` is a Cluster that runs the model. The rest goes to `read`.
    Raises: DataError, ConfigError, CheckpointError, TokenizerError, StoreError.
    """
    from .masked import measure  # torch

    if policy not in POLICIES:
        raise ConfigError(f"policy = {policy!r}; allowed: {', '.join(POLICIES)} (as in training, or the mask token alone)")
    if predictions and output is None:
        raise ConfigError("predictions are written into a folder: name one (output; --output on the command line)")
    check_resamples(resamples)
    model = or_box(model) if model is None or isinstance(model, (str, Path)) else model
    if isinstance(model, (str, Path)) and task_of(model) is not None:
        foreign = {"policy": policy != "corrupt", "views": views != 1, "max_tokens": max_tokens, "slice_by": slice_by,
                   "frequencies": frequencies, "tokenizer": tokenizer}  # fmt: skip
        wrong = [name for name, given in foreign.items() if given]
        if wrong or data is None:
            reason = f"{', '.join(wrong)}: leave it out" if wrong else "none is named"
            raise ConfigError(f"'{model}' is fine-tuned for a task, and measured on labelled data; {reason}")
        from .tasks import evaluate_task

        return evaluate_task(
            model, data, output=output, resamples=resamples, seed=seed, device=device, precision=precision, max_length=max_length,
            batch_tokens=batch_tokens, on=on, **reading,
        )  # fmt: skip
    folder = check_output(output)
    name, engine, tokenizer = load(model, tokenizer, precision=precision, device=device, batch_tokens=batch_tokens, on=on)
    defaults = run_defaults(model, data) if isinstance(model, (str, Path)) else {}
    data = data if data is not None else defaults.get("data")
    if data is None:
        raise DataError(f"no text is named to measure '{name}' on; name files or a packed corpus: --data FILES")
    if max_tokens is None:
        max_tokens = defaults.get("max_tokens", 0)
    if max_length is None and defaults.get("max_length") is not None:
        max_length = min(defaults["max_length"], engine.max_length or defaults["max_length"])
    text = open_text(data, tokenizer, slice_by=slice_by, max_tokens=max_tokens, **reading)
    counts = None if frequencies is None else token_frequencies(frequencies, tokenizer)
    with alone(folder) if folder is not None else contextlib.nullcontext():
        if folder is not None:
            for stale in (METRICS, PREDICTIONS, WORST, REPORT):  # one that ends early must not leave those of another
                (folder / stale).unlink(missing_ok=True)
        records = measure(
            engine, text, policy=policy, views=views, seed=seed, max_length=max_length, frequencies=counts, folder=folder,
            info={"model": name, "max_tokens": max_tokens}, progress=progress,
        )  # fmt: skip
        found = metrics_of(records, resamples=resamples)
        found["num_documents_empty"] = text.num_empty
        if folder is not None:
            write(folder / METRICS, [json.dumps(found, indent=1, ensure_ascii=False) + "\n"])
            if predictions:
                write(folder / PREDICTIONS, predicted(records, tokenizer))
            keep_worst(records, text, folder)
            write_manifest(folder, only=(RECORDS, DOCUMENTS, METRICS, PREDICTIONS, WORST))
            write_report(folder)
        return Evaluation(found, records)


def load(
    model: str | Path | PreTrainedModel, tokenizer: Any, *, precision: str, device: str, batch_tokens: int | None, on: Place | None = None
) -> tuple[str, Engine, Any]:
    """Return the name of a model (an exported one, too), an engine that runs it, and its tokenizer; `device` is auto, cpu, cuda ...

    `on` is a Cluster that runs it.
    """
    if on is not None:
        if not isinstance(model, (str, Path)):
            raise ConfigError("a model that is given as an object is in this process alone; for a cluster save it, and name the folder")
        name, engine, tokenizer = load(model, tokenizer, precision=precision, device="cpu", batch_tokens=batch_tokens)
        spread(engine, on, model_folder(model), tokenizer, device)
        return name, engine, tokenizer
    from ..infer.backends import open_export
    from ..infer.engine import Engine
    from ..model.load import check_fit, check_folder, load_model
    from ..train.setup import find_device

    if batch_tokens is not None and batch_tokens < 1:
        raise ConfigError(f"batch_tokens = {batch_tokens}; allowed: 1 or more")
    if precision not in ("fp32", "bf16", "auto"):
        raise ConfigError(f"precision = {precision!r}; allowed: fp32, bf16, auto")
    place = find_device(device)
    model = or_box(model) if isinstance(model, (str, Path)) else model
    if not isinstance(model, (str, Path)):
        if tokenizer is None:
            raise ConfigError("a model that is given as an object needs its tokenizer beside it: evaluate(model, data, tokenizer=...)")
        check_fit(model, tokenizer)
        if device != "auto":
            model.to(place)  # type: ignore[arg-type]
        name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        return name, Engine(model, max_tokens=batch_tokens, precision=precision), tokenizer
    folder = model_folder(model)
    exported = open_export(folder)
    if exported is None:
        check_folder(str(folder))
    if not hasattr(tokenizer, "get_vocab"):
        tokenizer = load_tokenizer(folder if tokenizer is None else tokenizer)
    if exported is not None:
        if device not in ("auto", "cpu"):
            raise ConfigError(f"device = {device!r}: '{model}' is an exported model, which runs on the CPU; leave it out")
        return str(model), Engine(exported[0], max_tokens=batch_tokens, precision=precision), tokenizer
    loaded = load_model(folder, tokenizer=tokenizer)
    loaded.to(place)  # type: ignore[arg-type]
    return str(model), Engine(loaded, max_tokens=batch_tokens, precision=precision), tokenizer


def model_folder(name: str | Path) -> str | Path:
    """Return the folder of a run's finished model, for a run; any other name as it is."""
    run = Path(name).expanduser()
    return run / "model" if (run / "config.toml").is_file() and (run / "model").is_dir() else name


def run_defaults(model: str | Path, data: str | Path | Sequence[str | Path] | None) -> dict[str, Any]:
    """Return data, max_length and max_tokens of the run that a model comes from, where the data is the run's own corpus (or not named)."""
    folder = Path(model).expanduser()
    run = folder if (folder / "config.toml").is_file() else folder.parent if folder.name == "model" else None
    if run is None or not (run / "config.toml").is_file():
        return {}
    settings = read_toml(run / "config.toml")
    own = [run / "corpus", *(Path(source) for source in settings.get("data", {}).get("sources", []))]
    corpus = next((path for path in own if (path / "heldout" / "store.json").is_file()), None)
    if corpus is None or (data is not None and (not isinstance(data, (str, Path)) or not _same(Path(data), (corpus, corpus / "heldout")))):
        return {}
    return {
        "data": corpus,
        "max_length": settings.get("data", {}).get("max_length"),
        "max_tokens": settings.get("train", {}).get("eval_tokens", 0),
    }


def _same(path: Path, others: Iterable[Path]) -> bool:
    return any(path.resolve() == other.resolve() for other in others)


def token_frequencies(corpus: str | Path, tokenizer: Any) -> np.ndarray:
    """Return how often each token occurs in a store, or in the training text of a packed corpus, (V,) int64."""
    from ..train.unigram import token_counts

    folder = Path(corpus)
    store = TokenStore.open(folder / "train" if (folder / "train").is_dir() else folder, tokenizer_hash=tokenizer_hash(tokenizer))
    return token_counts(store, store.vocab_size)


def check_output(output: str | Path | None) -> Path | None:
    """Return the folder for the results; an evaluation that is there already is written over, anything else is not touched.

    Raises: CheckpointError.
    """
    # a killed one has left parts
    return output_folder(output, "an evaluation", lambda names: RECORDS in names or all(name.endswith(".part") for name in names))


def output_folder(output: str | Path | None, what: str, is_own: Callable[[set[str]], bool]) -> Path | None:
    """Return the folder for results, once what lies in it, by name, may be written over.

    Raises: CheckpointError.
    """
    if output is None:
        return None
    folder = Path(output).expanduser()
    if folder.is_file():
        raise CheckpointError(f"'{folder}' is a file; name a folder for {what}")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and not is_own(names):
        raise CheckpointError(f"'{folder}' exists and holds something else than {what}, so nothing is written into it; choose another name")
    return folder


def predicted(records: Records, tokenizer: Any) -> Iterator[str]:
    """Yield a line of JSON for each masked token."""
    token = tokenizer.convert_ids_to_tokens
    for rows in records.blocks(2**14):
        columns = {name: getattr(records, name)[rows].tolist() for name in (
            "document", "view", "position", "label", "predicted", "log_prob", "confidence", "rank", "action", "word_start", "word_pieces",
        )}  # fmt: skip
        names = [token(columns[name]) for name in ("label", "predicted")]
        for number, document in enumerate(columns["document"]):
            line = {name: values[number] for name, values in columns.items()}
            line |= {
                "document": records.document_id(document), "action": ACTIONS[line["action"]],
                "label_token": names[0][number], "predicted_token": names[1][number],
            }  # fmt: skip
            yield json.dumps(line, ensure_ascii=False) + "\n"


def write(path: Path, lines: Iterable[str]) -> None:
    """Write a file so that it is there whole or not at all."""
    with whole_file(path) as file:
        file.writelines(lines)
