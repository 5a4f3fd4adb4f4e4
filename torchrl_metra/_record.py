"""What it takes to repeat a run, for the files that hold its results."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# A key alone, or one to get in by; others, such as skill_key, are not secret.
_KEY = r"(?:\b|api[_-]?|access[_-]?|private[_-]?)key"
_NAME = rf"[\w.+-]*(?:token|passw|passphrase|secret|credential|auth|{_KEY})[\w-]*"
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_SECRET_VALUE = re.compile(rf"({_NAME}['\"]?\s*[=:]\s*)[^,}}\]]+", re.IGNORECASE)


def describe_run() -> dict[str, Any]:
    """Command, commit, versions and hardware of this process.

    The commit is that of the repository in the working directory, ``None`` outside of one. What
    looks like a secret in the command is left out, for these files are published.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(["python", *hide_secrets(sys.orig_argv[1:])]),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": {"cpu": _cpu_name(), "cores": os.cpu_count(), "gpu": gpu},
        "threads": torch.get_num_threads(),
    }


def hide_secrets(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command, with ``***`` for values whose names look like a secret's.

    Args:
        arguments (sequence of str): such as overrides, ``name=value``, and options,
            ``--name value``.

    Examples:
        >>> hide_secrets(["run.py", "+logger.api_key=abc", "seed=1", "--token", "abc"])
        ['run.py', '+logger.api_key=***', 'seed=1', '--token', '***']
        >>> hide_secrets(["keys.skill_key=z", "logger.key=abc"])
        ['keys.skill_key=z', 'logger.key=***']
        >>> hide_secrets(["logger={password: abc, name: run}"])
        ['logger={password: ***, name: run}']
    """
    shown, is_secret = [], False
    for argument in arguments:
        shown.append("***" if is_secret else _SECRET_VALUE.sub(r"\1***", argument))
        is_secret = argument.startswith("-") and _SECRET_NAME.fullmatch(argument) is not None
    return shown


def _commit() -> str | None:
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() or None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
