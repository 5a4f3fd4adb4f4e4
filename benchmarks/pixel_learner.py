"""Time of a gradient step from pixels, sampling included, against the authors' code.

Theirs was measured once, beside the bare loop of `bare_loop.py`, on two cores of this kind; here it
is scaled by what the bare loop takes now.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from types import SimpleNamespace

import torch
from bare_loop import BareLoop, Sizes
from end_to_end import BARE_MILLISECONDS_BESIDE_THEM
from measuring import Result, seconds_per_call
from replay import make_episodes
from torchrl.data import Bounded, ReplayBuffer
from torchrl.objectives.utils import SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    FrameStackStorage,
    METRALoss,
    METRAOptimizationStepper,
    UnitSphere,
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
}


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
