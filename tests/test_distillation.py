"""Distilled starts: the student comes to see what the teacher sees, nothing else is touched, and the outputs say so."""

from __future__ import annotations

import pytest
import torch

from models.distillation import Teacher, distil_starts
from models.network import Architecture, ThreeTierDCFNet
from tests.test_lone import batch

CPU = torch.device("cpu")
STARTS = {"tier1": "random weights (x)", "tier2": "ImageNet weights (y)", "tier3": "random weights (z)"}


def network():
    torch.manual_seed(0)
    return ThreeTierDCFNet(Architecture("small", 64, 0.0))


def weights(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(before, module):
    return [torch.equal(value, before[key]) for key, value in module.state_dict().items()]


def test_the_teachers_features_are_standardised_by_channel():
    net = network()
    teacher = Teacher(net.tiers[1].rgb, net.normalised, [batch()], CPU)
    for features in teacher(batch().rgb):
        mean, deviation = features.mean(dim=(0, 2, 3)), features.std(dim=(0, 2, 3))
        assert mean.abs().max() < 1e-3
        assert ((deviation - 1).abs() < 1e-2).logical_or(deviation < 1).all()


def test_a_student_comes_to_see_what_the_teacher_sees():
    few, many = network(), network()
    left = {}
    for net, count in ((few, 1), (many, 15)):
        starts = distil_starts(net, STARTS, lambda epoch: [batch()] * 3, count, CPU)
        left[count] = float(starts["tier3"].rstrip(")").split()[-1])
    assert left[15] < 0.7 * left[1]


def test_only_the_random_backbones_change_and_the_words_say_so():
    net = network()
    before = [weights(tier) for tier in net.tiers]
    rest = weights(net.decoder)
    starts = distil_starts(net, STARTS, lambda epoch: [batch()], 1, CPU)
    assert starts["tier2"] == STARTS["tier2"]
    assert starts["tier1"].startswith("distilled from EfficientNet's features, 1 epochs")
    assert all(same(before[1], net.tiers[1])) and all(same(rest, net.decoder))
    for index in (0, 2):
        changed = {k for k, v in net.tiers[index].state_dict().items() if not torch.equal(v, before[index][k])}
        assert changed and all(key.startswith("rgb.") for key in changed)
    assert not any(key.startswith("rgb.entry") for key in changed)  # the tier before does not speak yet


@pytest.mark.parametrize(
    ("starts", "count"),
    [
        (STARTS, 0),
        (dict.fromkeys(STARTS, "random weights"), 3),
        (dict.fromkeys(STARTS, "ImageNet weights"), 3),
        (dict.fromkeys(STARTS, "weights of a run"), 3),
    ],
)
def test_where_there_is_nothing_to_distil_nothing_changes(starts, count):
    net = network()
    before = weights(net)
    assert distil_starts(net, starts, lambda epoch: [batch()], count, CPU) == starts
    assert all(same(before, net))


def test_the_network_is_left_in_training_with_its_frozen_tiers_at_rest():
    net = network()
    net.open(2)
    net.train()
    distil_starts(net, STARTS, lambda epoch: [batch()], 1, CPU)
    assert not net.tiers[0].training and net.tiers[1].training
    assert all(p.grad is None or not p.requires_grad for p in net.tiers[1].parameters())


def test_the_teachers_moments_are_those_of_all_pixels_of_the_first_batches():
    net = network()
    parts = [batch(4), batch(12)]
    teacher = Teacher(net.tiers[1].rgb, net.normalised, parts, CPU)
    seen = [teacher._features(part.rgb) for part in parts]
    for scale, (mean, deviation) in zip(zip(*seen, strict=True), teacher.moments, strict=True):
        pixels = torch.cat([features.transpose(0, 1).flatten(1) for features in scale], dim=1)
        torch.testing.assert_close(mean.flatten(), pixels.mean(dim=1), rtol=1e-4, atol=1e-5)
        own = pixels.std(dim=1, correction=0)
        torch.testing.assert_close(deviation.flatten(), own.clamp(min=0.5 * own.mean()), rtol=1e-3, atol=1e-4)
