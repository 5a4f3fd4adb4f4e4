"""A point that moves in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, Transform, TransformedEnv

from torchrl_metra.envs.pixels import PixelOptions, repeat_frames
from torchrl_metra.envs.places import draw_positions
from torchrl_metra.envs.registry import register_env

EPISODE_STEPS = 200


class PointEnv(EnvBase):
    """A point in an unbounded plane, moved by its action: the smallest METRA task.

    The observation is the position, the action a displacement of at most 0.2 along
    each axis. Episodes begin at the origin and are truncated after ``max_steps``.
    Batched, in pure torch, on any device; partial resets are supported.

    Args:
        num_envs (int, optional): number of points that move side by side, or
            ``None`` (default) for a single one without a batch dimension.
        max_steps (int, optional): length of an episode. Defaults to 200.
        device (torch.device, optional): device of the tensors.

    Examples:
        >>> env = PointEnv(num_envs=3)
        >>> env.rollout(5)["next", "observation"].shape
        torch.Size([3, 5, 2])
    """

    max_displacement = 0.2
    #: Episodes go on from a checkpoint, since ``state_dict()`` holds all that an episode is.
    is_resumable = True

    _position: Tensor
    _steps: Tensor

    def __init__(
        self,
        num_envs: int | None = None,
        *,
        max_steps: int = EPISODE_STEPS,
        device: torch.device | str | None = None,
    ) -> None:
        batch_size: Sequence[int] = () if num_envs is None else (num_envs,)
        super().__init__(device=device, batch_size=torch.Size(batch_size))
        self.max_steps = max_steps
        position = Unbounded(shape=(*batch_size, 2), device=device)
        flag = Categorical(2, shape=(*batch_size, 1), dtype=torch.bool, device=device)
        self.observation_spec = Composite(
            observation=position, position=position.clone(), shape=batch_size, device=device
        )
        self.action_spec = Bounded(
            -self.max_displacement, self.max_displacement, shape=(*batch_size, 2), device=device
        )
        self.reward_spec = Unbounded(shape=(*batch_size, 1), device=device)
        flags = {key: flag.clone() for key in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=batch_size, device=device)
        self.register_buffer("_position", position.zero())
        self.register_buffer("_steps", flag.zero().int())

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        reset = torch.ones_like(self._steps, dtype=torch.bool)
        if tensordict is not None:
            reset = tensordict.get("_reset", reset).reshape(reset.shape)
        self._position = torch.where(reset, 0.0, self._position)
        self._steps = torch.where(reset, 0, self._steps)
        return self._show()

    def _show(self, **others: Tensor) -> TensorDict:
        entries = {"observation": self._position, "position": self._position, **others}
        return TensorDict(entries, batch_size=self.batch_size, device=self.device)

    def _displacement(self, action: Tensor) -> Tensor:
        return action.clamp(-self.max_displacement, self.max_displacement)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._position = self._position + self._displacement(tensordict.get("action"))
        self._steps = self._steps + 1
        truncated = self._steps >= self.max_steps
        return self._show(
            reward=torch.zeros_like(self._position[..., :1]),
            done=truncated,
            terminated=torch.zeros_like(truncated),
            truncated=truncated.clone(),
        )

    def _set_seed(self, seed: int | None) -> None:
        # Nothing here is random.
        del seed


class WindyPointEnv(PointEnv):
    """A point in a constant wind: there and back are not equally far.

    The wind adds 0.1 along x to every displacement, so that a step leads 0.3 downwind but
    0.1 upwind, and three times as many steps lead back as there. The distance of states in
    time is no longer symmetric, where that of their latents always is.

    Args:
        num_envs (int, optional): see :class:`PointEnv`.
        max_steps (int, optional): see :class:`PointEnv`.
        device (torch.device, optional): see :class:`PointEnv`.

    Examples:
        >>> import torch
        >>> env = WindyPointEnv()
        >>> env.step(env.reset().set("action", torch.tensor([-0.2, 0.0])))["next", "position"]
        tensor([-0.1000,  0.0000])
    """

    wind = 0.1

    def _displacement(self, action: Tensor) -> Tensor:
        displacement = super()._displacement(action)
        return displacement + displacement.new_tensor([self.wind, 0.0])


class DrawPoint(Transform):
    """Draws what a camera high above the plane sees: the point as a white disc.

    The picture shows ±48 m along each axis, 40 of which a point can reach in 200 steps,
    with y upwards. The disc has a radius of 6 m and a soft edge, so that every step shows,
    however small it is beside a pixel.

    Args:
        resolution (int, optional): width and height in pixels. Defaults to 64.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> env = TransformedEnv(PointEnv(num_envs=3), DrawPoint())
        >>> env.reset()["pixels"].shape
        torch.Size([3, 3, 64, 64])
    """

    extent = 48.0
    radius = 6.0

    def __init__(self, resolution: int = 64) -> None:
        super().__init__(in_keys=["position"], out_keys=["pixels"])
        self.resolution = resolution
        self.pixel_size = 2 * self.extent / resolution
        centers = (torch.arange(resolution) + 0.5) * self.pixel_size - self.extent
        self.register_buffer("centers", centers)

    def _apply_transform(self, position: Tensor) -> Tensor:
        x = self.centers - position[..., :1, None]
        y = -self.centers[:, None] - position[..., 1:, None]
        distance = (x.square() + y.square()).sqrt()
        white = ((self.radius - distance) / self.pixel_size + 0.5).clamp(0, 1)
        pixels = (255 * white).round().to(torch.uint8)
        return pixels.unsqueeze(-3).expand(*position.shape[:-1], 3, -1, -1).contiguous()

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the pictures' spec."""
        shape = (*observation_spec.shape, 3, self.resolution, self.resolution)
        observation_spec["pixels"] = Bounded(
            0, 255, shape=shape, dtype=torch.uint8, device=observation_spec.device
        )
        return observation_spec


def make_point(
    kind: type[PointEnv],
    num_envs: int | None = None,
    *,
    max_steps: int = EPISODE_STEPS,
    device: torch.device | str | None = None,
    pixels: PixelOptions | None = None,
) -> EnvBase:
    """Build points, drawn from above with ``pixels``."""
    env = kind(num_envs, max_steps=max_steps, device=device)
    return env if pixels is None else TransformedEnv(env, DrawPoint(pixels.resolution))


def places(num_goals: int, *, seed: int, pixels: PixelOptions | None, extent: float) -> TensorDict:
    """Points at other places, drawn from above with ``pixels``."""
    position = draw_positions(num_goals, 2, extent, seed)
    goals = TensorDict({"position": position}, [num_goals])
    if pixels is None:
        return goals.set("observation", position.clone())
    drawn = DrawPoint(pixels.resolution)(goals)["pixels"]
    return goals.set("pixels", repeat_frames(drawn, pixels))


_POINT: dict[str, Any] = {
    "observation_norm": False,
    "max_steps": EPISODE_STEPS,
    "terminates": False,
    "goals": places,
    "goal_extent": 20.0,
}
register_env(
    "point",
    partial(make_point, PointEnv),
    summary="A point in the plane, moved by its action.",
    **_POINT,
)
register_env(
    "windy_point",
    partial(make_point, WindyPointEnv),
    summary="A point in the plane in a constant wind.",
    **_POINT,
)
register_env(
    "point_pixels",
    partial(make_point, PointEnv),
    summary="A point in the plane, seen from above.",
    observes="pixels",
    **_POINT,
)
