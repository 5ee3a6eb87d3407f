"""What is left of a smear without its stain, and what a test says of a network that sees nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import color

from data.loader import decode
from data.manifest import write_manifest
from data.records import ANEMIC, HEALTHY, SmearRecord
from data.runs import load_test_data, load_training_data
from data.stain import (
    STAIN,
    StainReference,
    grey_scaled,
    lab_of,
    lab_statistics,
    rgb_of,
)
from models.testing import TestRun
from options import parse_options
from util.errors import UserError
from util.runlog import RunFolder

CPU = torch.device("cpu")
SIDE = 64
HEADS = ("tier1", "tier2", "tier3", "global")


def pixels_last(planes: torch.Tensor) -> np.ndarray:
    return planes.permute(0, 2, 3, 1).numpy()


def planes_of_lab(lab: np.ndarray) -> torch.Tensor:
    """CIELAB pixels (H, W, 3) as one sRGB image (1, 3, H, W), by scikit-image."""
    return torch.from_numpy(color.lab2rgb(lab).astype(np.float32)).permute(2, 0, 1)[None]


def inner_lab(rng: np.random.Generator, mean: tuple[float, ...], spread: tuple[float, ...]) -> np.ndarray:
    """Random CIELAB pixels well inside of what sRGB can show."""
    return np.asarray(mean) + np.asarray(spread) * rng.uniform(-1, 1, (30, 40, 3))


def test_grey_is_the_luminance_in_every_channel(rng):
    rgb = torch.from_numpy(rng.random((3, 3, 9, 11), dtype=np.float32))
    kept = rgb.clone()
    grey = grey_scaled(rgb)
    for channel in range(3):
        np.testing.assert_allclose(grey[:, channel].numpy(), color.rgb2gray(pixels_last(rgb)), atol=1e-6)
    assert torch.equal(rgb, kept)


def test_lab_is_scikit_image_s_there_and_back(rng):
    rgb = torch.from_numpy(rng.random((2, 3, 40, 30), dtype=np.float32))
    rgb[0, :, 0, :3] = torch.tensor([[0.0, 1.0, 0.03]])  # black, white, and where both curves begin as lines
    np.testing.assert_allclose(pixels_last(lab_of(rgb)), color.rgb2lab(pixels_last(rgb)), atol=2e-4)
    torch.testing.assert_close(rgb_of(lab_of(rgb)), rgb, atol=2e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:.*negative Z values")
def test_what_no_screen_can_show_is_clipped_as_scikit_image_clips_it(rng):
    lab = rng.uniform((0, -120, -120), (100, 120, 120), (50, 50, 3)).astype(np.float32)
    found = rgb_of(torch.from_numpy(lab).permute(2, 0, 1)[None])
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(pixels_last(found)[0], color.lab2rgb(lab), atol=1e-4)


def test_a_normalised_image_has_the_reference_s_mean_and_deviation(rng):
    reference = StainReference(np.float32([60, 8, -5]), np.float32([6, 4, 3]), 9)
    batch = torch.cat(
        [planes_of_lab(inner_lab(rng, (70, 2, 3), (9, 4, 6))), planes_of_lab(inner_lab(rng, (50, 20, -9), (6, 5, 3)))]
    )
    found = color.rgb2lab(pixels_last(reference.normalised(batch)))
    np.testing.assert_allclose(found.mean(axis=(1, 2)), np.tile(reference.mean, (2, 1)), atol=0.01)
    np.testing.assert_allclose(found.std(axis=(1, 2)), np.tile(reference.deviation, (2, 1)), atol=0.01)


def test_two_stains_of_the_same_cells_become_one(rng):
    cells = inner_lab(rng, (70, 2, 3), (9, 4, 6))
    restained = cells * (0.8, 1.3, 0.7) + (5, 10, -8)
    reference = StainReference(np.float32([60, 8, -5]), np.float32([6, 4, 3]), 9)
    one, other = (planes_of_lab(lab) for lab in (cells, restained))
    assert (one - other).abs().max() > 0.1
    torch.testing.assert_close(reference.normalised(one), reference.normalised(other), atol=1e-4, rtol=0)
    together = reference.normalised(torch.cat([one, other]))
    torch.testing.assert_close(together[1:], reference.normalised(other), atol=1e-6, rtol=0)


def test_an_image_without_contrast_is_moved_and_not_torn_apart():
    reference = StainReference(np.float32([60, 8, -5]), np.float32([6, 4, 3]), 9)
    found = reference.normalised(torch.full((1, 3, 8, 8), 0.7))
    expected = color.lab2rgb(np.array([60.0, 8, -5]).reshape(1, 1, 3)).ravel()
    np.testing.assert_allclose(found[0, :, 3, 3].numpy(), expected, atol=1e-3)
    assert (found == found[:, :, :1, :1]).all()
    speck = torch.full((1, 3, 64, 64), 0.7)
    speck[0, :, 20, 20] += 1 / 255
    assert (reference.normalised(speck) - found[:, :, :1, :1]).abs().max() < 0.01


def coloured(folder: Path, count: int = 40) -> Path:
    """A manifest of pictures of noise, reddish where Anemic and bluish where Healthy, dealt to three sides."""
    records = []
    for index in range(count):
        label = (HEALTHY, ANEMIC)[index % 2]
        pixels = np.random.default_rng(index).integers(60, 160, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[..., 0 if label == ANEMIC else 2] += 30 + index
        path = folder / f"{index:02d}.png"
        Image.fromarray(pixels).save(path)
        side = "test" if index % 4 > 1 else "val" if index % 8 < 2 else "train"
        records.append(SmearRecord(path.name, path, label=label, patient=f"g{index}", split=side))
    write_manifest(folder / "manifest.csv", records, image_root=folder)
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A folder with data and what a training run has kept of it."""
    folder = tmp_path_factory.mktemp("run")
    data = load_training_data(given("train", folder, coloured(folder)), CPU, folder / "split.csv")
    data.record(folder / "split.csv")
    return folder


