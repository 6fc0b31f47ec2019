"""The model card of a fine-tuned model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..train.card import bullets, escape, is_local, optimizer, shown
from ..train.runlog import duration

if TYPE_CHECKING:
    from .objective import TaskObjective

RESULTS = "## Results"
CLASSES = {"classify": "Classifier", "ner": "Tagger", "qa": "Answerer"}  # of each task, what its models are used through
KINDS = {"classify": "text classification", "ner": "named entities", "qa": "question answering"}


def task_card(objective: TaskObjective, metrics: Mapping[str, Any]) -> str:
    """Return the README.md of a fine-tuned model: YAML front matter, then Markdown. Of local files it names no folders."""
    recipe = objective.recipe
    head = ["library_name: transformers", f"pipeline_tag: {objective.pipeline_tag}", "tags:", f"- {objective.pipeline_tag}", "- unmask"]
    if not is_local(recipe.base_model):
        head.append(f"base_model: {json.dumps(recipe.base_model)}")  # JSON's strings are YAML's
    sources = ", ".join(map(shown, recipe.data.sources))
    auto = type(objective.model).__name__
    parts = [
        "\n".join(["---", *head, "---", ""]),
        f"# {escape(shown(recipe.base_model))}, fine-tuned on {escape(sources)}\n",
        f"A model for {KINDS[objective.name]}, fine-tuned with Unmask {__version__} from {escape(shown(recipe.base_model))}.\n",
        f"""```python
import unmask

model = unmask.{CLASSES[objective.name]}.load("path/to/this/folder")
```

It is a plain Hugging Face folder too (`{auto}`). What Unmask keeps beside that (the window, thresholds) stands in config.json.
""",
        "## Training data\n",
        bullets(data_lines(objective)),
        "## Training\n",
        bullets(training_lines(objective, metrics)),
        results(objective, metrics),
        "## Limits\n\nThe model knows the labels, the subjects and the biases of the texts it was fine-tuned on and of its base model; the "
        "numbers hold for texts of that kind.\n",
    ]
    return "\n".join(part for part in parts if part)


def data_lines(objective: TaskObjective) -> Iterable[tuple[str, str]]:
    """Yield the lines on the examples."""
    data, recipe = objective.data, objective.recipe
    yield "Examples", f"{len(data.train):,} to train on, {len(data.dev):,} to measure on"
    dev = ", ".join(f"`{shown(name)}`" for name in recipe.data.dev)
    share = f"{recipe.data.share_of(len(data.train) + len(data.dev)):.1%} of the same files, by a hash of their content"
    yield "Files", ", ".join(f"`{shown(name)}`" for name in recipe.data.sources) + f"; measured on {dev or share}"
    if data.spec.labels:
        names = list(data.spec.labels)
        yield "Labels", ", ".join(map(escape, names[:30])) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    for finding in data.findings:
        if finding.level != "note":
            yield "Found in the data", escape(finding.counted)


def training_lines(objective: TaskObjective, metrics: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the lines on how the model was trained."""
    recipe = objective.recipe
    yield "Steps", f"{metrics['step']:,} of {metrics['last_step']:,}, {recipe.data.batch_size} examples each, packed without padding"
    yield "Time", f"{duration(metrics['seconds'])} on {objective.device.type}, {objective.precision.name} products, fp32 weights"
    yield "Window", f"at most {objective.predictor.max_length} tokens"
    if recipe.freeze:
        yield "Frozen", f"the embeddings and the first {recipe.freeze} layers"
    if recipe.lora.r:
        yield "LoRA", f"rank {recipe.lora.r}, merged into the weights; the head was trained whole"
    yield "Optimizer", optimizer(recipe.optim)
    yield "Seed", str(recipe.train.seed)


def results(objective: TaskObjective, metrics: Mapping[str, Any]) -> str:
    """Return the section with the numbers on held-out examples."""
    if not objective.is_measured:
        return f"{RESULTS}\n\nNo examples were held out, so nothing was measured.\n"
    untrained = metrics.get("untrained", {})
    rows = ["| | this model | untrained head |", "|---|---:|---:|"]
    for name, value in metrics.items():
        if name in untrained and isinstance(value, float):
            rows.append(f"| {name} | {value:.4f} | {untrained[name]:.4f} |")
    return "\n".join([f"{RESULTS}\n", *rows, "", f"On {metrics['num_examples']:,} held-out examples.", ""])
