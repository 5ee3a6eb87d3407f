"""What a step does: each loss term changes what it should, unpaired images train the classifier alone, tiers learn in
their order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from models.convolutions import operators_agree
from models.inference import crop_offsets, predict, see_all, see_none
from models.network import Architecture, NetworkOutput, ThreeTierDCFNet
from models.trainer import LARGEST_GRADIENT, LOSS_KEYS, EpochTotals, Trainer, TrainerSettings, learning_rate_factor
from util.checkpoint import load_checkpoint, save_checkpoint

SIZE = 64


@dataclass
class Batch:
    rgb: torch.Tensor
    mask: torch.Tensor
    has_mask: torch.Tensor
    paired: torch.Tensor
    label: torch.Tensor
    index: torch.Tensor


class Batches:
    """Discs on a field; the class is how bright they are. The same each epoch."""

    def __init__(self, count=8, size=SIZE, paired=True, batch=4, seed=0):
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[:size, :size]
        self.label = torch.arange(count) % 2
        discs = [((rows - y) ** 2 + (columns - x) ** 2) < 100 for y, x in rng.integers(15, size - 15, (count, 2))]
        self.mask = torch.from_numpy(np.stack(discs)).float().unsqueeze(1)
        shade = 0.3 + 0.4 * self.label.view(-1, 1, 1, 1)
        self.rgb = (0.9 - self.mask * shade).expand(-1, 3, -1, -1).clone()
        self.has_mask = torch.full((count,), paired) if isinstance(paired, bool) else torch.tensor(paired)
        self.batch = batch

        self.seen = 0

    def set_epoch(self, epoch, seen=0):
        self.seen = seen

    def __len__(self):
        return -(-(len(self.label) - self.seen) // self.batch)

    def __iter__(self):
        for index in torch.arange(len(self.label))[self.seen :].split(self.batch):
            has_mask = self.has_mask[index]
            paired = has_mask.nonzero().squeeze(1)
            yield Batch(self.rgb[index], self.mask[index], has_mask, paired, self.label[index], index)


def make_trainer(any_masks=True, all_masks=True, **changes):
    torch.manual_seed(0)
    settings = replace(TrainerSettings(niter=4, niter_decay=0, pool_size=4, lr=1e-3), **changes)
    network = ThreeTierDCFNet(Architecture("small", SIZE, 0.1))
    return Trainer(network, settings, torch.device("cpu"), samples=8, any_masks=any_masks, all_masks=all_masks)


def weights(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(before, module):
    return [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]


@pytest.mark.parametrize(
    ("niter", "decay", "expected"),
    [(2, 3, [1, 1, 0.75, 0.5, 0.25]), (3, 0, [1, 1, 1]), (0, 1, [0.5])],
)
def test_the_learning_rate_is_constant_then_linear_to_zero(niter, decay, expected):
    factors = [learning_rate_factor(epoch, niter, decay) for epoch in range(niter + decay)]
    assert factors == pytest.approx(expected)
    if decay:
        assert learning_rate_factor(niter + decay, niter, decay) == pytest.approx(0.0)


def test_the_rate_reaches_both_optimisers():
    trainer = make_trainer(niter=1, niter_decay=1)
    assert trainer.set_learning_rate(1) == pytest.approx(5e-4)
    rates = {own.tier: group["lr"] for own, group in zip(trainer.groups, trainer.optimizer.param_groups, strict=True)}
    assert rates == {0: 5e-4, 1: 0.0, 2: 0.0, None: 5e-4}  # tiers that are shut do not learn
    assert {g["lr"] for g in trainer.optimizer_discriminator.param_groups} == {1e-4}


def only(**given):
    """All weights zero but those given."""
    return {
        "lambda_class": 0.0,
        "lambda_L1": 0.0,
        "lambda_overlap": 0.0,
        "lambda_GAN": 0.0,
        "gan_mode": "none",
        **given,
    }


@pytest.mark.parametrize("term", ["lambda_L1", "lambda_overlap"])
def test_a_mask_term_alone_trains_the_masks_and_no_verdict(term):
    trainer = make_trainer(**only(**{term: 60.0}))
    batches = Batches()
    head = weights(trainer.network.tiers[0].head)
    first = trainer.train_epoch(batches, 0)
    for epoch in range(1, 8):
        last = trainer.train_epoch(batches, epoch)
    key = {"lambda_L1": "loss_L1", "lambda_overlap": "loss_overlap"}[term]
    assert last[key] < 0.9 * first[key]
    assert changed(head, trainer.network.tiers[0].head) == []


def test_the_weight_of_l1_scales_its_gradient(monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)

    def gradient(weight):
        trainer = make_trainer(**only(lambda_L1=weight))
        monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
        trainer.train_epoch(Batches(batch=8), 0)
        return trainer.network.decoder.logit.weight.grad.clone()

    torch.testing.assert_close(gradient(60.0), 6 * gradient(10.0), rtol=1e-4, atol=1e-6)


def first_moments(trainer, module):
    """Adam's running mean gradients: zero if and only if no gradient ever came."""
    return max(float(trainer.optimizer.state[p]["exp_avg"].abs().max()) for p in module.parameters())