def given(command: str, folder: Path, manifest: Path, *more: str):
    line = ["--dataroot", str(manifest), "--loadSize", str(SIDE), "--fineSize", str(SIDE), "--batchSize", "8"]
    line += ["--no_cache", "--checkpoints_dir", str(folder / "none"), "--gpu_ids", "-1", *more]
    return parse_options(command, line, prog="x", description="")


def opened(folder: Path, *more: str):
    options = given("test", folder, folder / "manifest.csv", "--resamples", "100", *more)
    return options, load_test_data(options, folder / "split.csv", masks_from="otsu", binary_sees="otsu")


def test_the_reference_is_the_mean_over_the_training_images(learned):
    kept = STAIN.read(learned)
    train = [path for i, path in enumerate(sorted(learned.glob("*.png"))) if i % 4 < 2 and i % 8 >= 2]
    labs = [color.rgb2lab(np.asarray(Image.open(path)) / 255) for path in train]
    np.testing.assert_allclose(kept.mean, np.mean([lab.mean(axis=(0, 1)) for lab in labs], axis=0), atol=1e-3)
    np.testing.assert_allclose(kept.deviation, np.mean([lab.std(axis=(0, 1)) for lab in labs], axis=0), atol=1e-3)
    assert kept.images == len(train) == 10


def test_a_grid_of_pixels_stands_for_the_whole_of_a_large_image(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 200, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = StainReference.of(decode([SmearRecord("a", tmp_path / "a.png", label=None)], 500, progress=False))
    mean, deviation = lab_statistics(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    np.testing.assert_allclose(found.mean, mean[0].numpy(), atol=1.0)
    np.testing.assert_allclose(found.deviation, deviation[0].numpy(), atol=1.0)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 damaged",
        {"mean": np.zeros(2), "deviation": np.ones(3), "images": 1},
        {"mean": np.zeros(3), "deviation": -np.ones(3), "images": 1},
        {"mean": np.full(3, np.nan), "deviation": np.ones(3), "images": 1},
        {"mean": np.array(["a", "b", "c"]), "deviation": np.ones(3), "images": 1},
        {"mean": np.zeros(3), "images": 1},
    ],
)
def test_a_damaged_reference_is_named(tmp_path, content):
    path = tmp_path / STAIN.name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(UserError, match=STAIN.name):
        STAIN.read(tmp_path)


def test_a_reference_is_read_as_written(tmp_path):
    written = StainReference(np.float32([60, 8, -5]), np.float32([6, 4, 3]), 9)
    STAIN.write(tmp_path, written)
    found = STAIN.read(tmp_path)
    assert np.array_equal(found.mean, written.mean) and np.array_equal(found.deviation, written.deviation)
    assert found.images == 9
    assert STAIN.read(tmp_path / "nothing") is None


class RedSeer(torch.nn.Module):
    """Calls Anemic what is redder than blue; and keeps what it was shown."""

    architecture = SimpleNamespace(fine_size=SIDE)
    open_tiers = 2

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.eye(4)
        self.shown: list[torch.Tensor] = []

    def forward(self, rgb, mask, see_given):
        self.shown.append(rgb.clone())
        difference = 30 * (rgb[:, 0] - rgb[:, 2]).mean(dim=(1, 2))
        voices = difference[:, None].expand(-1, 4)
        return SimpleNamespace(voices=voices, logits=voices, mask_probability=mask)

    def verdicts(self, voices):
        return voices


