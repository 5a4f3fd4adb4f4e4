"""Time of a gradient step from pixels, sampling included.

At the paper's sizes against the authors' code, which was measured once, beside the bare loop of
`bare_loop.py`, on two cores of this kind, and is scaled by what the bare loop takes now; and
against its convolutions alone. That of the preset `laptop` against the bare loop of wide networks.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from bare_loop import BareLoop, Sizes
from end_to_end import BARE_MILLISECONDS_BESIDE_THEM
from measuring import Result, in_turns, seconds_per_call
from replay import make_episodes
from torchrl.data import Bounded, ReplayBuffer
from torchrl.objectives.utils import SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    FrameStackStorage,
    METRALoss,
    METRAOptimizationStepper,
    UnitSphere,
    make_metra,
    make_metra_optimizers,
    make_pixel_sac_networks,
)

# A step of the authors' code on two threads: 64×64 pixels in stacks of three, 12 actions, a 4-D
# skill, width 1024, batch 256.
AUTHORS_MILLISECONDS = 5_300.0
SWITCHES = {
    "fp32": {},
    "bfloat16": {"autocast": torch.bfloat16},
    "best": {"compile": True, "autocast": torch.bfloat16},
    "compiled": {"compile": True},
}
# Pictures that a step at the paper's sizes sends through convolutions: with a backward pass both
# ends of transitions for φ, and a state for each critic and the policy; without one both ends for
# the reward, the next state for the policy and two target critics, and the state for two critics.
TRAINED, READ = (512, 256, 256, 256), (512, 256, 256, 256, 256, 256)


def make_step(
    shared_encoder: bool,
    device: str,
    *,
    width: int = 1024,
    channels: int = 48,
    batch_size: int = 256,
    **switches: object,
) -> Callable[[], object]:
    """Quadruped's learner with its replay memory, as one function."""
    prior = UnitSphere(4)
    networks = make_pixel_sac_networks(
        (9, 64, 64),
        Bounded(-1, 1, (12,)),
        prior,
        num_cells=[width] * 2,
        channels=channels,
        shared_encoder=shared_encoder,
    ).to(device)
    metra_loss = METRALoss(networks.encoder, prior, constraint_norm="rms")
    sac_loss = BatchedSACLoss(
        networks.actor, networks.critics, loss_function="l2", alpha_init=0.01, target_entropy=-6.0
    )
    sac_loss.make_value_estimator(gamma=0.99)
    stepper = METRAOptimizationStepper(
        metra_loss,
        make_metra_optimizers(metra_loss, sac_loss),
        target_net_updater=SoftUpdate(sac_loss, eps=0.995),
        shared_encoder=networks.shared_encoder,
        **switches,
    )
    buffer = ReplayBuffer(storage=FrameStackStorage(1_600, device=device), batch_size=batch_size)
    buffer.extend(make_episodes())
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=buffer)
    return lambda: stepper.step(trainer, buffer.sample())


def measure(shared_encoder: bool, switches: str = "fp32", device: str = "cpu") -> list[Result]:
    """Milliseconds of a step."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    bare = BareLoop(Sizes(width=1024, replay=10_000))
    before = seconds_per_call(bare.step, duration=3.0)
    step = make_step(shared_encoder, device, **SWITCHES[switches])
    for _ in range(3):
        step()
    milliseconds = [1e3 * seconds_per_call(step) for _ in range(3)]
    after = seconds_per_call(bare.step, duration=3.0)
    theirs = AUTHORS_MILLISECONDS * 1e3 * statistics.mean([before, after])
    theirs /= BARE_MILLISECONDS_BESIDE_THEM
    ours = statistics.median(milliseconds)
    encoder = "shared_encoder" if shared_encoder else "own_encoders"
    where = "" if device == "cpu" else "cuda/"
    return [Result(f"pixel_learner/{where}{encoder}/{switches}", "ms", ours, theirs, ours / theirs)]


def make_convolutions() -> Callable[[], None]:
    """The convolutions of a step at the paper's sizes, and nothing else of it."""
    widths = [9, 48, 96, 192, 384]
    weights = [
        (0.02 * torch.randn(wide, narrow, 4, 4))
        .to(memory_format=torch.channels_last)
        .requires_grad_()
        for narrow, wide in itertools.pairwise(widths)
    ]
    pictures = torch.rand(512, 9, 64, 64).to(memory_format=torch.channels_last)

    def convolve(number: int) -> torch.Tensor:
        features = pictures[:number]
        for weight in weights:
            features = F.conv2d(features, weight, stride=2)
        return features

    def run() -> None:
        for number in TRAINED:
            torch.autograd.grad(convolve(number).sum(), weights)
        with torch.no_grad():
            for number in READ:
                convolve(number)

    return run


def measure_convolutions(switches: str) -> list[Result]:
    """Milliseconds of a step at the paper's sizes, and of its convolutions alone."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    step = make_step(shared_encoder=False, device="cpu", **SWITCHES[switches])
    seconds = in_turns({"step": step, "alone": make_convolutions()}, rounds=3, warm_up=3)
    return [_in_milliseconds(f"pixel_learner/paper/{switches}", seconds, "step", "alone")]


def measure_laptop(channels: int) -> list[Result]:
    """Milliseconds of a compiled step of the preset, and of the bare loop of wide networks."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    bare = BareLoop(Sizes(width=1024, replay=10_000))
    trainer = make_metra(
        "quadruped",
        preset="laptop",
        compile=True,
        batch_size=256,
        encoder={"channels": channels},
        buffer_size=4_000,
        total_frames=1_600,
        progress_bar=False,
    )
    trainer.replay_buffer.extend(next(iter(trainer.collector)).reshape(-1))
    trainer.collector.shutdown()
    stepper = trainer.optimization_stepper
    functions = {
        "step": lambda: stepper.step(trainer, trainer.replay_buffer.sample()),
        "bare": bare.step,
    }
    seconds = in_turns(functions, rounds=5)
    return [_in_milliseconds(f"pixel_learner/laptop/{channels}_channels", seconds, "step", "bare")]


def _in_milliseconds(
    name: str, seconds: dict[str, list[float]], ours: str, yardstick: str
) -> Result:
    ratio = statistics.median(a / b for a, b in zip(seconds[ours], seconds[yardstick], strict=True))
    values = [1e3 * statistics.median(seconds[key]) for key in (ours, yardstick)]
    return Result(name, "ms", *values, ratio)
