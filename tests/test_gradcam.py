"""Grad-CAM by tier: the maps against sums by hand, which images are shown, the files, and the page's section."""

from __future__ import annotations

import csv
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.runs import load_training_data
from models import gradcam
from models.gradcam import class_activation, look, tier_maps
from models.network import Architecture, ThreeTierDCFNet
from models.testing import TestRun
from options import parse_options
from tests.test_report import Page
from tests.test_stain import CPU, coloured, given, opened
from util.errors import UserError
from util.report import ImageRow, Report, write_report
from util.report_gradcam import GradCams, chosen_images, heat_overlay, named_images
from util.runlog import RunFolder

pytestmark = pytest.mark.filterwarnings("error::UserWarning:captum")
SIDE, LOAD = 64, 80
HOSTILE = "a/<script>alert(1)</script> & \"100%\" 'x'.png"


def network_of(tiers: int, seed: int = 0, *, binary: bool = True) -> ThreeTierDCFNet:
    """A small network with heads that have something to say."""
    torch.manual_seed(seed)
    network = ThreeTierDCFNet(Architecture("small", SIDE, binary_stream=binary)).eval()
    for tier in network.tiers:
        torch.nn.init.normal_(tier.head.weight, std=0.5)
        torch.nn.init.constant_(tier.head.bias, 0.3)
    network.open(tiers)
    return network.eval()


def smear(seed: int = 0, side: int = SIDE) -> torch.Tensor:
    """Noise, brighter at one corner."""
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    image[..., : side // 2, : side // 2] *= 0.3
    return image


def maps_of(network, rgb, label=1):
    return tier_maps(network, rgb, torch.zeros_like(rgb[:, :1]), torch.zeros(1, dtype=torch.bool), label)


def row(name, chance, label_true, **more) -> ImageRow:
    tiers = {"tier1": chance, "tier2": chance, "tier3": chance, "global": chance}
    paths = {"smear": "images/s.webp", "true_mask": None, "predicted_mask": "masks/m.png", "overlay": "images/o.webp"}
    return ImageRow(name, "test", "g", label_true, int(chance > 0.5), more.pop("prob", tiers), None, **paths, **more)


# --- the maps ---------------------------------------------------------------------------------------------------------


def test_a_map_is_the_sum_that_can_be_done_by_hand():
    head = torch.nn.Linear(3, 1)
    with torch.no_grad():
        head.weight[:] = torch.tensor([[2.0, -1.0, 4.0]])
        head.bias[:] = 7.0
    backbone = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]], [[0.0, 5.0], [0.0, 1.0]]]])
    merged = torch.tensor([[[[0.5, 0.0], [1.0, 0.0]]]])
    by_hand = [[2 * 1 + 4 * 0.5, -1 * 5], [4 * 1, 2 * 3 - 1 * 1]]
    for label, sign in ((1, 1), (0, -1)):
        found = class_activation(head, backbone, merged, label, (2, 2))
        np.testing.assert_allclose(found[0, 0], sign * np.array(by_hand), rtol=1e-6)


def test_a_map_is_grad_cam_at_both_maps_laid_side_by_side():
    """The formula of the paper, by autograd, where the coarse map is enlarged to the fine one before the head."""
    head = torch.nn.Linear(5, 1)
    backbone, merged = torch.rand(1, 2, 3, 3), torch.rand(1, 3, 6, 6)
    large = torch.nn.functional.interpolate(backbone, size=(6, 6), mode="bilinear")
    beside = torch.cat([large, merged], dim=1).requires_grad_()
    (slope,) = torch.autograd.grad(head(beside.mean(dim=(2, 3))).sum(), beside)
    expected = (slope.mean(dim=(2, 3), keepdim=True) * beside).sum(dim=1) * 36
    torch.testing.assert_close(class_activation(head, backbone, merged, 1, (6, 6))[:, 0], expected.detach())


@pytest.mark.parametrize("tiers", [1, 2, 3])
def test_maps_add_up_to_the_voice_of_each_open_tier(tiers, monkeypatch):
    network, rgb = network_of(tiers), smear()
    signed = []
    whole = gradcam.class_activation

    def kept(head, backbone, merged, label, size):  # at a size that is a multiple of all, so that means stay
        signed.append((head.bias.item(), whole(head, backbone, merged, label, (256, 256)).mean().item()))
        return whole(head, backbone, merged, label, size)

    monkeypatch.setattr(gradcam, "class_activation", kept)
    found = maps_of(network, rgb)
    with torch.no_grad():
        voices = network(rgb, torch.zeros(1, 1, SIDE, SIDE), torch.zeros(1, dtype=torch.bool)).voices[0]
    assert len(found) == len(signed) == tiers
    for tier, (bias, mean), voice in zip(found, signed, voices.tolist(), strict=False):
        assert tier.voice == pytest.approx(voice, abs=1e-5)
        assert mean + bias == pytest.approx(voice, rel=0.01, abs=0.01)
        assert tier.heat.shape == (SIDE, SIDE)
        assert tier.heat.min() >= 0
    assert len({round(tier.voice, 4) for tier in found}) == tiers  # each tier's own


