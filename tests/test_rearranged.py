"""What is rearranged for judging on a CPU says the same as what it was made of."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torchvision.models.shufflenetv2 import InvertedResidual, channel_shuffle

from models.backbones import PyramidMerge
from models.decoder import MaskDecoder
from models.folding import folded
from models.network import Architecture, ThreeTierDCFNet
from models.rearranged import (
    CoarseMerge,
    FoldedDecoder,
    JudgingNetwork,
    ShuffleUnit,
    interleaved,
    padded_outputs,
    unfolded,
)
from tests.test_inference import lived_in

LAST = torch.channels_last


def planes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=LAST)


def test_interleaved_channels_are_the_channel_shuffle_and_stay_channels_last():
    first, second = planes(2, 6, 5, 7), planes(2, 12, 5, 7, seed=1)[:, 6:]
    found = interleaved(first, second)
    assert torch.equal(found, channel_shuffle(torch.cat([first, second], dim=1), 2))
    assert found.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_shuffle_unit_says_what_torchvisions_says(stride):
    torch.manual_seed(0)
    unit = InvertedResidual(8, 8 * stride, stride).eval().to(memory_format=LAST)
    features = planes(2, 8, 9, 6)
    with torch.no_grad():
        expected, found = unit(features), ShuffleUnit(unit)(features)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_an_unfolded_mask_is_the_pixel_shuffle(layout):
    mask = planes(3, 4, 5, 8).contiguous(memory_format=layout)
    mask[0, 0, 0, 0], mask[0, 1, 0, 0] = float("nan"), -0.0  # bits are moved, whatever they mean
    expected = functional.pixel_shuffle(mask, 2)
    assert torch.equal(unfolded(mask).view(torch.int32), expected.contiguous().view(torch.int32))


def test_added_outputs_are_zero_and_fill_whole_registers():
    convolution = torch.nn.Conv2d(3, 12, 3)
    weight, bias = padded_outputs(convolution)
    assert weight.shape[0] == len(bias) == 16
    found = functional.conv2d(planes(1, 3, 6, 6), weight, bias)
    torch.testing.assert_close(found[:, :12], convolution(planes(1, 3, 6, 6)))
    assert not found[:, 12:].any()


def test_one_convolution_merges_what_four_do():
    torch.manual_seed(0)
    merge = PyramidMerge((3, 5, 7, 9), 6, coarse=True)
    merge.laterals[0].bias = torch.nn.Parameter(torch.randn(6))  # as folding leaves them: the first alone has one
    merge.activate = torch.nn.ReLU()
    pyramid = [planes(2, c, side, side, seed=c) - 0.5 for c, side in ((3, 20), (5, 10), (7, 5), (9, 3))]
    with torch.no_grad():
        torch.testing.assert_close(CoarseMerge(merge)(pyramid, (3, 3)), merge(pyramid, (3, 3)))


@pytest.mark.parametrize("sides", [(64, 64), (65, 70), (66, 71), (75, 75)])
def test_the_decoder_reads_pixels_as_it_read_folded_ones(sides):
    network = lived_in("small", 64)
    image = planes(2, 3, *sides) - 0.5
    quick = folded(network)
    with torch.no_grad():
        pyramid = network.tiers[0].rgb(image)
        expected = network.decoder(image, pyramid)
        found = quick.decoder(image, pyramid)
    assert isinstance(network.decoder, MaskDecoder) and isinstance(quick.decoder, FoldedDecoder)
    assert found.shape == (2, 1, *sides)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", [64, 65])
@pytest.mark.parametrize("see", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("cropped", [False, True])
def test_a_judging_network_sees_the_masks_it_is_told_to(side, see, cropped):
    network = lived_in("small", 64)
    whole = planes(2, 3, side + 8, side + 8)
    image = whole[..., 4 : side + 4, 4 : side + 4] if cropped else planes(2, 3, side, side)
    inputs = image, (planes(2, 1, side, side, seed=5) > 0.5).float(), torch.tensor(see)
    with torch.no_grad():
        expected, found = network(*inputs), folded(network)(*inputs)
    scale = max(1.0, float(expected.voices.abs().max()))
    torch.testing.assert_close(found.voices, expected.voices, atol=1e-4 * scale, rtol=1e-4)
    torch.testing.assert_close(found.mask_logit, expected.mask_logit, atol=1e-4, rtol=1e-4)


def test_what_given_masks_say_is_told_from_what_drawn_ones_say():
    """Else the test before could not fail."""
    network = folded(lived_in("small", 64))
    image, given = planes(2, 3, 64, 64), (planes(2, 1, 64, 64, seed=5) > 0.5).float()
    with torch.no_grad():
        drawn = network(image, given, torch.zeros(2, dtype=torch.bool)).voices
        shown = network(image, given, torch.tensor([True, False])).voices
    assert (drawn[0] - shown[0]).abs().max() > 5e-3  # fifty times what may differ by rounding
    torch.testing.assert_close(drawn[1], shown[1])


def test_only_the_copy_is_rearranged():
    network = ThreeTierDCFNet(Architecture("small", 64))
    quick = folded(network)
    assert type(network) is ThreeTierDCFNet and type(quick) is JudgingNetwork
    assert type(network.decoder) is MaskDecoder
    assert any(isinstance(module, InvertedResidual) for module in network.modules())
    assert not any(isinstance(module, InvertedResidual) for module in quick.modules())


def test_normalised_images_are_the_same_in_rows():
    network = lived_in("small", 64)
    image = planes(2, 3, 10, 7)
    found = folded(network).normalised(image)
    torch.testing.assert_close(found, network.normalised(image))
    assert found.is_contiguous(memory_format=LAST)
