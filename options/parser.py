"""From the command line to a checked set of options, and from there to a file and back."""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from options.definitions import Option, options_of
from options.values import AUTO
from util.errors import UserError, visible
from util.files import atomic_write

OPTIONS_SCHEMA = 1
_KINDS = {int: "a whole number", float: "a number", str: "a text", tuple: "a list of numbers"}
# Options that say where or how to go on, not what the run is: a saved file must not carry them into another run.
NOT_RELOADED = ("config", "continue_train", "overwrite", "gpu_ids")
# A test or a prediction sees the images as the run's training saw them.
FROM_RUN = (
    "loadSize",
    "fineSize",
    "synthetic_count",
    "seed",
    "severity_from",
    "chronic_below",
    "normal_from",
)
# What a run that goes on has in its state and its recorded split: another value could not take effect.
BEGUN_WITH = (
    "seed",
    "preset",
    "fineSize",
    "dropout",
    "binary_stream",
    "fusion",
    "pretrained",
    "distil_epochs",
    "init_from",
    "gates",
    "ema",
    "duplicates",
    "split_file",
    "split_from",
    "split_by",
    "block_size",
    "val_fraction",
    "test_fraction",
    "folds",
    "fold",
)
SAFE_CROP = 128  # from this fineSize on every feature map of one image has several pixels


class Options(argparse.Namespace):
    """The options of one command: an attribute each.

    Attributes:
        command: "train", "test" or "predict", the command they belong to.
        from_run: names of those that a test or a prediction took from its run's options file.
    """

    command: str
    from_run: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """All options of the command by name, in the order of ``--help``."""
        return {option.name: getattr(self, option.name) for option in options_of(self.command)}

    def defaults(self) -> dict[str, Any]:
        """Their defaults by name."""
        return {option.name: option.default for option in options_of(self.command)}

    def described(self) -> dict[str, dict[str, Any]]:
        """Each with its default, as checkpoints and pages hold them."""
        defaults = self.defaults()
        return {name: {"value": value, "default": defaults[name]} for name, value in self.values().items()}

    def non_defaults(self) -> dict[str, Any]:
        """Those that differ from their default."""
        defaults = self.defaults()
        return {name: value for name, value in self.values().items() if value != defaults[name]}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors that name the nearest flag."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise UserError(message, remedy=f"`{self.prog} --help` explains every option")

    def actions(self) -> list[argparse.Action]:
        """What it takes, in the order of ``--help``, without ``--help`` itself."""
        return [action for action in self._actions if action.dest != "help"]

    def flags(self) -> list[str]:
        """Every flag that the parser knows."""
        return [flag for action in self._actions for flag in action.option_strings]


