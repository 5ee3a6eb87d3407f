"""How voices are weighed: none that only adds noise counts, confidence is taken back, few images change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from models.voices import FEWEST_IMAGES, weigh_voices


def made(count=400, seed=0):
    """Labels and four voices: the second knows most, the third nothing, the first and the fourth something."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, count)
    told = np.array([1.0, 3.0, 0.0, 1.0])
    return np.where(label > 0, 1.0, -1.0)[:, None] * told + rng.normal(0, 2.0, (count, 4)), label


def loss(logit, label):
    return np.logaddexp(0.0, np.where(label > 0, -logit, logit)).mean()


def test_the_voice_that_knows_most_weighs_most_and_noise_little():
    voices, label = made()
    weights = weigh_voices(voices, label, 3, fusion=True)
    assert weights[3].argmax() == 1 and weights[2].argmax() == 1
    assert weights[2, 2] < 0.1 * weights[2, 1]
    assert (weights >= 0).all()


def test_a_verdict_is_hardly_worse_than_the_one_before_on_the_images_it_was_weighed_on():
    voices, label = made()
    verdicts = voices @ weigh_voices(voices, label, 3, fusion=True).T
    losses = [loss(verdicts[:, k], label) for k in range(4)]
    assert losses[1] < losses[0] and losses[2] < losses[1] + 0.01 and losses[3] < losses[2] + 0.01


def test_the_weights_are_where_the_penalised_loss_is_least():
    """Against a search of a grid."""
    voices, label = made(60)
    found = weigh_voices(voices, label, 2, fusion=False)[1, :2]

    def objective(a, b):
        return len(label) * loss(voices[:, :2] @ [a, b], label) + 1.0 * ((2 * a - 1) ** 2 + (2 * b - 1) ** 2) / 2

    grid = np.linspace(0, 2, 201)
    values = np.array([[objective(a, b) for b in grid] for a in grid])
    best = np.unravel_index(values.argmin(), values.shape)
    assert found == pytest.approx([grid[best[0]], grid[best[1]]], abs=0.01)


def test_confidence_that_the_images_do_not_bear_out_is_taken_back():
    voices, label = made()
    timid = weigh_voices(voices, label, 3, fusion=True)
    sure = weigh_voices(20 * voices, label, 3, fusion=True)
    assert sure[3].sum() < 0.2 * timid[3].sum()


def test_unlabelled_images_do_not_count():
    voices, label = made(100)
    more = np.concatenate([voices, np.full((50, 4), 9.0)])
    unknown = np.concatenate([label, np.full(50, -1)])
    assert weigh_voices(more, unknown, 3, fusion=True) == pytest.approx(weigh_voices(voices, label, 3, fusion=True))


@pytest.mark.parametrize("label", [np.arange(FEWEST_IMAGES - 1) % 2, np.zeros(40, int), np.full(40, -1), np.zeros(0)])
def test_with_too_little_to_go_by_every_voice_weighs_the_same(label):
    voices, _ = made(len(label))
    weights = weigh_voices(voices, label, 3, fusion=True)
    assert weights == pytest.approx(np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [1 / 3] * 3 + [0], [0.25] * 4]))


def test_a_closed_tier_hears_what_the_last_open_one_hears_and_will_hear_itself():
    voices, label = made()
    voices[:, 1:3] = 0
    weights = weigh_voices(voices, label, 1, fusion=True)
    assert weights[1].tolist() == [weights[0, 0], 1, 0, 0]
    assert weights[2].tolist() == [weights[0, 0], 0, 1, 0]
    assert weights[3, 1] == weights[3, 2] == 1 and weights[3, 3] > 0


def test_without_fusion_the_fourth_voice_is_not_heard():
    voices, label = made()
    assert weigh_voices(voices, label, 3, fusion=False)[3, 3] == 0


def test_voices_that_all_mislead_keep_their_ranking_with_next_to_no_confidence():
    voices, label = made()
    weights = weigh_voices(-np.abs(voices) * np.where(label > 0, 1, -1)[:, None], label, 3, fusion=True)
    assert 0 < weights[3].sum() < 0.01 and (weights[3] > 0).all()
