"""Configs of skill priors and of storages."""

from __future__ import annotations

from torchrl.trainers.algorithms.configs.data import StorageConfig

from torchrl_metra import FrameStackStorage, OneHot, StandardNormal, UnitSphere
from torchrl_metra.trainers.configs.common import PlainConfig, configures

__all__ = ["FrameStackStorageConfig", "OneHotConfig", "StandardNormalConfig", "UnitSphereConfig"]


@configures(UnitSphere, group="skill_prior", name="unit_sphere")
class UnitSphereConfig(PlainConfig):
    """Fields of :class:`~torchrl_metra.UnitSphere`."""


@configures(StandardNormal, group="skill_prior", name="standard_normal")
class StandardNormalConfig(PlainConfig):
    """Fields of :class:`~torchrl_metra.StandardNormal`."""


@configures(OneHot, group="skill_prior", name="one_hot")
class OneHotConfig(PlainConfig):
    """Fields of :class:`~torchrl_metra.OneHot`."""


@configures(FrameStackStorage, group="storage", name="frame_stack")
class FrameStackStorageConfig(StorageConfig):
    """Fields of :class:`~torchrl_metra.FrameStackStorage`."""
