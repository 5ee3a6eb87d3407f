"""Training: what one step does, what an epoch reports, and what must be kept to go on."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from models.averaging import WeightAverage
from models.discriminator import MaskHistory, PatchDiscriminator
from models.inference import Prediction, SmearBatch, predict
from models.losses import AdversarialLoss, l1_loss, overlap_loss, verdict_loss
from models.network import HEAD_KEYS, PRESETS, TIER_KEYS, TIERS, NetworkOutput, ThreeTierDCFNet
from models.precision import MixedPrecision, fuses_steps
from models.sync_norm import synchronise_norms
from models.voices import weigh_voices
from util.distributed import ALONE, Ranks

LOSS_KEYS = ("loss_cls", "loss_L1", "loss_overlap", "loss_G_GAN", "loss_D")
READY_DICE = 0.8  # a decoder that reaches this on masks it can be checked on is trusted on images without one
LARGEST_GRADIENT = 5.0
SHOWN = 8  # validation images kept for the live view


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
    sync_batchnorm: str = "no"
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

    def confusion(self, head: str) -> list[list[int]]:
        """[[tn, fp], [fn, tp]] of a head over known labels, Anemic the positive class."""
        known = self.label >= 0
        true, said = self.label[known] > 0, self.logits[known, HEAD_KEYS.index(head)] > 0
        return [[int(((true == t) & (said == s)).sum()) for s in (False, True)] for t in (False, True)]

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


@dataclass
class Examples:
    """Some validation images as they were last judged, for whoever watches.

    Attributes:
        rgb: (n, 3, H, W) in [0, 1].
        mask: true masks (n, 1, H, W), or what stands in for them.
        has_mask: (n,) bool, whose mask is a true one.
        predicted: (n, 1, H, W), probability.
    """

    rgb: Tensor
    mask: Tensor
    has_mask: Tensor
    predicted: Tensor

    @classmethod
    def of(cls, prediction: Prediction, count: int) -> Examples:
        """The first ``count`` images of a prediction; copies, so that the batch can go."""
        batch = prediction.batch
        kept = (batch.rgb, batch.mask, batch.has_mask, prediction.mask_probability)
        return cls(*(tensor[:count].clone() for tensor in kept))


class EpochTotals:
    """Sums over an epoch, kept on the device so that no step waits for the host.

    Attributes:
        images: how many images the steps have learned from, in this process.
    """

    _SUMS = ("losses", "loss_weights", "right", "voices_right", "known", "shared", "areas")

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

    def state(self, ranks: Ranks = ALONE) -> dict[str, Any]:
        """The sums over all processes, as plain data and tensors on the host; to be asked by all of them."""
        sums = {name: getattr(self, name) for name in self._SUMS}
        images = self.known.new_full((1,), self.images)
        # Together: each by itself would be a message between the processes and a wait for the device.
        whole = ranks.sum(torch.cat([*(each.reshape(-1) for each in sums.values()), images])).cpu()
        *parts, images = whole.split([*(each.numel() for each in sums.values()), 1])
        found = {name: part.view(sums[name].shape).clone() for name, part in zip(sums, parts, strict=True)}
        return {**found, "images": int(images)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], device: torch.device) -> EpochTotals:
        """What ``state`` gave, to go on with."""
        totals = cls(device)
        for name in cls._SUMS:
            setattr(totals, name, state[name].to(device))
        totals.images = int(state["images"])
        return totals

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
    """Trains the network's open tiers, its mask decoder and the discriminator.

    Args:
        network: moved to the device here.
        settings: how to train.
        device: CPU or one GPU.
        samples: how many images there are in all (indices of the batches lie below it).
        any_masks: some image has a true mask; without one, decoder and discriminator rest.
        all_masks: every training image has one, which spares picking them out of each batch.
        class_counts: training images labelled Healthy and Anemic, for balanced class weights.
        ranks: the processes that train it together, each on its share of every batch.
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.settings, self.device, self.samples, self.ranks = settings, device, samples, ranks
        self.any_masks, self.all_masks = any_masks, all_masks
        self.decoder_ready = False
        self.examples: Examples | None = None
        self.network = self._prepared(network)
        self.groups = parameter_groups(self.network, settings.weight_decay)
        self.optimizer = torch.optim.AdamW(
            [{"params": group.parameters, "weight_decay": group.weight_decay} for group in self.groups],
            lr=settings.lr,
            fused=fuses_steps(device),
        )
        self.opened_in = [0, *[0 if settings.gates == "off" else None] * (TIERS - 1)]
        if settings.gates == "off":
            self.network.open(TIERS)
        self.average = WeightAverage(self.network, settings.ema) if settings.ema > 0 else None
        self.class_weights = class_weights(settings.class_weights, class_counts).to(device)
        self.adversarial = AdversarialLoss(settings.gan_mode) if self._judges_masks() else None
        width = PRESETS[self.network.architecture.preset].discriminator_width
        self.discriminator = PatchDiscriminator(width).to(device).to(memory_format=torch.channels_last)
        self.optimizer_discriminator = torch.optim.Adam(
            self.discriminator.parameters(),
            lr=settings.lr_discriminator,
            betas=(0.5, 0.999),
            fused=fuses_steps(device),
        )
        self.mixed, self.mixed_discriminator = MixedPrecision(device), MixedPrecision(device)
        self.history = MaskHistory(-(-settings.pool_size // ranks.world), settings.seed + ranks.rank)
        self._learner: nn.Module | None = None
        self._learner_tiers = 0  # that were open when it was made
        if ranks.rank > 0:  # each process drops other features; the first one draws as a lone one does
            torch.manual_seed(settings.seed + ranks.rank)

    def _prepared(self, network: ThreeTierDCFNet) -> ThreeTierDCFNet:
        """The network on the device, told what rests, what is tuned further and whose statistics it takes."""
        settings = self.settings
        if not self.any_masks:
            network.rest_decoder()
        network.tunes_earlier = settings.earlier_lr > 0 or settings.gates == "off"
        network.learns_end_to_end = settings.gates == "off"
        if settings.sync_batchnorm == "yes":
            network = cast(ThreeTierDCFNet, synchronise_norms(network, self.ranks, self.device))
        return network.to(self.device).to(memory_format=torch.channels_last)

    def _learning(self) -> nn.Module:
        """The network as a step calls it: of several processes, one whose gradients are the mean over all of them.

        Made anew when a tier opens: so it knows what learns, and need not search for it in every step.
        """
        if not self.ranks.several:
            return self.network
        if self._learner is None or self._learner_tiers != self.network.open_tiers:
            self._learner = None
            gc.collect()  # what listened to the gradients until now must not go on to
            self._learner, self._learner_tiers = self._shared_learner(), self.network.open_tiers
        return self._learner

    def _shared_learner(self) -> nn.Module:
        """The network with shared gradients of what every step uses; of a tier that is shut nothing is shared."""
        shut: list[nn.Module] = [*self.network.tiers[self.network.open_tiers :]]
        if not self.network.architecture.fusion:
            shut.append(self.network.fusion_head)
        resting = [p for module in shut for p in module.parameters() if p.requires_grad]
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        for parameter in resting:
            parameter.requires_grad_(False)
        try:
            return nn.parallel.DistributedDataParallel(
                self.network, device_ids=device_ids, gradient_as_bucket_view=True
            )
        finally:
            for parameter in resting:
                parameter.requires_grad_(True)

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
        self,
        batches: Iterable[SmearBatch],
        epoch: int,
        after_step: Callable[[EpochTotals], None] | None = None,
        *,
        begun: EpochTotals | None = None,
    ) -> dict[str, Any]:
        """Train one epoch, or what is left of it.

        Args:
            batches: of training images.
            epoch: 0-based; with the seed it fixes which images show their true mask to the binary stream.
            after_step: called after each step, for a progress bar.
            begun: the sums over what this epoch has learned from before it was interrupted.

        Returns:
            Mean loss terms, accuracy by open head and pooled Dice.

        Raises:
            FloatingPointError: a loss term is not finite; nothing was saved since the last epoch.
        """
        self.network.train()
        totals = begun or EpochTotals(self.device)
        shows_true = self._draw_true_masks(epoch)
        for batch in batches:
            self._step(batch, shows_true[batch.index], totals)
            if after_step is not None:
                after_step(totals)
        return self.report_of(totals)

    def report_of(self, totals: EpochTotals) -> dict[str, Any]:
        """Means over what all processes have learned from.

        Raises:
            FloatingPointError: a loss term is not finite.
        """
        totals = EpochTotals.of_state(totals.state(self.ranks), torch.device("cpu"))
        report = totals.report(self.network.open_tiers)
        wrong = [key for key in LOSS_KEYS if not math.isfinite(report[key])]
        if wrong:
            raise FloatingPointError(f"{', '.join(wrong)} is not finite")
        return report

    def check_finite(self) -> None:
        """Raise FloatingPointError unless every weight is finite: what is not must never be saved."""
        for module in (self.network, self.discriminator):
            tensors = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
            if not bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all()):
                raise FloatingPointError(f"a weight of {type(module).__name__} is not finite")

    def _draw_true_masks(self, epoch: int) -> Tensor:
        """(samples,) bool: whose true mask the binary stream sees in this epoch; depends on seed and epoch alone."""
        generator = np.random.default_rng(np.random.SeedSequence([self.settings.seed, epoch, 17]))
        shown = generator.random(self.samples) < self.settings.true_mask_share
        return torch.from_numpy(shown).to(self.device)

    def _step(self, batch: SmearBatch, shows_true: Tensor, totals: EpochTotals) -> None:
        see_given = torch.where(batch.has_mask, shows_true, torch.full_like(shows_true, self.uses_stand_in))
        with self.mixed.autocast():
            output = self._learning()(batch.rgb, batch.mask, see_given)
        pairs = self._pairs(batch)
        rgb, true = batch.rgb[pairs], batch.mask[pairs]
        probability = output.mask_probability[pairs]
        judged = self.adversarial is not None and len(rgb) > 0
        verdict_share, mask_share = self._shares(batch, len(rgb))
        anyone = self.all_masks or self.ranks.any([len(rgb) > 0])[0]
        # Of several processes all must come to the discriminator's turn, also one whose share has no true mask.
        discriminator_loss = (
            self._train_discriminator(rgb, true, probability.detach(), mask_share)
            if self.adversarial is not None and anyone
            else torch.zeros((), device=self.device)
        )
        losses = self._generator_losses(output, batch, rgb, true, probability, judged)
        weights = (
            self.settings.lambda_class,
            self.settings.lambda_L1,
            self.settings.lambda_overlap,
            self.settings.lambda_GAN,
        )
        shares = (verdict_share, mask_share, mask_share, mask_share)
        terms = (w * share * loss for w, share, loss in zip(weights, shares, losses, strict=True))
        total = sum(terms, torch.zeros((), device=self.device))
        if self.ranks.several:  # every output is asked for its gradient, or the processes would wait for each other
            total = total + 0.0 * output.mask_logit.float().sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.mixed.backward(total)
        if not anyone:  # as in a lone process the decoder rests on a batch in which nobody has a true mask
            for parameter in self.network.decoder.parameters():
                parameter.grad = None
        self.mixed.step(self.optimizer, self.network.parameters(), LARGEST_GRADIENT)
        if self.average is not None:
            self.average.update()
        shown = losses[0] / len(self.network.learning_voices)  # by voice, so that it does not rise as tiers open
        totals.add([shown, *losses[1:], discriminator_loss], output, batch)

    def _shares(self, batch: SmearBatch, pairs: int) -> tuple[Tensor | float, Tensor | float]:
        """What this process's mean verdict and mask losses weigh, so that all processes' mean is the whole batch's.

        Each is a mean over the labelled images, or those with a true mask, of which the processes have unlike numbers.
        """
        if not self.ranks.several:
            return 1.0, 1.0
        labelled = self._say_in_verdict(batch.label).sum()
        own = torch.stack([labelled, labelled.new_full((), pairs)])  # made on the device: nothing is copied there
        whole = self.ranks.sum(own.clone())
        verdict, mask = (own * self.ranks.world / torch.where(whole > 0, whole, torch.ones_like(whole))).unbind()
        return verdict, mask

    def _pairs(self, batch: SmearBatch) -> Tensor | slice:
        """Which images of a batch have a true mask."""
        if self.all_masks:
            return slice(None)
        return batch.paired if self.any_masks else slice(0, 0)

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
        with self.mixed.autocast():
            scores = self.discriminator(rgb, probability)
        self.discriminator.requires_grad_(True)
        fooled: Tensor = self.adversarial(scores.float(), real=True)
        return fooled

    def _train_discriminator(self, rgb: Tensor, true: Tensor, generated: Tensor, share: Tensor | float) -> Tensor:
        self.optimizer_discriminator.zero_grad(set_to_none=True)
        if len(rgb) > 0:
            loss = self._discriminator_loss(rgb, true, generated)
        else:  # of several processes another one has masks: this one's gradients are zero, but it has them
            loss = 0.0 * torch.stack([parameter.sum() for parameter in self.discriminator.parameters()]).sum()
        self.mixed_discriminator.backward(loss * (share / self.ranks.world))
        self.ranks.add_gradients(self.discriminator)
        self.mixed_discriminator.step(self.optimizer_discriminator)
        return loss.detach()

    def _discriminator_loss(self, rgb: Tensor, true: Tensor, generated: Tensor) -> Tensor:
        assert self.adversarial is not None
        old_rgb, old_mask = self.history.exchange(rgb, generated)
        with self.mixed_discriminator.autocast():
            real, fake = self.discriminator(rgb, true), self.discriminator(old_rgb, old_mask)
        both: Tensor = self.adversarial(real.float(), real=True) + self.adversarial(fake.float(), real=False)
        return both / 2

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
        # Without synchronised norms each process has running statistics of its own; all judge by the first one's.
        self.ranks.copy_from_first(self.judge.buffers())
        index, label, logits, voices = [], [], [], []
        shared, areas = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        self.examples = None
        for prediction in predict(self.judge, batches, self.device, self.see_given):
            batch = prediction.batch
            self.examples = self.examples or Examples.of(prediction, SHOWN)
            index.append(batch.index)
            label.append(batch.label)
            logits.append(prediction.logits)
            voices.append(prediction.voices)
            paired = batch.has_mask.view(-1, 1, 1, 1)
            predicted, true = (prediction.mask_probability > 0.5) & paired, batch.mask.bool() & paired
            shared += (predicted & true).sum()
            areas += predicted.sum() + true.sum()
        shared, areas = self.ranks.sum(shared), self.ranks.sum(areas)
        judged: tuple[list[Tensor], ...] = (index, label, voices, logits)
        if self.ranks.several:
            judged = self._of_all_ranks(judged)
        if not judged[0]:
            nothing = np.zeros((0, len(HEAD_KEYS)))
            return Evaluation(np.zeros(0, int), np.zeros(0, int), nothing, nothing, math.nan, None)
        dice = 2 * float(shared) / float(areas) if float(areas) else None
        order, labels, said, verdicts = (torch.cat(parts) for parts in judged)
        return self._evaluation(order.cpu().numpy(), labels.cpu().numpy(), said, verdicts, dice)

    def _of_all_ranks(self, judged: Sequence[list[Tensor]]) -> tuple[list[Tensor], ...]:
        """What all processes have judged, each image once, in the order in which a lone process would have."""
        own = [torch.cat(parts).cpu() if parts else None for parts in judged]
        given = [parts for parts in self.ranks.gather(own) if parts[0] is not None]
        if not given:
            return tuple([] for _ in judged)
        whole = [torch.cat(parts) for parts in zip(*given, strict=True)]
        order = whole[0].argsort(stable=True)
        return tuple([part[order].to(self.device)] for part in whole)

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

    def _own_state(self) -> dict[str, Any]:
        """What each process has for itself: its draws, and the masks it shows the discriminator again."""
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda, "history": self.history.state()}

    def state(self) -> dict[str, Any]:
        """Everything that is needed to go on exactly, as plain data and tensors; to be asked by all processes."""
        return {
            "network": dict(self.network.state_dict()),
            "open_tiers": self.network.open_tiers,
            "opened_in": [-1 if epoch is None else epoch for epoch in self.opened_in],
            "average": None if self.average is None else self.average.state(),
            "decoder_ready": self.decoder_ready,
            "discriminator": dict(self.discriminator.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_discriminator": self.optimizer_discriminator.state_dict(),
            "scalers": [self.mixed.state(), self.mixed_discriminator.state()],
            "ranks": self.ranks.gather(self._own_state()),
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
        for name in ("optimizer", "optimizer_discriminator"):
            _load_optimizer(getattr(self, name), state[name], self.device)
        for mixed, kept in zip((self.mixed, self.mixed_discriminator), state["scalers"], strict=True):
            mixed.load_state(kept)
        if len(state["ranks"]) == self.ranks.world:
            self._load_own_state(state["ranks"][self.ranks.rank])

    def _load_own_state(self, own: dict[str, Any]) -> None:
        """Restore what is this process's own; of another number of processes each begins it anew."""
        self.history.load_state(own["history"], self.device)
        torch.set_rng_state(own["cpu"])
        if own["cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"][0], self.device)


def class_weights(rule: str, counts: tuple[int, int]) -> Tensor:
    """(2,) weight of a Healthy and of an Anemic image in the verdict's loss; balanced gives both classes equal say."""
    if rule == "none" or 0 in counts:
        return torch.ones(2)
    return sum(counts) / (2.0 * torch.tensor(counts, dtype=torch.float32))


def _load_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any], device: torch.device) -> None:
    """Give an optimiser its stored state back, as its steps on this device want it.

    The run may have been begun on another one. A fused step reads its count on the device: where PyTorch puts the count
    depends on what the groups say when the state is loaded, not later. It also walks weights and moments in the order
    in which they lie in memory, and refuses those that lie otherwise: files keep no layout.
    """
    told = {"fused": fuses_steps(device)}
    groups = [{**group, "betas": tuple(group["betas"]), **told} for group in stored["param_groups"]]
    state = {int(key): value for key, value in stored["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, own in optimizer.state.items():
        for name, value in own.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                own[name] = torch.empty_like(parameter).copy_(value)
