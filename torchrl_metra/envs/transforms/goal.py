"""A goal for every episode."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import make_composite_from_td

from torchrl_metra.envs.transforms.primer import EpisodePrimer


class GoalPrimer(EpisodePrimer):
    """Draws a goal at reset and carries it through the episode, under ``"goal"``.

    Every environment of a batch has its own goal, redrawn only where that environment is
    reset, by TorchRL, by a ``"_reset"`` mask of yours or by itself. Draws come from torch's
    global generator: seed it by ``torch.manual_seed``, ``env.set_seed`` does not. A goal passed
    to ``env.reset`` without a mask is kept instead of a new draw, for evaluation.

    Args:
        goals (TensorDictBase): goals to draw from, of batch size ``[M]``. Their entries are
            those of observations, in the form that the encoder reads them, and any others
            that evaluation needs. :func:`~torchrl_metra.sample_goals` makes them for the
            environments of this package; for another one give what it shows in the states
            to be reached: ``TensorDict({"observation": observations}, [M])``.

    Raises:
        RuntimeError: when applied to a replay buffer, where it would overwrite the stored goals.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_metra import GoalPrimer, make_env
        >>> goals = TensorDict({"observation": torch.tensor([[3.0, 4.0], [0.0, 5.0]])}, [2])
        >>> env = make_env("point", num_envs=2).append_transform(GoalPrimer(goals))
        >>> env.rollout(3)["goal", "observation"].shape
        torch.Size([2, 3, 2])
        >>> env.reset(TensorDict({"goal": goals}, [2]))["goal", "observation"]
        tensor([[3., 4.],
                [0., 5.]])
    """

    def __init__(self, goals: TensorDictBase) -> None:
        spec = make_composite_from_td(goals[0], unsqueeze_null_shapes=False)
        super().__init__("goal", spec)
        self.goals = goals

    def draw(self, batch_size: torch.Size, device: torch.device | None) -> TensorDictBase:
        """Some of the goals that were given."""
        return self.goals[torch.randint(len(self.goals), batch_size)]
