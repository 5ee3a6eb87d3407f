"""Shapes of the three tiers, what opening and freezing do, and that a tier begins as the one before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.backbones import STANDARD, DenseNetPyramid, EfficientNetPyramid, ShuffleNetPyramid
from models.compiling import compile_pieces
from models.network import HEAD_KEYS, Architecture, ThreeTierDCFNet, tier_sizes


def build(preset="small", fine_size=96, open_tiers=3, **parts):
    torch.manual_seed(0)
    network = ThreeTierDCFNet(Architecture(preset, fine_size, 0.0, **parts))
    network.open(open_tiers)
    return network


def batch(size=96, count=2):
    generator = torch.Generator().manual_seed(1)
    rgb = torch.rand(count, 3, size, size, generator=generator)
    mask = (torch.rand(count, 1, size, size, generator=generator) > 0.5).float()
    return rgb, mask, torch.zeros(count, dtype=torch.bool)


@pytest.mark.parametrize("preset", ["small", "lite", "full"])
def test_the_published_shapes_at_300(preset):
    network = build(preset, 300).eval()
    with torch.no_grad():
        output = network(*batch(300, 1))
    assert [tuple(m.shape) for m in output.maps] == [(1, 64, 200, 200), (1, 128, 100, 100), (1, 256, 10, 10)]
    assert tuple(output.mask_logit.shape) == (1, 1, 300, 300)
    assert tuple(output.logits.shape) == (1, len(HEAD_KEYS))


@pytest.mark.parametrize("size", [64, 128, 224, 301])
def test_other_sizes_scale(size):
    network = build(fine_size=size).eval()
    with torch.no_grad():
        output = network(*batch(size, 1))
    sides = (round(2 * size / 3), round(size / 3), -(-size // 32))
    assert tier_sizes(size) == sides
    assert [tuple(m.shape[1:]) for m in output.maps] == [(c, s, s) for c, s in zip((64, 128, 256), sides, strict=True)]
    assert tuple(output.mask_logit.shape[-2:]) == (size, size)


def test_the_standard_backbones_are_the_published_networks():
    """Same tensors under the same names as timm's and torchvision's own, and the same last features."""
    import timm
    from torchvision.models import shufflenet_v2_x1_0

    image = torch.rand(1, 3, 96, 96)
    for pyramid, reference in (
        (DenseNetPyramid(3, STANDARD), timm.create_model("densenet121", pretrained=False)),
        (EfficientNetPyramid(3, STANDARD), timm.create_model("tf_efficientnet_lite0", pretrained=False)),
    ):
        own, theirs = pyramid.state_dict(), reference.state_dict()
        assert set(theirs) - set(own) == {"classifier.weight", "classifier.bias"}
        pyramid.load_state_dict({key: theirs[key] for key in own})
        with torch.no_grad():
            expected = reference.eval().forward_features(image)
            torch.testing.assert_close(pyramid.eval()(image)[-1], expected, atol=1e-4, rtol=1e-4)
    shuffle, reference = ShuffleNetPyramid(3, STANDARD).eval(), shufflenet_v2_x1_0().eval()
    theirs = reference.state_dict()
    own = shuffle.state_dict()
    shuffle.load_state_dict({key: theirs[_torchvision_name(key)] for key in own})
    with torch.no_grad():
        expected = reference.fc(shuffle(image)[-1].mean(dim=(2, 3)))
        torch.testing.assert_close(expected, reference(image))


def _torchvision_name(key):
    for index, stage in enumerate(("stage2", "stage3", "stage4")):
        if key.startswith(f"stages.{index}."):
            return key.replace(f"stages.{index}", stage, 1)
    return key


def test_a_newly_opened_tier_says_what_the_tier_before_says():
    network = build(open_tiers=1).eval()
    torch.nn.init.normal_(network.tiers[0].head.weight)
    inputs = batch()
    with torch.no_grad():
        one = network(*inputs).logits
        network.open(3)
        network.eval()
        three = network(*inputs).logits
    assert one.abs().max() > 1e-3
    torch.testing.assert_close(three[:, 0], one[:, 0])
    torch.testing.assert_close(three[:, 1], one[:, 0])
    torch.testing.assert_close(three[:, 2], one[:, 0])
    torch.testing.assert_close(three[:, 3], one[:, 0])


def test_a_closed_tier_repeats_the_one_before():
    network = build(open_tiers=2).eval()
    for tier in network.tiers:
        torch.nn.init.normal_(tier.head.weight)
    with torch.no_grad():
        logits = network(*batch()).logits
    assert not torch.allclose(logits[:, 0], logits[:, 1])
    assert torch.equal(logits[:, 1], logits[:, 2])


def test_earlier_tiers_are_frozen_and_the_open_one_learns():
    network = build(open_tiers=2)
    for tier in network.tiers:
        torch.nn.init.normal_(tier.head.weight)
    network.train()
    before = {k: v.clone() for k, v in network.tiers[0].state_dict().items()}
    output = network(*batch())
    (output.logits.sum() + output.mask_logit.mean()).backward()
    assert all(p.grad is None for p in network.tiers[0].parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.tiers[1].rgb.parameters())
    assert all(p.grad is None for p in network.tiers[2].parameters())
    assert any(p.grad.abs().sum() > 0 for p in network.decoder.parameters())
    for key, value in network.tiers[0].state_dict().items():  # batch statistics too
        assert torch.equal(value, before[key]), key


def test_a_tier_begins_as_its_rgb_backbone_alone():
    """Neither the mask nor the map of the tier before counts until its projection has learned."""
    network = build(open_tiers=3).eval()
    for tier in network.tiers:
        torch.nn.init.normal_(tier.head.weight)
    image, mask, see = batch()
    with torch.no_grad():
        one = network(image, mask, ~see).logits
        other = network(image, 1 - mask, ~see).logits
        for index, channels in ((1, 64), (2, 128)):
            backbone = network.tiers[index].rgb
            alone, chained = backbone(image, None), backbone(image, torch.rand(2, channels, 20, 20))
            assert all(torch.equal(a, c) for a, c in zip(alone, chained, strict=True))
    assert torch.equal(one, other)


def test_the_map_of_the_tier_before_enters_the_next():
    """Its projection starts at zero, so it must matter once it is not zero, and not before."""
    network = build(open_tiers=2).eval()
    torch.nn.init.normal_(network.tiers[1].head.weight)
    image, mask, see = batch()
    with torch.no_grad():
        start = network(image, mask, see).logits[:, 1]
        torch.nn.init.normal_(network.tiers[1].rgb.entry.project.weight)
        entered = network(image, mask, see).logits[:, 1]
    assert not torch.allclose(start, entered)


def test_the_binary_stream_sees_the_given_or_the_predicted_mask():
    network = build(open_tiers=1).eval()
    torch.nn.init.normal_(network.tiers[0].head.weight)
    torch.nn.init.normal_(network.tiers[0].enter_binary.weight)
    image, mask, _ = batch()
    see = torch.tensor([True, False])
    with torch.no_grad():
        given = network(image, mask, see).logits[:, 0]
        changed = network(image, 1 - mask, see).logits[:, 0]
        predicted = network(image, mask, ~see).mask_logit.sigmoid()
        as_predicted = network(image, predicted, torch.tensor([True, True])).logits[:, 0]
    assert not torch.isclose(given[0], changed[0])
    assert torch.isclose(given[1], changed[1])
    torch.testing.assert_close(as_predicted[1], given[1])


def test_a_network_without_a_decoder_sees_the_given_mask_only():
    network = build(open_tiers=1).eval()
    torch.nn.init.normal_(network.tiers[0].head.weight)
    torch.nn.init.normal_(network.tiers[0].enter_binary.weight)
    network.rest_decoder()
    image, mask, see = batch()
    with torch.no_grad():
        output = network(image, mask, see)
        other = network(image, 1 - mask, see)
    assert torch.equal(output.mask_logit, torch.zeros_like(mask))
    assert not torch.allclose(output.logits[:, 0], other.logits[:, 0])


def test_the_verdict_does_not_depend_on_the_other_images_of_the_batch():
    network = build().eval()
    for tier in network.tiers:
        torch.nn.init.normal_(tier.head.weight)
    image, mask, see = batch(count=3)
    with torch.no_grad():
        together = network(image, mask, see).logits
        alone = network(image[1:2], mask[1:2], see[1:2]).logits
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def loud(network):
    """Every head says something."""
    for head in (*(tier.head for tier in network.tiers), network.fusion_head):
        torch.nn.init.normal_(head.weight)
    return network


def test_a_verdict_is_the_weighted_sum_of_the_voices_it_hears():
    network = loud(build()).eval()
    network.weights.copy_(torch.tensor([[2.0, 0, 0, 0], [0.5, 1, 0, 0], [0.2, 0.3, 0.4, 0], [1, 0, 0, 3]]))
    with torch.no_grad():
        output = network(*batch())
    tiers = torch.stack([tier.voice for tier in output.tiers], dim=1)
    assert torch.equal(output.voices[:, :3], tiers)
    torch.testing.assert_close(output.logits[:, 0], 2 * tiers[:, 0])
    torch.testing.assert_close(output.logits[:, 1], 0.5 * tiers[:, 0] + tiers[:, 1])
    torch.testing.assert_close(output.logits[:, 2], tiers @ torch.tensor([0.2, 0.3, 0.4]))
    torch.testing.assert_close(output.logits[:, 3], tiers[:, 0] + 3 * output.voices[:, 3])


def test_the_fused_features_of_every_tier_reach_global():
    network = build().eval()
    torch.nn.init.normal_(network.fusion_head.weight)
    with torch.no_grad():
        output = network(*batch())
        pooled = torch.cat([tier.pooled for tier in output.tiers], dim=1)
    torch.testing.assert_close(output.voices[:, 3], network.fusion_head(pooled).squeeze(1))
    assert output.voices[:, :3].abs().max() == 0


def test_without_fusion_global_is_the_last_tiers_verdict():
    network = loud(build(fusion=False)).eval()
    with torch.no_grad():
        output = network(*batch())
    assert torch.equal(output.logits[:, 3], output.logits[:, 2])
    assert output.voices[:, 3].abs().max() == 0
    assert network.learning_voices == [2]


def test_without_a_binary_stream_the_masks_do_not_count():
    with_it, without = loud(build()).eval(), loud(build(binary_stream=False)).eval()
    assert sum(p.numel() for p in without.parameters()) < sum(p.numel() for p in with_it.parameters())
    for tier in with_it.tiers:
        torch.nn.init.normal_(tier.enter_binary.weight)
    image, mask, see = batch()
    with torch.no_grad():
        assert not torch.equal(with_it(image, mask, ~see).logits, with_it(image, 1 - mask, ~see).logits)
        assert torch.equal(without(image, mask, ~see).logits, without(image, 1 - mask, ~see).logits)


@pytest.mark.parametrize(
    ("opened", "tuned", "fusion", "expected"),
    [(1, False, True, [0, 3]), (3, False, True, [2, 3]), (3, True, True, [0, 1, 2, 3]), (2, True, False, [0, 1])],
)
def test_which_voices_learn(opened, tuned, fusion, expected):
    network = build(fusion=fusion)
    network.tunes_earlier = tuned
    network.open(opened)
    assert network.learning_voices == expected


def test_handing_on_features_before_they_are_resized_changes_nothing():
    """A tier's entry projects, then resizes to the published map's size; the map itself, projected, is the same."""
    network = ThreeTierDCFNet(Architecture("small", 96))
    network.open(3)
    network.eval()
    for tier in network.tiers[1:]:
        nn.init.normal_(tier.rgb.entry.project.weight, 0, 0.1)
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        outputs = network(image, torch.zeros(2, 1, 96, 96), torch.zeros(2, dtype=torch.bool)).tiers
        for tier, before in zip(network.tiers[1:], outputs, strict=False):
            by_map = tier.rgb(image, before.map)
            for found, expected in zip(tier.rgb(image, before.fused, before.size), by_map, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(tier.rgb(image)[0], by_map[0], atol=1e-3)


def test_compiled_pieces_keep_their_names_and_are_not_compiled_in_copies(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda call: call)  # the real one takes minutes
    network = build(fine_size=64)
    names = list(network.state_dict())
    compile_pieces(network)
    assert "4 pieces are compiled" in capsys.readouterr().err
    compiled = [module for module in network.modules() if module._compiled_call_impl is not None]
    assert compiled == [*(tier.rgb for tier in network.tiers), network.decoder]
    assert list(network.state_dict()) == names
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(network).modules())


def test_a_decoder_that_draws_nothing_is_not_compiled(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda call: call)
    network = build(fine_size=64)
    network.rest_decoder()
    compile_pieces(network)
    assert "3 pieces are compiled" in capsys.readouterr().err
