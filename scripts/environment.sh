#!/usr/bin/env bash
# Makes the Python environment that the toolkit runs in, or takes the one that is there.
#
#   bash scripts/environment.sh [--dev]     install (--dev: with the tools that the tests need)
#   source scripts/environment.sh           then: prepare_environment requirements.txt; "$DCFNET_PYTHON" ...
#
# What can be set:
#   PYTHON            the interpreter to use, of 3.11 to 3.13; else the first that is found
#   DCFNET_VENV       folder of the environment; else .venv in the repository
#   TORCH_INDEX_URL   where to get torch and torchvision from, such as PyTorch's index of wheels for CPUs (much smaller);
#                     counts when torch is first installed
#   PIP_CONSTRAINT    further constraints of your own; they stay in force
#
# Written for bash 3.2 (macOS) and later.

DCFNET_HOME="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
DCFNET_VENV="${DCFNET_VENV:-$DCFNET_HOME/.venv}"
case "$DCFNET_VENV" in /*) ;; *) DCFNET_VENV="$PWD/$DCFNET_VENV" ;; esac
DCFNET_PYTHON="$DCFNET_VENV/bin/python"
MADE_HERE=.made-by-dcfnet
NEEDED_GB=8 # 5.5 GB installed, and room to unpack
NEEDED_GB_FROM_TORCH_INDEX=4
IMPORTS="torch, torchvision, timm, safetensors, numpy, PIL, scipy, skimage, sklearn, matplotlib, dominate, tqdm, visdom"

# die WHAT REMEDY: the message of something that the user can mend.
die() {
    printf 'error: %s\n  remedy:   %s\n' "$1" "$2" >&2
    exit 2
}

# python_version INTERPRETER: prints "3.11", or nothing where it does not run.
python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

supported() {
    case "$1" in 3.11 | 3.12 | 3.13) return 0 ;; *) return 1 ;; esac
}

# find_python: sets FOUND_PYTHON to an interpreter of a supported version that can make environments.
find_python() {
    local candidates=(python3.11 python3.12 python3.13 python3 python) candidate version seen="" without_venv=""
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        version="$(python_version "$candidate")"
        if [ -n "$version" ]; then seen="$seen $candidate is $version"; fi
        if ! supported "$version"; then continue; fi
        if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            FOUND_PYTHON="$candidate"
            return
        fi
        without_venv="${without_venv:-$candidate}"
    done
    if [ -n "$without_venv" ]; then
        die "$without_venv cannot make environments: its venv module is missing or incomplete" \
            "install it (Debian and Ubuntu: apt install python3-venv), or set PYTHON to another interpreter"
    fi
    die "no Python 3.11, 3.12 or 3.13: tried ${candidates[*]}; found:${seen:- none that runs}" \
        "install one, or name it: PYTHON=/path/to/python3.11 bash ${0##*/}"
}

# check_disk: there must be room where the environment will be.
check_disk() {
    local needed="$NEEDED_GB" free
    if [ -n "${TORCH_INDEX_URL:-}" ]; then needed="$NEEDED_GB_FROM_TORCH_INDEX"; fi
    free="$(df -Pk "$(dirname "$DCFNET_VENV")" | awk 'NR == 2 { print int($4 / 1048576) }')"
    if [ "$free" -lt "$needed" ]; then
        die "$DCFNET_VENV: the environment needs $needed GB, and $free GB are free there" \
            "free some space, set DCFNET_VENV to a folder on another disk, or TORCH_INDEX_URL to CPU wheels"
    fi
}

# usable_venv: whether $DCFNET_VENV is an environment that works, of a supported version and, where PYTHON is set, of its.
usable_venv() {
    local version
    version="$(python_version "$DCFNET_PYTHON")"
    supported "$version" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$version" ] || return 1
    "$DCFNET_PYTHON" -m pip --version >/dev/null 2>&1
}

