"""Whole episodes as sequences of states."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeAlias

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_metra._checks import call_network, check_type, read_tensors
from torchrl_metra.modules.encoder import as_encoder, latent_key

__all__ = ["Projection", "encode_trajectories", "episode_lengths", "positions", "trajectories"]

# From states, a TensorDict of batch size [*B], to coordinates of shape [*B, k].
Projection: TypeAlias = Callable[[TensorDictBase], Tensor]


def trajectories(rollouts: TensorDictBase, read: Projection) -> Tensor:
    """What ``read`` finds in every state of the episodes, the first and the last included.

    Episodes are read one at a time: those of pictures are large.

    Args:
        rollouts (TensorDictBase): transitions of batch size ``[M, T]``, as
            :func:`~torchrl_metra.evaluation.rollout_skills` returns them. Episodes that ended
            before ``T`` steps repeat their last transition.
        read (Callable): maps states, a TensorDict of batch size ``*B``, to a tensor of
            shape ``[*B, ...]``.

    Returns:
        A tensor of shape ``[M, T + 1, ...]``; episodes that ended early stay at their
        last state.

    Raises:
        TypeError: if ``rollouts`` is no TensorDict, or ``read`` no function.
        ValueError: if their batch size is not ``[M, T]``, or if they have no ``"next"``.

    Examples:
        >>> from torchrl_metra import make_env
        >>> rollouts = make_env("point", num_envs=4).rollout(10)
        >>> trajectories(rollouts, lambda state: state["position"]).shape
        torch.Size([4, 11, 2])
    """
    check_episodes(rollouts)
    check_type("read", read, Callable, "a function of states")
    return torch.cat([_trajectory(episode, read) for episode in rollouts.split(1)])


def _trajectory(episode: TensorDictBase, read: Projection) -> Tensor:
    """The first state and all that follow, of shape ``[1, T + 1, ...]``."""
    first, following = read(episode[:, :1]), read(episode["next"])
    for value in (first, following):
        check_type("what is read of a state", value, Tensor, "a tensor")
    if first.shape[:1] + first.shape[2:] != following.shape[:1] + following.shape[2:]:
        raise ValueError(
            "states must be alike at both ends of a transition, found shapes "
            f"{list(first.shape)} and {list(following.shape)}."
        )
    return torch.cat([first, following], dim=1)


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

    Raises:
        TypeError: if an argument is of the wrong kind.
        KeyError: if the encoder reads what the states do not have.
        ValueError: if rollouts are none, see :func:`trajectories`, or do not fit the encoder.

    Examples:
        >>> from torch import nn
        >>> from torchrl_metra import make_env
        >>> rollouts = make_env("point", num_envs=4).rollout(10)
        >>> encode_trajectories(rollouts, nn.Linear(2, 3)).shape
        torch.Size([4, 11, 3])
    """
    check_episodes(rollouts)
    # A copy: what is measured may be in training, where spectral normalisation goes on with
    # every call.
    encoder = deepcopy(as_encoder(encoder)).eval()
    key = latent_key(encoder)
    parameter = next(encoder.parameters(), None)
    device = rollouts.device if parameter is None else parameter.device

    def encode(states: TensorDictBase) -> Tensor:
        read_tensors(states, encoder.in_keys, "the encoder")
        states = states.select(*encoder.in_keys)
        states = states if device is None else states.to(device)
        return call_network("encoder", encoder, states).get(key).cpu()

    return trajectories(rollouts, encode)


def episode_lengths(rollouts: TensorDictBase) -> Tensor:
    """Number of steps of each episode.

    Args:
        rollouts (TensorDictBase): transitions of batch size ``[M, T]``.

    Returns:
        An integer tensor of shape ``[M]``: steps up to the first ``("next", "done")``,
        ``T`` without one.

    Raises:
        TypeError: if ``rollouts`` is no TensorDict.
        KeyError: if they have no ``("next", "done")``.
        ValueError: if their batch size is not ``[M, T]``.

    Examples:
        >>> from torchrl_metra import make_env
        >>> episode_lengths(make_env("point", num_envs=2).rollout(10))
        tensor([10, 10])
    """
    check_episodes(rollouts)
    (done,) = read_tensors(rollouts, [("next", "done")], "episode_lengths")
    # Whatever comes after batch and time: one flag of an environment, or one for each of several.
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

    Raises:
        TypeError: if ``rollouts`` is no TensorDict, or ``projection`` no function.
        ValueError: if their batch size is not ``[M, T]``.

    Examples:
        >>> from torchrl_metra import make_env
        >>> positions(make_env("point", num_envs=4).rollout(10)).shape
        torch.Size([4, 11, 2])
    """
    check_episodes(rollouts)
    check_type("projection", projection, Callable | None, "a function of states, or None")
    if projection is None:
        if "position" not in rollouts.keys():
            return None
        projection = _read_position
    return trajectories(rollouts, projection).cpu()


def _read_position(states: TensorDictBase) -> Tensor:
    return read_tensors(states, ["position"], "coverage")[0]


def check_episodes(rollouts: TensorDictBase) -> None:
    """Refuse what are no transitions of episodes, of batch size ``[M, T]``.

    Raises:
        TypeError: if it is no TensorDict.
        ValueError: if its batch size is another one, or if there is no ``"next"``.
    """
    check_type("rollouts", rollouts, TensorDictBase, "a TensorDict")
    if rollouts.batch_dims != 2 or not rollouts.batch_size.numel():
        raise ValueError(
            "rollouts must be transitions of batch size [M, T] with at least one step, found "
            f"{list(rollouts.batch_size)}."
        )
    if not isinstance(rollouts.get("next", default=None), TensorDictBase):
        raise ValueError(
            f"rollouts must be transitions, but lack 'next': found {sorted(rollouts.keys())}."
        )
