"""`unmask serve` in a process of its own: signals, the environment, what is refused at the start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")

from unmask.cli import main

TEXT = "The nurse watches the [MASK] in the garden."


class Process:
    """`unmask serve` with arguments and environment, its port, and what it writes."""

    def __init__(self, *args: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "unmask", "serve", *args], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )  # fmt: skip
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"serving .* at http://\S+:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("".join(self.lines))
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def post(self, path: str, body: dict, **headers: str):
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json", **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def wait_for(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + 60
        while "".join(self.lines).count(text) < times:
            assert time.monotonic() < deadline and self.process.poll() is None, "".join(self.lines)
            time.sleep(0.05)

    def end(self) -> int:
        return self.process.wait(60)


def test_a_service_from_its_start_to_its_end(tiny_bert, tmp_path):
    """Models by name and by folder, all from the environment; SIGHUP; SIGTERM while requests are under way."""
    folder = shutil.copytree(tiny_bert, tmp_path / "mine")
    running = Process(UNMASK_MODELS=f"{tiny_bert} my-name={folder}", UNMASK_PORT="0", UNMASK_API_KEY="secret", UNMASK_PRELOAD="1",
                      UNMASK_PRECISION="fp32", UNMASK_MAX_CONCURRENT="9", UNMASK_MAX_INPUTS="3")  # fmt: skip
    key = {"Authorization": "Bearer secret"}
    try:
        assert running.post("/models/tiny-bert", {"inputs": TEXT})[0] == 401
        assert running.post("/models/my-name", {"inputs": TEXT}, **key)[0] == 200
        assert running.post("/models/my-name", {"inputs": [TEXT] * 4}, **key)[0] == 413
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("my-name: loaded", times=2)
        assert running.post("/models/my-name", {"inputs": TEXT}, **key)[0] == 200
        answers: list = []
        work = {"inputs": ["The nurse watches the doctor in the garden. " * 20] * 3}
        threads = [
            threading.Thread(target=lambda: answers.append(running.post("/models/my-name/score", work, **key))) for _ in range(4)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        _until_in_flight(running, 4, key)
        running.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert [status for status, _ in answers] == [200] * 4
        assert all(one["num_tokens"] == 180 for _, found in answers for one in found)
        assert running.end() == 0
        assert "Traceback" not in "".join(running.lines), "".join(running.lines)
    finally:
        running.process.kill()


def _until_in_flight(running: Process, number: int, key: dict) -> None:
    deadline = time.monotonic() + 60
    while True:
        request = urllib.request.Request(f"http://127.0.0.1:{running.port}/metrics", headers=key)
        text = urllib.request.urlopen(request, timeout=60).read().decode()
        if float(re.search(r"^unmask_requests_in_flight ([\d.]+)", text, re.MULTILINE)[1]) == number:
            return
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_cannot_be_served_is_said_at_the_start(tiny_bert, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for args, said in (
            (["./nowhere"], "there is no folder './nowhere'"),
            ([str(tmp_path)], "no config.json"),
            ([str(tiny_bert), str(tiny_bert)], "two models of the name 'tiny-bert'"),
            ([f"a/b={tiny_bert}"], "cannot be a model's name"),
            ([str(tiny_bert), "--port", str(taken.getsockname()[1])], "cannot be used"),
            ([str(tiny_bert), "--precision", "fp8"], "--precision fp8; allowed"),
            ([str(tiny_bert), "--max-concurrent", "0"], "'--max-concurrent'"),
            ([str(tiny_bert), "--request-seconds", "nan"], "--request-seconds"),
            ([str(tiny_bert), "--api-key", ""], "--api-key is empty"),
        ):
            with pytest.raises(SystemExit) as exit:
                main(["serve", *args])
            assert (exit.value.code, said in capsys.readouterr().err) == (2, True), args


def test_a_name_that_is_no_folder_is_told_to_be_the_hub_s(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    running = Process("no-such-model", "--port", "0")
    try:
        assert any("'no-such-model' is no folder here, so it is had from the Hub when" in line for line in running.lines)
    finally:
        running.process.kill()


def test_an_open_address_without_a_key_is_warned_of(tiny_bert):
    running = Process(str(tiny_bert), "--host", "0.0.0.0", "--port", "0")
    try:
        assert any("warning: 0.0.0.0 can be reached" in line for line in running.lines)
        assert running.post("/models/tiny-bert", {"inputs": TEXT})[0] == 200  # it has begun: before that, Ctrl-C is an interruption (130)
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 0
    finally:
        running.process.kill()
