"""MuJoCo pictures, drawn fast: the one place that owns OpenGL contexts."""

from __future__ import annotations

import atexit
import copy
import ctypes
import functools
import importlib
import math
import os
import sys
import threading
import weakref
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from torchrl_metra._checks import check_choice, check_positive
from torchrl_metra._extras import require
from torchrl_metra._private import open_gl_context

if TYPE_CHECKING:
    import mujoco

Quality = Literal["fast", "full"]
GLBackend = Literal["egl", "osmesa", "glfw", "cgl"]

# How to mend a backend that does not work, on Debian and Ubuntu.
_REMEDIES: dict[str, str] = {
    "egl": "needs no display: apt-get install libegl1 libgl1-mesa-dri, or a GPU driver with EGL",
    "osmesa": "needs no display and no GPU: apt-get install libosmesa6",
    "glfw": "needs a display (DISPLAY or WAYLAND_DISPLAY) and: apt-get install libglfw3",
    "cgl": "needs macOS",
}
_CANDIDATES = ("cgl",) if sys.platform == "darwin" else ("egl", "osmesa", "glfw")

# Libraries are loaded by the first context: threads open theirs one after the other.
_OPENING = threading.Lock()

# What OpenGL is asked for the name of what draws.
_GL_RENDERER = 0x1F01

# As many as MuJoCo's own renderer has room for; their number costs no time.
_MAX_GEOMS = 10_000


@dataclass(frozen=True)
class FreeCamera:
    """A camera that belongs to no model: it looks at a point from a distance.

    Attributes:
        distance (float): from the camera to the point, in meters.
        lookat (tuple of float): the point, x, y, z in meters.
        azimuth (float): direction of view around the vertical, in degrees; at 90 the
            camera looks along +y.
        elevation (float): direction of view above the horizontal, in degrees; at -90
            the camera looks straight down.

    Examples:
        >>> FreeCamera(distance=2.0, lookat=(0.0, 0.0, 1.0), azimuth=90, elevation=-45).distance
        2.0
    """

    distance: float
    lookat: tuple[float, float, float]
    azimuth: float
    elevation: float


