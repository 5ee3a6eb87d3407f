"""Options of the data: how images are read, graded, divided and cached."""

from __future__ import annotations

from options.option import LABELLED, TRAIN, Option
from options.values import at_least, batch_size, fraction, one_of
from util import sides

_DATA = "data"

DATA: tuple[Option, ...] = (
    Option(
        "loadSize",
        300,
        "images are resized to loadSize x loadSize pixels.",
        _DATA,
        spellings=("load_size",),
        parse=one_of(sides.LOADED),
    ),
    Option(
        "fineSize",
        300,
        "then cropped to fineSize x fineSize, the network's input: a random crop in training; in validation and test "
        "the whole image is covered by crops of that size, whose verdicts and masks are averaged.",
        _DATA,
        spellings=("crop_size",),
        parse=one_of(sides.INPUT),
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
)
