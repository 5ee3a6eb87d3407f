"""What a run was made with: command, versions, commit and machine."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scipy", "scikit-learn", "scikit-image")
HOME = Path(__file__).resolve().parents[1]
GIT_SECONDS = 5


def start_facts(device: Any) -> dict[str, Any]:
    """Facts about a start of a command, in plain types: when, what was asked, by which code, on what.

    Args:
        device: the ``torch.device`` that it works on.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(device),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def commit(home: Path = HOME) -> str | None:
    """The toolkit's commit, with ``+changes`` where files differ from it; None outside of a git checkout."""
    if not (home / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = _git(home, "rev-parse", "HEAD")
        changed = _git(home, "status", "--porcelain", "--untracked-files=no")
        return f"{head}+changes" if changed else head
    return None


def _git(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(home), *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
    )
    return done.stdout.strip()


def machine(device: Any) -> dict[str, Any]:
    """Host name, system, processor, cores, memory and the device worked on."""
    import torch

    from util.device import describe_device

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if device.type == "cuda" else []
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "device": describe_device(device),
        "gpus": gpus,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def _processor() -> str:
    """The processor's model; what ``platform`` calls it (often just x86_64) where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
