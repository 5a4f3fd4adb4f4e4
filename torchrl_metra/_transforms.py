"""What lies around an environment."""

from __future__ import annotations

from collections.abc import Iterator

from torchrl.envs import Compose, EnvBase, Transform, TransformedEnv


def transforms_of(env: EnvBase) -> Iterator[Transform]:
    """An environment's transforms, in the order in which they see an observation.

    Those of transformed environments inside come first; those in workers are out of sight.

    Examples:
        >>> from torchrl_metra import make_env
        >>> [type(transform).__name__ for transform in transforms_of(make_env("point_goal"))]
        ['ActionScaling', 'ReachGoals']
    """
    if isinstance(env, TransformedEnv):
        yield from transforms_of(env.base_env)
        for part in env.transform.modules():
            if isinstance(part, Transform) and not isinstance(part, Compose):
                yield part


def base_of(env: EnvBase) -> EnvBase:
    """The environment below all transforms."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env
