"""The model card: what a model is, what it was trained on, and numbers with what they mean, as the README.md of its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .lora import is_matrix
from .optim import OptimConfig
from .runlog import duration

if TYPE_CHECKING:
    from .recipe import Recipe
    from .setup import Setup

NAMES = {"": "this model", "before": "before adapting", "untrained": "untrained model", "unigram": "word frequencies alone"}
SECTION = "## Before and after adapting"
SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|~"})


def model_card(recipe: Recipe, metrics: Mapping[str, Any], setup: Setup) -> str:
    """Return the README.md of a finished model: YAML front matter, then Markdown. Of local files it names no folders."""
    parts = [
        front_matter(recipe),
        f"# {title(recipe)}\n",
        introduction(recipe, setup),
        usage(setup),
        "## Training data\n",
        bullets(training_data(recipe, setup)),
        "## Training\n",
        bullets(training(recipe, metrics, setup)),
        "## Architecture\n",
        bullets(architecture(setup)),
        results(metrics),
        limits(recipe),
    ]
    return "\n".join(part for part in parts if part)


def front_matter(recipe: Recipe) -> str:
    """Return the YAML block that a model hub reads."""
    lines = ["library_name: transformers", "pipeline_tag: fill-mask", "tags:", "- masked-lm", "- fill-mask", "- unmask"]
    if recipe.base_model is not None and not is_local(recipe.base_model):
        lines.append(f"base_model: {json.dumps(recipe.base_model)}")  # JSON's strings are YAML's
    return "\n".join(["---", *lines, "---", ""])


def title(recipe: Recipe) -> str:
    """Return the headline of the card."""
    sources = ", ".join(shown(source) for source in recipe.data.sources[:3]) or "text"
    if recipe.base_model is not None:
        return f"{escape(shown(recipe.base_model))}, adapted to {escape(sources)}"
    return f"A {recipe.model.family} ({recipe.model.preset}) of {escape(sources)}"


def introduction(recipe: Recipe, setup: Setup) -> str:
    """Return a sentence or two on what the model is."""
    start = "from scratch" if recipe.base_model is None else f"going on from {escape(shown(recipe.base_model))}"
    size = sum(parameter.numel() for name, parameter in setup.model.named_parameters() if not is_matrix(name))
    return f"A masked language model of {size / 1e6:,.1f} million parameters, trained {start} with Unmask {__version__}.\n"


def usage(setup: Setup) -> str:
    """Return how to use the model, for reading without looking anything up."""
    return f"""```python
import unmask

filler = unmask.Filler.load("path/to/this/folder")
for candidate in filler.fill("A sentence with a {setup.tokenizer.mask_token} in it.")[0]:
    print(f"{{candidate.score:.3f}}  {{candidate.sequence}}")
```

