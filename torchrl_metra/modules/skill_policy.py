"""A trained skill policy as one file."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs import Compose, EnvBase, ObservationNorm, TransformedEnv

from torchrl_metra.data import SkillPrior
from torchrl_metra.modules.actor import SkillConditionedActor
from torchrl_metra.modules.goal import GoalReachingPolicy
from torchrl_metra.modules.networks import Architecture, Recipe, SACNetworks
from torchrl_metra.modules.pixels import PixelArchitecture

__all__ = ["SkillPolicy"]

_FORMAT = "torchrl_metra.SkillPolicy"
_FORMAT_VERSION = 1


@dataclass
class SkillPolicy:
    """What remains of a training run: a policy, its latent space and its skills.

    Attributes:
        actor (nn.Module): policy π(a | s, z).
        encoder (nn.Module): φ(s).
        prior (SkillPrior): distribution of the skills.
        observation_norm (dict, optional): ``"loc"`` and ``"scale"`` of the
            :class:`~torchrl.envs.ObservationNorm` that the networks expect to have
            been applied, or ``None``.
        architecture (Recipe, optional): what it takes to build the networks again, if
            :func:`~torchrl_metra.make_sac_networks` or
            :func:`~torchrl_metra.make_pixel_sac_networks` built them.
        env_name (str, optional): where it was trained, for
            :func:`~torchrl_metra.make_env`.
        constraint_norm (str): the norm by which training bounded steps in latent space,
            see :class:`~torchrl_metra.METRALoss`.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from torchrl_metra import SkillPolicy, UnitSphere, make_env, make_sac_networks
        >>> env, prior = make_env("point", num_envs=4), UnitSphere(2)
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> with TemporaryDirectory() as folder:
        ...     SkillPolicy.from_networks(networks, prior, env).save(folder + "/skills.pt")
        ...     SkillPolicy.load(folder + "/skills.pt").prior
        UnitSphere(2)
    """

    actor: SkillConditionedActor | nn.Module
    encoder: TensorDictModule | nn.Module
    prior: SkillPrior
    observation_norm: dict[str, Tensor] | None = None
    architecture: Recipe | None = None
    env_name: str | None = None
    constraint_norm: Literal["l2", "rms"] = "l2"

    @classmethod
    def from_networks(
        cls,
        networks: SACNetworks,
        prior: SkillPrior,
        env: EnvBase | None = None,
        *,
        env_name: str | None = None,
        constraint_norm: Literal["l2", "rms"] = "l2",
    ) -> SkillPolicy:
        """Collect the parts, the normalisation from the environment's transforms."""
        return cls(
            actor=networks.policy,
            encoder=networks.encoder,
            prior=prior,
            observation_norm=None if env is None else _read_observation_norm(env),
            architecture=networks.architecture,
            env_name=env_name,
            constraint_norm=constraint_norm,
        )

    def reach_goals(self, *, adaptive: bool = True) -> GoalReachingPolicy:
        """The policy that reaches goals with these skills, zero-shot.

        Keyword Args:
            adaptive (bool, optional): choose the skill at every step (default) or once, see
                :class:`~torchrl_metra.GoalReachingPolicy`.
        """
        return GoalReachingPolicy(self.actor, self.encoder, self.prior, adaptive=adaptive)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to one file; an interrupted write leaves no partial file.

        Args:
            path (path): file to write; its folder is created.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "versions": {
                name: version(name) for name in ("torchrl-metra", "torchrl", "tensordict", "torch")
            },
            "prior": self.prior.to_config(),
            "architecture": self.architecture and self.architecture.to_config(),
            "observation_norm": self.observation_norm,
            "env_name": self.env_name,
            "constraint_norm": self.constraint_norm,
            "actor": _weights(self.actor),
            "encoder": _weights(self.encoder),
        }
        temporary = path.with_name(path.name + ".tmp")
        torch.save(content, temporary)
        temporary.replace(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        actor: nn.Module | None = None,
        encoder: nn.Module | None = None,
        map_location: torch.device | str = "cpu",
    ) -> SkillPolicy:
        """Read a file written by :meth:`save`. Executes no code from the file.

        Args:
            path (path): file to read.

        Keyword Args:
            actor (nn.Module, optional): policy to load the weights into; needed
                for networks that this package did not build.
            encoder (nn.Module, optional): encoder to load the weights into, likewise.
            map_location (torch.device, optional): device of the weights.

        Raises:
            ValueError: if the file is of another format or of a newer version, or
                if it needs ``actor`` and ``encoder`` and they are not given.
        """
        content = _read(path, map_location)
        prior = SkillPrior.from_config(content["prior"])
        architecture = None
        if actor is None or encoder is None:
            if content["architecture"] is None:
                raise ValueError(
                    f"{path} holds networks that were not built by this package: build them "
                    "yourself and pass them as `actor` and `encoder`."
                )
            architecture = _recipe(content["architecture"])
            networks = architecture.build(prior).to(map_location)
            actor = networks.policy if actor is None else actor
            encoder = networks.encoder if encoder is None else encoder
        actor.load_state_dict(content["actor"])
        encoder.load_state_dict(content["encoder"])
        return cls(
            actor,
            encoder,
            prior,
            observation_norm=content["observation_norm"],
            architecture=architecture,
            # Files of before these were written lack them.
            env_name=content.get("env_name"),
            constraint_norm=content.get("constraint_norm", "l2"),
        )


def _recipe(config: dict[str, Any]) -> Recipe:
    return PixelArchitecture(**config) if "pixel_shape" in config else Architecture(**config)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in module.state_dict().items()}


def _read(path: str | os.PathLike[str], map_location: torch.device | str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as err:
        raise ValueError(
            f"{path} is not a skill policy file: torch.load with weights_only=True failed with "
            f"{type(err).__name__}. Expected a file written by SkillPolicy.save."
        ) from err
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != _FORMAT:
        raise ValueError(
            f"{path} is not a skill policy file: expected format {_FORMAT!r}, found {found!r}."
        )
    if content["format_version"] > _FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {content['format_version']}, written by torchrl-metra "
            f"{content['versions']['torchrl-metra']}; this version reads up to {_FORMAT_VERSION}. "
            "Upgrade torchrl-metra."
        )
    return content


def _read_observation_norm(env: EnvBase) -> dict[str, Tensor] | None:
    if not isinstance(env, TransformedEnv):
        return None
    transforms = env.transform if isinstance(env.transform, Compose) else [env.transform]
    for transform in transforms:
        if isinstance(transform, ObservationNorm) and "observation" in transform.in_keys:
            return {"loc": transform.loc.clone(), "scale": transform.scale.clone()}
    return None
