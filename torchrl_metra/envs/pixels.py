"""Simulations that are observed by pictures, or by their own state, and that may diverge."""

from __future__ import annotations

import abc
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.gym_like import GymLikeEnv

from torchrl_metra._extras import require
from torchrl_metra._private import SpecsMixin
from torchrl_metra.envs.rendering import FreeCamera, Quality, Renderer

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True)
class PixelOptions:
    """How the pictures of a pixel task look.

    Attributes:
        resolution (int): width and height in pixels.
        frames (int): number of pictures in one observation, the newest last.
        quality (str): ``"fast"`` or ``"full"``, see :class:`~torchrl_metra.envs.Renderer`.

    Examples:
        >>> PixelOptions(resolution=128)
        PixelOptions(resolution=128, frames=3, quality='fast')
    """

    resolution: int = 64
    frames: int = 3
    quality: Quality = "fast"

    def renderer(self, model: mujoco.MjModel, camera: str | int | FreeCamera) -> Renderer:
        """What draws a model like this."""
        return Renderer(model, self.resolution, self.resolution, camera, quality=self.quality)


class SimulationEnv(SpecsMixin, GymLikeEnv):
    """Makes one of TorchRL's environment wrappers observe its simulation, and never die.

    A mixin for TorchRL's ``DMControlWrapper`` and ``GymWrapper``, before which it stands
    among the bases. The observation is what :meth:`read_state` returns and, with a renderer,
    the entry ``"pixels"``, ``uint8`` of shape ``[3, height, width]``, drawn once per step
    however often the action is repeated. Rewards and actions are ``float32``.

    A simulation that diverges ends its episode by truncation, with the last good observation
    and no reward, and with a warning: a run of days must not end because of one bad contact.

    Args:
        env: environment for the wrapper.
        renderer (Renderer, optional): draws the pictures; closed with the environment.
        **kwargs: passed on to the wrapper.

    Raises:
        ValueError: by a step, if the action is not finite. MuJoCo would take it for zero.
    """

    def __init__(self, env: Any, renderer: Renderer | None, **kwargs: Any) -> None:
        self.simulator = env
        self.renderer = renderer
        self._last_observation: dict[str, Tensor] = {}
        super().__init__(env=env, **kwargs)

    @property
    @abc.abstractmethod
    def simulation(self) -> mujoco.MjData:
        """The state that is drawn."""

    @abc.abstractmethod
    def read_state(self, observations: Any) -> dict[str, Tensor]:
        """What is shown beside pictures, given what the wrapped environment returned."""

    def adjust_specs(self) -> None:
        state = self.read_state(self.full_observation_spec.zero())
        specs = Composite({key: Unbounded(x.shape, dtype=x.dtype) for key, x in state.items()})
        if self.renderer is not None:
            shape = (3, self.renderer.height, self.renderer.width)
            specs["pixels"] = Bounded(0, 255, shape=shape, dtype=torch.uint8)
        self.observation_spec = specs
        self.reward_spec = Unbounded(shape=(1,))
        self.action_spec = self.full_action_spec["action"].to(torch.float32)

    def read_obs(self, observations: Any) -> dict[str, Tensor]:
        """Observe the simulation in place of what the wrapped environment returned."""
        if not self._has_diverged():
            self._last_observation = self.read_state(observations)
            if self.renderer is not None:
                self._last_observation["pixels"] = self.draw()
        return dict(self._last_observation)

    def draw(self) -> Tensor:
        """A picture of the present state."""
        assert self.renderer is not None
        picture = self.renderer.render(self.simulation)
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
            for key in ("truncated", "done"):
                out[key] = torch.ones_like(out[key])
            out["reward"] = torch.zeros_like(out["reward"])
        return out

    def _has_diverged(self) -> bool:
        kinds = require("mujoco", "mujoco").mjtWarning
        # MuJoCo counts these since the last reset, and repairs the state by resetting it.
        counts = self.simulation.warning
        bad = (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC)
        return any(counts[int(kind)].number for kind in bad)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Free the OpenGL context and close the wrapped environment."""
        if self.renderer is not None:
            self.renderer.close()
        super().close(raise_if_closed=raise_if_closed)


def repeat_frames(frames: Tensor, options: PixelOptions) -> Tensor:
    """Pictures as after a reset, where the first frame stands in for those before it."""
    return frames.repeat(1, options.frames, 1, 1)
