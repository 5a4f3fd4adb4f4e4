from __future__ import annotations

import multiprocessing
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded
from torchrl.objectives import SACLoss

from torchrl_metra import (
    METRALoss,
    PointEnv,
    SkillPrior,
    UnitSphere,
    make_env,
    make_sac_networks,
)

# Small tensors: a second thread costs more than it brings.
torch.set_num_threads(1)

# Workers are forked from a process that has imported everything: each would take seconds to import.
multiprocessing.set_start_method("forkserver", force=True)
multiprocessing.set_forkserver_preload(["torchrl_metra.recipes"])

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile needs a C++ compiler on CPUs",
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class SelfResettingPoint(PointEnv):
    """Returns the next episode's first state at the end of one, as Isaac Lab and MJLab do."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self._torchrl_native_autoreset = True

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        following = super()._step(tensordict)
        reset = TensorDict({"_reset": following["done"]}, self.batch_size)
        return following.update(self._reset(reset))


def make_losses(
    prior: SkillPrior | None = None, action_spec: Bounded | None = None, **metra: object
) -> SimpleNamespace:
    """METRA and SAC on PointEnv with small networks."""
    prior = UnitSphere(2) if prior is None else prior
    action_spec = make_env("point").action_spec if action_spec is None else action_spec
    networks = make_sac_networks(2, action_spec, prior, num_cells=[16, 16])
    return SimpleNamespace(
        prior=prior,
        networks=networks,
        metra_loss=METRALoss(networks.encoder, prior, **metra),
        sac_loss=SACLoss(
            networks.actor,
            networks.critics,
            loss_function="l2",
            alpha_init=0.01,
            target_entropy=-1.0,
        ),
    )


def make_batch(prior: SkillPrior, *batch_size: int, observation_size: int = 2) -> TensorDict:
    """Random transitions; every second one moves far enough to violate the constraint."""
    observation = torch.randn(*batch_size, observation_size)
    scale = torch.where(torch.arange(batch_size[-1]) % 2 == 0, 0.1, 5.0).unsqueeze(-1)
    flag = torch.zeros(*batch_size, 1, dtype=torch.bool)
    skill = prior.sample(batch_size)
    return TensorDict(
        {
            "observation": observation,
            "action": torch.rand(*batch_size, 2) * 2 - 1,
            "skill": skill,
            "next": {
                "observation": observation + scale * torch.randn(*batch_size, observation_size),
                "skill": skill,
                "reward": torch.zeros(*batch_size, 1),
                "done": flag,
                "terminated": flag.clone(),
            },
        },
        batch_size=list(batch_size),
    )