# make_venv: creates $DCFNET_VENV unless a usable one is there; what stands there is removed only if this script made it.
make_venv() {
    if usable_venv; then return; fi
    if [ -d "$DCFNET_VENV" ] && [ -n "$(ls -A "$DCFNET_VENV")" ] && [ ! -e "$DCFNET_VENV/$MADE_HERE" ]; then
        die "$DCFNET_VENV is there and is no working environment of the Python that is wanted" \
            "remove that folder, or set DCFNET_VENV to another"
    fi
    find_python
    mkdir -p "$(dirname "$DCFNET_VENV")"
    check_disk
    printf 'making the environment %s with %s\n' "$DCFNET_VENV" "$FOUND_PYTHON"
    rm -rf "$DCFNET_VENV"
    mkdir "$DCFNET_VENV"
    touch "$DCFNET_VENV/$MADE_HERE"
    "$FOUND_PYTHON" -m venv "$DCFNET_VENV"
}

# add_constraints: puts constraints.txt beside the constraints that the user has, in variables or in pip's own settings.
# The name is a URL because pip splits the variables at blanks, and folders may have some.
add_constraints() {
    local ours theirs="${PIP_CONSTRAINT:-}"
    ours="$("$DCFNET_PYTHON" -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).as_uri())' "$DCFNET_HOME/constraints.txt")"
    if [ -z "$theirs" ]; then
        theirs="$("$DCFNET_PYTHON" -m pip config get install.constraint 2>/dev/null ||
            "$DCFNET_PYTHON" -m pip config get global.constraint 2>/dev/null || true)"
    fi
    export PIP_CONSTRAINT="${theirs:+$theirs }$ours"
    export PIP_BUILD_CONSTRAINT="${PIP_BUILD_CONSTRAINT:+$PIP_BUILD_CONSTRAINT }$ours"
}

# install_packages REQUIREMENTS
install_packages() {
    local pip=("$DCFNET_PYTHON" -m pip install --quiet --disable-pip-version-check) line torch=()
    add_constraints
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        while IFS= read -r line; do torch+=("${line%%[ #]*}"); done \
            < <(grep -E '^torch(vision)?[<>=]' "$DCFNET_HOME/requirements.txt")
        "${pip[@]}" --index-url "$TORCH_INDEX_URL" "${torch[@]}"
    fi
    "${pip[@]}" -r "$DCFNET_HOME/$1"
    "$DCFNET_PYTHON" -c "import $IMPORTS" ||
        die "the packages were installed and cannot be imported: see above" "remove $DCFNET_VENV and run this again"
}

# fingerprint REQUIREMENTS: what the environment was made from; a change of any of it makes it be made anew.
fingerprint() {
    "$DCFNET_PYTHON" - "$DCFNET_HOME" "$1" <<'PY'
import hashlib, pathlib, platform, sys
home, asked = pathlib.Path(sys.argv[1]), sys.argv[2]
names = dict.fromkeys(["constraints.txt", "requirements.txt", asked])
print(platform.python_version(), asked, hashlib.sha256(b"\0".join((home / n).read_bytes() for n in names)).hexdigest())
PY
}

# prepare_environment REQUIREMENTS: makes $DCFNET_PYTHON an interpreter that has all of requirements.txt or
# requirements-dev.txt. The stamp is written last, so an install that was broken off is repeated.
prepare_environment() {
    local started="$SECONDS" stamp name
    stamp="$DCFNET_VENV/.dcfnet-$1"
    if [ -f "$stamp" ] && usable_venv && [ "$(cat "$stamp")" = "$(fingerprint "$1")" ]; then
        printf 'environment %s: there already\n' "$DCFNET_VENV"
        return
    fi
    make_venv
    rm -f "$DCFNET_VENV"/.dcfnet-*
    printf 'installing %s (minutes, and up to 5.5 GB, the first time)\n' "$1"
    install_packages "$1"
    for name in requirements.txt "$1"; do # the larger set has the smaller one in it
        fingerprint "$name" >"$DCFNET_VENV/.dcfnet-new"
        mv "$DCFNET_VENV/.dcfnet-new" "$DCFNET_VENV/.dcfnet-$name"
    done
    printf 'environment %s: installed in %d s\n' "$DCFNET_VENV" "$((SECONDS - started))"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    case "${1:-}" in
        "") prepare_environment requirements.txt ;;
        --dev) prepare_environment requirements-dev.txt ;;
        *) die "unknown option $1" "bash ${0##*/} [--dev]" ;;
    esac
fi
