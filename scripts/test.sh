#!/usr/bin/env bash
# Sets up the environment and runs every check: ruff, mypy, then the tests. Further arguments go to pytest:
#
#   bash scripts/test.sh [-k NAME] [-m "not slow"] ...
#
# Ends on pytest's closing line; exits with 0 only when every check passed.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment requirements-dev.txt
cd "$DCFNET_HOME"

failed=""

# check NAME COMMAND...: runs one check and goes on, so that one run tells of everything that is wrong.
check() {
    local name="$1"
    shift
    printf '== %s\n' "$name"
    "$@" || failed="$failed $name"
}

check ruff "$DCFNET_PYTHON" -m ruff check .
check format "$DCFNET_PYTHON" -m ruff format --check .
check mypy "$DCFNET_PYTHON" -m mypy data models options util
printf '== pytest%s\n' "${failed:+ (already failed:$failed)}"
tests=0
# No -q here: pyproject.toml says it, and a second one would drop the closing line. Two processes with a thread each:
# most tests start commands or compute too little for more threads. A file's tests stay together, for its fixtures.
OMP_NUM_THREADS=1 "$DCFNET_PYTHON" -m pytest -n "${DCFNET_TEST_PROCESSES:-2}" --dist loadfile "$@" || tests=$?
if [ -n "$failed" ] && [ "$tests" -eq 0 ]; then tests=1; fi
exit "$tests"
