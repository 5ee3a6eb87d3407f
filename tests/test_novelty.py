"""How unlike its training images an image is: distances, limits, the file, and what a panel says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import ndimage

from data.unlabelled import batches_of
from models import novelty
from models.inference import predict, see_none
from models.judges import NetworkJudge, Panel, Said, load_panel, resized
from models.network import Architecture, ThreeTierDCFNet
from models.novelty import Novelty, fit_reference, focus_of, learn, read_reference, reference_path, stain_of
from models.saved import load_network
from util.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = REPOSITORY / "checkpoints" / "SEG" / "latest_net_3TDCFNet.safetensors"


def cloud(count=200, width=40, seed=0):
    """Features of two strong directions and even noise, stains and focus of bell curves."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    features = rng.normal(size=(count, 2)) * [9, 5] @ directions + rng.normal(size=(count, width))
    return features, rng.normal(size=(count, 9)), rng.normal(size=count)


def smear(seed=0, side=64):
    rng = np.random.default_rng(seed)
    discs = ndimage.gaussian_filter(rng.random((side, side)), 3)
    cells = discs > np.quantile(discs, 0.7)
    rgb = np.where(cells[..., None], (200, 120, 140), (235, 225, 230)) + rng.normal(0, 4, (side, side, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8)


def test_one_in_a_hundred_of_the_same_kind_passes_a_limit_and_the_strange_do():
    features, stains, focus = cloud(count=1200)
    told = fit_reference(features[:200], stains[:200], focus[:200], [f"g{i}" for i in range(200)])
    others = novelty._feature_distances(told._factors(), features[200:]) / told.limits[0]
    assert 0 < (others > 1).mean() < 0.05
    odd = features[200:250] + np.random.default_rng(1).normal(0, 4, (50, 40))
    assert (novelty._feature_distances(told._factors(), odd) / told.limits[0] > 1).all()


def test_the_distance_is_mahalanobis_of_the_model_s_covariance():
    features, _, _ = cloud()
    factors = novelty._fitted(features)
    scaled = (features - factors.mean) / factors.scale
    along = factors.components.T @ np.diag(factors.variances - factors.noise) @ factors.components
    covariance = along + factors.noise * np.eye(40)
    expected = np.sqrt(np.einsum("ij,jk,ik->i", scaled, np.linalg.inv(covariance), scaled) / 40)
    assert novelty._feature_distances(factors, features) == pytest.approx(expected, rel=1e-6)


def test_limits_are_of_images_whose_group_is_left_out():
    """Pairs of equal images: each lies on its copy, so only leaving both out shows how far it is from the others."""
    features, stains, focus = (np.repeat(part, 8, axis=0) for part in cloud(count=100))
    alone = fit_reference(features, stains, focus, [f"{i}" for i in range(800)])
    together = fit_reference(features, stains, focus, [f"{i // 8}" for i in range(800)])
    assert together.limits[1] > 3 * alone.limits[1]


def test_with_few_images_or_groups_nothing_is_learned():
    features, stains, focus = cloud(count=40)
    assert fit_reference(features[:29], stains[:29], focus[:29], [f"{i}" for i in range(29)]) is None
    assert fit_reference(features, stains, focus, [f"{i % 9}" for i in range(40)]) is None
    assert fit_reference(features, stains, focus, [f"{i % 10}" for i in range(40)]) is not None


def test_focus_tells_blur_and_noise_but_not_contrast():
    image = smear().astype(np.float32) / 255
    blurred = ndimage.gaussian_filter(image, (1.5, 1.5, 0))
    noisy = image + np.random.default_rng(0).normal(0, 0.1, image.shape)
    assert focus_of(blurred) < focus_of(image) - 1 and focus_of(noisy) > focus_of(image) + 0.5
    assert focus_of(0.5 + 0.5 * (image - 0.5)) == pytest.approx(focus_of(image), abs=0.01)


def test_stain_is_the_density_of_cells_and_film():
    image = np.full((30, 30, 3), 1.0)
    image[:, :15] = (0.5, 0.25, 0.75)
    dark, light = (-np.log10((np.rint(255 * np.array(rgb)) + 1) / 256) for rgb in ((0.5, 0.25, 0.75), (1.0, 1.0, 1.0)))
    apart = (dark - light) / (np.linalg.norm(dark - light) + 1e-3)
    assert stain_of(image) == pytest.approx(np.concatenate([dark, light, apart]))
    assert np.isfinite(stain_of(np.zeros((9, 9, 3)))).all()


def test_the_words_name_what_is_unusual():
    assert Novelty(0.9, 1.0, 0.2, True).warning() is None and Novelty(0.9, 1.0, 0.2, True).score == 1.0
    assert "features 2.0, focus (blurred) 1.5 (limit 1)" in (Novelty(2.0, 1.5, 0.2, True).warning() or "")
    assert "focus (noisy or oversharp) 1.5, stain 3.0" in (Novelty(None, 1.5, 3.0, False).warning() or "")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny untrained network's weights."""
    from util.checkpoint import save_checkpoint

    torch.manual_seed(0)
    network = ThreeTierDCFNet(Architecture("small", 64))
    network.open(3)
    content = {
        "architecture": network.architecture.as_dict(), "network": network.state_dict(), "open_tiers": 3,
        "draws_masks": True, "decoder_ready": True, "all_masks": True, "unpaired_binary": "auto", "epoch": 1,
        "tiers_opened": {}, "options": {"loadSize": {"value": 64}}, "data": {}, "starts": {},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "SEG" / "latest_net_3TDCFNet.safetensors"
    path.parent.mkdir()
    save_checkpoint(path, content)
    return path


def learned(weights, count=40, labels=None):
    ones = [batches_of(smear(i), [64], torch.device("cpu"))[64] for i in range(count)]
    parts = {key: torch.cat([getattr(one, key) for one in ones]) for key in ("rgb", "mask", "has_mask")}
    label = torch.tensor(labels or [i % 2 for i in range(count)])
    whole = replace(ones[0], **parts, label=label, index=torch.arange(count))
    return learn(weights, [whole], [f"group {i}" for i in range(count)], torch.device("cpu"))


def test_a_reference_is_learned_kept_beside_its_weights_and_read_back(weights):
    made = learned(weights)
    path = reference_path(weights)
    assert path.name == "latest_novelty.npz" and path.stat().st_size < 300_000
    back = read_reference(weights)
    assert back is not None and back.images == 40 and back.feature_mean.shape == (448,)
    judge = NetworkJudge(load_network(weights), "SEG", 64, torch.device("cpu"))
    for rgb, unusual in ((smear(3), False), (255 - smear(3), True)):
        (said,) = Panel([judge])(batches_of(rgb, [64], torch.device("cpu")))
        batch = batches_of(rgb, [64], torch.device("cpu"))[64]
        features = judge(batch).features
        again = made.of(novelty.pictures_of(batch)[0], features[0])
        assert said.novelty.score == pytest.approx(again.score, rel=1e-3)
        assert (said.novelty.score > 1) == unusual, said.novelty
    with np.load(path, allow_pickle=False) as stored:
        assert max(array.size for array in stored.values()) <= 448 * 32


def test_features_are_those_of_the_network_averaged_over_views(weights):
    network = load_network(weights).network.eval()
    batch = batches_of(smear(5), [64], torch.device("cpu"))[64]
    seen = []
    network.register_forward_hook(lambda m, given, out: seen.append(torch.cat([t.pooled for t in out.tiers], 1)))
    (said,) = predict(network, [batch], torch.device("cpu"), see_none, views=4)
    judged = NetworkJudge(load_network(weights), "SEG", 64, torch.device("cpu"), views=4)(batch)
    assert len(seen) == 4
    assert np.allclose(judged.features, torch.stack(seen).mean(0).detach().numpy(), atol=1e-4)
    assert np.allclose(judged.logits, said.logits.numpy(), atol=1e-4)
    assert np.allclose(judged.masks, said.mask_probability[:, 0].numpy(), atol=1e-4)


def test_unlabelled_images_teach_nothing_and_too_few_leave_no_file(weights):
    made = learned(weights, count=41, labels=[-1] * 5 + [1] * 36)
    assert made is not None and made.images == 36
    assert learned(weights, count=31, labels=[-1] * 5 + [1] * 26) is None
    assert not reference_path(weights).exists() and read_reference(weights) is None


def test_a_reference_of_other_weights_is_not_used_and_a_damaged_one_is_an_error(weights, monkeypatch):
    made = learned(weights)
    novelty.write_reference(reference_path(weights), replace(made, weights="0" * 64))
    assert read_reference(weights) is None
    novelty.write_reference(
        reference_path(weights),
        narrow := replace(
            made,
            feature_mean=made.feature_mean[:9],
            feature_scale=made.feature_scale[:9],
            components=made.components[:, :9],
        ),
    )
    assert read_reference(weights).feature_mean.shape == narrow.feature_mean.shape
    with pytest.raises(UserError, match="9 features, not the network's 448"):
        NetworkJudge(load_network(weights), "SEG", 64, torch.device("cpu"))
    broken = (
        {"images": 0},
        {"images": 1.5},
        {"stains": np.zeros((0, 9))},
        {"limits": np.array([1.0, 0.0])},
        {"stain_mean": np.zeros(3)},
        {"focus": np.array([1.0, np.nan, 2.0])},
    )
    for wrong in broken:
        novelty.write_reference(reference_path(weights), replace(made, **wrong))
        with pytest.raises(UserError, match="not the novelty reference of a run"):
            read_reference(weights)
    novelty.write_reference(reference_path(weights), made)
    monkeypatch.setattr("util.arrays.MOST_BYTES", 1000)
    with pytest.raises(UserError, match="not the novelty reference of a run\n.*\n.*unpacked, more than 1000"):
        read_reference(weights)
    reference_path(weights).write_bytes(b"PK")
    with pytest.raises(UserError, match="not the novelty reference of a run"):
        read_reference(weights)
    reference_path(weights).unlink()


# ---- several networks -----------------------------------------------------------------------------------------------


class Fixed:
    """A judge with fixed answers."""

    def __init__(self, logits, mask, *, opened=3, draws=True, size=64, told=None):
        self.saved = SimpleNamespace(
            network=SimpleNamespace(open_tiers=opened), masks_from="decoder" if draws else "otsu", facts={"data": {}}
        )
        self.name, self.load_size, self.digest = "X", size, ""
        self.reference = None if told is None else SimpleNamespace(of=lambda image, features: told)
        self.said = Said(np.array([logits], np.float32), np.full((1, size, size), mask, np.float32), None)

    def __call__(self, batch):
        return self.said


def test_a_panel_averages_chances_by_head_and_masks():
    first = Fixed([0.0, 1.0, 2.0, 2.0], 0.2, told=Novelty(None, 0.4, 0.5, True))
    second = Fixed([2.0, 9.0, 9.0, -1.0], 0.6, opened=1, size=32, told=Novelty(None, 1.4, 0.1, True))
    third = Fixed([0.0, 0.0, 0.0, 0.0], 0.9, draws=False)
    panel = Panel([first, second, third])
    (said,) = panel(batches_of(smear(), panel.load_sizes, torch.device("cpu")))

    def chance(logit):
        return 1 / (1 + np.exp(-logit))

    assert said.chances["tier1"] == pytest.approx(np.mean([0.5, chance(2), 0.5]))
    assert said.chances["tier2"] == pytest.approx(np.mean([chance(1), 0.5])), "the second never opened its tier II"
    assert said.chances["global"] == pytest.approx(np.mean([chance(2), chance(-1), 0.5]))
    assert said.spread == pytest.approx(chance(2) - chance(-1))
    assert said.mask.shape == (64, 64) and np.allclose(said.mask, 0.4), "the third draws no masks"
    assert said.novelty.focus == 1.4
    (alone,) = Panel([first])(batches_of(smear(), [64], torch.device("cpu")))
    assert alone.spread is None


def test_masks_of_another_size_are_resized_in_place():
    mask = np.zeros((1, 32, 32), np.float32)
    mask[0, :16] = 1
    big = resized(mask, 64)
    assert big.shape == (1, 64, 64) and (big[0, :31] > 0.5).all() and (big[0, 33:] < 0.5).all()


def test_runs_of_an_ensemble_must_differ(weights):
    from util.runlog import RunFolder

    run = RunFolder(weights.parent.parent, "SEG")
    options = SimpleNamespace(which_epoch="latest", loadSize=64, fineSize=64, test_views=1)
    with pytest.raises(UserError, match="named twice"):
        load_panel([run, run], options, torch.device("cpu"))


# ---- the shipped weights --------------------------------------------------------------------------------------------


def test_the_shipped_weights_know_their_kind_of_smear(shared_data):
    if not SHIPPED.with_name("shipped.json").is_file():
        pytest.skip("a run of one's own has taken the name SEG")
    judge = NetworkJudge(load_network(SHIPPED), "SEG", 300, torch.device("cpu"))
    panel = Panel([judge])

    def warned(paths, change=lambda image: image):
        found = []
        for path in paths:
            rgb = np.asarray(change(Image.open(path).convert("RGB")))
            (said,) = panel(batches_of(rgb, [300], torch.device("cpu")))
            found.append(said.novelty.warning() is not None)
        return sum(found)

    known = sorted((shared_data / "anerbc_326x256").rglob("Original_images/*.png"))[::300]
    assert warned(known) == 0
    assert warned(known, lambda image: image.filter(ImageFilter.GaussianBlur(2))) == len(known)
    assert warned(sorted((shared_data / "chula_rbc12/Dataset").glob("*"))[::40]) == 2
