from __future__ import annotations

import math

import pytest
import torch

from torchrl_metra import OneHot, SkillPrior, StandardNormal, UnitBall, UnitSphere

PRIORS = [
    *(UnitSphere(dim) for dim in (1, 2, 5)),
    *(UnitBall(dim) for dim in (1, 3)),
    StandardNormal(3),
    OneHot(1),
    OneHot(4),
]


@pytest.mark.parametrize("prior", PRIORS, ids=repr)
class TestEveryPrior:
    def test_samples_have_shape_and_lie_in_spec(self, prior: SkillPrior) -> None:
        skills = prior.sample([7, 3])
        assert skills.shape == (7, 3, prior.dim)
        assert skills.dtype == torch.float32
        assert prior.spec.expand(7, 3, prior.dim).is_in(skills)

    def test_generator_makes_samples_repeatable(self, prior: SkillPrior) -> None:
        first = prior.sample([50], generator=torch.Generator().manual_seed(1))
        torch.manual_seed(99)
        again = prior.sample([50], generator=torch.Generator().manual_seed(1))
        other = prior.sample([50], generator=torch.Generator().manual_seed(2))
        assert first.equal(again)
        assert prior == OneHot(1) or not first.equal(other)

    @pytest.mark.parametrize("num_skills", [1, 3, 16])
    def test_grid_is_fixed_and_within_the_prior(self, prior: SkillPrior, num_skills: int) -> None:
        grid = prior.grid(num_skills)
        assert grid.shape == (num_skills, prior.dim)
        assert grid.equal(prior.grid(num_skills))
        assert prior.spec.expand(num_skills, prior.dim).is_in(grid.clamp(-10, 10))

    def test_evaluation_skills_are_those_of_the_prior_and_always_the_same(
        self, prior: SkillPrior
    ) -> None:
        skills, state = prior.evaluation_skills(16), torch.random.get_rng_state()
        assert skills.equal(prior.evaluation_skills(16))
        assert torch.random.get_rng_state().equal(state), "training goes on as without them"
        if isinstance(prior, OneHot):
            assert skills.equal(prior.grid(16))
        else:
            drawn = prior.sample([16], generator=torch.Generator().manual_seed(0))
            if isinstance(prior, UnitBall):
                drawn = UnitSphere(prior.dim).evaluation_skills(16)
            assert skills.equal(drawn)

    def test_the_skill_along_a_displacement_is_the_skill_that_gains_most(
        self, prior: SkillPrior
    ) -> None:
        displacement = 5 * torch.randn(40, prior.dim)
        skills = prior.skill_along(displacement)
        assert prior.spec.expand(40, prior.dim).is_in(skills)
        assert prior.toward(displacement).equal(skills), "the name in version 0.1"
        if isinstance(prior, UnitBall):
            skills = skills / skills.norm(dim=-1, keepdim=True)
            assert skills.allclose(UnitSphere(prior.dim).skill_along(displacement), atol=1e-6)
            return
        gain = (displacement * prior.center(skills)).sum(-1)
        others = (displacement[:, None] * prior.center(prior.grid(24))).sum(-1)
        assert (gain[:, None] >= others - 1e-4).all()
        assert prior.skill_along(displacement * 3).allclose(skills)

    def test_turned_skills_point_along_the_displacement(self, prior: SkillPrior) -> None:
        displacement, skill = 5 * torch.randn(40, prior.dim), prior.sample([40])
        turned = prior.redirect(skill, displacement)
        assert turned.dtype == skill.dtype
        if isinstance(prior, UnitBall):
            torch.testing.assert_close(turned.norm(dim=-1), skill.norm(dim=-1))
            turned = torch.nn.functional.normalize(turned, dim=-1)
            displacement = UnitSphere(prior.dim).skill_along(displacement)
            torch.testing.assert_close(turned, displacement)
        else:
            assert turned.equal(prior.skill_along(displacement))

    def test_config_round_trip(self, prior: SkillPrior) -> None:
        assert SkillPrior.from_config(prior.to_config()) == prior

    def test_wrong_size_is_refused_with_both_sizes(self, prior: SkillPrior) -> None:
        with pytest.raises(ValueError, match=rf"\[\.\.\., {prior.dim}\].*\[4, {prior.dim + 1}\]"):
            prior.validate(torch.zeros(4, prior.dim + 1))


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 24])
def test_sphere_has_unit_length_and_no_preferred_direction(dim: int) -> None:
    skills = UnitSphere(dim).sample([20_000])
    torch.testing.assert_close(skills.norm(dim=-1), torch.ones(20_000))
    assert skills.mean(0).abs().max() < 0.05
    torch.testing.assert_close(UnitSphere(dim).grid(10).norm(dim=-1), torch.ones(10))


