"""Links from a name to its page: `METRALoss` in a text leads to the reference.

Public names of this package, and those that ``inventories`` lists of other projects, become links
where they stand alone in inline code, and as types in docstrings. Pages stay plain Markdown.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext import intersphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import inspect

# Where the reference documents a name, first come first served.
ROOMS = [
    "torchrl_metra.data",
    "torchrl_metra.envs",
    "torchrl_metra.modules",
    "torchrl_metra.objectives",
    "torchrl_metra.objectives.functional",
    "torchrl_metra.trainers",
    "torchrl_metra.recipes",
    "torchrl_metra.evaluation",
]


def read_names(inventory: Path) -> list[str]:
    """The names in an inventory, which is in version 1 of Sphinx's format."""
    _, _, _, *lines = inventory.read_text().splitlines()
    return [line.split()[0] for line in lines]


def is_own(value: object, room: str) -> bool:
    """Whether a module defines it itself."""
    return getattr(value, "__module__", None) == room


def known_names() -> dict[str, str]:
    """The full name of each short one."""
    names: dict[str, str] = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        own = [name for name, value in vars(module).items() if is_own(value, room)]
        for name in getattr(module, "__all__", own):
            names.setdefault(name, f"{room}.{name}")
    for path in sorted((Path(__file__).parent / "inventories").glob("*.txt")):
        for name in read_names(path):
            names.setdefault(name.rpartition(".")[2], name)
    return names


NAMES = known_names()


def full_name(path: str) -> str | None:
    """What a path ends in, by its full name: of ``nn.Module`` or ``SkillPrior.toward``."""
    parts = path.split(".")
    for position in reversed(range(len(parts))):
        if (found := NAMES.get(parts[position])) is not None:
            return ".".join([found, *parts[position + 1 :]])
    return None


def page_of(code: str) -> str | None:
    """The name in ``METRALoss``, ``METRALoss.reward`` or ``SkillPrimer(prior)`` that has a page."""
    for part in code.partition("(")[0].split("."):
        full = NAMES.get(part)
        # Other words in lower case are more often words, or entries of data, than names.
        if full is None or not (part[0].isupper() or "_" in part):
            continue
        return full
    return None


class LinkNames(SphinxTransform):
    """Make inline code that is a name, a call or a method a reference."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            target = page_of(literal.astext())
            if target is None or isinstance(
                literal.parent, (nodes.reference, nodes.title, pending_xref)
            ):
                continue
            reference = pending_xref(
                "",
                literal.deepcopy(),
                refdomain="py",
                reftype="obj",
                reftarget=target,
                refexplicit=True,
                refwarn=True,
                refdoc=self.env.docname,
            )
            literal.replace_self(reference)


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Find what a short name, or one by another path, means."""
    full = full_name(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or full is None:
        return None
    node["reftarget"], node["reftype"] = full, "obj"
    domain = env.domains["py"]
    found = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, content)
    return found or intersphinx.missing_reference(app, env, node, content)


def skip_others(
    app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what a class inherits from other projects: their sites have it."""
    module = getattr(getattr(member, "fget", member), "__module__", None) or "torchrl_metra"
    return None if module.startswith("torchrl_metra") else True


def show_arguments(
    app: Sphinx, what: str, name: str, item: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """The arguments of a class whose metaclass, as that of TorchRL's losses, hides them."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    arguments = inspect.signature(item.__init__, bound_method=True)
    return inspect.stringify_signature(arguments, show_annotation=False), returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_transform(LinkNames)
    app.connect("autodoc-process-signature", show_arguments)
    app.connect("autodoc-skip-member", skip_others)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
