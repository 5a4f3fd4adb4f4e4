"""An installed package in an environment of its own: is all of it there, and does it learn?

    make package

runs this with what was built, from a folder in which the sources are not: first in an environment
that has the package and what it requires, nothing else; then, as `smoke.py commands`, with the
extras of the command `metra`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import metadata, version
from pathlib import Path

import torch

import torchrl_metra
from torchrl_metra import PixelOptions, SkillPolicy, SkillPrimer, make_env, make_metra
from torchrl_metra.evaluation import rollout_skills, sector_coverage

ROOMS = ["data", "envs", "evaluation", "modules", "objectives", "recipes", "trainers"]
METRA = Path(sys.executable).with_name("metra")


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
    assert (package / "recipes" / "presets.toml").exists()
    assert (package / "envs" / "observation_norm.toml").exists()


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


def metra(*arguments: str) -> str:
    """What the command prints."""
    environ = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run([METRA, *arguments], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, f"metra {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def check_bare_command() -> None:
    """It shows what there is, and names the extra with which it trains."""
    assert "half_cheetah" in metra("envs")
    assert "a run's folder" in metra("evaluate", "--help")
    done = subprocess.run([METRA, "train", "env=point"], capture_output=True, text=True)
    assert done.returncode, "metra train: hydra is installed, the environment is not empty"
    assert "torchrl-metra[run]" in done.stderr, done.stderr


def check_learning() -> None:
    """METRA learns to leave the start of PointEnv in all directions; the file goes on so."""
    trainer = make_metra("point", total_frames=32_000, progress_bar=False)
    trainer.train()
    trainer.skill_policy.save("skill_policy.pt")
    policy = SkillPolicy.load("skill_policy.pt")
    env = make_env("point", num_envs=48).append_transform(SkillPrimer(policy.prior))
    ends = rollout_skills(env, policy, policy.prior.grid(48))["next", "position"][:, -1]
    distance = ends.norm(dim=-1).mean().item()
    sectors = sector_coverage(ends)
    assert distance > 5, distance
    assert sectors >= 8, sectors
    print(f"learned: {sectors} of 16 sectors, {distance:.0f} m from the start")


def check_run(env: str, *arguments: str) -> None:
    """A run of the command leaves all that it should, and can be evaluated."""
    metra("train", f"env={env}", "preset=debug", "output=run", *arguments)
    metra("evaluate", "run", "--episodes", "4")
    for name in (
        "skill_policy.pt", "summary.json", "coverage.csv", "coverage.png", "skills.png",
        "report/report.html", "report/report.json", "report/skills.png",
    ):  # fmt: skip
        assert Path("run", name).stat().st_size, f"{env}: {name} is empty"
    assert SkillPolicy.load("run/skill_policy.pt").env_name == env
    print(f"metra trains and evaluates {env}")


MY_ROBOT = """
from torchrl.envs import GymEnv


def make_env():
    return GymEnv("InvertedPendulum-v5")
"""


def check_commands() -> None:
    """Environments that this package has never heard of."""
    check_run("gym:Walker2d-v5", "env.max_steps=50")
    check_run("dm_control:walker-run", "env.max_steps=50")
    Path("my_robot.py").write_text(MY_ROBOT)
    check_run("my_robot:make_env", "env.max_steps=50", "env.position=[0]")


if __name__ == "__main__":
    check_files()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if sys.argv[1:] == ["commands"]:
            check_commands()
        else:
            check_extras()
            check_bare_command()
            check_learning()
        os.chdir("/")
    print(f"torchrl-metra {torchrl_metra.__version__} works, with torch {torch.__version__}")
