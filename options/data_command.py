"""The options of 3TDCFNet_data.py: one sub-command for each thing that is done to data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from options.definitions import at_least, fraction, seed_number
from options.parser import Parser, refuse_unknown, value_parser


def parse_data_command(argv: Sequence[str], *, prog: str, description: str) -> argparse.Namespace:
    """Parse ``split``, ``synthesize`` or ``tile`` and its options.

    Raises:
        UserError: an unknown sub-command or flag, or a bad value.
    """
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    _add_split(commands)
    _add_synthesize(commands)
    _add_tile(commands)
    given, unknown = parser.parse_known_args(list(argv))
    refuse_unknown(commands.choices[given.action], unknown)
    return given


def _command(commands: argparse._SubParsersAction[Parser], name: str, text: str) -> Parser:
    return commands.add_parser(
        name, help=text, description=text, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


def _add_split(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(commands, "split", "write a grouped, stratified split of a data root")
    share = value_parser(fraction, float)
    parser.add_argument("dataroot", type=Path, help="folder of the smears")
    parser.add_argument("--out", type=Path, required=True, help="the split file to write, such as split.csv")
    parser.add_argument("--val_fraction", type=share, default=0.15, help="share of the images for validation")
    parser.add_argument("--test_fraction", type=share, default=0.15, help="share of the images for the test")
    parser.add_argument("--seed", type=value_parser(seed_number, int), default=0, help="seed of the draw")
    parser.add_argument(
        "--duplicates", choices=("drop", "keep"), default="drop", help="what becomes of files with equal pixels"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")


def _add_synthesize(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(commands, "synthesize", "write synthetic smears with exact truth, in AneRBC's own tree")
    positive = value_parser(at_least(1), int)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--count", type=positive, default=240, help="number of smears, half of either class")
    seed = value_parser(seed_number, int)
    parser.add_argument("--seed", type=seed, default=0, help="which series; the same seed gives the same bytes")
    parser.add_argument("--size", type=positive, default=300, help="side of the smears in pixels")
    parser.add_argument("--workers", type=positive, default=None, help="processes (default: as the processors allow)")
    parser.add_argument("--overwrite", action="store_true", help="replace a synthetic data set that lies there")


def _add_tile(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(commands, "tile", "cut AneRBC-I's images and masks into AneRBC-II's tiles, with its names")
    positive = value_parser(at_least(1), int)
    parser.add_argument("source", type=Path, help="AneRBC-I, or a folder that holds it")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--columns", type=positive, default=4, help="tiles side by side")
    parser.add_argument("--rows", type=positive, default=3, help="tiles one below the other")
    parser.add_argument("--workers", type=positive, default=None, help="threads (default: one a core)")
    parser.add_argument("--overwrite", action="store_true", help="replace tiles that lie there")
