"""Options of the course of a training: learning rates, gates between the tiers, saving and resuming."""

from __future__ import annotations

from options.option import PREDICT, TRAIN, Option
from options.values import at_least, below_one, fraction, thresholds, tier_rates

_SCHEDULE = "schedule"
_GATE = "gate (validation points between the tiers)"
_SAVE = "saving and resuming"

SCHEDULE: tuple[Option, ...] = (
    Option(
        "niter",
        100,
        "epochs at the first learning rate.",
        _SCHEDULE,
        (TRAIN,),
        spellings=("n_epochs",),
        parse=at_least(0),
    ),
    Option(
        "niter_decay",
        150,
        "epochs after that, over which the learning rate falls linearly to zero.",
        _SCHEDULE,
        (TRAIN,),
        spellings=("n_epochs_decay",),
        parse=at_least(0),
    ),
    Option("lr", 0.0005, "first learning rate (AdamW).", _SCHEDULE, (TRAIN,), parse=at_least(0, float)),
    Option(
        "lr_discriminator",
        0.0002,
        "first learning rate of the discriminator (Adam).",
        _SCHEDULE,
        (TRAIN,),
        parse=at_least(0, float),
    ),
    Option(
        "tier_lr",
        (1.0, 1.0, 1.0),
        "factors on the learning rate of the three tiers.",
        _SCHEDULE,
        (TRAIN,),
        parse=tier_rates,
    ),
    Option(
        "earlier_lr",
        1.0,
        "factor on the learning rate of a tier once a later one has opened; 0 freezes it.",
        _SCHEDULE,
        (TRAIN,),
        parse=at_least(0, float),
    ),
    Option(
        "warmup",
        2,
        "epochs over which the learning rate of a tier that has just opened rises to its full value.",
        _SCHEDULE,
        (TRAIN,),
        parse=at_least(0),
    ),
    Option(
        "ema",
        0.995,
        "decay by step of the running average of the weights that is validated, saved and tested; 0 keeps none.",
        _SCHEDULE,
        (TRAIN,),
        parse=below_one,
    ),
    Option(
        "sync_batchnorm",
        "no",
        "of several processes (torchrun): yes takes the statistics of batch normalisation over all of a batch, no over "
        "each process's share, which is faster.",
        _SCHEDULE,
        (TRAIN,),
        choices=("no", "yes"),
    ),
    Option(
        "patience",
        0,
        "end the run once all tiers are open and validation has not improved for so many epochs; 0 never does.",
        _SCHEDULE,
        (TRAIN,),
        parse=at_least(0),
    ),
    Option("weight_decay", 0.02, "decoupled weight decay.", _SCHEDULE, (TRAIN,), parse=at_least(0, float)),
)

GATE: tuple[Option, ...] = (
    Option(
        "gates",
        "on",
        "off trains all tiers together from the start and end to end, without validation points, for comparison.",
        _GATE,
        (TRAIN,),
        choices=("on", "off"),
    ),
    Option(
        "gate_thresholds",
        (0.85, 0.91, 0.96),
        "training accuracy at which each tier's gate may open (the published tiers' training accuracies).",
        _GATE,
        (TRAIN,),
        parse=thresholds,
    ),
    Option(
        "gate_tolerance",
        0.05,
        "the gate stays shut while the tier's validation accuracy is below its own best by more than this.",
        _GATE,
        (TRAIN,),
        parse=fraction,
    ),
    Option(
        "tier_epochs",
        0,
        "epoch budget of a tier; 0 is a third of niter + niter_decay.",
        _GATE,
        (TRAIN,),
        parse=at_least(0),
    ),
    Option(
        "on_budget",
        "force",
        "when a tier's epochs run out before its gate opens: force opens the next tier and says so, stop ends the run.",
        _GATE,
        (TRAIN,),
        choices=("force", "stop"),
    ),
    Option("stop_when_open", False, "end the run as soon as the third gate has opened.", _GATE, (TRAIN,)),
)

SAVING: tuple[Option, ...] = (
    Option("continue_train", False, "go on from the last saved state of this run.", _SAVE, (TRAIN,)),
    Option(
        "overwrite",
        False,
        "start anew in a name that already holds a run, or where an unfinished prediction lies; what is there is "
        "removed.",
        _SAVE,
        (TRAIN, PREDICT),
    ),
    Option(
        "continue_predict",
        False,
        "go on with a prediction that was interrupted: images that it has judged are not judged again. Without "
        "anything to go on with it begins.",
        _SAVE,
        (PREDICT,),
    ),
    Option(
        "save_epoch_freq",
        0,
        "also keep the weights of every n-th epoch; 0 keeps latest and best only.",
        _SAVE,
        (TRAIN,),
        parse=at_least(0),
    ),
    Option(
        "save_seconds",
        30.0,
        "save the latest weights and state after an epoch, and the state in the middle of one, once so many seconds "
        "have passed; 0 is after every epoch and never in the middle.",
        _SAVE,
        (TRAIN,),
        parse=at_least(0, float),
    ),
)
