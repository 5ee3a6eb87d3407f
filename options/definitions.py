"""Every option of every command, defined once: its name, default, meaning and the commands that take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TRAIN, TEST, PREDICT = "train", "test", "predict"
LABELLED = (TRAIN, TEST)  # those that read labels and masks
JUDGING = (TEST, PREDICT)  # those that ask a trained network
AUTO = "auto"
LARGEST_SEED = 2**32 - 1  # numpy's legacy generator takes no larger one


@dataclass(frozen=True)
class Option:
    """One command-line option.

    Attributes:
        name: the spelling that the published commands use; also the name of the attribute.
        default: the value without the flag; its type is the option's type unless ``parse`` says otherwise.
        help: one or two sentences for ``--help`` and the documentation.
        group: the heading of ``--help`` it stands under.
        commands: which of "train", "test" and "predict" take it.
        spellings: further flags that mean the same.
        choices: the allowed values, or empty for any.
        parse: text to value; raises ValueError with a message fit for the user.
        required: True where there is no sensible default.
    """

    name: str
    default: Any
    help: str
    group: str
    commands: tuple[str, ...] = (TRAIN, TEST, PREDICT)
    spellings: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    required: bool = False

    @property
    def is_switch(self) -> bool:
        """True for a flag that takes no value."""
        return isinstance(self.default, bool)


def at_least(minimum: float, kind: type = int) -> Callable[[str], Any]:
    """A parser of numbers that refuses those below ``minimum`` and the non-finite ones."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not minimum <= value < float("inf"):
            raise ValueError(f"must be {minimum} or more")
        return value

    return parse


def batch_size(text: str) -> int | str:
    """Parse a number of images, or ``auto``."""
    if text == AUTO:
        return text
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError("must be a whole number of 1 or more, or auto")
    return int(text)


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise ValueError("must lie between 0 and 1")
    return value


def zero_or_between(low: float, high: float) -> Callable[[str], float]:
    """A parser of sizes that may be unknown: 0, or a number from ``low`` to ``high``."""

    def parse(text: str) -> float:
        value = float(text)
        if value != 0 and not low <= value <= high:
            raise ValueError(f"must be 0 (not known) or a number from {low:g} to {high:g}")
        return value

    return parse


def named_numbers(text: str) -> str:
    """Check a list such as ``chronic_from=0.2,size_rate=0.5``; kept as text, the names are known to Module-II alone."""
    for part in filter(None, text.split(",")):
        name, equals, number = part.partition("=")
        try:
            sound = bool(equals) and name.strip().isidentifier() and abs(float(number)) < float("inf")
        except ValueError:
            sound = False
        if not sound:
            raise ValueError("must be a list such as chronic_from=0.2,size_rate=0.5")
    return text


def view_count(text: str) -> int:
    """Parse a number of views that turning and mirroring an image can give."""
    value = int(text)
    if value not in (1, 2, 4, 8):
        raise ValueError("must be 1, 2, 4 or 8")
    return value


def operating_rule(text: str) -> str:
    """Check a rule that says from which probability on an image is called Anemic; kept as text."""
    name, _, number = text.partition("=")
    try:
        sound = text in ("half", "youden") or (name == "specificity" and 0 < float(number) < 1)
    except ValueError:
        sound = False
    if not sound:
        raise ValueError("must be half, youden or a specificity between 0 and 1 such as specificity=0.9")
    return text


def tested_runs(text: str) -> str:
    """Check a list of runs to compare with, each with or without its weights: ``OTHER,SEG:best``; kept as text."""
    for part in filter(None, text.split(",")):
        name, colon, which = part.partition(":")
        run_name(name)
        if colon:
            checkpoint_choice(which)
    return text


def seed_number(text: str) -> int:
    """Parse a seed that every generator of random numbers takes."""
    if not text.strip().isdecimal() or len(text) > 20 or int(text) > LARGEST_SEED:
        raise ValueError(f"must be a whole number from 0 to {LARGEST_SEED}")
    return int(text)


def gpu_list(text: str) -> str:
    """Check a list of GPU numbers: ``0``, ``0,1`` or ``-1`` for the CPU; kept as text."""
    wrong = "must be -1 (CPU) or different GPU numbers such as 0 or 0,1"
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(wrong) from None
    if ids != [-1] and (min(ids) < 0 or len(set(ids)) != len(ids)):
        raise ValueError(wrong)
    return ",".join(map(str, ids))


