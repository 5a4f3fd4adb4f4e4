"""Random network distillation, as a baseline that explores without skills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.envs.transforms.rnd import RunningMeanStd
from torchrl.objectives.rnd import RNDLoss

from torchrl_metra.data import SkillPrior
from torchrl_metra.modules.networks import make_encoder
from torchrl_metra.objectives.common import SkillLoss

# The clipping of TorchRL's RNDTransform, in standard deviations.
_CLIP = 5.0


class RNDBaseline(SkillLoss):
    r"""RND: novelty, whatever the skill; what pure exploration covers.

    Presented in "Exploration by Random Network Distillation", Burda, Edwards, Storkey and
    Klimov, ICLR 2019, https://arxiv.org/abs/1810.12894: the error of a predictor of a fixed
    random network, :math:`r = \|\hat f(s') - f(s')\|^2` (Section 2.2). This wraps TorchRL's
    :class:`~torchrl.objectives.RNDLoss` into a :class:`SkillLoss`. Unlike
    :class:`~torchrl.envs.transforms.RNDTransform`, which rewards what was novel when it was
    collected, it rewards each sampled batch anew; the normalization of observations and
    rewards is the same.

    Args:
        predictor (nn.Module): :math:`\hat f`, from observations ``[*B, S]`` to ``[*B, E]``.
        target (nn.Module): :math:`f`, likewise; frozen.
        prior (SkillPrior): distribution of the skills, which the reward does not read.
        observation_size (int): ``S``.

    Keyword Args:
        reduction (str, optional): ``"mean"`` (default), ``"sum"`` or ``"none"``.

    The output holds ``loss_predictor`` and, detached, ``intrinsic_reward``.

    Examples:
        >>> from torchrl_metra import RNDBaseline, SkillPrimer, UnitSphere, make_env
        >>> rnd = RNDBaseline.from_size(2, UnitSphere(2), num_cells=[32])
        >>> rollout = make_env("point", 4).append_transform(SkillPrimer(rnd.prior)).rollout(3)
        >>> rnd(rollout)["loss_predictor"].backward()
        >>> rnd.reward(rollout).shape
        torch.Size([4, 3, 1])
    """

    @dataclass
    class _AcceptedKeys(SkillLoss._AcceptedKeys):
        """Configurable tensordict keys, set with ``.set_keys(key_name=key_value)``.

        Attributes:
            observation (NestedKey): what is novel or not. Defaults to ``"observation"``.
        """

        observation: NestedKey = "observation"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    out_keys = ["loss_predictor", "intrinsic_reward"]

    def __init__(
        self,
        predictor: nn.Module,
        target: nn.Module,
        prior: SkillPrior,
        observation_size: int,
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__(prior, reduction=reduction)
        self.rnd_loss = RNDLoss(
            predictor,
            target,
            obs_rms=RunningMeanStd((observation_size,)),
            obs_clip=_CLIP,
            reduction="none",
            update_fraction=1.0,
        )
        self.reward_stats = RunningMeanStd()
        # Statistics live where the networks do.
        for stats in (self.rnd_loss.obs_rms, self.reward_stats):
            stats.to(self.device)

    @classmethod
    def from_size(
        cls, observation_size: int, prior: SkillPrior, *, num_cells: Sequence[int] = (1024, 1024)
    ) -> RNDBaseline:
        """With two networks of the encoder's kind, whose outputs are as wide as hidden layers."""
        predictor, target = (
            make_encoder(observation_size, num_cells[-1], num_cells) for _ in range(2)
        )
        return cls(predictor, target, prior, observation_size)

    @property
    def state_keys(self) -> Sequence[NestedKey]:
        return [self.tensor_keys.observation]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"predictor": list(self.rnd_loss.predictor_network.parameters())}

    def compute(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        self.rnd_loss.obs_rms.update(self._following(tensordict))
        error = self._error(tensordict)
        self.reward_stats.update(error.detach())
        return {"loss_predictor": error, "intrinsic_reward": self._scale(error)}

    def reward(self, tensordict: TensorDictBase) -> Tensor:
        return self._scale(self._error(tensordict)).unsqueeze(-1)

    def _error(self, tensordict: TensorDictBase) -> Tensor:
        """Squared error of the predictor, of shape ``[*B]``."""
        transitions = tensordict.empty().set(
            self.rnd_loss.tensor_keys.observation, self._following(tensordict)
        )
        # Under autocast it may come in low precision.
        return self.rnd_loss(transitions).get("loss_predictor").float()

    def _following(self, tensordict: TensorDictBase) -> Tensor:
        following = self.read(tensordict, ("next", self.tensor_keys.observation))
        if following.shape[-1:] != self.rnd_loss.obs_rms.mean.shape:  # It would broadcast.
            raise ValueError(
                f"expected next observations of size {self.rnd_loss.obs_rms.mean.numel()}, got "
                f"shape {list(following.shape)}."
            )
        return following

    def _scale(self, error: Tensor) -> Tensor:
        return (error / self.reward_stats.var.clamp(min=1e-8).sqrt()).clamp(-_CLIP, _CLIP)
