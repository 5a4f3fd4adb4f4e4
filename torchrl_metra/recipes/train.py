"""A training run from the first to the last line, for any environment."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_metra import evaluation
from torchrl_metra.modules import SkillPolicy
from torchrl_metra.recipes import records
from torchrl_metra.recipes.build import make_metra
from torchrl_metra.recipes.collect import make_skill_env
from torchrl_metra.recipes.settings import EnvSettings, Settings, update
from torchrl_metra.trainers import METRATrainer, SkillEvaluation


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
    records.prepare_run(settings)
    with records.shielded_from_ctrl_c():
        trainer = make_metra(update(settings, {"env": {"normalize": _constants_of(settings)}}))
        skill_policy = trainer.skill_policy
        assert skill_policy is not None
        env_options = skill_policy.env_options or {}
        same = replace(
            settings,
            env=EnvSettings(settings.env.name, **env_options),
            # An evaluation follows each skill to the end.
            skill=replace(settings.skill, switch=0.0),
        )
        num_envs = settings.evaluation_num_envs or settings.evaluation_episodes
        env = make_skill_env(same, num_envs, settings.seed + 1_000)
    try:
        return _run(settings, trainer, skill_policy, env)
    finally:
        env.close(raise_if_closed=False)
        trainer.replay_buffer.shutdown()


def _constants_of(settings: Settings) -> Any:
    """How to normalize; a run that goes on does not measure its constants again."""
    if settings.resume is None or settings.env.normalize is not None:
        return settings.env.normalize
    # A checkpoint lies in the folder of its run, under checkpoints/.
    is_auto = settings.resume == "auto"
    folder = Path(settings.output or "") if is_auto else Path(settings.resume).resolve().parents[1]
    path = folder / "skill_policy.pt"
    return (SkillPolicy.load(path).env_options or {}).get("normalize") if path.exists() else None


def _run(
    settings: Settings, trainer: METRATrainer, skill_policy: SkillPolicy, env: EnvBase
) -> dict[str, Any]:
    """What :func:`train` does with the parts."""
    output = Path(settings.output or "")
    policy, encoder, prior = skill_policy.actor, skill_policy.encoder, skill_policy.prior
    curve = records.Curve(output / "coverage.csv", "policy_coverage")

    def encode(rollouts: TensorDictBase) -> torch.Tensor | None:
        return None if encoder is None else evaluation.encode_trajectories(rollouts, encoder)

    def measure(rollouts: TensorDictBase) -> dict[str, float]:
        norm = skill_policy.constraint_norm
        return evaluation.measure_skills(rollouts, encode(rollouts), prior, norm=norm)

    def on_evaluation(frames: int, rollouts: TensorDictBase) -> None:
        places = evaluation.visited(rollouts)
        # An environment that does not say where the body is has no coverage.
        curve.append(frames, 0 if places is None else len(places.unique(dim=0)))
        skill_policy.save(output / "skill_policy.pt")

    skills = prior.evaluation_skills(settings.evaluation_episodes)
    hook = SkillEvaluation(
        env,
        policy,
        skills,
        settings.evaluation_interval,
        measure=measure,
        callback=on_evaluation,
        seed=settings.seed + 1_000,
    )
    hook.register(trainer)
    trainer.register_module("coverage_curve", curve)
    if not records.resume_run(trainer, settings):
        on_evaluation(0, hook.roll_out())
    with records.stop_on_signal(trainer):
        trainer.train()

    # Counted are skills as they are drawn; an even grid is for the eye.
    rollouts = hook.roll_out()
    on_evaluation(trainer.collected_frames, rollouts)
    metrics = measure(rollouts)
    skills = prior.grid(settings.evaluation_episodes)
    rollouts = evaluation.rollout_skills(env, policy, skills)
    unit = "tasks" if "tasks" in rollouts.keys() else "cells"
    name, frames = str(settings.env.name), f"{trainer.collected_frames:,} frames"
    title, latents = f"{name}, {frames}", encode(rollouts)
    evaluation.plot_skills(
        latents, skills, output / "skills.png", position=evaluation.positions(rollouts), title=title
    )
    if "pixels" in rollouts.keys():
        film = evaluation.film_skills(env, policy, evaluation.skills_to_film(prior))
        assert film is not None
        evaluation.write_video(film, output / "skills.mp4")
    coverage = [row[-1] for row in curve.rows]
    results = {
        "coverage_before": coverage[0],
        "coverage_after": coverage[-1],
        "coverage_last_three": sum(coverage[-3:]) / len(coverage[-3:]),
        "total_coverage": len(trainer.log_coverage.total),
        "failures_found": trainer.diagnosis.found,
        **metrics,
        "frames": trainer.collected_frames,
        "seconds": curve.seconds,
        "curve": curve.rows,
    }
    records.write_summary(output / "summary.json", results, settings)
    frames += f" ({curve.seconds:.0f} s)"
    if evaluation.visited(rollouts) is None:
        print(f"trained for {frames}. To count what skills cover, set env.position.")
    else:
        evaluation.plot_coverage(
            {name: curve.points()}, output / "coverage.png", title=title, unit=unit
        )
        print(
            f"policy coverage of {settings.evaluation_episodes} episodes: {coverage[0]} {unit} "
            f"before training, {coverage[-1]} after {frames}."
        )
    print(
        f"Written to {output}/. For a report with videos and goals of these skills:\n"
        f"metra evaluate {shlex.quote(str(output))}"
    )
    return results