def test_the_verdict_alone_trains_tier_and_head_but_no_decoder():
    trainer = make_trainer(**only(lambda_class=1.0))
    for epoch in range(2):  # the head starts at zero, so the tier behind it learns from the second step on
        trainer.train_epoch(Batches(), epoch)
    assert first_moments(trainer, trainer.network.decoder) == 0
    assert first_moments(trainer, trainer.network.tiers[0].head) > 0
    assert first_moments(trainer, trainer.network.tiers[0].rgb) > 0


def test_the_adversarial_term_trains_discriminator_and_decoder():
    with_gan = make_trainer(**only(lambda_GAN=1.0, gan_mode="lsgan"))
    judge = weights(with_gan.discriminator)
    report = with_gan.train_epoch(Batches(), 0)
    assert report["loss_D"] > 0 and report["loss_G_GAN"] > 0
    assert changed(judge, with_gan.discriminator)
    assert first_moments(with_gan, with_gan.network.decoder) > 0
    assert all(p.requires_grad for p in with_gan.discriminator.parameters())


def test_gan_mode_none_leaves_the_discriminator_alone():
    trainer = make_trainer(gan_mode="none")
    judge = weights(trainer.discriminator)
    report = trainer.train_epoch(Batches(), 0)
    assert (report["loss_D"], report["loss_G_GAN"]) == (0.0, 0.0)
    assert changed(judge, trainer.discriminator) == []


def test_the_pool_fills_and_changes_what_the_discriminator_learns():
    def discriminator(pool_size):
        trainer = make_trainer(pool_size=pool_size)
        for epoch in range(3):
            trainer.train_epoch(Batches(), epoch)
        return trainer

    none, some = discriminator(0), discriminator(4)
    assert none.history.filled == 0 and some.history.filled == 4
    assert some.history.pairs.shape == (4, 4, SIZE, SIZE)
    assert changed(weights(none.discriminator), some.discriminator)


def test_unpaired_images_train_the_classifier_alone():
    trainer = make_trainer(any_masks=False, all_masks=False)
    decoder, judge = weights(trainer.network.decoder), weights(trainer.discriminator)
    tier = weights(trainer.network.tiers[0])
    report = trainer.train_epoch(Batches(paired=False), 0)
    assert [report[key] for key in LOSS_KEYS[1:]] == [0.0] * 4 and report["dice"] is None
    assert report["loss_cls"] > 0
    assert changed(decoder, trainer.network.decoder) == [] and changed(judge, trainer.discriminator) == []
    assert changed(tier, trainer.network.tiers[0])


