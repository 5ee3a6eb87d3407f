"""Training: what one step does, what an epoch reports, and what must be kept to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from models.averaging import WeightAverage
from models.discriminator import MaskHistory, PatchDiscriminator
from models.inference import SmearBatch, precision, predict
from models.losses import AdversarialLoss, l1_loss, overlap_loss, verdict_loss
from models.network import HEAD_KEYS, PRESETS, TIER_KEYS, TIERS, NetworkOutput, ThreeTierDCFNet
from models.voices import weigh_voices

LOSS_KEYS = ("loss_cls", "loss_L1", "loss_overlap", "loss_G_GAN", "loss_D")
READY_DICE = 0.8  # a decoder that reaches this on masks it can be checked on is trusted on images without one
LARGEST_GRADIENT = 5.0


@dataclass(frozen=True)
class TrainerSettings:
    """How to train; each field is the option of the same name.

    The defaults here are the plainest; the training command's own stand in ``options.definitions``.
    """

    niter: int = 100
    niter_decay: int = 150
    lr: float = 5e-4
    lr_discriminator: float = 2e-4
    weight_decay: float = 0.02
    lambda_class: float = 10.0
    lambda_L1: float = 60.0  # noqa: N815 - the published spelling
    lambda_overlap: float = 10.0
    lambda_GAN: float = 1.0  # noqa: N815
    gan_mode: str = "lsgan"
    pool_size: int = 32
    true_mask_share: float = 0.5
    unpaired_binary: str = "auto"
    label_smoothing: float = 0.0
    class_weights: str = "none"
    tier_lr: tuple[float, float, float] = (1.0, 1.0, 1.0)
    earlier_lr: float = 0.0
    warmup: int = 0
    ema: float = 0.0
    gates: str = "on"
    seed: int = 0

    @property
    def epochs(self) -> int:
        """Length of the schedule."""
        return self.niter + self.niter_decay


def learning_rate_factor(epoch: int, niter: int, niter_decay: int) -> float:
    """Share of the first learning rate in ``epoch`` (0-based): 1, then linear to 0 just after the last epoch."""
    return 1.0 - max(0, epoch + 1 - niter) / (niter_decay + 1)


@dataclass
class Evaluation:
    """How the network does on a split.

    Attributes:
        index: (N,) positions of the images.
        label: (N,) 0, 1, or -1 where unknown.
        logits: (N, 4), the verdicts.
        voices: (N, 4), what they were weighed from.
        loss: mean cross-entropy of Global over known labels; NaN where there is none.
        dice: pooled over the images with a true mask; None where there is none.
    """

    index: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    voices: np.ndarray
    loss: float
    dice: float | None

    def accuracy(self, head: str) -> float:
        """Share of right verdicts of a head over known labels; NaN where there is none."""
        return self._share_right(self.logits[:, HEAD_KEYS.index(head)])

    def own_accuracy(self, tier: str) -> float:
        """The same of what a tier says by itself, without the tiers before it."""
        return self._share_right(self.voices[:, TIER_KEYS.index(tier)])

    def _share_right(self, logit: np.ndarray) -> float:
        known = self.label >= 0
        return float(((logit[known] > 0) == self.label[known]).mean()) if known.any() else math.nan

    def auroc(self, head: str) -> float | None:
        """Area under the ROC curve of a head; None unless both classes are there."""
        from sklearn.metrics import roc_auc_score

        known = self.label >= 0
        if len(np.unique(self.label[known])) < 2:
            return None
        return float(roc_auc_score(self.label[known], self.logits[known, HEAD_KEYS.index(head)]))


class EpochTotals:
    """Sums over an epoch, kept on the device so that no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self.losses = torch.zeros(len(LOSS_KEYS), device=device, dtype=torch.float64)
        self.loss_weights = torch.zeros(len(LOSS_KEYS), device=device, dtype=torch.float64)
        self.right = torch.zeros(len(HEAD_KEYS), device=device, dtype=torch.float64)
        self.voices_right = torch.zeros(len(HEAD_KEYS), device=device, dtype=torch.float64)
        self.known = torch.zeros((), device=device, dtype=torch.float64)
        self.shared = torch.zeros((), device=device, dtype=torch.float64)
        self.areas = torch.zeros((), device=device, dtype=torch.float64)
        self.images = 0

    def add(self, losses: Sequence[Tensor], output: NetworkOutput, batch: SmearBatch) -> None:
        """Add a step's loss terms, verdicts and mask overlap."""
        self.images += len(batch.label)
        known = (batch.label >= 0).unsqueeze(1)
        # Each term is a mean over the images it speaks of: the labelled ones, or those with a true mask.
        paired = batch.has_mask.sum().double()
        weights = torch.stack([known.sum().double(), *[paired] * (len(LOSS_KEYS) - 1)])
        self.losses += torch.stack([loss.detach().double() for loss in losses]) * weights
        self.loss_weights += weights
        anemic = (batch.label > 0).unsqueeze(1)
        self.right += ((output.logits.detach() > 0) == anemic).logical_and(known).sum(dim=0)
        self.voices_right += ((output.voices.detach() > 0) == anemic).logical_and(known).sum(dim=0)
        self.known += known.sum()
        predicted = (output.mask_logit.detach() > 0).logical_and(batch.has_mask.view(-1, 1, 1, 1))
        true = batch.mask.bool().logical_and(batch.has_mask.view(-1, 1, 1, 1))
        self.shared += predicted.logical_and(true).sum()
        self.areas += predicted.sum() + true.sum()

    def report(self, open_tiers: int) -> dict[str, Any]:
        """The epoch's means; heads that are not open yet are left out."""
        losses = (self.losses / self.loss_weights.clamp(min=1)).tolist()
        right, voices_right = ((count / self.known).tolist() for count in (self.right, self.voices_right))
        heads = (*TIER_KEYS[:open_tiers], "global")
        accuracy = {head: right[HEAD_KEYS.index(head)] for head in heads}
        own = dict(zip(TIER_KEYS[:open_tiers], voices_right, strict=False))
        areas = float(self.areas)
        dice = 2 * float(self.shared) / areas if areas else None
        return {**dict(zip(LOSS_KEYS, losses, strict=True)), "accuracy": accuracy, "own_accuracy": own, "dice": dice}


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay.

    Attributes:
        tier: 0, 1 or 2; None for the decoder and the fusion, which learn at the network's own rate throughout.
        weight_decay: of the settings for weights; 0 for biases, norms and other vectors.
        parameters: these.
    """

    tier: int | None
    weight_decay: float
    parameters: list[nn.Parameter]


def parameter_groups(network: ThreeTierDCFNet, weight_decay: float) -> list[ParameterGroup]:
    """Group a network's parameters by tier, and within it by whether weight decay is for them."""
    tiers = [list(tier.parameters()) for tier in network.tiers]
    taken = {id(parameter) for tier in tiers for parameter in tier}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    groups = []
    for tier, parameters in [*enumerate(tiers), (None, rest)]:
        groups.append(ParameterGroup(tier, weight_decay, [p for p in parameters if p.ndim > 1]))
        groups.append(ParameterGroup(tier, 0.0, [p for p in parameters if p.ndim <= 1]))
    return groups


