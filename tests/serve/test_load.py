"""Many clients at once: each gets exactly what it would get alone."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")


@pytest.fixture(scope="module")
def service(tiny_bert, serving):
    with serving({"one": tiny_bert, "two": tiny_bert}, max_tokens=1024) as running:
        yield running


def requests(sentences: list[str]) -> list[tuple[str, dict]]:
    """Return requests of every kind, all different."""
    generator = random.Random(0)
    made: list[tuple[str, dict]] = []
    for number, text in enumerate(sentences):
        words = text.split()
        masked = list(words)
        for place in generator.sample(range(len(words)), 1 + number % 3):
            masked[place] = "[MASK]"
        name, filled = generator.choice(["one", "two"]), " ".join(masked)
        kind = number % 6
        if kind < 2:
            made.append((f"/models/{name}", {"inputs": filled, "parameters": {"top_k": generator.randint(1, 12)}}))
        elif kind == 2:
            made.append((f"/models/{name}", {"inputs": filled, "parameters": {"targets": generator.sample(words, 2)}}))
        elif kind == 3:
            made.append((f"/models/{name}", {"inputs": [filled, "no mask", masked[0] + " ___."]}))
        elif kind == 4:
            made.append((f"/models/{name}/score", {"inputs": " ".join(words[:8])}))
        else:
            made.append(("/api/fill", {"model": name, "text": filled, "top_k": 3}))
    return made


def same(one, other) -> bool:
    """Return whether two answers are equal, numbers up to rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-4, abs=1e-6)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def test_every_answer_is_the_answer_of_a_single_request(service, sentences_file):
    asked = requests(sentences_file.read_text(encoding="utf-8").splitlines()[:180])
    alone = [service.post(*request) for request in asked]
    assert {status for status, _ in alone} == {200}
    order = list(range(len(asked)))
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(32) as pool:
        together = dict(zip(order, pool.map(lambda number: service.post(*asked[number]), order), strict=True))
    wrong = [number for number in order if not same(alone[number], together[number])]
    assert not wrong, (asked[wrong[0]], alone[wrong[0]], together[wrong[0]])
    # they did run together
    turns = service.ask("GET", "/metrics")[1].decode().splitlines()
    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in turns if line.startswith("unmask_turn_requests_")}
    assert sum(value for key, value in counts.items() if "_count" in key) < sum(value for key, value in counts.items() if "_sum" in key)
