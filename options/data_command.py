"""The options of 3TDCFNet_data.py: one sub-command for each thing that is done to data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from options.parser import Parser, refuse_unknown, value_parser
from options.values import at_least, fraction, seed_number
from util.errors import UserError


def parse_data_command(argv: Sequence[str], *, prog: str, description: str) -> argparse.Namespace:
    """Parse ``doctor``, ``split``, ``synthesize`` or ``tile`` and its options.

    Raises:
        UserError: an unknown sub-command or flag, or a bad value.
    """
    parser, commands = data_parsers(prog, description)
    given, unknown = parser.parse_known_args(list(argv))
    refuse_unknown(commands[given.action], unknown)
    if given.action == "split":
        _check_folds(given)
    return given


def data_parsers(prog: str, description: str) -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command, and those of its sub-commands by name."""
    parser = Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True)
    for add in (_add_doctor, _add_split, _add_synthesize, _add_tile):
        add(commands)
    return parser, dict(commands.choices)


def _check_folds(given: argparse.Namespace) -> None:
    """Refuse a number of folds or a fold that cannot be."""
    if given.folds == 1:
        raise UserError(
            "--folds 1 holds nothing out", expected="0, or 2 or more", remedy="leave --folds out, or raise it"
        )
    if given.fold > given.folds:
        found = f"--fold {given.fold} with --folds {given.folds}"
        raise UserError("--fold names no fold", expected="1 to --folds", found=found, remedy="give --folds with --fold")


def _file_named(*suffixes: str) -> Callable[[str], Path]:
    """A parser of output files that refuses other endings, so that no image or other file is named by mistake."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes or not path.stem:
            raise argparse.ArgumentTypeError(f"{text!r} must be a file name that ends in {' or '.join(suffixes)}")
        return path

    return parse


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that states each default once, and none where there is none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        stated = action.default is None or action.default is False or "(default" in (action.help or "")
        return action.help if stated else super()._get_help_string(action)


def _command(commands: argparse._SubParsersAction[Parser], name: str, text: str) -> Parser:
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False, formatter_class=_Help)


def _add_image_root(parser: Parser) -> None:
    parser.add_argument(
        "--image_root",
        type=Path,
        default=None,
        help="folder that a manifest's paths are relative to (default: the manifest's own folder)",
    )


def _add_split_by(parser: Parser) -> None:
    parser.add_argument(
        "--split_by",
        choices=("group", "blocks"),
        default="group",
        help="what is never parted: groups (one parent image, patient, content or blood count), or, harder, blocks of "
        "consecutive ids, which shows effects of the batch",
    )
    positive = value_parser(at_least(1), int)
    parser.add_argument("--block_size", type=positive, default=50, help="ids in a block, with --split_by blocks")


def _add_doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    text = (
        "say what is wrong with a data root: files, pairs, duplicates, labels, and what gives the class away; "
        "the exit status is 0 without errors, 1 where an error was found in the data, 2 for a bad call"
    )
    parser = _command(commands, "doctor", text)
    parser.add_argument("dataroot", type=Path, help="folder of the smears, or a manifest (CSV); nothing is changed")
    _add_image_root(parser)
    parser.add_argument(
        "--html",
        type=_file_named(".html", ".htm"),
        default=None,
        help="write a page that shows the files concerned side by side; one file, opens without a network",
    )
    parser.add_argument(
        "--json", type=_file_named(".json"), default=None, help="write all of it for programmes, see docs/data.md"
    )
    parser.add_argument(
        "--fix",
        type=_file_named(".csv"),
        default=None,
        help="write a cleaned manifest (one of each set of equal images, none that stand in both classes or cannot be "
        "used), and beside it NAME.left_out.csv with the reason for each file left out",
    )
    parser.add_argument(
        "--near_duplicates",
        choices=("keep", "drop"),
        default="keep",
        help="with --fix: keep images that look the same, as one group that no split parts, or the first only",
    )
    _add_split_by(parser)
    folds = value_parser(at_least(2), int)
    parser.add_argument("--folds", type=folds, default=5, help="folds of the colour classifier's cross-validation")
    seed = value_parser(seed_number, int)
    parser.add_argument("--seed", type=seed, default=0, help="seed of the colour classifier and its folds")
    positive = value_parser(at_least(1), int)
    parser.add_argument("--workers", type=positive, default=None, help="processes (default: as the processors allow)")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs, never a file of the data")


def _add_split(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = _command(commands, "split", "write a grouped, stratified split of a data root")
    share = value_parser(fraction, float)
    parser.add_argument("dataroot", type=Path, help="folder of the smears, or a manifest (CSV)")
    _add_image_root(parser)
    parser.add_argument("--out", type=Path, required=True, help="the split file to write, such as split.csv")
    parser.add_argument("--val_fraction", type=share, default=0.15, help="share of the images for validation")
    parser.add_argument("--test_fraction", type=share, default=0.15, help="share of the images for the test")
    _add_split_by(parser)
    number = value_parser(at_least(0), int)
    parser.add_argument(
        "--folds",
        type=number,
        default=0,
        help="draw K folds instead, each the test side once; without --fold all are written beside --out "
        "(split.fold1.csv, ...); 0 draws one split by the fractions",
    )
    parser.add_argument(
        "--split_from",
        choices=("auto", "data", "draw"),
        default="auto",
        help="take the split that the data itself states (data), draw one (draw), or draw where it states none (auto)",
    )
    parser.add_argument("--fold", type=number, default=0, help="write only this fold, from 1, to --out; 0 is all")
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
    parser.add_argument(
        "--masks",
        choices=("red_cells", "anerbc"),
        default="red_cells",
        help="what the masks show: red blood cells alone, exactly; or what AneRBC's own masks would, platelets and "
        "white cells too, with the edges of a threshold. Instances and cells.csv are of red cells either way",
    )
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