def test_the_other_class_has_the_other_places():
    network, rgb = network_of(3), smear()
    for anemic, healthy in zip(maps_of(network, rgb, 1), maps_of(network, rgb, 0), strict=True):
        assert (anemic.heat * healthy.heat).max() == 0
        assert anemic.heat.max() + healthy.heat.max() > 0


def test_a_map_turns_with_weights_drawn_anew():
    """Sanity check of Adebayo et al. (NeurIPS 2018): a map that outlives the weights shows the image alone."""
    rgb, network = smear(), network_of(3)
    before = maps_of(network, rgb)
    again = maps_of(network, rgb)
    for module in network.tiers.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=module.weight.std().item() or 0.1)
    after = maps_of(network, rgb)
    for old, same, new in zip(before, again, after, strict=True):
        np.testing.assert_array_equal(old.heat, same.heat)
        alike = np.corrcoef(old.heat.ravel(), new.heat.ravel())[0, 1]
        assert not alike > 0.9, alike  # NaN where one is empty


def test_only_the_tier_s_own_head_turns_its_map():
    rgb, network = smear(), network_of(3)
    before = maps_of(network, rgb)
    with torch.no_grad():
        network.tiers[1].head.weight.neg_()
    after = maps_of(network, rgb)
    assert [np.array_equal(a.heat, b.heat) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_a_larger_image_is_covered_by_its_crops():
    network, rgb = network_of(1), smear(side=LOAD)
    (found,) = maps_of(network, rgb)
    assert found.heat.shape == (LOAD, LOAD)
    (corner,) = maps_of(network, rgb[..., :SIDE, :SIDE].clone())
    alone = LOAD - SIDE  # what no other crop covers
    np.testing.assert_allclose(found.heat[:alone, :alone], corner.heat[:alone, :alone], rtol=1e-4, atol=1e-5)
    offsets = [(top, left) for top in (0, alone) for left in (0, alone)]
    crops = [signed(network, rgb[..., top : top + SIDE, left : left + SIDE].clone()) for top, left in offsets]
    middle = [
        crop[alone - top : SIDE - top, alone - left : SIDE - left]
        for crop, (top, left) in zip(crops, offsets, strict=True)
    ]
    whole = signed(network, rgb)[alone:SIDE, alone:SIDE]  # what all four cover: their mean
    np.testing.assert_allclose(whole, np.mean(middle, axis=0), rtol=1e-3, atol=1e-4)


def signed(network, rgb) -> np.ndarray:
    """Tier-I's map before its ReLU: what speaks for Anemic less what speaks for Healthy."""
    (anemic,), (healthy,) = maps_of(network, rgb, 1), maps_of(network, rgb, 0)
    return anemic.heat - healthy.heat


def test_the_network_stays_as_it_was():
    network, rgb = network_of(2), smear()
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    drawn = torch.get_rng_state()
    maps_of(network, rgb)
    assert torch.equal(drawn, torch.get_rng_state())
    assert [parameter.requires_grad for parameter in network.parameters()] == wanted
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


# --- which images -----------------------------------------------------------------------------------------------------


def judged(*of: tuple[float, int | None]) -> list[ImageRow]:
    return [row(f"{index}.png", chance, label) for index, (chance, label) in enumerate(of)]


def test_half_are_the_most_confidently_wrong_the_others_right_ones_of_each_class():
    wrong = [(0.6, 0), (0.99, 0), (0.3, 1), (0.05, 1)]
    right = [(0.01 * k, 0) for k in range(1, 11)] + [(1 - 0.01 * k, 1) for k in range(1, 5)]
    rows = judged(*wrong, *right)
    assert chosen_images("4", rows) == [1, 3, 9, 16]  # of the right ones those in the middle
    assert chosen_images("8", rows) == [1, 3, 2, 0, 6, 11, 15, 17]
    assert chosen_images("0", rows) == []
    assert chosen_images("1", rows) == [1]
    assert sorted(chosen_images("99", rows)) == list(range(18))


def test_what_one_kind_cannot_fill_goes_to_the_others():
    assert sorted(chosen_images("4", judged((0.9, 1), (0.8, 1), (0.7, 1), (0.6, 1), (0.95, 1)))) == [0, 2, 3, 4]
    assert sorted(chosen_images("3", judged((0.9, 0), (0.8, 0), (0.7, 0), (0.6, 0)))) == [0, 1, 2]
    assert sorted(chosen_images("4", judged(*[(0.9, None)] * 5, *[(0.1, None)] * 5))) == [1, 3, 6, 8]
    assert chosen_images("4", []) == []


def test_images_are_named_whole_or_by_their_last_part():
    names = ["a/1.png", "b/1.png", "b/2.png", "3.png"]
    assert named_images("5", names) is None
    assert named_images("2.png, a/1.png,2.png", names) == [2, 0]
    assert chosen_images("3.png", [row(name, 0.9, 1) for name in names]) == [3]
    for wrong in ("1.png", "4.png", "ng"):
        with pytest.raises(UserError, match="names no single test image"):
            named_images(wrong, names)


@pytest.mark.parametrize("wrong", ["-1", "", " , "])
def test_a_bad_option_is_refused(wrong):
    with pytest.raises(UserError, match="--gradcam"):
        parse_options("test", ["--dataroot", "d", f"--gradcam={wrong}"], prog="x", description="")


# --- the files and the page -------------------------------------------------------------------------------------------


def looked(tmp_path, tiers=2, names=(HOSTILE, "b.png"), prob=None) -> GradCams:
    rows = [row(name, 0.9, 0, **({"prob": prob} if prob else {})) for name in names]
    batch = SimpleNamespace(
        rgb=torch.cat([smear(k) for k in range(len(rows))]),
        mask=torch.zeros(len(rows), 1, SIDE, SIDE),
        index=torch.arange(len(rows)),
    )
    pixels = np.full((50, 90, 3), 200, np.uint8)
    sees = lambda batch: torch.zeros(len(batch.rgb), dtype=torch.bool)  # noqa: E731
    chosen = list(range(len(rows)))[::-1]
    return look(network_of(tiers), [batch], sees, rows, chosen, lambda index: pixels, tmp_path)


def page_of(tmp_path, shown, images=(), tiers=2) -> Page:
    heads = {"tier1": {"n": 2}, "tier2": {"n": 2}, "tier3": {"n": 2} if tiers > 2 else None, "global": {"n": 2}}
    weights = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.25, 0.5, 0.0, 0.75]]
    metrics = {"splits": {"test": heads}, "provenance": {"voices": weights}}
    return Page(write_report(tmp_path, Report("SEG", metrics=metrics, images=list(images), gradcam=shown)))


