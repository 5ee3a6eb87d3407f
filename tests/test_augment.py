from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from data.augment import Augmentation, _blur, centre_offset, jitter_stain, without_colour
from util.errors import UserError

NOTHING = Augmentation(rotate=0, flip_x=0, flip_y=0, scale=0, crop=0, stain=0, light=0, blur=0, noise=0, grey=0)


def identity_parameters(n: int) -> dict[str, np.ndarray]:
    """Parameters of ``n`` samples that change nothing but cut the centre."""
    return NOTHING.sample_parameters(n, 0, 0)


def tensors(table: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(column) for name, column in table.items()}


def changed(n: int = 1, **columns: object) -> dict[str, torch.Tensor]:
    """Identity parameters with some columns replaced by a constant."""
    table = identity_parameters(n)
    return tensors(table | {name: np.full_like(table[name], value) for name, value in columns.items()})


def images(rng: np.random.Generator, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rgb = torch.from_numpy(rng.random((n, 3, size, size), dtype=np.float32))
    return rgb, (torch.from_numpy(rng.random((n, 1, size, size))) > 0.5).float()


def discs(n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """White images with three dark discs off the centre, and their mask."""
    y, x = np.mgrid[:size, :size]
    circles = [(0.30, 0.35, 0.14), (0.70, 0.60, 0.10), (0.45, 0.80, 0.08)]
    plane = np.any([np.hypot(y - size * v, x - size * u) < size * r for v, u, r in circles], axis=0)
    mask = torch.from_numpy(plane).float().expand(n, 1, size, size).clone()
    return 1.0 - 0.8 * mask.expand(n, 3, size, size), mask


def test_identity_parameters_change_nothing(rng):
    rgb, mask = images(rng, 3, 41)
    out, plane = Augmentation().apply(rgb, mask, tensors(identity_parameters(3)), 41)
    torch.testing.assert_close(out, rgb, atol=2e-5, rtol=0)
    assert torch.equal(plane, mask)


@pytest.mark.parametrize(("load", "crop"), [(40, 32), (41, 32), (40, 31)])
def test_identity_parameters_cut_the_centre(rng, load, crop):
    rgb, mask = images(rng, 2, load)
    out, plane = NOTHING.apply(rgb, mask, tensors(identity_parameters(2)), crop)
    cut = slice(centre_offset(load, crop), centre_offset(load, crop) + crop)
    assert abs((cut.start + cut.stop) / 2 - load / 2) <= 0.5
    torch.testing.assert_close(out, rgb[:, :, cut, cut], atol=2e-5, rtol=0)
    assert torch.equal(plane, mask[:, :, cut, cut])


def test_mask_and_image_stay_together():
    rgb, mask = discs(16, 160)
    geometry = dataclasses.replace(NOTHING, rotate=1, flip_x=0.5, flip_y=0.5, scale=1, crop=1)
    out, plane = geometry.apply(rgb, mask, tensors(geometry.sample_parameters(16, 3, 1)), 140)
    seen, drawn = out[:, 1] < 0.6, plane[:, 0] > 0.5
    iou = (seen & drawn).sum((1, 2)) / (seen | drawn).sum((1, 2))
    assert iou.min() > 0.97
    moved = (drawn != drawn[:1]).flatten(1).any(1)
    assert moved[1:].all()


def test_the_whole_chain_keeps_image_and_mask_together():
    rgb, mask = discs(16, 160)
    out, plane = Augmentation().apply(rgb, mask, tensors(Augmentation().sample_parameters(16, 0, 0)), 160)
    seen, drawn = out.mean(1) < 0.6, plane[:, 0] > 0.5
    assert ((seen & drawn).sum((1, 2)) / (seen | drawn).sum((1, 2))).min() > 0.9
    assert 0 <= out.min() <= out.max() <= 1
    assert set(plane.unique().tolist()) == {0.0, 1.0}


def test_quarter_turn_and_flips_are_exact(rng):
    rgb, mask = images(rng, 1, 33)
    for params, expected in [
        (changed(angle=np.pi / 2), lambda t: torch.rot90(t, 1, (2, 3))),
        (changed(flip=-1), lambda t: t.flip(2, 3)),
        (changed(flip=np.array([-1, 1])), lambda t: t.flip(3)),
    ]:
        out, plane = NOTHING.apply(rgb, mask, params, 33)
        torch.testing.assert_close(out, expected(rgb), atol=1e-4, rtol=0)
        assert torch.equal(plane, expected(mask))


def test_scale_above_one_magnifies():
    _, mask = discs(1, 160)
    rgb = 1.0 - mask.expand(1, 3, 160, 160)
    areas = [NOTHING.apply(rgb, mask, changed(scale=s), 160)[1].sum().item() for s in (0.9, 1.0, 1.1)]
    assert areas[0] == pytest.approx(areas[1] * 0.81, rel=0.02)
    assert areas[2] == pytest.approx(areas[1] * 1.21, rel=0.02)


def test_random_crops_reach_every_offset_and_no_other():
    ramp = torch.arange(12, dtype=torch.float32).expand(1, 3, 12, 12) / 12
    shifting = dataclasses.replace(NOTHING, crop=1)
    params = tensors(shifting.sample_parameters(400, 0, 0))
    out, _ = shifting.apply(ramp.expand(400, -1, -1, -1), torch.zeros(400, 1, 12, 12), params, 9)
    assert sorted({round(12 * v, 3) for v in out[:, 0, 0, 0].tolist()}) == [0, 1, 2, 3]


def test_rotation_brings_no_black_corner():
    white, mask = torch.ones(4, 3, 50, 50), torch.zeros(4, 1, 50, 50)
    out, _ = NOTHING.apply(white, mask, changed(4, angle=np.pi / 4, scale=0.85), 50)
    assert out.min() > 0.999


def test_stain_jitter_is_the_formula_in_optical_density(rng):
    rgb = rng.uniform(1 / 255, 1, (4, 3, 8, 8)).astype(np.float32)
    alpha = rng.uniform(0.7, 1.3, (4, 3)).astype(np.float32)
    beta = rng.uniform(-0.1, 0.1, (4, 3)).astype(np.float32)
    expected = np.empty_like(rgb)
    for b, c, y, x in np.ndindex(*rgb.shape):
        expected[b, c, y, x] = 10 ** -(alpha[b, c] * -np.log10(rgb[b, c, y, x]) + beta[b, c])
    out = jitter_stain(*(torch.from_numpy(array) for array in (rgb, alpha, beta)))
    np.testing.assert_allclose(out.numpy(), expected, rtol=2e-5)


def test_stain_jitter_keeps_white_white_and_black_black():
    ends = torch.tensor([0.0, 1.0]).expand(5, 3, 1, 2)
    alpha = torch.linspace(0.5, 2, 15).view(5, 3)
    assert torch.equal(jitter_stain(ends, alpha, torch.zeros(5, 3)), ends)


def test_illumination_is_a_tilted_plane():
    grey, mask = torch.full((1, 3, 20, 20), 0.5), torch.zeros(1, 1, 20, 20)
    params = changed(brightness=1.1, gradient=np.array([0.08, -0.05]))
    out, _ = NOTHING.apply(grey, mask, params, 20)
    place = (np.arange(20) + 0.5) / 10 - 1
    expected = 0.5 * 1.1 * (1 + 0.08 * place[None, :] - 0.05 * place[:, None])
    np.testing.assert_allclose(out[0, 1].numpy(), expected, rtol=1e-5)


def test_light_does_not_depend_on_whether_blur_is_on():
    grey, mask = torch.full((1, 3, 20, 20), 0.5), torch.zeros(1, 1, 20, 20)
    params = changed(gradient=np.array([0.08, -0.05]))
    alone, with_blur = (a.apply(grey, mask, params, 20)[0] for a in (NOTHING, Augmentation(noise=0)))
    torch.testing.assert_close(alone, with_blur, atol=1e-6, rtol=0)


def test_blur_matches_scipy_by_sample(rng):
    rgb, mask = images(rng, 3, 30)
    params = changed(3) | {"sigma": torch.tensor([0.0, 0.5, 1.0])}
    out, _ = dataclasses.replace(NOTHING, blur=1).apply(rgb, mask, params, 30)
    torch.testing.assert_close(out[0], rgb[0], atol=2e-5, rtol=0)
    for i, sigma in [(1, 0.5), (2, 1.0)]:
        # scipy's "reflect" is the mirror about the pixels' edge that the warp continues the image with
        expected = gaussian_filter(rgb[i].numpy(), (0, sigma, sigma), mode="reflect", radius=3)
        np.testing.assert_allclose(out[i].numpy(), expected, atol=1e-4)


def test_blur_of_a_whole_batch_is_each_sample_s_own(rng):
    """What a GPU does: every sample is blurred, a sigma of 0 among them, whatever the layout in memory."""
    image = torch.from_numpy(rng.random((4, 3, 26, 33), dtype=np.float32))
    sigma = torch.tensor([0.0, 0.3, 0.7, 1.0])
    for given in (image, image.contiguous(memory_format=torch.channels_last)):
        out = _blur(given, sigma, 3)
        torch.testing.assert_close(out[0], image[0, :, 3:-3, 3:-3], atol=0, rtol=0)
        for i, width in enumerate(sigma[1:].tolist(), start=1):
            expected = gaussian_filter(image[i].numpy(), (0, width, width), radius=3)[:, 3:-3, 3:-3]
            np.testing.assert_allclose(out[i].numpy(), expected, atol=1e-6)


def test_grey_samples_have_one_plane_that_is_their_own_mix_and_others_keep_their_colour(rng):
    rgb, mask = images(rng, 4, 24)
    params = changed(4) | {"grey": torch.tensor([[0.2, 0.5, 0.3], [0, 0, 0], [0, 0, 1], [0, 0, 0]])}
    out, plane = dataclasses.replace(NOTHING, grey=1).apply(rgb.clone(), mask, params, 24)
    pixels = rgb.numpy()
    expected = pixels[0, 0] * 0.2 + pixels[0, 1] * 0.5 + pixels[0, 2] * 0.3
    for channel in range(3):
        np.testing.assert_allclose(out[0, channel].numpy(), expected, atol=2e-5)
        np.testing.assert_allclose(out[2, channel].numpy(), pixels[2, 2], atol=2e-5)
    torch.testing.assert_close(out[[1, 3]], rgb[[1, 3]], atol=2e-5, rtol=0)
    assert torch.equal(plane, mask)


def test_a_gpu_s_way_to_grey_gives_what_the_cpu_s_gives(rng, monkeypatch):
    rgb, _ = images(rng, 5, 12)
    mix = torch.from_numpy(Augmentation(grey=0.5).sample_parameters(5, 4, 0)["grey"])
    assert 0 < (mix.sum(1) > 0).sum() < 5

    class OnDevice(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda")

    masked = without_colour(rgb.clone().as_subclass(OnDevice), mix).as_subclass(torch.Tensor)
    torch.testing.assert_close(masked, without_colour(rgb.clone(), mix), atol=1e-6, rtol=0)


def test_the_whole_chain_leaves_no_trace_of_colour_in_a_grey_sample(rng):
    rgb, mask = images(rng, 32, 40)
    augmentation = Augmentation(stain=1, light=1, blur=1, noise=1)
    params = tensors(augmentation.sample_parameters(32, 0, 3))
    out, _ = augmentation.apply(rgb, mask, params, 36)
    spread = (out.amax(1) - out.amin(1)).flatten(1).amax(1)
    grey = params["grey"].sum(1) > 0
    assert 3 < grey.sum() < 20
    assert (spread[grey] == 0).all() and (spread[~grey] > 0.1).all()


def test_grey_mixes_are_even_over_the_simplex_and_as_frequent_as_asked():
    table = Augmentation(grey=0.4).sample_parameters(20_000, 1, 0)
    mixes = table["grey"][table["grey"].sum(axis=1) > 0]
    assert len(mixes) / 20_000 == pytest.approx(0.4, abs=0.02)
    np.testing.assert_allclose(mixes.sum(axis=1), 1, atol=1e-6)
    # of a uniform distribution on the simplex: each weight is Beta(1, 2), with mean 1/3 and variance 1/18
    np.testing.assert_allclose(mixes.mean(axis=0), 1 / 3, atol=0.01)
    np.testing.assert_allclose(mixes.var(axis=0), 1 / 18, atol=0.003)
    assert not Augmentation(grey=0).sample_parameters(500, 1, 0)["grey"].any()


def test_what_is_grey_says_nothing_of_the_other_changes():
    tables = [Augmentation().sample_parameters(1, seed, 0) for seed in range(600)]
    grey = np.array([table["grey"].any() for table in tables])
    for name, neutral, probability in [("angle", 0, 0.8), ("alpha", 1, 0.8)]:
        changed_too = np.array([(table[name] != neutral).all() for table in tables])
        assert changed_too[grey].mean() == pytest.approx(probability, abs=0.1), name


def test_grey_draws_leave_all_other_parameters_as_they_are():
    """Recorded before there was grey: the chain of an old seed stays what it was."""
    table = Augmentation().sample_parameters(3, 5, 2)
    assert table["alpha"][2].tolist() == pytest.approx([0.9803513, 0.8854775, 1.0200889], abs=1e-7)
    assert table["noise_shift"].tolist() == [[165, 127], [121, 92], [171, 159]]
    without = Augmentation(grey=0).sample_parameters(3, 5, 2)
    assert all(np.array_equal(table[name], without[name]) for name in table if name != "grey")


def test_blur_takes_the_border_from_the_image_around_the_crop(rng):
    rgb, mask = images(rng, 1, 40)
    out, _ = dataclasses.replace(NOTHING, blur=1).apply(rgb, mask, changed(sigma=1.0), 30)
    expected = gaussian_filter(rgb[0].numpy(), (0, 1, 1), mode="reflect", radius=3)[:, 5:35, 5:35]
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-4)


def test_noise_has_the_asked_strength_and_differs_by_sample():
    grey, mask = torch.full((2, 3, 100, 100), 0.5), torch.zeros(2, 1, 100, 100)
    noisy = dataclasses.replace(NOTHING, noise=1)
    params = changed(2, noise_std=0.02) | {"noise_shift": torch.tensor([[3, 200], [255, 0]])}
    out, _ = noisy.apply(grey, mask, params, 100)
    noise = (out - 0.5).flatten(1)
    np.testing.assert_allclose(noise.std(1).numpy(), 0.02, rtol=0.02)
    assert noise.mean(1).abs().max() < 1e-3
    assert abs(torch.corrcoef(noise)[0, 1].item()) < 0.05
    torch.testing.assert_close(out, noisy.apply(grey, mask, params, 100)[0], atol=0, rtol=0)


def test_apply_on_one_sample_equals_apply_in_a_batch(rng):
    rgb, mask = images(rng, 6, 48)
    params = tensors(Augmentation(blur=0.5, noise=0.5).sample_parameters(6, 1, 2))
    together = Augmentation().apply(rgb, mask, params, 40)
    for i in range(6):
        alone = Augmentation().apply(rgb[i : i + 1], mask[i : i + 1], {k: v[i : i + 1] for k, v in params.items()}, 40)
        torch.testing.assert_close(alone[0][0], together[0][i], atol=1e-6, rtol=0)
        assert torch.equal(alone[1][0], together[1][i])


def test_parameters_depend_on_seed_epoch_and_row_only():
    augmentation = Augmentation()
    few, many = (augmentation.sample_parameters(n, 5, 2) for n in (10, 500))
    for name, column in few.items():
        np.testing.assert_array_equal(column, many[name][:10], err_msg=name)
    for seed, epoch in [(5, 3), (6, 2)]:
        other = augmentation.sample_parameters(10, seed, epoch)
        assert not np.array_equal(other["crop"], few["crop"])


def test_parameters_keep_their_ranges_and_probabilities():
    augmentation = Augmentation()
    table = augmentation.sample_parameters(20_000, 0, 0)
    for name, ends in [
        ("scale", augmentation.scale_range),
        ("alpha", augmentation.alpha),
        ("beta", augmentation.beta),
        ("brightness", augmentation.brightness),
        ("gradient", augmentation.gradient),
        ("sigma", augmentation.sigma),
        ("noise_std", augmentation.noise_std),
        ("angle", (-np.pi, np.pi)),
        ("crop", (0, 1)),
        ("noise_shift", (0, 255)),
    ]:
        spread = ends[1] - ends[0]
        assert ends[0] - 1e-6 <= table[name].min() < ends[0] + 0.05 * spread, name
        assert ends[1] - 0.05 * spread < table[name].max() <= ends[1] + 1e-6, name
    for name, neutral, probability in [
        ("angle", 0, augmentation.rotate),
        ("scale", 1, augmentation.scale),
        ("sigma", 0, augmentation.blur),
        ("noise_std", 0, augmentation.noise),
        ("brightness", 1, augmentation.light),
        ("grey", 0, augmentation.grey),
    ]:
        assert (table[name] != neutral).mean() == pytest.approx(probability, abs=0.02), name
    assert (table["flip"] < 0).mean(axis=0) == pytest.approx([augmentation.flip_x, augmentation.flip_y], abs=0.02)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"blur": 1.5}, "blur"),
        ({"grey": -0.1}, "grey"),
        ({"scale_range": (0.0, 1.0)}, "scale_range"),
        ({"alpha": (1.2, 0.8)}, "alpha"),
    ],
)
def test_impossible_settings_are_refused_by_name(wrong, word):
    with pytest.raises(UserError, match=word):
        Augmentation(**wrong)
