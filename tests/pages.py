"""Pages of the documentation: their blocks, run as they stand, their links and headings."""

from __future__ import annotations

import ast
import re
from functools import cached_property
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
#: Folders that are not in the repository: what Sphinx and runs leave.
BUILT = {"_build", "auto_tutorials", "generated", "outputs"}
FENCE = re.compile(r"^ *(`{3,}) *(?:\{code-block\} )?(\S*) ?(.*)\n((?s:.*?))^ *\1 *$", re.MULTILINE)
INLINE_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r'(?:\]\(<?|\b(?:src|href)="|<(?=https?:)|^\[[^\]]+\]: *)([^\s()<>"]+)', re.M)


class Block(NamedTuple):
    """What stands between two fences."""

    path: Path
    language: str
    argument: str
    code: str
    line: int

    def run(self, names: dict[str, Any], *kinds: type[ast.stmt]) -> None:
        """Run Python, all statements or those of some kinds only.

        Tracebacks show the lines of the page.
        """
        module = ast.parse("\n" * (self.line - 1) + self.code, self.path)
        module.body = [node for node in module.body if isinstance(node, kinds or ast.stmt)]
        exec(compile(module, self.path, "exec", dont_inherit=True), names)

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


class Page:
    """A page, of the name that its file has below the repository."""

    def __init__(self, name: str) -> None:
        self.path = ROOT / name
        self.text = self.path.read_text()
        self.blocks = [
            Block(
                self.path,
                found[2],
                found[3],
                dedent(found[4]),
                self.text.count("\n", 0, found.start(4)) + 1,
            )
            for found in FENCE.finditer(self.text)
        ]
        self.prose = FENCE.sub("", self.text)
        assert "```" not in self.prose, f"{name}: a block has no end, or no beginning."

    def code(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]

    @cached_property
    def inline_code(self) -> list[str]:
        paragraphs = self.prose.split("\n\n")
        return [" ".join(code.split()) for text in paragraphs for code in INLINE_CODE.findall(text)]

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures, in Markdown and in HTML."""
        return LINK.findall(INLINE_CODE.sub("", self.prose))

    @cached_property
    def anchors(self) -> set[str]:
        """What GitHub and MyST make of the headings."""
        headings = re.findall(r"^#+ +(.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}


def pages() -> list[str]:
    """Names of all pages."""
    found = (path.relative_to(ROOT) for path in sorted((ROOT / "docs").rglob("*.md")))
    docs = [path.as_posix() for path in found if not BUILT & set(path.parts)]
    return ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", *docs]
