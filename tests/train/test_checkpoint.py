"""Checkpoints: whole or not at all, the newest good one found, the best kept, training state back to the bit."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from unmask.errors import RunError
from unmask.model.heads import forward_packed
from unmask.model.load import load_model, save_model
from unmask.train.checkpoint import COMPLETE, INFO, MANIFEST, TENSORS, Checkpoints, write_folder
from unmask.train.loss import masked_loss_sum
from unmask.train.optim import OptimConfig, build, load_state_tensors, state_tensors


def write_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "config.json").write_text("{}")


def save(checkpoints, step, loss=None, **info):
    return checkpoints.save(step, write_model, {"a": torch.arange(5.0) * step}, info, loss=loss)


def steps(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", 9)


def test_what_is_saved_comes_back_exactly(checkpoints):
    tensors = {
        "bf16": torch.randn(3, 4).bfloat16(), "scalar": torch.tensor(7.0), "bytes": torch.get_rng_state(), "empty": torch.zeros(0, 3),
        "turned": torch.randn(4, 6).T,
    }  # fmt: skip
    info = {"tokens": 2**60 + 1, "seconds": 0.1 + 0.2, "nested": {"list": [1, 2.5, None]}}
    checkpoints.save(12, write_model, tensors, info, loss=1 / 3)
    found = Checkpoints(checkpoints.folder).latest()
    assert found.step == 12 and found.loss == 1 / 3 and found.folder.name == "step-00000012"
    assert {key: found.info[key] for key in info} == info
    back = found.tensors()
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_no_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "nothing")
    assert checkpoints.latest() is None and checkpoints.best() is None


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_goes_on_to_the_bit(tmp_path, tokenizer, make_model, make_loader, optimizer):
    """k steps, a checkpoint, k steps in a model and optimizers read from it: the same weights as 2k steps."""
    loader, config = make_loader(), OptimConfig(optimizer=optimizer)

    def go(model, optimizers, first, last):
        for number in range(first, last):
            for batch in loader.batch(number):
                (masked_loss_sum(forward_packed(model, batch), batch.labels) / len(batch.labels)).backward()
            for one in optimizers:
                one.step()
                one.zero_grad()

    model = make_model()
    optimizers = build(model, config)
    go(model, optimizers, 0, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, lambda folder: save_model(model, tokenizer, folder), state_tensors(optimizers), {})
    go(model, optimizers, 3, 6)

    found = Checkpoints(tmp_path).latest()
    other = load_model(found.folder, tokenizer=tokenizer).train()
    again = build(other, config)
    load_state_tensors(again, found.tensors())
    go(other, again, 3, 6)
    for (name, left), right in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    left, right = state_tensors(optimizers), state_tensors(again)
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_no_pickle_is_written(tmp_path, tokenizer, make_model):
    model = make_model()
    found = Checkpoints(tmp_path).save(1, lambda folder: save_model(model, tokenizer, folder), {"a": torch.ones(2)}, {})
    suffixes = {path.suffix for path in found.folder.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".txt", ""}


def truncate(folder):
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[5000] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def edit_info(folder):
    text = (folder / INFO).read_text()
    (folder / INFO).write_text(text.replace('"tokens": 5', '"tokens": 6'))


def edit_manifest(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"]["config.json"]
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / COMPLETE).unlink(), "no COMPLETE marker"),
        (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda folder: (folder / MANIFEST).write_text('{"fil'), "manifest.json is not readable"),
        (edit_manifest, "not the one that was written"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (truncate, "training_state.safetensors has .* bytes instead of"),
        (flip, "content of model.safetensors has changed"),
        (edit_info, "content of trainer_state.json has changed"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no COMPLETE marker"),
    ],
)
def test_a_damaged_one_is_skipped_and_named(checkpoints, caplog, damage, why):
    save(checkpoints, 1, tokens=4)
    damage(save(checkpoints, 2, tokens=5).folder)
    again = Checkpoints(checkpoints.folder)
    assert again.latest().step == 1
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "step-00000002" in record.message
    assert re.search(why, record.message)


def test_damaged_ones_are_not_counted_as_kept(tmp_path):
    first = Checkpoints(tmp_path, 2)
    for step in (1, 2, 3):
        save(first, step)
    flip(tmp_path / "step-00000003")
    again = Checkpoints(tmp_path, 2)
    save(again, 2)  # as a resumed run would
    assert again.latest().step == 2
    save(again, 3)  # comes by again, and replaces the damaged one
    assert again.latest().step == 3 and steps(tmp_path) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize(
    ("limit", "losses", "kept"),
    [
        (2, [3, 2, 1], [2, 3]), (2, [1, 2, 3], [1, 3]), (1, [1, 2, 3], [1, 3]), (1, [3, 2, 1], [3]), (3, [2, 1, 3, 4], [2, 3, 4]),
        (2, [None, None, None], [2, 3]), (2, [1, None, None], [1, 3]), (2, [2, 2, 2], [2, 3]), (2, [float("nan"), 2, 3], [2, 3]),
    ],
)  # fmt: skip
def test_the_newest_and_the_best_are_kept(tmp_path, limit, losses, kept):
    checkpoints = Checkpoints(tmp_path, limit)
    for step, loss in enumerate(losses, start=1):
        save(checkpoints, step, loss)
    assert steps(tmp_path) == [f"step-{step:08d}" for step in kept]
    measured = [(loss, -step) for step, loss in enumerate(losses, start=1) if loss is not None and loss == loss]
    best = Checkpoints(tmp_path, limit).best()
    assert (best.step if best else None) == (-min(measured)[1] if measured else None)


def test_saving_a_step_again_replaces_it(checkpoints):
    save(checkpoints, 4)
    save(checkpoints, 4, loss=0.5)
    assert steps(checkpoints.folder) == ["step-00000004"]
    assert Checkpoints(checkpoints.folder).latest().loss == 0.5


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(checkpoints):
    folder = save(checkpoints, 4).folder
    folder.rename(folder.with_name(folder.name + ".replaced"))
    shutil.copytree(folder.with_name(folder.name + ".replaced"), folder.with_name(folder.name + ".partial"))
    again = Checkpoints(checkpoints.folder, 2)
    assert again.latest().step == 4
    save(again, 5)
    assert again.latest().step == 5 and not any(name.endswith(".partial") for name in steps(again.folder))


def test_what_another_process_reads_is_what_is_there_now(checkpoints):
    """A run that went back comes by a step again, and writes it anew."""
    other = Checkpoints(checkpoints.folder)
    for value in (1, 2):
        name = save(checkpoints, 4, value=value).folder.name
        assert other.named(name).info["value"] == value


def test_a_save_that_fails_leaves_nothing_behind(checkpoints):
    good = save(checkpoints, 1)

    def interrupted(folder):
        write_model(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, interrupted, {}, {})
    assert steps(checkpoints.folder) == [good.folder.name] and checkpoints.latest().step == 1


KILLED = """
    import os, sys, torch
    from unmask.train.checkpoint import Checkpoints
    def write(folder):
        (folder / "model.safetensors").write_bytes(os.urandom(200_000))
    checkpoints = Checkpoints(sys.argv[1], 2)
    step = 0
    while True:
        step += 1
        checkpoints.save(step, write, {"a": torch.full((1000,), float(step))}, {"value": step})
        print(step, flush=True)
