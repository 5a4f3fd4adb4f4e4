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
FENCE = re.compile(r"^ *(`{3,}|~{3,}) *(.*?) *$")
INLINE_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


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
        self.blocks, prose = _split(self.path, self.text)
        self.prose = "\n".join(prose)

    def code(self, *languages: str) -> list[Block]:
        return [block for block in self.blocks if block.language in languages]

    @cached_property
    def inline_code(self) -> list[str]:
        paragraphs = self.prose.split("\n\n")
        return [" ".join(code.split()) for text in paragraphs for code in INLINE_CODE.findall(text)]

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures, in Markdown and in HTML."""
        text = INLINE_CODE.sub("", self.prose)
        patterns = (
            r"\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)",
            r"^\[[^\]]+\]:\s*(\S+)",
            r"<(?:img|a|source)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\"",
            r"<(https?://[^>\s]+)>",
        )
        return [link for p in patterns for link in re.findall(p, text, re.MULTILINE)]

    @cached_property
    def anchors(self) -> set[str]:
        """What GitHub and MyST make of the headings."""
        anchors: set[str] = set()
        for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", self.prose, re.MULTILINE):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            used, count = anchor, 0
            while used in anchors:
                count += 1
                used = f"{anchor}-{count}"
            anchors.add(used)
        return anchors


def pages() -> list[str]:
    """Names of all pages."""
    found = (path.relative_to(ROOT) for path in sorted((ROOT / "docs").rglob("*.md")))
    docs = [path.as_posix() for path in found if not BUILT & set(path.parts)]
    return ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", *docs]


def _split(path: Path, text: str) -> tuple[list[Block], list[str]]:
    """Blocks, and the other lines; a line of a block is an empty one there."""
    blocks: list[Block] = []
    prose: list[str] = []
    fence, info, code = "", "", list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        mark = FENCE.match(line)
        if not fence:
            if mark:
                fence, info, code = mark[1], mark[2].removeprefix("{code-block} "), []
            prose.append("" if mark else line)
            continue
        prose.append("")
        if mark and not mark[2] and mark[1].startswith(fence):
            content = dedent("".join(f"{row}\n" for row in code))
            language, _, argument = info.partition(" ")
            blocks.append(Block(path, language, argument, content, number - len(code)))
            fence = ""
        else:
            code.append(line)
    if fence:
        raise ValueError(f"{path}: a block of {info!r} has no end.")
    return blocks, prose
