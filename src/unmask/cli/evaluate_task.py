"""`unmask evaluate` of a model that was fine-tuned for a task."""

import json
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .finetune import print_numbers, print_seeds


def run_task(model: str, data: list[str] | None, foreign: dict[str, Any], *, as_json: bool, output: Path | None, **settings: Any) -> None:
    """Measure a fine-tuned model on labelled files and print its numbers."""
    wrong = [f"--{name.replace('_', '-')}" for name, given in foreign.items() if given]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: '{model}' is fine-tuned for a task, and measured on labelled --data; leave it out")
    if not data:
        raise ConfigError(f"no labelled data is named to measure '{model}' on: --data FILES")
    from ..evaluate.tasks import evaluate_task

    given = {name: value for name, value in settings.items() if value is not None}
    found = evaluate_task(model, data, output=output, **given)
    if as_json:
        print(json.dumps(found.metrics, ensure_ascii=False, indent=1))
    else:
        print_numbers(found.metrics)
        print_seeds(found.metrics)
    if output is not None:
        print(f"written to {output}", file=sys.stderr)
