"""`unmask evaluate --cloze, --facts, --pairs`: a model on a user's own tests."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError

# of each test: what is shown of it, and the columns of its tables
SHOWN = {
    "cloze": ("precision_at_1", "precision_at_5", "precision_at_10", "mean_reciprocal_rank", "mean_log_prob", "mean_log_prob_per_word",
              "mean_log_prob_per_byte", "candidate_accuracy"),
    "facts": ("precision_at_1", "precision_at_5", "precision_at_10", "mean_reciprocal_rank", "mean_log_prob", "macro_precision_at_1",
              "macro_precision_at_10"),
    "pairs": ("accuracy", "mean_difference"),
}  # fmt: skip
COLUMNS = {
    "cloze": ("precision_at_1", "precision_at_10", "mean_reciprocal_rank"),
    "facts": ("precision_at_1", "precision_at_10", "mean_reciprocal_rank"),
    "pairs": ("accuracy",),
}
SHORT = {"precision_at_1": "P@1", "precision_at_10": "P@10", "mean_reciprocal_rank": "MRR", "candidate_accuracy": "candidates"}
UNITS = {"cloze": "blanks", "facts": "facts", "pairs": "pairs"}


def run_test(
    model: str,
    tests: Mapping[str, Sequence[str] | None],
    own: Mapping[str, Mapping[str, Any]],
    foreign: Mapping[str, Any],
    *,
    output: Path | None,
    as_json: bool,
    **shared: Any,
) -> None:
    """Run the test that is asked for and show what it gave.

    `own` are the options of each test and `foreign` those of the evaluation on text, with what was given, None or False where nothing was.
    Raises: ConfigError for two tests at once, or an option that the test does not have.
    """
    asked = [name for name, files in tests.items() if files]
    if len(asked) > 1:
        raise ConfigError(f"--{' and --'.join(asked)} are different tests; run one at a time")
    (test,) = asked
    options = {key: value for key, value in own[test].items() if value}
    strange = {**foreign, **{key: value for name in own for key, value in own[name].items() if key not in own[test]}}
    for key, value in strange.items():
        if value:
            raise ConfigError(f"--{key.replace('_', '-')} has no meaning with --{test}; leave it out")
    if "text_column" in options:
        if "template" in options:
            raise ConfigError("--text-column and --template both say what the text is; give one")
        options["template"] = f"{{{options.pop('text_column')}}}"
    if "pair_columns" in options:
        options["columns"] = [name.strip() for name in options.pop("pair_columns").split(",")]
    from .evaluate import Progress

    with Progress(UNITS[test]) as progress:
        found = _function(test)(model, list(tests[test] or ()), output=output, progress=progress, **options, **shared)
    print(json.dumps(found.metrics, ensure_ascii=False, indent=1)) if as_json else show(found.metrics)
    if output is not None:
        print(f"written to {output}", file=sys.stderr)


def _function(test: str) -> Any:
    if test == "pairs":
        from ..evaluate.minimal_pairs import minimal_pairs

        return minimal_pairs
    from ..evaluate import cloze

    return getattr(cloze, test)


def show(metrics: Mapping[str, Any]) -> None:
    """Print the metrics of a test: tables on a terminal, plain lines elsewhere."""
    from rich.console import Console

    from .evaluate import between, number

    console = Console(highlight=False)
    test = metrics["test"]
    names = [name for name in SHOWN[test] if name in metrics]
    columns = COLUMNS[test] + (("candidate_accuracy",) if "candidate_accuracy" in metrics else ())
    if not console.is_terminal:
        for name in names:
            row = {"low": None, **metrics[name]}
            print(f"{name:27} {number(row['value']):>12}  {between(row):>24}  {row['count']:>10,}")
        for dimension, rows in metrics["slices"].items():
            print(f"by {dimension}:  count, then value and interval of {', '.join(columns)}")
            for row in rows:
                numbers = "".join(f"{number(row[name]['value']):>12}  {between(row[name]):>24}" for name in columns)
                print(f"  {row['name']:55} {row['count']:>8,}{numbers}")
        print("\n".join(about(metrics)))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(about(metrics)[0]), title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in ("value", "95% interval", "count"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in names:
        row = {"low": None, **metrics[name]}
        table.add_row(name, Text(number(row["value"]), style="bold"), between(row), f"{row['count']:,}")
    console.print(table)
    for dimension, rows in metrics["slices"].items():
        table = Table(box=box.SIMPLE_HEAD, title=Text(f"by {dimension}"), title_justify="left")
        table.add_column("", min_width=14)
        # eighty columns hold one interval
        for name in ("count", *(SHORT.get(name, name) for name in columns), f"95% of {SHORT.get(columns[0], columns[0])}"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            cells = [_short(row[name]["value"]) for name in columns]
            low, high = (_short(row[columns[0]][bound]) for bound in ("low", "high"))
            table.add_row(Text(row["name"]), f"{row['count']:,}", *cells, "–" if low == "–" else f"{low} to {high}")
        console.print(table)
    for line in about(metrics)[1:]:
        console.print(line, markup=False)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def about(metrics: Mapping[str, Any]) -> list[str]:
    """Return in words what was tested, and what was left out."""
    test, unit = metrics["test"], UNITS[metrics["test"]]
    lines = [
        f"{metrics['num_scored']:,} of {metrics['num_items']:,} {unit} of {', '.join(metrics['files'])}, {metrics['settings']['precision']}"
    ]
    lines += [f"left out, {reason}: {count:,} {unit}" for reason, count in metrics["excluded"].items()]
    if test == "pairs":
        lines.append(f"by pseudo-log-likelihood, {metrics['settings']['method']}; ties, which count half: {metrics['num_ties']:,}")
    else:
        lines.append("answers of several pieces are scored exactly, from left to right, their number of pieces given"
                     if test == "cloze" or metrics["settings"]["multi_piece"] else "labels are single pieces, as in LAMA")  # fmt: skip
        if metrics["num_unscored_answers"]:
            lines.append(f"answers that could not be scored, beside others that could: {metrics['num_unscored_answers']:,}")
    if "candidate_chance" in metrics:
        chance = metrics["candidate_chance"]["value"]
        lines.append(
            f"candidates: chance is {'–' if chance is None else f'{chance:.4f}'}; ties, which count half: {metrics['num_candidate_ties']:,}"
        )
        if metrics["num_without_choice"]:
            lines.append(f"without a choice, because a candidate could not be scored: {metrics['num_without_choice']:,}")
    if metrics["num_truncated"]:
        lines.append(f"longer than the model's window, and not seen as a whole: {metrics['num_truncated']:,} {unit}")
    why = metrics[SHOWN[test][0]].get("why")
    return [*lines, f"no intervals: {why}"] if why else lines
