"""The page of a report: one file that needs no other."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Section", "write_page"]

# What each number says, in the order of the page.
MEANINGS = {
    "policy_coverage": "cells (in the kitchen: tasks) that the episodes visited",
    "sectors": "of 16 sectors around the start in which an episode ended",
    "skill_alignment": "mean cosine between a skill and where it led in latent space; best 1",
    "skill_accuracy": "share of skills told, among all, by where they led in latent space; best 1",
    "latent_step_mean": "mean latent distance of adjacent states; at most 1",
    "latent_step_max": "largest latent distance of adjacent states",
    "steps_beyond": "share of adjacent states more than 5 % beyond the bound; best 0",
    "pairs_beyond": "share of all pairs of an episode's states likewise beyond |i − j|; best 0",
    "rank_correlation": "between latent distance and steps between two states (Spearman); best 1",
}


class Section(NamedTuple):
    """A picture or a video of the page."""

    heading: str
    caption: str
    file: Path


def write_page(path: Path, title: str, report: dict[str, Any], sections: list[Section]) -> None:
    """Write a page with the numbers of a report, and its pictures and videos as part of it.

    Args:
        path (Path): file to write.
        title (str): title of the page.
        report (dict): what ``report.json`` holds.
        sections (list of Section): pictures and videos, in their order.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _numbers_table(report["skills"])]
    for heading, caption, file in sections:
        parts.append(f"<h2>{heading}</h2>\n<p>{html.escape(caption)}</p>\n{_embed(file, heading)}")
    if "goals" in report:
        parts.append(f"<h2>Goals, in numbers</h2>\n{_goals_table(report['goals'])}")
    facts = {key: value for key, value in report.items() if key not in ("skills", "goals")}
    parts.append(f"<h2>How it was made</h2>\n<pre>{html.escape(json.dumps(facts, indent=2))}</pre>")
    path.write_text(PAGE.format(title=html.escape(title), body="\n".join(parts)), encoding="utf-8")


def _numbers_table(results: dict[str, float]) -> str:
    rows = [
        f"<tr><td><code>{name}</code></td><td>{results[name]:.4g}</td><td>{meaning}</td></tr>"
        for name, meaning in MEANINGS.items()
        if name in results
    ]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _goals_table(metrics: dict[str, dict[str, float]]) -> str:
    policies = list(metrics)
    head = "".join(f"<th>{name}</th>" for name in policies)
    rows = [
        f"<tr><td><code>{key}</code></td>"
        + "".join(f"<td>{metrics[name][key]:.3g}</td>" for name in policies)
        + "</tr>"
        for key in metrics[policies[0]]
    ]
    return f"<table>\n<tr><th></th>{head}</tr>\n" + "\n".join(rows) + "\n</table>"


def _embed(path: Path, description: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    if path.suffix == ".mp4":
        return f'<video controls loop muted autoplay src="data:video/mp4;base64,{data}"></video>'
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }}
img, video {{ max-width: 100%; height: auto; background: white; border-radius: 4px; }}
video {{ width: 32rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
td, th {{ padding: 0.2rem 0.8rem; border-bottom: 1px solid #8884; text-align: left; }}
pre {{ overflow-x: auto; padding: 1rem; background: #8881; border-radius: 4px; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
