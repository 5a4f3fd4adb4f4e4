"""Time of a complete METRA gradient step, sampling included, against the bare loop."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from bare_loop import BareLoop, Sizes
from measuring import Result, compare, in_turns
from tensordict import TensorDict
from torchrl.data import Bounded, LazyTensorStorage, ReplayBuffer
from torchrl.objectives import SACLoss
from torchrl.objectives.utils import SoftUpdate

from torchrl_metra import (
    BatchedSACLoss,
    METRALoss,
    METRAOptimizationStepper,
    UnitSphere,
    make_metra_optimizers,
    make_sac_networks,
)

ROUNDS = 5
SWITCHES = {
    "eager": {},
    "bfloat16": {"autocast": torch.bfloat16},
    "compiled": {"compile": True},
    "best": {"compile": True, "autocast": torch.bfloat16},
}
CUDA_SWITCHES = {
    "eager": {},
    "compiled": {"compile": True},
    "cudagraphs": {"cudagraphs": True},
    "best": {"compile": True, "cudagraphs": True, "autocast": torch.bfloat16},
}


def make_step(
    sizes: Sizes, device: str = "cpu", sac: type[SACLoss] = BatchedSACLoss, **switches: object
) -> Callable[[], object]:
    """A learner of this package with a filled replay buffer, as one function."""
    prior = UnitSphere(sizes.skill)
    action_spec = Bounded(-1, 1, (sizes.action,))
    networks = make_sac_networks(
        sizes.observation, action_spec, prior, num_cells=[sizes.width] * 2
    ).to(device)
    metra_loss = METRALoss(networks.encoder, prior, constraint_norm="rms")
    sac_loss = sac(
        networks.actor,
        networks.critics,
        loss_function="l2",
        alpha_init=0.01,
        target_entropy=-sizes.action / 2,
    )
    sac_loss.make_value_estimator(gamma=0.99)
    stepper = METRAOptimizationStepper(
        metra_loss,
        make_metra_optimizers(metra_loss, sac_loss),
        target_net_updater=SoftUpdate(sac_loss, eps=0.995),
        **switches,
    )
    replay_buffer = ReplayBuffer(
        storage=LazyTensorStorage(sizes.replay, device=device), batch_size=sizes.batch
    )
    replay_buffer.extend(make_transitions(sizes, prior))
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=replay_buffer)
    return lambda: stepper.step(trainer, replay_buffer.sample())


def make_transitions(sizes: Sizes, prior: UnitSphere) -> TensorDict:
    """Random transitions, as many as the replay buffer holds, with what METRATrainer stores."""
    size = sizes.replay
    flag = torch.zeros(size, 1, dtype=torch.bool)
    return TensorDict(
        {
            "observation": torch.randn(size, sizes.observation),
            "action": torch.rand(size, sizes.action) * 2 - 1,
            "skill": prior.sample([size]),
            "next": {
                "observation": torch.randn(size, sizes.observation),
                "done": flag,
                "terminated": flag.clone(),
            },
        },
        batch_size=[size],
    )


def measure(width: int, threads: int) -> list[Result]:
    """All switches at one width, on the CPU."""
    torch.set_num_threads(threads)
    if threads == 2:
        return _measure(Sizes(width), "cpu", SWITCHES, f"learner/{width}", "")
    switches = {name: SWITCHES[name] for name in ("eager", "compiled", "best")}
    return _measure(Sizes(width), "cpu", switches, f"learner/{width}", f"/{threads}_thread")


def measure_cuda(width: int) -> list[Result]:
    """All switches at one width, networks and replay buffer on the GPU."""
    return _measure(Sizes(width), "cuda", CUDA_SWITCHES, f"learner/cuda/{width}", "")


def _measure(
    sizes: Sizes, device: str, switches: dict[str, dict], name: str, suffix: str
) -> list[Result]:
    torch.manual_seed(0)
    steps = {key: make_step(sizes, device, **kwargs) for key, kwargs in switches.items()}
    steps["stock_sac_loss"] = make_step(sizes, device, sac=SACLoss)
    seconds = in_turns({"bare": BareLoop(sizes, device).step, **steps}, ROUNDS)
    milliseconds = {key: [1e3 * value for value in values] for key, values in seconds.items()}
    return [
        compare(f"{name}/{key}{suffix}", "ms", milliseconds[key], milliseconds["bare"])
        for key in steps
    ]
