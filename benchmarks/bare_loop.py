"""The yardstick: METRA in plain PyTorch, as one would write it for a single task.

It has the same networks, order of updates and batches as the package, but no TorchRL, TensorDict or
options. It does what every careful script does: fused Adam, φ of both states in one call, and no
unnecessary gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Sizes:
    """The sizes that determine the time of a gradient step on vector observations."""

    width: int
    observation: int = 29
    action: int = 8
    skill: int = 2
    batch: int = 256
    replay: int = 100_000


class BareLoop:
    """One METRA learner with its replay memory; ``step`` is one gradient step of all parts."""

    def __init__(self, sizes: Sizes, device: str = "cpu", lr: float = 1e-4) -> None:
        self.sizes = sizes
        state = sizes.observation + sizes.skill
        self.encoder = mlp(sizes.observation, sizes.width, sizes.skill, nn.ReLU).to(device)
        self.actor = mlp(state, sizes.width, 2 * sizes.action, nn.Tanh).to(device)
        critics = [mlp(state + sizes.action, sizes.width, 1, nn.ReLU).to(device) for _ in range(4)]
        self.critics, self.targets = critics[:2], critics[2:]
        self.critic_weights = [p for critic in self.critics for p in critic.parameters()]
        self.target_weights = [p for critic in self.targets for p in critic.parameters()]
        for target, source in zip(self.target_weights, self.critic_weights, strict=True):
            target.data.copy_(source.data)
        self.log_dual = nn.Parameter(torch.tensor(math.log(30.0), device=device))
        self.log_alpha = nn.Parameter(torch.tensor(math.log(0.01), device=device))
        self.optimizers = {
            name: torch.optim.Adam(parameters, lr=lr, fused=True)
            for name, parameters in {
                "encoder": self.encoder.parameters(),
                "dual": [self.log_dual],
                "critics": self.critic_weights,
                "actor": self.actor.parameters(),
                "alpha": [self.log_alpha],
            }.items()
        }
        self.replay = {
            "observation": torch.randn(sizes.replay, sizes.observation, device=device),
            "next_observation": torch.randn(sizes.replay, sizes.observation, device=device),
            "action": torch.rand(sizes.replay, sizes.action, device=device) * 2 - 1,
            "skill": F.normalize(torch.randn(sizes.replay, sizes.skill, device=device), dim=-1),
            "terminated": torch.zeros(sizes.replay, 1, dtype=torch.bool, device=device),
        }

    def step(self) -> None:
        """Sample, then update φ and λ, compute rewards, update critics, actor, α and targets."""
        index = torch.randint(self.sizes.replay, (self.sizes.batch,), device=self.log_dual.device)
        batch = {key: value[index] for key, value in self.replay.items()}
        state = torch.cat([batch["observation"], batch["skill"]], dim=-1)
        next_state = torch.cat([batch["next_observation"], batch["skill"]], dim=-1)

        step = self.latent_step(batch)
        reward = (step * batch["skill"]).sum(-1)
        constraint = (1 - step.square().mean(-1)).clamp(max=1e-3)
        loss_encoder = -(reward + self.log_dual.detach().exp() * constraint).mean()
        loss_dual = (self.log_dual * constraint.detach()).mean()
        self.descend(loss_encoder + loss_dual, "encoder", "dual")

        with torch.no_grad():
            reward = (self.latent_step(batch) * batch["skill"]).sum(-1, keepdim=True)
            action, log_prob = self.act(next_state)
            value = torch.min(*self.values(self.targets, next_state, action))
            value = value - self.log_alpha.exp() * log_prob
            target = reward + 0.99 * ~batch["terminated"] * value
        first, second = self.values(self.critics, state, batch["action"])
        self.descend(F.mse_loss(first, target) + F.mse_loss(second, target), "critics")

        action, log_prob = self.act(state)
        for parameter in self.critic_weights:
            parameter.requires_grad_(False)
        value = torch.min(*self.values(self.critics, state, action))
        self.descend((self.log_alpha.detach().exp() * log_prob - value).mean(), "actor")
        for parameter in self.critic_weights:
            parameter.requires_grad_(True)

        target_entropy = -self.sizes.action / 2
        loss_alpha = -(self.log_alpha * (log_prob.detach() + target_entropy)).mean()
        self.descend(loss_alpha, "alpha")
        with torch.no_grad():
            torch._foreach_lerp_(self.target_weights, self.critic_weights, 0.005)

    def latent_step(self, batch: dict[str, Tensor]) -> Tensor:
        """φ(s') - φ(s)."""
        pair = torch.cat([batch["observation"], batch["next_observation"]])
        latent, next_latent = self.encoder(pair).chunk(2)
        return next_latent - latent

    def act(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """An action of the Tanh-Normal policy and its log-probability."""
        loc, log_scale = self.actor(state).chunk(2, dim=-1)
        log_scale = log_scale.clamp(math.log(1e-6), 2.0)
        noise = torch.randn_like(loc)
        action = (loc + log_scale.exp() * noise).tanh()
        log_prob = -0.5 * noise.square() - log_scale - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - (1 - action.square() + 1e-6).log()
        return action, log_prob.sum(-1, keepdim=True)

    def values(self, critics: list[nn.Module], state: Tensor, action: Tensor) -> list[Tensor]:
        """Each critic's value."""
        inputs = torch.cat([state, action], dim=-1)
        return [critic(inputs) for critic in critics]

    def descend(self, loss: Tensor, *parts: str) -> None:
        """One step of these parts."""
        loss.backward()
        for part in parts:
            self.optimizers[part].step()
            self.optimizers[part].zero_grad()


def mlp(inputs: int, width: int, outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, outputs),
    )
