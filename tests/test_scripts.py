"""The scripts of a fresh machine, run against an interpreter that only pretends to install, train and test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from util.errors import UserError

HOME = Path(__file__).resolve().parent.parent
SCRIPTS = ["scripts/environment.sh", "scripts/demo.sh", "scripts/test.sh", ".ci/run"]
REQUIREMENTS = ["requirements.txt", "requirements-dev.txt"]

# Real for every question about versions and hashes; writes down installs and runs of the doors instead of doing them.
PRETENDER = r"""#!/usr/bin/env bash
tell() { printf '%s\n' "$*" >>"$PRETENDER_LOG"; }
case "$*" in
    "-c import venv, ensurepip") [ -z "${NO_VENV:-}" ] ;;
    "-m venv "*) tell "venv $3"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/pyvenv.cfg" ;;
    "-m pip --version") ;;
    "-m pip config get global.constraint") [ -n "${PIP_SETTING:-}" ] || exit 1; echo "$PIP_SETTING" ;;
    "-m pip config get "*) exit 1 ;;
    "-m pip install "*) tell "install ${*##* -} [$PIP_CONSTRAINT] [$PIP_BUILD_CONSTRAINT]"; [ -z "${FAIL_PIP:-}" ] ;;
    "-c import torch, "*) [ -z "${FAIL_IMPORT:-}" ] ;;
    "-m ruff check "* | "-m ruff format "* | "-m mypy "*) tell "$*"; [ "${FAIL_CHECK:-none}" != "$3" ] ;;
    "-m pytest"*) tell "$*"; echo "3 passed in 0.1s"; exit "${PYTEST_STATUS:-0}" ;;
    "3TDCFNet_data.py synthesize "*) tell "$*"; mkdir -p "$3"; touch "$3/half"; [ -z "${FAIL_DATA:-}" ] ;;
    "3TDCFNet_train.py "*)
        tell "$*"; [ -z "${FAIL_TRAIN_EARLY:-}" ] || exit 1
        touch checkpoints/DEMO/latest_state.safetensors; [ -z "${FAIL_TRAIN:-}" ] || exit 1
        touch checkpoints/DEMO/finished.json ;;
    "3TDCFNet_test.py "*)
        tell "$*"; [ -z "${NO_PAGE:-}" ] || exit 0
        mkdir -p results/DEMO/test_latest; touch results/DEMO/test_latest/index.html ;;
    *) exec REAL_PYTHON "$@" ;;
