from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from torchrl_metra.envs import FreeCamera, Renderer, rendering_available

mujoco = pytest.importorskip("mujoco")

needs_renderer = pytest.mark.skipif(
    not rendering_available(), reason="no OpenGL backend of MuJoCo works here"
)

# A red ball at y > 0 and a green one at x > 0, seen from above with y upwards.
SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 5"/>
    <geom name="north" type="sphere" size=".5" pos="0 1 0" rgba="1 0 0 1"/>
    <geom name="east" type="sphere" size=".5" pos="1 0 0" rgba="0 1 0 1"/>
    <camera name="above" pos="0 0 5"/>
    <camera name="below" pos="0 0 -5" xyaxes="1 0 0 0 -1 0"/>
  </worldbody>
</mujoco>
"""
# Where a program is started with something to run before it, Python clears the threads that were
# not copied.
FORK = """
import subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
import mujoco
from torchrl_metra.envs import FreeCamera, Renderer

local, model = threading.local(), mujoco.MjModel.from_xml_string("<mujoco/>")

def draw():
    if not hasattr(local, "renderer"):
        local.renderer = Renderer(model, 8, 8, FreeCamera(1.0, (0.0, 0.0, 0.0), 0.0, 0.0))
    local.renderer.render(mujoco.MjData(model))

with ThreadPoolExecutor(1) as thread:
    thread.submit(draw).result()
    subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None, check=True)
    thread.submit(draw).result()
"""
ABOVE = FreeCamera(distance=5.0, lookat=(0.0, 0.0, 0.0), azimuth=90.0, elevation=-90.0)


@pytest.fixture
def model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(SCENE)


@pytest.fixture
def data(model: mujoco.MjModel) -> mujoco.MjData:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return data


def center(picture: np.ndarray, channel: int) -> tuple[float, float]:
    """Row and column, from 0 to 1, of what is bright in one channel and dark in the others."""
    others = [other for other in range(3) if other != channel]
    mask = (picture[..., channel] > 60) & (picture[..., others] < 40).all(-1)
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    return rows.mean() / height, columns.mean() / width


@needs_renderer
class TestRenderer:
    @pytest.mark.parametrize("camera", ["above", 0, ABOVE])
    @pytest.mark.parametrize("quality", ["fast", "full"])
    def test_picture_is_upright(
        self, model: mujoco.MjModel, data: mujoco.MjData, camera: object, quality: str
    ) -> None:
        renderer = Renderer(model, 60, 40, camera, quality=quality)
        picture = renderer.render(data)
        renderer.close()
        assert picture.shape == (40, 60, 3)
        assert picture.dtype == np.uint8
        assert picture.flags["C_CONTIGUOUS"]
        red_row, red_column = center(picture, 0)
        green_row, green_column = center(picture, 1)
        assert red_row < 0.4 < green_row < 0.6
        assert 0.4 < red_column < 0.6 < green_column

    def test_two_renderers_at_once(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        above = Renderer(model, 32, 32, "above")
        below = Renderer(model, 48, 24, "below")
        pictures = [renderer.render(data) for renderer in (above, below, above, below)]
        assert np.array_equal(pictures[0], pictures[2])
        assert np.array_equal(pictures[1], pictures[3])
        assert center(pictures[0], 0)[0] < 0.5 < center(pictures[1], 0)[0]
        above.close()
        assert np.array_equal(below.render(data), pictures[1])
        below.close()

    def test_pictures_are_not_overwritten(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        renderer = Renderer(model, 32, 32, "above")
        first = renderer.render(data)
        kept = first.copy()
        model.geom_rgba[:] = (0.0, 0.0, 1.0, 1.0)
        assert not np.array_equal(renderer.render(data), kept)
        assert np.array_equal(first, kept)
        renderer.close()

    def test_opens_late_closes_and_opens_again(
        self, model: mujoco.MjModel, data: mujoco.MjData
    ) -> None:
        renderer = Renderer(model, 16, 16, "above")
        assert not renderer.is_open
        picture = renderer.render(data)
        assert renderer.is_open
        renderer.close()
        renderer.close()
        assert not renderer.is_open
        assert np.array_equal(renderer.render(data), picture)
        renderer.close()

    def test_an_open_renderer_can_be_sent_elsewhere(
        self, model: mujoco.MjModel, data: mujoco.MjData
    ) -> None:
        renderer = Renderer(model, 16, 16, ABOVE)
        picture = renderer.render(data)
        copy = pickle.loads(pickle.dumps(renderer))
        assert not copy.is_open
        assert np.array_equal(copy.render(data), picture)
        copy.close()
        renderer.close()

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
    def test_a_forked_process_leaves_the_renderers_of_threads_alone(self) -> None:
        process = subprocess.run(
            [sys.executable, "-c", FORK], capture_output=True, text=True, check=True
        )
        assert "Exception ignored" not in process.stderr

    @pytest.mark.parametrize("quality", ["fast", "full"])
    def test_leaves_the_model_as_it_was(
        self, model: mujoco.MjModel, data: mujoco.MjData, quality: str
    ) -> None:
        def settings() -> list[int]:
            size = [model.vis.global_.offwidth, model.vis.global_.offheight]
            detail = model.vis.quality
            return [*size, detail.offsamples, detail.shadowsize, detail.numslices]

        before = settings()
        renderer = Renderer(model, 16, 16, "above", quality=quality)
        renderer.render(data)
        renderer.close()
        assert settings() == before

    def test_silent_at_the_end_of_the_process(self) -> None:
        """One renderer closed, one left open, one in a cycle."""
        script = f"""
import mujoco
from torchrl_metra.envs import Renderer
model = mujoco.MjModel.from_xml_string('''{SCENE}''')
data = mujoco.MjData(model)
renderers = [Renderer(model, 16, 16, "above") for _ in range(3)]
for renderer in renderers:
    renderer.render(data)
renderers[0].close()
renderers[1].myself = renderers[1]
print("drawn")
"""
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        assert "drawn" in result.stdout
        for complaint in ("Traceback", "Exception ignored", "EGL"):
            assert complaint not in result.stderr


class TestErrors:
    @pytest.mark.skipif(sys.platform != "linux", reason="macOS has one backend")
    def test_no_backend_works(
        self, model: mujoco.MjModel, data: mujoco.MjData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(name: str) -> object:
            raise OSError(f"lib{name}.so: cannot open shared object file")

        monkeypatch.delenv("MUJOCO_GL", raising=False)
        monkeypatch.setattr("torchrl_metra.envs.rendering._gl_context_class", broken)
        with pytest.raises(RuntimeError, match=r"(?s)libegl1 libgl1-mesa-dri.*libosmesa6.*glfw"):
            Renderer(model, 8, 8, "above").render(data)
