"""Options of test and prediction, and of the cells that Module-II finds in the images."""

from __future__ import annotations

from options.option import JUDGING, PREDICT, TEST, Option
from options.values import (
    at_least,
    checkpoint_choice,
    looked_at,
    named_numbers,
    one_of,
    operating_rule,
    run_names,
    split_list,
    tested_runs,
    view_count,
    zero_or_between,
)

_TEST = "test and prediction"
_CELLS = "cells (Module-II)"

JUDGEMENT: tuple[Option, ...] = (
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
    Option(
        "port",
        8098,
        "port of that page, at 127.0.0.1; 0 takes a free one.",
        _TEST,
        (PREDICT,),
        parse=one_of(range(65536)),
    ),
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
        "gradcam",
        "8",
        "test images that the report shows with Grad-CAM, where in the image each tier found evidence: half of them "
        "those most confidently wrong, the others right ones of each class; or names of images, such as "
        "001_a.png,002_a.png. 0 shows none.",
        _TEST,
        (TEST,),
        parse=looked_at,
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
    Option(
        "resamples",
        1000,
        "for the intervals groups are left out one at a time, at most so many; more are dealt into so many parts.",
        _TEST,
        (TEST,),
        parse=at_least(100),
    ),
)

CELLS: tuple[Option, ...] = (
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
)
