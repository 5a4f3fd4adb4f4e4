"""
Skills for your own robot
=========================

This tutorial writes an environment that the package does not have, a robot on two wheels, and
learns skills for it with METRA. You will learn what METRA requires of an environment, how to use it
with :func:`~torchrl_metra.make_metra`, how to define the position for evaluation, and how to save
the result.
"""

# %%
# The robot
# ---------
#
# A robot with two driven wheels has a position in the plane and a heading. Its actions are the
# forward speed, at most 0.2 m per step, and the rate of turning, at most 0.3 rad per step. It
# cannot move sideways, so it has to turn first.
#
# The environment is a batched TorchRL :class:`~torchrl.envs.EnvBase`: one tensor operation steps
# all robots. The environment itself stores no state. The pose is an entry of the data, so single
# robots can be reset without extra code.
import tempfile
from pathlib import Path

import torch
import torchrl
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import Compose, EnvBase, StepCounter, TransformedEnv, check_env_specs

from torchrl_metra import SkillPolicy, SkillPrimer, UnitSphere, make_metra
from torchrl_metra.evaluation import (
    encode_trajectories,
    measure_skills,
    plot_skills,
    positions,
    rollout_skills,
)

torchrl.logger.setLevel("WARNING")


class TwoWheels(EnvBase):
    """Robots that drive forward and backward, and turn."""

    def __init__(self, num_envs):
        super().__init__(batch_size=[num_envs])
        self.observation_spec = Composite(
            observation=Unbounded((num_envs, 4)), pose=Unbounded((num_envs, 3)), shape=[num_envs]
        )
        # What a step reads besides the action.
        self.state_spec = Composite(pose=Unbounded((num_envs, 3)), shape=[num_envs])
        self.action_spec = Bounded(-1.0, 1.0, (num_envs, 2))
        self.reward_spec = Unbounded((num_envs, 1))

    def _observe(self, pose):
        place, heading = pose[:, :2], pose[:, 2:]
        observation = torch.cat([place, heading.cos(), heading.sin()], dim=-1)
        return TensorDict({"observation": observation, "pose": pose}, self.batch_size)

    def _reset(self, tensordict, **kwargs):
        return self._observe(torch.zeros(*self.batch_size, 3))

    def _step(self, tensordict):
        x, y, heading = tensordict["pose"].unbind(-1)
        speed, turn = tensordict["action"].clamp(-1, 1).unbind(-1)
        heading = heading + 0.3 * turn
        x, y = x + 0.2 * speed * heading.cos(), y + 0.2 * speed * heading.sin()
        done = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        return self._observe(torch.stack([x, y, heading], dim=-1)).update(
            {"reward": torch.zeros_like(done, dtype=torch.float32), "done": done}
        )

    def _set_seed(self, seed):
        """Nothing here is random."""


# %%
# Its reward is zero, since METRA does not read rewards. First, TorchRL's own check tests whether
# data and specs agree.
check_env_specs(TwoWheels(3))

# %%
# What METRA requires
# -------------------
#
# * **Episodes that end.** A skill lasts for one episode. TorchRL's ``StepCounter`` truncates it
#   after 200 steps, and SAC bootstraps there. An environment may also end its episodes itself.
# * **A skill for every episode**, in the entry ``"skill"``, from
#   :class:`~torchrl_metra.SkillPrimer`.
# * **Bounded actions**, best within ±1, and ``float32`` throughout.
# * **Observations with steps that φ can see.** METRA brings the latent step between adjacent states
#   to a length of one. The smaller the step of the observation, the more φ's weights have to grow.
#   Here a step is up to 0.2 m. With positions divided by 10, the same training ended at 546 cells
#   of coverage, and divided by 100 at 147, in place of 1066 (one seed each). An angle is given by
#   its cosine and sine, which do not jump at ±180°. If your environment uses other units, scale
#   them with TorchRL's ``ObservationNorm``.
prior = UnitSphere(2)


def skill_env(num_envs):
    return TransformedEnv(TwoWheels(num_envs), Compose(StepCounter(200), SkillPrimer(prior)))


# %%
# For most environments you do not have to do any of this. ``make_metra("gym:HalfCheetah-v5")``
# builds them ready for METRA and normalized. It also takes a function that builds one, see
# :doc:`/guides/your_environment`.
#
# Training
# --------
#
# :func:`~torchrl_metra.make_metra` builds the rest: policy, critics and φ, their losses and
# optimizers, a collector and a replay buffer, and a :class:`~torchrl_metra.METRATrainer` that owns
# them. The settings make everything smaller than the paper's defaults for large robots.
trainer = make_metra(
    skill_env(16),
    prior,
    num_cells=[64, 64],
    learning_rate={"lr": 2e-3},
    metra={"dual_init": 10.0},
    total_frames=48_000,
    min_buffer_size=0,
    progress_bar=False,
)

# %%
# Where is the robot?
# -------------------
#
# Environments of this package have an entry ``"position"`` for evaluation. This one does not.
# Functions that need it take a ``projection`` from states to coordinates:
skills = prior.evaluation_skills(48)


def place(states):
    return states["pose"][..., :2]


def measure(policy):
    rollouts = rollout_skills(skill_env(48), policy, skills)
    latents = encode_trajectories(rollouts, policy.encoder)
    numbers = measure_skills(rollouts, latents, prior, projection=place)
    return rollouts, latents, numbers


policy = trainer.skill_policy
*_, before = measure(policy)
trainer.train()
rollouts, latents, after = measure(policy)
for name in ("policy_coverage", "sectors", "skill_alignment", "latent_step_mean"):
    print(f"{name:17} {before[name]:8.2f} untrained {after[name]:8.2f} trained")

# %%
# Coverage is the number of 1 m cells that 48 episodes visit. ``sectors`` is the number of the 16
# sectors around the start in which they end. The lines are the episodes, in space and in the latent
# space of φ:
figure = plot_skills(latents, skills, position=positions(rollouts, place), title="on two wheels")

# %%
# All robots start with their heading along x. For other directions they turn first, or drive
# backward, which is just as fast:
backward = rollouts["action"][..., 0] < 0
print(f"{backward.float().mean():.0%} of all steps are backward")

# %%
# Save it
# -------
#
# :class:`~torchrl_metra.SkillPolicy` saves policy, φ and the distribution of skills in one file,
# which contains weights and no code. The loaded policy drives as before:
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "two_wheels.pt")
    policy.save(path)
    print(f"{path.stat().st_size / 1e3:.0f} kB")
    again, *_ = measure(SkillPolicy.load(path))
difference = (place(again["next"]) - place(rollouts["next"])).abs().max()
print(f"places differ by at most {difference:.1e} m")

# %%
# Next, :doc:`/auto_tutorials/reaching_goals` looks at what φ knows, and
# :doc:`/auto_tutorials/skills_as_actions` makes use of skills. :doc:`/guides/evaluation` makes a
# report of a policy like this one, with the same ``projection``.
