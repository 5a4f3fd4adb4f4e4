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
    EpisodeStorage,
    GenDaLoss,
    METRALoss,
    METRAOptimizationStepper,
    RelabelSkills,
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
    sizes: Sizes,
    device: str = "cpu",
    sac: type[SACLoss] = BatchedSACLoss,
    genda: bool = False,
    **switches: object,
) -> Callable[[], object]:
    """A learner of this package with a filled replay buffer, as one function."""
    prior = UnitSphere(sizes.skill)
    action_spec = Bounded(-1, 1, (sizes.action,))
    networks = make_sac_networks(
        sizes.observation, action_spec, prior, num_cells=[sizes.width] * 2
    ).to(device)
    loss_class = GenDaLoss if genda else METRALoss
    metra_loss = loss_class(networks.encoder, prior, constraint_norm="rms")
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
        relabeling=RelabelSkills(networks.encoder, prior) if genda else None,
        **switches,
    )
    storage = LazyTensorStorage(sizes.replay, device=device)
    replay_buffer = ReplayBuffer(
        storage=EpisodeStorage(storage) if genda else storage, batch_size=sizes.batch
    )
    replay_buffer.extend(make_transitions(sizes, prior))
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=replay_buffer)
    return lambda: stepper.step(trainer, replay_buffer.sample())


def make_transitions(sizes: Sizes, prior: UnitSphere) -> TensorDict:
    """Random episodes that fill the replay buffer, with what METRATrainer stores."""
    size, num_steps = sizes.replay, 200
    observation = torch.randn(size + 1, sizes.observation)
    skill = prior.sample([-(-size // num_steps)]).repeat_interleave(num_steps, dim=0)[:size]
    flag = torch.zeros(size, 1, dtype=torch.bool)
    return TensorDict(
        {
            "observation": observation[:-1],
            "action": torch.rand(size, sizes.action) * 2 - 1,
            "skill": skill,
            "next": {
                "observation": observation[1:],
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


def measure_relabeling(width: int, switch: str) -> list[Result]:
    """GenDa's step against METRA's, with the same switches, on one core."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes, switches = Sizes(width), SWITCHES[switch]
    steps = {
        name: make_step(sizes, genda=name == "genda", **switches) for name in ("genda", "metra")
    }
    seconds = in_turns(steps, ROUNDS)
    genda, metra = ([1e3 * value for value in seconds[name]] for name in ("genda", "metra"))
    return [compare(f"learner/{width}/genda_{switch}/1_thread", "ms", genda, metra)]


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
