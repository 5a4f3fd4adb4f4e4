"""Videos of skills; files need the ``video`` extra."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Bounded, TensorSpec
from torchrl.envs import EnvBase, Transform, TransformedEnv

from torchrl_metra._extras import require
from torchrl_metra._transforms import base_of
from torchrl_metra.data import OneHot, SkillPrior
from torchrl_metra.envs import MuJoCoPoolEnv, PixelOptions
from torchrl_metra.evaluation.rollouts import rollout_skills

# Of what a policy sees, hardly anything can be told at a glance.
LOOK = PixelOptions(resolution=128, frames=1)


class Film(Transform):
    """Adds ``"film"``: pictures of the states of a MuJoCoPoolEnv, whatever a policy sees.

    Args:
        look (PixelOptions, optional): how they look. By default 128 pixels wide.
    """

    def __init__(self, look: PixelOptions = LOOK) -> None:
        super().__init__(in_keys=[], out_keys=["film"])
        self.look = look

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.set("film", self._draw())

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        return tensordict_reset.set("film", self._draw())

    def _draw(self) -> Tensor:
        return base_of(self.parent).draw(self.look)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        shape = (*observation_spec.shape, 3, self.look.resolution, self.look.resolution)
        observation_spec["film"] = Bounded(0, 255, shape=shape, dtype=torch.uint8)
        return observation_spec


def film_skills(
    env: EnvBase, policy: TensorDictModuleBase, skills: Tensor, *, max_steps: int | None = None
) -> Tensor | None:
    """Pictures of one episode for each skill.

    Args:
        env (EnvBase): see :func:`rollout_skills`. One on MuJoCo's threads is drawn anew, large
            enough for the eye; another one has ``"pixels"``.
        policy (TensorDictModuleBase): skill-conditioned policy.
        skills (Tensor): of shape ``[M, D]``.

    Keyword Args:
        max_steps (int, optional): length of the episodes.

    Returns:
        ``uint8`` of shape ``[M, T, C, H, W]``, or ``None`` if there is nothing to see.
    """
    key = "pixels"
    if isinstance(base_of(env), MuJoCoPoolEnv):
        env, key = TransformedEnv(env, Film(), auto_unwrap=False), "film"
    elif "pixels" not in env.observation_spec.keys():
        return None
    return rollout_skills(env, policy, skills, max_steps=max_steps)["next", key]


def skills_to_film(prior: SkillPrior) -> Tensor:
    """As many skills as can be looked at side by side, of shape ``[M, D]``."""
    return prior.grid(min(prior.dim, 16) if isinstance(prior, OneHot) else 9)


def write_video(pixels: Tensor, path: str | os.PathLike[str], *, fps: float = 25.0) -> None:
    """Write episodes side by side as one video, all from their first step on.

    Args:
        pixels (Tensor): ``uint8`` pictures of shape ``[M, T, C, H, W]``, or
            ``[M, T, H, W, 3]`` as gymnasium renders. Of stacked frames, the last three
            channels are shown, which are the newest frame.
        path (path): file to write, ``.mp4`` or ``.gif``; its folder is created.

    Keyword Args:
        fps (float, optional): pictures per second. Defaults to 25.

    Examples:
        >>> import tempfile, torch
        >>> pixels = torch.randint(256, (6, 10, 9, 64, 64), dtype=torch.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(pixels, folder + "/skills.gif")
    """
    if pixels.ndim == 5 and pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 1, 4, 2, 3)
    imageio = require("imageio.v3", "video")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = _tile(pixels[:, :, -3:].cpu()).numpy()
    if path.suffix == ".gif":
        imageio.imwrite(path, frames, duration=1000 / fps, loop=0)
    else:
        require("imageio_ffmpeg", "video")
        imageio.imwrite(path, frames, fps=fps, macro_block_size=2)


def _tile(pixels: Tensor) -> Tensor:
    """A grid of episodes, of shape ``[T, rows * H, columns * W, 3]``, wider than high."""
    columns = math.ceil(math.sqrt(len(pixels)))
    missing = -len(pixels) % columns
    pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
    grid = pixels.unflatten(0, (-1, columns))  # row, column, time, channel, y, x
    return grid.permute(2, 0, 4, 1, 5, 3).flatten(3, 4).flatten(1, 2).contiguous()
