"""Pictures of skills; they need the ``plots`` extra."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_metra._extras import require

__all__ = ["plot_coverage", "plot_latents", "plot_positions"]


def plot_coverage(
    curves: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    unit: str = "cells",
) -> None:
    """Draw coverage against environment steps, one line per run.

    Args:
        curves (mapping of str to Tensor): by name of the run, its points of shape
            ``[n, 2]``: environment steps and coverage.
        path (path): picture to write; its suffix selects the format.

    Keyword Args:
        title (str, optional): title of the picture.
        unit (str, optional): what coverage counts. Defaults to ``"cells"``.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure, axes = _new_figure(title, ("environment steps", f"policy coverage ({unit})"))
    for name, points in curves.items():
        frames, cells = points.T.tolist()
        axes.plot(frames, cells, label=name, marker=".")
    axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(fontsize="small")
    _save(figure, path)


def plot_positions(
    position: Tensor, skills: Tensor, path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draw one line per episode, coloured by its skill.

    Trajectories in the plane for two-dimensional positions; x against time for
    one-dimensional ones.

    Args:
        position (Tensor): positions of shape ``[M, T, 1]`` or ``[M, T, 2]``, in metres.
        skills (Tensor): skills of shape ``[M, D]``.
        path (path): picture to write; its suffix selects the format.

    Keyword Args:
        title (str, optional): title of the picture.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    if position.shape[-1] == 1:
        steps = torch.arange(position.shape[1], dtype=position.dtype)
        lines = torch.stack([steps.expand(position.shape[:2]), position[..., 0]], dim=-1)
        _plot_lines(lines, skills, path, title, ("environment step", "x (m)"), equal=False)
    else:
        _plot_lines(position[..., :2], skills, path, title, ("x (m)", "y (m)"), equal=True)


def plot_latents(
    latent: Tensor, skills: Tensor, path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draw the trajectories of φ, one line per episode, coloured by its skill.

    Latent spaces of more than two dimensions are shown along their first two
    principal components, those of one dimension against time.

    Args:
        latent (Tensor): φ of shape ``[M, T, D]``.
        skills (Tensor): skills of shape ``[M, D]``.
        path (path): picture to write; its suffix selects the format.

    Keyword Args:
        title (str, optional): title of the picture.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    size = latent.shape[-1]
    if size == 1:
        steps = torch.arange(latent.shape[1], dtype=latent.dtype)
        lines = torch.stack([steps.expand(latent.shape[:2]), latent[..., 0]], dim=-1)
        _plot_lines(lines, skills, path, title, ("environment step", "φ"), equal=False)
    elif size == 2:
        _plot_lines(latent, skills, path, title, ("φ, dimension 1", "φ, dimension 2"), equal=True)
    else:
        flat = latent.flatten(0, 1) - latent.flatten(0, 1).mean(0)
        _, variances, axes = torch.linalg.svd(flat, full_matrices=False)
        share = (variances.square() / variances.square().sum())[:2]
        labels = [f"φ, principal component {i + 1} ({s:.0%})" for i, s in enumerate(share)]
        lines = (flat @ axes[:2].T).unflatten(0, latent.shape[:2])
        _plot_lines(lines, skills, path, title, (labels[0], labels[1]), equal=True)


def _plot_lines(
    lines: Tensor,
    skills: Tensor,
    path: str | os.PathLike[str],
    title: str,
    labels: tuple[str, str],
    equal: bool,
) -> None:
    figure, axes = _new_figure(title, labels)
    for line, color in zip(lines.tolist(), _colors(skills), strict=True):
        axes.plot([p[0] for p in line], [p[1] for p in line], color=color, lw=1.0, alpha=0.8)
    if equal:
        axes.set_aspect("equal", adjustable="datalim")
    _add_legend(axes, skills)
    _save(figure, path)


def _new_figure(title: str, labels: tuple[str, str]) -> tuple[Any, Any]:
    require("matplotlib", "plots")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    axes.grid(alpha=0.2)
    return figure, axes


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _is_one_hot(skills: Tensor) -> bool:
    return bool(((skills == 0) | (skills == 1)).all() and (skills.sum(-1) == 1).all())


def _hue(skills: Tensor) -> Tensor:
    """Position of each skill on the colour circle, in [0, 1)."""
    if _is_one_hot(skills):
        return skills.argmax(-1) / skills.shape[-1]
    if skills.shape[-1] == 1:
        return (skills[:, 0] > 0) * 0.5
    return (torch.atan2(skills[:, 1], skills[:, 0]) / (2 * math.pi)) % 1.0


def _colors(skills: Tensor) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["hsv"](hue) for hue in _hue(skills).tolist()]


def _add_legend(axes: Any, skills: Tensor) -> None:
    from matplotlib.lines import Line2D

    hues, index = torch.unique((_hue(skills) * 360).round(), return_inverse=True)
    shown = torch.linspace(0, len(hues) - 1, min(len(hues), 8)).long().tolist()
    examples = [int((index == i).nonzero()[0]) for i in shown]
    if _is_one_hot(skills):
        names = [f"{int(skills[i].argmax())}" for i in examples]
    elif skills.shape[-1] == 1:
        names = [f"{float(skills[i]):+.0f}" for i in examples]
    else:
        names = [f"{float(hues[i]):.0f}°" for i in shown]
    colors = _colors(skills[examples])
    handles = [
        Line2D([], [], color=color, label=name) for color, name in zip(colors, names, strict=True)
    ]
    axes.legend(handles=handles, title="skill", fontsize="small", loc="center left",
                bbox_to_anchor=(1.0, 0.5))  # fmt: skip
