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


def difference(one, other, where: str = "") -> str | None:
    """Return where two answers differ, numbers by more than rounding; None where they do not."""
    if isinstance(one, float) and isinstance(other, float):
        return None if one == pytest.approx(other, rel=1e-4, abs=1e-6) else f"{where}: {one} and {other}"
    if isinstance(one, (list, dict)) and type(one) is type(other) and len(one) == len(other):
        pairs = enumerate(one) if isinstance(one, list) else one.items()
        found = (difference(value, other[key] if isinstance(other, list) else other.get(key), f"{where}/{key}") for key, value in pairs)
        return next((text for text in found if text), None)
    return None if one == other else f"{where}: {one} and {other}"


def test_every_answer_is_the_answer_of_a_single_request(service, sentences_file):
    asked = requests(sentences_file.read_text(encoding="utf-8").splitlines()[:180])
    alone = [service.post(*request) for request in asked]
    assert {status for status, _ in alone} == {200}
    order = list(range(len(asked)))
    random.Random(1).shuffle(order)
    with ThreadPoolExecutor(32) as pool:
        together = dict(zip(order, pool.map(lambda number: service.post(*asked[number]), order), strict=True))
    wrong = {number: text for number in order if (text := difference(alone[number][1], together[number][1]))}
    assert not wrong
    # they did run together
    turns = service.ask("GET", "/metrics")[1].decode().splitlines()
    counts = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in turns if line.startswith("unmask_turn_requests_")}
    assert sum(value for key, value in counts.items() if "_count" in key) < sum(value for key, value in counts.items() if "_sum" in key)
