#!/usr/bin/env python3
"""Write docs/options.md from the definitions of the options."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from options.definitions import Option, options_of  # noqa: E402 - the path must be set first


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
            "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows]),
        ]
    return "\n\n".join(parts)


def page() -> str:
    """The whole of docs/options.md."""
    head = (
        "# Options\n\nMade by `python scripts/write_options.py` from `options/definitions.py`; a test compares them.\n"
        "Where two spellings are given they mean the same. Every run prints its options, marks those that differ from\n"
        "their default, and saves them as `checkpoints/NAME/options.json`, which `--config` reads back."
    )
    return "\n\n".join([head, *map(table, ("train", "test", "predict"))]) + "\n"


if __name__ == "__main__":
    (REPOSITORY / "docs" / "options.md").write_text(page(), encoding="utf-8")
