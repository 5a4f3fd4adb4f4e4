"""What failing runs look like, and how they look after the cure.

    python benchmarks/failures.py --seeds 0 1

Trains METRA on PointEnv as ``metra train env=point`` does, but shorter: a healthy run, a run for
each of ``FAILURES``, and each again with its cure. ``results/failures.json`` holds what they
logged, the whole curves for the first seed and the last values for the others, and
``results/failures.png`` draws the first seed: a row per failure. docs/guides/tuning.md explains it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import environment
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, ObservationNorm
from torchrl.record.loggers import CSVLogger

from torchrl_metra import SkillPrimer, SkillPrior, make_env, make_metra
from torchrl_metra.evaluation import encode_trajectories, measure_skills
from torchrl_metra.modules import SACNetworks, SkillConditionedActor
from torchrl_metra.modules.networks import make_trunk
from torchrl_metra.recipes import Settings
from torchrl_metra.recipes.app import compose
from torchrl_metra.recipes.objectives import make_networks, make_prior
from torchrl_metra.trainers import DivergenceError, SkillEvaluation

RESULTS = Path(__file__).parent / "results"
NUM_SKILLS = 48
# Short runs, but long enough for a healthy one to learn something.
SETTINGS = {
    "point": ("total_frames=24_000", "evaluation_interval=3_200"),
    "half_cheetah": (
        "preset=laptop",
        "objective=metra",
        "skill.kind=OneHot",
        "skill.dim=8",
        "total_frames=160_000",
        "evaluation_interval=32_000",
    ),
}


@dataclass(frozen=True)
class Case:
    """A run: its settings, and changes of the environment and of the networks.

    Attributes:
        settings (sequence of str): as on the command line of ``metra train``.
        scale (sequence of float): factors for the entries of the observation, which for the point
            are x and y in meters; a single number stands for all entries.
        blind (bool): the policy does not read the skill.
        normalize (bool): observations are normalized by constants from random actions.
        env (str): ``point`` or ``half_cheetah``.
    """

    settings: Sequence[str] = ()
    scale: Sequence[float] = (1.0,)
    blind: bool = False
    normalize: bool = False
    env: str = "point"


@dataclass(frozen=True)
class Failure:
    """A run that fails, and its cure: other values for entries of the case."""

    case: Case
    cure: Mapping[str, Any]

    @property
    def cured(self) -> Case:
        """The case after the cure."""
        return replace(self.case, **self.cure)


NORMALIZE = {"normalize": True}
AS_BEFORE = {"settings": ()}
FAILURES = {
    "skills ignored": Failure(Case(blind=True), {"blind": False}),
    "one direction": Failure(Case(scale=(1.0, 1e-3)), NORMALIZE),
    "observations too small": Failure(Case(scale=(1e-4, 1e-4)), NORMALIZE),
    "observations too large": Failure(Case(scale=(1e2, 1e2)), NORMALIZE),
    "dual explodes": Failure(
        Case(("metra.slack=0", "+learning_rate.dual=0.5")),
        {"settings": ("+learning_rate.dual=0.02",)},
    ),
    "dual too large": Failure(Case(("metra.dual_init=10_000",)), AS_BEFORE),
    "dual too small": Failure(
        Case(("metra.dual_init=0.01", "+learning_rate.dual=1e-4")), AS_BEFORE
    ),
    "entropy wins": Failure(
        Case(("sac.alpha_init=10", "sac.fixed_alpha=true")),
        {"settings": ("sac.alpha_init=0.01", "sac.fixed_alpha=true")},
    ),
    "diverges": Failure(Case(("learning_rate.lr=1.0",)), AS_BEFORE),
}
# What is drawn, with the limits of its axis, logarithmic from a positive number on.
PANELS: dict[str, tuple[float, float] | None] = {
    "dual": (1e-3, 1e9),
    "latent_step": (1e-5, 1e2),
    "intrinsic_reward": None,
    "constraint_violation": (-0.03, 1.03),
    "entropy": None,
    "policy_coverage": (-50, 2_100),
    "skill_alignment": (-0.55, 1.05),
}
ROLES = {"healthy": "0.6", "failing": "tab:red", "cured": "tab:blue"}


def make_world(case: Case, prior: SkillPrior, num_envs: int, seed: int) -> EnvBase:
    """The environment, as it shows itself in this case."""
    env = make_env(case.env, num_envs)
    keys = ["observation"]
    scale = torch.tensor(case.scale).expand(env.observation_spec["observation"].shape[-1:])
    env = env.append_transform(ObservationNorm(torch.zeros_like(scale), scale, in_keys=keys))
    if case.normalize:
        # Always the same constants, also for evaluation.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            env = env.append_transform(ObservationNorm(in_keys=keys, standard_normal=True))
            env.transform[-1].init_stats(200, reduce_dim=(0, 1), cat_dim=1)
    env = env.append_transform(SkillPrimer(prior))
    env.set_seed(seed)
    return env


def read_settings(case: Case, seed: int) -> Settings:
    """The settings of the case, for a run that writes nothing."""
    quiet = ("output=null", "progress_bar=false")
    overrides = (f"env={case.env}", *SETTINGS[case.env], f"seed={seed}", *quiet, *case.settings)
    return compose("train", overrides)


def make_blind_networks(settings: Settings, env: EnvBase, prior: SkillPrior) -> SACNetworks:
    """Networks whose policy does not read the skill."""
    networks = make_networks(settings, env, prior)
    trunk = make_trunk(env.observation_spec["observation"].shape[-1], settings.num_cells)
    networks.actor = SkillConditionedActor(
        trunk, settings.num_cells[-1], env.action_spec, in_keys=["observation"]
    )
    return networks


def train(case: Case, seed: int) -> dict[str, Any]:
    """Train, and return what was logged: frames and values by name."""
    settings = read_settings(case, seed)
    torch.manual_seed(seed)
    prior = make_prior(settings)
    env = make_world(case, prior, settings.num_envs, seed)
    with tempfile.TemporaryDirectory() as folder:
        logger = CSVLogger("log", log_dir=folder)
        networks = make_blind_networks(settings, env, prior) if case.blind else None
        options = {name: value for name, value in vars(settings).items() if name != "env"}
        trainer = make_metra(env, prior, networks=networks, logger=logger, **options)
        skills = trainer.skill_policy

        def measure(rollouts: TensorDictBase) -> dict[str, float]:
            latents = encode_trajectories(rollouts, skills.encoder)
            return measure_skills(rollouts, latents, prior, norm=skills.constraint_norm)

        SkillEvaluation(
            make_world(case, prior, NUM_SKILLS, seed + 1_000),
            skills,
            prior.evaluation_skills(NUM_SKILLS),
            settings.evaluation_interval,
            measure=measure,
        ).register(trainer)
        start, error = time.perf_counter(), None
        try:
            trainer.train()
        except DivergenceError as divergence:
            error = str(divergence)
        seconds = round(time.perf_counter() - start, 1)
        logged = logger.experiment.scalars
    found = [*trainer.diagnosis.found, *(["diverges"] if error else [])]
    curves = {
        name: [(step, float(f"{value:.4g}")) for step, value in points]
        for name, points in logged.items()
        if not name.endswith("_per_second")
    }
    last = {name: points[-1][1] for name, points in curves.items()}
    return {"error": error, "found": found, "seconds": seconds, "last": last, "curves": curves}


def plan() -> dict[tuple[str, str], Case]:
    """Every run, by its name and role, without cured runs that equal the healthy one."""
    runs = {("healthy", "healthy"): Case()}
    for name, failure in FAILURES.items():
        runs[name, "failing"] = failure.case
        if failure.cured != Case():
            runs[name, "cured"] = failure.cured
    return runs


def draw(record: Mapping[str, Any], path: Path) -> None:
    """A row per failure, with the healthy run in each, and the cured run if it is another one."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    runs = {(run["name"], run["role"]): run for run in record["runs"] if "curves" in run}
    names = [name for name, role in runs if role == "failing"]
    figure = Figure(figsize=(10, 1.2 * len(names) + 0.4), layout="constrained")
    grid = figure.subplots(len(names), len(PANELS), sharex=True, squeeze=False)
    for name, row in zip(names, grid, strict=True):
        in_row = {"healthy": runs["healthy", "healthy"]}
        in_row |= {role: runs[name, role] for role in ROLES if (name, role) in runs}
        for (metric, limits), axes in zip(PANELS.items(), row, strict=True):
            for role, run in in_row.items():
                points = torch.tensor(run["curves"][metric])
                # A run that ended at once is a point.
                marker = "x" if len(points) < 3 else None
                frames, values = points[:, 0] / 1_000, points[:, 1]
                axes.plot(frames, values, color=ROLES[role], lw=1.3, marker=marker, label=role)
            if limits:
                axes.set(ylim=limits, yscale="log" if limits[0] > 0 else "linear")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(labelsize=6.5, length=2, pad=1.5)
            axes.grid(alpha=0.2)
        row[0].set_ylabel(name.replace(" ", "\n", 1), fontsize=8)
    for metric, axes in zip(PANELS, grid[0], strict=True):
        axes.set_title(metric, fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("frames / 1000", fontsize=7)
    handles = grid[1, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train all, write the record and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    seeds = parser.parse_args().seeds
    # Now, before the repository changes.
    record: dict[str, Any] = {"environment": environment(), "settings": SETTINGS, "runs": []}
    for seed in seeds:
        for (name, role), case in plan().items():
            result = train(case, seed)
            if seed != seeds[0]:
                del result["curves"]
            print(name, role, seed, result["error"], f"{result['seconds']} s", flush=True)
            run = {"name": name, "role": role, "seed": seed, "case": asdict(case), **result}
            record["runs"].append(run)
    (RESULTS / "failures.json").write_text(json.dumps(record) + "\n")
    draw(record, RESULTS / "failures.png")


if __name__ == "__main__":
    main()
