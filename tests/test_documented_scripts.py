"""Every call of a script that README, docs, the model card and CONTRIBUTING show is one that the script takes."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TEXTS = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXTS += sorted((REPOSITORY / "checkpoints").glob("*/README.md"))
# visdom_server.sh hands what it is given on to the script that serves.
STANDS_FOR = {"visdom_server.sh": "visdom_serve.py"}


class Parsed(BaseException):
    """The script has read its call; what it would do now is left out."""


def commands():
    """Script and arguments of every call, in blocks, indented or within a line; continued lines joined."""
    found = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for match in re.finditer(r"(?:^|`)[ $]*(?:python|bash) scripts/(\w+\.(?:py|sh))([^`\n]*)", text, re.M):
            line = match[2].split(" #")[0].strip()
            found.append(pytest.param(match[1], line, id=f"{path.name}: {match[1]} {line[:60]}"))
    return found


def loaded(name, monkeypatch):
    """A script as a module that was not called."""
    path = REPOSITORY / "scripts" / STANDS_FOR.get(name, name)
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def parse(name, line, monkeypatch):
    """Let a script read a call, and stop it there; a call that it refuses ends in SystemExit."""
    module = loaded(name, monkeypatch)
    before = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise Parsed(before(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [name, *shlex.split(line)])
    if name == "bench_accuracy.py":  # what is not its own is the training's
        _, rest = module.arguments()
        module.options_for(None, rest)
    elif not hasattr(module, "main"):  # takes nothing
        assert not line
    else:
        with pytest.raises(Parsed):
            module.main()


SHELL_OF_THE_HOUSE = ("demo.sh", "test.sh", "environment.sh")  # tests/test_scripts.py runs them


@pytest.mark.parametrize(("name", "line"), [p for p in commands() if p.values[0] not in SHELL_OF_THE_HOUSE])
def test_a_documented_call_of_a_script_parses(name, line, monkeypatch):
    parse(name, line, monkeypatch)


def test_the_scripts_in_the_documentation_are_there():
    named = {p.values[0] for p in commands()}
    assert len(named) > 12, "the calls are found at all"
    assert not {name for name in named if not (REPOSITORY / "scripts" / name).is_file()}


@pytest.mark.parametrize("name", ["bench_cells.py", "visdom_server.sh"])
def test_a_call_with_a_flag_that_is_none_is_seen(name, monkeypatch):
    with pytest.raises(SystemExit):
        parse(name, "--no_such_flag 3", monkeypatch)
