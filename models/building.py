"""From a training command's options to a session that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from models.gate import Gate, GateSettings, tier_budgets
from models.network import TIER_KEYS, Architecture, ThreeTierDCFNet
from models.session import TrainingSession
from models.trainer import Trainer, TrainerSettings
from util.runlog import RunFolder


def trainer_settings(options: Any) -> TrainerSettings:
    """The trainer's settings: the options of the same names."""
    return TrainerSettings(**{field.name: getattr(options, field.name) for field in fields(TrainerSettings)})


def gate_settings(options: Any) -> GateSettings:
    """The gates' settings."""
    budgets = tier_budgets(options.niter + options.niter_decay, options.tier_epochs)
    return GateSettings(options.gate_thresholds, options.gate_tolerance, budgets, options.on_budget)


def build_session(
    options: Any,
    device: torch.device,
    folder: RunFolder,
    data_facts: Mapping[str, Any],
    *,
    samples: int,
    any_masks: bool,
    all_masks: bool,
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
    """
    network = ThreeTierDCFNet(Architecture(options.preset, options.fineSize, options.dropout))
    trainer = Trainer(
        network, trainer_settings(options), device, samples=samples, any_masks=any_masks, all_masks=all_masks
    )
    facts = {
        "data": dict(data_facts),
        "options": {
            name: {"value": value, "default": options.defaults()[name]} for name, value in options.values().items()
        },
        "starts": dict.fromkeys(TIER_KEYS, "random weights"),
    }
    return TrainingSession(
        trainer,
        Gate(gate_settings(options)),
        folder,
        facts,
        save_every=options.save_epoch_freq,
        save_seconds=options.save_seconds,
        stop_when_open=options.stop_when_open,
    )
