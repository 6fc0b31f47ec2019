"""The loop: what a step computes, what it does when memory runs out or a loss is not finite, and when it ends."""

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch

from unmask.errors import ConfigError, RunError
from unmask.model.heads import forward_packed
from unmask.train import loop
from unmask.train.loop import TrainConfig, TrainState, halve, train
from unmask.train.loss import masked_loss_sum
from unmask.train.optim import OptimConfig, build


@dataclass
class Config:
    """What the loop reads of a recipe."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(max_steps=4))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(warmup_ratio=0.0, schedule="constant"))


def step_loss(model, batch):
    return masked_loss_sum(forward_packed(model, batch), batch.labels)


def run(model, batches, config=None, step_loss=step_loss, on_step=lambda state, step: None, **state):
    config = config or Config()
    return train(TrainState(model, build(model, config.optim), **state), iter(batches), step_loss, config, on_step)


def numbers_from(loader, first=0):
    while True:
        yield loader.batch(first)
        first += 1


def gradient(model, micro_batches):
    model.zero_grad()
    labels = sum(len(batch.labels) for batch in micro_batches)
    loss = loop.accumulate(TrainState(model, []), micro_batches, step_loss, labels)
    return float(loss), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_how_a_step_is_cut_changes_nothing(make_model, make_loader, family):
    # 1 x 16 == 4 x 4 == 16 x 1, with segments of very different numbers of labels
    model = make_model(family)
    (batch,) = make_loader(1024, 1024).batch(0)
    whole = gradient(model, [batch])
    for times in (1, 2, 4):
        pieces = halve(batch, times)
        assert len(pieces) == 2**times and len({len(piece.labels) for piece in pieces}) > 1
        loss, grad = gradient(model, pieces)
        assert loss == pytest.approx(whole[0], abs=1e-6)
        torch.testing.assert_close(grad, whole[1], rtol=0, atol=1e-6)


def test_the_loss_falls_and_the_budget_is_kept(make_model, make_loader):
    losses = []
    config = Config(TrainConfig(max_steps=60), OptimConfig(learning_rate=1e-2))
    state = run(make_model(), numbers_from(make_loader()), config, on_step=lambda state, step: losses.append(step.loss))
    assert state.step == len(losses) == 60
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3
    assert losses[0] == pytest.approx(math.log(122), abs=0.5)  # an untrained model spreads over its vocabulary


def test_tokens_are_counted_without_padding(make_model, make_loader):
    loader = make_loader(256, 512)
    state = run(make_model(), numbers_from(loader))
    assert state.tokens == sum(loader.num_tokens_of(step) for step in range(4)) < 4 * 512


def test_dropout_is_on_while_training(make_model, make_loader):
    model = make_model("bert", hidden_dropout_prob=0.3)
    seen = []
    run(model.eval(), numbers_from(make_loader()), on_step=lambda state, step: seen.append(state.model.training))
    assert seen == [True] * 4


class Memory:
    """A device that holds `limit` tokens in a pass, and says so as CUDA and the CPU's allocator do."""

    def __init__(self, limit, error):
        self.limit, self.error, self.refused = limit, error, 0

    def __call__(self, model, batch):
        loss = step_loss(model, batch)
        if batch.input_ids.shape[1] > self.limit:
            self.refused += 1
            raise self.error
        return loss


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_when_memory_runs_out_the_step_is_done_again_in_smaller_pieces(make_model, make_loader, error):
    model = make_model()
    other, memory = copy.deepcopy(model), Memory(300, error)
    # bf16 in Muon, and AdamW where the gradient is next to nothing, would magnify the rounding
    config = Config(optim=OptimConfig(optimizer="adamw", eps=1e-3, warmup_ratio=0.0, schedule="constant"))
    plain, halved = [], []
    run(model, numbers_from(make_loader(1024, 1024)), config, on_step=lambda state, step: plain.append(step))
    state = run(other, numbers_from(make_loader(1024, 1024)), config, memory, on_step=lambda state, step: halved.append(step))
    assert memory.refused == 2 and state.halvings == 2  # found once, kept for the steps that follow
    assert [step.num_labels for step in plain] == [step.num_labels for step in halved]
    assert [step.loss for step in halved] == pytest.approx([step.loss for step in plain], abs=1e-6)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