esac
"""


class Machine:
    """A fresh clone in a folder with a blank in its name, on a machine whose only Python is the pretender."""

    def __init__(self, folder):
        self.home, self.bin, self.log = folder / "my clone", folder / "bin", folder / "log"
        for name in [*SCRIPTS, *REQUIREMENTS, "constraints.txt"]:
            (self.home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HOME / name, self.home / name)
        self.bin.mkdir()
        self.elsewhere = folder / "some where"
        self.elsewhere.mkdir()
        self.stub(self.bin / "python3.11", PRETENDER.replace("REAL_PYTHON", f"'{sys.executable}'"))
        self.have_free(64)  # whatever the machine has that this runs on

    def have_free(self, gigabytes):
        self.stub(self.bin / "df", f"#!/bin/sh\necho header\necho disk 99999999 0 {gigabytes * 1048576} 0% /\n")

    def stub(self, path, text):
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, script, *arguments, **environment):
        """Run a script from a folder that is not the repository; the lines that the pretender wrote go to ``told``."""
        self.log.write_text("")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "DCFNET_", "PYTHON", "TORCH_"))}
        clean |= {"PATH": f"{self.bin}:/usr/bin:/bin", "PRETENDER_LOG": str(self.log), "LC_ALL": "C"} | environment
        command = ["bash", str(self.home / script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=self.elsewhere, timeout=60)
        self.told = self.log.read_text().splitlines()
        return done


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


# the files as they are


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_executable_strict_and_parses(script):
    path = HOME / script
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in text
    assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    shellcheck = shutil.which("shellcheck", path=beside)
    if shellcheck is None:
        pytest.skip("no shellcheck: its package has none for this machine")
    done = subprocess.run([shellcheck, "-x", script], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def requirement_lines(name):
    lines = [line.split("#")[0].strip() for line in (HOME / name).read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("-r")]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_has_a_floor_and_a_ceiling(name):
    for line in requirement_lines(name):
        assert re.match(r"[a-z0-9-]+(==[\d.]+|>=[\d.]+,<[\d.]+)(; python_version [<>=]+ \"3\.\d+\")?$", line), line


def test_one_visdom_for_every_python_and_a_tornado_that_it_can_serve_with():
    requirements = [Requirement(line) for line in requirement_lines("requirements.txt")]
    for python in ("3.11", "3.12", "3.13"):
        visdoms = [
            r
            for r in requirements
            if r.name == "visdom" and (not r.marker or r.marker.evaluate({"python_version": python}))
        ]
        assert len(visdoms) == 1
        assert visdoms[0].specifier.contains("0.2.4" if python == "3.11" else "0.3.0")
    tornado = next(r for r in requirements if r.name == "tornado")
    assert tornado.specifier.contains("6.5.10")
    assert not tornado.specifier.contains("6.6")


def test_the_environment_that_runs_these_tests_is_allowed():
    for line in requirement_lines("requirements.txt"):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(metadata.version(requirement.name)), line


def test_the_build_of_visdom_gets_a_setuptools_that_still_has_pkg_resources():
    (constraint,) = (Requirement(line) for line in requirement_lines("constraints.txt"))
    assert constraint.name == "setuptools"
    assert constraint.specifier.contains("81.0.0")
    assert not constraint.specifier.contains("82.0")


# the environment


def test_an_install_is_stamped_and_the_next_run_takes_it(machine):
    first = machine.run("scripts/environment.sh")
    assert first.returncode == 0, first.stderr
    assert machine.told[0] == f"venv {machine.home / '.venv'}"
    assert "requirements.txt" in machine.told[1]
    assert re.search(r"installed in \d+ s", first.stdout)
    second = machine.run("scripts/environment.sh")
    assert second.returncode == 0
    assert "there already" in second.stdout
    assert machine.told == []


@pytest.mark.parametrize("changed", ["requirements.txt", "constraints.txt"])
def test_changed_requirements_are_installed_again_into_the_same_environment(machine, changed):
    machine.run("scripts/environment.sh")
    with (machine.home / changed).open("a") as file:
        file.write("# changed\n")
    assert machine.run("scripts/environment.sh").returncode == 0
    assert [line.split()[0] for line in machine.told] == ["install"]


def test_the_tests_need_more_than_the_toolkit(machine):
    machine.run("scripts/environment.sh")
    assert machine.run("scripts/environment.sh", "--dev").returncode == 0
    assert "requirements-dev.txt" in machine.told[0]


def test_what_the_tests_need_has_all_that_the_toolkit_needs(machine):
    machine.run("scripts/environment.sh", "--dev")
    assert machine.run("scripts/environment.sh").returncode == 0
    assert machine.told == []


@pytest.mark.parametrize("failure", ["FAIL_PIP", "FAIL_IMPORT"])
def test_a_broken_install_leaves_no_stamp_and_is_repeated(machine, failure):
    machine.run("scripts/environment.sh")
    (machine.home / "requirements.txt").write_text("# changed\n")
    broken = machine.run("scripts/environment.sh", **{failure: "1"})
    assert broken.returncode != 0
    assert "installed in" not in broken.stdout
    shutil.copy(HOME / "requirements.txt", machine.home / "requirements.txt")  # the old stamp would fit again
    again = machine.run("scripts/environment.sh")
    assert again.returncode == 0
    assert len(machine.told) == 1


def test_constraints_of_the_user_stay_in_force_beside_ours(machine):
    ours = (machine.home / "constraints.txt").as_uri()
    assert "%20" in ours, "pip splits the variable at blanks"
    machine.run("scripts/environment.sh", PIP_CONSTRAINT="/their/own.txt", PIP_BUILD_CONSTRAINT="/their/build.txt")
    assert machine.told[1].endswith(f"[/their/own.txt {ours}] [/their/build.txt {ours}]")


def test_constraints_in_pips_settings_stay_in_force(machine):
    ours = (machine.home / "constraints.txt").as_uri()
    machine.run("scripts/environment.sh", PIP_SETTING="/set/by/admin.txt")
    assert machine.told[1].endswith(f"[/set/by/admin.txt {ours}] [{ours}]")


def test_torch_comes_first_and_from_the_index_that_was_asked_for(machine):
    machine.have_free(5)
    done = machine.run("scripts/environment.sh", TORCH_INDEX_URL="file:///wheels")
    assert done.returncode == 0, done.stderr + " 5 GB are enough for CPU wheels"
    assert re.search(r"-index-url file:///wheels torch>=\S+ torchvision>=\S+ \[", machine.told[1])
    assert "requirements.txt" in machine.told[2]


def test_an_environment_elsewhere(machine, tmp_path):
    done = machine.run("scripts/environment.sh", DCFNET_VENV="an env")
    assert done.returncode == 0, done.stderr
    assert (machine.elsewhere / "an env" / "bin" / "python").exists()
    assert not (machine.home / ".venv").exists()


def test_a_folder_that_is_not_ours_is_not_touched(machine, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("cat")
    done = machine.run("scripts/environment.sh", DCFNET_VENV=str(tmp_path / "photos"))
    assert done.returncode == 2
    assert "set DCFNET_VENV to another" in done.stderr
    assert (tmp_path / "photos" / "cat.png").read_text() == "cat"
    assert machine.told == []


def test_an_environment_whose_python_is_gone_is_made_anew(machine):
    machine.run("scripts/environment.sh")
    (machine.home / ".venv" / "bin" / "python").unlink()
    assert machine.run("scripts/environment.sh").returncode == 0
    assert [line.split()[0] for line in machine.told] == ["venv", "install"]


OLD_PYTHON = "#!/bin/sh\necho 3.9\n"


def test_an_environment_of_an_old_python_is_made_anew(machine):
    machine.run("scripts/environment.sh")
    machine.stub(machine.home / ".venv" / "bin" / "python", OLD_PYTHON)
    assert machine.run("scripts/environment.sh").returncode == 0
    assert [line.split()[0] for line in machine.told] == ["venv", "install"]


def test_an_old_python_is_refused(machine, tmp_path):
    old = machine.stub(tmp_path / "python", OLD_PYTHON)
    done = machine.run("scripts/environment.sh", PYTHON=str(old))
    assert done.returncode == 2
    assert "no Python 3.11, 3.12 or 3.13" in done.stderr
    assert f"{old} is 3.9" in done.stderr
    assert "remedy:   install one, or name it: PYTHON=" in done.stderr
    assert not (machine.home / ".venv").exists()


def test_old_and_broken_pythons_on_the_way_are_passed_over(machine):
    pretender = machine.bin / "python3.11"
    pretender.rename(machine.bin / "python3.13")
    machine.stub(machine.bin / "python3.11", "#!/bin/sh\necho 'command not found' >&2; exit 127\n")
    machine.stub(machine.bin / "python3.12", OLD_PYTHON)
    done = machine.run("scripts/environment.sh")
    assert done.returncode == 0, done.stderr
    assert "with python3.13" in done.stdout


def test_a_python_without_its_venv_module(machine):
    done = machine.run("scripts/environment.sh", NO_VENV="1", PYTHON=str(machine.bin / "python3.11"))
    assert done.returncode == 2
    assert "apt install python3-venv" in done.stderr


def test_a_full_disk_is_told_before_anything_is_made(machine):
    machine.have_free(2)
    done = machine.run("scripts/environment.sh")
    assert done.returncode == 2
    assert "needs 8 GB, and 2 GB are free" in done.stderr
    assert machine.told == []


# the checks


def test_test_sh_runs_every_check_and_ends_on_pytests_closing_line(machine):
    done = machine.run("scripts/test.sh", "-k", "gate or mask")
    assert done.returncode == 0, done.stderr
    assert machine.told[-4:] == [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy data models options util",
        "-m pytest -n 2 --dist loadfile -k gate or mask",
    ]
    assert done.stdout.splitlines()[-1] == "3 passed in 0.1s"


@pytest.mark.parametrize("failing", ["check", "format", "data"])
def test_a_failed_check_fails_test_sh_after_the_tests_ran(machine, failing):
    done = machine.run(".ci/run", FAIL_CHECK=failing)
    assert done.returncode == 1
    assert machine.told[-1] == "-m pytest -n 2 --dist loadfile"
    assert done.stdout.splitlines()[-1] == "3 passed in 0.1s"


@pytest.mark.parametrize("status", ["1", "5"])
def test_failed_tests_or_none_at_all_fail_ci(machine, status):
    assert machine.run(".ci/run", PYTEST_STATUS=status).returncode == int(status)


# the demo


def doors(machine):
    return [line for line in machine.told if line.startswith("3TDCFNet_")]


def test_the_demo_from_nothing_to_a_report(machine):
    done = machine.run("scripts/demo.sh")
    assert done.returncode == 0, done.stderr
    data, train, test = doors(machine)
    assert data == "3TDCFNet_data.py synthesize datasets/synthetic-demo --count 160 --seed 7"
    assert train.startswith(
        "3TDCFNet_train.py --dataroot datasets/synthetic-demo --name DEMO --preset small --gpu_ids -1"
    )
    assert "--continue_train" not in train
    assert test == "3TDCFNet_test.py --dataroot datasets/synthetic-demo --name DEMO --gpu_ids -1 --display_id 0"
    assert done.stdout.splitlines()[-1] == str(machine.home / "results/DEMO/test_latest/index.html")
    table = [line.split() for line in done.stdout.partition("how long it took\n")[2].splitlines()[:5]]
    assert [(row[0], row[-1]) for row in table] == [
        (part, "s") for part in ("environment", "data", "training", "test", "total")
    ]


def test_a_second_demo_reuses_what_is_there_and_tests_only_newer_weights(machine):
    machine.run("scripts/demo.sh")
    weights = machine.home / "checkpoints/DEMO/latest_net_3TDCFNet.safetensors"
    page = machine.home / "results/DEMO/test_latest/index.html"
    weights.touch()
    os.utime(page, (weights.stat().st_mtime + 10,) * 2)
    assert machine.run("scripts/demo.sh").returncode == 0
    assert doors(machine) == []
    os.utime(weights, (page.stat().st_mtime + 10,) * 2)
    assert machine.run("scripts/demo.sh").returncode == 0
    assert [line.split()[0] for line in doors(machine)] == ["3TDCFNet_test.py"]


def test_a_demo_that_was_broken_off_goes_on_from_there(machine):
    broken = machine.run("scripts/demo.sh", FAIL_DATA="1")
    assert broken.returncode != 0
    assert 'stopped in its part "data"' in broken.stderr
    assert machine.run("scripts/demo.sh", FAIL_TRAIN_EARLY="1").returncode != 0
    assert doors(machine)[0].startswith("3TDCFNet_data.py"), "half a data set is made again"
    assert machine.run("scripts/demo.sh", FAIL_TRAIN="1").returncode != 0
    assert len(doors(machine)) == 1
    assert "--continue_train" not in doors(machine)[0], "there was no state to go on from"
    assert machine.run("scripts/demo.sh").returncode == 0
    assert doors(machine)[0].endswith("--continue_train")
    assert len(doors(machine)) == 2


def test_fresh_starts_over_and_leaves_other_runs_alone(machine):
    machine.run("scripts/demo.sh")
    (machine.home / "checkpoints/MINE").mkdir()
    assert machine.run("scripts/demo.sh", "--fresh").returncode == 0
    assert len(doors(machine)) == 3
    assert (machine.home / "checkpoints/MINE").is_dir()


@pytest.mark.parametrize("folder", ["checkpoints/DEMO", "results/DEMO"])
@pytest.mark.parametrize("arguments", [(), ("--fresh",)])
def test_the_demo_does_not_touch_a_run_that_it_did_not_make(machine, folder, arguments):
    (machine.home / folder).mkdir(parents=True)
    (machine.home / folder / "weights").write_text("weeks of work")
    done = machine.run("scripts/demo.sh", *arguments)
    assert done.returncode == 2
    assert f"{folder} is there and was not made by this demo" in done.stderr
    assert (machine.home / folder / "weights").read_text() == "weeks of work"
    assert machine.told == []


def test_a_run_on_other_data_that_took_the_demos_place_is_not_touched(machine):
    machine.run("scripts/demo.sh")
    (machine.home / "checkpoints/DEMO/options.json").write_text('{"dataroot": "/their/smears"}')
    assert machine.run("scripts/demo.sh", "--fresh").returncode == 2
    assert (machine.home / "checkpoints/DEMO/finished.json").exists()
    (machine.home / "checkpoints/DEMO/options.json").write_text('{"dataroot": "datasets/synthetic-demo"}')
    assert machine.run("scripts/demo.sh", "--fresh").returncode == 0


def test_the_users_own_data_of_that_name_are_used_and_never_removed(machine):
    (machine.home / "datasets/synthetic-demo").mkdir(parents=True)
    (machine.home / "datasets/synthetic-demo/smear.png").write_text("smear")
    assert machine.run("scripts/demo.sh").returncode == 0
    assert not any("synthesize" in line for line in doors(machine))
    assert machine.run("scripts/demo.sh", "--fresh").returncode == 2
    assert (machine.home / "datasets/synthetic-demo/smear.png").exists()
    assert (machine.home / "checkpoints/DEMO/finished.json").exists(), "refused before anything was removed"


def test_a_demo_trained_with_other_flags_is_not_passed_off_as_this_one(machine):
    machine.run("scripts/demo.sh")
    script = machine.home / "scripts/demo.sh"
    script.write_text(re.sub(r"--niter \d+", "--niter 99", script.read_text()))
    done = machine.run("scripts/demo.sh")
    assert done.returncode == 2
    assert "other flags" in done.stderr
    assert "--fresh" in done.stderr


def test_a_test_that_writes_no_page_fails_the_demo(machine):
    done = machine.run("scripts/demo.sh", NO_PAGE="1")
    assert done.returncode == 2
    assert "index.html was not written" in done.stderr


@pytest.mark.parametrize("script", ["scripts/demo.sh", "scripts/environment.sh"])
def test_an_unknown_option_is_an_error(machine, script):
    done = machine.run(script, "--frehs")
    assert done.returncode == 2
    assert "unknown option --frehs" in done.stderr
    assert machine.told == []


def test_the_demo_leaves_the_shipped_weights_alone():
    """Its run has another name than the weights that come with the repository, which it would refuse to replace."""
    name = re.search(r"^NAME=(\w+)$", (HOME / "scripts/demo.sh").read_text(), re.M)[1]
    shipped = {path.parent.name for path in HOME.glob("checkpoints/*/shipped.json")}
    assert shipped and name not in shipped


def test_points_are_read_none_too_and_what_is_none_is_named(tmp_path):
    from scripts.bench_cells import read_points

    path = tmp_path / "1.txt"
    path.write_text("3 4 0\n\n 5 6 11 more\n")
    assert read_points(path).tolist() == [[3, 4, 0], [5, 6, 11]]
    path.write_text("\n")
    assert read_points(path).shape == (0, 3)
    for wrong in ("3 4\n", "3 4 x\n", "3 4 0\n5 6\n"):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"1\.txt holds no points"):
            read_points(path)


def test_without_a_reference_nothing_is_measured():
    from scripts.shipped_novelty import measure

    stream = SimpleNamespace(names=[], pixels=None)
    with pytest.raises(UserError, match=r"nothing is known(?s:.*)--smears"):
        measure(stream, SimpleNamespace(load_sizes=[64]), damaged=False)