def thresholds(text: str) -> tuple[float, ...]:
    """Parse the three gate thresholds."""
    values = tuple(fraction(part) for part in text.split(","))
    if len(values) != 3:
        raise ValueError("must be three numbers between 0 and 1, one a tier, such as 0.85,0.91,0.96")
    return values


def tier_rates(text: str) -> tuple[float, ...]:
    """Parse the three tiers' factors on the learning rate."""
    values = tuple(at_least(0, float)(part) for part in text.split(","))
    if len(values) != 3:
        raise ValueError("must be three numbers of 0 or more, one a tier, such as 1,1,0.5")
    return values


def below_one(text: str) -> float:
    """Parse a number from 0 to just below 1."""
    value = fraction(text)
    if value == 1.0:
        raise ValueError("must be below 1")
    return value


def split_list(text: str) -> tuple[str, ...]:
    """Parse the splits to evaluate; one named twice is evaluated once."""
    values = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not values or set(values) - {"train", "val", "test"}:
        raise ValueError("must name splits out of train,val,test")
    return values


def run_name(text: str) -> str:
    """Check the name of a run: it becomes a folder's name and may not lead anywhere else."""
    if not text or text.startswith(".") or any(c in text for c in "/\\\0:") or len(text) > 100:
        raise ValueError("must be a plain folder name without / \\ : and not starting with a dot")
    return text


