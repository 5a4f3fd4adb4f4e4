"""METRA from pixels in the Franka kitchen.

python examples/kitchen.py                      # the paper's settings; wants a GPU
python examples/kitchen.py +experiment=debug    # everything, in two minutes on two CPU cores
"""

import hydra
from omegaconf import DictConfig
from training import train

from torchrl_metra.trainers.names import suggest_names


@suggest_names()
@hydra.main(version_base="1.3", config_path="conf", config_name="kitchen")
def main(config: DictConfig) -> None:
    """Train with the settings of ``conf/kitchen.yaml``."""
    train(config)


if __name__ == "__main__":
    main()
