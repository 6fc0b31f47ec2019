"""Groups, schedules, and the state of the optimizers."""

import copy
from itertools import pairwise

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from unmask.errors import CheckpointError, ConfigError
from unmask.train.optim import SCHEDULES, Fp32Muon, OptimConfig, build, group_parameters, load_state_tensors, schedule, state_tensors

DIALS = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}


@pytest.fixture(params=["bert", "modernbert"])
def model(request):
    torch.manual_seed(0)
    if request.param == "bert":
        return BertForMaskedLM(BertConfig(**DIALS, max_position_embeddings=16))
    return ModernBertForMaskedLM(ModernBertConfig(**DIALS, **ENDS, max_position_embeddings=16))


def test_every_parameter_is_in_one_group(model):
    groups = group_parameters(model, muon=True)
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_muon_has_the_matrices_of_the_layers_and_nothing_else(model):
    muon = {id(p) for p in group_parameters(model, muon=True)["muon"]}
    names = [name for name, p in model.named_parameters() if id(p) in muon]
    assert names and all(".layer" in name for name in names)
    matrices = [name for name, p in model.base_model.named_parameters() if p.ndim == 2 and "embed" not in name]
    assert len(matrices) == len(names)


def test_norms_and_biases_do_not_decay(model):
    groups = group_parameters(model, muon=False)
    assert not groups["muon"]
    assert all(p.ndim < 2 for p in groups["no_decay"])
    assert all(p.ndim >= 2 for p in groups["decay"])
    (optimizer,) = build(model, OptimConfig(optimizer="adamw", weight_decay=0.3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_muon_and_adamw_have_their_own_rates(model):
    muon, adamw = build(model, OptimConfig(learning_rate=2e-3, muon_learning_rate=3e-2))
    assert isinstance(muon, torch.optim.Muon)
    assert {group["initial_lr"] for group in muon.param_groups} == {3e-2}
    assert {group["initial_lr"] for group in adamw.param_groups} == {2e-3}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_stay_within_one_and_end(name):
    config = OptimConfig(schedule=name, warmup_ratio=0.1, decay_ratio=0.6)
    factors = [schedule(step / 1000, config) for step in range(1001)]
    assert factors[0] == 0 and factors[50] == pytest.approx(0.5) and factors[100] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(factors[100:]))
    assert factors[-1] == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-9)


def test_the_shapes_of_the_schedules():
    middle = {name: schedule(0.55, OptimConfig(schedule=name, warmup_ratio=0.1)) for name in SCHEDULES}
    assert middle["linear"] == pytest.approx(0.5)
    assert middle["cosine"] == pytest.approx(0.5)
    assert middle["wsd"] == pytest.approx(0.75)
    assert schedule(0.4, OptimConfig(schedule="wsd")) == 1.0
    assert schedule(0.7, OptimConfig(schedule="wsd", decay_ratio=0.0)) == 1.0


def test_fp32_muon_goes_where_muon_goes():
    torch.manual_seed(0)
    for shape in [(32, 48), (48, 32)]:
        start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
        ends = []
        for kind in (torch.optim.Muon, Fp32Muon):
            weight = torch.nn.Parameter(start.clone())
            optimizer = kind([weight], lr=0.1, weight_decay=0.01)
            for gradient in gradients:
                weight.grad = gradient.clone()
                optimizer.step()
            ends.append(weight.detach() - start)
        assert (ends[0] - ends[1]).norm() / ends[0].norm() < 0.02  # bf16's rounding


def test_state_goes_out_and_in_exactly(model):
    def steps(model, optimizers, number):
        for _ in range(number):
            for p in model.parameters():
                p.grad = torch.cos(p.detach() * 3)
            for optimizer in optimizers:
                optimizer.step()

    optimizers = build(model, OptimConfig())
    steps(model, optimizers, 3)
    other = copy.deepcopy(model)
    saved = {name: tensor.clone() for name, tensor in state_tensors(optimizers).items()}
    others = build(other, OptimConfig())
    load_state_tensors(others, saved)
    steps(model, optimizers, 3)
    steps(other, others, 3)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_state_of_another_model_is_refused(model):
    optimizers = build(model, OptimConfig())
    with pytest.raises(CheckpointError, match="not that of this model"):
        load_state_tensors(optimizers, {"optim.0.0.momentum_buffer": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match="optimizer 7"):
        load_state_tensors(optimizers, {"optim.7.0.momentum_buffer": torch.zeros(3, 3)})


@pytest.mark.parametrize(("field", "value"), [("learning_rate", -1.0), ("warmup_ratio", 2.0), ("beta1", 1.0), ("schedule", "step")])
def test_values_that_cannot_be_are_named(field, value):
    with pytest.raises(ConfigError, match=f"optim.{field} = {value!r}"):
        OptimConfig(**{field: value})


def test_rates_follow_the_square_root_of_the_batch(make_model):
    config = OptimConfig(reference_batch_tokens=1024, layer_decay=0.5)
    plain, large = build(make_model(), OptimConfig(layer_decay=0.5)), build(make_model(), config, batch_tokens=4096)
    for left, right in zip(plain, large, strict=True):
        assert [2 * group["initial_lr"] for group in left.param_groups] == [group["initial_lr"] for group in right.param_groups]
    with pytest.raises(ConfigError, match="counted in examples"):
        build(make_model(), config)