def port_number(text: str) -> int:
    """Parse a port; 0 takes a free one."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("must be a port from 0 to 65535")
    return value


def run_names(text: str) -> tuple[str, ...]:
    """Parse names of runs."""
    return tuple(run_name(part.strip()) for part in text.split(",")) if text else ()


def checkpoint_choice(text: str) -> str:
    """Check ``latest``, ``best`` or an epoch number."""
    if text not in ("latest", "best") and not text.isdigit():
        raise ValueError("must be latest, best or the number of a saved epoch")
    return text


_RUN = "which run, which data, which device"
_DATA = "data"
_NETWORK = "network"
_LOSS = "losses"
_SCHEDULE = "schedule"
_GATE = "gate (validation points between the tiers)"
_SAVE = "saving and resuming"
_DISPLAY = "display"
_TEST = "test and prediction"
_CELLS = "cells (Module-II)"

OPTIONS: tuple[Option, ...] = (
    Option(
        "dataroot",
        "",
        "the smears: AneRBC's own tree (I or II), a paired tree with rgb/ and binary/, class folders, images with "
        "their masks side by side, or a manifest.csv; `synthetic` is the embedded data set. 3TDCFNet_predict.py also "
        "takes any folder of images, one image, or a pattern in quotes such as 'smears/*.png'.",
        _RUN,
        required=True,
    ),
    Option(
        "image_root",
        "",
        "folder that the paths in a manifest are relative to; without it the manifest's own folder.",
        _RUN,
    ),
    Option("name", "SEG", "name of the run: checkpoints/NAME and results/NAME.", _RUN, parse=run_name),
    Option("gpu_ids", "0", "GPU to use: 0, 1, ...; -1 is the CPU.", _RUN, parse=gpu_list),
    Option("checkpoints_dir", "./checkpoints", "folder of the runs' weights, options and logs.", _RUN),
    Option("results_dir", "./results", "folder of the reports.", _RUN, JUDGING),
    Option("seed", 0, "seed of the split, the weights, the order and the augmentation.", _RUN, parse=seed_number),
    Option(
        "deterministic",
        False,
        "ask PyTorch for operations that give the same bits every time (slower on a GPU; it warns where it has none).",
        _RUN,
    ),
    Option(
        "compile",
        False,
        "let PyTorch compile the backbones and the mask decoder: quicker steps on a GPU after minutes of waiting.",
        _RUN,
        (TRAIN,),
    ),
    Option(
        "config", "", "options file of an earlier run (options.json); the command line goes over it.", _RUN, (TRAIN,)
    ),
    Option(
        "loadSize",
        300,
        "images are resized to loadSize x loadSize pixels.",
        _DATA,
        spellings=("load_size",),
        parse=at_least(64),
    ),
    Option(
        "fineSize",
        300,
        "then cropped to fineSize x fineSize, the network's input: a random crop in training; in validation and test "
        "the whole image is covered by crops of that size, whose verdicts and masks are averaged.",
        _DATA,
        spellings=("crop_size",),
        parse=at_least(64),
    ),
    Option(
        "batchSize",
        32,
        "images in a batch; in training also auto: the largest that the memory holds, found by taking steps.",
        _DATA,
        spellings=("batch_size",),
        parse=batch_size,
    ),
    Option(
        "severity_from",
        "auto",
        "where the grades Mild and Chronic come from, one source in a run: labels (a manifest's or labels.csv's "
        "column, folders, the synthesiser's truth), haemoglobin (a manifest's column or the blood-count reports, by "
        "WHO's cut-offs), none, or auto (labels where the data has any). Module-II's grades are no source.",
        _DATA,
        LABELLED,
        choices=("auto", "none", "labels", "haemoglobin"),
    ),
    Option(
        "chronic_below",
        8.0,
        "haemoglobin in g/dL below which an anemia is Chronic, for --severity_from haemoglobin; 8.0 is WHO's severe.",
        _DATA,
        LABELLED,
        parse=at_least(0, float),
    ),
    Option(
        "normal_from",
        12.0,
        "haemoglobin in g/dL from which there is no anemia; WHO's 12.0 is for women, 13.0 for men.",
        _DATA,
        LABELLED,
        parse=at_least(0, float),
    ),
    Option(
        "cache_dir",
        "./datasets/cache",
        "folder where decoded images are kept, so that the next start need not decode them; it may be removed.",
        _DATA,
        LABELLED,
    ),
    Option(
        "cache_gb",
        20.0,
        "size of that folder, GB, above which what was not used for longest goes.",
        _DATA,
        LABELLED,
        parse=at_least(0, float),
    ),
    Option("no_cache", False, "decode every image at every start and hold all in memory.", _DATA, LABELLED),
    Option(
        "split_file",
        "",
        "split.csv to use; without it a grouped, stratified split is drawn from --seed.",
        _DATA,
        (TRAIN,),
    ),
    Option(
        "val_fraction",
        0.15,
        "share of the images for validation when a split is drawn.",
        _DATA,
        (TRAIN,),
        parse=fraction,
    ),
    Option(
        "test_fraction",
        0.15,
        "share of the images for the test when a split is drawn.",
        _DATA,
        (TRAIN,),
        parse=fraction,
    ),
    Option(
        "split_from",
        "auto",
        "where the split is from without a --split_file: data takes the sides that the data set itself gives (a "
        "manifest's column, or folders train/, val/, test/), draw deals one, auto takes the data's own if it has one.",
        _DATA,
        (TRAIN,),
        choices=("auto", "data", "draw"),
    ),
    Option(
        "split_by",
        "group",
        "what is dealt when a split is drawn: group is all that belongs together (patient, parent image, equal or "
        "nearly equal images, blood count); blocks is the harder case, contiguous blocks of the numbers in the names.",
        _DATA,
        (TRAIN,),
        choices=("group", "blocks"),
    ),
    Option("block_size", 50, "numbers in a block of --split_by blocks.", _DATA, (TRAIN,), parse=at_least(1)),
    Option(
        "folds",
        0,
        "draw so many folds and test on one of them (--fold); --test_fraction then does not count. 0 is one split.",
        _DATA,
        (TRAIN,),
        parse=at_least(0),
    ),
    Option("fold", 0, "which of the --folds is the test split, from 1.", _DATA, (TRAIN,), parse=at_least(0)),
    Option(
        "leaks",
        "stop",
        "what becomes of a run whose sides share a group or near-duplicate images, or of a test on images like those "
        "that the run has learned from: stop names two of them, report goes on and says so in the report.",
        _DATA,
        LABELLED,
        choices=("stop", "report"),
    ),
    Option(
        "duplicates",
        "drop",
        "drop: of files with equal pixels one is kept, and files that stand in both classes are left out; "
        "keep: all stay, equal ones on the same side.",
        _DATA,
        (TRAIN,),
        choices=("drop", "keep"),
    ),
    Option(
        "no_augment",
        False,
        "train on the images as they are, without rotation, stain jitter and so on.",
        _DATA,
        (TRAIN,),
    ),
    Option(
        "num_workers",
        0,
        "threads that decode images; 0 is one a core.",
        _DATA,
        spellings=("nThreads",),
        parse=at_least(0),
    ),
    Option(
        "synthetic_count", 240, "images in the embedded data set of --dataroot synthetic.", _DATA, parse=at_least(20)
    ),
    Option(
        "preset",
        "full",
        "full: the published backbones, for GPUs; lite: EfficientNet-Lite0 in full, with its ImageNet weights, between "
        "a thin DenseNet and a thin ShuffleNet, for patient CPUs; small: all three thin, for CPUs. The same shapes.",
        _NETWORK,
        (TRAIN,),
        choices=("full", "lite", "small"),
    ),
    Option(
        "pretrained",
        "auto",
        "ImageNet weights to start the RGB backbones from, where they have the published size: auto takes what the "
        "caches, an installed package or one short try of the network give, imagenet insists, none takes none.",
        _NETWORK,
        (TRAIN,),
        choices=("auto", "imagenet", "none"),
    ),
    Option(
        "distil_epochs",
        0,
        "epochs in which a tier that would start from random weights first learns, from the training images without "
        "their labels, to see what a tier with ImageNet weights sees; 0 leaves it at random weights.",
        _NETWORK,
        (TRAIN,),
        parse=at_least(0),
    ),
    Option(
        "init_from",
        "",
        "start from the weights of another run of the same preset: a weights file, or a run's name under "
        "--checkpoints_dir (its best weights, else its latest); --pretrained then counts for nothing.",
        _NETWORK,
        (TRAIN,),
    ),
    Option("dropout", 0.2, "dropout before each tier's Healthy/Anemic head.", _NETWORK, (TRAIN,), parse=fraction),
    Option(
        "binary_stream",
        "yes",
        "whether the tiers see the binary masks beside the image; no is for comparison.",
        _NETWORK,
        (TRAIN,),
        choices=("yes", "no"),
    ),
    Option(
        "fusion",
        "yes",
        "whether Global hears the fused features of the tiers beside their verdicts; no makes it Tier-III's verdict.",
        _NETWORK,
        (TRAIN,),
        choices=("yes", "no"),
    ),
    Option(
        "true_mask_share",
        0.5,
        "share of the training images whose binary stream sees the true mask instead of the predicted one.",
        _NETWORK,
        (TRAIN,),
        parse=fraction,
    ),
    Option(
        "unpaired_binary",
        "auto",
        "what the binary stream sees for an image without a true mask: otsu, predicted, or auto "
        "(Otsu's mask until the decoder has learned from images that have one, then the predicted one).",
        _NETWORK,
        (TRAIN,),
        choices=("auto", "predicted", "otsu"),
    ),
    Option(
        "lambda_L1",
        60.0,
        "weight of the L1 term between predicted and true mask.",
        _LOSS,
        (TRAIN,),
        parse=at_least(0, float),
    ),
    Option(
        "lambda_overlap", 10.0, "weight of the overlap (soft Dice) term.", _LOSS, (TRAIN,), parse=at_least(0, float)
    ),
    Option("lambda_GAN", 1.0, "weight of the adversarial term.", _LOSS, (TRAIN,), parse=at_least(0, float)),
    Option("lambda_class", 10.0, "weight of the Healthy/Anemic term.", _LOSS, (TRAIN,), parse=at_least(0, float)),
    Option(
        "label_smoothing",
        0.0,
        "share of the Healthy/Anemic target that is spread evenly over both classes.",
        _LOSS,
        (TRAIN,),
        parse=below_one,
    ),
    Option(
        "class_weights",
        "none",
        "balanced gives both classes an equal say in the Healthy/Anemic term, whatever their numbers.",
        _LOSS,
        (TRAIN,),
        choices=("none", "balanced"),
    ),
    Option(
        "gan_mode",
        "lsgan",
        "objective of the conditional PatchGAN that judges the masks; none turns it off.",
        _LOSS,
        (TRAIN,),
        choices=("lsgan", "vanilla", "none"),
    ),
    Option(
        "pool_size",
        32,
        "generated masks kept and shown again to the discriminator; 0 keeps none.",
        _LOSS,
        (TRAIN,),
        parse=at_least(0),
    ),
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
    Option(
        "which_epoch",
        "latest",
        "weights to use: latest, best or an epoch number.",
        _TEST,
        JUDGING,
        spellings=("epoch",),
        parse=checkpoint_choice,
    ),
    Option(
        "backend",
        "torch",
        "what runs the network: torch, or onnx, ONNX Runtime on the CPU with the file that 3TDCFNet_export.py wrote "
        "beside the weights.",
        _TEST,
        JUDGING,
        choices=("torch", "onnx"),
    ),
    Option(
        "ensemble",
        (),
        "further runs, such as RUN2,RUN3, that judge beside --name: chances and masks are averaged, and the report "
        "shows how far the runs disagree. Each sees the images at the size that it was trained with.",
        _TEST,
        (PREDICT,),
        parse=run_names,
    ),
    Option(
        "serve",
        False,
        "open a page on this machine into which smears are dropped, instead of judging a folder.",
        _TEST,
        (PREDICT,),
    ),
    Option("port", 8098, "port of that page, at 127.0.0.1; 0 takes a free one.", _TEST, (PREDICT,), parse=port_number),
    Option(
        "binary_from",
        "predicted",
        "what the binary stream sees at test: the predicted mask, or gt, the true one (the report then says so).",
        _TEST,
        (TEST,),
        choices=("predicted", "gt"),
    ),
    Option(
        "splits",
        ("train", "val", "test"),
        "splits to evaluate; predictions.csv and masks/ hold the test split.",
        _TEST,
        (TEST,),
        parse=split_list,
    ),
    Option(
        "test_views",
        1,
        "views of each image, turned and mirrored, over which verdicts and masks are averaged: 1, 2, 4 or 8 (all).",
        _TEST,
        JUDGING,
        parse=view_count,
    ),
    Option(
        "stain_checks",
        "yes",
        "judge the test images also without colour and with every image's stain brought to that of the training "
        "images, to show how far the verdicts lean on stain; the test split then takes three times as long.",
        _TEST,
        (TEST,),
        choices=("yes", "no"),
    ),
    Option(
        "operating_point",
        "youden",
        "a second point, beside 0.5, from which Anemic begins: chosen on the validation images by Youden's index "
        "(youden) or at a specificity there (specificity=0.9); half is 0.5 again. predictions.csv calls by 0.5 always.",
        _TEST,
        (TEST,),
        parse=operating_rule,
    ),
    Option(
        "compare",
        "",
        "test nothing; put the results of this run (--name, --which_epoch) and of others, such as OTHER,SEG:best, side "
        "by side on the test images that all were tested on: results/NAME/compare_WHICH_OTHERS/index.html.",
        _TEST,
        (TEST,),
        parse=tested_runs,
    ),
    Option("resamples", 1000, "bootstrap resamples of the intervals.", _TEST, (TEST,), parse=at_least(100)),
    Option(
        "cells",
        "yes",
        "find, measure and grade the red cells of every image, overlapping ones too: instances/, cells.csv and the "
        "grade; a training ends by learning the grade from them. no leaves all of that out and takes less time.",
        _CELLS,
        choices=("yes", "no"),
    ),
    Option(
        "masks_from",
        "auto",
        "whose masks are written to masks/: the network's, or those of the cells that Module-II finds; auto takes the "
        "cells' for images more than 1.5 times as large as the network sees them (--loadSize) and where the network "
        "never learned from a true mask.",
        _CELLS,
        JUDGING,
        choices=("auto", "network", "cells"),
    ),
    Option(
        "cell_diameter",
        0.0,
        "diameter of a normal red cell in the images, pixels, for images of one magnification; 0 estimates it image by "
        "image.",
        _CELLS,
        parse=zero_or_between(4, 2000),
    ),
    Option(
        "um_per_px",
        0.0,
        "size of a pixel in micrometres, so that cells are measured and named by their true size; 0 is unknown, and "
        "they are then compared with the image's own normal cells.",
        _CELLS,
        parse=zero_or_between(0.005, 10),
    ),
    Option(
        "severity_rule",
        "",
        "constants of the severity score that differ from their defaults, such as chronic_from=0.2,size_rate=0.5; "
        "docs/module2.md lists them.",
        _CELLS,
        parse=named_numbers,
    ),
    Option(
        "kind_limits",
        "",
        "cut-offs of the abnormal kinds that differ from their defaults, such as ovalocyte_below=0.8; docs/module2.md "
        "lists them.",
        _CELLS,
        parse=named_numbers,
    ),
    Option(
        "cell_pages",
        100,
        "images, the first so many, that get a page of their own with their cells.",
        _CELLS,
        JUDGING,
        parse=at_least(0),
    ),
    Option("display_id", 0, "visdom window id; 0 posts nothing (the log is kept).", _DISPLAY, parse=at_least(0)),
    Option("display_server", "http://localhost", "address of the visdom server.", _DISPLAY, (TRAIN,)),
    Option("display_port", 8097, "port of the visdom server.", _DISPLAY, (TRAIN,), parse=at_least(1)),
    Option("display_env", "main", "visdom environment.", _DISPLAY, (TRAIN,)),
    Option(
        "tensorboard",
        False,
        "write the live view for TensorBoard too, into the run's folder tensorboard/; needs the package tensorboard.",
        _DISPLAY,
        (TRAIN,),
    ),
)


def options_of(command: str) -> tuple[Option, ...]:
    """The options that ``command`` ("train", "test" or "predict") takes, in the order of ``--help``."""
    return tuple(option for option in OPTIONS if command in option.commands)
