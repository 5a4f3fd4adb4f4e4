"""METRA on a point in the plane, a minute on two CPU cores.

python examples/point.py
"""

import hydra
from omegaconf import DictConfig
from training import train

from torchrl_metra.trainers.names import suggest_names


@suggest_names()
@hydra.main(version_base="1.3", config_path="conf", config_name="point")
def main(config: DictConfig) -> None:
    """Train with the settings of ``conf/point.yaml``."""
    train(config)


if __name__ == "__main__":
    main()
