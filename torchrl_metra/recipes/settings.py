"""Every setting of a run: its name, its default, and what it means.

This is the one place where they stand. The factory :func:`~torchrl_metra.make_metra` takes them as
keyword arguments, the command ``metra`` on its line, Hydra files as ``trainer: metra``, and
``presets.toml`` changes some of them for an environment.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torchrl_metra._names import unknown

__all__ = [
    "CheckpointSettings",
    "DistributedSettings",
    "DownstreamSettings",
    "EncoderSettings",
    "EnvSettings",
    "FinetuneSettings",
    "METRASettings",
    "PixelSettings",
    "PolicySettings",
    "SACSettings",
    "Settings",
    "SkillSettings",
    "describe",
    "preset_names",
    "preset_values",
    "shown",
    "update",
]

_Settings = TypeVar("_Settings")


def setting(default: Any, help: str) -> Any:
    """A field with its comment."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    if isinstance(default, (type, partial)):
        return field(default_factory=default, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class EnvSettings:
    """The environment, see :func:`~torchrl_metra.make_env`."""

    name: Any = setting(
        None,
        "a name that `metra envs` lists, gym:ID, dm_control:DOMAIN-TASK, envpool:ID, or "
        "package.module:function; in Python the function itself, too",
    )
    max_steps: int | None = setting(
        None, "steps after which an episode is truncated; null: as the environment has it"
    )
    terminate: bool | None = setting(
        None, "false: episodes end by truncation only; null: as the environment has it"
    )
    position: Any = setting(
        None,
        "where the body is, for coverage: indices of the observation, or package.module:function "
        "of states; null: as the environment has it",
    )
    normalize: Any = setting(
        None, "false: leave observations as they are; null: by constants, measured if need be"
    )
    options: dict[str, Any] = setting({}, "passed on to what builds the environment")


@dataclass
class SkillSettings:
    """The distribution of the skills."""

    kind: str = setting("UnitSphere", "UnitSphere | StandardNormal | OneHot")
    dim: int = setting(2, "size of a skill, and of the latent space")


@dataclass
class PixelSettings:
    """Pictures in place of the state, see :class:`~torchrl_metra.PixelOptions`."""

    resolution: int | None = setting(
        None, "width and height of the pictures that networks see; null: they see the state"
    )
    frames: int = setting(3, "pictures in an observation, the newest last")
    quality: str = setting("fast", "fast | full")


@dataclass
class EncoderSettings:
    """Convolutions, for pictures only."""

    channels: int = setting(48, "of the first layer; each of the next ones has twice as many")
    shared_encoder: bool = setting(False, "true: policy and critics read φ's features")


@dataclass
class PolicySettings:
    """What the policy reads and how it acts."""

    position: bool = setting(
        True, "false: φ and the critics read where the body is, the policy does not"
    )
    smoothness: float = setting(0.0, "weight of a penalty on how far an action is from the next")


@dataclass
class METRASettings:
    """The objectives metra, l2 and csd, see :class:`~torchrl_metra.METRALoss`."""

    constraint_norm: str = setting("l2", "l2: the paper's norm; rms: that of the authors' code")
    slack: float = setting(1e-3, "ε of the constraint")
    dual_init: float = setting(30.0, "initial λ")


@dataclass
class SACSettings:
    """The policy's loss, see :class:`~torchrl_metra.BatchedSACLoss`."""

    alpha_init: float = setting(0.01, "initial entropy coefficient α")
    fixed_alpha: bool = setting(False, "true: α stays there")


@dataclass
class CheckpointSettings:
    """Checkpoints, in the folder ``output``."""

    interval: int | None = setting(500_000, "environment steps between two; null: none")
    keep: int = setting(2, "newest ones that are kept")
    replay_buffer: bool = setting(True, "with the replay buffer, most of a checkpoint")


@dataclass
class DistributedSettings:
    """Collection in several processes."""

    kind: str | None = setting(None, "multi_sync | multi_async | ray; null: in this process")
    workers: int = setting(2, "processes that collect")
    address: str | None = setting(None, "of a Ray cluster to join, or auto; null: one for this run")
    learner: str = setting("local", "ray: the learner and its replay buffer are Ray processes too")


@dataclass
class Settings:
    """Settings of a training run; defaults are those of the paper's tasks with states.

    Source: Appendix F.1 and the authors' implementation.
    """

    env: EnvSettings = setting(EnvSettings, "the environment")
    preset: str = setting("paper", "paper | laptop | debug: what the environment's preset sets")
    objective: str = setting("metra", "metra | l2 | csd | lsd | diayn | dads | cic | csf | rnd")
    skill: SkillSettings = setting(SkillSettings, "the distribution of the skills")
    pixels: PixelSettings = setting(PixelSettings, "pictures in place of the state")
    seed: int = setting(0, "of environments, networks and skills")
    device: str = setting("cpu", "of networks: cpu | cuda")

    output: str | None = setting(
        None, "folder of logs, checkpoints, pictures and the skill policy; null: write nothing"
    )
    logging: str | None = setting("csv", "csv | tensorboard | wandb; null: none")
    progress_bar: bool = setting(True, "show one")
    resume: str | None = setting(
        None, "auto: go on from the newest checkpoint in output, if any; or its path"
    )
    checkpoint: CheckpointSettings = setting(CheckpointSettings, "checkpoints, in output")

    num_envs: int = setting(8, "environments side by side, in each worker")
    backend: str | None = setting(None, "envpool | serial | parallel; null: the fastest there is")
    distributed: DistributedSettings = setting(
        DistributedSettings, "collection in several processes"
    )
    collection_timeout: float | None = setting(
        600.0, "seconds without a batch after which a worker counts as hanging; null: for ever"
    )

    num_cells: list[int] = setting([1024, 1024], "widths of the hidden layers of all networks")
    encoder: EncoderSettings = setting(EncoderSettings, "convolutions, for pictures only")
    policy: PolicySettings = setting(PolicySettings, "what the policy reads and how it acts")

    total_frames: int = setting(48_000_000, "environment steps")
    frames_per_batch: int = setting(1_600, "environment steps before each round of updates")
    optim_steps_per_batch: int = setting(50, "updates in a round")
    batch_size: int = setting(256, "transitions in an update")
    buffer_size: int = setting(1_000_000, "transitions in the replay buffer")
    buffer_device: str | None = setting(
        None, "of the replay buffer: cpu | cuda | a folder for memory-mapped files; null: device"
    )
    min_buffer_size: int = setting(10_000, "transitions before the first update")
    gamma: float = setting(0.99, "discount")
    learning_rate: dict[str, float] = setting(
        {"lr": 1e-4}, "lr: of all parts; encoder, dual, qvalue, actor, alpha: of one of them"
    )
    metra: METRASettings = setting(METRASettings, "the objectives metra, l2 and csd")
    sac: SACSettings = setting(SACSettings, "the policy's loss")

    evaluation_interval: int = setting(160_000, "environment steps between two evaluations")
    evaluation_episodes: int = setting(48, "in an evaluation, each with a skill of its own")
    evaluation_num_envs: int | None = setting(
        None, "environments side by side in an evaluation; null: one for each episode"
    )

    compile: bool = setting(False, "each update as one compiled graph, after half a minute")
    cudagraphs: bool = setting(False, "replay it as a CUDA graph")
    autocast: str | None = setting(None, "bfloat16: compute the losses in mixed precision")


@dataclass
class PPOSettings:
    """PPO above discrete skills; its frames are skills."""

    frames_per_batch: int = setting(512, "skills before each round of updates")
    num_epochs: int = setting(10, "times that they are learned from")
    batch_size: int = setting(64, "transitions in an update")
    lr: float = setting(1e-3, "learning rate")
    gamma: float = setting(0.9, "discount")
    lmbda: float = setting(0.95, "λ of the advantage estimate")
    entropy_coeff: float = setting(0.01, "entropy coefficient")


@dataclass
class TaskSACSettings:
    """SAC on a task; above skills, its frames are skills."""

    frames_per_batch: int = setting(1_600, "steps, or skills, before each round of updates")
    optim_steps_per_batch: int = setting(50, "updates in a round")
    batch_size: int = setting(256, "transitions in an update")
    buffer_size: int = setting(1_000_000, "transitions in the replay buffer")
    lr: float = setting(1e-3, "learning rate")
    gamma: float = setting(0.99, "discount")
    alpha_init: float = setting(0.1, "initial entropy coefficient α")
    fixed_alpha: bool = setting(False, "true: α stays there")


@dataclass
class DownstreamSettings:
    """Settings of a task that is learned with frozen skills, or without."""

    env: EnvSettings = setting(
        partial(EnvSettings, name="half_cheetah_goal"), "the task, such as ant_multi_goals"
    )
    skill_policy: str | None = setting(
        "outputs/quickstart/skill_policy.pt", "the skills; null: the environment's own actions"
    )
    skill_steps: int = setting(25, "environment steps that a skill is held")
    seed: int = setting(0, "of environments and networks")
    output: str | None = setting(
        None, "folder of the curve and the summary; null: outputs/ENVIRONMENT"
    )
    progress_bar: bool = setting(False, "show one")
    resume: str | None = setting(
        None, "auto: go on from the newest checkpoint in output, if any; or its path"
    )
    checkpoint: CheckpointSettings = setting(
        partial(CheckpointSettings, interval=200_000), "checkpoints, in output"
    )
    num_envs: int = setting(64, "environments side by side")
    backend: str | None = setting(None, "envpool | serial | parallel; null: the fastest there is")
    pixels: PixelSettings = setting(PixelSettings, "of tasks with pictures, without skills")
    num_cells: list[int] = setting([128, 128], "widths of the hidden layers of all networks")
    total_frames: int = setting(256_000, "environment steps, those within a skill each counted")
    evaluation_interval: int = setting(51_200, "environment steps between two evaluations")
    evaluation_episodes: int = setting(64, "side by side, always on the same goals")
    sac: TaskSACSettings = setting(
        partial(
            TaskSACSettings,
            frames_per_batch=128,
            optim_steps_per_batch=64,
            buffer_size=100_000,
            gamma=0.9,
            fixed_alpha=True,
        ),
        "the high level for continuous skills",
    )
    ppo: PPOSettings = setting(PPOSettings, "the high level for discrete skills")
    baseline: TaskSACSettings = setting(TaskSACSettings, "without skills")


@dataclass
class FinetuneSettings:
    """Settings of learning the environment's own reward, from a skill or from scratch."""

    env: EnvSettings = setting(partial(EnvSettings, name="half_cheetah"), "the environment")
    skill_policy: str = setting("outputs/quickstart/skill_policy.pt", "the skills")
    pretrained: bool = setting(True, "false: the same networks from scratch")
    critic_frames: int = setting(
        24_000, "environment steps in which a pretrained policy waits for its critics"
    )
    policy_lr: float = setting(2e-5, "learning rate of a pretrained policy, after that")
    candidates: int = setting(64, "skills among which the best is picked")
    seed: int = setting(0, "of environments and networks")
    output: str | None = setting("outputs/finetune", "folder of the curve and the summary")
    progress_bar: bool = setting(False, "show one")
    resume: str | None = setting(
        None, "auto: go on from the newest checkpoint in output, if any; or its path"
    )
    checkpoint: CheckpointSettings = setting(
        partial(CheckpointSettings, interval=200_000), "checkpoints, in output"
    )
    num_envs: int = setting(16, "environments side by side")
    backend: str | None = setting(None, "envpool | serial | parallel; null: the fastest there is")
    total_frames: int = setting(96_000, "environment steps")
    evaluation_interval: int = setting(16_000, "environment steps between two evaluations")
    evaluation_episodes: int = setting(16, "side by side")
    sac: TaskSACSettings = setting(
        partial(TaskSACSettings, optim_steps_per_batch=100, gamma=0.97, alpha_init=0.01),
        "on the environment's own reward",
    )


def update(settings: _Settings, values: Any, prefix: str = "") -> _Settings:
    """A copy of settings with some of them changed, sections by their parts.

    Args:
        settings (dataclass): such as ``Settings()``.
        values (mapping or dataclass): new values by name; mappings, or other settings, for
            sections.
        prefix (str, optional): how errors call the section.

    Raises:
        TypeError: if a value is of the wrong type.
        ValueError: if there is no such setting; says which one is nearest.

    Examples:
        >>> update(Settings(), {"skill": {"dim": 3}, "num_envs": 4}).skill
        SkillSettings(kind='UnitSphere', dim=3)
        >>> update(Settings(), {"num_env": 4})
        Traceback (most recent call last):
        ValueError: unknown setting 'num_env': did you mean 'num_envs'?
    """
    hints = _hints(type(settings))  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    if not isinstance(values, Mapping):
        values = _fields(values)
    for name, value in values.items():
        if name not in hints:
            known = [f"{prefix}{known}" for known in hints]
            raise ValueError(unknown("setting", f"{prefix}{name}", known))
        old = getattr(settings, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = _fields(value)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            changed[name] = update(old, value, f"{prefix}{name}.")
        elif isinstance(old, dict) and isinstance(value, Mapping):
            changed[name] = {**old, **value}
        else:
            changed[name] = _checked(f"{prefix}{name}", value, hints[name])
    return dataclasses.replace(settings, **changed)  # type: ignore[type-var]


def _fields(settings: Any) -> dict[str, Any]:
    return {part.name: getattr(settings, part.name) for part in dataclasses.fields(settings)}


def _checked(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is list and isinstance(value, (list, tuple)):
        (item,) = get_args(hint)
        return [_checked(f"{name}[{index}]", part, item) for index, part in enumerate(value)]
    is_union = get_origin(hint) in (Union, types.UnionType)
    kinds = get_args(hint) if is_union else (hint,)
    if Any in kinds or any(_is(value, kind) for kind in kinds):
        return float(value) if float in kinds and _is(value, int) else value
    expected = " or ".join("null" if kind is types.NoneType else _word(kind) for kind in kinds)
    raise TypeError(f"{name} must be {expected}, got {value!r}.")


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else get_origin(kind) or kind)


def _word(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        return f"a mapping of {', '.join(_hints(kind))}"  # type: ignore[arg-type]
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return words.get(kind, str(kind))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def shown(value: Any) -> str:
    """A value as the command takes it.

    Examples:
        >>> shown({"lr": 1e-4}), shown(None), shown(48_000_000)
        ('{lr:0.0001}', 'null', '48_000_000')
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{shown(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:_}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def describe(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting's dotted name, default and comment, in their order.

    Examples:
        >>> next(describe(SkillSettings(), "skill."))
        ('skill.kind', 'UnitSphere', 'UnitSphere | StandardNormal | OneHot')
    """
    for part in dataclasses.fields(settings):
        value = getattr(settings, part.name)
        if dataclasses.is_dataclass(value):
            yield from describe(value, f"{prefix}{part.name}.")
        else:
            yield f"{prefix}{part.name}", value, part.metadata["help"]


@cache
def _presets() -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("presets.toml").read_text())


def preset_names() -> list[str]:
    """The presets that every environment has."""
    return list(_presets()["any"])


def preset_values(env: str, preset: str) -> dict[str, Any]:
    """What a preset changes in :class:`Settings` for an environment.

    Each environment's presets build on its ``paper``; one that it lacks is that of any
    environment.

    Args:
        env (str): name of the environment.
        preset (str): one of :func:`preset_names`.

    Raises:
        ValueError: if there is no such preset.

    Examples:
        >>> preset_values("ant", "laptop")["num_cells"]
        [256, 256]
        >>> preset_values("gym:Walker2d-v5", "laptop")["num_cells"]
        [256, 256]
    """
    shared, own = _presets()["any"], _presets().get(env, {})
    if preset not in shared:
        raise ValueError(unknown("preset", preset, shared))
    paper = own.get("paper", shared["paper"])
    changes = {} if preset == "paper" else own.get(preset, shared[preset])
    return _merged(paper, changes)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(first)
    for name, value in second.items():
        is_section = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = _merged(result[name], value) if is_section else value
    return result