def test_of_a_mixed_batch_only_the_paired_images_train_the_masks():
    paired = [True, False] * 4
    trainer = make_trainer(all_masks=False, **only(lambda_L1=1.0))
    batches = Batches(paired=paired)
    expected = Batches(paired=paired)
    report = trainer.train_epoch(batches, 0)
    trainer = make_trainer(all_masks=False, **only(lambda_L1=1.0))
    expected.mask[1::2] = 1 - expected.mask[1::2]  # stand-ins: nothing may depend on them but the binary stream
    again = trainer.train_epoch(expected, 0)
    assert report["loss_L1"] == pytest.approx(again["loss_L1"])


def seen_by_binary_stream(trainer, batches):
    seen = []
    hook = trainer.network.tiers[0].binary.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    trainer.train_epoch(batches, 0)
    hook.remove()
    return torch.nn.functional.pixel_shuffle(torch.cat(seen), 2)  # the stream reads a mask folded 2 x 2


def test_the_binary_stream_sees_the_share_of_true_masks_asked_for():
    batches = Batches()
    assert torch.equal(seen_by_binary_stream(make_trainer(true_mask_share=1.0), batches), batches.mask)
    predicted = seen_by_binary_stream(make_trainer(true_mask_share=0.0), batches)
    assert all(not torch.equal(p, m) for p, m in zip(predicted, batches.mask, strict=True))


@pytest.mark.parametrize(
    ("rule", "ready", "stand_in"),
    [("otsu", True, True), ("predicted", False, False), ("auto", False, True), ("auto", True, False)],
)
def test_what_an_unpaired_image_shows_the_binary_stream(rule, ready, stand_in):
    trainer = make_trainer(all_masks=False, unpaired_binary=rule)
    trainer.decoder_ready = ready
    batches = Batches(paired=[True] * 4 + [False] * 4)
    seen = seen_by_binary_stream(trainer, batches)
    assert torch.equal(seen[4:], batches.mask[4:]) == stand_in


def test_the_decoder_is_trusted_once_it_has_shown_that_it_finds_cells():
    trainer = make_trainer()
    trainer.note_decoder(0.79)
    assert not trainer.decoder_ready
    trainer.note_decoder(0.81)
    trainer.note_decoder(0.1)
    assert trainer.decoder_ready
    never = make_trainer(any_masks=False, all_masks=False)
    never.note_decoder(0.99)
    assert not never.decoder_ready


def test_epoch_figures_are_means_over_images_whatever_the_batches():
    batches = Batches(count=7, batch=3)
    trainer = make_trainer(**only(lambda_class=1.0))
    trainer.optimizer.step = lambda: None
    trainer.network.train()
    for module in trainer.network.modules():  # per-image results must not depend on the batch
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    trainer.network.train = lambda mode=True: trainer.network
    torch.nn.init.normal_(trainer.network.tiers[0].head.weight, generator=torch.Generator().manual_seed(2))
    for tier in trainer.network.tiers:
        tier.dropout.p = 0.0
    report = trainer.train_epoch(batches, 0)
    whole = Batches(count=7, batch=7)
    trainer2_report = trainer.train_epoch(whole, 0)
    assert report["loss_cls"] == pytest.approx(trainer2_report["loss_cls"], rel=1e-4)
    assert report["accuracy"] == pytest.approx(trainer2_report["accuracy"])


def test_evaluation_counts_by_hand():
    trainer = make_trainer()
    evaluation = trainer.evaluate(Batches())
    right = (evaluation.logits[:, 0] > 0) == evaluation.label
    assert evaluation.accuracy("tier1") == pytest.approx(right.mean())
    assert sorted(evaluation.index.tolist()) == list(range(8))
    unknown = Batches()
    unknown.label = torch.full((8,), -1)
    evaluation = trainer.evaluate(unknown)
    assert math.isnan(evaluation.accuracy("global")) and evaluation.auroc("global") is None


def test_a_loss_that_is_not_finite_is_named():
    trainer, batches = make_trainer(), Batches()
    batches.rgb[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"loss_cls.* is not finite"):
        trainer.train_epoch(batches, 0)


