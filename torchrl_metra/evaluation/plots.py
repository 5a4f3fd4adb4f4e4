"""Pictures of skills; they need the ``plots`` extra."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from colorsys import hsv_to_rgb
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrl_metra._extras import require
from torchrl_metra.evaluation.temporal import latent_steps, pair_distances
from torchrl_metra.objectives.functional import ConstraintNorm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_coverage(
    curves: Mapping[str, Tensor],
    path: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    unit: str = "cells",
) -> Figure:
    """Draw coverage against environment steps, one line per run.

    Args:
        curves (mapping of str to Tensor): by name of the run, its points of shape
            ``[n, 2]``: environment steps and coverage.
        path (path, optional): picture to write; its suffix selects the format.

    Keyword Args:
        title (str, optional): title of the picture.
        unit (str, optional): what coverage counts. Defaults to ``"cells"``.

    Returns:
        The figure, which notebooks show.
    """
    figure, (axes,) = _new_figure(1, title)
    axes.set(xlabel="environment steps", ylabel=f"policy coverage ({unit})")
    for name, points in curves.items():
        axes.plot(*points.T.tolist(), label=name, marker=".")
    axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(fontsize="small")
    return _save(figure, path)


def plot_skills(
    latents: Tensor | None,
    skills: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    position: Tensor | None = None,
    title: str = "",
    unit: str = "m",
) -> Figure:
    """Draw one line per episode, colored by its skill: in space and, beside it, in latent space.

    Two-dimensional trajectories are drawn in their plane, one-dimensional ones against time.
    Latent spaces of more dimensions are shown along their first two principal components,
    positions along their first two coordinates.

    Args:
        latents (Tensor, optional): φ of shape ``[M, T, D]``; ``None`` without an encoder, to
            draw positions only.
        skills (Tensor): skills of shape ``[M, D]``.
        path (path, optional): picture to write; its suffix selects the format.

    Keyword Args:
        position (Tensor, optional): positions of shape ``[M, T, k]``.
        title (str, optional): title of the picture.
        unit (str, optional): of the positions. Defaults to ``"m"``.

    Returns:
        The figure, which notebooks show.
    """
    panels = []
    if position is not None:
        panels.append((position[..., :2], (f"x ({unit})", f"y ({unit})")))
    if latents is not None:
        panels.append(_principal_components(latents))
    figure, all_axes = _new_figure(len(panels), title)
    hues, names = _hues_and_names(skills)
    for axes, (lines, axis_names) in zip(all_axes, panels, strict=True):
        _plot_lines(axes, lines, hues, axis_names)
    # Skills of the same name look alike; eight are enough.
    legend = sorted(dict(zip(names, hues, strict=True)).items(), key=itemgetter(1))
    for i in torch.linspace(0, len(legend) - 1, min(len(legend), 8)).long().tolist():
        name, hue = legend[i]
        all_axes[0].plot([], [], color=hsv_to_rgb(hue, 1, 1), label=name)
    figure.legend(title="skill", fontsize="small", loc="outside right center")
    return _save(figure, path)


def plot_temporal_distances(
    latents: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    lengths: Tensor | None = None,
    norm: ConstraintNorm = "l2",
) -> Figure:
    """Draw what :func:`~torchrl_metra.evaluation.temporal_check` measures.

    On the left a histogram of latent steps, on the right latent against temporal distance of
    pairs of states of the same episode. Right of, and above, the dashed lines the constraint
    is violated.

    Args:
        latents (Tensor): φ along episodes, of shape ``[M, T + 1, D]``.
        path (path, optional): picture to write; its suffix selects the format.

    Keyword Args:
        lengths (Tensor, optional): steps of each episode, of shape ``[M]``.
        norm (str, optional): the norm of the constraint in training. Defaults to ``"l2"``.

    Returns:
        The figure, which notebooks show.
    """
    figure, (left, right) = _new_figure(2)
    scale = " / √D" if norm == "rms" else ""
    steps = latent_steps(latents, lengths, norm=norm)
    left.hist(steps.tolist(), bins=60, color="tab:blue")
    left.axvline(1.0, color="black", ls="--", lw=1.0)
    left.set(xlabel=f"latent distance of adjacent states, ‖φ(s′) − φ(s)‖{scale}", ylabel="pairs")
    left.set_xlim(left=0)

    times, distances = pair_distances(latents, lengths, norm=norm)
    # A million points would hide each other: the median and the middle 90 % for each distance.
    ticks, counts = times.unique(return_counts=True)
    groups = distances[times.argsort()].split(counts.tolist())
    quantiles = torch.tensor([0.05, 0.5, 0.95], dtype=distances.dtype)
    bands = torch.stack([group.quantile(quantiles) for group in groups])
    (low, middle, high), steps_apart = bands.T.tolist(), ticks.tolist()
    right.fill_between(steps_apart, low, high, alpha=0.3, lw=0, label="5 % to 95 %")
    right.plot(steps_apart, middle, label="median")
    longest = steps_apart[-1]
    right.axline((0, 0), slope=1, color="black", ls="--", lw=1.0, label="bound")
    right.set(xlabel="steps between two states, |i − j|")
    right.set(ylabel=f"latent distance, ‖φ(sᵢ) − φ(sⱼ)‖{scale}")
    right.set(xlim=(0, longest), ylim=(0, 1.1 * max(longest, *high)))
    right.legend(fontsize="small", loc="upper left")
    return _save(figure, path)


def plot_goals(
    goals: Tensor, reached: Mapping[str, Tensor], path: str | os.PathLike[str] | None = None
) -> Figure:
    """Draw where episodes ended that were sent to goals, one panel per policy.

    In the plane, each end is connected to its goal; in one dimension, ends are drawn against
    goals, where the dashed line is the best that can be.

    Args:
        goals (Tensor): positions of the goals, of shape ``[M, k]``, in meters.
        reached (mapping of str to Tensor): by name of the policy, final positions of shape
            ``[M, k]``, in meters.
        path (path, optional): picture to write; its suffix selects the format.

    Returns:
        The figure, which notebooks show.
    """
    figure, panels = _new_figure(len(reached))
    for axes, (name, ends) in zip(panels, reached.items(), strict=True):
        if goals.shape[-1] == 1:
            span = [goals.min().item(), goals.max().item()]
            axes.plot(span, span, color="black", ls="--", lw=1.0)
            axes.scatter(goals[:, 0].tolist(), ends[:, 0].tolist(), s=18, color="tab:blue")
            axes.set(xlabel="x of the goal (m)", ylabel="x at the end (m)")
        else:
            for goal, end in zip(goals.tolist(), ends.tolist(), strict=True):
                axes.plot([goal[0], end[0]], [goal[1], end[1]], color="0.7", lw=0.8)
            axes.scatter(*goals[:, :2].T.tolist(), s=40, marker="*", color="tab:red", label="goal")
            axes.scatter(*ends[:, :2].T.tolist(), s=18, color="tab:blue", label="end")
            axes.set(xlabel="x (m)", ylabel="y (m)")
            axes.set_aspect("equal", adjustable="datalim")
            axes.legend(fontsize="small")
        distance = (goals - ends).norm(dim=-1).mean()
        axes.set_title(f"{name}: {distance:.1f} m from the goal", fontsize="medium")
    return _save(figure, path)


def _principal_components(latents: Tensor) -> tuple[Tensor, tuple[str, str]]:
    if latents.shape[-1] <= 2:
        return latents, ("φ, dimension 1", "φ, dimension 2")
    flat = latents.flatten(0, 1) - latents.flatten(0, 1).mean(0)
    _, variances, axes = torch.linalg.svd(flat, full_matrices=False)
    share = (variances.square() / variances.square().sum())[:2]
    first, second = [f"φ, principal component {i + 1} ({s:.0%})" for i, s in enumerate(share)]
    return (flat @ axes[:2].T).unflatten(0, latents.shape[:2]), (first, second)


def _plot_lines(axes: Any, lines: Tensor, hues: list[float], names: tuple[str, str]) -> None:
    if lines.shape[-1] == 1:
        steps = torch.arange(lines.shape[1], dtype=lines.dtype)
        lines = torch.stack([steps.expand(lines.shape[:2]), lines[..., 0]], dim=-1)
        names = ("environment step", names[0])
    else:
        axes.set_aspect("equal", adjustable="datalim")
    for line, hue in zip(lines, hues, strict=True):
        axes.plot(*line.T.tolist(), color=hsv_to_rgb(hue, 1, 1), lw=1.0, alpha=0.8)
    axes.set(xlabel=names[0], ylabel=names[1])


def _new_figure(num_panels: int, title: str = "") -> tuple[Figure, Any]:
    figure = require("matplotlib.figure", "plots").Figure(
        figsize=(1 + 5 * num_panels, 5), layout="constrained"
    )
    panels = figure.subplots(1, num_panels, squeeze=False)[0]
    for axes in panels:
        axes.grid(alpha=0.2)
    figure.suptitle(title)
    return figure, panels


def _save(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return figure


def _hues_and_names(skills: Tensor) -> tuple[list[float], list[str]]:
    """Place of each skill on the color circle, in [0, 1), and its name in the legend."""
    size, index = skills.shape[-1], skills.argmax(-1)
    if skills.equal(torch.nn.functional.one_hot(index, size).to(skills)):
        hues, names = index / size, [str(i) for i in index.tolist()]
    elif size == 1:
        hues, names = (skills[:, 0] > 0) * 0.5, [f"{z:+.0f}" for z in skills[:, 0].tolist()]
    else:
        hues = (torch.atan2(skills[:, 1], skills[:, 0]) / (2 * math.pi)) % 1.0
        names = [f"{degrees:.0f}°" for degrees in (hues * 360).tolist()]
    return hues.tolist(), names
