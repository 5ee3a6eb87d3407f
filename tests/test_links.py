"""Links in a folder from somebody else lead no output of ours into other files of the user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from util.errors import UserError
from util.lock import sole_writer
from util.runlog import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="a system without O_NOFOLLOW")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text("mine\n")
    return path


@pytest.mark.parametrize("name", [".SEG.lock", ".SEG.lock_owner"])
def test_the_lock_of_a_folder_follows_no_link(tmp_path: Path, mine: Path, name: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / name).symlink_to(mine)
    held = sole_writer(tmp_path / "runs" / "SEG", remedy="wait")
    if name.endswith("lock"):
        with pytest.raises(UserError, match=r"\.SEG\.lock"), held:
            pass
    else:
        with held:
            pass
    assert mine.read_text() == "mine\n"


@pytest.mark.parametrize("log", ["starts", "metrics", "gate_log"])
def test_a_log_that_is_a_link_is_not_written(tmp_path: Path, mine: Path, log: str) -> None:
    run = RunFolder(tmp_path, "SEG")
    run.folder.mkdir()
    getattr(run, log).symlink_to(mine)
    write = {"starts": run.log_start, "metrics": run.log_epoch, "gate_log": run.log_gate}[log]
    with pytest.raises(UserError, match=f"cannot write .*{getattr(run, log).name}"):
        write({"epoch": 1})
    assert mine.read_text() == "mine\n"
    getattr(run, log).unlink()
    write({"epoch": 1})
    assert "1" in getattr(run, log).read_text()
