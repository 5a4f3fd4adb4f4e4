"""METRA from pixels on Humanoid.

python examples/humanoid.py                      # the paper's settings; wants a GPU
python examples/humanoid.py +experiment=debug    # everything, in two minutes on two CPU cores
"""

import hydra
from omegaconf import DictConfig
from training import train

from torchrl_metra.trainers.names import suggest_names


@suggest_names()
@hydra.main(version_base="1.3", config_path="conf", config_name="humanoid")
def main(config: DictConfig) -> None:
    """Train with the settings of ``conf/humanoid.yaml``."""
    train(config)


if __name__ == "__main__":
    main()
