"""Trackers: each that is installed is used for real, on this machine; for the others the message says how to install it."""

import importlib.util
import json
import sqlite3
from pathlib import Path

import pytest

from unmask.errors import ConfigError, MissingExtra
from unmask.train import trackers
from unmask.train.trackers import TRACKERS, Trackers, check

INSTALLED = {name for name, kind in TRACKERS.items() if importlib.util.find_spec(kind.package)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run-7"
    folder.mkdir()
    (folder / "config.toml").write_text("[optim]\nlearning_rate = 0.5\n[train]\nseed = 3\n")
    return folder


def test_none_by_default(folder):
    tracking = Trackers((), folder)
    tracking.log({"train/loss": 1.0}, 1)
    tracking.close()
    assert [path.name for path in folder.iterdir()] == ["config.toml"]


def test_a_name_that_is_none(folder):
    with pytest.raises(ConfigError, match="unknown key 'tensorbord'; did you mean 'tensorboard'"):
        Trackers(("tensorbord",), folder)


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_one_that_is_not_installed_says_how_to(name, folder):
    if name in INSTALLED:
        check([name])
    else:
        with pytest.raises(MissingExtra, match=rf"train.trackers = {name} needs .* pip install 'unmask\[{name}\]'"):
            check([name])


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars("train/loss")]


def read_mlflow(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("unmask").experiment_id])
    assert run.data.params["optim.learning_rate"] == "0.5" and run.info.run_name == "run-7" and run.info.status == "FINISHED"
    return sorted({(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")})


def read_trackio(folder):
    from trackio.utils import TRACKIO_DIR

    (database,) = (path for path in Path(TRACKIO_DIR).glob("*.db") if "unmask" in path.name)
    rows = sqlite3.connect(database).execute("select step, metrics from metrics order by step").fetchall()
    return sorted({(step, json.loads(metrics)["train/loss"]) for step, metrics in rows})


def read_wandb(folder):
    files = sorted(Path(folder / "wandb").glob("offline-run-*/*.wandb"))
    run_id = json.loads((folder / trackers.IDS).read_text())["run_id"]
    assert files and all(run_id in path.name for path in files) and all(path.stat().st_size > 1000 for path in files)
    return None  # written to its own binary format, which only its server reads


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_used_for_real_and_resumed(name, folder):
    if name not in INSTALLED:
        pytest.skip("not installed")
    first = Trackers((name,), folder)
    first.log({"train/loss": 4.0}, 10)
    first.log({"train/loss": 3.0}, 20)
    first.close()
    again = Trackers((name,), folder, step=20)
    again.log({"train/loss": 2.5}, 30)
    again.close()
    assert not again.active
    found = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "trackio": read_trackio, "wandb": read_wandb}[name](folder)
    assert found is None or found == [(10, 4.0), (20, 3.0), (30, 2.5)]


def test_one_that_fails_is_left_out_and_the_others_go_on(folder, monkeypatch, caplog):
    class Good:
        package = "json"

        def __init__(self, folder, settings, run_id, step):
            self.seen = [settings, run_id]

        def log(self, values, step):
            self.seen.append((values, step))

        def close(self):
            self.seen.append("closed")

    class Broken(Good):
        def log(self, values, step):
            raise ConnectionError("no route to host")

    monkeypatch.setitem(TRACKERS, "good", Good)
    monkeypatch.setitem(TRACKERS, "broken", Broken)
    tracking = Trackers(("broken", "good"), folder)
    good = tracking.active["good"]
    for step in (1, 2):
        tracking.log({"train/loss": 1.0}, step)
    tracking.close()
    assert good.seen[0] == {"optim.learning_rate": 0.5, "train.seed": 3}
    assert good.seen[2:] == [({"train/loss": 1.0}, 1), ({"train/loss": 1.0}, 2), "closed"]
    (record,) = caplog.records
    assert "'broken'" in record.message and "no route to host" in record.message