It is a plain Hugging Face folder too: `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it.
"""


def training_data(recipe: Recipe, setup: Setup) -> Iterable[tuple[str, str]]:
    """Yield the lines on the text."""
    yield "Text", ", ".join(f"`{shown(source)}`" for source in recipe.data.sources)
    yield "Training documents", f"{len(setup.store):,} ({setup.store.num_tokens:,} tokens)"
    if setup.heldout is not None:
        yield "Held-out documents", f"{len(setup.heldout):,} ({setup.heldout.num_tokens:,} tokens), never trained on"


def training(recipe: Recipe, metrics: Mapping[str, Any], setup: Setup) -> Iterable[tuple[str, str]]:
    """Yield the lines on how the model was trained."""
    data, optim, masking = recipe.data, recipe.optim, recipe.masking
    steps, last = metrics.get("step"), metrics.get("last_step")
    if steps is not None:
        yield "Steps", f"{steps:,}" + (f" (the best of {last:,} by held-out loss)" if last not in (None, steps) else "")
    if metrics.get("tokens") is not None:
        epochs = (last or 0) / max(1, setup.loader.steps_per_epoch(0))
        yield "Tokens of the run", f"{metrics['tokens']:,} ({epochs:.2f} passes over the text)"
    if metrics.get("seconds") is not None:
        yield "Time", f"{duration(metrics['seconds'])} on {setup.device.type}, {setup.precision.name} products, fp32 weights"
    yield "Batch", f"{data.batch_tokens:,} tokens a step, windows of at most {data.max_length} tokens, packed without padding"
    end = masking.mlm_probability_end
    rate = f"{masking.mlm_probability:.0%}" + (f" at first and {end:.0%} at the end" if end is not None else "")
    yield (
        "Masking",
        (
            f"{masking.strategy}, {rate} of the tokens; of them {masking.mask_replace_prob:.0%} become the mask token and "
            f"{masking.random_replace_prob:.0%} a random one"
        ),
    )
    if data.extend_vocab:
        yield (
            "Vocabulary",
            f"as many as {data.extend_vocab:,} words of the text were added; below, *before adapting* is the base model with them, "
            "untrained",
        )
    if data.replay:
        sources = ", ".join(f"`{shown(source)}`" for source in data.replay)
        yield "Replay", f"{data.replay_share:.0%} of the tokens of every step came from {sources}"
    if recipe.lora.r:
        yield "LoRA", f"rank {recipe.lora.r}, alpha {recipe.lora.lora_alpha or 2 * recipe.lora.r:g}, merged into the weights"
    yield "Optimizer", optimizer(optim)
    yield "Seed", str(recipe.train.seed)


def optimizer(optim: OptimConfig) -> str:
    """Return the optimizer with its learning rates and schedule."""
    rates = f"AdamW ({optim.learning_rate:g})"
    if optim.optimizer == "muon":
        rates = f"Muon ({optim.muon_learning_rate:g}) on the hidden matrices, AdamW ({optim.learning_rate:g}) on the rest"
    return f"{rates}, weight decay {optim.weight_decay:g}, schedule {optim.schedule}, warm-up over {optim.warmup_ratio:.0%} of the run"


def architecture(setup: Setup) -> Iterable[tuple[str, str]]:
    """Yield the lines on the model's shape."""
    config = setup.model.config
    yield "Class", f"`{type(setup.model).__name__}`"
    for name, label in (("num_hidden_layers", "Layers"), ("hidden_size", "Hidden size"), ("num_attention_heads", "Attention heads")):
        if getattr(config, name, None) is not None:
            yield label, f"{getattr(config, name):,}"
    yield "Vocabulary", f"{len(setup.tokenizer):,} tokens"


def results(metrics: Mapping[str, Any]) -> str:
    """Return the table of numbers and what they mean; nothing where nothing was measured."""
    if "masked_loss" not in metrics:
        return "## Results\n\nNo text was held out, so nothing was measured.\n"
    rows = [(NAMES[key], metrics[key] if key else metrics) for key in NAMES if not key or key in metrics]
    table = ["| | masked accuracy | masked perplexity | masked loss (nats) |", "|---|---:|---:|---:|"]
    for name, row in rows:
        values = [amount(row["masked_accuracy"], ".1%"), amount(row["masked_perplexity"], ",.1f"), amount(row["masked_loss"], ".3f")]
        table.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(["## Results\n", *table, "", definitions(metrics), ""])


def amount(value: float | None, form: str) -> str:
    """Return a number as people read it; one that is beyond all bounds, which files hold as null, by name."""
    return "not finite" if value is None or not math.isfinite(value) else format(value, form)


def definitions(metrics: Mapping[str, Any]) -> str:
    """Return in words what the numbers of a run are, and on which masks they were measured."""
    documents = f" in {metrics['num_documents']:,} held-out documents" if metrics.get("num_documents") else " in held-out documents"
    return (
        f"Measured, {metrics.get('precision', 'fp32')} products, on the same {metrics['num_masked_tokens']:,} masked tokens{documents} "
        "for every row (mask fingerprint "
        f"`{metrics.get('masks_fingerprint')}`): 15% of the tokens, of which 80% are replaced by the mask token, 10% by a random one and "
        "10% left as they are. *Masked loss* is the mean, over those tokens, of the negative logarithm of the probability given to the "
        "original token; *masked perplexity* is its exponential, and *masked accuracy* the share of tokens whose most probable "
        "prediction is the original. A masked perplexity does not compare with the perplexity of a model that reads from left to right, "
        "nor with that of a model with another vocabulary."
    )


def before_and_after(results: Mapping[str, Any]) -> str:
    """Return the section on what adapting gave and what it cost, from adaptation.json: numbers, definitions, fingerprints."""
    table = ["| | before | after | difference | 95% interval |", "|---|---:|---:|---:|---:|"]
    notes = []
    for name, text in results["texts"].items():
        what = "held-out text of the domain" if name == "domain" else f"general text ({', '.join(map(escape, text['sources']))})"
        for unit, title in (("words", "word"), ("tokens", "token")):
            found = text[unit] or {}
            for key, value in found.items():
                if not isinstance(value, Mapping):
                    continue
                bounds = "none" if value["low"] is None else f"{value['low']:+.3f} to {value['high']:+.3f}"
                label = f"{what}: {key} ({title}s hidden)"
                table.append(f"| {label} | {value['before']:,.3f} | {value['after']:,.3f} | {value['difference']:+.3f} | {bounds} |")
            if found:
                count = f"{found['num_hidden']:,} hidden {title}s in {text['num_documents']:,} documents"
                notes.append(f"{what}: {count} (mask fingerprint `{found['masks_fingerprint']}`)")
        before, after = (text["tokenizer"][side]["fertility"] for side in ("before", "after"))
        table.append(f"| {what}: tokens per word | {before:.3f} | {after:.3f} | {after - before:+.3f} | |")
    added = results["vocabulary"]
    more = [] if added is None else [
        f"{added['num_words']:,} words of the domain were added to the vocabulary, those that saved the most pieces, the first of them "
        f"{', '.join(escape(word['word']) for word in added['words'][:10])}. Each began as the mean of its pieces.",
        "",
    ]  # fmt: skip
    definitions = "; ".join(f"*{name}*: {text}" for name, text in results["definitions"].items())
    verdicts = ", ".join(f"{name}: {text['verdict']}" for name, text in results["texts"].items())
    return "\n".join([
        f"{SECTION}\n", *table, "", f"By bits per byte of hidden words, against the model before: {verdicts}.", "", *more,
        f"Both models were measured on the same masks. {'. '.join(notes)}. Intervals: {results['interval']['method']}. {definitions}.", "",
    ])  # fmt: skip


def with_section(card: str, heading: str, section: str) -> str:
    """Return a card with a section before its limits; one of that heading that is there already is replaced."""
    parts = [part for part in card.split("\n## ") if not f"## {part}".startswith(heading + "\n")]
    place = next((number for number, part in enumerate(parts) if part.startswith("Limits")), len(parts))
    return "\n## ".join([*parts[:place], section.removeprefix("## "), *parts[place:]])


def limits(recipe: Recipe) -> str:
    """Return what a reader should keep in mind."""
    text = "the text that it went on with and of its base model" if recipe.base_model is not None else "the text that it was trained on"
    return f"## Limits\n\nThe model repeats the words, the subjects and the biases of {text}; it was measured on text of that kind alone.\n"


def bullets(lines: Iterable[tuple[str, str]]) -> str:
    """Return a Markdown list of labelled lines."""
    return "\n".join(f"- **{label}:** {value}" for label, value in lines) + "\n"


def shown(name: str) -> str:
    """Return a name as others may see it: of a local path its last part only, of a run's model (or the box's) that of its folder."""
    path = Path(name)
    return (path.parent if path.name == "model" and path.parent.name else path).name if is_local(name) else name


def is_local(name: str) -> bool:
    """Return whether a source or a model is a path on this machine (a glob is), and not a name of the Hub's."""
    return name.startswith(("/", ".", "~")) or Path(name).exists()


def escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return text.translate(SPECIAL)
