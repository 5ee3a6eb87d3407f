"""Styles and scripts of the pages: files of this folder, read when a page is written."""

from __future__ import annotations

from pathlib import Path


def asset(name: str) -> str:
    """The text of a style or script."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
