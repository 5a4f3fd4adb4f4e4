"""The page of a report: one file that needs no other."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

# What each number says, in the order of the page.
MEANINGS = {
    "policy_coverage": "cells (in the kitchen: tasks) that the episodes visited",
    "sectors": "of 16 sectors around the start in which an episode ended",
    "skill_alignment": "mean cosine between a skill and where it led in latent space; best 1",
    "skill_accuracy": "share of skills told, among all, by where they led in latent space; best 1",
    "latent_rank_episode": "number of directions in which episodes lead in latent space; best D",
    "latent_step_mean": "mean latent distance of adjacent states; at most 1",
    "latent_step_max": "largest latent distance of adjacent states",
    "steps_beyond": "share of adjacent states more than 5 % beyond the bound; best 0",
    "pairs_beyond": "share of all pairs of an episode's states likewise beyond |i − j|; best 0",
    "rank_correlation": "between latent distance and steps between two states (Spearman); best 1",
}


def write_page(
    path: Path, title: str, report: dict[str, Any], sections: list[tuple[str, str, Path]]
) -> None:
    """Write a page with the numbers of a report, and its pictures and videos as part of it.

    Args:
        path (Path): file to write.
        title (str): title of the page.
        report (dict): what ``report.json`` holds.
        sections (list of tuple): heading, caption and file of pictures and videos, in their order.
    """
    skills = report["skills"]
    numbers = [
        (f"<code>{name}</code>", f"{skills[name]:.4g}", meaning)
        for name, meaning in MEANINGS.items()
        if name in skills
    ]
    parts = [f"<h1>{html.escape(title)}</h1>", _table(numbers)]
    for heading, caption, file in sections:
        parts.append(f"<h2>{heading}</h2>\n<p>{html.escape(caption)}</p>\n{_embed(file, heading)}")
    if "goals" in report:
        goals = report["goals"]
        rates = [
            (f"<code>{key}</code>", *(f"{metrics[key]:.3g}" for metrics in goals.values()))
            for key in next(iter(goals.values()))
        ]
        parts.append(f"<h2>Goals, in numbers</h2>\n{_table(rates, head=['', *goals])}")
    facts = {key: value for key, value in report.items() if key not in ("skills", "goals")}
    parts.append(f"<h2>How it was made</h2>\n<pre>{html.escape(json.dumps(facts, indent=2))}</pre>")
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.substitute(title=html.escape(title), body="\n".join(parts))
    path.write_text(page, encoding="utf-8")


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    lines = [_row(head, "th")] if head else []
    lines += [_row(row, "td") for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _embed(path: Path, description: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    if path.suffix == ".mp4":
        return f'<video controls loop muted autoplay src="data:video/mp4;base64,{data}"></video>'
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'
