"""Packed attention and the head at the labels give what the plain model gives padded, and the doors of transformers are where they were."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unmask.data.batch import PackedBatch
from unmask.data.sizes import rounded
from unmask.model import attention as packed
from unmask.model import tail
from unmask.model.attention import enable_packing, is_packed, supports_packing
from unmask.model.heads import forward_packed
from unmask.model.load import position_offset

PADDED_ONLY = ("deberta-v2", "mpnet")
LENGTHS = (31, 5, 64, 17, 33, 5, 2, 48)
WORDS = (6, 96)  # ordinary ids: above the pad, mask, first and last ids of every configuration
MOVED = "transformers has moved this; mend src/unmask/model/attention.py or tail.py, which are the only ones that use it"


def documents(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(*WORDS, size=length) for length in lengths]


def labels_of(texts, share=0.3, seed=1):
    """Return where each text is labelled; texts of two tokens not at all."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(len(text), max(1, int(share * len(text))), replace=False)) if len(text) > 2 else [] for text in texts]


def pack(model, texts, places=None):
    places = labels_of(texts) if places is None else places
    starts = np.cumsum([0, *(len(text) for text in texts)])
    positions = np.concatenate([[int(start) + int(place) for place in chosen] for start, chosen in zip(starts, places, strict=False)])
    ids = torch.from_numpy(np.concatenate(texts))
    return PackedBatch(
        input_ids=ids[None],
        position_ids=torch.cat([torch.arange(len(text)) for text in texts])[None] + position_offset(model),
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        max_seqlen=max(map(len, texts)),
        label_positions=torch.from_numpy(positions.astype(np.int64)),
        labels=(ids[positions.astype(np.int64)] * 7 + 3) % 90 + 6,
        documents=torch.arange(len(texts)),
        num_tokens=len(ids),
    )


def plain(model, texts, places=None):
    """Return the logits at the labels that the stock model gives on padded rows."""
    places = labels_of(texts) if places is None else places
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), model.config.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.from_numpy(text)
        mask[row, : len(text)] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    return torch.cat([logits[row, torch.as_tensor(chosen, dtype=torch.long)] for row, chosen in enumerate(places)])


def pair(small_model, name):
    """Return the stock model and the same one with packing enabled."""
    stock, ours = small_model(name), small_model(name)
    stock.set_attn_implementation("eager")
    assert enable_packing(ours) == (name not in PADDED_ONLY)
    return stock, ours


def loss(logits, batch):
    return F.cross_entropy(logits.float(), batch.labels, reduction="sum") / len(batch.labels)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours, stock, atol):
    mine, theirs = gradients(ours), gradients(stock)
    assert len(theirs) > 10
    for name, grad in theirs.items():
        # what the stock model only touches with zeros (DeBERTa's unused scores, say) need not be touched at all
        got = mine.get(name, torch.zeros_like(grad))
        torch.testing.assert_close(got, grad, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def test_packed_equals_padded(architecture, small_model):
    stock, ours = pair(small_model, architecture)
    texts = documents()
    batch = pack(ours, texts)
    want, got = plain(stock, texts), forward_packed(ours, batch)
    assert want.std() > 0.05, "a model that says nothing would prove nothing"
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * max(1.0, float(want.abs().max())))
    loss(want, batch).backward()
    loss(got, batch).backward()
    assert_same_gradients(ours, stock, atol=1e-5)


