"""The number format of the products."""

import math

import pytest
import torch

from unmask.errors import ConfigError
from unmask.train.precision import bf16_speedup, choose


def test_auto_is_what_was_measured():
    assert choose("auto", "cpu").name == ("bf16" if bf16_speedup("cpu") > 1.3 else "fp32")


def test_what_is_measured_is_a_ratio():
    bf16_speedup.cache_clear()
    assert math.isfinite(bf16_speedup("cpu")) and bf16_speedup("cpu") > 0


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_run_in_the_format_and_weights_stay_fp32(name, dtype):
    layer = torch.nn.Linear(8, 8)
    with choose(name, "cpu").autocast():
        output = layer(torch.ones(2, 8))
    output.float().sum().backward()
    assert output.dtype == dtype
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32


def test_measuring_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    bf16_speedup.cache_clear()
    before = torch.get_rng_state()
    bf16_speedup("cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_precision_names_those_that_exist():
    with pytest.raises(ConfigError, match=r"^precision = 'fp16'; allowed: auto, fp32, bf16"):
        choose("fp16", "cpu")
    with pytest.raises(ConfigError, match=r"^train.precision = 'fp16'; allowed"):
        choose("fp16", "cpu", setting="train.precision")