class Renderer:
    """Draws one MuJoCo model from one camera.

    The OpenGL context is created by the first :meth:`render`, so that an environment
    can be built in one process and draw in another, and lives until :meth:`close`,
    garbage collection or the end of the process. Several renderers may be open at once.
    Do not draw with dm_control's own renderer in the same thread: it does not notice that
    another context became current.

    Args:
        model (mujoco.MjModel): model to draw. Change its textures and materials before
            the first picture: they are uploaded once.
        width (int): in pixels.
        height (int): in pixels.
        camera (str, int or FreeCamera): name or number of a camera of the model, or a
            free camera.

    Keyword Args:
        quality (str, optional): ``"fast"`` (default) draws without shadows, reflections
            and antialiasing, and with coarser spheres and capsules, the coarser the smaller
            the picture: without a GPU 15 to 30 times as many pictures per second of
            dm_control's robots. ``"full"`` draws as the model asks.
        zoom (float, optional): how many times as large things in the middle of the picture
            appear. Defaults to 1.0, as the camera sees them.
        backend (str, optional): ``"egl"``, ``"osmesa"``, ``"glfw"`` or ``"cgl"`` (macOS).
            Defaults to the environment variable ``MUJOCO_GL`` or, where that is not set,
            to the first of them that works.

    Raises:
        RuntimeError: by :meth:`render`, if no backend works; names what to install.

    .. note:: Mesa, which draws where there is no GPU, starts a thread per core for each
        process. Pictures of this size are drawn no faster by that, and renderers get into
        each other's way, so the first context sets ``LP_NUM_THREADS=0`` unless that variable
        is set already: each draws in the thread that asks for a picture.

    Examples:
        >>> import mujoco
        >>> model = mujoco.MjModel.from_xml_string(
        ...     "<mujoco><worldbody><camera name='top' pos='0 0 5'/></worldbody></mujoco>"
        ... )
        >>> renderer = Renderer(model, 64, 48, "top")
        >>> renderer.is_open  # the first picture opens it
        False
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        width: int,
        height: int,
        camera: str | int | FreeCamera,
        *,
        quality: Quality = "fast",
        zoom: float = 1.0,
        backend: GLBackend | None = None,
    ) -> None:
        check_choice("quality", quality, get_args(Quality))
        check_positive("zoom", zoom)
        self.model = model if zoom == 1 else _zoomed(model, zoom)
        self.width = width
        self.height = height
        self.camera = camera if isinstance(camera, FreeCamera) else model.camera(camera).id
        self.quality = quality
        self.backend = backend
        self._raw = np.empty((height, width, 3), dtype=np.uint8)
        # The OpenGL context, MuJoCo's own, the scene, and what frees the first two.
        self._opened: tuple[Any, mujoco.MjrContext, mujoco.MjvScene, weakref.finalize] | None = None

    @property
    def is_open(self) -> bool:
        """Whether an OpenGL context is held."""
        return self._opened is not None

    @property
    def is_software(self) -> bool:
        """Whether the open context draws on the CPU, as far as its library tells."""
        name = require("OpenGL.GL", "mujoco").glGetString(_GL_RENDERER) or b""
        return any(library in name for library in (b"llvmpipe", b"softpipe", b"swrast"))

    def render(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """Draw the model in a state.

        Args:
            data (mujoco.MjData): state of the simulation, with positions up to date.

        Returns:
            The picture, a new ``uint8`` array of shape ``[height, width, 3]``, top row first.
        """
        picture = np.empty((self.height, self.width, 3), dtype=np.uint8)
        self.render_into(picture, data)
        return picture

    def render_into(self, picture: NDArray[np.uint8], data: mujoco.MjData) -> None:
        """Draw into an array, which may be a view such as ``pictures[3].transpose(1, 2, 0)``.

        Args:
            picture (array): ``uint8`` of shape ``[height, width, 3]``.
            data (mujoco.MjData): see :meth:`render`.
        """
        mujoco = require("mujoco", "mujoco")
        if self._opened is None:
            with _OPENING:
                self._opened = self._open()
        gl, context, scene, _ = self._opened
        # Another renderer may have drawn in the meantime.
        gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        option, camera = mujoco.MjvOption(), self._mujoco_camera()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self.model, data, option, None, camera, everything, scene)
        window = mujoco.MjrRect(0, 0, self.width, self.height)
        mujoco.mjr_render(window, scene, context)
        mujoco.mjr_readPixels(self._raw, None, window, context)
        # OpenGL's first row is the bottom one.
        picture[:] = self._raw[::-1]

    def close(self) -> None:
        """Free the OpenGL context, if there is one. Drawing again opens a new one."""
        if self._opened is not None:
            free = self._opened[-1]
            free()
            atexit.unregister(free)
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        # A context cannot leave its process: the copy opens its own.
        return {**self.__dict__, "_opened": None}

    def _open(self) -> tuple[Any, mujoco.MjrContext, mujoco.MjvScene, weakref.finalize]:
        mujoco = require("mujoco", "mujoco")
        gl = _open_gl(self.width, self.height, self.backend)
        gl.make_current()
        # A context reads these when it is created.
        model = copy.copy(self.model)
        model.vis.global_.offwidth, model.vis.global_.offheight = self.width, self.height
        if self.quality == "fast":
            detail = model.vis.quality
            detail.offsamples = detail.shadowsize = 0
            # Facets that are smaller than a pixel take time and show nothing.
            facets = min(max(min(self.width, self.height) // 32, 1), 2)
            detail.numslices, detail.numstacks, detail.numquads = 6 * facets, 4 * facets, 1
        context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        scene = mujoco.MjvScene(self.model, maxgeom=_MAX_GEOMS)
        if self.quality == "fast":
            for effect in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                scene.flags[effect] = 0
        free = weakref.finalize(self, _free, gl, context, os.getpid())
        # Contexts must go before the backend's own exit handler, which `_open_gl` may just
        # have registered: the handler registered last runs first.
        free.atexit = False
        atexit.register(free)
        return gl, context, scene, free

    def _mujoco_camera(self) -> mujoco.MjvCamera:
        mujoco = require("mujoco", "mujoco")
        camera = mujoco.MjvCamera()
        if isinstance(self.camera, FreeCamera):
            camera.type = mujoco.mjtCamera.mjCAMERA_FREE
            for name, value in asdict(self.camera).items():
                setattr(camera, name, value)
        else:
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = self.camera
        return camera


def _zoomed(model: mujoco.MjModel, zoom: float) -> mujoco.MjModel:
    """The model with narrower fields of view."""
    model = copy.copy(model)
    view = model.vis.global_
    for camera in range(model.ncam):
        model.cam_fovy[camera] = _narrowed(model.cam_fovy[camera], zoom)
    view.fovy = _narrowed(view.fovy, zoom)
    return model


def _narrowed(degrees: float, zoom: float) -> float:
    return 2 * math.degrees(math.atan(math.tan(math.radians(degrees) / 2) / zoom))


def _free(gl: Any, context: mujoco.MjrContext, process: int) -> None:
    # A process that was forked drops its copies of other threads' renderers: they are not its own.
    if os.getpid() != process:
        return
    gl.make_current()
    context.free()
    gl.free()


@functools.cache
def rendering_available() -> bool:
    """Whether MuJoCo is installed and can draw on this machine.

    Returns:
        ``True`` if a first picture would be drawn. Asked once per process.

    Examples:
        >>> rendering_available() in (True, False)
        True
    """
    try:
        mujoco = require("mujoco", "mujoco")
        model = mujoco.MjModel.from_xml_string("<mujoco/>")
        renderer = Renderer(model, 1, 1, FreeCamera(1.0, (0.0, 0.0, 0.0), 0.0, 0.0))
        renderer.render(mujoco.MjData(model))
    except (ImportError, RuntimeError):
        return False
    renderer.close()
    return True


def following_camera(model: mujoco.MjModel) -> int | FreeCamera:
    """The first camera that follows a body, else the first, else one that sees all."""
    modes = require("mujoco", "mujoco").mjtCamLight
    following = np.isin(model.cam_mode, [modes.mjCAMLIGHT_TRACK, modes.mjCAMLIGHT_TRACKCOM])
    if model.ncam:
        return int(following.argmax())
    view, center = model.vis.global_, tuple(model.stat.center)
    return FreeCamera(1.5 * model.stat.extent, center, view.azimuth, view.elevation)


def _open_gl(width: int, height: int, backend: GLBackend | None) -> Any:
    """Create an OpenGL context with the asked backend, or the first that works."""
    os.environ.setdefault("LP_NUM_THREADS", "0")
    requested = backend or os.environ.get("MUJOCO_GL", "").lower()
    names = (requested,) if requested else _CANDIDATES
    failures = []
    for name in names:
        try:
            return open_gl_context(_gl_context_class(name), width, height)
        # PyOpenGL, GLFW and ctypes each have errors of their own.
        except Exception as err:
            failure = f"{type(err).__name__}: {err}".splitlines()[0]
            failures.append(f"  {name} ({_REMEDIES.get(name)}): {failure}")
    raise RuntimeError(
        "MuJoCo cannot draw here. None of these OpenGL backends works:\n"
        + "\n".join(failures)
        + "\nChoose one by the environment variable MUJOCO_GL, set before Python starts."
    )


def _gl_context_class(backend: str) -> Any:
    """MuJoCo's context class of a backend.

    Importing it binds PyOpenGL to that backend and loads its libraries for the whole
    process, after which no other can follow: what cannot work must be found out before.
    """
    if backend == "egl" and not _egl_has_device():
        raise RuntimeError("libEGL lists no device")
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if backend == "glfw" and sys.platform == "linux" and not has_display:
        raise RuntimeError("there is no display")
    return importlib.import_module(f"mujoco.{backend}").GLContext


def _egl_has_device() -> bool:
    library = ctypes.CDLL("libEGL.so.1")
    library.eglGetProcAddress.restype = ctypes.c_void_p
    address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(address)
    count = ctypes.c_int()
    return bool(query(0, None, ctypes.byref(count))) and count.value > 0
