"""Frozen features: nothing of the backbone moves, the line is the one scikit-learn draws, and it reads what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models.backbones import THIN, EfficientNetPyramid
from models.frozen import (
    FEATURES,
    LARGEST,
    LINE,
    STRENGTH,
    FrozenBackbone,
    FrozenLine,
    fit_head,
    frozen_chances,
    frozen_lite0,
    learn_line,
)
from models.inference import predict, see_none
from models.network import Architecture
from tests.test_lone import batch
from util.errors import UserError

CPU = torch.device("cpu")


def frozen():
    torch.manual_seed(0)
    network = FrozenBackbone(EfficientNetPyramid(3, THIN), Architecture("small", 64, 0.5))
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):  # not a new one's, so that batch statistics taken in are seen
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return network


def test_the_backbone_stays_as_it_is_and_the_line_tells_the_classes():
    network = frozen()
    before = {name: tensor.clone() for name, tensor in network.rgb.state_dict().items()}
    fit_head(network, [[batch()], [batch()]], CPU)
    for name, tensor in network.rgb.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    (said,) = predict(network, [batch()], CPU, see_none, views=2)
    assert ((said.logits[:, 3] > 0) == (batch().label > 0)).float().mean() >= 0.9


def test_the_verdict_is_logistic_regression_on_standardised_means_at_strides_4_to_16():
    network, one = frozen(), batch()
    fit_head(network, [[one]], CPU)
    with torch.no_grad():
        pyramid = network.rgb((one.rgb - network.mean) / network.std)
        said = network(one.rgb, one.mask, one.has_mask).logits
    assert [64 // scale.shape[-1] for scale in pyramid] == [4, 8, 16, 32]
    means = torch.cat([scale.mean(dim=(2, 3)) for scale in pyramid[:3]], dim=1).double().numpy()
    standard = (means - means.mean(axis=0)) / means.std(axis=0)
    line = LogisticRegression(C=STRENGTH, max_iter=1000).fit(standard, one.label.numpy())
    np.testing.assert_allclose(said[:, 0], line.decision_function(standard), atol=1e-4)
    assert torch.equal(said, said[:, :1].expand(-1, 4))


def test_images_without_a_label_teach_nothing():
    whole, part, unknown = frozen(), frozen(), batch()
    unknown.label = torch.full_like(unknown.label, -1)
    fit_head(whole, [[batch()]], CPU)
    fit_head(part, [[batch(), unknown]], CPU)
    assert torch.equal(whole.head.weight, part.head.weight) and whole.head.weight.abs().max() > 0


@pytest.mark.parametrize("label", [None, -1, 1])
def test_one_class_or_none_is_an_error_that_says_so(label):
    one = batch()
    one.label = torch.full_like(one.label, label or 0)
    with pytest.raises(UserError, match="training images of both"):
        fit_head(frozen(), [[one]] if label is not None else [], CPU)


# --- the line that a run keeps ---------------------------------------------------------------------------------------


def test_a_run_s_line_says_afterwards_what_it_said_when_it_was_fitted(tmp_path):
    unlabelled = batch(4)
    unlabelled.label = torch.full_like(unlabelled.label, -1)
    line = learn_line(tmp_path, [batch(), unlabelled], 64, CPU, count=2)
    kept = LINE.read(tmp_path)
    assert kept.images == line.images == 16 and kept.bias == line.bias and kept.backbone == line.backbone
    assert np.array_equal(kept.weight, line.weight) and kept.weight.dtype == np.float32 and kept.weight.any()
    network = fit_head(frozen_lite0(64), [[batch()]], CPU)  # not folded
    with torch.no_grad():
        expected = torch.sigmoid(torch.cat([network.head(network.features(one.rgb)) for one in (batch(), batch(6))]))
    found = frozen_chances(kept, [batch(), batch(6)], 64, CPU)
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-4)
    assert found.shape == (22,) and ((found[:16] > 0.5) == (batch().label > 0).numpy()).mean() > 0.9


def test_larger_images_and_more_views_are_looked_at_as_the_network_looks_at_them(tmp_path):
    line = learn_line(tmp_path, [batch()], 64, CPU)
    network = fit_head(frozen_lite0(64), [[batch()]], CPU)
    large = batch(4, size=96)
    corners = [large.rgb[..., y : y + 64, x : x + 64] for y in (0, 32) for x in (0, 32)]
    looks = [[part, part.flip(3)] for part in corners]
    with torch.no_grad():
        one, two = (
            torch.stack([network.head(network.features(x))[:, 0] for look in looks for x in look[:views]]).mean(0)
            for views in (1, 2)
        )
    np.testing.assert_allclose(frozen_chances(line, [large], 64, CPU), torch.sigmoid(one), atol=1e-4)
    np.testing.assert_allclose(frozen_chances(line, [large], 64, CPU, views=2), torch.sigmoid(two), atol=1e-4)
    assert not torch.allclose(one, two, atol=1e-3)


def test_without_a_line_or_through_other_weights_there_is_no_verdict(tmp_path):
    line = learn_line(tmp_path, [batch()], 64, CPU)
    assert frozen_chances(None, [batch()], 64, CPU) is None
    assert frozen_chances(line._replace(backbone="0" * 64), [batch()], 64, CPU) is None


@pytest.mark.parametrize("damaged", [False, True])
def test_without_imagenet_weights_no_line_is_drawn_and_none_of_before_is_left(tmp_path, monkeypatch, capsys, damaged):
    learn_line(tmp_path, [batch()], 64, CPU)

    def none(tier):
        if damaged:
            raise UserError("weights.safetensors does not hold the weights")

    monkeypatch.setattr("models.frozen.packaged_backbone", none)
    assert learn_line(tmp_path, [batch()], 64, CPU) is None and LINE.read(tmp_path) is None
    said = capsys.readouterr().err
    assert "no baseline of frozen features" in said and ("does not hold the weights" in said) == damaged


@pytest.mark.parametrize(
    "changed",
    [
        {"weight": np.full(FEATURES, np.nan, np.float32)},
        {"weight": np.full(FEATURES, 3e38, np.float32)},
        {"weight": np.full(FEATURES, 1e300)},
        {"weight": np.ones((FEATURES, 1), np.float32)},
        {"weight": np.ones(FEATURES - 1, np.float32)},
        {"weight": np.array(["a"] * FEATURES)},
        {"bias": np.inf},
        {"bias": -1e300},
        {"bias": np.longdouble("1e4000")},
        {"bias": np.ones(2)},
        {"images": "many"},
        {"backbone": ["a", "b"]},
        {"backbone": 7},
    ],
)
def test_a_file_that_holds_no_line_is_named(tmp_path, changed):
    sound = FrozenLine(np.ones(FEATURES, np.float32), 0.5, "0" * 64, 7)
    LINE.write(tmp_path, sound)
    assert LINE.read(tmp_path)._replace(weight=None) == sound._replace(weight=None)
    LINE.write(tmp_path, sound._replace(**changed))
    with pytest.raises(UserError, match=LINE.name) as caught:
        LINE.read(tmp_path)
    assert "frozen baseline" in caught.value.remedy


def test_the_largest_line_that_a_file_may_hold_gives_probabilities(tmp_path):
    line = learn_line(tmp_path, [batch()], 64, CPU)
    assert frozen_lite0(64).head.in_features == FEATURES
    for sign in (-1, 1):
        LINE.write(tmp_path, line._replace(weight=np.full(FEATURES, sign * LARGEST, np.float32), bias=LARGEST))
        chances = frozen_chances(LINE.read(tmp_path), [batch()], 64, CPU)
        assert np.isfinite(chances).all() and (chances >= 0).all() and (chances <= 1).all()
