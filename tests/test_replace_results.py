"""A test that does not end leaves the report of the one before it as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from util.errors import UserError
from util.replace_results import written_beside


def write(folder: Path, **contents: str) -> None:
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv").replace("_html", ".html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def held(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    old = dict.fromkeys(("index_html", "predictions_csv", "masks__1", "gradcam__1"), "old")
    write(tmp_path / "test_best", **old, notes="mine")
    return tmp_path / "test_best"


def test_all_of_an_earlier_test_is_replaced_and_nothing_else(results: Path) -> None:
    with written_beside(results) as unfinished:
        assert held(results)["index.html"] == "old", "until the end"
        write(unfinished, masks__2="new", predictions_csv="new", index_html="new")
    assert held(results) == {"index.html": "new", "predictions.csv": "new", "masks/2": "new", "notes": "mine"}
    assert [path.name for path in results.parent.iterdir()] == ["test_best"]


def test_the_first_test_makes_the_folder(tmp_path: Path) -> None:
    with written_beside(tmp_path / "SEG/test_latest") as unfinished:
        write(unfinished, index_html="new")
    assert held(tmp_path) == {"SEG/test_latest/index.html": "new"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("disk full"), MemoryError, SystemExit])
def test_what_does_not_end_changes_nothing(results: Path, error: type[BaseException] | BaseException) -> None:
    before = held(results)
    with pytest.raises(BaseException) as raised, written_beside(results) as unfinished:  # noqa: PT011, PT012 - any
        write(unfinished, masks__2="new", predictions_csv="new")
        raise error
    assert raised.value is error or raised.type is error
    assert held(results) == before and [path.name for path in results.parent.iterdir()] == ["test_best"]


def test_what_a_killed_test_left_is_no_part_of_the_next(results: Path) -> None:
    write(results.with_name("test_best.unfinished"), masks__9="killed", index_html="killed")
    write(results.with_name("test_best.replaced"), index_html="older")  # its page stands: it was as good as done
    with written_beside(results) as unfinished:
        assert held(unfinished) == {}
        write(unfinished, index_html="new")
    assert held(results) == {"index.html": "new", "notes": "mine"}
    assert [path.name for path in results.parent.iterdir()] == ["test_best"]


@pytest.mark.parametrize("moves", range(1, 9))
def test_a_change_of_places_that_is_broken_off_is_undone(
    results: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    new, left, move = dict.fromkeys(("index_html", "predictions_csv", "masks__2"), "new"), [moves], shutil.move

    def broken_off(source: Path, target: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr("util.replace_results.shutil.move", broken_off)
    before = held(results)
    if moves == 8:  # more than there are: four old names, three new ones
        with written_beside(results) as unfinished:
            write(unfinished, **new)
        assert held(results)["index.html"] == "new"
        return
    with pytest.raises(KeyboardInterrupt), written_beside(results) as unfinished:
        write(unfinished, **new)
    assert held(results) == before


@pytest.mark.parametrize("moves", range(1, 8))
def test_a_change_of_places_that_is_killed_is_undone_by_the_next_test(
    results: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    new, before = dict.fromkeys(("index_html", "predictions_csv", "masks__2"), "new"), held(results)
    with monkeypatch.context() as killed:
        left, move = [moves], shutil.move

        def until_killed(source: Path, target: Path) -> None:
            left[0] -= 1
            if not left[0]:
                raise SystemExit
            move(source, target)

        killed.setattr("util.replace_results.shutil.move", until_killed)
        killed.setattr("util.replace_results._put_back", lambda home, replaced: None)  # a kill lets nothing be undone
        with pytest.raises(SystemExit), written_beside(results) as unfinished:
            write(unfinished, **new)
    assert held(results).get("index.html") in (None, "old"), "no page beside files of another test"
    with pytest.raises(RuntimeError), written_beside(results):
        assert held(results) == before
        raise RuntimeError
    assert held(results) == before and [path.name for path in results.parent.iterdir()] == ["test_best"]


def test_a_results_folder_that_is_a_link_stays_one(results: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    link = tmp_path / "here/test_latest"
    link.symlink_to(results)
    with written_beside(link) as unfinished:
        assert unfinished.parent == results.parent, "on the disk that the link leads to"
        write(unfinished, index_html="new")
    assert link.is_symlink() and held(results)["index.html"] == "new"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), written_beside(tmp_path / "file/test_latest"):
        pass
