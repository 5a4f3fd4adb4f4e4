"""A robot of your own: a small car, built here from an MJCF string, learns where it can drive.

    python examples/your_robot.py

What you learn: any environment of gymnasium or TorchRL will do. METRA needs a function that builds
one, a time limit and, to count what skills cover, where the robot is. It takes a minute or two.
Needs ``pip install 'torchrl-metra[run,mujoco]'``.
"""

import argparse

import gymnasium
import mujoco
import numpy as np

from torchrl_metra import SkillPrimer, make_env, make_metra
from torchrl_metra.evaluation import coverage, rollout_skills

CAR = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <geom type="plane" size="50 50 1"/>
    <body pos="0 0 0.1">
      <freejoint/>
      <geom type="box" size="0.2 0.12 0.04" mass="2"/>
      <geom type="sphere" size="0.05" pos="-0.15 0 -0.05" condim="1" priority="1"/>
      <body pos="0.1 0.15 0">
        <joint name="left" axis="0 1 0" damping="0.02"/>
        <geom type="cylinder" size="0.1 0.02" euler="90 0 0" mass="0.2"/>
      </body>
      <body pos="0.1 -0.15 0">
        <joint name="right" axis="0 1 0" damping="0.02"/>
        <geom type="cylinder" size="0.1 0.02" euler="90 0 0" mass="0.2"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="left" gear="0.5"/><motor joint="right" gear="0.5"/></actuator>
</mujoco>
"""


class Car(gymnasium.Env):
    """Two wheels with a motor each. There is no reward."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (9,))

    def __init__(self):
        self.model = mujoco.MjModel.from_xml_string(CAR)
        self.data = mujoco.MjData(self.model)

    def observe(self):
        """Where it is, where it heads, how fast it moves, turns and its wheels turn."""
        heading = self.data.xmat[1].reshape(3, 3)[:2, 0]
        parts = [self.data.qpos[:2], heading, self.data.qvel[:2], self.data.qvel[5:8]]
        return np.concatenate(parts).astype(np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        return self.observe(), {}

    def step(self, action):
        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, 5)
        return self.observe(), 0.0, False, False, {}


def main(total_frames=48_000):
    """Train, and count the cells of 1 m that 16 skills visit before and after."""
    episodes = {"max_steps": 100, "position": [0, 1]}  # entries of the observation
    trainer = make_metra(
        {"name": Car, **episodes},
        preset="laptop",
        num_cells=[64, 64],
        total_frames=total_frames,
        min_buffer_size=1_600,
    )
    policy = trainer.skill_policy
    # The same constants normalize the observations that training has measured.
    env = make_env(Car, 16, **episodes, normalize=policy.observation_norm)
    env.append_transform(SkillPrimer(policy.prior))

    def count():
        skills = policy.prior.evaluation_skills(16)
        return coverage(rollout_skills(env, policy, skills)["next", "position"])

    before = count()
    trainer.train()
    print(f"{before} cells before training, {count()} after it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.add_argument("--total-frames", type=int, help="environment steps")
    main(**vars(parser.parse_args()))