def value_parser(convert: Callable[[str], Any], kind: type) -> Callable[[str], Any]:
    """Make argparse name what is wrong with a value: ``convert``'s own words, or what kind of value it should be."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            unreadable = convert is kind or "invalid literal" in str(error) or "could not convert" in str(error)
            reason = f"must be {_KINDS[kind]}" if unreadable else str(error)
            raise argparse.ArgumentTypeError(f"{text!r} {reason}") from None

    return parse


def _parser_of(option: Option) -> Callable[[str], Any]:
    kind = type(option.default)
    return value_parser(option.parse or kind, kind)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _add(group: argparse._ArgumentGroup, option: Option) -> None:
    flags = [f"--{option.name}", *(f"--{spelling}" for spelling in option.spellings)]
    text = option.help.replace("%", "%%")
    if option.is_switch:
        group.add_argument(*flags, dest=option.name, action="store_true", default=None, help=text)
        return
    default = "" if option.required or option.default in ("", ()) else f" (default: {_shown(option.default)})"
    metavar = "{" + ",".join(option.choices) + "}" if option.choices else option.name.upper()
    group.add_argument(
        *flags,
        dest=option.name,
        type=_parser_of(option),
        default=None,
        choices=option.choices or None,
        metavar=metavar,
        help=text + default,
    )


def build_parser(command: str, prog: str, description: str) -> Parser:
    """The parser of a command, its options in groups."""
    usage = "%(prog)s --dataroot FOLDER [--name NAME] [options]"
    parser = Parser(
        prog=prog,
        usage=usage,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options_of(command):
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups[option.group], option)
    return parser


def refuse_unknown(parser: Parser, unknown: Sequence[str]) -> None:
    """Raise UserError that names the first unknown flag and the nearest known one."""
    if not unknown:
        return
    flag = unknown[0].split("=")[0]
    if not flag.startswith("-"):
        raise UserError(
            f"unexpected argument {unknown[0]!r}",
            expected="one value to an option",
            remedy="put a pattern or a name with spaces in quotes, such as 'smears/*.png'",
        )
    near = difflib.get_close_matches(flag, parser.flags(), n=1, cutoff=0.5)
    lowered = {known.lower(): known for known in parser.flags()}
    suggestion = lowered.get(flag.lower()) or (near[0] if near else "")
    remedy = f"did you mean {suggestion}?" if suggestion else f"`{parser.prog} --help` lists the options"
    raise UserError(f"unknown option {flag}", remedy=remedy)


def _check(options: Options) -> None:
    if options.fineSize > options.loadSize:
        raise UserError(
            f"--fineSize {options.fineSize} is larger than --loadSize {options.loadSize}",
            expected="fineSize <= loadSize: images are resized to loadSize, then cropped to fineSize",
            found=f"loadSize {options.loadSize}, fineSize {options.fineSize}",
            remedy=f"use --loadSize {options.fineSize} or --fineSize {options.loadSize}",
        )
    if options.command == "train":
        _check_training(options)
    elif options.batchSize == AUTO:
        raise UserError(
            "--batchSize auto is for training",
            expected="a number of images",
            remedy="leave --batchSize out, or give a number such as 16",
        )


def _check_training(options: Options) -> None:
    if options.batchSize == 1 and options.fineSize < SAFE_CROP:
        raise UserError(
            "batch normalisation cannot learn from one image of this size",
            expected=f"--batchSize 2 or more, or --fineSize {SAFE_CROP} or more",
            found=f"--batchSize 1 with --fineSize {options.fineSize}",
            remedy=f"use --batchSize 2 or --fineSize {SAFE_CROP}",
        )
    if options.niter + options.niter_decay < 1:
        raise UserError("--niter and --niter_decay are both 0", expected="at least one epoch", remedy="set --niter")
    held_out = options.val_fraction + options.test_fraction
    if not 0 < held_out < 1:
        raise UserError(
            f"--val_fraction and --test_fraction leave nothing to {'train' if held_out else 'validate'} on",
            expected="a sum above 0 and below 1",
            found=f"{options.val_fraction} + {options.test_fraction}",
            remedy="lower them" if held_out else "raise --val_fraction",
        )
    if options.distil_epochs and (options.init_from or options.pretrained == "none"):
        other = f"--init_from {options.init_from}" if options.init_from else "--pretrained none"
        raise UserError(
            f"--distil_epochs {options.distil_epochs} with {other} has nothing to learn from",
            expected="a tier that starts from ImageNet weights",
            found=other,
            remedy="leave one of them out",
        )
    if options.distil_epochs and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"--distil_epochs {options.distil_epochs} is for one process",
            expected="a start without torchrun",
            found=f"{os.environ['WORLD_SIZE']} processes",
            remedy="distil in one process (--niter 1 --niter_decay 0), then start the others from it (--init_from)",
        )
    if options.gates == "off" and options.stop_when_open:
        raise UserError(
            "--stop_when_open with --gates off would end the run before its first epoch",
            expected="gates that can open",
            found="--gates off --stop_when_open",
            remedy="leave one of them out; --patience ends a run without gates early",
        )


def _check_continued(options: Options) -> None:
    """Refuse to go on with a run under options that it was not begun with."""
    saved = _saved_options(options.checkpoints_dir, options.name)
    if not saved.is_file():
        return
    begun, defaults, values = load_options(saved), options.defaults(), options.values()
    for name in BEGUN_WITH:
        before, now = begun.get(name, defaults[name]), values[name]
        if now != before:
            raise UserError(
                f"--continue_train cannot change --{name}",
                expected=f"{_shown(before) or 'none'}, with which the run was begun ({saved})",
                found=_shown(now) or "none",
                remedy=f"leave --{name} out to go on, or begin another run (another --name)",
            )


def _check_served(named: Mapping[str, Any]) -> None:
    """Refuse what a page that writes nothing cannot heed."""
    idle = [f"--{name}" for name in ("dataroot", "continue_predict", "overwrite") if named.get(name)]
    if idle:
        raise UserError(
            f"--serve does not go with {', '.join(idle)}",
            expected="--serve for a page into which smears are dropped, or --dataroot for a folder of them",
            remedy=f"leave out --serve, or {', '.join(idle)}",
        )


def parse_options(command: str, argv: Sequence[str], *, prog: str, description: str) -> Options:
    """Parse a command line; what it leaves out comes from an options file (of the run, or named), else is the default.

    Args:
        command: "train", "test" or "predict".
        argv: the arguments after the program's name.
        prog: the program's name in messages.
        description: first line of ``--help``.

    Raises:
        UserError: an unknown flag (the nearest one is named), a bad value, options that contradict each other, or an
            options file that is broken or missing.
    """
    parser = build_parser(command, prog, description)
    given, unknown = parser.parse_known_args(list(argv))
    refuse_unknown(parser, unknown)
    values = {option.name: option.default for option in options_of(command)}
    reloaded = _reloaded(command, given)
    named = {name: value for name, value in vars(given).items() if value is not None}
    if command == "train" and given.continue_train and named.get("batchSize") == AUTO:
        named.pop("batchSize")  # the run goes on with the number that it was begun with
    values |= reloaded | named
    if values.get("serve"):
        _check_served(named)
    if not values["dataroot"] and not values.get("serve") and not values.get("compare"):
        raise UserError(
            "--dataroot is missing",
            expected="the folder of the smears, or the word synthetic",
            remedy=f"{prog} --dataroot FOLDER ...; `{prog} --help` says which folders are understood",
        )
    from_run = tuple(name for name in reloaded if name not in named) if command != "train" else ()
    options = Options(command=command, from_run=from_run, **values)
    _check(options)
    if command == "train" and options.continue_train:
        _check_continued(options)
    return options


def _saved_options(checkpoints_dir: str, name: str) -> Path:
    """Where a run keeps its options."""
    return Path(checkpoints_dir) / name / "options.json"


def _reloaded(command: str, given: argparse.Namespace) -> dict[str, Any]:
    """The saved values that go under the command line: of the file named, or of the run that is continued or tested."""
    if getattr(given, "config", None):
        return load_options(Path(given.config))
    if command == "train" and not given.continue_train:
        return {}
    defaults = {option.name: option.default for option in options_of(command)}
    saved = _saved_options(given.checkpoints_dir or defaults["checkpoints_dir"], given.name or defaults["name"])
    if not saved.is_file():
        if command == "train" and saved.with_name("latest_state.safetensors").is_file():
            raise UserError(
                f"--continue_train: {saved} is missing",
                expected="the options that the run was begun with beside its saved state",
                found=f"latest_state.safetensors without them in {saved.parent}",
                remedy="put the file back, or name a copy of it by --config",
            )
        return {}  # no such run: the command itself says so
    stored = load_options(saved)
    if command == "train":
        return stored
    return {name: stored[name] for name in FROM_RUN if name in stored and name in defaults}


def describe(options: Options) -> str:
    """All options as a table: those that differ from their default with ``*`` and it, those of the run named."""
    lines = ["-" * 17 + " Options " + "-" * 17]
    for option in options_of(options.command):
        value = getattr(options, option.name)
        mark = "*" if value != option.default else " "
        note = f"   [default: {_shown(option.default)}]" if mark == "*" and not option.required else ""
        note += "   [from the run]" if option.name in options.from_run else ""
        lines.append(visible(f"{mark} {option.name:>18}: {_shown(value)}{note}"))
    return "\n".join([*lines, "-" * 43])


def save_options(path: Path, options: Options) -> None:
    """Write the options as JSON that ``--config`` and ``load_options`` read back."""
    content = {
        "schema_version": OPTIONS_SCHEMA,
        "command": options.command,
        "values": options.values(),
        "non_defaults": sorted(options.non_defaults()),
    }
    atomic_write(path, json.dumps(content, indent=1) + "\n")


def load_options(path: Path, command: str = "train") -> dict[str, Any]:
    """Read a saved options file.

    Returns:
        The values by name, checked as if they came from the command line.

    Raises:
        UserError: the file is missing, is no options file, or names an unknown option or value.
    """
    known = {option.name: option for option in options_of(command)}
    remedy = "give the options.json of an earlier run, in checkpoints/NAME"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored = dict(content["values"])
    except FileNotFoundError:
        raise UserError(f"no options file at {path}", remedy=remedy) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not an options file", found=str(error), remedy=remedy) from None
    values = {}
    for name, value in stored.items():
        if name in NOT_RELOADED:
            continue
        if name not in known:
            raise UserError(f"{path} holds an option unknown here: {name}", remedy="remove it from the file")
        values[name] = _from_json(path, known[name], value)
    return values


def _from_json(path: Path, option: Option, value: Any) -> Any:
    """Check a stored value by the same parser as the command line's."""
    if option.is_switch:
        if not isinstance(value, bool):
            raise UserError(f"{path}: {option.name} must be true or false", found=repr(value))
        return value
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        parsed = _parser_of(option)(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{path}: bad value of {option.name}", found=str(error)) from None
    if option.choices and parsed not in option.choices:
        raise UserError(f"{path}: bad value of {option.name}", expected=", ".join(option.choices), found=text)
    return parsed
