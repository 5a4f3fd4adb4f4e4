"""A trained skill policy, which acts and is kept in one file."""

from __future__ import annotations

import os
import warnings
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torchrl.envs import EnvBase, ObservationNorm, ParallelEnv, SerialEnv

import torchrl_metra
from torchrl_metra._checks import check_type
from torchrl_metra._transforms import base_of, transforms_of
from torchrl_metra.data import SkillPrior
from torchrl_metra.modules.goal import GoalReachingPolicy
from torchrl_metra.modules.networks import Architecture, SACNetworks

_FORMAT = "torchrl_metra.SkillPolicy"
_FORMAT_VERSION = 3


class SkillPolicy(TensorDictModuleBase):
    """What remains of a training run: a policy, its latent space and its skills.

    It acts as its ``actor`` does, so that collectors, ``env.rollout`` and
    :func:`~torchrl_metra.evaluation.rollout_skills` take it as it is. Like the actor it expects
    observations as they were in training. An environment of :func:`~torchrl_metra.make_env` with
    ``env_options`` normalizes them already; for another one, see ``observation_norm``.

    Its parameters are those of ``actor`` and ``encoder``. Files are written by :meth:`save`, not
    by ``state_dict``.

    Args:
        actor (TensorDictModuleBase): policy π(a | s, z).
        encoder (nn.Module, optional): φ(s), or ``None`` if the objective has no latent space.
        prior (SkillPrior): distribution of the skills.
        observation_norm (dict, optional): ``"loc"`` and ``"scale"`` of the
            :class:`~torchrl.envs.ObservationNorm` with ``standard_normal=True`` that the
            networks expect to have been applied, or ``None``. Several are given as one.
            The policy does not apply it: the environment does.
        architecture (Architecture, optional): what it takes to build the networks again, if
            :func:`~torchrl_metra.make_sac_networks` or
            :func:`~torchrl_metra.make_pixel_sac_networks` built them.
        env_name (str, optional): where it was trained, for
            :func:`~torchrl_metra.make_env`.
        constraint_norm (str, optional): the norm by which training bounded steps in latent
            space, see :class:`~torchrl_metra.METRALoss`, or ``None`` if it was not trained with
            METRA's temporal constraint. Defaults to ``"l2"``.
        env_options (dict, optional): further arguments of ``make_env``, such as ``max_steps``, with
            the constants of ``normalize``.
        pixels (dict, optional): arguments of :class:`~torchrl_metra.PixelOptions`: how the
            pictures look that it has learned from. Defaults to ``None``: there are none.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from torchrl_metra import (
        ...     SkillPolicy, SkillPrimer, UnitSphere, make_env, make_sac_networks
        ... )
        >>> env, prior = make_env("point", num_envs=4), UnitSphere(2)
        >>> networks = make_sac_networks(2, env.action_spec, prior, num_cells=[32])
        >>> with TemporaryDirectory() as folder:
        ...     SkillPolicy.from_networks(networks, prior, env).save(folder + "/skills.pt")
        ...     policy = SkillPolicy.load(folder + "/skills.pt")
        >>> policy.prior
        UnitSphere(2)
        >>> env.append_transform(SkillPrimer(policy.prior)).rollout(100, policy).shape
        torch.Size([4, 100])
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        encoder: nn.Module | None,
        prior: SkillPrior,
        observation_norm: dict[str, Tensor] | None = None,
        architecture: Architecture | None = None,
        env_name: str | None = None,
        constraint_norm: Literal["l2", "rms"] | None = "l2",
        env_options: dict[str, Any] | None = None,
        pixels: dict[str, Any] | None = None,
    ) -> None:
        check_type("prior", prior, SkillPrior, "a SkillPrior such as UnitSphere(2)")
        super().__init__()
        self.actor = actor
        self.encoder = encoder
        self.prior = prior
        self.observation_norm = observation_norm
        self.architecture = architecture
        self.env_name = env_name
        self.constraint_norm = constraint_norm
        self.env_options = env_options
        self.pixels = pixels
        self.in_keys = actor.in_keys
        self.out_keys = actor.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``"action"``, and whatever else the actor writes."""
        return self.actor(tensordict)

    @classmethod
    def from_networks(
        cls, networks: SACNetworks, prior: SkillPrior, env: EnvBase | None = None, **options: Any
    ) -> SkillPolicy:
        """Collect the parts.

        Args:
            networks (SACNetworks): policy, encoder and their architecture.
            prior (SkillPrior): distribution of the skills.
            env (EnvBase, optional): its transforms say how observations are normalized.
            **options: further arguments of the class, such as ``env_name`` and
                ``constraint_norm``.
        """
        if env is not None:
            options["observation_norm"] = read_observation_norm(env)
        actor, encoder, architecture = networks.policy, networks.encoder, networks.architecture
        return cls(actor, encoder, prior, architecture=architecture, **options)

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
                "this policy has no encoder, hence no latent space in which a skill could point to "
                "a goal. Train with METRA, or with another objective that has an encoder."
            )
        return GoalReachingPolicy(self.actor, self.encoder, self.prior, adaptive=adaptive)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to one file; an interrupted write leaves no partial file.

        Layers with parametrizations, such as the spectral normalization of
        :class:`~torchrl_metra.LSDLoss`, are written as the plain weights that they stand for
        in evaluation mode. The networks themselves are left as they are. Functions among
        ``env_options``, such as one that gives the position, are left out.

        Args:
            path (path): file to write; its folder is created.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        packages = ("torchrl", "tensordict", "torch")
        options = self.env_options
        if options is not None:
            # A file executes nothing, so it can hold no functions.
            options = {name: value for name, value in options.items() if not callable(value)}
        content = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "versions": {
                # Read from the code: it may run without having been installed.
                "torchrl-metra": torchrl_metra.__version__,
                **{name: version(name) for name in packages},
            },
            "prior": self.prior.to_config(),
            "architecture": None if self.architecture is None else self.architecture.to_config(),
            "observation_norm": self.observation_norm,
            "env_name": self.env_name,
            "env_options": options,
            "pixels": self.pixels,
            "constraint_norm": self.constraint_norm,
            "actor": _plain_weights(self.actor),
            "encoder": None if self.encoder is None else _plain_weights(self.encoder),
        }
        temporary = path.with_name(path.name + ".tmp")
        torch.save(content, temporary)
        temporary.replace(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        actor: TensorDictModuleBase | None = None,
        encoder: nn.Module | None = None,
        map_location: torch.device | str = "cpu",
    ) -> SkillPolicy:
        """Read a file written by :meth:`save`. Executes no code from the file.

        Args:
            path (path): file to read.

        Keyword Args:
            actor (TensorDictModuleBase, optional): policy to load the weights into, without
                parametrizations; needed for networks that this package did not build.
            encoder (nn.Module, optional): encoder to load the weights into, likewise, if the
                file has one.
            map_location (torch.device, optional): device of the weights.

        Raises:
            ValueError: if the file is of another format or of a newer version, or if it needs
                ``actor`` and ``encoder``.
        """
        content = torch.load(path, map_location=map_location, weights_only=True)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} is not a skill policy file, as SkillPolicy.save writes it.")
        if content["format_version"] > _FORMAT_VERSION:
            found, writer = content["format_version"], content["versions"]["torchrl-metra"]
            raise ValueError(f"{path} has version {found}. Upgrade to torchrl-metra {writer}.")
        prior = SkillPrior.from_config(content["prior"])
        has_encoder = content["encoder"] is not None
        architecture = None
        if content["architecture"] is not None:
            architecture = Architecture(**content["architecture"])
            networks = architecture.build(prior).to(map_location)
            actor = networks.policy if actor is None else actor
            encoder = networks.encoder if encoder is None and has_encoder else encoder
        elif actor is None or (encoder is None and has_encoder):
            names = "`actor` and `encoder`" if has_encoder else "`actor`"
            raise ValueError(
                f"{path} holds networks that were not built by this package: build them "
                f"yourself and pass them as {names}."
            )
        actor.load_state_dict(content["actor"])
        if encoder is not None:
            encoder.load_state_dict(content["encoder"])
        return cls(
            actor,
            encoder,
            prior,
            observation_norm=content["observation_norm"],
            architecture=architecture,
            env_name=content["env_name"],
            constraint_norm=content["constraint_norm"],
            env_options=content.get("env_options"),  # not in files of version 0.1
            pixels=content["pixels"] if "pixels" in content else _usual_pixels(architecture),
        )


