"""Skill priors: the distributions from which METRA draws its skills."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchrl.data import Bounded, TensorSpec, Unbounded
from torchrl.data import OneHot as OneHotSpec

from torchrl_metra._checks import check_choice, check_integer


class SkillPrior(abc.ABC):
    """Distribution of skills ``z``, with everything that depends on its kind.

    Args:
        dim (int): size ``D`` of a skill vector, which is also the size of the
            latent space of the encoder.
    """

    _registry: ClassVar[dict[str, type[SkillPrior]]] = {}

    def __init__(self, dim: int) -> None:
        check_integer("dim", dim)
        self.dim = dim

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        SkillPrior._registry[cls.__name__] = cls

    @property
    @abc.abstractmethod
    def spec(self) -> TensorSpec:
        """TorchRL spec of one skill, of shape ``[D]`` and dtype ``float32``."""

    @abc.abstractmethod
    def sample(
        self,
        batch_size: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw skills.

        Args:
            batch_size (sequence of int, optional): leading shape of the result.

        Keyword Args:
            generator (torch.Generator, optional): source of randomness. Defaults
                to torch's global generator.
            device (torch.device, optional): device of the result.

        Returns:
            A ``float32`` tensor of shape ``[*batch_size, D]``.
        """

    @abc.abstractmethod
    def grid(self, num_skills: int) -> Tensor:
        """Skills spread evenly over the prior, the same at every call.

        Args:
            num_skills (int): number of skills.

        Returns:
            A ``float32`` tensor of shape ``[num_skills, D]``.
        """

    def evaluation_skills(self, num_skills: int = 48, *, seed: int = 0) -> Tensor:
        """The skills by which coverage is counted: drawn from the prior, always the same.

        Published coverage is that of 48 random skills (Section 5). An even :meth:`grid` spreads
        them further apart and counts more cells, so grids are for pictures.

        Args:
            num_skills (int, optional): number of skills. Defaults to 48.

        Keyword Args:
            seed (int, optional): seed of the draw. Defaults to 0.

        Returns:
            A ``float32`` tensor of shape ``[num_skills, D]``.
        """
        return self.sample([num_skills], generator=torch.Generator().manual_seed(seed))

    def center(self, skill: Tensor) -> Tensor:
        """The form of the skill that enters the reward ``(φ(s') - φ(s))ᵀ z``.

        The identity for continuous skills; see :meth:`OneHot.center`.
        """
        return skill

    def reward(self, step: Tensor, skill: Tensor) -> Tensor:
        """What a step of φ is worth to a skill, ``(φ(s') - φ(s))ᵀ z`` (Equation 7).

        Args:
            step (Tensor): ``φ(s') - φ(s)``, of shape ``[*B, D]``.
            skill (Tensor): of shape ``[*B, D]``.

        Returns:
            The reward, of shape ``[*B]``.
        """
        return (step * self.center(skill)).sum(dim=-1)

    @property
    def has_own_reward(self) -> bool:
        """Whether :meth:`reward` is another one, which is not linear in the step."""
        return type(self).reward is not SkillPrior.reward

    def redirect(self, skill: Tensor, displacement: Tensor) -> Tensor:
        """The skill, turned so that it moves φ along a displacement, both of shape ``[*B, D]``."""
        return self.skill_along(displacement)

    @abc.abstractmethod
    def skill_along(self, displacement: Tensor) -> Tensor:
        """The skill that moves φ along a displacement (Section 4.2).

        With ``displacement = φ(g) - φ(s)`` it is the skill to reach a goal ``g`` from a
        state ``s``.

        Args:
            displacement (Tensor): in latent space, of shape ``[*B, D]``.

        Returns:
            Skills of the same shape; NaN where the displacement is not finite.
        """

    def as_skill(self, vector: Tensor) -> Tensor:
        """The skill that a vector stands for, such as a high-level policy's action, ``[*B, D]``."""
        return self.skill_along(vector)

    def toward(self, displacement: Tensor) -> Tensor:
        """The name of :meth:`skill_along` in version 0.1."""
        return self.skill_along(displacement)

    def validate(self, skill: Tensor) -> Tensor:
        """Return ``skill`` after checking its last dimension.

        Raises:
            ValueError: if the last dimension is not ``D``.
        """
        if skill.shape[-1:] != (self.dim,):
            raise ValueError(
                f"expected skills of shape [..., {self.dim}], got {list(skill.shape)}."
            )
        return skill

    def to_config(self) -> dict[str, Any]:
        """The prior as plain data, for files; see :meth:`from_config`."""
        return {"kind": type(self).__name__, "dim": self.dim}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> SkillPrior:
        """Rebuild a prior from :meth:`to_config`.

        Examples:
            >>> SkillPrior.from_config({"kind": "OneHot", "dim": 16})
            OneHot(16)
        """
        check_choice("skill prior", config["kind"], sorted(SkillPrior._registry))
        return SkillPrior._registry[config["kind"]](config["dim"])

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.dim == other.dim

    def __hash__(self) -> int:
        return hash((type(self), self.dim))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dim})"


