"""Which of the collected transitions are some."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

# Where TorchRL says which entries of a batch are transitions, and not padding.
MASK_KEY = ("collector", "mask")


def drop_masked(batch: TensorDictBase) -> TensorDictBase:
    """A batch without what its mask leaves out, such as the padding of ``split_trajs=True``.

    Args:
        batch (TensorDictBase): collected transitions.

    Returns:
        The same batch if it has no mask, else a flat one.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> drop_masked(TensorDict({"collector": {"mask": mask}}, [2, 2])).shape
        torch.Size([3])
    """
    mask = batch.get(MASK_KEY, default=None)
    return batch if mask is None else batch[mask]


def unknown_ends(
    batch: TensorDictBase,
    state_keys: Iterable[NestedKey],
    skill_key: NestedKey,
    done_key: NestedKey,
) -> Tensor | None:
    """Which transitions end in a state that nobody has seen.

    Environments that reset themselves show the next episode's first state in the last step of
    an episode. TorchRL takes it out there: from all that was observed, the skill too, with
    ``native_autoreset=True``; from the states alone around vectorized environments of
    gymnasium's interface that do not tell the last one. Floats become NaN, the rest 0.

    Args:
        batch (TensorDictBase): collected transitions, of batch size ``*B``.
        state_keys (iterable of NestedKey): entries of a state.
        skill_key (NestedKey): the entry of skills.
        done_key (NestedKey): the entry of flags that end an episode.

    Returns:
        Flags of shape ``[*B]``, or ``None`` if no episode ended.
    """
    following = batch["next"]
    done = following[done_key].reshape(*batch.batch_size, -1).any(-1)
    if not done.any():
        return None
    unknown = torch.zeros_like(done)
    for keys in (state_keys, [skill_key]):
        values = [following.get(key, default=None) for key in keys]
        values = [value for value in values if value is not None and value.is_floating_point()]
        if values:
            flat = [value.reshape(*batch.batch_size, -1) for value in values]
            unknown |= torch.cat(flat, dim=-1).isnan().all(-1)
    return unknown & done


def refuse_multi_step(batch: TensorDictBase) -> None:
    """Refuse transitions of several steps, as ``MultiStep`` makes them.

    Raises:
        ValueError: if there are some.
    """
    if "steps_to_next_obs" in batch.keys():
        raise ValueError(
            "these transitions span several steps (they have 'steps_to_next_obs'), but skills are "
            "learned from single ones: φ may move by one per step, and rewards are made anew for "
            "each. Take MultiStep out of the collector's postproc, MultiStepTransform out of the "
            "replay buffer."
        )
