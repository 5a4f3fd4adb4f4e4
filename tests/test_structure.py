"""Objectives are small, and none is a near copy of another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import torchrl_metra.objectives

FOLDER = Path(torchrl_metra.objectives.__file__).parent
SHARED = {"__init__", "common", "distances", "functional", "sac"}
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - SHARED)


def windows(name: str, size: int = 6) -> set[tuple[str, ...]]:
    """All runs of so many lines that are not blank, whatever their indentation."""
    lines = [line.strip() for line in (FOLDER / f"{name}.py").read_text().splitlines()]
    lines = list(filter(None, lines))
    return {tuple(lines[i : i + size]) for i in range(len(lines) - size + 1)}


@pytest.mark.parametrize("name", NAMES)
def test_fits_on_a_few_screens(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 210


@pytest.mark.parametrize("pair", itertools.combinations(NAMES, 2), ids="-".join)
def test_no_six_lines_in_common(pair: tuple[str, str]) -> None:
    first, second = map(windows, pair)
    assert not first & second
