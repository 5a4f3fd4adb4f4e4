"""A run that fails says so: known failures, read off what is logged anyway."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, NamedTuple

from torchrl.trainers import Trainer
from torchrl.trainers.trainers import TrainerHookBase

from torchrl_metra.data import OneHot, SkillPrior
from torchrl_metra.objectives import METRALoss, SkillLoss

# Rounds over which the latest values are averaged.
WINDOW = 5
# Before this many updates nothing is said, whatever the learning rate.
FEWEST_UPDATES = 200
# Before this :attr:`Diagnosis.time` an evaluation does not tell whether skills are followed.
EARLY = 2.5
PAGE = "docs/guides/tuning.md"


class FailureWarning(UserWarning):
    """A run shows the signature of a known failure; it goes on all the same."""


def _mean_along_a_line(prior: SkillPrior) -> float:
    """Mean reward of unit steps along one line, each on the side of its skill."""
    dim = prior.dim
    if isinstance(prior, OneHot):
        return math.sqrt(dim) / max(dim - 1, 1)
    mean = math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2) - math.log(math.pi) / 2
    return math.exp(mean)


class Failure(NamedTuple):
    """A failure that is known.

    Attributes:
        since (float): :attr:`Diagnosis.time` from which on it can be told.
        shows (Callable): whether a run shows the signs of this failure.
        story (str): what is seen, and what to do.
        section (str): where the guide says more.
        is_consequence (bool): whether it is not said of a run in which another was found.
    """

    since: float
    shows: Callable[[Diagnosis], bool]
    story: str
    section: str
    is_consequence: bool = False


# In the order in which they are asked: what is more particular comes first.
FAILURES = {
    "observations too small": Failure(
        0.5,
        lambda see: see.step < 0.1 and see.now("observation_spread_max") < 0.1,
        "φ hardly moves, and no entry of the observations spreads over more than a tenth. "
        "Normalize the observations.",
        "nothing-moves-observations-too-small",
    ),
    "observations too large": Failure(
        0.5,
        lambda see: see.first("observation_spread_max") > 50 and see.reward < 0.3,
        "nothing is learned, and an entry of the observations spreads over more than fifty. "
        "Normalize the observations.",
        "nothing-moves-observations-too-large",
    ),
    "entropy wins": Failure(
        0.5,
        lambda see: (
            see.now("alpha") >= 0.1 * see.bound
            and see.now("entropy") > see.first("entropy") - 0.1
            and see.reward < 0.1
        ),
        "the policy stays as random as it began, for the entropy coefficient outweighs the "
        "reward. Lower alpha_init.",
        "the-policy-stays-random-entropy-wins",
    ),
    "dual too small": Failure(
        0.2,
        lambda see: see.now("constraint_violation") > 0.5 and see.step > 1.5,
        "most latent steps are longer than the constraint allows: λ is too small, or too slow. "
        "Raise dual_init, and let λ learn as fast as φ.",
        "the-constraint-does-not-hold-λ-too-small",
    ),
    "dual explodes": Failure(
        0.2,
        lambda see: (
            see.now("dual") > 30 * see.first("dual") and see.now("constraint_violation") < 0.1
        ),
        "λ grows without end, though the constraint holds. Give it a slack of 1e-3, and a "
        "learning rate near that of φ.",
        "λ-grows-without-end",
    ),
    "dual too large": Failure(
        0.5,
        lambda see: (
            300 < see.now("dual") <= see.first("dual") and see.now("constraint_violation") < 0.02
        ),
        "λ is far larger than a reward, and latent steps stay short until it has come down. "
        "Lower dual_init.",
        "steps-stay-short-λ-too-large",
    ),
    "skills ignored": Failure(
        1,
        lambda see: (
            (see.step > 0.5 and see.reward < 0.35 * see.line * see.step)
            # Early, a healthy robot moves little along its skill, too.
            or (see.time >= 2 * EARLY and see.bound > 0 and see.most("skill_alignment", 2) < 0.1)
        ),
        "φ moves, but not along the skills: the policy does not follow them. See that policy and "
        "critics read the skill, and that an action is for the skill that it read.",
        "all-skills-are-the-same-skills-ignored",
        # Whatever else is wrong may end in this.
        is_consequence=True,
    ),
    "one direction": Failure(
        0.5,
        lambda see: (
            see.has_directions
            and see.most("latent_rank") < 1.15
            and (see.is_uneven or see.time >= 5)
        ),
        "φ knows one direction only, so skills lead there or back. Bring all entries of the "
        "observations to one scale.",
        "half-of-the-skills-are-missing-one-direction",
    ),
    "posture": Failure(
        24,
        lambda see: (
            see.updates >= 12_000
            and see.stays_put
            and max(see.now("skill_alignment"), see.now("skill_accuracy")) > 0.7
        ),
        "skills can be told apart, but lead nowhere: they differ in posture. Wait if there were "
        "few updates yet, else let φ read positions alone.",
        "skills-in-posture-not-in-place",
    ),
    "encoder does not move": Failure(
        1,
        lambda see: see.step < 0.05,
        "φ hardly moves from one state to the next. See that it reads what changes, and that its "
        "learning rate is not too small.",
        "nothing-moves-observations-too-small",
        is_consequence=True,
    ),
    "no coverage": Failure(
        30,
        lambda see: see.updates >= 15_000 and see.stays_put,
        "after all these updates skills cover hardly more than the untrained policy did.",
        "what-to-look-at-first",
        is_consequence=True,
    ),
}


class Diagnosis(TrainerHookBase):
    """Warns once when a run shows the signature of a known failure.

    It reads what is logged anyway: the table of failures is that of the guide on tuning, and each
    warning names its section. It never stops a run, and says nothing of what was not logged: with
    a :class:`~torchrl_metra.trainers.SkillEvaluation` it sees more.
    :class:`~torchrl_metra.METRATrainer` has one; to silence it, filter
    :class:`FailureWarning` as any other warning.

    Args:
        skill_loss (SkillLoss): whose training it watches.
        learning_rate (float): learning rate of φ, which sets the pace of a run.

    Examples:
        >>> from torch import nn
        >>> from torchrl_metra import METRALoss, UnitSphere
        >>> diagnosis = Diagnosis(METRALoss(nn.Linear(2, 2), UnitSphere(2)), 1e-3)
        >>> for step in (1_000, 2_000):
        ...     diagnosis.observe({"optim_steps": step, "latent_step": 0.01})
        >>> diagnosis.find()
        'encoder does not move'
    """

    bound: float
    line: float
    has_directions: bool

    def __init__(self, skill_loss: SkillLoss, learning_rate: float) -> None:
        prior = skill_loss.prior
        # The largest latent step that METRA's constraint allows. A number that is not known or
        # was not logged is NaN, of which every comparison is false.
        self.bound = math.nan
        if isinstance(skill_loss, METRALoss) and skill_loss.distance is None:
            self.bound = math.sqrt(prior.dim) if skill_loss.constraint_norm == "rms" else 1.0
        # The reward for a latent step of 1 if φ knew one direction only.
        self.line = math.nan if prior.has_own_reward else _mean_along_a_line(prior)
        # Whether skills are directions, which φ should tell apart.
        self.has_directions = not isinstance(prior, OneHot) and prior.dim > 1
        self.learning_rate = learning_rate
        self.found: list[str] = []
        self._first: dict[str, float] = {}
        self._latest: dict[str, list[float]] = {}

    def observe(self, metrics: Mapping[str, Any]) -> None:
        """Take in numbers as they are logged.

        Args:
            metrics (mapping of str to float): numbers of a round, or of an evaluation.
        """
        for name, value in metrics.items():
            # A policy that has hardly learned follows no skill, however rare evaluations are.
            is_early = name == "skill_alignment" and self.time < EARLY
            if isinstance(value, int | float) and not is_early:
                self._first.setdefault(name, float(value))
                self._latest[name] = [*self._latest.get(name, []), float(value)][-WINDOW:]

    def first(self, name: str) -> float:
        """The first value that was logged."""
        return self._first.get(name, math.nan)

    def now(self, name: str) -> float:
        """The mean of the last ``WINDOW`` values."""
        return fmean(self._latest.get(name, [math.nan]))

    def most(self, name: str, count: int = WINDOW) -> float:
        """The largest of so many latest values, NaN if there are fewer."""
        latest = self._latest.get(name, [])[-count:]
        return max(latest) if len(latest) == count else math.nan

    @property
    def updates(self) -> float:
        """Gradient steps so far."""
        return self._latest.get("optim_steps", [0.0])[-1]

    @property
    def time(self) -> float:
        """How far Adam can have moved a weight of φ, updates times learning rate.

        A run at a tenth of the learning rate takes ten times the updates to show the same.
        """
        return self.updates * self.learning_rate

    @property
    def step(self) -> float:
        """Latent step, as a share of the bound."""
        return self.now("latent_step") / self.bound

    @property
    def reward(self) -> float:
        """Reward, as a share of the bound."""
        return self.now("intrinsic_reward") / self.bound

    @property
    def is_uneven(self) -> bool:
        """Entries of the observations are of different scale."""
        return self.now("observation_spread_max") > 30 * self.now("observation_spread_min")

    @property
    def stays_put(self) -> bool:
        """Skills cover hardly more than the untrained policy, which did not cover much."""
        first = self.first("policy_coverage")
        return first < 20 and self.most("policy_coverage", 2) <= 2 * first

    def find(self) -> str | None:
        """The name of a failure that shows and was not found before, if there is one."""
        if self.updates < FEWEST_UPDATES:
            return None
        for name, failure in FAILURES.items():
            is_news = name not in self.found and not (failure.is_consequence and self.found)
            if is_news and self.time >= failure.since and failure.shows(self):
                self.found.append(name)
                return name
        return None

    def __call__(self, batch: Any = None) -> None:
        name = self.find()
        if name is not None:
            failure = FAILURES[name]
            warnings.warn(
                f"{name}, after {self.updates:.0f} updates: {failure.story} Read "
                f"{PAGE}#{failure.section}.",
                FailureWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "latest": self._latest, "found": self.found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first, self._latest = dict(state_dict["first"]), dict(state_dict["latest"])
        self.found = list(state_dict["found"])

    def register(self, trainer: Trainer, name: str = "diagnosis") -> None:
        trainer.register_module(name, self)
        trainer.register_op("post_steps_log", self)
