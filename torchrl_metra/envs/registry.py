"""The environments that have a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, Transform

from torchrl_metra._checks import check_choice, unknown

Position = Sequence[int] | Callable[[TensorDictBase], Tensor] | str


@dataclass(frozen=True)
class EnvEntry:
    """What is known about an environment.

    Attributes:
        name (str): name of the environment.
        make (callable or str): builds it, see :func:`register_env`.
        summary (str, optional): what it is, in one line.
        position (optional): where ``"position"`` is, see ``make_env``. ``None`` (default) for
            an environment that has this entry itself, or none.
        observation_norm (mapping, optional): ``"loc"`` and ``"scale"``, mean and standard
            deviation of each entry of the observation. ``False``: observations stay as they
            are. Defaults to ``None``: measured when the environment is built.
        observes (str, optional): ``"state"`` (default), or ``"pixels"`` for a task that is
            observed by pictures only.
        max_steps (int, optional): length of an episode, if it is known.
        terminates (bool, optional): ``False`` where episodes end by truncation only.
        goals (callable, optional): builds goals, ``goals(num_goals, extent=, seed=, pixels=)``,
            as :func:`~torchrl_metra.sample_goals` returns them; ``pixels`` is ``None`` where
            the state is observed. Defaults to states after a reset, moved to another position.
        goal_extent (float, optional): how far goals lie from the origin along each axis, in
            units of the position.
        transform (callable, optional): builds a transform that is appended last, such as one
            that makes a task of the environment.
        make_pool (callable, optional): builds a batch of the same environment on MuJoCo's
            threads, see :class:`~torchrl_metra.envs.MuJoCoPoolEnv`, given ``num_envs`` and what
            ``make`` is given.
        make_envpool (callable, optional): builds a batch of the same environment in EnvPool,
            given ``num_envs`` and what ``make`` is given.
    """

    name: str
    make: Callable[..., Any] | str
    summary: str = ""
    position: Position | None = None
    observation_norm: Mapping[str, Any] | Literal[False] | None = None
    observes: Literal["state", "pixels"] = "state"
    max_steps: int | None = None
    terminates: bool = True
    goals: Callable[..., TensorDictBase] | None = None
    goal_extent: float | None = None
    transform: Callable[[], Transform] | None = None
    make_pool: Callable[..., EnvBase] | None = None
    make_envpool: Callable[..., EnvBase] | None = None

    def __post_init__(self) -> None:
        check_choice("observes", self.observes, ("state", "pixels"))

    @property
    def has_goals(self) -> bool:
        """Whether :func:`~torchrl_metra.sample_goals` needs no ``extent``."""
        return self.goals is not None or self.goal_extent is not None

    def on_top_of(self, base: EnvEntry) -> EnvEntry:
        """The entry of another environment, but for what this one says."""
        # The class has the defaults as its attributes.
        said = {k: v for k, v in vars(self).items() if v != getattr(EnvEntry, k, MISSING)}
        return replace(base, **said | {"make": base.make})


_ENTRIES: dict[str, EnvEntry] = {}


def register_env(
    name: str,
    make: Callable[..., Any] | str,
    *,
    summary: str,
    replace: bool = False,
    **known: Any,
) -> EnvEntry:
    """Give an environment a name, by which :func:`~torchrl_metra.make_env` builds it.

    The environments of the paper are registered by this function too. Nothing is built or
    imported here.

    Args:
        name (str): name of the environment.
        make (callable or str): builds one environment, a TorchRL
            :class:`~torchrl.envs.EnvBase` or a ``gymnasium.Env``. Of ``num_envs``, ``device``,
            ``pixels``, ``max_steps`` and ``terminate`` it is given those that are among its
            parameters, and besides them ``options``; with a parameter ``num_envs`` it builds
            the whole batch. Or what ``make_env`` takes: the name of another environment,
            ``"gym:Walker2d-v5"``, ``"package.module:function"``. Then this entry says only
            what is different.

    Keyword Args:
        summary (str): what it is, in one line.
        replace (bool, optional): whether it may replace an environment of that name.
        **known: any other attribute of :class:`EnvEntry`.

    Returns:
        The entry.

    Raises:
        ValueError: if the name is taken, or has a colon.

    Examples:
        >>> from torchrl_metra import PointEnv, make_env
        >>> entry = register_env(
        ...     "short_point", PointEnv, summary="A point with 10 steps.", max_steps=10
        ... )
        >>> make_env("short_point", 3, normalize=False).rollout(100).shape
        torch.Size([3, 10])
    """
    if ":" in name:
        raise ValueError(f"an environment's name has no colon, got {name!r}.")
    entry = EnvEntry(name, make, summary, **known)
    if isinstance(make, str) and ":" not in make:
        entry = entry.on_top_of(find_env(make))
    if name in _ENTRIES and not replace:
        raise ValueError(
            f"there is an environment {name!r} already: {_ENTRIES[name].summary} Choose another "
            "name, or say replace=True."
        )
    _ENTRIES[name] = entry
    return entry


def find_env(name: str) -> EnvEntry:
    """The entry of a registered environment.

    Raises:
        ValueError: if there is none of this name; names those that there are.

    Examples:
        >>> find_env("half_cheetah").goal_extent
        100.0
    """
    if name in _ENTRIES:
        return _ENTRIES[name]
    raise ValueError(
        f"{unknown('environment', name, _ENTRIES)} One that is not registered is named by its "
        "source, such as 'gym:Walker2d-v5', 'dm_control:walker-run' or 'package.module:function'."
    )


def registered_envs() -> Mapping[str, EnvEntry]:
    """All registered environments by their names.

    Examples:
        >>> registered_envs()["ant"].summary
        "gymnasium's Ant, observed by coordinates and velocities."
    """
    return MappingProxyType(_ENTRIES)
