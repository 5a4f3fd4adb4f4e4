"""An installed package in an empty environment: is all of it there, and does it learn?

    make package

runs this with what was built, from a folder in which the sources are not. No pytest here: the
environment has the package and what it requires, nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import metadata, version
from pathlib import Path

import torch
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer

import torchrl_metra
from torchrl_metra import (
    BatchedSACLoss,
    METRALoss,
    METRAOptimizationStepper,
    METRATrainer,
    PixelOptions,
    SkillPolicy,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_metra_optimizers,
    make_sac_networks,
)
from torchrl_metra.evaluation import rollout_skills, sector_coverage

ROOMS = ["data", "envs", "evaluation", "modules", "objectives", "trainers"]


def check_files() -> None:
    """It was installed, with its types and all public names, under one version."""
    package = Path(torchrl_metra.__file__).parent
    assert "site-packages" in package.parts, f"{package} is not installed"
    assert (package / "py.typed").exists()
    assert version("torchrl-metra") == torchrl_metra.__version__
    for room in ROOMS:
        module = importlib.import_module(f"torchrl_metra.{room}")
        assert all(hasattr(module, name) for name in module.__all__), room
    assert all(hasattr(torchrl_metra, name) for name in torchrl_metra.__all__)


def why_not(call: Callable[[], object]) -> str:
    """What the ImportError says that ``call`` raises."""
    try:
        call()
    except ImportError as error:
        return str(error)
    return "no error"


def check_extras() -> None:
    """What is missing here is named by its extra."""
    for name, module, extra in (
        ("half_cheetah", "gymnasium", "mujoco"),
        ("quadruped", "dm_control", "dm-control"),
        ("kitchen", "gymnasium_robotics", "kitchen"),
    ):
        assert importlib.util.find_spec(module) is None, f"{module}: the environment is not empty"
        pixels = None if extra == "mujoco" else PixelOptions()
        said = why_not(lambda name=name, pixels=pixels: make_env(name, num_envs=1, pixels=pixels))
        assert f"torchrl-metra[{extra}]" in said, f"{name}: {said}"
        assert extra in metadata("torchrl-metra").get_all("Provides-Extra")


def check_learning(folder: Path) -> None:
    """METRA learns to leave the start of PointEnv in all directions; the file goes on so."""
    torch.manual_seed(0)
    prior = UnitSphere(2)
    env = make_env("point", num_envs=16).append_transform(SkillPrimer(prior))
    networks = make_sac_networks(2, env.action_spec, prior, num_cells=[64, 64])
    metra_loss = METRALoss(networks.encoder, prior, dual_init=10.0)
    sac_loss = BatchedSACLoss(
        networks.actor, networks.critics, alpha_init=0.01, target_entropy=-1.0
    )
    optimizers = make_metra_optimizers(metra_loss, sac_loss, lr=2e-3)
    METRATrainer(
        collector=Collector(env, networks.actor, frames_per_batch=1_600, total_frames=32_000),
        total_frames=32_000,
        optim_steps_per_batch=50,
        loss_module=sac_loss,
        skill_loss=metra_loss,
        replay_buffer=ReplayBuffer(storage=LazyTensorStorage(32_000), batch_size=256),
        optimization_stepper=METRAOptimizationStepper(metra_loss, optimizers),
        progress_bar=False,
    ).train()
    SkillPolicy.from_networks(networks, prior).save(folder / "skill_policy.pt")
    policy = SkillPolicy.load(folder / "skill_policy.pt")
    env = make_env("point", num_envs=48).append_transform(SkillPrimer(prior))
    ends = rollout_skills(env, policy.actor, prior.grid(48))["next", "position"][:, -1]
    distance = ends.norm(dim=-1).mean().item()
    sectors = sector_coverage(ends)
    assert distance > 5, distance
    assert sectors >= 8, sectors
    print(f"learned: {sectors} of 16 sectors, {distance:.0f} m from the start")


def check_command() -> None:
    """The evaluation command says how it is used."""
    command = [sys.executable, "-m", "torchrl_metra.evaluation", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "file of a SkillPolicy" in printed, printed


if __name__ == "__main__":
    check_files()
    check_extras()
    check_command()
    with tempfile.TemporaryDirectory() as folder:
        check_learning(Path(folder))
    print(f"torchrl-metra {torchrl_metra.__version__} works, with torch {torch.__version__}")
