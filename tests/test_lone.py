"""Lone backbones: the baselines that the three tiers are measured against."""

from __future__ import annotations

import pytest
import torch

from models.backbones import THIN, DenseNetPyramid, EfficientNetPyramid, ShuffleNetPyramid
from models.inference import predict, see_none
from models.lone import LoneBackbone, train_lone
from models.network import Architecture, in_full_precision
from models.trainer import TrainerSettings
from tests.test_training import Batch


def batch(count=16, size=64):
    """The class is how bright the image is."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 2
    rgb = 0.2 * torch.rand(count, 3, size, size, generator=generator) + 0.5 * label.view(-1, 1, 1, 1)
    nothing = torch.zeros(count, 1, size, size)
    return Batch(rgb, nothing, torch.zeros(count, dtype=torch.bool), torch.arange(0), label, torch.arange(count))


def lone(kind=ShuffleNetPyramid):
    torch.manual_seed(0)
    return LoneBackbone(kind(3, THIN), Architecture("small", 64, 0.0))


@pytest.mark.parametrize("kind", [DenseNetPyramid, EfficientNetPyramid, ShuffleNetPyramid])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_it_learns_and_is_judged_as_the_whole_network_is(kind, ema):
    settings = TrainerSettings(niter=10, niter_decay=0, lr=1e-3, ema=ema, warmup=2)
    network = train_lone(lone(kind), lambda epoch: [batch()] * 5, settings, torch.ones(2), torch.device("cpu"))
    (prediction,) = predict(network, [batch()], torch.device("cpu"), see_none, views=2)
    assert prediction.logits.shape == (16, 4)
    assert ((prediction.logits[:, 3] > 0) == (batch().label > 0)).float().mean() >= 0.9


def test_the_verdict_is_the_linear_head_on_the_averaged_last_features():
    network = lone().eval()
    one = batch(2)
    with torch.no_grad():
        features = network.rgb((one.rgb - network.mean) / network.std)[-1].mean(dim=(2, 3))
        output = network(one.rgb, one.mask, one.has_mask)
    torch.testing.assert_close(output.logits, network.head(features).expand(-1, 4))


def test_the_epochs_follow_one_another_and_unlabelled_images_teach_nothing():
    seen = []
    one = batch(4)
    one.label = torch.full((4,), -1)

    def batches(epoch):
        seen.append(epoch)
        return [one]

    network = lone()
    before = network.head.bias.detach().clone()
    train_lone(
        network, batches, TrainerSettings(niter=2, niter_decay=1, weight_decay=0.0), torch.ones(2), torch.device("cpu")
    )
    assert seen == [0, 1, 2]
    assert torch.equal(network.head.bias, before)


def test_logits_are_in_full_precision_also_under_autocast():
    head, features = torch.nn.Linear(8, 1), torch.randn(3, 8)
    exact = torch.nn.functional.linear(features, head.weight, head.bias).squeeze(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(features).dtype == torch.bfloat16
        torch.testing.assert_close(in_full_precision(head, features), exact)


def test_its_loss_is_as_heavy_as_the_three_tier_networks(monkeypatch):
    """So that the clip of the gradient means the same for both."""
    seen = []

    def record(parameters, limit):
        seen.append(float(sum(p.grad.square().sum() for p in parameters if p.grad is not None)) ** 0.5)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", record)
    for weight in (1.0, 10.0):
        settings = TrainerSettings(niter=1, niter_decay=0, lambda_class=weight)
        train_lone(lone(), lambda epoch: [batch()], settings, torch.ones(2), torch.device("cpu"))
    assert seen[1] == pytest.approx(10 * seen[0], rel=1e-3)
