"""The paper's downstream tasks, on which skills are put to use (Section 5)."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite, Unbounded
from torchrl.envs import Transform

from torchrl_metra._private import AutoResetMixin
from torchrl_metra.envs.gymnasium import HURDLES
from torchrl_metra.envs.registry import register_env
from torchrl_metra.envs.transforms.primer import where_reset


class ReachGoals(AutoResetMixin, Transform):
    """Replaces the reward by 1 for every step that ends near a goal.

    A goal is drawn at reset, uniformly from ``±goal_range`` along each axis of
    ``"position"``. Reaching it does not end the episode. With ``steps_per_goal`` another
    goal follows after so many steps, drawn around the one before.

    Entries: ``"to_goal"``, what a policy should read: from the position to the goal, in units
    of ``radius``; ``"goal_position"``, the goal in meters, for pictures. Both ``float32``,
    of the shape of the position. The skill policy's own entries stay as they are.

    Draws come from torch's global generator: seed it by ``torch.manual_seed``,
    ``env.set_seed`` does not.

    Args:
        goal_range (float): how far goals lie, in meters.
        radius (float): at which distance a goal counts as reached, in meters.

    Keyword Args:
        steps_per_goal (int, optional): how long a goal lasts. Defaults to ``None``: for the
            whole episode.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_metra import PointEnv
        >>> env = TransformedEnv(PointEnv(num_envs=3), ReachGoals(20.0, radius=3.0))
        >>> env.rollout(5)["next", "to_goal"].shape
        torch.Size([3, 5, 2])
    """

    def __init__(
        self, goal_range: float, radius: float, *, steps_per_goal: int | None = None
    ) -> None:
        super().__init__()
        self.goal_range = goal_range
        self.radius = radius
        self.steps_per_goal = steps_per_goal

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        # One for every environment: TorchRL drops those of environments that go on.
        position = tensordict_reset.get("position").float()
        if self.steps_per_goal is not None:
            tensordict_reset.set("goal_age", torch.zeros_like(position[..., :1], dtype=torch.int64))
        return self._show(tensordict_reset, self._draw(torch.zeros_like(position)))

    def update_where_reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        reset = tensordict.get("_reset").reshape(tensordict.batch_size)
        fresh = self._reset(tensordict, tensordict_reset.select("position"))
        return tensordict_reset.update(
            where_reset(reset, fresh, tensordict_reset.select(*fresh.keys()))
        )

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        goal = tensordict.get("goal_position")
        distance = (goal - next_tensordict.get("position")).norm(dim=-1, keepdim=True)
        reward = next_tensordict.get("reward")
        next_tensordict.set("reward", (distance <= self.radius).to(reward.dtype))
        if self.steps_per_goal is not None:
            age = tensordict.get("goal_age") + 1
            is_over = age >= self.steps_per_goal
            goal = torch.where(is_over, self._draw(goal), goal)
            next_tensordict.set("goal_age", age.where(~is_over, 0))
        return self._show(next_tensordict, goal)

    def _draw(self, center: Tensor) -> Tensor:
        return center + self.goal_range * (2 * torch.rand_like(center) - 1)

    def _show(self, tensordict: TensorDictBase, goal: Tensor) -> TensorDictBase:
        displacement = goal - tensordict.get("position")
        return tensordict.set("goal_position", goal).set("to_goal", displacement / self.radius)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the goal's specs."""
        position = observation_spec["position"]
        for key in ("to_goal", "goal_position"):
            observation_spec[key] = Unbounded(shape=position.shape, device=position.device)
        if self.steps_per_goal is not None:
            observation_spec["goal_age"] = Unbounded(
                shape=(*position.shape[:-1], 1), dtype=torch.int64, device=position.device
            )
        return observation_spec


class PassHurdles(Transform):
    """Replaces the reward by the number of hurdles that were passed in a step.

    Going back over a hurdle gives its reward back: the return is the number of hurdles
    that lie behind in the end. Only those ahead of the start count. HalfCheetah passes a
    hurdle when the joint of its back foot would if it stood upright, 0.62 m behind the
    middle of its torso, whose x is ``"position"``.

    Entry: ``"to_goal"``, what a policy should read: the distance in meters from there to the
    next hurdle, 0 after the last one, ``float32`` of shape ``[*B, 1]``. The hurdles
    themselves stand in the simulation.

    Args:
        hurdles (sequence of float, optional): where they stand, x in meters. Defaults to
            the paper's.

    Examples:
        >>> from torchrl_metra import make_env
        >>> env = make_env("half_cheetah_hurdle")
        >>> env.rollout(3)["next", "to_goal"].shape
        torch.Size([3, 1])
    """

    back_foot = -0.62

    def __init__(self, hurdles: tuple[float, ...] = HURDLES) -> None:
        super().__init__()
        self.register_buffer("hurdles", torch.tensor(sorted(x for x in hurdles if x > 0)))

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._show(tensordict_reset)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        passed = self._passed(next_tensordict) - self._passed(tensordict)
        reward = next_tensordict.get("reward")
        next_tensordict.set("reward", passed.unsqueeze(-1).to(reward.dtype))
        return self._show(next_tensordict)

    def _passed(self, tensordict: TensorDictBase) -> Tensor:
        return (self._back(tensordict) > self.hurdles).sum(dim=-1)

    def _back(self, tensordict: TensorDictBase) -> Tensor:
        return tensordict.get("position")[..., :1] + self.back_foot

    def _show(self, tensordict: TensorDictBase) -> TensorDictBase:
        back, passed = self._back(tensordict), self._passed(tensordict)
        following = self.hurdles[passed.clamp(max=len(self.hurdles) - 1)].unsqueeze(-1)
        return tensordict.set("to_goal", (following - back).clamp(min=0))

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the spec of the distance."""
        observation_spec["to_goal"] = Unbounded(
            shape=(*observation_spec.shape, 1), device=observation_spec.device
        )
        return observation_spec


# Name, environment, summary, how far the goal lies and at which distance it is reached, in meters.
_GOALS = (
    ("point_goal", "point", "A goal for the point, within 20 m.", 20.0, 3.0),
    ("half_cheetah_goal", "half_cheetah", "A goal for HalfCheetah, within 100 m.", 100.0, 3.0),
    ("quadruped_goal", "quadruped", "A goal for Quadruped, within 7.5 m.", 7.5, 1.5),
    ("humanoid_goal", "humanoid", "A goal for Humanoid, within 5 m.", 5.0, 1.5),
    ("quadruped_state_goal", "quadruped_state", "The same from states, within 7.5 m.", 7.5, 1.5),
    ("humanoid_state_goal", "humanoid_state", "The same from states, within 5 m.", 5.0, 1.5),
)
for _name, _env, _summary, _range, _radius in _GOALS:
    _task = partial(ReachGoals, _range, radius=_radius)
    register_env(_name, _env, summary=_summary, transform=_task)
register_env(
    "ant_multi_goals",
    "ant",
    summary="A goal after another for Ant, each within 7.5 m of the one before.",
    transform=partial(ReachGoals, 7.5, radius=3.0, steps_per_goal=50),
)
register_env(
    "half_cheetah_hurdle",
    "hurdle_course",
    summary="Hurdles for HalfCheetah to pass.",
    transform=PassHurdles,
)