@pytest.mark.parametrize(
    ("load", "fine", "expected"), [(300, 300, [0]), (320, 300, [0, 20]), (650, 300, [0, 175, 350])]
)
def test_crops_cover_the_image(load, fine, expected):
    assert crop_offsets(load, fine) == expected
    covered = {pixel for start in crop_offsets(load, fine) for pixel in range(start, start + fine)}
    assert covered == set(range(load))


def test_larger_images_are_covered_by_crops_and_averaged():
    network = ThreeTierDCFNet(Architecture("small", SIZE, 0.0)).eval()
    torch.nn.init.normal_(network.tiers[0].head.weight)
    batches = Batches(count=2, size=96)
    whole = next(iter(predict(network, batches, torch.device("cpu"), see_none)))
    assert whole.mask_probability.shape == (2, 1, 96, 96)
    corners = []
    for top in (0, 32):
        for left in (0, 32):
            rgb = batches.rgb[..., top : top + SIZE, left : left + SIZE]
            mask = batches.mask[..., top : top + SIZE, left : left + SIZE]
            with torch.no_grad():
                corners.append(network(rgb, mask, torch.zeros(2, dtype=torch.bool)))
    torch.testing.assert_close(whole.logits, torch.stack([c.logits for c in corners]).mean(0))
    torch.testing.assert_close(whole.mask_probability[..., 0, 0], corners[0].mask_probability[..., 0, 0])
    middle = torch.stack(
        [
            c.mask_probability[..., 40 - t, 40 - s]
            for c, (t, s) in zip(corners, [(0, 0), (0, 32), (32, 0), (32, 32)], strict=True)
        ]
    )
    torch.testing.assert_close(whole.mask_probability[..., 40, 40], middle.mean(0))


@pytest.mark.parametrize(
    ("see", "paired_given", "unpaired_given"),
    [(see_none, False, False), (see_all, True, True), ("stand-ins", False, True), ("no stand-ins", False, False)],
)
def test_what_the_binary_stream_sees_outside_training(see, paired_given, unpaired_given):
    trainer = make_trainer(all_masks=False, unpaired_binary="otsu" if see == "stand-ins" else "predicted")
    batches = Batches(paired=[True] * 4 + [False] * 4, batch=8)
    seen = []
    trainer.network.tiers[0].binary.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    choice = see if callable(see) else trainer.see_given
    next(iter(predict(trainer.network, batches, torch.device("cpu"), choice)))
    mask = torch.nn.functional.pixel_shuffle(seen[0], 2)
    assert torch.equal(mask[:4], batches.mask[:4]) == paired_given
    assert torch.equal(mask[4:], batches.mask[4:]) == unpaired_given


def test_each_term_is_a_mean_over_the_images_it_speaks_of():
    totals = EpochTotals(torch.device("cpu"))
    logits, mask = torch.zeros(4, 4), torch.zeros(4, 1, 8, 8)

    def add(class_loss, mask_loss, label, paired):
        has_mask = torch.tensor(paired)
        batch = Batch(mask, mask, has_mask, has_mask.nonzero().squeeze(1), torch.tensor(label), torch.arange(4))
        totals.add(
            [torch.tensor(class_loss), *[torch.tensor(mask_loss)] * 4], NetworkOutput(logits, logits, mask, []), batch
        )

    add(1.0, 1.0, [0, 1, 0, 1], [True] * 4)
    add(4.0, 6.0, [0, 1, -1, -1], [True, False, False, False])
    report = totals.report(1)
    assert report["loss_cls"] == pytest.approx((4 * 1 + 2 * 4) / 6)
    assert report["loss_L1"] == pytest.approx((4 * 1 + 1 * 6) / 5)


def test_gradients_are_clipped(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, limit: calls.append(limit))
    make_trainer().train_epoch(Batches(), 0)
    assert calls == [LARGEST_GRADIENT] * 2


