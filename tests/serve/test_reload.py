"""A model's folder is written anew while it serves: no request is dropped, and the new one takes over, if it is any good."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")

from unmask.serve import models as served

TEXT = "The nurse watches the [MASK] in the garden."
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def other(tiny_bert, tmp_path_factory):
    """A model like tiny_bert with other weights."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("models") / "other"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        BertForMaskedLM(BertConfig.from_pretrained(tiny_bert)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny_bert, tmp_path, monkeypatch):
    """A copy of tiny_bert, looked at often."""
    monkeypatch.setattr(served, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(served, "AGAIN_SECONDS", 0.5)
    return shutil.copytree(tiny_bert, tmp_path / "model")


def answer(service):
    status, found = service.post("/models/tiny", {"inputs": TEXT}, **KEY)
    assert status == 200, found
    return [one["token_str"] for one in found]


def until(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_folder_that_changes_is_loaded_and_no_request_is_dropped(serving, folder, tiny_bert, other):
    with serving({"tiny": folder, "before": tiny_bert, "after": other}) as service:
        before, after = ([one["token_str"] for one in service.post(f"/models/{name}", {"inputs": TEXT})[1]] for name in ("before", "after"))
        assert before != after
        seen, stop = [], threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                seen.append(answer(service))

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(seen) > 4)
            # in place, the pages of the file that was loaded change under it
            (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
            until(lambda: seen[-1] == after)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        assert before in seen and all(one in (before, after) for one in seen)  # each by the one or the other, whole
        assert service.ask("GET", "/models/tiny")[1]["num_loads"] == 2


def test_a_folder_that_breaks_is_not_taken(serving, folder):
    weights = (folder / "model.safetensors").read_bytes()
    with serving({"tiny": folder}, api_key="secret") as service:
        good = answer(service)
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        until(lambda: answer(service) == good and service.ask("GET", "/models/tiny", **KEY)[1]["error"] is not None)
        assert service.ask("GET", "/ready")[0] == 200 or service.ask("GET", "/ready")[1]["models"]["tiny"] == "loaded"
        status, found = service.post("/models/tiny/reload", {}, **KEY)
        assert status == 422 and "goes on" in found["error"] and str(folder) not in found["error"]
        (folder / "model.safetensors").write_bytes(weights)
        status, found = service.post("/models/tiny/reload", {}, **KEY)
        assert status == 200 and found["error"] is None and found["num_loads"] == 2
        assert answer(service) == good


def test_a_model_that_cannot_be_loaded_is_tried_again(serving, folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"nothing")
    with serving({"tiny": folder}) as service:
        status, headers, found = service.ask_all("POST", "/models/tiny", {"inputs": TEXT})
        assert status == 503 and "retry-after" in headers and "log" in found["error"] and str(folder) not in found["error"]
        assert service.ask("GET", "/ready")[0] == 503
        (folder / "model.safetensors").write_bytes(weights)
        until(lambda: service.post("/models/tiny", {"inputs": TEXT})[0] == 200)
        assert service.ask("GET", "/ready")[0] == 200


def test_weights_that_are_no_numbers_are_not_taken(serving, folder):
    from safetensors.torch import load_file, save_file

    with serving({"tiny": folder}, api_key="secret") as service:
        good = answer(service)
        weights = load_file(folder / "model.safetensors")
        weights["cls.predictions.bias"].fill_(float("nan"))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert service.post("/models/tiny/reload", {}, **KEY)[0] == 422
        assert answer(service) == good


def test_reloading_by_request_needs_a_key(serving, folder):
    with serving({"tiny": folder}) as service:
        status, found = service.post("/models/tiny/reload", {})
        assert status == 403 and "--api-key" in found["error"]
    with serving({"tiny": folder}, api_key="secret") as service:
        assert service.post("/models/tiny/reload", {})[0] == 401
        assert service.ask("POST", "/models/tiny/reload", **KEY)[0] == 200  # a body is not needed
        assert service.post("/models/none/reload", {}, **KEY)[0] == 404
