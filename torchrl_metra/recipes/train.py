"""A training run from the first to the last line, for any environment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_metra._extras import require
from torchrl_metra.evaluation import (
    encode_trajectories,
    measure_skills,
    plot_coverage,
    plot_skills,
    positions,
    rollout_skills,
    visited,
    write_video,
)
from torchrl_metra.modules import SkillPolicy
from torchrl_metra.recipes.build import Parts, build
from torchrl_metra.recipes.checkpoints import clear_folder, resume_run
from torchrl_metra.recipes.collect import make_skill_env
from torchrl_metra.recipes.records import (
    CoverageCurve,
    run_record,
    shielded_from_ctrl_c,
    stop_on_signal,
    write_summary,
)
from torchrl_metra.recipes.settings import Settings
from torchrl_metra.trainers import METRATrainer, SkillEvaluation

__all__ = ["train"]


def train(settings: Settings) -> dict[str, Any]:
    """Train, evaluate, write pictures and the skill policy.

    Everything goes to the folder ``output``: ``skill_policy.pt``, ``coverage.csv``, pictures,
    ``summary.json`` with the results and the settings, logs and checkpoints. Ctrl-C ends a run with
    a checkpoint, from which ``resume="auto"`` goes on.

    Args:
        settings (Settings): of the run, see :func:`~torchrl_metra.recipes.make_settings`.

    Returns:
        The results, as in ``summary.json``.

    Raises:
        ValueError: if a setting is wrong, or without ``output``.
        TrainingStoppedError: after a fault, with the state saved.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from torchrl_metra.recipes import make_settings, train
        >>> with TemporaryDirectory() as folder:
        ...     results = train(
        ...         make_settings("point", preset="debug", output=folder, progress_bar=False)
        ...     )  # doctest: +ELLIPSIS
        policy coverage of 4 episodes: ...
        >>> results["frames"]
        1200
    """
    if settings.output is None:
        raise ValueError("a run needs a folder: set output.")
    require("matplotlib", extra="run")
    run_record()
    clear_folder(settings)
    parts = Parts(normalize=_constants_of(settings))
    with shielded_from_ctrl_c():
        trainer = build(settings, parts)
        skill_policy = trainer.skill_policy
        assert skill_policy is not None
        num_envs = settings.evaluation_num_envs or settings.evaluation_episodes
        normalize = (skill_policy.env_options or {}).get("normalize")
        evaluation_env = make_skill_env(settings, num_envs, settings.seed + 1_000, normalize)
    try:
        return _run(settings, trainer, skill_policy, evaluation_env)
    finally:
        evaluation_env.close(raise_if_closed=False)
        trainer.replay_buffer.shutdown()


def _constants_of(settings: Settings) -> Any:
    """The normalisation of a run that goes on, which is not measured anew."""
    if settings.resume is None:
        return None
    # A checkpoint lies in the folder of its run, under checkpoints/.
    is_auto = settings.resume == "auto"
    folder = Path(settings.output or "") if is_auto else Path(settings.resume).resolve().parents[1]
    path = folder / "skill_policy.pt"
    if not path.exists():
        return None
    return (SkillPolicy.load(path).env_options or {}).get("normalize")


def _run(
    settings: Settings, trainer: METRATrainer, skill_policy: SkillPolicy, evaluation_env: EnvBase
) -> dict[str, Any]:
    """What :func:`train` does with the parts."""
    output = Path(settings.output or "")
    policy, encoder, prior = skill_policy.actor, skill_policy.encoder, skill_policy.prior

    # What to look at while it trains.
    skills = prior.evaluation_skills(settings.evaluation_episodes)
    curve = CoverageCurve(output / "coverage.csv")

    def encode(rollouts: TensorDictBase) -> torch.Tensor | None:
        return None if encoder is None else encode_trajectories(rollouts, encoder)

    def measure(rollouts: TensorDictBase) -> dict[str, float]:
        norm = skill_policy.constraint_norm
        return measure_skills(rollouts, encode(rollouts), prior, norm=norm)

    def on_evaluation(frames: int, rollouts: TensorDictBase) -> None:
        places = visited(rollouts)
        # An environment that does not say where the body is has no coverage.
        curve.append(frames, 0 if places is None else len(places.unique(dim=0)))
        skill_policy.save(output / "skill_policy.pt")

    evaluation = SkillEvaluation(
        evaluation_env,
        policy,
        skills,
        settings.evaluation_interval,
        measure=measure,
        callback=on_evaluation,
    )
    evaluation.register(trainer)
    trainer.register_module("coverage_curve", curve)
    if not resume_run(trainer, settings):
        on_evaluation(0, rollout_skills(evaluation_env, policy, skills))

    with stop_on_signal(trainer):
        trainer.train()

    # What became of it.
    rollouts = rollout_skills(evaluation_env, policy, skills)
    on_evaluation(trainer.collected_frames, rollouts)
    results: dict[str, Any] = measure(rollouts)
    # Of an even grid, to look at.
    skills = prior.grid(settings.evaluation_episodes)
    rollouts = rollout_skills(evaluation_env, policy, skills)
    unit = "tasks" if "tasks" in rollouts.keys() else "cells"
    name = str(settings.env.name)
    title = f"{name}, {trainer.collected_frames:,} frames"
    plot_skills(
        encode(rollouts), skills, output / "skills.png", position=positions(rollouts), title=title
    )
    is_counted = visited(rollouts) is not None
    if is_counted:
        plot_coverage({name: curve.points()}, output / "coverage.png", title=title, unit=unit)
    if "pixels" in rollouts.keys():
        write_video(rollouts["pixels"], output / "skills.mp4")
    before, after = curve.rows[0][-1], curve.rows[-1][-1]
    results = {
        "coverage_before": before,
        "coverage_after": after,
        "coverage_last_three": sum(row[-1] for row in curve.rows[-3:]) / len(curve.rows[-3:]),
        "total_coverage": len(trainer.log_coverage.total),
        "failures_found": trainer.diagnosis.found,
        **results,
        "frames": trainer.collected_frames,
        "seconds": curve.seconds,
        "curve": curve.rows,
    }
    write_summary(output / "summary.json", results, settings)
    frames = f"{trainer.collected_frames:,} frames ({curve.seconds:.0f} s)"
    if is_counted:
        print(
            f"policy coverage of {settings.evaluation_episodes} episodes: {before} {unit} before "
            f"training, {after} after {frames}."
        )
    else:
        print(f"trained for {frames}. To count what skills cover, set env.position.")
    print(
        f"Written to {output}/. For a report with videos and goals of these skills:\n"
        f"metra evaluate {shlex.quote(str(output))}"
    )
    return results