def test_the_files_are_written_and_named(tmp_path):
    shown = looked(tmp_path)
    with (tmp_path / "gradcam.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["image"], r["tier"]) for r in rows] == [(n, t) for n in ("b.png", HOSTILE) for t in ("tier1", "tier2")]
    assert {r["class"] for r in rows} == {"Anemic"}
    (first, second) = maps_of(network_of(2), smear(1))
    for told, tier in zip(rows, (first, second), strict=False):
        assert float(told["prob_anemic_own"]) == pytest.approx(1 / (1 + np.exp(-tier.voice)), abs=1e-5)
        assert float(told["peak"]) == pytest.approx(tier.heat.max(), rel=1e-4)
        overlay, plane = (np.asarray(Image.open(tmp_path / told[key])) for key in ("overlay", "map"))
        assert (overlay.shape, plane.shape) == ((50, 90, 3), (50, 90))
        expected = Image.fromarray(tier.heat / tier.heat.max()).resize((90, 50), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(plane / 255, np.asarray(expected), atol=0.003)
        np.testing.assert_array_equal(overlay, heat_overlay(np.full((50, 90, 3), 200, np.uint8), np.asarray(expected)))
    assert len(list((tmp_path / "gradcam").rglob("*.png"))) == 8
    assert [image.row.name for image in shown.images] == ["b.png", HOSTILE]


def test_colours_are_matplotlib_s_over_grey():
    from matplotlib import colormaps

    rgb = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    found = heat_overlay(rgb, np.array([[0.0, 1.0]]))
    for place, (heat, grey) in enumerate([(0.0, 0.2125 * 255), (1.0, 0.0721 * 255)]):
        expected = 0.6 * 255 * np.array(colormaps["viridis"](heat)[:3]) + 0.4 * grey
        np.testing.assert_allclose(found[0, place], expected, atol=1)
    with pytest.raises(ValueError, match="one size"):
        heat_overlay(rgb, np.zeros((2, 2)))


def test_the_page_shows_every_tier_of_every_image_and_names_as_text(tmp_path):
    page = page_of(tmp_path, looked(tmp_path, tiers=3), tiers=3)
    pictures = [e[1] for e in page.all("img") if e[1]["alt"].startswith("Grad-CAM of Tier-")]
    assert len(pictures) == 6
    assert all((tmp_path / "gradcam").is_dir() and p["src"].startswith("./gradcam/") for p in pictures)
    told = page.section("gradcam")
    assert HOSTILE in told
    assert f"Grad-CAM of Tier-I for Anemic over {HOSTILE}" in [p["alt"].partition(";")[0] for p in pictures]
    assert "<script>alert" not in page.source
    assert "Selvaraju et al., ICCV 2017" in told
    assert "2 images: 2 that Global is wrong on and 0 others" in told
    assert "the voices weigh: Tier-I 0.25, Tier-II 0.50, Tier-III 0.00, the fusion of all (no map here) 0.75" in told
    assert page.all("a", href="./gradcam.csv")
    assert "not opened" not in told


def test_a_tier_that_is_not_open_is_said(tmp_path):
    page = page_of(tmp_path, looked(tmp_path, tiers=1), tiers=1)
    assert len([e for e in page.all("img") if e[1]["alt"].startswith("Grad-CAM of Tier-")]) == 2
    closed = [e[2] for e in page.all("div", **{"class": "absent"})]
    assert len(closed) == 4
    assert "not opened" in closed[-1]


def test_a_map_without_anything_for_the_class_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gradcam, "class_activation", lambda h, b, m, label, size: -torch.ones(1, 1, *size))
    told = page_of(tmp_path, looked(tmp_path)).section("gradcam")
    assert told.count("nothing for Anemic") == 4


def test_without_captum_a_line_says_so(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "captum"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "captum", None)
    shown = looked(tmp_path)
    assert "captum is not installed" in capsys.readouterr().out
    assert "pip install captum" in page_of(tmp_path, shown).section("gradcam")
    assert not (tmp_path / "gradcam.csv").exists()


def test_nothing_asked_for_shows_nothing(tmp_path):
    assert not page_of(tmp_path, None).all("section", id="gradcam")


# --- a whole test -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    load_training_data(given("train", folder, coloured(folder)), CPU, folder / "split.csv").record(folder / "split.csv")
    return folder


def whole(learned, out, *more) -> Page:
    """The page of a test of a small network that has learned nothing."""
    options, data = opened(learned, "--stain_checks", "no", *more)
    network = network_of(2)
    network.rest_decoder()
    facts = {"tiers_opened": {}, "epoch": 1, "starts": {}, "architecture": {}, "options": {}}
    saved = SimpleNamespace(network=network, facts=facts | {"data": {"synthetic": False}}, path=out / "weights")
    out.mkdir(exist_ok=True)
    run = TestRun(saved, CPU, out, options, RunFolder(learned, "none"), binary_sees="otsu")
    run.judge("test", data)
    return Page(run.write_report(data))


def test_a_test_has_the_section_and_its_figures_stay(learned, tmp_path):
    page, without = (
        whole(learned, tmp_path / "with", "--gradcam", "6"),
        whole(learned, tmp_path / "0", "--gradcam", "0"),
    )
    with (tmp_path / "with/gradcam.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 2
    assert {e[1]["src"] for e in page.all("img") if e[1]["src"].startswith("./gradcam/")} == {
        f"./{r['overlay']}" for r in rows
    }
    with (tmp_path / "with/predictions.csv").open(newline="") as file:
        told = {r["image"]: r for r in csv.DictReader(file)}
    assert all(told[r["image"]]["label_pred"] == r["class"] for r in rows)
    for row_of in rows:  # Tier-I's verdict is its voice here: the image was the right one
        if row_of["tier"] == "tier1":
            expected = float(told[row_of["image"]]["prob_anemic_tier1"])
            assert float(row_of["prob_anemic_own"]) == pytest.approx(expected, abs=1e-5)
    both = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("with", "0")]
    assert both[0] == both[1]
    assert not without.all("section", id="gradcam")
    whole(learned, tmp_path / "with", "--gradcam", "0")
    assert not (tmp_path / "with/gradcam").exists() and not (tmp_path / "with/gradcam.csv").exists()
