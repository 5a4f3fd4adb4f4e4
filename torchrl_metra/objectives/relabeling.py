"""Skills in hindsight: what an episode has shown, in place of what it was meant to show."""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor, nn
from torchrl.envs import Transform

from torchrl_metra._checks import check_type
from torchrl_metra.data import SkillPrior
from torchrl_metra.modules import Float32Linear
from torchrl_metra.modules.encoder import as_encoder, latent_key
from torchrl_metra.objectives.functional import pairwise_products


class RelabelSkills(Transform):
    r"""Replaces the skills of sampled transitions by what their episodes have shown.

    Presented in "GenDa", Park et al., ICML 2026, https://arxiv.org/abs/2607.00392. Early in
    training an episode rarely goes where its skill points, but it always goes somewhere: there,
    it is a perfect demonstration. With :math:`\bar\phi`, an exponential average of the encoder,

    .. math::
        z_\text{episode} = \frac{\bar\phi(s_T) - \bar\phi(s_0)}{\|\cdot\|}, \qquad
        z_\text{ahead} = \frac{\bar\phi(s_{t+c}) - \bar\phi(s_t)}{\|\cdot\|},

    or the one-hot skill whose entry of the difference is largest. φ is trained with
    :math:`z_\text{episode}`. The policy keeps the rolled skill where episodes rarely go that way,
    so that it still explores; elsewhere it is trained with :math:`z_\text{episode}` for one half
    and with :math:`z_\text{ahead}` for the other.

    The probability :math:`p_\text{episode}(z) / (p_\text{episode}(z) + p(z))` says how rare a
    direction is: 0.5 if episodes go there as often as the prior draws it. Both are counted in
    cells around ``8 D`` skills spread evenly, those of episodes as an exponential average in which
    a batch weighs 0.01. (The authors train a classifier on cells between random planes, whose
    optimum is the same ratio.) Where nothing has moved, too, the policy keeps the rolled skill.

    The two halves are the first and the second of a batch, so samplers must draw at random.

    It takes batches of a replay buffer with :class:`~torchrl_metra.EpisodeStorage`: give it to
    :class:`~torchrl_metra.METRAOptimizationStepper`, or append it to the buffer and call
    :meth:`step` after each update. Losses with an encoder (:class:`~torchrl_metra.METRALoss`,
    :class:`~torchrl_metra.CSFLoss`, :class:`~torchrl_metra.LSDLoss`) then train φ with
    ``"episode_skill"``, and reward the policy by ``"skill"``.

    Args:
        encoder (nn.Module or TensorDictModule): φ, from observations to ``[*B, D]``. A copy of it
            becomes the average.
        prior (SkillPrior): distribution of the skills; its ``dim`` is ``D``.

    Keyword Args:
        rarity (float, optional): probability below which a direction counts as rare; 0 relabels
            every skill, 1 none of the policy's. Defaults to 0.4.
        tau (float, optional): how far the average moves in a step. Defaults to 5e-3.
        skill_key (NestedKey, optional): the policy's skill. Defaults to ``"skill"``.
        episode_skill_key (NestedKey, optional): the one that φ is trained with. Defaults to
            ``"episode_skill"``.

    Raises:
        ValueError: if a keyword is out of range.
        KeyError: by a call, if the batch lacks a state of its episode.

    Examples:
        >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
        >>> from torchrl_metra import EpisodeStorage, SkillPrimer, UnitSphere, make_env
        >>> prior, encoder = UnitSphere(2), nn.Linear(2, 2)
        >>> relabel = RelabelSkills(encoder, prior)
        >>> storage = EpisodeStorage(LazyTensorStorage(1_000))
        >>> buffer = ReplayBuffer(storage=storage, batch_size=32, transform=relabel)
        >>> env = make_env("point", num_envs=4).append_transform(SkillPrimer(prior))
        >>> _ = buffer.extend(env.rollout(50).reshape(-1))
        >>> buffer.sample()["episode_skill"].shape
        torch.Size([32, 2])
        >>> relabel.step(encoder)
    """

    prior_mass: Tensor
    episode_mass: Tensor
    anchors: Tensor

    def __init__(
        self,
        encoder: nn.Module | TensorDictModuleBase,
        prior: SkillPrior,
        *,
        rarity: float = 0.4,
        tau: float = 5e-3,
        skill_key: NestedKey = "skill",
        episode_skill_key: NestedKey = "episode_skill",
    ) -> None:
        check_type("prior", prior, SkillPrior, "a SkillPrior such as UnitSphere(2)")
        for name, value in (("rarity", rarity), ("tau", tau)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}.")
        self.skill_key = unravel_key(skill_key)
        self.episode_skill_key = unravel_key(episode_skill_key)
        average = copy.deepcopy(as_encoder(encoder)).requires_grad_(False).eval()
        ends = ("first", "last", "ahead")
        keys = [*average.in_keys, *((end, key) for end in ends for key in average.in_keys)]
        super().__init__(
            in_keys=[*map(unravel_key, keys), self.skill_key],
            out_keys=[self.skill_key, self.episode_skill_key],
        )
        # Long displacements keep their direction in bfloat16, as the policy's hidden layers do.
        for layer in [part for part in average.modules() if type(part) is Float32Linear][1:-1]:
            layer.__class__ = nn.Linear  # type: ignore[assignment]
        self.encoder = average
        self.prior = prior
        self.rarity = rarity
        self.tau = tau
        # One-hot skills come several times.
        self.register_buffer("anchors", prior.grid(8 * prior.dim).unique(dim=0))
        draws = prior.sample([100_000], generator=torch.Generator().manual_seed(0))
        mass = self._mass(draws)
        self.register_buffer("prior_mass", mass)
        self.register_buffer("episode_mass", mass.clone())
        self.to(next((weight.device for weight in average.parameters()), None))

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the skill that φ is trained with, and that of the policy at both ends."""
        # Batches are drawn at random, and so is their first half.
        half = len(tensordict) // 2
        first, last = self._encode(tensordict["first"], tensordict["last"])
        here, ahead = self._encode(tensordict[:half], tensordict["ahead"][:half])
        # φ learns directions, at full speed where skills have one.
        episode_skill = self.prior.redirect(self.anchors[:1].expand_as(last), last - first)
        displacement = torch.cat([ahead - here, (last - first)[half:]])
        self.episode_mass.lerp_(self._mass(episode_skill), 0.01)
        rolled = tensordict[self.skill_key]
        is_kept = (self.probability(rolled) < self.rarity) | (displacement == 0).all(dim=-1)
        skill = self.prior.redirect(rolled, displacement).to(rolled.dtype)
        skill = torch.where(is_kept.unsqueeze(-1), rolled, skill)
        tensordict.set(self.skill_key, skill)
        tensordict.set(unravel_key(("next", self.skill_key)), skill)
        tensordict.set(self.episode_skill_key, episode_skill)
        return tensordict

    def probability(self, skill: Tensor) -> Tensor:
        """That a skill is an episode's and not a draw from the prior, of shape ``[*B]``."""
        ratio = self.episode_mass / (self.episode_mass + self.prior_mass)
        return ratio[self._cell(skill)]

    @torch.no_grad()
    def step(self, encoder: nn.Module) -> None:
        """Move the average toward the encoder, after a step of it."""
        source = as_encoder(encoder)
        for average, value in zip(self.encoder.parameters(), source.parameters(), strict=True):
            average.lerp_(value, self.tau)
        for average, value in zip(self.encoder.buffers(), source.buffers(), strict=True):
            average.copy_(value)

    def _encode(self, *states: TensorDictBase) -> tuple[Tensor, ...]:
        """Averaged φ of several states of each transition, each of shape ``[*B, D]``."""
        states = tuple(state.select(*self.encoder.in_keys) for state in states)
        if any(value.dtype == torch.uint8 for value in states[0].values(True, True)):
            # To copy pictures takes longer than several calls.
            return tuple(self._latents(state) for state in states)
        return self._latents(torch.stack(states)).unbind(0)

    def _latents(self, states: TensorDictBase) -> Tensor:
        latents = self.encoder(states.reshape(-1)).get(latent_key(self.encoder))
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
        return latents.unflatten(0, states.batch_size)

    def _cell(self, skill: Tensor) -> Tensor:
        """Which of the anchors is nearest in direction, of shape ``[*B]``."""
        return pairwise_products(skill, self.anchors.to(skill.dtype)).argmax(dim=-1)

    def _mass(self, skill: Tensor) -> Tensor:
        """The share of skills in each cell."""
        cells = torch.arange(len(self.anchors), device=skill.device)
        return (self._cell(skill).reshape(-1, 1) == cells).to(self.anchors.dtype).mean(dim=0)