class UnitSphere(SkillPrior):
    """Skills uniform on the unit sphere of ``R^D``, METRA's continuous skills (Section 4).

    Args:
        dim (int): dimension ``D`` of the surrounding space.

    Examples:
        >>> prior = UnitSphere(2)
        >>> prior.sample([3]).shape
        torch.Size([3, 2])
        >>> prior.grid(4)[0]
        tensor([1., 0.])
    """

    @property
    def spec(self) -> TensorSpec:
        return Bounded(-1.0, 1.0, shape=(self.dim,), dtype=torch.float32)

    def sample(
        self,
        batch_size: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        normal = StandardNormal(self.dim).sample(batch_size, generator=generator, device=device)
        # Rounding may push a component past 1, out of the spec.
        return torch.nn.functional.normalize(normal, dim=-1).clamp_(-1.0, 1.0)

    def grid(self, num_skills: int) -> Tensor:
        """Evenly spaced directions.

        Equal angles for ``D = 2``, a Fibonacci lattice for ``D = 3``, random
        directions from a fixed seed beyond.
        """
        index = torch.arange(num_skills, dtype=torch.float32)
        if self.dim == 1:
            return 1.0 - 2.0 * (index % 2).unsqueeze(-1)
        if self.dim == 2:
            angle = 2.0 * math.pi * index / num_skills
            return torch.stack([angle.cos(), angle.sin()], dim=-1)
        if self.dim == 3:
            height = 1.0 - (2.0 * index + 1.0) / num_skills
            angle = math.pi * (1.0 + math.sqrt(5.0)) * index
            radius = (1.0 - height.square()).sqrt()
            return torch.stack([radius * angle.cos(), radius * angle.sin(), height], dim=-1)
        return self.evaluation_skills(num_skills)

    def skill_along(self, displacement: Tensor) -> Tensor:
        """The displacement's direction."""
        # By the largest entry first: squares of numbers such as 1e30 are out of range.
        largest = displacement.abs().amax(dim=-1, keepdim=True)
        scaled = displacement / torch.where(largest > 0, largest, 1.0)
        return torch.nn.functional.normalize(scaled, dim=-1).clamp(-1.0, 1.0)


# In latent steps: the distance from a goal at which a UnitBall's skill has half its full length.
_APPROACH = 10.0


class UnitBall(UnitSphere):
    r"""Directions that have a speed: skills in the unit ball of ``R^D``, where zero stands still.

    A robot that only knows how to run cannot stay at a goal. Here a skill of length
    :math:`\ell` asks for steps of :math:`\ell / (1 - \ell)` in latent space. Its reward

    .. math::
        r = (\phi(s') - \phi(s))^\top z - \tfrac12 (1 - \|z\|) \|\phi(s') - \phi(s)\|^2

    is largest for the step :math:`z / (1 - \|z\|)`. At length one it is METRA's, and there is no
    limit but the temporal constraint's. Three quarters of the skills have this length, as all of
    :meth:`grid` and :meth:`evaluation_skills` have; the lengths of the others are uniform.

    The way to a goal is :math:`z = \delta / (\|\delta\| + 10)`, with
    :math:`\delta = \phi(g) - \phi(s)`: full speed from far away, and nearby a tenth of the way in
    each step. That is for latent steps of about one, as the temporal constraint has them.

    Skills with a speed have to learn to brake, so let them change within an episode, by
    ``SkillPrimer(prior, switch=0.005)``. Do not let falls end episodes: for a slow skill, a robot
    that has fallen pays best.

    Args:
        dim (int): dimension ``D`` of the surrounding space.

    Examples:
        >>> prior = UnitBall(2)
        >>> bool((prior.sample([100]).norm(dim=-1) <= 1.0).all())
        True
        >>> prior.skill_along(torch.tensor([[30.0, 0.0], [0.0, 0.0]]))
        tensor([[0.7500, 0.0000],
                [0.0000, 0.0000]])
        >>> prior.reward(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]))
        tensor(0.5000)
    """

    def sample(
        self,
        batch_size: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        direction = super().sample(batch_size, generator=generator, device=device)
        length = 4 * torch.rand(*batch_size, 1, generator=generator, device=device)
        return direction * length.clamp_(max=1.0)

    def evaluation_skills(self, num_skills: int = 48, *, seed: int = 0) -> Tensor:
        return UnitSphere(self.dim).evaluation_skills(num_skills, seed=seed)

    def reward(self, step: Tensor, skill: Tensor) -> Tensor:
        missing = 1.0 - skill.norm(dim=-1).clamp(max=1.0)
        return super().reward(step, skill) - missing * step.square().sum(dim=-1) / 2

    def redirect(self, skill: Tensor, displacement: Tensor) -> Tensor:
        return super().skill_along(displacement) * skill.norm(dim=-1, keepdim=True)

    def as_skill(self, vector: Tensor) -> Tensor:
        is_longer = vector.norm(dim=-1, keepdim=True) > 1
        return torch.where(is_longer, super().skill_along(vector), vector)

    def skill_along(self, displacement: Tensor) -> Tensor:
        """The displacement's direction, slower the nearer: a tenth of the way in each step."""
        length = displacement.norm(dim=-1, keepdim=True)
        speed = torch.where(length.isinf(), 1.0, length / (length + _APPROACH))
        return super().skill_along(displacement) * speed


class StandardNormal(SkillPrior):
    """Skills drawn from ``N(0, I)`` in ``R^D``, as in DIAYN and DADS.

    Args:
        dim (int): dimension ``D``.

    Examples:
        >>> StandardNormal(3).sample([5]).shape
        torch.Size([5, 3])
    """

    @property
    def spec(self) -> TensorSpec:
        return Unbounded(shape=(self.dim,), dtype=torch.float32)

    def sample(
        self,
        batch_size: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return torch.randn(*batch_size, self.dim, generator=generator, device=device)

    def grid(self, num_skills: int) -> Tensor:
        """Evenly spaced directions at the prior's typical length, ``√D``."""
        return UnitSphere(self.dim).grid(num_skills) * math.sqrt(self.dim)

    def skill_along(self, displacement: Tensor) -> Tensor:
        """The displacement's direction, at the prior's typical length, ``√D``."""
        return UnitSphere(self.dim).skill_along(displacement) * math.sqrt(self.dim)


class OneHot(SkillPrior):
    """``N`` discrete skills, one-hot encoded (Section 4 and Appendix F.1).

    Args:
        dim (int): number of skills ``N``.

    Examples:
        >>> prior = OneHot(4)
        >>> prior.center(prior.grid(1))
        tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])
    """

    @property
    def spec(self) -> TensorSpec:
        return OneHotSpec(self.dim, dtype=torch.float32)

    def sample(
        self,
        batch_size: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        index = torch.randint(self.dim, tuple(batch_size), generator=generator, device=device)
        return torch.eye(self.dim, device=device)[index]

    def grid(self, num_skills: int) -> Tensor:
        """Every one-hot skill in turn, each repeated equally often.

        With fewer than ``N`` skills, evenly spaced ones.
        """
        stride = max(self.dim // max(num_skills, 1), 1)
        index = (torch.arange(num_skills) * stride) % self.dim
        return torch.nn.functional.one_hot(index, self.dim).float()

    def evaluation_skills(self, num_skills: int = 48, *, seed: int = 0) -> Tensor:
        """Every skill equally often, as in :meth:`grid`; there is nothing to draw."""
        return self.grid(num_skills)

    def skill_along(self, displacement: Tensor) -> Tensor:
        """The skill of the displacement's largest entry."""
        # Unlike one_hot, indexing reads no value of a tensor: it can be part of a graph.
        every = torch.eye(self.dim, dtype=displacement.dtype, device=displacement.device)
        skill = every[displacement.argmax(-1)]
        return skill.where(displacement.isfinite().all(dim=-1, keepdim=True), math.nan)

    def center(self, skill: Tensor) -> Tensor:
        """``(z - mean(z)) · N / (N - 1)``: 1 at the skill, ``-1/(N - 1)`` elsewhere."""
        scale = self.dim / max(self.dim - 1, 1)
        return (skill - skill.mean(dim=-1, keepdim=True)) * scale
