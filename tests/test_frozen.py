"""Frozen features: nothing of the backbone moves, the line is the one scikit-learn draws, and it reads what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from models.backbones import THIN, EfficientNetPyramid
from models.frozen import STRENGTH, FrozenBackbone, fit_head
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
