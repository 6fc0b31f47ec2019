"""The report of a run, an evaluation or a comparison: one page that needs nothing but itself, in which all text is escaped."""

from __future__ import annotations

from pathlib import Path

from ..data.manifest import check_manifest
from ..data.whole import whole_file
from ..errors import CheckpointError, UnmaskError
from . import report_comparison, report_evaluation, report_run, report_task
from .page import page
from .records import AGAIN

REPORT, METRICS = "report.html", "metrics.json"
# how a kind is known, what its page consists of, and which files it is made of beside metrics.json that a manifest may name
KINDS = (
    (report_task.is_task, report_task.parts, ("predictions.jsonl",)),
    (report_run.is_run, report_run.parts, ()),
    (report_comparison.is_comparison, report_comparison.parts, (report_comparison.FLIPS,)),
    (report_evaluation.is_evaluation, report_evaluation.parts, (report_evaluation.WORST,)),
)


def write(folder: str | Path) -> Path:
    """Write FOLDER/report.html from what a run, an evaluation or a comparison has written down there, and return its path.

    Raises: CheckpointError where the folder holds none of them, or its files do not hold what they should, or (of those that its manifest
    names) what they did.
    """
    folder = Path(folder).expanduser()
    try:
        check_manifest(folder, only=(METRICS,), mend=AGAIN)  # first: by it a kind is known
        kind = next((kind for kind in KINDS if kind[0](folder)), None)
        if kind is None:
            raise CheckpointError(
                f"'{folder}' holds no run (no config.toml and log.jsonl), and no evaluation or comparison; "
                "name the folder that `unmask pretrain`, `adapt`, `evaluate` or `compare` made"
            )
        _, parts, read = kind
        check_manifest(folder, only=read, mend=AGAIN)
        text = page(f"{folder.resolve().name} · Unmask", parts(folder))
    except UnmaskError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:  # JSON, but another
        raise CheckpointError(
            f"the files of '{folder}' do not hold what its report shows ({type(error).__name__}: {error}): the run was stopped just before "
            "its end (`unmask resume` goes on), or one of metrics.json, log.jsonl, predictions.jsonl and config.toml is damaged"
        ) from error
    with whole_file(folder / REPORT) as file:
        file.write(text)
    return folder / REPORT
