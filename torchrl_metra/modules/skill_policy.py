"""A trained skill policy as one file."""

from __future__ import annotations

import os
import pickle
import warnings
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torchrl.envs import EnvBase, ObservationNorm, ParallelEnv, SerialEnv

from torchrl_metra._checks import check_choice, check_type
from torchrl_metra._transforms import base_of, transforms_of
from torchrl_metra.data import SkillPrior
from torchrl_metra.data.skills import check_prior
from torchrl_metra.modules.actor import SkillConditionedActor
from torchrl_metra.modules.goal import GoalReachingPolicy
from torchrl_metra.modules.networks import Architecture, Recipe, SACNetworks
from torchrl_metra.modules.pixels import PixelArchitecture

__all__ = ["SkillPolicy"]

_FORMAT = "torchrl_metra.SkillPolicy"
_FORMAT_VERSION = 3


@dataclass
class SkillPolicy:
    """What remains of a training run: a policy, its latent space and its skills.

    Attributes:
        actor (nn.Module): policy π(a | s, z).
        encoder (nn.Module, optional): φ(s), or ``None`` if the objective has none.
        prior (SkillPrior): distribution of the skills.
        observation_norm (dict, optional): ``"loc"`` and ``"scale"`` of the
            :class:`~torchrl.envs.ObservationNorm` with ``standard_normal=True`` that the
            networks expect to have been applied, or ``None``. Of several, that of all together.
        architecture (Recipe, optional): what it takes to build the networks again, if
            :func:`~torchrl_metra.make_sac_networks` or
            :func:`~torchrl_metra.make_pixel_sac_networks` built them.
        env_name (str, optional): where it was trained, for
            :func:`~torchrl_metra.make_env`.
        env_options (dict, optional): further arguments of ``make_env``, such as ``max_steps``, with
            the constants of ``normalize``.
        constraint_norm (str, optional): the norm by which training bounded steps in latent
            space, see :class:`~torchrl_metra.METRALoss`, or ``None`` if it was not trained with
            METRA's temporal constraint. Defaults to ``"l2"``.

    Raises:
        TypeError: if an attribute is of the wrong kind.
        ValueError: if ``constraint_norm`` is unknown.

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
    encoder: TensorDictModule | nn.Module | None
    prior: SkillPrior
    observation_norm: dict[str, Tensor] | None = None
    architecture: Recipe | None = None
    env_name: str | None = None
    constraint_norm: Literal["l2", "rms"] | None = "l2"
    env_options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_type("actor", self.actor, nn.Module, "an nn.Module")
        check_type("encoder", self.encoder, nn.Module | None, "an nn.Module or None")
        check_prior(self.prior)
        check_type("env_name", self.env_name, str | None, "a string or None")
        check_type("observation_norm", self.observation_norm, dict | None, "a dictionary or None")
        if self.constraint_norm is not None:
            check_choice("constraint_norm", self.constraint_norm, ("l2", "rms"))

    @classmethod
    def from_networks(
        cls,
        networks: SACNetworks,
        prior: SkillPrior,
        env: EnvBase | None = None,
        *,
        env_name: str | None = None,
        constraint_norm: Literal["l2", "rms"] | None = "l2",
    ) -> SkillPolicy:
        """Collect the parts, the normalisation from the environment's transforms.

        Raises:
            TypeError: if an argument is of the wrong kind.
        """
        check_type("networks", networks, SACNetworks, "SACNetworks")
        check_type("env", env, EnvBase | None, "an environment or None")
        return cls(
            actor=networks.policy,
            encoder=networks.encoder,
            prior=prior,
            observation_norm=None if env is None else read_observation_norm(env),
            architecture=networks.architecture,
            env_name=env_name,
            constraint_norm=constraint_norm,
        )

    def reach_goals(self, *, adaptive: bool = True) -> GoalReachingPolicy:
        """The policy that reaches goals with these skills, zero-shot.

        Keyword Args:
            adaptive (bool, optional): choose the skill at every step (default) or once, see
                :class:`~torchrl_metra.GoalReachingPolicy`.

        Raises:
            ValueError: if there is no encoder.
        """
        if self.encoder is None:
            raise ValueError(
                "this policy has no encoder: its objective learned no latent space in which a "
                "skill could point to a goal. Goals need a policy that was trained with METRA or "
                "another objective that has one."
            )
        return GoalReachingPolicy(self.actor, self.encoder, self.prior, adaptive=adaptive)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to one file; an interrupted write leaves no partial file.

        Layers with parametrizations, such as the spectral normalisation of
        :class:`~torchrl_metra.LSDLoss`, are written as the plain weights that they stand for
        in evaluation mode. The networks themselves are left as they are. Functions among
        ``env_options``, such as one that gives the position, are left out.

        Args:
            path (path): file to write; its folder is created.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        architecture = None if self.architecture is None else self.architecture.to_config()
        options = self.env_options
        if options is not None:
            # A file executes nothing, so it can hold no functions.
            options = {name: value for name, value in options.items() if not callable(value)}
        content = {
            "format": _FORMAT,
            "format_version": _format_version(architecture, self.encoder),
            "versions": {
                name: version(name) for name in ("torchrl-metra", "torchrl", "tensordict", "torch")
            },
            "prior": self.prior.to_config(),
            "architecture": architecture,
            "observation_norm": self.observation_norm,
            "env_name": self.env_name,
            "env_options": options,
            "constraint_norm": self.constraint_norm,
            "actor": _weights(self.actor),
            "encoder": None if self.encoder is None else _weights(self.encoder),
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
            actor (nn.Module, optional): policy to load the weights into, without
                parametrizations; needed for networks that this package did not build.
            encoder (nn.Module, optional): encoder to load the weights into, likewise, if the
                file has one.
            map_location (torch.device, optional): device of the weights.

        Raises:
            ValueError: if the file is of another format or of a newer version, if it needs
                ``actor`` and ``encoder`` and they are not given, or if it has no encoder
                and one is given.
        """
        content = _read(path, map_location)
        prior = SkillPrior.from_config(content["prior"])
        has_encoder = content["encoder"] is not None
        if encoder is not None and not has_encoder:
            raise ValueError(
                f"{path} has no weights for the `encoder` that was given: the policy was trained "
                "without one. Leave the argument out."
            )
        architecture = None
        if actor is None or (encoder is None and has_encoder):
            if content["architecture"] is None:
                names = "`actor` and `encoder`" if has_encoder else "`actor`"
                raise ValueError(
                    f"{path} holds networks that were not built by this package: build them "
                    f"yourself and pass them as {names}."
                )
            architecture = _recipe(content["architecture"])
            networks = architecture.build(prior).to(map_location)
            actor = networks.policy if actor is None else actor
            if encoder is None and has_encoder:
                encoder = networks.encoder
        actor.load_state_dict(content["actor"])
        if encoder is not None:
            encoder.load_state_dict(content["encoder"])
        return cls(
            actor,
            encoder,
            prior,
            observation_norm=content["observation_norm"],
            architecture=architecture,
            # Files of before these were written lack them.
            env_name=content.get("env_name"),
            env_options=content.get("env_options"),
            constraint_norm=content.get("constraint_norm", "l2"),
        )


