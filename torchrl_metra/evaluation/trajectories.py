"""Whole episodes as sequences of states."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from operator import itemgetter
from typing import TypeAlias

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_metra.modules.encoder import as_encoder, latent_key

# From states, a TensorDict of batch size [*B], to coordinates of shape [*B, k].
Projection: TypeAlias = Callable[[TensorDictBase], Tensor]


def trajectories(rollouts: TensorDictBase, read: Projection) -> Tensor:
    """What ``read`` finds in every state of the episodes, the first and the last included.

    Episodes are read one at a time, as episodes of pictures are large.

    Args:
        rollouts (TensorDictBase): transitions of batch size ``[M, T]``, as
            :func:`~torchrl_metra.evaluation.rollout_skills` returns them. Episodes that ended
            before ``T`` steps repeat their last transition.
        read (Callable): maps states, a TensorDict of batch size ``*B``, to a tensor of
            shape ``[*B, ...]``.

    Returns:
        A tensor of shape ``[M, T + 1, ...]``; episodes that ended early stay at their
        last state.

    Examples:
        >>> from torchrl_metra import make_env
        >>> rollouts = make_env("point", num_envs=4).rollout(10)
        >>> trajectories(rollouts, lambda state: state["position"]).shape
        torch.Size([4, 11, 2])
    """
    # Without this, steps of a flat batch would pass for episodes.
    if rollouts.batch_dims != 2:
        raise ValueError(f"expected episodes, [M, T], got batch size {list(rollouts.batch_size)}.")
    return torch.cat(
        [
            torch.cat([read(episode[:, :1]), read(episode["next"])], dim=1)
            for episode in rollouts.split(1)
        ]
    )


@torch.no_grad()
def encode_trajectories(
    rollouts: TensorDictBase, encoder: TensorDictModuleBase | nn.Module
) -> Tensor:
    """φ of every state of the episodes, in evaluation mode.

    Args:
        rollouts (TensorDictBase): transitions of batch size ``[M, T]``.
        encoder (nn.Module or TensorDictModule): φ. A plain ``nn.Module`` reads
            ``"observation"``.

    Returns:
        A tensor of shape ``[M, T + 1, D]`` on the CPU, see :func:`trajectories`; NaN where a
        state is.

    Examples:
        >>> from torch import nn
        >>> from torchrl_metra import make_env
        >>> rollouts = make_env("point", num_envs=4).rollout(10)
        >>> encode_trajectories(rollouts, nn.Linear(2, 3)).shape
        torch.Size([4, 11, 3])
    """
    # A copy: what is measured may be in training, where spectral normalization goes on with
    # every call.
    encoder = deepcopy(as_encoder(encoder)).eval()
    key = latent_key(encoder)
    device = next((weight.device for weight in encoder.parameters()), rollouts.device)

    def encode(states: TensorDictBase) -> Tensor:
        states = states.select(*encoder.in_keys)
        states = states if device is None else states.to(device)
        return encoder(states).get(key).cpu()

    return trajectories(rollouts, encode)


def episode_lengths(rollouts: TensorDictBase) -> Tensor:
    """Number of steps of each episode.

    Args:
        rollouts (TensorDictBase): transitions of batch size ``[M, T]``.

    Returns:
        An integer tensor of shape ``[M]``: steps up to the first ``("next", "done")``,
        ``T`` without one.

    Examples:
        >>> from torchrl_metra import make_env
        >>> episode_lengths(make_env("point", num_envs=2).rollout(10))
        tensor([10, 10])
    """
    done = rollouts["next", "done"]
    # After batch and time comes one flag of an environment, or one for each of several.
    done = done.reshape(*rollouts.batch_size, -1).bool().any(-1).cpu()
    return (done.long().cumsum(1) - done.long() == 0).sum(1)


def positions(rollouts: TensorDictBase, projection: Projection | None = None) -> Tensor | None:
    """Coordinates of every state of the episodes.

    Args:
        rollouts (TensorDictBase): transitions of batch size ``[M, T]``.
        projection (Callable, optional): maps states, a TensorDict of batch size ``*B``, to
            coordinates of shape ``[*B, k]``. By default they are the entry ``"position"``.

    Returns:
        A tensor of shape ``[M, T + 1, k]`` on the CPU, or ``None`` where the states have no
        ``"position"``.

    Examples:
        >>> from torchrl_metra import make_env
        >>> positions(make_env("point", num_envs=4).rollout(10)).shape
        torch.Size([4, 11, 2])
    """
    if projection is None:
        if "position" not in rollouts.keys():
            return None
        projection = itemgetter("position")
    return trajectories(rollouts, projection).cpu()
