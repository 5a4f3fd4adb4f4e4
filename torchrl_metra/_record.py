"""What it takes to repeat a run, for the files that hold its results."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_run"]


def describe_run() -> dict[str, Any]:
    """Command, commit, versions and hardware of this process.

    The commit is that of the repository in the working directory, ``None`` outside of one.
    """
    return {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": {"cpu": _cpu_name(), "cores": os.cpu_count(), "gpu": _gpu_name()},
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() or None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