def _format_version(architecture: dict[str, Any] | None, encoder: nn.Module | None) -> int:
    """The lowest version that can hold it, so that older readers read what they can."""
    if architecture and "policy_ignores" in architecture:
        return 3
    return 1 if encoder is not None else 2


def _recipe(config: dict[str, Any]) -> Recipe:
    return PixelArchitecture(**config) if "pixel_shape" in config else Architecture(**config)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's ``state_dict``, as if its layers had no parametrizations."""
    weights = module.state_dict()
    for path, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, ParametrizationList):
            owner, _, name = path.rpartition("parametrizations.")
            weights = {key: weights[key] for key in weights if not key.startswith(f"{path}.")}
            # Of a copy: in training mode, spectral normalisation goes on with every call. Not
            # remove_parametrizations on a copy of the layer: it shares the layer's class, and
            # both would lose their weight.
            weights[owner + name] = deepcopy(part).eval()()
    return {name: value.detach().cpu() for name, value in weights.items()}


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


def read_observation_norm(env: EnvBase) -> dict[str, Tensor] | None:
    """The normalisation of ``"observation"`` by all of the environment's transforms together."""
    base = base_of(env)
    if isinstance(base, SerialEnv | ParallelEnv) and f"{ObservationNorm.__name__}(" in repr(base):
        warnings.warn(
            "the environment has an ObservationNorm inside of its workers, out of sight: it is "
            "missing in observation_norm. Put it around the environments, "
            "TransformedEnv(SerialEnv(...), ObservationNorm(...)), or set "
            "policy.observation_norm = {'loc': ..., 'scale': ...}.",
            stacklevel=3,
        )
    norm: dict[str, Tensor] | None = None
    for transform in transforms_of(env):
        if not isinstance(transform, ObservationNorm):
            continue
        if ("observation", "observation") not in zip(
            transform.in_keys, transform.out_keys, strict=True
        ):
            continue
        loc, scale = transform.loc.clone(), transform.scale.clone()
        if not transform.standard_normal:
            # x · scale + loc, TorchRL's default, as (x - loc') / scale'.
            loc, scale = -loc / scale, 1 / scale
        if norm is not None:
            # ((x - loc) / scale - loc') / scale'
            loc, scale = norm["loc"] + norm["scale"] * loc, norm["scale"] * scale
        norm = {"loc": loc, "scale": scale}
    return norm
