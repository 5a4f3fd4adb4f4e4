"""Pages of the documentation: their code, which runs as it stands, their links and headings."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
#: Folders that are not in the repository: what Sphinx and runs leave.
BUILT = {"_build", "auto_tutorials", "generated", "outputs"}


class Block(NamedTuple):
    """A fenced block: what follows the fence, the text below it, and where it starts."""

    path: Path
    info: str
    code: str
    line: int

    def run(self, names: dict[str, Any], *kinds: type[ast.stmt]) -> None:
        """Run Python, all statements or those of some kinds only; tracebacks show the page."""
        module = ast.parse("\n" * self.line + self.code, self.path)
        module.body = [node for node in module.body if isinstance(node, kinds or ast.stmt)]
        exec(compile(module, self.path, "exec", dont_inherit=True), names)


class Page:
    """A page, by its path in the repository."""

    def __init__(self, name: str) -> None:
        self.path = ROOT / name
        self.text = self.path.read_text()
        tokens = MarkdownIt("commonmark").enable("table").parse(self.text)
        inline = [child for token in tokens for child in token.children or ()]
        self.blocks = [
            Block(self.path, token.info, token.content, token.map[0] + 1)
            for token in tokens
            if token.type == "fence"
        ]
        self.inline_code = [token.content for token in inline if token.type == "code_inline"]
        self.links = [
            str(token.attrGet("href") or token.attrGet("src"))
            for token in inline
            if token.type in ("link_open", "image")
        ]
        self.links += re.findall('(?:src|href)="([^"]+)"', self.text)
        headings = [
            text.content for heading, text in pairwise(tokens) if heading.type == "heading_open"
        ]
        #: What GitHub and MyST make of the headings.
        self.anchors = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}

    def code(self, language: str) -> list[Block]:
        return [block for block in self.blocks if block.info == language]


def pages() -> list[str]:
    """Paths of all pages."""
    found = (path.relative_to(ROOT) for path in sorted((ROOT / "docs").rglob("*.md")))
    docs = [path.as_posix() for path in found if not BUILT & set(path.parts)]
    return ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", *docs]
