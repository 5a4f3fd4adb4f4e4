"""Pictures of simulations: how they look, and what draws many of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrl_metra._checks import check_positive
from torchrl_metra._extras import require
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
        zoom (float): how many times as large things in the middle appear. A small picture then
            shows a posture as well as one of that many times the resolution.

    Examples:
        >>> PixelOptions(resolution=128)
        PixelOptions(resolution=128, frames=3, quality='fast', zoom=1.0)
    """

    resolution: int = 64
    frames: int = 3
    quality: Quality = "fast"
    zoom: float = 1.0

    def __post_init__(self) -> None:
        check_positive("zoom", self.zoom)

    def renderer(self, model: mujoco.MjModel, camera: str | int | FreeCamera) -> Renderer:
        """What draws a model like this."""
        size = self.resolution
        return Renderer(model, size, size, camera, quality=self.quality, zoom=self.zoom)


class Pictures:
    """Draws states of one model, in threads of this process.

    Each thread has a :class:`~torchrl_metra.envs.Renderer` of its own, whose OpenGL context is
    opened by its first picture. A GPU draws for one thread only: for several it is slower.

    Args:
        model (mujoco.MjModel): model to draw.
        options (PixelOptions): how the pictures look; ``frames`` are stacked elsewhere.
        camera (str, int or FreeCamera): see :class:`~torchrl_metra.envs.Renderer`.

    Keyword Args:
        num_threads (int, optional): how many draw side by side where the CPU draws. Defaults to 1.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        options: PixelOptions,
        camera: str | int | FreeCamera,
        *,
        num_threads: int = 1,
    ) -> None:
        #: Of one picture.
        self.shape = (3, options.resolution, options.resolution)
        self.options = options
        self._model, self._camera = model, camera
        self._num_threads = num_threads
        # A context belongs to its thread. It is freed when the thread ends, and with it what is
        # local to it.
        self._local = threading.local()
        self._threads: ThreadPoolExecutor | None = None

    def draw(self, states: NDArray[np.float64]) -> Tensor:
        """Draw states.

        Args:
            states (array): of MuJoCo's ``mjSTATE_FULLPHYSICS``, ``[N, size]``.

        Returns:
            Pictures, ``uint8`` of shape ``[N, 3, resolution, resolution]``.
        """
        pictures = np.empty((len(states), *self.shape), dtype=np.uint8)
        if not len(states):
            return torch.from_numpy(pictures)
        if self._threads is None:
            self._threads = self._start(states[0])
        # More parts than threads, so that none waits long for the last.
        num_parts = 4 * self._num_threads
        parts = [np.array_split(array, num_parts) for array in (states, pictures)]
        list(self._threads.map(self._draw, *parts))  # Raises what a thread has raised.
        return torch.from_numpy(pictures)

    def _start(self, state: NDArray[np.float64]) -> ThreadPoolExecutor:
        one = ThreadPoolExecutor(1, initializer=self._prepare)
        if self._num_threads == 1 or not one.submit(self._draws_on_cpu, state).result():
            self._num_threads = 1
            return one
        one.shutdown()
        return ThreadPoolExecutor(self._num_threads, initializer=self._prepare)

    def _prepare(self) -> None:
        self._local.renderer = self.options.renderer(self._model, self._camera)
        self._local.data = require("mujoco", "mujoco").MjData(self._model)

    def _draw(self, states: NDArray[np.float64], pictures: NDArray[np.uint8]) -> None:
        mujoco = require("mujoco", "mujoco")
        renderer, data = self._local.renderer, self._local.data
        for state, picture in zip(states, pictures, strict=True):
            mujoco.mj_setState(self._model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
            # What is drawn depends on these only, not on contacts and forces.
            for update in ("kinematics", "comPos", "camlight", "flex", "tendon"):
                getattr(mujoco, f"mj_{update}")(self._model, data)
            renderer.render_into(picture.transpose(1, 2, 0), data)

    def _draws_on_cpu(self, state: NDArray[np.float64]) -> bool:
        self._draw(state[None], np.empty((1, *self.shape), dtype=np.uint8))
        return self._local.renderer.is_software

    def close(self) -> None:
        """End the threads, which frees their OpenGL contexts. Drawing again opens new ones."""
        if self._threads is not None:
            self._threads.shutdown()
        self._threads = None


def repeat_frames(frames: Tensor, options: PixelOptions) -> Tensor:
    """Pictures as after a reset, where the first frame stands in for those before it."""
    return frames.repeat(1, options.frames, 1, 1)