class Trainer:
    """Trains the network's open tier, its mask decoder and the discriminator.

    Args:
        network: moved to the device here.
        settings: how to train.
        device: CPU or one GPU.
        samples: how many images there are in all (indices of the batches lie below it).
        any_masks: some image has a true mask; without one, decoder and discriminator rest.
        all_masks: every training image has one, which spares a wait on the device in each step.
        class_counts: training images labelled Healthy and Anemic, for balanced class weights.
    """

    def __init__(
        self,
        network: ThreeTierDCFNet,
        settings: TrainerSettings,
        device: torch.device,
        *,
        samples: int,
        any_masks: bool,
        all_masks: bool,
        class_counts: tuple[int, int] = (1, 1),
    ) -> None:
        self.settings, self.device, self.samples = settings, device, samples
        self.any_masks, self.all_masks = any_masks, all_masks
        self.decoder_ready = False
        if not any_masks:
            network.rest_decoder()
        network.tunes_earlier = settings.earlier_lr > 0 or settings.gates == "off"
        network.learns_end_to_end = settings.gates == "off"
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.groups = parameter_groups(network, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "weight_decay": group.weight_decay} for group in self.groups],
            lr=settings.lr,
            fused=device.type == "cuda",
        )
        self.opened_in = [0, *[0 if settings.gates == "off" else None] * (TIERS - 1)]
        if settings.gates == "off":
            network.open(TIERS)
        self.average = WeightAverage(self.network, settings.ema) if settings.ema > 0 else None
        self.class_weights = class_weights(settings.class_weights, class_counts).to(device)
        self.adversarial = AdversarialLoss(settings.gan_mode) if self._judges_masks() else None
        width = PRESETS[network.architecture.preset].discriminator_width
        self.discriminator = PatchDiscriminator(width).to(device).to(memory_format=torch.channels_last)
        self.optimizer_discriminator = torch.optim.Adam(
            self.discriminator.parameters(), lr=settings.lr_discriminator, betas=(0.5, 0.999)
        )
        self.history = MaskHistory(settings.pool_size, settings.seed)

    @property
    def judge(self) -> ThreeTierDCFNet:
        """The network that judges and is saved: the running average where one is kept, else the one that learns."""
        return self.network if self.average is None else cast(ThreeTierDCFNet, self.average.network)

    def restart_average(self) -> None:
        """Begin the running average anew, from the weights as they are now."""
        if self.average is not None:
            self.average = WeightAverage(self.network, self.settings.ema)

    def _judges_masks(self) -> bool:
        return self.settings.gan_mode != "none" and self.any_masks

    @property
    def uses_stand_in(self) -> bool:
        """Whether the binary stream sees Otsu's mask of an image that has no true one."""
        rule = self.settings.unpaired_binary
        return rule == "otsu" or (rule == "auto" and not self.decoder_ready)

    def see_given(self, batch: SmearBatch) -> Tensor:
        """Whose given mask the binary stream sees in validation: the stand-ins where they are in use, no true one."""
        return ~batch.has_mask & self.uses_stand_in

    def set_learning_rate(self, epoch: int) -> float:
        """Set the rates for ``epoch`` (0-based) and return the network's own, which the decoder learns at."""
        settings = self.settings
        factor = learning_rate_factor(epoch, settings.niter, settings.niter_decay)
        for own, group in zip(self.groups, self.optimizer.param_groups, strict=True):
            share = 1.0 if own.tier is None else self.tier_rate(own.tier, epoch)
            # Both, because a resumed run may have been given others.
            group.update(lr=settings.lr * factor * share, weight_decay=own.weight_decay)
        for group in self.optimizer_discriminator.param_groups:
            group["lr"] = settings.lr_discriminator * factor
        return settings.lr * factor

    def tier_rate(self, tier: int, epoch: int) -> float:
        """A tier's share of the learning rate: its own factor, less while it warms up and once a later one trains."""
        opened = self.opened_in[tier]
        if opened is None:
            return 0.0
        warm = min(1.0, (epoch - opened + 1) / (self.settings.warmup + 1))
        earlier = tier < self.network.open_tiers - 1 and not self.network.learns_end_to_end
        return self.settings.tier_lr[tier] * warm * (self.settings.earlier_lr if earlier else 1.0)

    def train_epoch(
        self, batches: Iterable[SmearBatch], epoch: int, after_step: Callable[[EpochTotals], None] | None = None
    ) -> dict[str, Any]:
        """Train one epoch.

        Args:
            batches: of training images.
            epoch: 0-based; with the seed it fixes which images show their true mask to the binary stream.
            after_step: called after each step, for a progress bar.

        Returns:
            Mean loss terms, accuracy by open head and pooled Dice.

        Raises:
            FloatingPointError: a loss term is not finite; nothing was saved since the last epoch.
        """
        self.network.train()
        totals = EpochTotals(self.device)
        shows_true = self._draw_true_masks(epoch)
        for batch in batches:
            self._step(batch, shows_true[batch.index], totals)
            if after_step is not None:
                after_step(totals)
        report = totals.report(self.network.open_tiers)
        wrong = [key for key in LOSS_KEYS if not math.isfinite(report[key])]
        if wrong:
            raise FloatingPointError(f"{', '.join(wrong)} is not finite")
        return report

    def _draw_true_masks(self, epoch: int) -> Tensor:
        """(samples,) bool: whose true mask the binary stream sees in this epoch; depends on seed and epoch alone."""
        generator = np.random.default_rng(np.random.SeedSequence([self.settings.seed, epoch, 17]))
        shown = generator.random(self.samples) < self.settings.true_mask_share
        return torch.from_numpy(shown).to(self.device)

    def _step(self, batch: SmearBatch, shows_true: Tensor, totals: EpochTotals) -> None:
        see_given = torch.where(batch.has_mask, shows_true, torch.full_like(shows_true, self.uses_stand_in))
        with precision(self.device):
            output = self.network(batch.rgb, batch.mask, see_given)
        pairs = self._pairs(batch)
        rgb, true = batch.rgb[pairs], batch.mask[pairs]
        probability = output.mask_probability[pairs]
        judged = self.adversarial is not None and len(rgb) > 0
        discriminator_loss = (
            self._train_discriminator(rgb, true, probability.detach())
            if judged
            else torch.zeros((), device=self.device)
        )
        losses = self._generator_losses(output, batch, rgb, true, probability, judged)
        weights = (
            self.settings.lambda_class,
            self.settings.lambda_L1,
            self.settings.lambda_overlap,
            self.settings.lambda_GAN,
        )
        total = sum((w * loss for w, loss in zip(weights, losses, strict=True)), torch.zeros((), device=self.device))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        shown = losses[0] / len(self.network.learning_voices)  # by voice, so that it does not rise as tiers open
        totals.add([shown, *losses[1:], discriminator_loss], output, batch)

    def _pairs(self, batch: SmearBatch) -> Tensor | slice:
        """Which images of a batch have a true mask."""
        if self.all_masks:
            return slice(None)
        return batch.has_mask.nonzero().squeeze(1) if self.any_masks else slice(0, 0)

    def _generator_losses(
        self, output: NetworkOutput, batch: SmearBatch, rgb: Tensor, true: Tensor, probability: Tensor, judged: bool
    ) -> list[Tensor]:
        """Verdict, L1, overlap and adversarial terms, unweighted."""
        learning = [output.voices[:, voice] for voice in self.network.learning_voices]  # a list as index would wait
        verdict = verdict_loss(
            torch.stack(learning, dim=1),
            batch.label,
            self._say_in_verdict(batch.label),
            smoothing=self.settings.label_smoothing,
        )
        if len(rgb) == 0:
            return [verdict, *(torch.zeros((), device=self.device) for _ in range(3))]
        return [
            verdict,
            l1_loss(probability, true),
            overlap_loss(probability, true),
            self._fooling_loss(rgb, probability, judged),
        ]

    def _say_in_verdict(self, label: Tensor) -> Tensor:
        """(B,) weight of each image in the verdict's loss: its class's, or 0 where the class is unknown."""
        return self.class_weights[label.clamp(min=0)] * (label >= 0)

    def _fooling_loss(self, rgb: Tensor, probability: Tensor, judged: bool) -> Tensor:
        if not judged or self.adversarial is None:
            return torch.zeros((), device=self.device)
        self.discriminator.requires_grad_(False)  # its weights do not learn from the generator's loss
        with precision(self.device):
            scores = self.discriminator(rgb, probability)
        self.discriminator.requires_grad_(True)
        return self.adversarial(scores.float(), real=True)

    def _train_discriminator(self, rgb: Tensor, true: Tensor, generated: Tensor) -> Tensor:
        assert self.adversarial is not None
        old_rgb, old_mask = self.history.exchange(rgb, generated)
        with precision(self.device):
            real, fake = self.discriminator(rgb, true), self.discriminator(old_rgb, old_mask)
        loss = (self.adversarial(real.float(), real=True) + self.adversarial(fake.float(), real=False)) / 2
        self.optimizer_discriminator.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer_discriminator.step()
        return loss.detach()

    def validate(self, batches: Iterable[SmearBatch]) -> Evaluation:
        """Judge the validation split and weigh the voices by it; the verdicts returned are those with the new weights.

        Raises:
            FloatingPointError: a verdict is not finite.
        """
        evaluation = self.evaluate(batches)
        network = self.judge
        fusion = network.architecture.fusion
        found = weigh_voices(evaluation.voices, evaluation.label, network.open_tiers, fusion=fusion)
        for each in (self.network, network):
            each.weights.copy_(torch.from_numpy(found))
        voices = torch.from_numpy(evaluation.voices).to(network.weights)
        return self._evaluation(evaluation.index, evaluation.label, voices, network.verdicts(voices), evaluation.dice)

    def evaluate(self, batches: Iterable[SmearBatch]) -> Evaluation:
        """Judge a split without learning anything: the binary stream sees no true mask.

        Raises:
            FloatingPointError: a verdict is not finite.
        """
        index, label, logits, voices = [], [], [], []
        shared, areas = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for prediction in predict(self.judge, batches, self.device, self.see_given):
            batch = prediction.batch
            index.append(batch.index)
            label.append(batch.label)
            logits.append(prediction.logits)
            voices.append(prediction.voices)
            paired = batch.has_mask.view(-1, 1, 1, 1)
            predicted, true = (prediction.mask_probability > 0.5) & paired, batch.mask.bool() & paired
            shared += (predicted & true).sum()
            areas += predicted.sum() + true.sum()
        if not index:
            nothing = np.zeros((0, len(HEAD_KEYS)))
            return Evaluation(np.zeros(0, int), np.zeros(0, int), nothing, nothing, math.nan, None)
        dice = 2 * float(shared) / float(areas) if float(areas) else None
        order, labels = torch.cat(index).cpu().numpy(), torch.cat(label).cpu().numpy()
        return self._evaluation(order, labels, torch.cat(voices), torch.cat(logits), dice)

    @staticmethod
    def _evaluation(
        index: np.ndarray, label: np.ndarray, voices: Tensor, logits: Tensor, dice: float | None
    ) -> Evaluation:
        """Put an evaluation together.

        Raises:
            FloatingPointError: a verdict is not finite.
        """
        if not bool(logits.isfinite().all()):
            raise FloatingPointError("a verdict on the validation split is not finite")
        known = torch.from_numpy(label >= 0).to(logits)
        labels = torch.from_numpy(label).to(logits.device)
        loss = float(verdict_loss(logits[:, -1:], labels, known)) if known.any() else math.nan
        return Evaluation(index, label, logits.cpu().numpy(), voices.cpu().numpy(), loss, dice)

    def note_decoder(self, dice: float | None) -> None:
        """Trust the decoder on images without a true mask once it has shown that it finds cells."""
        if self.any_masks and dice is not None and dice >= READY_DICE:
            self.decoder_ready = True

    def open_tier(self, tier: int, epoch: int) -> None:
        """Let the network train its ``tier``-th tier (1 to 3) from ``epoch`` (0-based) on."""
        if self.opened_in[tier - 1] is None:
            self.opened_in[tier - 1] = epoch
            if self.average is not None:
                self.average.steps = 0  # else the new tier's random start would be remembered for long
        for network in {id(each): each for each in (self.network, self.judge)}.values():
            network.open(tier)

    def state(self) -> dict[str, Any]:
        """Everything that is needed to go on exactly, as plain data and tensors."""
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return {
            "network": dict(self.network.state_dict()),
            "open_tiers": self.network.open_tiers,
            "opened_in": [-1 if epoch is None else epoch for epoch in self.opened_in],
            "average": None if self.average is None else self.average.state(),
            "decoder_ready": self.decoder_ready,
            "discriminator": dict(self.discriminator.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_discriminator": self.optimizer_discriminator.state_dict(),
            "history": self.history.state(),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what ``state`` gave."""
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state(state["average"])
        self.opened_in = [None if epoch < 0 else int(epoch) for epoch in state["opened_in"]]
        for network in (self.network, self.judge):
            network.open(int(state["open_tiers"]))
        self.decoder_ready = bool(state["decoder_ready"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(_optimizer_state(state["optimizer"]))
        self.optimizer_discriminator.load_state_dict(_optimizer_state(state["optimizer_discriminator"]))
        self.history.load_state(state["history"], self.device)
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"][0], self.device)


def class_weights(rule: str, counts: tuple[int, int]) -> Tensor:
    """(2,) weight of a Healthy and of an Anemic image in the verdict's loss; balanced gives both classes equal say."""
    if rule == "none" or 0 in counts:
        return torch.ones(2)
    return sum(counts) / (2.0 * torch.tensor(counts, dtype=torch.float32))


def _optimizer_state(stored: dict[str, Any]) -> dict[str, Any]:
    """Give an optimiser's stored state its integer keys and tuples back."""
    groups = [{**group, "betas": tuple(group["betas"])} for group in stored["param_groups"]]
    return {"state": {int(key): value for key, value in stored["state"].items()}, "param_groups": groups}
