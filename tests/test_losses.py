"""Loss terms against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from models.discriminator import MaskHistory, PatchDiscriminator
from models.losses import AdversarialLoss, l1_loss, overlap_loss, verdict_loss


def test_l1_is_the_mean_absolute_difference():
    predicted, true = torch.tensor([[[[0.25, 1.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    assert l1_loss(predicted, true).item() == pytest.approx(0.125)


def test_overlap_is_one_minus_dice():
    true = torch.zeros(1, 1, 10, 10)
    true[..., :5] = 1
    half = torch.zeros_like(true)
    half[..., :5, :5] = 1  # 25 of the 50 pixels
    assert overlap_loss(half, true).item() == pytest.approx(1 - (2 * 25 + 1) / (25 + 50 + 1))
    assert overlap_loss(true, true).item() == pytest.approx(0.0)


def test_verdict_loss_is_cross_entropy_over_known_labels():
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0], [9.0, 9.0]])
    label, known = torch.tensor([1, 0, -1]), torch.tensor([1.0, 1.0, 0.0])

    def soft(z):
        return math.log1p(math.exp(z))

    expected = ((soft(0) + soft(-2)) + (soft(1) + soft(-1))) / 2
    assert verdict_loss(logits, label, known).item() == pytest.approx(expected, rel=1e-6)


def test_verdict_loss_without_a_known_label_is_zero():
    assert verdict_loss(torch.ones(2, 2), torch.tensor([-1, -1]), torch.zeros(2)).item() == 0.0


def test_adversarial_objectives():
    scores = torch.tensor([[[[0.0, 2.0]]]])
    assert AdversarialLoss("lsgan")(scores, real=True).item() == pytest.approx((1 + 1) / 2)
    assert AdversarialLoss("lsgan")(scores, real=False).item() == pytest.approx((0 + 4) / 2)
    expected = (math.log(2) + math.log1p(math.exp(-2))) / 2
    assert AdversarialLoss("vanilla")(scores, real=True).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="hinge"):
        AdversarialLoss("hinge")


def test_the_discriminator_judges_patches_of_smear_and_mask():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    rgb, mask = torch.rand(1, 3, 128, 128), torch.rand(1, 1, 128, 128)
    scores = judge(rgb, mask)
    assert scores.shape[1] == 1 and scores.shape[-1] > 1
    assert not torch.allclose(scores, judge(rgb, 1 - mask)), "the mask must count"
    assert not torch.allclose(scores, judge(1 - rgb, mask)), "the condition must count"


def numbered(first, count):
    """Pairs whose every pixel names them, in steps that bytes can hold."""
    values = torch.arange(first, first + count).float() / 255
    return values.view(-1, 1, 1, 1).expand(-1, 3, 4, 4), values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def names(mask):
    return [round(v) for v in (mask[:, 0, 0, 0] * 255).tolist()]


def test_history_of_size_zero_returns_what_it_is_given():
    rgb, mask = numbered(1, 3)
    old_rgb, old_mask = MaskHistory(0).exchange(rgb, mask)
    assert old_rgb is rgb and old_mask is mask


def test_history_shows_earlier_masks_about_half_the_time_and_never_loses_one():
    history, seen = MaskHistory(8, seed=3), []
    for first in range(1, 201, 4):
        rgb, mask = numbered(first, 4)
        old_rgb, old_mask = history.exchange(rgb, mask)
        assert torch.equal(old_rgb[:, :1], old_mask), "smear and mask of a pair stay together"
        seen.append((first, names(old_mask)))
    filled = [given for first, given in seen if first <= 8]
    assert filled == [[1, 2, 3, 4], [5, 6, 7, 8]], "while it fills, it gives back what comes"
    later = [(first, name) for first, given in seen for name in given if first > 8]
    earlier = sum(name < first for first, name in later)
    assert 0.35 < earlier / len(later) < 0.65
    shown = [name for _, given in seen for name in given]
    kept = names(history.pairs[:, 3:].float() / 255)
    assert sorted(set(shown) | set(kept)) == list(range(1, 201))


def test_history_goes_on_from_its_state():
    def feed(history, start):
        return [names(history.exchange(*numbered(first, 4))[1]) for first in range(start, start + 40, 4)]

    whole = MaskHistory(6, seed=1)
    feed(whole, 1)
    other = MaskHistory(6, seed=99)
    other.load_state(whole.state(), torch.device("cpu"))
    other.pairs = other.pairs.clone()
    assert feed(other, 101) == feed(whole, 101)
