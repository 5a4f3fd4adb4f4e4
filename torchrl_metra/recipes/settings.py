"""Every setting of a run: its name, its default, and what it means.

The factory :func:`~torchrl_metra.make_metra` takes them as keyword arguments, the command
``metra`` on its line, Hydra files as ``trainer: metra``, and ``presets.toml`` changes some of them
for an environment. What stands under ``Attributes:`` is what ``metra train --help`` prints.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torchrl_metra._checks import check_choice, check_type

PRESETS = tomllib.loads(Path(__file__).with_name("presets.toml").read_text())
_Settings = TypeVar("_Settings")


@dataclass
class EnvSettings:
    """The environment, see :func:`~torchrl_metra.make_env`.

    Attributes:
        name: a name that `metra envs` lists, mujoco:FILE, gym:ID, dm_control:DOMAIN-TASK,
            envpool:ID, or package.module:function; in Python the function itself, too
        max_steps: steps after which an episode is truncated; null: as the environment has it
        terminate: true: falls end episodes, of the robots that tell; false: only truncation does;
            null: as the environment has it
        position: where the body is, for coverage: indices of the observation, or
            package.module:function of states; null: as the environment has it
        normalize: false: leave observations as they are; null: by constants, measured if need be
        options: a mapping that is passed on to what builds the environment; null: none
    """

    name: Any = None
    max_steps: int | None = None
    terminate: bool | None = None
    position: Any = None
    normalize: Any = None
    # Not an empty mapping, into which Hydra would let no new names.
    options: Any = None


@dataclass
class SkillSettings:
    """The distribution of the skills.

    Attributes:
        kind: UnitSphere | UnitBall | StandardNormal | OneHot
        dim: size of a skill, and of the latent space
        switch: probability, at each step, of a new skill within the episode
    """

    kind: str = "UnitSphere"
    dim: int = 2
    switch: float = 0.0


@dataclass
class PixelSettings:
    """Pictures in place of the state, see :class:`~torchrl_metra.PixelOptions`.

    Attributes:
        resolution: width and height of the pictures that networks see; null: they see the state
        frames: pictures in an observation, the newest last
        quality: fast | full
        zoom: how many times as large things in the middle appear
    """

    resolution: int | None = None
    frames: int = 3
    quality: str = "fast"
    zoom: float = 1.0


@dataclass
class EncoderSettings:
    """Convolutions, for pictures only.

    Attributes:
        channels: of the first layer; each of the next ones has twice as many
        features: of a picture, by a small network of patches; null: by the authors' convolutions
        shared_encoder: critics: policy and critics share one, which the critics train; true: they
            read φ's features
    """

    channels: int = 48
    features: int | None = None
    shared_encoder: bool | str = False


@dataclass
class PolicySettings:
    """What the policy reads and how it acts.

    Attributes:
        position: false: φ and the critics read where the body is, the policy does not
        smoothness: weight of a penalty on how far an action is from the next
        bottleneck: for the objective genda, size of what the policy reads in place of the state;
            null: it reads the state
    """

    position: bool = True
    smoothness: float = 0.0
    bottleneck: int | None = None


@dataclass
class METRASettings:
    """The objectives metra, l2 and csd, see :class:`~torchrl_metra.METRALoss`.

    Attributes:
        constraint_norm: l2: the paper's norm; rms: that of the authors' code
        slack: ε of the constraint
        dual_init: initial λ
    """

    constraint_norm: str = "l2"
    slack: float = 1e-3
    dual_init: float = 30.0


@dataclass
class RelabelSettings:
    """Skills in hindsight, see :class:`~torchrl_metra.RelabelSkills`.

    Attributes:
        enabled: true: relabel the skills of stored episodes; null: if the objective is genda
        steps_ahead: environment steps after which the policy's direction is measured
        rarity: probability below which the policy keeps a skill that episodes rarely follow
        uniformity: weight of the uniformity of directions, for the objective genda
    """

    enabled: bool | None = None
    steps_ahead: int = 25
    rarity: float = 0.4
    uniformity: float = 1.0


@dataclass
class SACSettings:
    """The policy's loss, see :class:`~torchrl_metra.BatchedSACLoss`.

    Attributes:
        alpha_init: initial entropy coefficient α
        fixed_alpha: true: α stays there
        target_entropy: of the policy, for each entry of an action
    """

    alpha_init: float = 0.01
    fixed_alpha: bool = False
    target_entropy: float = -0.5


@dataclass
class CheckpointSettings:
    """Checkpoints, in the folder ``output``.

    Attributes:
        interval: environment steps between two; null: none
        keep: newest ones that are kept
        replay_buffer: with the replay buffer, most of a checkpoint
    """

    interval: int | None = 500_000
    keep: int = 2
    replay_buffer: bool = True


@dataclass
class DistributedSettings:
    """Collection in several processes.

    Attributes:
        kind: multi_sync | multi_async | ray; null: in this process
        workers: processes that collect
        address: of a Ray cluster to join, or auto; null: one for this run
        learner: ray: the learner and its replay buffer are Ray processes too
    """

    kind: str | None = None
    workers: int = 2
    address: str | None = None
    learner: str = "local"


@dataclass
class Settings:
    """Settings of a training run; defaults are those of the paper's tasks with states.

    Source: Appendix F.1 and the authors' implementation.

    Attributes:
        preset: paper | laptop | pixels | debug: what the environment's preset sets
        objective: metra | genda | l2 | csd | lsd | diayn | dads | cic | csf | rnd
        seed: of environments, networks and skills
        device: of networks: cpu | cuda
        output: folder of logs, checkpoints, pictures and the skill policy; null: write nothing
        logging: csv | tensorboard | wandb; null: none
        progress_bar: show one
        resume: auto: go on from the newest checkpoint in output, if any; or its path
        num_envs: environments side by side, in each worker
        backend: mujoco | serial | parallel | envpool; null: the fastest there is
        collection_timeout: seconds without a batch after which a worker counts as hanging; null:
            for ever
        num_cells: widths of the hidden layers of all networks
        layer_norm: true: the critics have layer normalization
        total_frames: environment steps
        frames_per_batch: environment steps before each round of updates
        updates_per_step: updates per environment step; in a round, a whole number of them
        batch_size: transitions in an update
        buffer_size: transitions in the replay buffer
        buffer_device: of the replay buffer: cpu | cuda | a folder for memory-mapped files; null:
            device
        min_buffer_size: transitions before the first update
        gamma: discount
        learning_rate: lr: of all parts; encoder, dual, bottleneck, qvalue, actor, alpha: of one of
            them
        evaluation_interval: environment steps between two evaluations
        evaluation_episodes: in an evaluation, each with a skill of its own
        evaluation_num_envs: environments side by side in an evaluation; null: one for each episode
        compile: true: each update as one compiled graph, after half a minute; auto: if there is a
            C++ compiler and enough to compute
        cudagraphs: replay it as a CUDA graph
        autocast: bfloat16: compute the losses in mixed precision, unless it would make a CPU slow
    """

    env: EnvSettings = field(default_factory=EnvSettings)
    preset: str = "paper"
    objective: str = "metra"
    skill: SkillSettings = field(default_factory=SkillSettings)
    pixels: PixelSettings = field(default_factory=PixelSettings)
    seed: int = 0
    device: str = "cpu"

    output: str | None = None
    logging: str | None = "csv"
    progress_bar: bool = True
    resume: str | None = None
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)

    num_envs: int = 8
    backend: str | None = None
    distributed: DistributedSettings = field(default_factory=DistributedSettings)
    collection_timeout: float | None = 600.0

    num_cells: list[int] = field(default_factory=lambda: [1024, 1024])
    layer_norm: bool = False
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)

    total_frames: int = 48_000_000
    frames_per_batch: int = 1_600
    updates_per_step: float = 0.03125
    batch_size: int = 256
    buffer_size: int = 1_000_000
    buffer_device: str | None = None
    min_buffer_size: int = 10_000
    gamma: float = 0.99
    learning_rate: dict[str, float] = field(default_factory=lambda: {"lr": 1e-4})
    metra: METRASettings = field(default_factory=METRASettings)
    relabel: RelabelSettings = field(default_factory=RelabelSettings)
    sac: SACSettings = field(default_factory=SACSettings)

    evaluation_interval: int = 160_000
    evaluation_episodes: int = 48
    evaluation_num_envs: int | None = None

    compile: bool | str = False
    cudagraphs: bool = False
    autocast: str | None = None


@dataclass
class PPOSettings:
    """PPO above discrete skills; its frames are skills.

    Attributes:
        frames_per_batch: skills before each round of updates
        num_epochs: times that they are learned from
        batch_size: transitions in an update
        lr: learning rate
        gamma: discount
        lmbda: λ of the advantage estimate
        entropy_coeff: entropy coefficient
    """

    frames_per_batch: int = 512
    num_epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    gamma: float = 0.9
    lmbda: float = 0.95
    entropy_coeff: float = 0.01


@dataclass
class TaskSACSettings:
    """SAC on a task; above skills, its frames are skills.

    Attributes:
        frames_per_batch: steps, or skills, before each round of updates
        optim_steps_per_batch: updates in a round
        batch_size: transitions in an update
        buffer_size: transitions in the replay buffer
        lr: learning rate
        gamma: discount
        alpha_init: initial entropy coefficient α
        fixed_alpha: true: α stays there
    """

    frames_per_batch: int = 1_600
    optim_steps_per_batch: int = 50
    batch_size: int = 256
    buffer_size: int = 1_000_000
    lr: float = 1e-3
    gamma: float = 0.99
    alpha_init: float = 0.1
    fixed_alpha: bool = False


@dataclass
class TaskSettings:
    """What the commands ``downstream`` and ``finetune`` have in common.

    Attributes:
        seed: of environments and networks
        output: folder of the curve and the summary; null: outputs/ENVIRONMENT
        progress_bar: show one
        resume: auto: go on from the newest checkpoint in output, if any; or its path
        num_envs: environments side by side
        backend: mujoco | serial | parallel | envpool; null: the fastest there is
        total_frames: environment steps, those within a skill each counted
        evaluation_interval: environment steps between two evaluations
        evaluation_episodes: side by side, always from the same starts
    """

    env: EnvSettings = field(default_factory=EnvSettings)
    seed: int = 0
    output: str | None = None
    progress_bar: bool = False
    resume: str | None = None
    checkpoint: CheckpointSettings = field(
        default_factory=lambda: CheckpointSettings(interval=200_000)
    )
    num_envs: int = 64
    backend: str | None = None
    total_frames: int = 256_000
    evaluation_interval: int = 51_200
    evaluation_episodes: int = 64


@dataclass
class DownstreamSettings(TaskSettings):
    """Settings of a task that is learned with frozen skills, or without.

    Attributes:
        skill_policy: the skills; null: the environment's own actions
        skill_steps: environment steps that a skill is held
        num_cells: widths of the hidden layers of all networks
    """

    env: EnvSettings = field(default_factory=lambda: EnvSettings(name="half_cheetah_goal"))
    skill_policy: str | None = "outputs/quickstart/skill_policy.pt"
    skill_steps: int = 25
    pixels: PixelSettings = field(default_factory=PixelSettings)
    num_cells: list[int] = field(default_factory=lambda: [128, 128])
    sac: TaskSACSettings = field(
        default_factory=lambda: TaskSACSettings(
            frames_per_batch=128,
            optim_steps_per_batch=64,
            buffer_size=100_000,
            gamma=0.9,
            fixed_alpha=True,
        )
    )
    ppo: PPOSettings = field(default_factory=PPOSettings)
    baseline: TaskSACSettings = field(default_factory=TaskSACSettings)


@dataclass
class FinetuneSettings(TaskSettings):
    """Settings of learning the environment's own reward, from a skill or from scratch.

    Attributes:
        skill_policy: the skills
        pretrained: false: the same networks from scratch
        critic_frames: environment steps in which a pretrained policy waits for its critics
        policy_lr: learning rate of a pretrained policy, after that
        candidates: skills among which the best is picked
    """

    env: EnvSettings = field(default_factory=lambda: EnvSettings(name="half_cheetah"))
    output: str | None = "outputs/finetune"
    num_envs: int = 16
    total_frames: int = 96_000
    evaluation_interval: int = 16_000
    evaluation_episodes: int = 16
    skill_policy: str = "outputs/quickstart/skill_policy.pt"
    pretrained: bool = True
    critic_frames: int = 24_000
    policy_lr: float = 2e-5
    candidates: int = 64
    sac: TaskSACSettings = field(
        default_factory=lambda: TaskSACSettings(
            optim_steps_per_batch=100, gamma=0.97, alpha_init=0.01
        )
    )


def update(settings: _Settings, values: Any, prefix: str = "") -> _Settings:
    """A copy of settings with some of them changed, sections by their parts.

    Args:
        settings (dataclass): such as ``Settings()``.
        values (mapping or dataclass): new values by name; mappings, or other settings, for
            sections.
        prefix (str, optional): how errors call the section.

    Raises:
        ValueError: if there is no such setting; says which one is nearest.

    Examples:
        >>> update(Settings(), {"skill": {"dim": 3}, "num_envs": 4}).skill
        SkillSettings(kind='UnitSphere', dim=3, switch=0.0)
        >>> update(Settings(), {"num_env": 4})
        Traceback (most recent call last):
        ValueError: unknown setting 'num_env': did you mean 'num_envs'?
    """
    known, changed = vars(settings), {}
    values = vars(values) if dataclasses.is_dataclass(values) else values
    check_type(prefix[:-1], values, Mapping, f"a mapping of {', '.join(known)}")
    for name, value in values.items():
        check_choice("setting", f"{prefix}{name}", [f"{prefix}{other}" for other in known])
        if dataclasses.is_dataclass(known[name]):
            value = update(known[name], value, f"{prefix}{name}.")
        elif isinstance(known[name], dict):
            value = {**known[name], **value}
        changed[name] = value
    return dataclasses.replace(settings, **changed)  # type: ignore[type-var]


def shown(value: Any) -> str:
    """A value as the command takes it.

    Examples:
        >>> shown({"lr": 1e-4}), shown(None), shown(48_000_000)
        ('{lr:0.0001}', 'null', '48_000_000')
    """
    if isinstance(value, int) and value >= 10_000:
        return f"{value:_}"
    return json.dumps(value, separators=(",", ":")).replace('"', "")


def describe(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Each setting's dotted name, value and comment, in their order.

    Examples:
        >>> next(describe(SkillSettings(), "skill."))
        ('skill.kind', 'UnitSphere', 'UnitSphere | UnitBall | StandardNormal | OneHot')
    """
    docstrings = "\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in type(settings).__mro__)
    found = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", docstrings, re.MULTILINE)
    comments = {name: " ".join(comment.split()) for name, comment in found}
    for name, value in vars(settings).items():
        if dataclasses.is_dataclass(value):
            yield from describe(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, comments.get(name, "")


def preset_names() -> list[str]:
    """The presets that every environment has."""
    return list(PRESETS["any"])


def preset_values(env: str, preset: str) -> dict[str, Any]:
    """What a preset changes in :class:`Settings` for an environment.

    Each environment's presets build on its ``paper`` and, with ``extends``, on one of any
    environment. One that it lacks is that of any environment.

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
    shared, own = PRESETS["any"], PRESETS.get(env, {})
    check_choice("preset", preset, shared)
    values = copy.deepcopy(own.get("paper", shared["paper"]))
    changes = {} if preset == "paper" else copy.deepcopy(own.get(preset, shared[preset]))
    base = copy.deepcopy(shared[changes.pop("extends", "paper")])
    for name, value in (*base.items(), *changes.items()):
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return values
