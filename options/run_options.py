"""Options of every run: which run, which data, which device; and where the live view goes."""

from __future__ import annotations

from options.option import JUDGING, TRAIN, Option
from options.values import at_least, gpu_list, run_name, seed_number

_RUN = "which run, which data, which device"
_DISPLAY = "display"

RUN: tuple[Option, ...] = (
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
)

DISPLAY: tuple[Option, ...] = (
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