"""


def test_a_process_killed_while_saving_leaves_a_good_one(tmp_path):
    """Kill -9 at moments that the machine chooses: what was reported as saved, or something newer, is there and whole."""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    reported = 0
    for line in process.stdout:
        reported = int(line)
        if reported >= 8:
            process.send_signal(signal.SIGKILL)
            break
    reported = max([reported, *map(int, process.stdout.read().split())])
    process.wait()
    found = Checkpoints(tmp_path).latest()
    assert found.step >= reported and found.info["value"] == found.step
    assert torch.equal(found.tensors()["a"], torch.full((1000,), float(found.step)))


def test_files_that_cannot_grow(checkpoints):
    """A real limit of the system on the size of files: the write fails half-way, as on a full disk."""
    good = save(checkpoints, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(RunError, match=r"step 2 could not be written .*step-00000001', is untouched") as caught:
            checkpoints.save(2, write_model, {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 1
    assert steps(checkpoints.folder) == [good.folder.name] and Checkpoints(checkpoints.folder).latest().step == 1


FULL = """
    import os, sys, subprocess, torch
    from pathlib import Path
    from unmask.errors import RunError
    from unmask.train.checkpoint import Checkpoints
    where = Path(sys.argv[1])
    def write(folder):
        (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    checkpoints = Checkpoints(where, 9)
    checkpoints.save(1, write, {"a": torch.ones(1000)}, {})
    for tensors in ({"a": torch.ones(200_000)}, {"a": torch.ones(20_000)}):   # the tensors, then the model do not fit
        if len(tensors["a"]) == 20_000:
            (where / "other").write_bytes(bytes(500_000))
        try:
            checkpoints.save(2, write, tensors, {})
            sys.exit("it fitted")
        except RunError as error:
            print(error)
    assert os.listdir(where / "step-00000001") and not (where / "step-00000002").exists() and not (where / "step-00000002.partial").exists()
    assert Checkpoints(where).latest().step == 1
    (where / "other").unlink()
    assert checkpoints.save(2, write, {"a": torch.ones(1000)}, {}).step == 2
    subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
    try:
        checkpoints.save(3, write, {}, {})
        sys.exit("it was written")
    except RunError as error:
        print(error)
    assert Checkpoints(where).latest().step == 2
"""


def test_a_disk_that_is_full_or_read_only(tmp_path):
    """A file system of one megabyte, in a mount namespace of its own."""
    inside = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    for unshare in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        try:
            works = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode == 0
        except FileNotFoundError:
            works = False
        if works:
            break
    else:
        pytest.skip("this system lets nobody mount a file system")
    arguments = [*unshare, "sh", "-c", inside, "sh", str(tmp_path), sys.executable, textwrap.dedent(FULL)]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No space left on device") == 2 and "Read-only file system" in done.stdout
    assert done.stdout.count("is untouched") == 3


def test_write_folder_replaces_and_reports(tmp_path):
    target = tmp_path / "model"
    write_folder(target, lambda folder: (folder / "one").write_text("1"))
    write_folder(target, lambda folder: (folder / "two").write_text("2"))
    assert steps(target) == ["two"] and steps(tmp_path) == ["model"]
    with pytest.raises(ZeroDivisionError):
        write_folder(target, lambda folder: 1 / 0)
    assert steps(target) == ["two"] and steps(tmp_path) == ["model"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"model' could not be written: Not a directory"):
        write_folder(tmp_path / "file" / "model", lambda folder: None)


def test_a_folder_that_moves_while_it_is_written_to_gets_nothing_in_its_old_place(tmp_path):
    """Transformers makes the folder that it saves into, its parents and all, if it has gone meanwhile."""
    (tmp_path / "disk" / "run").mkdir(parents=True)

    def fill(partial):
        (partial / "before.txt").write_text("x")
        (tmp_path / "disk").rename(tmp_path / "elsewhere")
        (tmp_path / "disk").mkdir()
        os.makedirs(partial, exist_ok=True)
        (partial / "after.txt").write_text("x")

    with pytest.raises(RunError, match="could not be written: it was moved while it was written to .'.*disk/run'.") as error:
        write_folder(tmp_path / "disk" / "run" / "step", fill)
    assert "/proc/" not in str(error.value)
    assert not list((tmp_path / "disk").iterdir()) and not list((tmp_path / "elsewhere" / "run").iterdir())