def test_three_quarters_of_the_ball_are_at_full_speed() -> None:
    length = UnitBall(3).sample([20_000]).norm(dim=-1)
    assert abs(float((length > 0.999).float().mean()) - 0.75) < 0.02
    slow = length[length < 0.999]
    assert abs(float(slow.mean()) - 0.5) < 0.02
    assert abs(float(slow.var()) - 1 / 12) < 0.01


@pytest.mark.parametrize("length", [0.0, 0.3, 0.5, 0.8])
def test_a_skill_of_the_ball_asks_for_its_step(length: float) -> None:
    """By hand: the reward is largest, over a grid of steps, for z / (1 - |z|)."""
    prior = UnitBall(2)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    axis = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    steps = torch.cartesian_prod(axis, axis)
    rewards = prior.reward(steps, length * direction)
    best = steps[rewards.argmax()]
    torch.testing.assert_close(best, direction * length / (1 - length), atol=0.011, rtol=0)


def test_at_full_length_the_ball_is_the_sphere() -> None:
    skill, step = UnitSphere(3).sample([50]).double(), torch.randn(50, 3, dtype=torch.float64)
    expected = UnitSphere(3).reward(step, skill)
    torch.testing.assert_close(UnitBall(3).reward(step, skill), expected, atol=1e-6, rtol=1e-6)


def test_the_ball_arrives() -> None:
    """A body that makes the steps its skill asks for, of length one at most, stops at its goal."""
    prior, goal = UnitBall(2), torch.tensor([60.0, -25.0])
    place, lengths = torch.zeros(2), []
    for _ in range(150):
        skill = prior.skill_along(goal - place)
        step = skill / (1 - skill.norm())
        place = place + step / step.norm().clamp(min=1.0)
        lengths.append(float(skill.norm()))
    assert (goal - place).norm() < 0.05
    assert lengths[0] > 0.85
    assert lengths[-1] < 0.01


def test_a_vector_stands_for_a_skill_of_its_length_at_most_one() -> None:
    vectors = torch.tensor([[0.3, 0.0], [0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(
        UnitBall(2).as_skill(vectors), torch.tensor([[0.3, 0.0], [0.0, 0.0], [0.6, 0.8]])
    )
    assert UnitSphere(2).as_skill(vectors).equal(UnitSphere(2).skill_along(vectors))


def test_far_and_missing_displacements_of_the_ball() -> None:
    displacement = torch.tensor([[1e30, 0.0], [0.0, 0.0], [float("nan"), 0.0]])
    skills = UnitBall(2).skill_along(displacement)
    assert skills[:2].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert skills[2].isnan().any()


def test_circle_grid_is_evenly_spaced() -> None:
    grid = UnitSphere(2).grid(12)
    cosine = (grid * grid.roll(1, 0)).sum(-1)
    torch.testing.assert_close(cosine, torch.full([12], math.cos(2 * math.pi / 12)))


def test_fibonacci_grid_spreads_over_the_sphere() -> None:
    grid = UnitSphere(3).grid(200)
    nearest = (grid @ grid.T - 2 * torch.eye(200)).max(-1).values
    assert grid.mean(0).norm() < 0.01
    # No two neighbors closer than half of what equal areas would give.
    assert nearest.max() < math.cos(0.5 * math.sqrt(4 * math.pi / 200))


def test_one_hot_grid_visits_every_skill_equally_often() -> None:
    assert OneHot(16).grid(48).sum(0).tolist() == [3.0] * 16
    assert OneHot(16).grid(4).argmax(-1).tolist() == [0, 4, 8, 12]


def test_one_hot_samples_are_uniform() -> None:
    share = OneHot(4).sample([20_000]).mean(0)
    torch.testing.assert_close(share, torch.full([4], 0.25), atol=0.02, rtol=0)


def test_centered_one_hot() -> None:
    third = -1 / 3
    torch.testing.assert_close(
        OneHot(4).center(torch.tensor([0.0, 1.0, 0.0, 0.0])),
        torch.tensor([third, 1.0, third, third]),
    )
    assert OneHot(1).center(torch.ones(1)).tolist() == [0.0]
    assert UnitSphere(2).center(torch.ones(2)).tolist() == [1.0, 1.0]
