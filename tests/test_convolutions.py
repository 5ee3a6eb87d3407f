"""Convolutions that activate or add what they write say what their parts say one after the other, or are not used."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import convolutions
from models.convolutions import FusedConvolution, HalvingConvolution, fuses, operators_agree
from models.folding import folded
from models.rearranged import JoiningConvolution, JudgingTier
from scripts.bench_speed import _fused_counts
from tests.test_inference import lived_in

LAST = torch.channels_last
needs_fusing = pytest.mark.skipif(not fuses(), reason="this PyTorch has no fused convolutions that agree")


def planes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=LAST)


def convolution(*shape: int, **given: int) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(*shape, **given).to(memory_format=LAST).requires_grad_(False)


def laid(features: torch.Tensor, layout: str) -> torch.Tensor:
    """A copy that lies in memory in another way."""
    if layout == "part":  # of a map with more channels
        wider = torch.zeros(len(features), features.shape[1] + 4, *features.shape[2:]).contiguous(memory_format=LAST)
        wider[:, 2:-2] = features
        return wider[:, 2:-2]
    order = {"last": LAST, "first": torch.contiguous_format}[layout]
    return features.clone(memory_format=order)


@needs_fusing
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), None])
@pytest.mark.parametrize(
    "shape", [{"kernel_size": 1}, {"kernel_size": 3, "padding": 1}, {"kernel_size": 5, "stride": 2, "groups": 8}]
)
def test_what_is_written_is_activated(activation, shape):
    alone = convolution(8, 16, **shape)
    features = 5 * planes(2, 8, 9, 12)  # so that ReLU6 has something to cut off
    expected = alone(features) if activation is None else activation(alone(features))
    assert activation is None or (expected == 0).any()
    assert type(activation) is not nn.ReLU6 or (expected == 6).any()
    found = FusedConvolution(alone, activation)(features)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=LAST)


@needs_fusing
@pytest.mark.parametrize("activation", [nn.ReLU(), None])
@pytest.mark.parametrize("sides", [(5, 6), (2, 1), (1, 1)])
@pytest.mark.parametrize("layouts", [("last", "last"), ("first", "last"), ("last", "first"), ("part", "part")])
def test_what_is_written_is_added_in_place(activation, sides, layouts):
    alone, features, other = convolution(8, 8, 3, padding=1), planes(2, 8, *sides), planes(2, 8, *sides, seed=1)
    expected = other + alone(features)
    expected = expected if activation is None else activation(expected)
    target = laid(other, layouts[0])
    found = FusedConvolution(alone, activation).add_to(target, laid(features, layouts[1]))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(target, expected, msg="the map itself was to hold the sum")


@needs_fusing
@pytest.mark.parametrize("sides", [(8, 8), (7, 8), (8, 7), (9, 5)])
def test_a_halving_convolution_is_fused_too(sides):
    torch.manual_seed(1)
    same = Conv2dSame(8, 8, 3, stride=2, groups=8).to(memory_format=LAST).requires_grad_(False)
    features = planes(2, 8, *sides)
    fused = FusedConvolution(HalvingConvolution(same), nn.ReLU6())
    torch.testing.assert_close(fused(features), same(features).clamp(0, 6))


@needs_fusing
def test_what_cannot_be_fused_is_told():
    plain = convolution(8, 8, 3, padding=1)
    assert FusedConvolution.can_stand_for(plain, nn.ReLU()) and FusedConvolution.can_stand_for(plain, None)
    mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    kin = Conv2dSame(8, 8, 3)  # pads by itself
    others = [(plain, nn.Hardswish()), (mirrored, nn.ReLU()), (nn.Conv2d(8, 8, 3, padding="same"), nn.ReLU())]
    others.append((kin, nn.ReLU()))
    assert not any(FusedConvolution.can_stand_for(*pair) for pair in [*others, (nn.Linear(8, 8), nn.ReLU())])


@needs_fusing
@pytest.mark.parametrize("preset", ["small", "lite"])
def test_a_judging_network_is_fused_throughout(preset):
    quick = folded(lived_in(preset, 64))
    left = [name for name, part in quick.named_modules() if type(part) in (nn.ReLU, nn.ReLU6)]
    # After a pooling, a sum, or a normalisation that goes to several places.
    assert all(any(part in name for part in ("pool", "merge_", "norm5")) for name in left), left
    assert sum(isinstance(part, FusedConvolution) for part in quick.modules()) > 60
    assert all(type(tier) is JudgingTier for tier in quick.tiers)
    assert type(quick.decoder.join_half) is type(quick.decoder.join_quarter) is JoiningConvolution
    assert len(quick.tiers[0].binary.features.conv0.weight) == 16, "whole registers"


class Absent:
    """A PyTorch without the operators."""


class Other:
    """A PyTorch of whose operators one computes something else.

    Attributes:
        wrong: which one: what is written with that activation, or "add".
    """

    wrong = ""

    def __init__(self):
        self._convolution_pointwise_ = self

    def _convolution_pointwise(self, *given):
        written = torch.ops.mkldnn._convolution_pointwise(*given)
        return written + 1e-3 if given[-3] == self.wrong else written

    def binary(self, *given):
        added = torch.ops.mkldnn._convolution_pointwise_.binary(*given)
        return added + 1e-3 if self.wrong == "add" else added


class OtherLimit(Other):
    """ReLU6 without its upper limit."""

    def _convolution_pointwise(self, *given):
        return torch.ops.mkldnn._convolution_pointwise(
            *given[:-3], "relu" if given[-3] == "hardtanh" else given[-3], [], ""
        )


class OtherGroups(Other):
    """Depthwise convolutions twice as large."""

    def _convolution_pointwise(self, *given):
        return torch.ops.mkldnn._convolution_pointwise(*given) * (2 if given[6] > 1 else 1)


class OtherStride(Other):
    """Convolutions of stride 2 twice as large."""

    def _convolution_pointwise(self, *given):
        return torch.ops.mkldnn._convolution_pointwise(*given) * (2 if tuple(given[4]) == (2, 2) else 1)


class OtherReLU(Other):
    wrong = "relu"


class OtherReLU6(Other):
    wrong = "hardtanh"


class OtherPlain(Other):
    wrong = "none"


class OtherSum(Other):
    wrong = "add"


@pytest.mark.parametrize(
    "operators", [Absent, OtherReLU, OtherReLU6, OtherPlain, OtherSum, OtherLimit, OtherGroups, OtherStride]
)
def test_operators_that_are_absent_or_other_are_not_used(monkeypatch, operators):
    monkeypatch.setattr(convolutions, "_operators", operators)
    assert not operators_agree.__wrapped__()


@needs_fusing
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of setting any of the library's flags
def test_operators_that_agree_are_used_unless_the_library_is_switched_off(monkeypatch):
    monkeypatch.setattr(convolutions, "_operators", Other)
    assert operators_agree.__wrapped__()
    assert fuses()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not fuses()


@needs_fusing
def test_operators_agree_whatever_is_the_default_where_they_are_asked():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu"):
            assert operators_agree.__wrapped__()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("preset", ["small", "lite"])
def test_without_the_operators_a_judging_network_says_the_same(monkeypatch, preset):
    inputs = planes(2, 3, 64, 64).sigmoid(), torch.zeros(2, 1, 64, 64), torch.zeros(2, dtype=torch.bool)
    network = lived_in(preset, 64)
    monkeypatch.setattr(convolutions, "fuses", lambda: False)
    quick = folded(network)
    assert not any(isinstance(part, FusedConvolution) for part in quick.modules())
    with torch.no_grad():
        expected, found = network(*inputs), quick(*inputs)
    scale = max(1.0, float(expected.voices.abs().max()))
    torch.testing.assert_close(found.voices, expected.voices, atol=1e-4 * scale, rtol=1e-4)
    torch.testing.assert_close(found.mask_logit, expected.mask_logit, atol=1e-4, rtol=1e-4)


def test_only_networks_of_the_host_are_rearranged():
    network = lived_in("small", 64).to("meta")
    assert type(folded(network)) is type(network)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tiers.0.smooth.0.weight", float("nan")),
        ("tiers.0.smooth.1.running_mean", float("nan")),
        ("tiers.0.smooth.1.running_var", -1.0),  # finite until its root is taken
    ],
)
def test_weights_that_are_not_finite_still_say_so(name, value):
    network = lived_in("small", 64)
    with torch.no_grad():
        network.state_dict()[name].fill_(value)  # a ReLU follows
        said = folded(network)(planes(1, 3, 64, 64), torch.zeros(1, 1, 64, 64), torch.zeros(1, dtype=torch.bool))
    assert not said.voices.isfinite().all()


@needs_fusing
@pytest.mark.parametrize("groups", [1, 8])
def test_the_benchmark_counts_fused_work_as_that_of_the_convolution(groups):
    alone, features = convolution(8, 16, 3, stride=2, groups=groups), planes(2, 8, 9, 12)
    fused, other = FusedConvolution(alone), torch.zeros_like(alone(features))

    def work(act, *given):
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_fused_counts()) as counter:
            act(*given)
        return counter.get_total_flops()

    assert work(fused, features) == work(fused.add_to, other, features) == work(alone, features) > 0


def test_folding_draws_no_random_number_that_a_training_would_miss():
    network = lived_in("small", 64)
    before = torch.get_rng_state()
    operators_agree.cache_clear()
    folded(network)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_padded_stem_leaves_the_layout_as_it_is():
    quick = folded(lived_in("small", 64))
    with torch.no_grad():
        stem = quick.tiers[0].binary.features
        assert stem.pool0(stem.conv0(planes(2, 4, 32, 32))).is_contiguous(memory_format=LAST)
