"""Quadruped from pixels: an encoder φ of your own beside the paper's policy and critics.

    python examples/quadruped.py --preset debug   # without it, the paper's, which wants a GPU

What you learn: how networks are put together. Skills differ in what φ sees and in nothing else.
"""

import argparse
from dataclasses import replace

from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import MLP, ConvNet

from torchrl_metra import UnitSphere, make_metra, make_pixel_sac_networks


class NewestPicture(nn.Sequential):
    """φ of the newest of three pictures, which tells the place and not the speed."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels[..., -3:, :, :] / 255)


def main(preset: str = "paper", **settings: object) -> None:
    """Train with networks of one's own."""
    prior, actions = UnitSphere(4), Bounded(-1.0, 1.0, (12,))
    networks = make_pixel_sac_networks((9, 64, 64), actions, prior, channels=16)
    convolutions = ConvNet(in_features=3, num_cells=[16, 32, 64], kernel_sizes=4, strides=2)
    encoder = NewestPicture(convolutions, MLP(64 * 6 * 6, prior.dim, num_cells=[256]))
    module = TensorDictModule(encoder, in_keys=["pixels"], out_keys=["latent"])
    networks = replace(networks, encoder=module, architecture=None)
    trainer = make_metra("quadruped", prior, networks=networks, preset=preset, **settings)
    trainer.train()
    trainer.skill_policy.save("outputs/quadruped/skill_policy.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.add_argument("--preset", help="paper (default), laptop or debug")
    main(**vars(parser.parse_args()))
