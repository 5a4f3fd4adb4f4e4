"""Runs the tests that ask for the fixture ``cuda`` on an emulated device.

That takes ``LD_PRELOAD``, so pytest is started anew, once for all of them, and its reports are
reported as those of the tests here.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from . import device

# Where the other process writes its reports.
_REPORTS = "TORCHRL_METRA_EMULATION_REPORTS"
_IS_EMULATED = _REPORTS in os.environ
if _IS_EMULATED:
    device.install()


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The emulated ``cuda:0``; tensors can be made there during the test."""
    if not _IS_EMULATED:
        if reason := _unavailable(request.config):
            pytest.skip(reason)
        output = (_folder(request.config) / "output").read_text()[-2_000:]
        pytest.fail(f"the process with the emulated device ended early:\n{output}", pytrace=False)
    with device.CudaMode():
        yield device.CUDA


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Report what the other process has reported of a test."""
    # Without a report, it is the fixture's turn to say why.
    if _IS_EMULATED or not _is_for_cuda(item) or _unavailable(item.config):
        return None
    if not (reports := _reports(item.session).get(item.nodeid)):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in reports:
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """In the other process: write down what is reported."""
    report = yield
    if _IS_EMULATED:
        serialize = item.config.hook.pytest_report_to_serializable
        with Path(os.environ[_REPORTS]).open("a") as file:
            print(json.dumps(serialize(config=item.config, report=report), default=str), file=file)
    return report


def _is_for_cuda(item: pytest.Item) -> bool:
    return "cuda" in getattr(item, "fixturenames", ())


@functools.cache
def _reports(session: pytest.Session) -> dict[str, list[Any]]:
    """Of all tests that were asked for, by their names. Workers of xdist share them."""
    folder = _folder(session.config)
    path = folder / "reports"
    with _locked(folder):
        if not path.exists():
            tests = [item.nodeid for item in session.items if _is_for_cuda(item)]
            options = ["-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder / 'tests'}"]
            with (folder / "output").open("w") as output:
                subprocess.run(
                    [sys.executable, "-m", "pytest", *options, *tests],
                    cwd=session.config.rootpath,
                    env=device.environment(folder) | {_REPORTS: str(path)},
                    stdout=output,
                    stderr=output,
                    check=False,
                )
            path.touch()
    reports: dict[str, list[Any]] = {}
    for line in path.read_text().splitlines():
        data = json.loads(line)
        reports.setdefault(data["nodeid"], []).append(data)
    return reports


@functools.cache
def _unavailable(config: pytest.Config) -> str:
    """Why there is no emulated device; empty if there is one, which is compiled if need be."""
    if sys.platform != "linux":
        return "emulating CUDA needs LD_PRELOAD, which only Linux has"
    if torch.version.cuda is not None:
        return "this PyTorch has a CUDA of its own"
    if shutil.which(device.COMPILER) is None:
        return "emulating CUDA needs a C++ compiler"
    folder = _folder(config)
    result = folder / "compiler"
    with _locked(folder):
        if not result.exists():
            result.write_text(device.build(folder))
    errors = result.read_text()
    return f"PyTorch has changed inside: {errors[-500:]}" if errors else ""


def _folder(config: pytest.Config) -> Path:
    """What all workers of this run of pytest share."""
    temporary = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    folder = (temporary.parent if hasattr(config, "workerinput") else temporary) / "emulation"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
