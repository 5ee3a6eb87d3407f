"""Judging an image in several views: each mask is turned back, and the mean does not know which way was up."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.layers import create_conv2d

from models import inference
from models.folding import HalvingConvolution, folded
from models.inference import predict, see_all
from models.network import Architecture, ThreeTierDCFNet


@dataclass
class Batch:
    rgb: torch.Tensor
    mask: torch.Tensor
    has_mask: torch.Tensor


def batch(rng: np.random.Generator, height: int, width: int) -> Batch:
    rgb = torch.from_numpy(rng.random((2, 3, height, width), dtype=np.float32))
    mask = (torch.from_numpy(rng.random((2, 1, height, width))) > 0.5).float()
    return Batch(rgb.contiguous(memory_format=torch.channels_last), mask, torch.ones(2, dtype=torch.bool))


class Stub(torch.nn.Module):
    """A network whose verdicts are the pixels of the top left corner, and whose mask is the one it is told to draw."""

    def __init__(self, size, draw):
        super().__init__()
        self.architecture, self.draw = SimpleNamespace(fine_size=size), draw

    def forward(self, rgb, mask, see_given):
        voices = torch.cat([rgb[:, :, 0, 0], mask[:, :, 0, 0]], dim=1)
        return SimpleNamespace(voices=voices, mask_probability=self.draw(rgb))

    def verdicts(self, voices):
        return 2 * voices


def judge(network, given, views):
    return next(iter(predict(network, [given], torch.device("cpu"), see_all, views=views)))


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_verdicts_are_the_mean_over_the_views(rng, views):
    given = batch(rng, 12, 12)
    found = judge(Stub(12, lambda rgb: rgb[:, :1]), given, views)
    corners = {1: [(0, 0)], 2: [(0, 0), (0, -1)]}.get(views, [(0, 0), (0, -1), (-1, 0), (-1, -1)])
    both = torch.cat([given.rgb, given.mask], dim=1)
    expected = torch.stack([both[:, :, y, x] for y, x in corners]).mean(dim=0)
    torch.testing.assert_close(found.voices, expected)
    torch.testing.assert_close(found.logits, 2 * expected)


@pytest.mark.parametrize("views", [2, 4, 8])
@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (13, 11)])
def test_a_mask_that_follows_the_image_is_the_same_however_many_views(rng, views, shape):
    given = batch(rng, *shape)
    found = judge(Stub(8, lambda rgb: rgb[:, 1:2]), given, views)
    torch.testing.assert_close(found.mask_probability, given.rgb[:, 1:2])


@pytest.mark.parametrize("views", [1, 2, 4, 8])
def test_a_mask_that_follows_the_frame_is_averaged_over_all_ways_to_turn_it(rng, views):
    ramp = rng.random((9, 9), dtype=np.float32)
    given = batch(rng, 9, 9)
    found = judge(Stub(9, lambda rgb: torch.from_numpy(ramp).expand(len(rgb), 1, 9, 9)), given, views)
    ways = [
        ramp,
        ramp[:, ::-1],
        ramp[::-1, ::-1],
        ramp[::-1],
        ramp.T,
        ramp.T[::-1],
        ramp.T[:, ::-1],
        ramp.T[::-1, ::-1],
    ]
    np.testing.assert_allclose(found.mask_probability[1, 0].numpy(), np.mean(ways[:views], axis=0), atol=1e-6)


def test_turned_images_keep_the_layout_that_convolutions_are_fast_in(rng):
    given = batch(rng, 12, 12)
    layouts = []
    network = Stub(12, lambda rgb: rgb[:, :1])
    network.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    judge(network, given, 8)
    assert layouts == [True] * 8


def test_another_number_of_views_is_refused(rng):
    with pytest.raises(ValueError, match="found 3"):
        judge(Stub(8, lambda rgb: rgb[:, :1]), batch(rng, 8, 8), 3)


def lived_in(preset, size, **parts):
    """A network whose norms, heads and projections are not those of a fresh one, with some that are extreme."""
    torch.manual_seed(3)
    network = ThreeTierDCFNet(Architecture(preset, size, **parts)).to(memory_format=torch.channels_last)
    network.open(3)
    for name, parameter in network.named_parameters():
        if "head." in name or "project" in name or "enter_binary" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 0.6, 0.6)  # some below zero
            torch.nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                module.weight[0] = 0.0
                module.weight[-1] = 1e-30
    return network.eval()


@pytest.mark.parametrize("preset", ["small", "lite"])
@pytest.mark.parametrize("parts", [{}, {"binary_stream": False, "fusion": False}])
def test_a_folded_network_says_the_same(preset, parts):
    network = lived_in(preset, 64, **parts)
    inputs = torch.rand(2, 3, 64, 64), torch.zeros(2, 1, 64, 64), torch.zeros(2, dtype=torch.bool)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quick = folded(network)
    with torch.no_grad():
        expected, found = network(*inputs), quick(*inputs)
    scale = max(1.0, float(expected.voices.abs().max()))
    torch.testing.assert_close(found.voices, expected.voices, atol=1e-4 * scale, rtol=1e-4)
    torch.testing.assert_close(found.mask_logit, expected.mask_logit, atol=1e-4, rtol=1e-4)
    kinds = [type(module).__name__ for module in quick.modules()]
    assert "HalvingConvolution" in kinds and "Conv2dSame" not in kinds
    assert sum("BatchNorm" in kind for kind in kinds) <= 2  # what DenseNet ends with goes to several places
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("sides", [(8, 8), (9, 9), (8, 11), (7, 10)])
def test_a_halving_convolution_pads_as_tensorflow_does(kernel, sides):
    slow = create_conv2d(4, 4, kernel, stride=2, padding="same", depthwise=True, bias=True)
    assert HalvingConvolution.can_stand_for(slow)
    features = torch.rand(2, 4, *sides)
    with torch.no_grad():
        torch.testing.assert_close(HalvingConvolution(slow)(features), slow(features), atol=1e-6, rtol=1e-5)


def test_what_a_halving_convolution_cannot_stand_for():
    for options in ({"stride": 1}, {"stride": 2, "padding": 1}, {"stride": 2, "padding": "same", "dilation": 2}):
        assert not HalvingConvolution.can_stand_for(create_conv2d(4, 4, 3, **{"padding": "same", **options}))
    assert not HalvingConvolution.can_stand_for(create_conv2d(4, 4, 4, stride=2, padding="same"))


def test_much_is_judged_by_a_folded_copy_and_little_by_the_network_itself(monkeypatch):
    made = []
    monkeypatch.setattr(inference, "folded", lambda network: (made.append(1), folded(network))[1])
    network = lived_in("small", 64)
    rng = np.random.default_rng(0)
    given = batch(rng, 64, 64)
    few = next(iter(predict(network, [given] * 2, torch.device("cpu"), see_all)))
    assert made == []
    many = next(iter(predict(network, [given] * 40, torch.device("cpu"), see_all)))
    assert made == [1]
    torch.testing.assert_close(many.voices, few.voices, atol=1e-3, rtol=1e-3)