def _usual_pixels(architecture: Architecture | None) -> dict[str, Any] | None:
    """How pictures look of which only the shape is known."""
    shape = getattr(architecture, "pixel_shape", None)
    return shape and {"resolution": shape[1], "frames": shape[0] // 3}


def _plain_weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's ``state_dict``, as if its layers had no parametrizations."""
    weights = {
        name: value
        for name, value in module.state_dict().items()
        if "parametrizations" not in name.split(".")
    }
    for path, layer in module.named_modules(remove_duplicate=False):
        if is_parametrized(layer):
            # Of a copy: in training mode, spectral normalization goes on with every call. Not
            # remove_parametrizations on a copy of the layer: it shares the layer's class, and
            # both would lose their weight.
            plain = deepcopy(layer).eval()
            prefix = f"{path}." if path else ""
            weights |= {prefix + name: getattr(plain, name) for name in layer.parametrizations}
    return {name: value.detach().cpu() for name, value in weights.items()}


def read_observation_norm(env: EnvBase) -> dict[str, Tensor] | None:
    """The normalization of ``"observation"`` by all of the environment's transforms together."""
    base = base_of(env)
    if isinstance(base, SerialEnv | ParallelEnv) and "ObservationNorm(" in repr(base):
        warnings.warn(
            "the environment has an ObservationNorm inside of its workers, which cannot be read. "
            "Put it around the environments, TransformedEnv(SerialEnv(...), ObservationNorm(...)), "
            "or set policy.observation_norm = {'loc': ..., 'scale': ...}.",
            stacklevel=3,
        )
    norms = [
        norm
        for norm in transforms_of(env)
        if isinstance(norm, ObservationNorm)
        and ("observation", "observation") in zip(norm.in_keys, norm.out_keys, strict=True)
    ]
    if not norms:
        return None
    loc, scale = torch.zeros(()), torch.ones(())
    for norm in norms:
        if norm.standard_normal:
            next_loc, next_scale = norm.loc, norm.scale
        else:
            # x · scale + loc, TorchRL's default, as (x - next_loc) / next_scale.
            next_loc, next_scale = -norm.loc / norm.scale, 1 / norm.scale
        # ((x - loc) / scale - next_loc) / next_scale
        loc, scale = loc + scale * next_loc, scale * next_scale
    return {"loc": loc, "scale": scale}
