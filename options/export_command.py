"""The options of 3TDCFNet_export.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from options.parser import Parser, refuse_unknown, value_parser
from options.values import checkpoint_choice, one_of, run_name

FORMS = ("onnx", "torch")
MOST_IMAGES = 64  # more tell no more of a file, and all of them are in memory at once


def parse_export_command(argv: Sequence[str], *, prog: str, description: str) -> argparse.Namespace:
    """Parse what is to be exported and where to.

    Raises:
        UserError: an unknown flag or a bad value.
    """
    parser = export_parser(prog, description)
    given, unknown = parser.parse_known_args(list(argv))
    refuse_unknown(parser, unknown)
    return given


def export_parser(prog: str, description: str) -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog=prog,
        usage="%(prog)s --name NAME [--to {onnx,torch}] [--out FILE] [options]",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = value_parser(run_name, str)
    parser.add_argument("--name", type=text, default="SEG", help="name of the run: checkpoints/NAME (default: SEG)")
    parser.add_argument(
        "--to",
        choices=FORMS,
        default="onnx",
        help="onnx, which ONNX Runtime and others run, or torch, a programme of torch.export (default: onnx)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="the file to write (default: beside the weights, where --backend onnx looks for it: "
        "checkpoints/NAME/WHICH_net_3TDCFNet.onnx or .pt2)",
    )
    parser.add_argument(
        "--which_epoch",
        "--epoch",
        type=value_parser(checkpoint_choice, str),
        default="latest",
        help="weights to export: latest, best or an epoch number (default: latest)",
    )
    parser.add_argument(
        "--dataroot",
        default="synthetic",
        help="smears to check the file with, as 3TDCFNet_predict.py takes them; `synthetic` draws some "
        "(default: synthetic)",
    )
    count = value_parser(one_of(range(1, MOST_IMAGES + 1)), int)
    parser.add_argument("--images", type=count, default=4, help=f"how many of them, at most {MOST_IMAGES} (default: 4)")
    parser.add_argument(
        "--checkpoints_dir", default="./checkpoints", help="folder of the runs (default: ./checkpoints)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    return parser
