#!/usr/bin/env python3
"""Write docs/options.md from the definitions of the options."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from options.data_command import data_parsers  # noqa: E402 - the path must be set first
from options.definitions import Option, options_of  # noqa: E402
from options.export_command import export_parser  # noqa: E402
from options.parser import Parser  # noqa: E402

HEAD = ["| flag | default | meaning |", "|---|---|---|"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(option: Option) -> str:
    flags = ", ".join(f"`--{flag}`" for flag in (option.name, *option.spellings))
    default = option.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    given = "required" if option.required else "off" if option.is_switch else f"`{shown}`" if shown else ""
    choices = f" One of {', '.join(f'`{choice}`' for choice in option.choices)}." if option.choices else ""
    return f"| {flags} | {given} | {_cell(option.help)}{choices} |"


def table(command: str) -> str:
    """The options of a command as Markdown tables, one a group."""
    groups: dict[str, list[str]] = {}
    for option in options_of(command):
        groups.setdefault(option.group, []).append(_row(option))
    parts = [f"## 3TDCFNet_{command}.py"]
    for group, rows in groups.items():
        parts += [
            f"### {group[0].upper()}{group[1:]}",
            "\n".join([*HEAD, *rows]),
        ]
    return "\n\n".join(parts)


def _action_row(action: argparse.Action) -> str:
    """A row of a command that has its own parser."""
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.dest.upper()}`"
    given = "required" if action.required else "" if action.default is None else f"`{action.default}`"
    if action.nargs == 0:
        given = "off"
    text = re.sub(r" \(default: [^()]*\)$", "", action.help or "") if given else action.help or ""
    choices = f". One of {', '.join(f'`{choice}`' for choice in action.choices)}" if action.choices else ""
    return f"| {flags} | {given} | {_cell(text)}{choices}. |"


def parser_table(title: str, parser: Parser) -> str:
    """What a parser takes as a Markdown table."""
    return "\n\n".join([title, "\n".join([*HEAD, *map(_action_row, parser.actions())])])


def other_doors() -> list[str]:
    """The tables of the data command's sub-commands and of the export."""
    _, commands = data_parsers("3TDCFNet_data.py", "")
    tables = [parser_table(f"### {name}", parser) for name, parser in commands.items()]
    export = export_parser("3TDCFNet_export.py", "")
    return ["## 3TDCFNet_data.py", *tables, parser_table("## 3TDCFNet_export.py", export)]


def page() -> str:
    """The whole of docs/options.md."""
    head = (
        "# Options\n\nMade by `python scripts/write_options.py` from `options/`; a test compares them.\n"
        "Where two spellings are given they mean the same. Every run prints its options, marks those that differ from\n"
        "their default, and saves them as `checkpoints/NAME/options.json`, which `--config` reads back."
    )
    return "\n\n".join([head, *map(table, ("train", "test", "predict")), *other_doors()]) + "\n"


if __name__ == "__main__":
    (REPOSITORY / "docs" / "options.md").write_text(page(), encoding="utf-8")
