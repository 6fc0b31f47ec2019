"""The engine gives what the plain model gives, whatever the lengths, the order and the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unmask.errors import TaskError
from unmask.infer.engine import Engine, Request
from unmask.model.attention import enable_packing, is_packed

V, LIMIT = 90, 56
FAMILIES = ["bert", "roberta", "modernbert", "distilbert", "electra", "deberta-v2"]


def configuration(family):
    from transformers import BertConfig, DebertaV2Config, DistilBertConfig, ElectraConfig, ModernBertConfig, RobertaConfig

    dials = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    return {
        "bert": lambda: BertConfig(**dials, max_position_embeddings=LIMIT),
        "roberta": lambda: RobertaConfig(**dials, max_position_embeddings=LIMIT + 2, pad_token_id=1),
        "modernbert": lambda: ModernBertConfig(**dials, **ends, max_position_embeddings=LIMIT, local_attention=8),
        "distilbert": lambda: DistilBertConfig(vocab_size=V, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=LIMIT),
        "electra": lambda: ElectraConfig(**dials, embedding_size=24, max_position_embeddings=LIMIT),
        "deberta-v2": lambda: DebertaV2Config(**dials, max_position_embeddings=LIMIT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    }[family]()


@pytest.fixture(params=FAMILIES)
def pair(request):
    """A model with packed attention where it can be, and the same one plain."""
    from transformers import AutoModelForMaskedLM

    torch.manual_seed(1)
    plain = AutoModelForMaskedLM.from_config(configuration(request.param), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # large enough to tell tokens and places apart
    packed = AutoModelForMaskedLM.from_config(configuration(request.param)).eval()
    packed.load_state_dict(plain.state_dict())
    assert enable_packing(packed) is is_packed(packed) is (request.param != "deberta-v2")
    return packed, plain


def sequences(number, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 49, number)
    made = []
    for length in lengths.tolist():
        ids = generator.integers(5, V, length)
        places = generator.permutation(length)[: int(generator.integers(1, min(length, 6)))]  # in no order
        made.append(Request(ids if len(made) % 2 else ids.tolist(), places if len(made) % 3 else places.tolist()))
    return made


def alone(plain, request):
    ids = torch.as_tensor(np.asarray(request.input_ids))[None]
    with torch.no_grad():
        return plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, torch.as_tensor(np.asarray(request.positions))]


@pytest.mark.parametrize("max_tokens", [1, 100, 10_000])
def test_equals_the_plain_model(pair, max_tokens):
    packed, plain = pair
    requests = sequences(17)
    engine = Engine(packed, max_tokens=max_tokens, lookahead=3)
    given = list(engine.logits(iter(requests)))
    assert len(given) == len(requests)
    for request, logits in zip(requests, given, strict=True):
        torch.testing.assert_close(logits, alone(plain, request), atol=1e-5, rtol=1e-5)


def test_neighbours_and_order_change_nothing(pair):
    engine = Engine(pair[0], max_tokens=120)
    requests = sequences(9)
    order = np.random.default_rng(5).permutation(len(requests))
    first = list(engine.logits(requests))
    second = list(engine.logits([requests[place] for place in order] + sequences(4, seed=9)))
    for place, logits in zip(order, second, strict=False):
        torch.testing.assert_close(logits, first[place], atol=1e-5, rtol=1e-5)


@pytest.fixture
def engine():
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(configuration("bert")).eval()
    enable_packing(model)
    return Engine(model, max_tokens=64, lookahead=2)


def test_reads_no_further_ahead_than_it_must(engine):
    taken = 0

    def stream():
        nonlocal taken
        while True:  # without end
            taken += 1
            yield Request([2, 7, 8, 3], [1])

    results = engine.logits(stream())
    for number in range(1, 200):
        next(results)
        assert taken <= number + 64 * 2 // 4


def test_reduce_is_all_that_is_kept(engine):
    requests = sequences(9)
    reduced = list(engine.run(requests, lambda logits: (logits.argmax(-1), logits.amax(-1))))
    for (best, value), logits in zip(reduced, engine.logits(requests), strict=True):
        assert (best == logits.argmax(-1)).all() and torch.equal(value, logits.amax(-1))


def test_dropout_is_off_and_the_mode_of_the_model_is_left_alone(engine):
    requests = sequences(5)
    quiet = list(engine.logits(requests))
    engine.model.train()
    assert all(torch.equal(a, b) for a, b in zip(quiet, engine.logits(requests), strict=True))
    assert engine.model.training


def test_halves_what_does_not_fit_in_memory(engine, monkeypatch):
    import unmask.infer.backends.torch as module
    from unmask.errors import RunError

    real, seen = module.forward_packed, []

    def small(model, batch):
        seen.append(batch.num_tokens)
        if batch.num_tokens > 50:
            raise torch.OutOfMemoryError("this machine is small")
        return real(model, batch)

    requests = sequences(12)
    expected = list(engine.logits(requests))
    monkeypatch.setattr(module, "forward_packed", small)
    engine.max_tokens = 1000
    for one, other in zip(engine.logits(requests), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert max(seen) > 50
    with pytest.raises(RunError, match="even for a single sequence of 51 tokens"):
        list(engine.logits([Request([5] * 51, [0])]))


@pytest.mark.parametrize(
    ("ids", "places", "says"),
    [
        ([5] * (LIMIT + 1), [0], f"has {LIMIT + 1} tokens and the model has positions for {LIMIT}"),
        ([2, 5, 3], [3], "allowed: 0 to 2"),
        ([2, 5, 3], [-1], "allowed: 0 to 2"),
        ([2, 5, 3], [], "asks for positions"),
    ],
)
def test_wrong_requests_are_refused(engine, ids, places, says):
    with pytest.raises(TaskError, match=says):
        list(engine.logits([Request([2, 5, 3], [1]), Request(ids, places)]))


def test_bf16_is_near(engine):
    requests = sequences(6)
    rough = Engine(engine.model, precision="bf16")
    for one, other in zip(rough.logits(requests), engine.logits(requests), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)
        assert not torch.equal(one, other)


def test_labels_go_with_their_places(engine):
    requests = [Request(one.input_ids, one.positions, [int(place) % 7 for place in one.positions]) for one in sequences(7)]
    requests[3] = Request(requests[3].input_ids, requests[3].positions)  # by default, what stands there

    def truth(logits, labels):
        return (logits.gather(1, labels[:, None])[:, 0],)

    plain = engine.logits(requests)
    for request, (value,), logits in zip(requests, engine.run(requests, truth, labelled=True), plain, strict=True):
        places = torch.as_tensor(np.asarray(request.positions))
        labels = places % 7 if request.labels is not None else torch.as_tensor(np.asarray(request.input_ids))[places]
        torch.testing.assert_close(value, logits.gather(1, labels[:, None])[:, 0])


def test_threads_share_a_model(pair):
    """Several engines of one model in several threads, each with other rows asked for."""
    from concurrent.futures import ThreadPoolExecutor

    shared = Engine(pair[0], max_tokens=60)
    asked = [sequences(12, seed=number) for number in range(6)]
    alone_first = [list(shared.logits(requests)) for requests in asked]

    def work(number):
        engine = shared if number % 2 else Engine(pair[0], max_tokens=100)
        return list(engine.logits(asked[number]))

    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            for expected, given in zip(alone_first, pool.map(work, range(6)), strict=True):
                for one, other in zip(expected, given, strict=True):
                    torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_a_budget_that_did_not_fit_is_not_tried_again(engine, monkeypatch, error):
    import unmask.infer.backends.torch as module

    real, seen = module.forward_packed, []

    def small(model, batch):
        seen.append(batch.num_tokens)
        if batch.num_tokens > 60:
            raise error
        return real(model, batch)

    monkeypatch.setattr(module, "forward_packed", small)
    engine.max_tokens = 1000
    list(engine.logits(sequences(40)))
    assert max(seen) > 60 and engine.max_tokens < 100
    seen.clear()
    engine.max_tokens = min(engine.max_tokens, 60)
    list(engine.logits(sequences(40)))
    assert max(seen) <= 60


@pytest.mark.parametrize(("speedup", "chosen"), [(0.01, "fp32"), (1.0, "fp32"), (1.2, "fp32"), (2.2, "bf16")])
def test_auto_takes_bf16_only_where_it_is_faster(engine, monkeypatch, speedup, chosen):
    from unmask.train import precision

    monkeypatch.setattr(precision, "bf16_speedup", lambda device: speedup)
    assert Engine(engine.model, precision="auto").precision.name == chosen


def test_a_backend_of_numpy_needs_no_torch():
    code = """
import sys
import numpy as np
from unmask.infer.backends import Backend
from unmask.infer.engine import Engine, Request
import unmask.tasks.fill, unmask.data.plain, unmask.infer.targets

class Echo(Backend):
    name, max_length = "echo", 9

    def forward(self, batch):
        return np.eye(20, dtype=np.float32)[batch.input_ids[batch.label_positions]]

requests = [Request([2, n, 3], [1]) for n in (7, 5, 9)]
assert [int(row.argmax()) for row in Engine(Echo(), max_tokens=4).logits(requests)] == [7, 5, 9]
assert not {"torch", "transformers"} & set(sys.modules), "loaded"
"""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
