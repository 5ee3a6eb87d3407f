"""From a training command's options to a session that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from models.batch_size import choose_batch_size
from models.compiling import compile_pieces
from models.gate import Gate, GateSettings, tier_budgets
from models.network import Architecture, ThreeTierDCFNet
from models.pretrained import load_starts
from models.session import TrainingSession
from models.trainer import Trainer, TrainerSettings
from util.distributed import ALONE, Ranks
from util.runlog import RunFolder


def architecture(options: Any) -> Architecture:
    """What the options of a training command say of the network."""
    return Architecture(
        options.preset,
        options.fineSize,
        options.dropout,
        binary_stream=options.binary_stream == "yes",
        fusion=options.fusion == "yes",
    )


def trainer_settings(options: Any) -> TrainerSettings:
    """The trainer's settings: the options of the same names."""
    return TrainerSettings(**{field.name: getattr(options, field.name) for field in fields(TrainerSettings)})


def gate_settings(options: Any) -> GateSettings:
    """The gates' settings."""
    budgets = tier_budgets(options.niter + options.niter_decay, options.tier_epochs)
    on = options.gates == "on"
    return GateSettings(options.gate_thresholds, options.gate_tolerance, budgets, options.on_budget, on)


def batch_chooser(options: Any, device: torch.device, ranks: Ranks) -> Callable[[int, int | None], int]:
    """What finds the batch size for --batchSize auto, given the training images and the host's free bytes."""

    def choose(images: int, free_host: int | None) -> int:
        shape, settings = architecture(options), trainer_settings(options)
        return choose_batch_size(shape, settings, device, images, free_host=free_host, ranks=ranks)

    return choose


def _starts(network: ThreeTierDCFNet, options: Any) -> dict[str, str]:
    """What each tier starts from; a run that goes on has that in its state, and the weights as well."""
    if options.continue_train:
        return {}
    return load_starts(network, options.pretrained, options.init_from, options.checkpoints_dir)


def build_session(
    options: Any,
    device: torch.device,
    folder: RunFolder,
    data_facts: Mapping[str, Any],
    *,
    samples: int,
    any_masks: bool,
    all_masks: bool,
    class_counts: tuple[int, int],
    ranks: Ranks = ALONE,
) -> TrainingSession:
    """Build network, trainer, gate and session.

    Args:
        options: the training command's options.
        device: where to train.
        folder: the run's folder.
        data_facts: plain description of the data, for checkpoints.
        samples: images that the batches' indices may name.
        any_masks: some image has a true mask.
        all_masks: every image has one.
        class_counts: training images labelled Healthy and Anemic.
        ranks: the processes that train together.
    """
    network = ThreeTierDCFNet(architecture(options))
    starts = _starts(network, options)
    masks = {"any_masks": any_masks, "all_masks": all_masks}
    settings = trainer_settings(options)
    trainer = Trainer(network, settings, device, samples=samples, **masks, class_counts=class_counts, ranks=ranks)
    if options.compile:
        compile_pieces(trainer.network)
    return TrainingSession(
        trainer,
        Gate.begin(gate_settings(options)),
        folder,
        {"data": dict(data_facts), "options": options.described(), "starts": starts},
        save_every=options.save_epoch_freq,
        save_seconds=options.save_seconds,
        stop_when_open=options.stop_when_open,
        patience=options.patience,
    )