def test_moments_lie_in_memory_as_their_weights_do_when_a_run_goes_on(tmp_path):
    """A GPU's fused step refuses others; files keep no layout."""
    begun = make_trainer()
    begun.set_learning_rate(0)
    begun.train_epoch(Batches(), 0)
    save_checkpoint(tmp_path / "state.safetensors", begun.state())
    trainer = make_trainer()
    trainer.load_state(load_checkpoint(tmp_path / "state.safetensors"))
    for before, optimizer in (
        (begun.optimizer, trainer.optimizer),
        (begun.optimizer_discriminator, trainer.optimizer_discriminator),
    ):
        states = [state for state in optimizer.state.values() if state]
        assert len(states) == len([state for state in before.state.values() if state]) > 0
        for (parameter, own), earlier in zip(optimizer.state.items(), before.state.values(), strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                assert own[name].stride() == parameter.stride()
                assert torch.equal(own[name], earlier[name])


def test_validation_knows_how_many_batches_there_are():
    from models.session import Interruptible

    asked = []
    batches = Interruptible(Batches(count=8, batch=4), lambda: asked.append(1))
    assert len(batches) == 2 == len(list(batches)) == len(asked)


def silent_heads(network):
    """Give every head something to say, so that gradients reach the tiers."""
    for tier in network.tiers:
        torch.nn.init.normal_(tier.head.weight)


def test_an_earlier_tier_is_frozen_or_tuned_at_its_own_rate():
    frozen, tuned = make_trainer(), make_trainer(earlier_lr=0.25)
    for trainer in (frozen, tuned):
        silent_heads(trainer.network)
        trainer.open_tier(2, 1)
    frozen_before, tuned_before = weights(frozen.network.tiers[0]), weights(tuned.network.tiers[0])
    for trainer in (frozen, tuned):
        trainer.set_learning_rate(1)
        trainer.train_epoch(Batches(), 1)
    assert not changed(frozen_before, frozen.network.tiers[0])
    assert changed(tuned_before, tuned.network.tiers[0])
    assert [tuned.tier_rate(tier, 1) for tier in range(3)] == [0.25, 1.0, 0.0]
    assert [frozen.tier_rate(tier, 1) for tier in range(3)] == [0.0, 1.0, 0.0]


def test_tiers_learn_at_their_own_rates():
    trainer = make_trainer(tier_lr=(1.0, 0.1, 3.0), gates="off", lr=1e-3)
    trainer.set_learning_rate(0)
    rates = {own.tier: group["lr"] for own, group in zip(trainer.groups, trainer.optimizer.param_groups, strict=True)}
    assert rates == pytest.approx({0: 1e-3, 1: 1e-4, 2: 3e-3, None: 1e-3})


def test_a_tier_warms_up_from_the_epoch_it_opened_in():
    trainer = make_trainer(warmup=3)
    trainer.open_tier(2, 5)
    assert [trainer.tier_rate(1, epoch) for epoch in (5, 6, 7, 8, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_every_parameter_learns_in_one_group():
    trainer = make_trainer()
    grouped = [id(p) for group in trainer.groups for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in trainer.network.parameters())
    assert all((group.weight_decay > 0) == all(p.ndim > 1 for p in group.parameters) for group in trainer.groups)


def test_without_gates_all_tiers_learn_from_the_start_and_end_to_end():
    trainer = make_trainer(gates="off", **only(lambda_class=1.0))
    silent_heads(trainer.network)
    torch.nn.init.normal_(trainer.network.tiers[1].rgb.entry.project.weight)
    before = [weights(tier.rgb) for tier in trainer.network.tiers]
    trainer.train_epoch(Batches(), 0)
    assert all(changed(old, tier.rgb) for old, tier in zip(before, trainer.network.tiers, strict=True))
    for tier in (trainer.network.tiers[0], trainer.network.tiers[2]):  # only the second tier's verdict is asked
        torch.nn.init.zeros_(tier.head.weight)
    trainer.network.zero_grad()
    batch = next(iter(Batches()))
    trainer.network(batch.rgb, batch.mask, batch.has_mask).voices[:, 1].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.network.tiers[0].merge_rgb.parameters())


def test_with_gates_a_tier_learns_from_its_own_verdict_only():
    trainer = make_trainer(earlier_lr=1.0)
    trainer.open_tier(2, 0)
    silent_heads(trainer.network)
    torch.nn.init.normal_(trainer.network.tiers[1].rgb.entry.project.weight)
    batch = next(iter(Batches()))
    trainer.network(batch.rgb, batch.mask, batch.has_mask).voices[:, 1].sum().backward()
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in trainer.network.tiers[0].parameters())


def test_balanced_classes_have_an_equal_say():
    trainer = make_trainer(class_weights="balanced")
    assert trainer.class_weights.tolist() == [1.0, 1.0]
    from models.trainer import class_weights

    weight = class_weights("balanced", (30, 10))
    assert weight[0] * 30 == pytest.approx(weight[1] * 10)
    assert (weight * torch.tensor([30, 10])).sum() == pytest.approx(40)
    assert class_weights("none", (30, 10)).tolist() == [1, 1]
    trainer.class_weights = weight
    assert trainer._say_in_verdict(torch.tensor([0, 1, -1])).tolist() == pytest.approx([2 / 3, 2.0, 0.0])


def test_validation_weighs_the_voices_and_the_evaluation_is_by_the_new_weights():
    trainer = make_trainer()
    silent_heads(trainer.network)
    batches = Batches(count=40)
    before = trainer.network.weights.clone()
    evaluation = trainer.validate(batches)
    assert not torch.equal(before, trainer.network.weights)
    expected = evaluation.voices @ trainer.network.weights.numpy().T
    np.testing.assert_allclose(evaluation.logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(trainer.evaluate(batches).logits, evaluation.logits, rtol=1e-5, atol=1e-6)


def test_smoothing_and_weights_in_the_verdicts_loss():
    from models.losses import verdict_loss

    logits, label = torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 0])
    smooth = verdict_loss(logits, label, torch.ones(2), smoothing=0.2)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([[0.9], [0.1]]))
    assert smooth == pytest.approx(expected.item())
    weighted = verdict_loss(logits, label, torch.tensor([0.5, 1.5]))
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, label[:, None].float(), reduction="none")
    assert weighted == pytest.approx((0.25 * each[0] + 0.75 * each[1]).item())


