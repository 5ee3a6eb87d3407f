"""Colour statistics and the classifier that sees nothing else."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import skew

from data.colour import (
    ColourBaseline,
    colour_statistics,
    cross_validated,
    feature_names,
    held_out,
)
from util.errors import UserError

# scikit-learn's threads warn where pytest has emptied the list of warning filters
pytestmark = pytest.mark.filterwarnings("ignore:.sklearn.utils.parallel.delayed:UserWarning")


def named(rgb):
    return dict(zip(feature_names(), colour_statistics(rgb).tolist(), strict=True))


@pytest.fixture
def two_tone(rng):
    """A light plane with a dark square: 20 x 30 pixels of 60 x 80, with noise."""
    rgb = rng.normal((220, 210, 230), 4, (60, 80, 3))
    rgb[10:30, 20:50] = rng.normal((150, 90, 160), 6, (20, 30, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8)


def test_statistics_are_those_of_numpy_and_scipy(two_tone):
    inside = np.zeros((60, 80), bool)
    inside[10:30, 20:50] = True
    found = named(two_tone)
    regions = {"all": inside | True, "foreground": inside, "background": ~inside}
    for region, where in regions.items():
        for channel, name in enumerate(("red", "green", "blue")):
            levels = two_tone[..., channel][where].astype(float)
            density = -np.log10((levels + 1) / 256)
            assert found[f"mean level {name} {region}"] == pytest.approx(levels.mean() / 255, abs=1e-6)
            assert found[f"sd level {name} {region}"] == pytest.approx(levels.std() / 255, abs=1e-6)
            assert found[f"skew level {name} {region}"] == pytest.approx(skew(levels), abs=1e-4)
            assert found[f"mean density {name} {region}"] == pytest.approx(density.mean(), abs=1e-6)
            assert found[f"sd density {name} {region}"] == pytest.approx(density.std(), abs=1e-6)
            assert found[f"skew density {name} {region}"] == pytest.approx(skew(density), abs=1e-4)
            expected = np.percentile(levels, 25, method="inverted_cdf") / 255
            assert found[f"percentile 25 level {name} {region}"] == pytest.approx(expected, abs=1e-6)


def test_the_histogram_counts_colours(two_tone):
    found = named(two_tone)
    shares = [value for name, value in found.items() if name.startswith("share")]
    assert sum(shares) == pytest.approx(1)
    cells = (two_tone // 64).reshape(-1, 3)
    assert found["share of colour 333"] == pytest.approx((cells == 3).all(axis=1).mean())


def test_no_shape_enters(two_tone, rng):
    shuffled = rng.permutation(two_tone.reshape(-1, 3)).reshape(two_tone.shape)
    assert np.allclose(colour_statistics(two_tone), colour_statistics(shuffled), atol=1e-6)


@pytest.mark.parametrize("level", [0, 7, 255])
def test_one_colour_and_one_pixel_are_described(level):
    for shape in ((1, 1, 3), (9, 5, 3)):
        statistics = colour_statistics(np.full(shape, level, np.uint8))
        assert statistics.shape == (len(feature_names()),) and statistics.dtype == np.float32
        assert np.isfinite(statistics).all()


def test_other_arrays_are_refused():
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            colour_statistics(wrong)


def test_large_images_are_subsampled(rng):
    large = np.repeat(np.repeat(rng.integers(0, 256, (100, 100, 3), np.uint8), 20, axis=0), 20, axis=1)
    began = time.perf_counter()
    found = colour_statistics(large)
    assert time.perf_counter() - began < 0.25
    small = colour_statistics(np.ascontiguousarray(large[::20, ::20]))
    assert np.abs(found - small).max() < 0.05


def coloured(rng, count, shift):
    """Features of ``count`` images in groups of four; the classes differ in the first feature by ``shift``."""
    labels = np.arange(count) // 4 % 2
    features = rng.normal(size=(count, 6)).astype(np.float32)
    features[:, 0] += shift * labels
    return features, labels, [f"g{index // 4}" for index in range(count)]


def test_a_difference_of_colour_is_found_and_none_is_not(rng):
    features, labels, groups = coloured(rng, 160, 3.0)
    assert cross_validated(features, labels, groups, trees=40).metrics["auroc"] > 0.9
    features, labels, groups = coloured(rng, 160, 0.0)
    assert 0.3 < cross_validated(features, labels, groups, trees=40).metrics["auroc"] < 0.7


def test_no_group_helps_to_judge_itself(rng):
    """Images of a group are alike and the class is drawn by group: only who parts groups could tell the classes."""
    labels = np.repeat(rng.permutation([0, 1] * 15), 8)
    centres = rng.normal(size=(30, 5)) * 5
    features = np.repeat(centres, 8, axis=0) + rng.normal(size=(240, 5)) * 0.01
    groups = [f"g{index // 8}" for index in range(240)]
    leaked = cross_validated(features, labels, [str(index) for index in range(240)], trees=40)
    assert leaked.metrics["auroc"] > 0.99
    assert cross_validated(features, labels, groups, trees=40).metrics["auroc"] < 0.8


def test_every_image_is_judged_once_and_the_seed_decides(rng):
    features, labels, groups = coloured(rng, 80, 1.0)
    one, two = (cross_validated(features, labels, groups, trees=20, seed=3) for _ in range(2))
    other = cross_validated(features, labels, groups, trees=20, seed=4)
    assert np.array_equal(one.probability, two.probability) and not np.array_equal(one.probability, other.probability)
    assert np.isfinite(one.probability).all() and one.folds == 5
    assert one.metrics["n"] == 80 and one.metrics["n_groups"] == 20 and one.metrics["ci95"]["auroc"]


def test_classes_weigh_the_same(rng):
    """Nine of one class for each of the other at one place: an unweighted forest would never say Anemic there."""
    features = np.zeros((200, 1))
    labels = (np.arange(200) % 10 == 0).astype(int)
    assert ColourBaseline(trees=50).fit(features, labels).predict(features[:1])[0] == pytest.approx(0.5, abs=0.1)


def test_a_forest_is_scored_on_other_images(rng):
    features, labels, groups = coloured(rng, 160, 3.0)
    train, test = np.arange(80), np.arange(80, 160)
    score = held_out(
        features[train], labels[train], features[test], labels[test], [groups[index] for index in test], trees=40
    )
    forest = ColourBaseline(trees=40).fit(features[train], labels[train])
    assert np.array_equal(score.probability, forest.predict(features[test]))
    assert score.metrics["n"] == 80 and score.metrics["auroc"] > 0.9


def test_what_cannot_be_learned_is_refused(rng):
    features, labels, groups = coloured(rng, 40, 1.0)
    with pytest.raises(UserError, match="one class"):
        cross_validated(features, labels * 0, groups)
    with pytest.raises(UserError, match="too few groups of Healthy"):
        cross_validated(features[:24], labels[:24], groups[:24], folds=5)
    with pytest.raises(UserError, match="1 fold"):
        cross_validated(features, labels, groups, folds=1)
    with pytest.raises(ValueError, match="fit first"):
        ColourBaseline().predict(features)


def test_real_smears_are_told_by_colour_less_well_across_blocks(shared_data):
    """The figures of the cleaned AneRBC-I: .94 where groups are kept whole; by blocks of ids it is lower."""
    from data.images import content_digest, read_smear
    from data.readers import read_dataroot
    from data.splits import exclusions, group_ids

    records = read_dataroot(shared_data / "anerbc_326x256", check_sizes=False)
    digests, features = [], np.empty((len(records), len(feature_names())), np.float32)
    for index, record in enumerate(records):
        rgb = read_smear(record)
        digests.append(content_digest(rgb))
        features[index] = colour_statistics(rgb)
    left_out, groups = exclusions(records, digests), group_ids(records, digests)
    kept = [index for index, record in enumerate(records) if record.name not in left_out]
    labels = np.array([records[index].label for index in kept])
    by_group = cross_validated(features[kept], labels, [groups[index] for index in kept], trees=40)
    blocks = [str(int(records[index].image.stem.split("_")[0]) // 50) for index in kept]
    by_block = cross_validated(features[kept], labels, blocks, trees=40)
    assert len(kept) == 589
    assert 0.90 < by_group.metrics["auroc"] < 0.97
    assert by_block.metrics["auroc"] < by_group.metrics["auroc"] - 0.05