def judged(folder: Path, out: Path, *more: str) -> tuple[dict, RedSeer, TestRun]:
    """The metrics.json of a test of that network on the test side."""
    options, data = opened(folder, *more)
    network = RedSeer()
    data_facts = {"synthetic": False}
    facts = {"tiers_opened": {}, "epoch": 1, "starts": {}, "architecture": {}, "options": {}, "data": data_facts}
    saved = SimpleNamespace(network=network, facts=facts, path=Path("weights"))
    out.mkdir(exist_ok=True)
    run = TestRun(saved, CPU, out, options, RunFolder(folder, "none"), binary_sees="otsu")
    run.judge("test", data)
    return run.content(data), network, run


def test_a_network_that_sees_only_stain_is_found_out(learned, tmp_path):
    content, network, run = judged(learned, tmp_path)
    as_is, changed = content["splits"]["test"], content["robustness"]
    assert as_is["global"]["auroc"] == 1.0
    assert set(changed) == {"grey", "stain_normalised"}
    for name in changed:
        assert [changed[name][head] is None for head in HEADS] == [False, False, True, False]
        less = changed[name]["global"].pop("less_as_it_is")
        assert changed[name]["global"].keys() == as_is["global"].keys()
        assert less["auroc"]["value"] == changed[name]["global"]["auroc"] - 1
        low, high = less["auroc"]["ci95"]
        assert low <= less["auroc"]["value"] <= high and less["n"] == 20
        assert changed[name]["global"]["n"] == as_is["global"]["n"] == 20
    assert changed["grey"]["tier1"]["auroc"] == 0.5
    low, high = changed["grey"]["global"]["ci95"]["auroc"]
    assert low < 0.5 < high
    one = len(network.shown) // 3
    as_shown, grey, normalised = (torch.cat(network.shown[k * one : (k + 1) * one]) for k in range(3))
    torch.testing.assert_close(grey, grey_scaled(as_shown))
    torch.testing.assert_close(normalised, STAIN.read(learned).normalised(as_shown))
    assert (tmp_path / "predictions.csv").read_text().count("\n") == 21
    options, data = opened(learned)
    page = run.write_report(data).read_text()
    assert "What if the colour is taken away?" in page and "-0.500 (-" in page


def test_the_stain_stays_where_that_is_asked_for(learned, tmp_path):
    content, network, _ = judged(learned, tmp_path, "--stain_checks", "no")
    assert content["robustness"] is None
    assert content["splits"]["test"]["global"]["auroc"] == 1.0
    assert sum(len(rgb) for rgb in network.shown) == 20


def test_a_run_that_kept_no_stain_is_judged_on_grey_images_alone(learned, tmp_path):
    kept = (learned / STAIN.name).read_bytes()
    (learned / STAIN.name).unlink()
    try:
        content, network, run = judged(learned, tmp_path)
        _, data = opened(learned)
        page = run.write_report(data).read_text()
    finally:
        (learned / STAIN.name).write_bytes(kept)
    assert content["robustness"]["stain_normalised"] is None
    assert content["robustness"]["grey"]["global"]["auroc"] == 0.5
    assert sum(len(rgb) for rgb in network.shown) == 40
    assert "kept no stain of its training images" in page


def test_only_the_test_side_is_judged_without_its_stain(learned, tmp_path):
    options, data = opened(learned)
    network = RedSeer()
    saved = SimpleNamespace(network=network, facts={}, path=Path("weights"))
    run = TestRun(saved, CPU, tmp_path, options, RunFolder(learned, "none"), binary_sees="otsu")
    run.judge("val", data)
    assert run.robustness is None
    assert sum(len(rgb) for rgb in network.shown) == len(data.sides["val"].records)


def test_the_views_asked_for_are_shown_and_recorded(learned, tmp_path):
    content, network, _ = judged(learned, tmp_path, "--test_views", "4")
    assert content["provenance"]["test_views"] == 4
    assert sum(len(rgb) for rgb in network.shown) == 3 * 4 * 20


@pytest.mark.parametrize("wrong", [("--test_views", "3"), ("--stain_checks", "maybe")])
def test_bad_options_are_refused_by_name(tmp_path, wrong):
    with pytest.raises(UserError, match=wrong[0]):
        given("test", tmp_path, tmp_path / "manifest.csv", *wrong)
