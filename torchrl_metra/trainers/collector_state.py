"""How collection goes on after a break."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDict
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import TransformedEnv

from torchrl_metra._private import collector_progress, episodes_under_way
from torchrl_metra._transforms import base_of


class CollectorState:
    """What a collector needs to go on where it stopped, as a component of a checkpoint.

    Episodes go on where the environment is stepped in this process and says that its
    ``state_dict()`` holds all of an episode's state (``is_resumable = True``, as
    :class:`~torchrl_metra.PointEnv` does). Simulators, and environments in other processes,
    start new episodes, with other seeds than at the start of the run and at each earlier resume;
    those that were under way are cut there.

    Args:
        collector (BaseCollector): any collector.
        seed (int, optional): seed of the run.

    Examples:
        >>> from torchrl.collectors import Collector
        >>> from torchrl_metra import PointEnv
        >>> make = lambda: Collector(PointEnv(2, max_steps=9), frames_per_batch=10, total_frames=20)
        >>> source, target = make(), make()
        >>> batch = next(iter(source))
        >>> CollectorState(target).load_state_dict(CollectorState(source).state_dict())
        >>> batch = next(iter(target))
        >>> batch["next", "done"].squeeze(-1).int()
        tensor([[0, 0, 0, 1, 0],
                [0, 0, 0, 1, 0]], dtype=torch.int32)
    """

    def __init__(self, collector: BaseCollector, seed: int | None = None) -> None:
        self.collector = collector
        self.seed = seed
        self._frames_before_fault: int | None = None
        self._num_resumes = 0
        # Asked of the class: TorchRL's batched environments would ask each of their workers.
        env = base_of(collector.env) if isinstance(collector, Collector) else None
        self._is_resumable = getattr(type(env), "is_resumable", False)

    def discard_episodes(self, frames: int) -> None:
        """After a fault: the episodes under way are lost, and so is what came after ``frames``.

        Args:
            frames (int): number of transitions that were collected before the fault.
        """
        self._frames_before_fault = frames

    def state_dict(self) -> dict[str, Any]:
        if not isinstance(self.collector, Collector):
            return {"resumes": self._num_resumes}
        state: dict[str, Any] = collector_progress(self.collector)
        if self._frames_before_fault is not None:
            state["frames"] = self._frames_before_fault
        elif self._is_resumable:
            env = self.collector.env
            state["carrier"] = episodes_under_way(self.collector).to_dict()
            state["transform"] = env.state_dict() if isinstance(env, TransformedEnv) else {}
            state["env"] = base_of(env).state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        collector = self.collector
        frames, resumes = state_dict.get("frames", 0), state_dict.get("resumes", 0)
        self._num_resumes = resumes + 1
        if isinstance(collector, Collector):
            progress = {"frames": frames, "iter": state_dict["iter"]}
            collector.load_state_dict(progress, strict=False)
        if "carrier" in state_dict and self._is_resumable:
            env, carrier = collector.env, episodes_under_way(collector)
            saved = TensorDict.from_dict(state_dict["carrier"], batch_size=carrier.batch_size)

            def place(key: NestedKey, value: Tensor) -> Tensor:
                # A checkpoint lies on the CPU, and parts of a carrier are where they are needed.
                own = carrier.get(key, None)
                return value.to(env.device if own is None else own.device)

            carrier.update(saved.named_apply(place, nested_keys=True))
            if isinstance(env, TransformedEnv):
                env.load_state_dict(state_dict["transform"])
            base_of(env).load_state_dict(state_dict["env"])
            return
        if self.seed is not None:
            # Workers count their frames elsewhere: there, the number of resumes tells them apart.
            collector.set_seed(self.seed + 1 + frames + resumes)
        if isinstance(collector, Collector):
            collector.reset()
