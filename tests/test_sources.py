"""One house: no script looks for another's folder, and trainers come from the factory."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def found(pattern: str, *folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[str]:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [ROOT / "README.md", *paths]
        if path.suffix in suffixes and not {"_build", "auto_tutorials"} & {*path.parts}
        if path != Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(pattern, line)
    ]


def test_trainers_come_from_the_factory() -> None:
    folders = ("torchrl_metra", "examples", "docs", "benchmarks")
    places = found(r"\bMETRATrainer\(", *folders, suffixes=(".py", ".md"))
    # The class, its example and the factory.
    assert {place.partition(":")[0] for place in places} == {
        "torchrl_metra/recipes/build.py",
        "torchrl_metra/trainers/metra.py",
    }


def test_nobody_changes_the_path() -> None:
    places = found(
        r"sys\.path(\.(insert|append)|\[.*\] *=)|syspath_prepend",
        "torchrl_metra",
        "examples",
        "benchmarks",
        "tests",
    )
    # It looks for package.module:function in the working directory.
    assert {place.partition(":")[0] for place in places} == {"torchrl_metra/_imports.py"}
