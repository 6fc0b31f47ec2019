"""What a run keeps of its order is what it would make again, or is not used."""

import logging

import numpy as np
import pytest

from unmask.data import plan
from unmask.data.plan import Plan

LENGTHS = np.random.default_rng(0).integers(1, 90, 300)


def make(keep, *, seed=0, many=0):
    return Plan(LENGTHS, seed=seed, max_length=32, num_special=2, micro_tokens=128, batch_tokens=256, keep=keep, many=many)


def steps(made, epochs):
    return [[pack.tolist() for pack in made.packs(step)[1]] for step in range(made.steps_per_epoch * epochs)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def nothing_is_packed(monkeypatch):
    def forbid():
        def refuse(*arguments):
            raise AssertionError("packed again")

        monkeypatch.setattr(plan, "pack", refuse)

    return forbid


def test_what_is_kept_is_the_order(tmp_path, nothing_is_packed):
    keep = tmp_path / "order"
    wanted = steps(make(None), 3)
    assert steps(make(keep), 3) == wanted
    assert names(keep) == ["epoch-00000001", "epoch-00000002"]  # the last two
    nothing_is_packed()
    again = make(keep)
    assert [[pack.tolist() for pack in again.packs(step)[1]] for step in range(again.steps_per_epoch, len(wanted))] == (
        wanted[again.steps_per_epoch :]
    )
    with pytest.raises(AssertionError, match="packed again"):
        again.packs(0)


def test_a_few_windows_are_not_kept(tmp_path):
    steps(make(tmp_path / "order", many=10_000), 1)
    assert not list(tmp_path.iterdir())


def test_what_is_kept_for_another_order_is_not_used(tmp_path):
    steps(make(tmp_path / "order"), 1)
    assert steps(make(tmp_path / "order", seed=1), 1) == steps(make(None, seed=1), 1) != steps(make(None), 1)


def test_a_byte_that_has_changed_is_seen(tmp_path, caplog):
    keep = tmp_path / "order"
    wanted = steps(make(keep), 1)
    for path in sorted((keep / "epoch-00000000").iterdir()):
        data = path.read_bytes()
        for place in range(0, len(data), max(1, len(data) // 20)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            assert steps(make(keep), 1) == wanted, (path.name, place)
            assert (keep / "epoch-00000000").is_dir()
        path.unlink()
        caplog.clear()
        assert steps(make(keep), 1) == wanted
        assert "is not whole, and is made again" in caplog.text
        steps(make(keep), 1)


def test_one_process_writes_and_nothing_in_the_way_ends_a_run(tmp_path, caplog):
    made = make(tmp_path / "order")
    made.kept.writes = False
    steps(made, 1)
    assert not list(tmp_path.iterdir())
    (tmp_path / "order").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert steps(make(tmp_path / "order"), 1) == steps(make(None), 1)
    assert "a resume will make it again" in caplog.text
