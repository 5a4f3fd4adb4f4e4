"""What all pixel tasks share: frames from a MuJoCo simulation, stacked."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import (
    ActionScaling,
    CatFrames,
    Compose,
    EnvBase,
    ParallelEnv,
    SerialEnv,
    Transform,
    TransformedEnv,
)
from torchrl.envs.gym_like import GymLikeEnv

from torchrl_metra._checks import check_choice, check_integer
from torchrl_metra._extras import require
from torchrl_metra.envs.rendering import Quality, Renderer

if TYPE_CHECKING:
    import mujoco

__all__ = ["PixelObservation", "PixelOptions", "make_pixel_env", "pixel_transforms"]


@dataclass(frozen=True)
class PixelOptions:
    """How the pictures of a pixel task look.

    Attributes:
        resolution (int): width and height in pixels.
        frames (int): number of pictures in one observation, the newest last.
        quality (str): ``"fast"`` or ``"full"``, see :class:`~torchrl_metra.envs.Renderer`.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if one of them is impossible.

    Examples:
        >>> PixelOptions(resolution=128)
        PixelOptions(resolution=128, frames=3, quality='fast')
    """

    resolution: int = 64
    frames: int = 3
    quality: Quality = "fast"

    def __post_init__(self) -> None:
        check_integer("resolution", self.resolution)
        check_integer("frames", self.frames)
        check_choice("quality", self.quality, get_args(Quality))


class PixelObservation(GymLikeEnv):
    """Makes one of TorchRL's environment wrappers observe pictures, and never die.

    A mixin for TorchRL's ``DMControlWrapper`` and ``GymWrapper``, before which it stands
    among the bases. The observation is the entry ``"pixels"``, ``uint8`` of shape
    ``[3, height, width]``, drawn once per step however often the action is repeated, and
    what :meth:`_read_state` adds. Rewards and actions are ``float32``.

    A simulation that diverges ends its episode by truncation, with the last good picture
    and no reward, and with a warning: a run of days must not end for one bad contact.

    Args:
        env: environment for the wrapper.
        renderer (Renderer): draws the pictures; closed with the environment.
        **kwargs: passed on to the wrapper.

    Raises:
        ValueError: by a step, if the action is not finite: that is the policy's fault.
    """

    def __init__(self, env: Any, renderer: Renderer, **kwargs: Any) -> None:
        self._renderer = renderer
        self._last_observation: dict[str, Tensor] = {}
        super().__init__(env=env, **kwargs)

    @abc.abstractmethod
    def _simulation(self) -> mujoco.MjData:
        """The state that is drawn."""

    @abc.abstractmethod
    def _read_state(self) -> dict[str, Tensor]:
        """What evaluation needs beside the pictures."""

    @abc.abstractmethod
    def _state_spec(self) -> dict[str, Any]:
        """Specs of what :meth:`_read_state` returns."""

    def _make_specs(self, env: Any, batch_size: Any = None) -> None:
        super()._make_specs(env)
        shape = (3, self._renderer.height, self._renderer.width)
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, shape=shape, dtype=torch.uint8), **self._state_spec()
        )
        self.reward_spec = Unbounded(shape=(1,))
        self.action_spec = self.full_action_spec["action"].to(torch.float32)

    def read_obs(self, observations: Any) -> dict[str, Tensor]:
        """Observe the simulation in place of what the wrapped environment returned."""
        del observations
        if not self._has_diverged():
            self._last_observation = {"pixels": self._draw(), **self._read_state()}
        return dict(self._last_observation)

    def _draw(self) -> Tensor:
        picture = self._renderer.render(self._simulation())
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"]
        if not action.isfinite().all():
            raise ValueError(f"actions must be finite, got {action.tolist()}.")
        out = super()._step(tensordict)
        if self._has_diverged():
            warnings.warn(
                "The simulation diverged: its episode is truncated.", RuntimeWarning, stacklevel=2
            )
            out["truncated"] = torch.ones_like(out["truncated"])
            out["done"] = torch.ones_like(out["done"])
            out["reward"] = torch.zeros_like(out["reward"])
        return out

    def _has_diverged(self) -> bool:
        kinds = require("mujoco", "mujoco").mjtWarning
        # MuJoCo counts these since the last reset, and repairs the state by resetting it.
        counts = self._simulation().warning
        bad = (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)
        return any(counts[int(kind)].number for kind in bad)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the OpenGL context and close the wrapped environment."""
        self._renderer.close()
        super().close(raise_if_closed=raise_if_closed)


def make_pixel_env(
    make: Callable[[], EnvBase],
    num_envs: int | None,
    backend: Literal["serial", "parallel"],
    frames: int,
) -> TransformedEnv:
    """Put pixel environments side by side, scale their actions and stack their frames.

    Args:
        make (callable): builds one environment with entries ``"pixels"`` and ``"action"``.
            With ``"parallel"`` it is sent to the worker processes, which draw.
        num_envs (int, optional): number of environments; ``None`` for a single one
            without a batch dimension.
        backend (str): ``"serial"`` or ``"parallel"``, without meaning for a single one.
        frames (int): number of frames to stack along the channels, the newest last. After
            a reset the first frame stands in for those before it.

    Returns:
        The environment, with actions in [-1, 1].
    """
    if num_envs is None:
        env = make()
    elif backend == "serial":
        env = SerialEnv(num_envs, make)
    else:
        env = ParallelEnv(num_envs, make)
    # Stacked here and not in the worker processes: these send each frame once.
    return TransformedEnv(env, Compose(*pixel_transforms(frames)))


def pixel_transforms(frames: int) -> list[Transform]:
    """What comes between drawn pictures and the networks: scaled actions, stacked frames."""
    return [ActionScaling(), stack_frames(frames)]


def stack_frames(frames: int) -> CatFrames:
    """The latest frames along the channels, the newest last."""
    return CatFrames(N=frames, dim=-3, in_keys=["pixels"], padding="same")
