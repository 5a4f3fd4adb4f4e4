"""Environments on the device, and networks on the device for environments on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_metra import (
    PixelOptions,
    SkillAction,
    SkillPolicy,
    SkillPrimer,
    UnitSphere,
    make_env,
    make_pixel_sac_networks,
    make_sac_networks,
    sample_goals,
)
from torchrl_metra.envs import rendering_available
from torchrl_metra.evaluation import (
    encode_trajectories,
    evaluate,
    goal_metrics,
    measure_skills,
    rollout_goal_policies,
    rollout_skills,
)

PRIOR, CPU = UnitSphere(2), torch.device("cpu")
TINY = PixelOptions(resolution=32, frames=2)

# Each kind of environment; what is left out takes its time to draw, and comes from the same code.
KINDS = [
    ("point", None),
    ("windy_point", None),
    ("point_pixels", None),
    ("point_goal", None),
    ("ant", "envpool"),
    ("half_cheetah", "serial"),
    ("half_cheetah", "mujoco"),
    ("ant_multi_goals", "envpool"),
    ("half_cheetah_hurdle", "mujoco"),
    ("quadruped", None),
]


def make(name: str, backend: str | None, device: Any = None, skills: bool = True) -> EnvBase:
    pixels = TINY if name in ("quadruped", "point_pixels") else None
    if name == "quadruped":
        pytest.importorskip("dm_control")
        if not rendering_available():
            pytest.skip("MuJoCo cannot draw on this machine")
    elif backend is not None:
        pytest.importorskip("mujoco")
        pytest.importorskip("envpool" if backend == "envpool" else "gymnasium")
    env = make_env(name, 2, backend=backend, device=device, pixels=pixels)
    return env.append_transform(SkillPrimer(PRIOR)) if skills else env


def networks(env: EnvBase, device: Any) -> Any:
    spec = env.observation_spec
    if "pixels" in spec.keys():
        shape = spec["pixels"].shape[-3:]
        return make_pixel_sac_networks(shape, env.action_spec, PRIOR, channels=2, num_cells=[8]).to(
            device
        )
    size = spec["observation"].shape[-1]
    return make_sac_networks(size, env.action_spec, PRIOR, num_cells=[8]).to(device)


def devices(tensordict: TensorDictBase) -> set[torch.device]:
    return {value.device for value in tensordict.values(True, True)}


@pytest.mark.parametrize(("name", "backend"), KINDS)
def test_an_environment_is_where_it_was_asked_for(
    cuda: torch.device, name: str, backend: str | None
) -> None:
    env = make(name, backend, cuda)
    policy = networks(env, cuda).policy
    assert env.device == cuda
    assert devices(env.rollout(3)) == {cuda}
    assert devices(rollout_skills(env, policy, PRIOR.grid(3), max_steps=2)) == {cuda}
    env.close()


@pytest.mark.parametrize(("name", "backend"), KINDS)
def test_networks_on_the_device_act_in_environments_on_the_cpu(
    cuda: torch.device, name: str, backend: str | None
) -> None:
    env = make(name, backend)
    nets = networks(env, cuda)
    rollouts = rollout_skills(env, nets.policy, PRIOR.grid(3), max_steps=3)
    assert devices(rollouts) == {CPU}
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = copy.deepcopy(nets.policy).to(CPU)(rollouts.exclude("action"))
    torch.testing.assert_close(rollouts["action"], expected["action"])
    latents = encode_trajectories(rollouts, nets.encoder)
    assert measure_skills(rollouts, latents, PRIOR)
    env.close()


@pytest.mark.parametrize("name", ["point", "point_pixels"])
@pytest.mark.parametrize("goals_on", ["cpu", "cuda"])
@pytest.mark.parametrize("env_on", ["cuda", None])
def test_goals_wherever_things_are(
    cuda: torch.device, name: str, env_on: str | None, goals_on: str
) -> None:
    env = make(name, None, env_on, skills=False)
    policy = SkillPolicy.from_networks(networks(env, cuda), PRIOR)
    options = {"pixels": TINY} if name == "point_pixels" else {}
    goals = sample_goals(name, 3, **options).to(goals_on)
    for rollouts in rollout_goal_policies(env, policy, goals, max_steps=3).values():
        assert devices(rollouts) == {cuda if env_on == "cuda" else CPU}
        assert goal_metrics(rollouts)["goal/final_distance"] > 0


def test_a_report_of_networks_on_the_device(cuda: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    env = make("point", None, skills=False)
    policy = SkillPolicy.from_networks(networks(env, cuda), PRIOR)
    goals = sample_goals("point", 3)
    report = evaluate(policy, env, tmp_path, goals=goals, num_episodes=3, max_steps=5)
    assert report["skills"]["policy_coverage"] > 0
    assert set(report["goals"]) == {"adaptive", "single", "random"}


@pytest.mark.parametrize("env_on", ["cuda", None])
def test_skills_of_the_device_as_actions(cuda: torch.device, env_on: str | None) -> None:
    env = make("point_goal", None, env_on, skills=False)
    policy = networks(env, cuda).policy
    env = env.append_transform(SkillAction(policy, PRIOR, num_steps=3))
    assert devices(env.rollout(3)) == {cuda if env_on else CPU}
    assert next(policy.parameters()).device == cuda


def test_a_policy_file_goes_from_device_to_device(cuda: torch.device, tmp_path: Path) -> None:
    env = make("point", None)
    nets = networks(env, cuda)
    SkillPolicy.from_networks(nets, PRIOR).save(tmp_path / "policy.pt")
    for device in (CPU, cuda):
        policy = SkillPolicy.load(tmp_path / "policy.pt", map_location=device)
        for module, source in ((policy.actor, nets.policy), (policy.encoder, nets.encoder)):
            for found, expected in zip(module.parameters(), source.parameters(), strict=True):
                assert found.device == device
                assert found.tolist() == expected.tolist()
