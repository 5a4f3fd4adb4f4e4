"""The only room where undocumented parts of dependencies are touched.

A new release of a dependency may break what stands here, and nothing else. Each function names
the release in which its touch was read, and has a test of the same name in
``tests/test_private.py``. Nothing is touched when the package is imported: what could be missing
is looked up by the function that needs it. ``docs/upstream.md`` says what would make them
unnecessary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl.record.loggers import CSVLogger
    from torchrl.trainers import Trainer

# ---- torchrl: losses


# ---- torchrl: distributions


# ---- torchrl: trainers


def reset_counters(trainer: Trainer) -> None:
    """TorchRL 0.14.1: ``Trainer._optim_count``, ``_last_save``, ``_last_log``.

    TorchRL keeps counters on the class, where an earlier trainer has left its own. This gives a
    trainer counters of its own, all at zero.
    """
    trainer.collected_frames = trainer._optim_count = trainer._last_save = 0
    trainer._last_log = {}


# ---- torchrl: checkpoints


# ---- torchrl: collectors


# ---- torchrl: storages and loggers


def forget_scalars(logger: CSVLogger) -> None:
    """TorchRL 0.14.1: ``CSVExperiment.scalars``, a list of all that was ever logged."""
    logger.experiment.scalars.clear()


# ---- torchrl: environments


# ---- torch


# ---- mujoco and dm_control


# ---- hydra


def refused_name(error: BaseException) -> tuple[str, str, list[str]] | None:
    """Hydra 1.3.8: what kind of name was refused, the name, and the names that there are.

    ``MissingConfigException.missing_cfg_file`` and ``options``; and omegaconf's error for a key is
    the cause or the context of Hydra's, which is the context of the ``SystemExit`` that
    ``@hydra.main`` raises.
    """
    from hydra.errors import ConfigCompositionException, MissingConfigException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    refused: Any = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(refused, MissingConfigException) and refused.options:
        group, _, choice = str(refused.missing_cfg_file).rpartition("/")
        return "choice", f"{group}={choice}", [f"{group}={name}" for name in refused.options]
    if isinstance(refused, ConfigCompositionException):
        refused = refused.__cause__ or refused.__context__
    if isinstance(refused, ConfigAttributeError | ConfigKeyError) and refused.parent_node:
        key = str(refused.full_key)
        section = key.removesuffix(str(refused.key))
        names = [name for name in refused.parent_node if not str(name).startswith("_")]
        return "setting", key, [f"{section}{name}" for name in names]
    return None


# ---- the standard library


def start_resource_tracker() -> None:
    """Python 3.11: ``multiprocessing.resource_tracker.ensure_running``."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
