"""A robot of your own: a small car, built here from an MJCF string, learns where it can drive.

    python examples/your_robot.py

What you learn: a MuJoCo model, and what is observed of it, are all that METRA needs; the model of a
file needs no script at all, `metra train env=mujoco:robot.xml`. It takes a minute.
Needs ``pip install 'torchrl-metra[run,mujoco]'``.
"""

import argparse

import mujoco
import numpy as np

from torchrl_metra import MuJoCoPoolEnv, MuJoCoTask, SkillPrimer, make_env, make_metra
from torchrl_metra.envs import add_frame_sensors, measured
from torchrl_metra.evaluation import coverage, rollout_skills

CAR = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <geom type="plane" size="50 50 1"/>
    <body name="car" pos="0 0 0.1">
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


def make_cars(num_envs=None, max_steps=100):
    """Cars with a motor for each of two wheels, all stepped at once."""
    spec = mujoco.MjSpec.from_string(CAR)
    add_frame_sensors(spec, {"car": "xaxis"})
    model = spec.compile()
    heading = measured(model, "car/xaxis")[:2]

    def observation(qpos, qvel, act, sensordata):
        """Where it is, where it heads, how fast it moves, turns and its wheels turn."""
        return np.concatenate([qpos[:, :2], sensordata[:, heading], qvel[:, [0, 1, 5, 6, 7]]], 1)

    task = MuJoCoTask.of(model, frame_skip=5, observation=observation)
    return MuJoCoPoolEnv(task, num_envs, max_steps=max_steps)


def main(total_frames=48_000):
    """Train, and count the cells of 1 m that 16 skills visit before and after."""
    cars = {"max_steps": 100, "position": [0, 1]}  # entries of the observation
    trainer = make_metra(
        {"name": make_cars, **cars},
        preset="laptop",
        num_cells=[64, 64],
        total_frames=total_frames,
        min_buffer_size=1_600,
    )
    policy = trainer.skill_policy
    # The same constants normalize the observations that training has measured.
    env = make_env(make_cars, 16, **cars, normalize=policy.observation_norm)
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