def test_a_window_that_does_not_fit_is_an_error(make_model, make_loader):
    with pytest.raises(RunError, match=r"even for a single window .*lower data.max_length \(\d+ tokens"):
        run(make_model(), numbers_from(make_loader()), step_loss=Memory(2, MemoryError("no")))


def test_other_errors_are_not_taken_for_memory(make_model, make_loader):
    with pytest.raises(RuntimeError, match="shapes"):
        run(make_model(), numbers_from(make_loader()), step_loss=Memory(2, RuntimeError("shapes do not match")))


def poisoned(steps):
    """Return a step loss that is not a number in the calls whose numbers are in `steps`."""
    calls = iter(range(10**6))

    def poisoned_loss(model, batch):
        loss = step_loss(model, batch)
        return loss * float("nan") if next(calls) in steps else loss

    return poisoned_loss


def test_a_loss_that_is_not_finite_is_skipped_with_its_documents(make_model, make_loader):
    model, steps, weights = make_model(), [], []
    loader = make_loader()

    def on_step(state, step):
        steps.append(step)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    state = run(model, numbers_from(loader), step_loss=poisoned({1, 2}), on_step=on_step)
    assert [step.fault is not None for step in steps] == [False, True, True, False]
    assert set(steps[1].documents) == {int(d) for d in loader.batch(1)[0].documents if d >= 0}
    assert not steps[0].documents
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[2], weights[3])
    assert state.skipped == 0 and torch.isfinite(weights[3]).all()


def test_a_loss_that_stays_not_finite_stops_the_run(make_model, make_loader):
    steps, config = [], Config(TrainConfig(max_steps=9))
    with pytest.raises(RunError, match=r"3 steps in a row.*step 4"):
        run(make_model(), numbers_from(make_loader()), config, poisoned({1, 2, 3}), lambda _, step: steps.append(step))
    assert [step.fault is not None for step in steps] == [False, True, True, True]


def test_on_step_ends_the_loop(make_model, make_loader):
    state = run(make_model(), numbers_from(make_loader()), on_step=lambda state, step: state.step == 2)
    assert state.step == 2


def test_the_gradient_is_clipped_as_a_whole(make_model, make_loader):
    model = make_model()
    config = Config(optim=OptimConfig(optimizer="adamw", max_grad_norm=1e-9, eps=1.0, weight_decay=0.0, warmup_ratio=0.0))
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    norms = []
    run(model, numbers_from(make_loader()), config, on_step=lambda state, step: norms.append(step.grad_norm))
    assert min(norms) > 1e-3  # what is reported is the length before clipping
    assert (torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm() < 1e-9


@pytest.mark.parametrize(
    ("budget", "progress"),
    [
        ({"max_steps": 20}, 0.5), ({"num_epochs": 2.0}, 0.5), ({"num_epochs": 0.5}, 2.0), ({"max_tokens": 4000}, 0.25),
        ({"max_minutes": 2.0}, 0.25), ({"max_steps": 100, "max_minutes": 1.0}, 0.5), ({}, 1 / 3),
    ],
)  # fmt: skip
def test_budgets(budget, progress):
    assert TrainConfig(**budget).progress(10, 1000, 30.0, steps_per_epoch=10) == pytest.approx(progress)


def test_minutes_count_from_the_first_start(make_model, make_loader):
    config = Config(TrainConfig(max_minutes=1.0))
    assert run(make_model(), numbers_from(make_loader()), config, step=7, seconds=61.0).step == 7
    ended = run(make_model(), numbers_from(make_loader()), config, on_step=lambda state, step: True, seconds=30.0)
    assert ended.step == 1 and 30.0 < ended.seconds < 60.0


@pytest.mark.parametrize(("name", "value"), [("max_steps", 0), ("max_minutes", -1.0), ("save_steps", -1)])
def test_budgets_that_cannot_be_are_named(name, value):
    with pytest.raises(ConfigError, match=f"train.{name} = {value}"):
        TrainConfig(**{name: value})