@pytest.mark.parametrize("short", [0, 1000])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_short_and_long_segments_are_the_same_either_way(short, precision, small_model, monkeypatch):
    monkeypatch.setattr(packed, "SHORT", short)
    stock, ours = pair(small_model, "bert")
    texts = documents()
    batch = pack(ours, texts)
    want = plain(stock, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        got = forward_packed(ours, batch)
    scale = max(1.0, float(want.detach().abs().max()))
    torch.testing.assert_close(got.float(), want, rtol=0, atol=scale * (1e-5 if precision == "fp32" else 3e-2))
    loss(want, batch).backward()
    loss(got, batch).backward()
    assert_same_gradients(ours, stock, atol=1e-5 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("bare", [(), (1, 6)])  # segments of which nothing is read
def test_one_query_a_segment(name, bare, small_model):
    stock, ours = pair(small_model, name)
    texts = documents()
    places = [[] if number in bare else [number % len(text)] for number, text in enumerate(texts)]
    batch = pack(ours, texts, places)
    want, got = plain(stock, texts, places), forward_packed(ours, batch)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * max(1.0, float(want.detach().abs().max())))
    loss(want, batch).backward()
    loss(got, batch).backward()
    assert_same_gradients(ours, stock, atol=1e-5)


def test_one_query_a_segment_drops_attention_as_torch_does(small_model, monkeypatch):
    _, ours = pair(small_model, "bert")
    texts = documents()
    attention = tail.last_layer(ours).attention.self
    batch = pack(ours, texts, [[0]] * len(texts))
    segments, hidden = packed.Segments(batch.cu_seqlens, batch.max_seqlen, batch.label_positions), torch.randn(1, batch.num_tokens, 64)
    ours.train()
    attention.dropout.p = 0.5
    monkeypatch.setattr(tail, "noise", lambda shape, share, dtype: (torch.ones(shape, dtype=dtype), 1.0))
    kept = tail._lone_queries(attention, hidden, segments)
    monkeypatch.setattr(tail, "noise", lambda shape, share, dtype: (torch.ones(shape, dtype=dtype), 0.5))
    torch.testing.assert_close(tail._lone_queries(attention, hidden, segments), kept / 2)  # the value's bias, too
    attention.eval()
    torch.testing.assert_close(tail._lone_queries(attention, hidden, segments), kept)


def test_layers_that_are_more_than_their_weights_are_called(small_model):
    pytest.importorskip("peft")
    from unmask.train import lora

    _, ours = pair(small_model, "bert")
    lora.inject(ours, lora.LoraConfig(r=2, target_modules=("query", "key", "value")), seed=0)
    with torch.no_grad():
        for parameter in lora.tensors(ours).values():
            parameter.normal_(std=0.3)
    texts = documents()
    batch = pack(ours, texts, [[0]] * len(texts))
    want = forward_packed(lora.merged(ours), batch)
    torch.testing.assert_close(forward_packed(ours, batch), want, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(forward_packed(ours, batch), want, rtol=1e-3, atol=1e-3)


def test_rows_to_spare_come_last(small_model):
    _, ours = pair(small_model, "bert")
    batch = pack(ours, documents())
    got, more = forward_packed(ours, batch), forward_packed(ours, batch, spare=True)
    assert len(got) == len(batch.label_positions) < len(more) == rounded(len(got))
    assert torch.equal(more[: len(got)], got)


@pytest.mark.parametrize("name", ["bert", "modernbert", "eurobert"])
def test_segments_too_long_for_whole_scores(name, small_model, monkeypatch):
    monkeypatch.setattr(packed, "LONG", 20)
    stock, ours = pair(small_model, name)
    texts = documents()
    batch = pack(ours, texts)
    want, got = plain(stock, texts), forward_packed(ours, batch)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * max(1.0, float(want.abs().max())))
    loss(want, batch).backward()
    loss(got, batch).backward()
    assert_same_gradients(ours, stock, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert", "eurobert"])
def test_the_fused_kernel_where_no_gradients_are_wanted(name, small_model, monkeypatch):
    stock, ours = pair(small_model, name)
    texts = documents()
    batch = pack(ours, texts)
    with torch.no_grad():
        want, products = plain(stock, texts), forward_packed(ours, batch)
        monkeypatch.setattr(packed, "FUSED", 20)
        got = forward_packed(ours, batch)
    assert not torch.equal(got, products)  # it was another way
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_the_fused_kernel_of_matrix_units(name, small_model, monkeypatch):
    stock, ours = pair(small_model, name)
    monkeypatch.setattr(packed, "SHORT", 20)
    texts = documents()
    batch = pack(ours, texts)
    found = []
    for there in (True, False):
        monkeypatch.setattr(packed, "MATRIX_UNITS", there)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(forward_packed(ours, batch).float())
    assert not torch.equal(*found)  # it was another way
    with torch.no_grad():
        want = plain(stock, texts)
    for got in found:
        torch.testing.assert_close(got, want, rtol=0, atol=3e-2 * max(1.0, float(want.abs().max())))


def test_the_window_is_felt(small_model):
    stock, ours = pair(small_model, "modernbert")
    texts = documents((60,))
    wide = copy.deepcopy(stock)
    for layer in wide.model.layers:
        layer.attn.sliding_window = None
    wide.config.layer_types = ["full_attention"] * 3
    for layer in wide.model.layers:
        layer.attention_type = "full_attention"
    assert not torch.allclose(plain(wide, texts), plain(stock, texts), atol=1e-3)
    torch.testing.assert_close(forward_packed(ours, pack(ours, texts)), plain(stock, texts), rtol=0, atol=1e-5)


def test_editing_one_document_leaves_the_others_alone(architecture, small_model):
    _, ours = pair(small_model, architecture)
    texts = documents()
    places = labels_of(texts)
    before = forward_packed(ours, pack(ours, texts, places))
    texts[2] = (texts[2] - WORDS[0] + 11) % (WORDS[1] - WORDS[0]) + WORDS[0]
    after = forward_packed(ours, pack(ours, texts, places))
    owner = np.concatenate([[row] * len(chosen) for row, chosen in enumerate(places)])
    edited = torch.from_numpy(owner == 2)
    assert torch.equal(after[~edited], before[~edited])
    assert not torch.allclose(after[edited], before[edited], atol=1e-2)


@pytest.mark.parametrize("name", ["roberta", "modernbert", "deberta-v2"])
def test_company_and_order_do_not_matter(name, small_model):
    _, ours = pair(small_model, name)
    texts = documents()
    alone = [forward_packed(ours, pack(ours, [text], [place])) for text, place in zip(texts, labels_of(texts), strict=True) if len(place)]
    torch.testing.assert_close(forward_packed(ours, pack(ours, texts)), torch.cat(alone), rtol=0, atol=2e-5)


def test_packed_models_still_run_plain_batches(architecture, small_model):
    stock, ours = pair(small_model, architecture)
    texts = documents()
    torch.testing.assert_close(plain(ours, texts), plain(stock, texts), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_copy_is_a_model_of_its_own(name, small_model):
    _, ours = pair(small_model, name)
    texts = documents()
    twin = copy.deepcopy(ours)
    before, before_plain = forward_packed(twin, pack(twin, texts)), plain(twin, texts)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert torch.equal(forward_packed(twin, pack(twin, texts)), before)
    assert torch.equal(plain(twin, texts), before_plain)


def test_no_labels_no_logits(architecture, small_model):
    _, ours = pair(small_model, architecture)
    texts = documents((9, 4))
    assert forward_packed(ours, pack(ours, texts, [[], []])).shape == (0, 96)


@pytest.mark.parametrize("longest", [packed.LONG, 20])
@pytest.mark.parametrize("name", ["bert", "modernbert", "eurobert", "deberta-v2"])
def test_bf16_products_train(name, longest, small_model, monkeypatch):
    monkeypatch.setattr(packed, "LONG", longest)
    stock, ours = pair(small_model, name)
    texts = documents()
    batch = pack(ours, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(forward_packed(ours, batch), batch)
    value.backward()
    want = loss(plain(stock, texts), batch)
    want.backward()
    assert abs(float(value) - float(want)) < 0.05 * float(want)
    mine, theirs = (torch.cat([grad.flatten() for grad in gradients(model).values()]) for model in (ours, stock))
    assert F.cosine_similarity(mine, theirs, dim=0) > 0.95


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_checkpointed_activations_give_the_same_gradients(name, small_model):
    stock, ours = pair(small_model, name)
    texts = documents()
    batch = pack(ours, texts)
    ours.gradient_checkpointing_enable()
    ours.train()
    loss(forward_packed(ours, batch), batch).backward()
    loss(plain(stock, texts), batch).backward()
    assert_same_gradients(ours, stock, atol=1e-5)


def test_which_run_packed_and_why_not(architecture, small_model):
    model = small_model(architecture)
    possible, reason = supports_packing(model)
    assert possible == (architecture not in PADDED_ONLY) and bool(reason) != possible
    assert enable_packing(model) == possible == is_packed(model)


def test_the_last_layer_is_known_where_it_should_be(architecture, small_model):
    _, ours = pair(small_model, architecture)
    known = architecture in ("bert", "roberta", "xlm-roberta", "electra", "modernbert")
    assert (tail.last_layer(ours) is not None) == known


def test_the_attention_doors_of_transformers():
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    assert AttentionInterface._global_mapping[packed.PACKED] is packed.packed_attention, MOVED
    assert AttentionMaskInterface._global_mapping[packed.PACKED] is sdpa_mask, MOVED
    assert {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "kwargs"} <= set(
        inspect.signature(sdpa_attention_forward).parameters
    ), MOVED
    assert list(inspect.signature(repeat_kv).parameters) == ["hidden_states", "n_rep"], MOVED
    assert hasattr(PreTrainedModel, "set_attn_implementation") and hasattr(PreTrainedModel, "_supports_attention_backend"), MOVED


def test_the_mask_door_of_transformers(small_model):
    """A mask of four dimensions goes to the attention as it came, and so do keyword arguments that the model does not know."""
    seen = []

    def spy(module, query, key, value, attention_mask, segments=None, **kwargs):
        seen.append((attention_mask, segments))
        return packed.packed_attention(module, query, key, value, None, **kwargs)

    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("unmask_spy", spy)
    AttentionMaskInterface.register("unmask_spy", sdpa_mask)
    for name in ("bert", "modernbert", "distilbert", "eurobert"):
        model = small_model(name)
        model.set_attn_implementation("unmask_spy")
        mask, token = torch.empty(1, 1, 1, 1, dtype=torch.long), object()
        model(input_ids=torch.full((1, 6), 7), attention_mask=mask, segments=token)
        assert len(seen) == 3, MOVED
        assert all(got is mask and segments is token for got, segments in seen), f"{name}: {MOVED}"
        seen.clear()


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("bert", ("attention.self", "attention.output", "intermediate", "output")),
        ("roberta", ("attention.self", "attention.output", "intermediate", "output")),
        ("electra", ("attention.self", "attention.output", "intermediate", "output")),
        ("modernbert", ("attn_norm", "attn.Wqkv", "attn.Wo", "mlp_norm", "mlp")),
    ],
)
def test_the_inside_of_a_layer(name, inside, small_model):
    layer = tail.last_layer(small_model(name))
    direct = {child for child, _ in layer.named_children()}
    assert direct == {"attention", "intermediate", "output"} or direct == {"attn_norm", "attn", "mlp_norm", "mlp"}, MOVED
    for path in inside:
        assert isinstance(layer.get_submodule(path), torch.nn.Module), MOVED
