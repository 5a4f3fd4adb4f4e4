"""The kitchen from pixels: what skills solve there, counted by a hook of your own.

    python examples/kitchen.py                  # the paper's settings; wants a GPU
    python examples/kitchen.py --preset debug   # all of it, in two minutes

What you learn: how to write a hook. Coverage here is the number of tasks that were solved.
"""

import argparse

from tensordict import TensorDictBase

from torchrl_metra import make_metra
from torchrl_metra.envs import KITCHEN_TASKS


class CountTasks:
    """Logs for each task in how many of the steps of a batch it was solved."""

    def __call__(self, batch: TensorDictBase) -> dict[str, float]:
        solved = batch["next", "tasks"].float().flatten(0, -2).mean(0).tolist()
        self.rates = dict(zip(KITCHEN_TASKS, solved, strict=True))
        return {f"solved/{task}": rate for task, rate in self.rates.items()}


def main(preset: str = "paper", **settings: object) -> None:
    """Train, and count."""
    trainer = make_metra("kitchen", preset=preset, output="outputs/kitchen", **settings)
    trainer.register_op("post_steps_log", hook := CountTasks())
    trainer.train()
    print("solved at least once:", len(trainer.log_coverage.total), "tasks; of late:", hook.rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.add_argument("--preset", help="paper (default), laptop or debug")
    main(**vars(parser.parse_args()))