def test_a_new_tiers_start_is_soon_forgotten_by_the_average():
    trainer = make_trainer(ema=0.99)
    trainer.average.steps = 500
    trainer.open_tier(2, 7)
    assert trainer.average.steps == 0
    trainer.average.steps = 5
    trainer.open_tier(2, 8)  # it is open already
    assert trainer.average.steps == 5


def test_an_epochs_sums_come_back_under_their_names():
    totals = EpochTotals(torch.device("cpu"))
    names = ("losses", "loss_weights", "right", "voices_right", "known", "shared", "areas")
    for number, name in enumerate(names):
        sums = getattr(totals, name)
        sums += 100 * number + torch.arange(max(1, sums.numel()), dtype=torch.float64).view(sums.shape)
    totals.images = 7
    state = totals.state()
    back = EpochTotals.of_state(state, torch.device("cpu"))
    assert back.images == state["images"] == 7
    for name in names:
        assert torch.equal(state[name], getattr(totals, name)) and torch.equal(
            getattr(back, name), getattr(totals, name)
        )
        assert state[name].data_ptr() != getattr(totals, name).data_ptr(), "later steps would change what is saved"


def test_validating_many_images_leaves_the_trainings_random_numbers_alone():
    """Else a run that goes on, whose process folds its first copy anew, would drop other features."""
    trainer = make_trainer()
    operators_agree.cache_clear()
    before = torch.get_rng_state()
    trainer.validate(Batches(count=64, batch=16))
    assert torch.equal(torch.get_rng_state(), before)
