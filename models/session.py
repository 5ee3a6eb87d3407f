"""A training run as a whole: epochs, gate, what is written, and going on where it stopped."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from models.distillation import distil_starts
from models.gate import LAST_TIER, STOP, Gate, GateDecision
from models.inference import SmearBatch
from models.network import HEAD_KEYS, TIER_KEYS
from models.trainer import EpochTotals, Evaluation, Trainer
from util.checkpoint import load_checkpoint, load_weights, on_host, save_checkpoint
from util.console import ROMAN
from util.distributed import Ranks
from util.errors import UserError
from util.files import atomic_write, keep_before, move
from util.interrupts import StopAsked, StopRequest
from util.runlog import BEST, LATEST, RunFolder, plain

SAVING_SHARE = 0.02  # of the time that saving within an epoch may take


class CountedBatches(Protocol):
    """Batches of which it is known how many there are."""

    def __iter__(self) -> Iterator[SmearBatch]:
        """Give them."""

    def __len__(self) -> int:
        """How many there are."""


class EpochBatches(CountedBatches, Protocol):
    """Batches that differ by epoch."""

    def set_epoch(self, epoch: int, seen: int = 0) -> None:
        """Choose the epoch (0-based) of the next iteration, and leave out the images that were seen already."""


class Interruptible:
    """Batches between which something is asked; as many as there are without it.

    Args:
        batches: these.
        ask: called before each of them; may raise.
    """

    def __init__(self, batches: CountedBatches, ask: Callable[[], None]) -> None:
        self.batches, self.ask = batches, ask

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[SmearBatch]:
        for batch in self.batches:
            self.ask()
            yield batch


class TrainingSession:
    """Runs epochs, asks the gate, writes logs and checkpoints.

    Args:
        trainer: what learns.
        gate: what decides when the next tier opens.
        folder: where the run lives.
        facts: plain data that every checkpoint carries (options, data, weights that the tiers started from).
        save_every: also keep the weights of every n-th epoch; 0 keeps latest and best.
        save_seconds: write latest weights and state when so many seconds have passed since the last time.
        stop_when_open: end the run once the third gate has opened.
        patience: end it once all tiers are open and validation has not improved for so many epochs; 0 never does.

    Attributes:
        stop: whether somebody asked the run to stop.
    """

    def __init__(
        self,
        trainer: Trainer,
        gate: Gate,
        folder: RunFolder,
        facts: Mapping[str, Any],
        *,
        save_every: int = 0,
        save_seconds: float = 0.0,
        stop_when_open: bool = False,
        patience: int = 0,
    ) -> None:
        self.trainer, self.gate, self.folder, self.facts = trainer, gate, folder, dict(facts)
        self.save_every, self.save_seconds, self.stop_when_open = save_every, save_seconds, stop_when_open
        self.patience = patience
        self.stop = StopRequest()
        self.saved_at, self.weights_at, self.saving_took = -math.inf, -math.inf, 0.0
        self.saved_within = False  # whether the newest state is no good one of an epoch's end
        self.done, self.begun_at = 0, 0
        self.begun: Mapping[str, Any] | None = None  # of an epoch that was interrupted: its sums, and how long it took
        self.best: dict[str, Any] = {"score": None, "epoch": None}
        self.better: Mapping[str, Any] | None = None  # weights of the best epoch, if no state was saved since it
        self.stopped = False

    @property
    def ranks(self) -> Ranks:
        """The processes that run it; all of them do the same, the first one writes."""
        return self.trainer.ranks

    def resume(self) -> None:
        """Restore the last saved state; logs of an epoch that was not saved are cut.

        A state that was damaged is left for the one before it, and that is said.

        Raises:
            UserError: the state is missing, damaged, or of another architecture.
        """
        path, state = self._last_good_state()
        try:
            self._restore(path, state)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            raise UserError(
                f"{path} is no state to go on from",
                found=f"{type(error).__name__}: {error}",
                remedy="use the state that this run wrote, or begin again (--overwrite)",
            ) from None
        if self.ranks.first:
            self.folder.cut_logs(self.done)
            self._restore_best()
            if any(True for _ in self.epochs()):
                self.folder.finished.unlink(missing_ok=True)

    def _restore_best(self) -> None:
        """Put those best weights in place that belong to the state; those of epochs that are thrown away go."""
        folder, epoch = self.folder, self.best["epoch"]
        best = folder.weights(BEST)
        for path in (best, folder.best_next, folder.best_before):
            if path.is_file() and epoch is not None and _epoch_of(path) == epoch:
                if path != best:
                    keep_before(path, best)
                break
        else:
            if epoch is not None:  # the run needs them no more than a test that is not asked for
                print(
                    f"warning: the weights of epoch {epoch}, the best so far, are lost; {best.name} is written anew by "
                    "the first epoch that validation likes better",
                    file=sys.stderr,
                )
            best.unlink(missing_ok=True)
        folder.best_next.unlink(missing_ok=True)

    def _last_good_state(self) -> tuple[Path, Mapping[str, Any]]:
        """The newest state that can be read."""
        try:
            return self.folder.state, load_checkpoint(self.folder.state)
        except UserError as error:
            if not self.folder.state_before.is_file():
                raise
            state = load_checkpoint(self.folder.state_before)
            if self.ranks.first:
                where = f"epoch {state['epoch']}" if isinstance(state, dict) and "epoch" in state else "before it"
                print(f"warning: {error}\nwarning: going on from {self.folder.state_before} ({where})", file=sys.stderr)
            return self.folder.state_before, state

    def _restore(self, path: Path, state: Mapping[str, Any]) -> None:
        architecture = self.trainer.network.architecture.as_dict()
        if state["architecture"] != architecture:
            raise UserError(
                f"{path} is of another architecture",
                expected=str(architecture),
                found=str(state["architecture"]),
                remedy="go on with the options the run was begun with (--preset, --fineSize, --dropout and others)",
            )
        load_weights(self.trainer.network, state["trainer"]["network"], path)
        self.trainer.load_state(state["trainer"])
        self.gate.load_state(state["gate"])
        self.stopped = self.gate.spent
        self.done = self.begun_at = int(state["epoch"])
        self.best = dict(state["best"])
        self.facts["starts"] = dict(state["starts"])
        self.begun = state["begun"]
        # A damaged newest state must not take the place of the one before it, which is all there is.
        self.saved_at, self.saved_within = time.monotonic(), self.begun is not None or path != self.folder.state

    def warm_start(self, train: EpochBatches, epochs: int) -> None:
        """Distil tiers that would start from chance; of a run that begins, before its first epoch.

        Args:
            train: batches of training images.
            epochs: how many, for each such tier; 0 leaves all as it is.
        """

        def batches(epoch: int) -> EpochBatches:
            train.set_epoch(epoch)
            return train

        trainer = self.trainer
        self.facts["starts"] = distil_starts(trainer.network, self.facts["starts"], batches, epochs, trainer.device)
        trainer.restart_average()

    def epochs(self) -> Iterator[int]:
        """The epochs (0-based) that remain; ends early when a gate stops the run or all are open and that was asked."""
        total = self.trainer.settings.epochs
        while self.done < total and not self.stopped and not self._ends_early():
            yield self.done

    def steps_of(self, train: EpochBatches) -> tuple[int, int]:
        """How many batches the next epoch has, and how many of them were seen before it was interrupted."""
        train.set_epoch(self.done)
        steps = len(train)
        train.set_epoch(self.done, self._begun_totals()[1])
        return steps, steps - len(train)

    def how_to_go_on(self) -> str:
        """What to tell whoever asked the run to stop."""
        where = f"epoch {self.done + 1}" + (f", {self.begun['totals']['images']} images into it" if self.begun else "")
        return f"stopped as asked in {where}; all is saved, nothing is lost. Go on with\n    {self.command_to_go_on()}"

    def command_to_go_on(self) -> str:
        """What to type to go on with this run."""
        options = f"--name {shlex.quote(self.folder.name)}"
        folder = self.folder.folder.parent
        options += f" --checkpoints_dir {shlex.quote(str(folder))}" if folder != Path("checkpoints") else ""
        return f"python 3TDCFNet_train.py {options} --continue_train (and --gpu_ids)"

    def save_start(self) -> None:
        """Save the state of a run that begins, so that it can be gone on with from its first moment on."""
        self._save_state(None)

    def run_epoch(
        self,
        epoch: int,
        train: EpochBatches,
        val: CountedBatches,
        after_step: Callable[[EpochTotals], None] | None = None,
    ) -> tuple[dict[str, Any], GateDecision]:
        """Train and validate one epoch (0-based), ask the gate, log and save.

        Returns:
            The epoch's record (a line of metrics.jsonl) and the gate's decision.

        Raises:
            UserError: the loss is no longer finite, or a file cannot be written.
            StopAsked: somebody asked the run to stop; all is saved.
        """
        spent = float(self.begun["seconds"]) if self.begun else 0.0
        begun, tier = time.perf_counter() - spent, self.gate.tier
        rate = self.trainer.set_learning_rate(epoch)
        learned, evaluation = self._learn(train, val, epoch, after_step, begun)
        self.trainer.note_decoder(learned["dice"] if evaluation.dice is None else evaluation.dice)
        record = {
            "epoch": epoch + 1,
            "tier": tier,
            "lr": rate,
            "seconds": time.perf_counter() - begun,
            "train": learned,
            "val": self._describe(evaluation),
        }
        decision = self._ask_gate(epoch + 1, record)
        self._write(record, decision, evaluation)
        return record, decision

    def finish(self, seconds: float) -> bool:
        """Say how the run ended; one that came to its end is noted in finished.json.

        Returns:
            False where a gate stopped the run, True otherwise.
        """
        print(f"{'stopped' if self.stopped else 'finished'} after {self.done} epochs, {seconds:.1f} s")
        if self.done == self.begun_at >= self.trainer.settings.epochs and not self.stopped:
            print(
                f"  nothing was left to train: --niter and --niter_decay ask for {self.trainer.settings.epochs} epochs"
            )
        if self._ends_early() and self.done < self.trainer.settings.epochs and not self.stop_when_open:
            print(f"  ended early: no better validation for {self.patience} epochs (--patience)")
        for tier, how in self.gate.summary().items():
            print(f"  gate {ROMAN[tier]}: {how['how']}" + (f" in epoch {how['epoch']}" if how["epoch"] else ""))
        print(f"  best validation in epoch {self.best['epoch']}; weights in {self.folder.folder}", flush=True)
        told = self.done == self.begun_at and self.folder.finished.is_file()
        if not self.stopped and not told and self.ranks.first:
            content = {"epochs": self.done, "seconds": seconds, "gates": self.gate.summary(), "best": self.best}
            atomic_write(self.folder.finished, json.dumps(plain(content), indent=1) + "\n")
        return not self.stopped

    def examples(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Validation images of the epoch that has just ended, with their masks, for the live view.

        Returns:
            smears (n, H, W, 3) uint8, and masks (n, H, W) by their name: bool those that the images came with, or that
            stand in for such, and float the predicted ones, where the network draws any.
        """
        shown = self.trainer.examples
        if shown is None:
            raise ValueError("nothing was validated yet")
        smears = (shown.rgb.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
        has_mask = shown.has_mask.cpu()
        known = "true mask" if has_mask.all() else "true or stand-in mask" if has_mask.any() else "stand-in mask"
        masks = {known: shown.mask[:, 0].bool().cpu().numpy()}
        if self.trainer.judge.draws_masks:
            masks["predicted mask"] = shown.predicted[:, 0].cpu().numpy()
        return smears, masks

    def _learn(
        self,
        train: EpochBatches,
        val: CountedBatches,
        epoch: int,
        after_step: Callable[[EpochTotals], None] | None,
        since: float,
    ) -> tuple[dict[str, Any], Evaluation]:
        """Train and validate one epoch; what is not finite ends the run before anything of it is saved."""
        totals, seen = self._begun_totals()
        train.set_epoch(epoch, seen)

        def after(totals: EpochTotals) -> None:
            if after_step is not None:
                after_step(totals)
            self._pause(totals, since)

        def between() -> None:
            self._stop_in_validation(totals, since)

        try:
            learned = self.trainer.train_epoch(train, epoch, after, begun=totals)
            self.trainer.check_finite()
            evaluation = self.trainer.validate(Interruptible(val, between))
            self.begun = None
            return learned, evaluation
        except FloatingPointError as error:
            self._leave_epoch()
            settings, saved = self.trainer.settings, self.folder.state.is_file()
            lower = f"a --lr below {settings.lr:g} (or --lr_discriminator below {settings.lr_discriminator:g})"
            go_on = "the last state is kept: use --continue_train" if saved else "nothing is saved: use --overwrite"
            raise UserError(
                f"training diverged in epoch {epoch + 1}",
                expected="finite numbers",
                found=f"{error} ({totals.images} images into the epoch)",
                remedy=f"{go_on} with {lower}",
            ) from None

    def _leave_epoch(self) -> None:
        """Go back to the last epoch's end: of an epoch that diverges even finite weights are not worth keeping.

        The best weights follow when the run goes on, see ``_restore_best``.
        """
        if self.saved_within and self.ranks.first:
            keep_before(self.folder.state_before, self.folder.state)

    def _begun_totals(self) -> tuple[EpochTotals, int]:
        """The sums of an epoch that was interrupted, kept by the first process, and how many images all have seen."""
        device = self.trainer.device
        if self.begun is None:
            return EpochTotals(device), 0
        kept = EpochTotals.of_state(self.begun["totals"], device)
        return (kept if self.ranks.first else EpochTotals(device)), kept.images

    def _pause(self, totals: EpochTotals, since: float) -> None:
        """After a step: save if it is time to, and stop if that was asked for; all processes decide alike."""
        due = self.ranks.first and self.save_seconds > 0 and self._seconds_since_save() >= self._patience_to_save()
        stops, saves = self.ranks.any([bool(self.stop), due])
        if stops or saves:
            self.trainer.check_finite()
            self._save_within(totals, since)
        if stops:
            raise StopAsked

    def _stop_in_validation(self, totals: EpochTotals, since: float) -> None:
        """Between two validation batches: stop if that was asked for; the run validates anew when it goes on."""
        if self.stop and not self.ranks.several:  # of several processes each has other batches: none stops alone
            self._save_within(totals, since)
            raise StopAsked

    def _save_within(self, totals: EpochTotals, since: float) -> None:
        """Save the state in the middle of an epoch that began at ``since``."""
        self.begun = {"totals": totals.state(self.ranks), "seconds": time.perf_counter() - since}
        self._save_state(self.begun)

    def _seconds_since_save(self) -> float:
        return time.monotonic() - self.saved_at

    def _patience_to_save(self) -> float:
        """Seconds between saves within an epoch: as asked for, or longer where saving would take up too much time."""
        return max(self.save_seconds, self.saving_took / SAVING_SHARE)

    def _describe(self, evaluation: Evaluation) -> dict[str, Any]:
        heads = (*TIER_KEYS[: self.trainer.network.open_tiers], "global")
        return {
            "loss": evaluation.loss,
            "accuracy": {head: evaluation.accuracy(head) for head in heads},
            "own_accuracy": {tier: evaluation.own_accuracy(tier) for tier in heads[:-1]},
            "auroc": {head: evaluation.auroc(head) for head in heads},
            "confusion": {head: evaluation.confusion(head) for head in heads},
            "dice": evaluation.dice,
        }

    def _ask_gate(self, epoch: int, record: Mapping[str, Any]) -> GateDecision:
        head = TIER_KEYS[self.gate.tier - 1]
        decision = self.gate.decide(
            epoch,
            record["train"]["own_accuracy"][head],
            record["val"]["own_accuracy"][head],
            last_epoch=epoch == self.trainer.settings.epochs,
        )
        self.stopped = decision.decision == STOP
        return decision

    def _write(self, record: dict[str, Any], decision: GateDecision, evaluation: Evaluation) -> None:
        """Log and save the epoch; the state comes last, so that a kill in between is repaired by ``resume``."""
        if self.ranks.first:
            self.folder.log_epoch(record)
            self.folder.log_gate(decision.as_row())
        self.done = record["epoch"]
        weights = self._weights()
        if self._is_best(evaluation) and self.ranks.first:
            self.better = on_host(weights)
        if self.save_every and self.done % self.save_every == 0:
            self._save_weights(str(self.done), weights)
        self.trainer.open_tier(self.gate.tier, self.done)
        # The weights have a clock of their own: a state is saved in the middle of an epoch too, they are not.
        waited = time.monotonic() - self.weights_at
        (due,) = self.ranks.any([self.ranks.first and waited >= self.save_seconds])
        if self._is_last() or due:
            self._save_weights(LATEST, weights)
            self._save_state(None)
            self.weights_at = self.saved_at

    def _save_weights(self, which: str, weights: Mapping[str, Any]) -> None:
        if self.ranks.first:
            save_checkpoint(self.folder.weights(which), weights)

    def _save_state(self, begun: Mapping[str, Any] | None) -> None:
        """Save everything that is needed to go on, and keep the state before, always one of an epoch's end.

        Args:
            begun: of an epoch that is not at its end: the sums so far, and its seconds.
        """
        started = time.monotonic()
        state = {**self._state(), "begun": begun}  # all processes have a part in it
        if self.ranks.first:
            self._replace_state(state)
        self.saved_within = begun is not None
        self.saved_at = time.monotonic()
        self.saving_took = self.saved_at - started

    def _replace_state(self, state: Mapping[str, Any]) -> None:
        """Write the state and the best weights that belong to it; a kill in between leaves either pair whole."""
        folder, best = self.folder, self.folder.weights(BEST)
        if not self.saved_within:
            keep_before(best, folder.best_before)
            keep_before(folder.state, folder.state_before)
        if self.better is not None:
            save_checkpoint(folder.best_next, self.better)
        save_checkpoint(folder.state, state)
        if self.better is not None:
            move(folder.best_next, best)
            self.better = None

    def _ends_early(self) -> bool:
        """Whether what was asked for before the end of the schedule has come: all gates open, or no progress."""
        if self.stop_when_open and self.gate.all_open:
            return True
        if not self.patience or self.gate.tier < LAST_TIER or self.best["epoch"] is None:
            return False
        return self.done - max(int(self.best["epoch"]), int(self.opened_last)) >= self.patience

    @property
    def opened_last(self) -> int:
        """After how many epochs the last tier opened; 0 where it was open from the start."""
        return self.trainer.opened_in[-1] or 0

    def _is_last(self) -> bool:
        return self._ends_early() or self.stopped or self.done == self.trainer.settings.epochs

    def _is_best(self, evaluation: Evaluation) -> bool:
        """Whether Global has never done better on the validation split: by AUROC, and by the loss where that is equal.

        A small split is soon judged without a fault; the loss then still tells a sure verdict from a lucky one.
        """
        score = [evaluation.auroc(HEAD_KEYS[-1]), -evaluation.loss]
        if score[0] is None:  # one class only, or no label: there is no AUROC to go by
            score[0] = 0.0
        if score[1] != score[1]:  # no labelled validation image: the last epoch is all one can choose
            score = [0.0, float(self.done)]
        if self.best["score"] is not None and score <= self.best["score"]:
            return False
        self.best = {"score": score, "epoch": self.done}
        return True

    def _weights(self) -> dict[str, Any]:
        network = self.trainer.judge
        return {
            **self.facts,
            "architecture": network.architecture.as_dict(),
            "open_tiers": network.open_tiers,
            "draws_masks": network.draws_masks,
            "decoder_ready": self.trainer.decoder_ready,
            "all_masks": self.trainer.all_masks,
            "unpaired_binary": self.trainer.settings.unpaired_binary,
            "epoch": self.done,
            "tiers_opened": self.gate.summary(),
            "network": dict(network.state_dict()),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "architecture": self.trainer.network.architecture.as_dict(),
            "epoch": self.done,
            "best": self.best,
            "starts": self.facts["starts"],
            "gate": self.gate.state(),
            "trainer": self.trainer.state(),
        }


def _epoch_of(weights: Path) -> Any:
    """The epoch that a weights' file says it is of; None, and a warning, where it cannot be read."""
    try:
        content = load_checkpoint(weights)
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr)
        return None
    return content.get("epoch") if isinstance(content, dict) else None
