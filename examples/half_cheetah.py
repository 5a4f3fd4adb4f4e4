"""METRA on HalfCheetah.

python examples/half_cheetah.py                          # the paper's settings
python examples/half_cheetah.py +experiment=quickstart   # minutes on two CPU cores
"""

import hydra
from omegaconf import DictConfig
from training import train

from torchrl_metra.trainers.names import suggest_names


@suggest_names()
@hydra.main(version_base="1.3", config_path="conf", config_name="half_cheetah")
def main(config: DictConfig) -> None:
    """Train with the settings of ``conf/half_cheetah.yaml``."""
    train(config)


if __name__ == "__main__":
    main()
