"""METRA on Ant.

python examples/ant.py                       # the paper's settings
python examples/ant.py +experiment=ant_cpu   # hours on a CPU
"""

import hydra
from omegaconf import DictConfig
from training import train

from torchrl_metra.trainers.names import suggest_names


@suggest_names()
@hydra.main(version_base="1.3", config_path="conf", config_name="ant")
def main(config: DictConfig) -> None:
    """Train with the settings of ``conf/ant.yaml``."""
    train(config)


if __name__ == "__main__":
    main()
