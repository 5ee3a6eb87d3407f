#!/usr/bin/env bash
# Starts a visdom server on this machine, for this machine alone, which works without a network once it has run:
#
#   bash scripts/visdom_server.sh [--port 8097] [--fetch_only] [--help]
#
# PYTHON names the interpreter to use; else the environment of scripts/environment.sh is taken, else the python3 or
# python of the shell, whichever first has visdom. Nothing is installed.
set -euo pipefail

# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

HAS_VISDOM='import importlib.util, sys; sys.exit(importlib.util.find_spec("visdom") is None)'
candidates=("$DCFNET_PYTHON" python3 python)
if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
for candidate in "${candidates[@]}"; do
    if "$candidate" -c "$HAS_VISDOM" 2>/dev/null; then
        exec "$candidate" "$DCFNET_HOME/scripts/visdom_serve.py" "$@"
    fi
done
die "visdom is not installed: tried ${candidates[*]}" \
    "set the environment up (bash scripts/environment.sh), or name an interpreter that has visdom: PYTHON=..."
