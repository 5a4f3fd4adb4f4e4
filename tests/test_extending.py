"""The objectives of docs/guides/extending.md and the table of docs/objectives.md.

test_docs.py runs both pages as they stand.
"""

from __future__ import annotations

import ast
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_batch
from pages import Page
from torch import Tensor
from torchrl.objectives.utils import SoftUpdate

import torchrl_metra
from torchrl_metra import (
    BatchedSACLoss,
    EncoderLoss,
    METRAOptimizationStepper,
    SkillLoss,
    SkillPrimer,
    SuccessorFeatureSACLoss,
    UnitSphere,
    make_env,
    make_metra_optimizers,
    make_sac_networks,
    recipes,
)

EXTENDING = Page("docs/guides/extending.md")
OBJECTIVES = Page("docs/objectives.md")
PRIOR = UnitSphere(2)


class TestNewObjectives:
    objectives = pytest.mark.parametrize(
        "name", ["VISRLoss", "ConcentratedVISRLoss", "SuccessorVISRLoss", "DisagreementLoss"]
    )

    @pytest.fixture(scope="class")
    def names(self) -> dict[str, Any]:
        """What the page imports and defines, without its training."""
        namespace: dict[str, Any] = {"__name__": "extending"}
        kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
        for block in EXTENDING.code("python"):
            block.run(namespace, *kinds)
        return namespace

    @objectives
    def test_reward_and_cumulant(self, names: dict[str, Any], name: str) -> None:
        skill_loss, batch = build(names[name]), make_batch(PRIOR, 3, 4)
        with torch.autocast("cpu", torch.bfloat16):
            reward, cumulant = skill_loss.reward(batch), skill_loss.cumulant(batch)
            logged = skill_loss(batch)["intrinsic_reward"]
        assert reward.shape == (3, 4, 1)
        assert reward.dtype == torch.float32
        torch.testing.assert_close(reward.mean(), logged)
        assert cumulant.shape == (3, 4, skill_loss.cumulant_size)
        if skill_loss.cumulant_size > 1:
            reward_of_it = (cumulant * batch["skill"]).sum(dim=-1, keepdim=True)
            torch.testing.assert_close(reward_of_it, reward)

    @pytest.mark.parametrize("name", ["SuccessorVISRLoss", "DisagreementLoss"])
    def test_as_one_graph(self, names: dict[str, Any], name: str) -> None:
        losses = []
        for switches in ({}, {"compile": {"backend": "eager"}}):
            skill_loss = build(names[name])
            losses.append(update(skill_loss, make_sac_loss(skill_loss), 5, **switches))
        plain, graph = losses
        torch.testing.assert_close(graph, plain, rtol=1e-3, atol=1e-4)
        assert not plain[0].isclose(plain[-1]).any()


def build(kind: type[SkillLoss]) -> SkillLoss:
    torch.manual_seed(0)
    if issubclass(kind, EncoderLoss):
        return kind(torch.nn.Linear(2, 2), PRIOR)
    return kind(2, 2, PRIOR)


def make_sac_loss(skill_loss: SkillLoss) -> BatchedSACLoss:
    size, spec = skill_loss.cumulant_size, make_env("point").action_spec
    networks = make_sac_networks(2, spec, PRIOR, num_cells=[16], value_size=size)
    if size > 1:
        return SuccessorFeatureSACLoss(networks.actor, networks.critics, PRIOR)
    return BatchedSACLoss(networks.actor, networks.critics)


def update(
    skill_loss: SkillLoss, sac_loss: BatchedSACLoss, num_steps: int, **switches: Any
) -> Tensor:
    """The losses of the first gradient steps, of shape ``[num_steps, n]``."""
    optimizers = make_metra_optimizers(skill_loss, sac_loss, lr=1e-2)
    targets = SoftUpdate(sac_loss, eps=0.9)
    stepper = METRAOptimizationStepper(
        skill_loss, optimizers, target_net_updater=targets, **switches
    )
    trainer = SimpleNamespace(loss_module=sac_loss, replay_buffer=None)
    batch, parts = make_batch(PRIOR, 16), [*skill_loss.parameter_groups(), "qvalue"]
    steps = [stepper.step(trainer, batch) for _ in range(num_steps)]
    return torch.stack([torch.stack([step[f"loss_{part}"] for part in parts]) for step in steps])


class TestObjectives:
    @pytest.fixture
    def names(self) -> dict[str, Any]:
        """A pipeline, and the page's objectives."""
        env = make_env("point", 8).append_transform(SkillPrimer(PRIOR))
        namespace: dict[str, Any] = {"env": env, "batch": env.rollout(8).reshape(-1)}
        OBJECTIVES.code("python")[0].run(namespace)
        return namespace

    @pytest.fixture
    def rows(self) -> dict[str, list[str]]:
        """The table of the family, without its header."""
        section = OBJECTIVES.text.split("## The family")[1].split("\n## ")[0]
        table = [
            re.split(r"(?<!\\)\|", line)[1:-1]
            for line in section.splitlines()
            if line.startswith("|")
        ]
        return {row[0].strip(" `"): [cell.strip() for cell in row] for row in table[2:]}

    def test_the_table_holds_all_of_them(
        self, names: dict[str, Any], rows: dict[str, list[str]]
    ) -> None:
        losses = names["skill_losses"]
        assert list(rows) == list(losses)
        for name, (_, kind, *_, groups, _, policy_loss) in rows.items():
            assert kind.split("(")[0].strip("`") == type(losses[name]).__name__
            assert re.findall(r"`(\w+)`", groups) == list(losses[name].parameter_groups())
            expected = "SuccessorFeatureSACLoss" if losses[name].cumulant_size > 1 else "SACLoss"
            assert policy_loss == f"`{expected}`"
        exported = {getattr(torchrl_metra, name) for name in torchrl_metra.__all__}
        kinds = {
            kind for kind in exported if isinstance(kind, type) and issubclass(kind, SkillLoss)
        }
        assert {type(loss) for loss in losses.values()} == kinds - {SkillLoss, EncoderLoss}

    def test_the_recipes_know_the_names(self, rows: dict[str, list[str]]) -> None:
        assert list(recipes.OBJECTIVES) == list(rows)

    def test_critics_of_csf(self, names: dict[str, Any]) -> None:
        OBJECTIVES.code("python")[2].run(names)
        assert update(names["skill_losses"]["csf"], names["sac_loss"], 2).isfinite().all()
        with pytest.raises(ValueError, match="CSFLoss goes with SuccessorFeatureSACLoss"):
            make_metra_optimizers(names["skill_losses"]["lsd"], names["sac_loss"])
