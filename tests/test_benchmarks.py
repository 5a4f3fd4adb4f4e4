"""The benchmarks measure what they say; how fast it is, they tell, not the tests."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_metra import SkillPolicy, UnitSphere, make_env, make_sac_networks
from torchrl_metra.envs import WindyPointEnv
from torchrl_metra.recipes import app


@pytest.fixture
def benchmark() -> Any:
    return importlib.import_module


def test_the_bare_loop_trains_every_part_as_the_package_does(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_loop, learner = benchmark("bare_loop"), benchmark("learner")
    sizes = bare_loop.Sizes(width=16, replay=512)
    bare = bare_loop.BareLoop(sizes)
    networks = {
        "encoder": [bare.encoder],
        "actor": [bare.actor],
        "critics": bare.critics,
        "targets": bare.targets,
    }
    before = {
        name: [p.clone() for module in modules for p in module.parameters()]
        for name, modules in networks.items()
    }
    for _ in range(3):
        bare.step()
    for name, modules in networks.items():
        after = [p for module in modules for p in module.parameters()]
        assert all(not a.equal(b) for a, b in zip(before[name], after, strict=True)), name
    assert bare.log_dual != math.log(30)
    assert bare.log_alpha != math.log(0.01)
    # The same number of weights on either side: neither does less work than the other.
    stepper = Mock()
    monkeypatch.setattr(learner, "METRAOptimizationStepper", stepper)
    learner.make_step(sizes)
    _, optimizers = stepper.call_args.args
    for part, modules in (("encoder", [bare.encoder]), ("qvalue", bare.critics)):
        ours = sum(p.numel() for p in optimizers[part].param_groups[0]["params"])
        assert ours == sum(p.numel() for module in modules for p in module.parameters())


def test_series_are_compared_round_by_round(benchmark: Any) -> None:
    measuring = benchmark("measuring")
    # The machine slows down threefold in the second round: the ratios do not notice.
    result = measuring.compare("name", "ms", [2.0, 6.0, 2.2], [1.0, 3.0, 1.1])
    assert result.ratio == pytest.approx(2.0)
    assert result.value == 2.2


def test_a_run_is_written_and_printed(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    run = benchmark("run")
    output = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["run.py", "replay", "--output", str(output)])
    monkeypatch.setattr(run, "in_own_process", run.run)
    monkeypatch.setattr(run, "plan", lambda has_cuda: {"replay": [("measure",)]})
    monkeypatch.setattr(benchmark("measuring"), "SECONDS_PER_ROUND", 0.01)
    threads = torch.get_num_threads()
    run.main()
    torch.set_num_threads(threads)
    record = json.loads(output.read_text())
    assert {"commit", "hardware", "torch"} <= record["environment"].keys()
    names = {result["name"]: result for result in record["results"]}
    bytes_per_transition = names["replay/state/bytes"]
    # Two observations of 29 floats, an action of 8, a skill of 2, two flags.
    assert bytes_per_transition["value"] == 4 * (29 + 29 + 8 + 2) + 2
    assert "replay/state/samples" in capsys.readouterr().out


def test_pixel_replay(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark("measuring"), "SECONDS_PER_ROUND", 0.01)
    replay = benchmark("replay")
    monkeypatch.setattr(replay, "_NUM_ENVS", 2)
    monkeypatch.setattr(replay, "_BATCH", 16)
    threads = torch.get_num_threads()
    size, sample, read = replay.measure_pixels(400)
    torch.set_num_threads(threads)
    assert 12_288 < size.value < 12_600
    assert size.yardstick > 73_700
    assert sample.value > 0
    assert read.value > 0


def test_every_planned_measurement_exists(benchmark: Any) -> None:
    for module, calls in benchmark("run").plan(has_cuda=True).items():
        for function, *arguments in calls:
            found = benchmark(module.removesuffix("_cuda"))  # What only a GPU can run.
            signature = inspect.signature(getattr(found, function))
            assert signature.bind(*arguments).args == tuple(arguments)


def test_what_scripts_train_is_understood(benchmark: Any, tmp_path: Path) -> None:
    assert app.compose("train", benchmark("guard").RUNS["quickstart"]).total_frames == 560_000
    for is_dry in (True, False):
        for name, stage in benchmark("gpu").plan(tmp_path, 1.0, is_dry).items():
            if "train" in stage.command:
                given = stage.command[stage.command.index("train") + 1 :]
                settings = app.compose("train", given)
                assert settings.env.name == name
                assert (settings.preset == "debug") == is_dry
                assert stage.results.parent == Path(settings.output)
    failures = benchmark("failures")
    settings = failures.read_settings(failures.FAILURES["dual explodes"].case, seed=3)
    assert settings.learning_rate == {"lr": 2e-3, "dual": 0.5}
    assert (settings.output, settings.seed, settings.metra.slack) == (None, 3, 0.0)
    cheetah = failures.read_settings(benchmark("diagnosis").CHEETAH, seed=0)
    assert (cheetah.preset, cheetah.total_frames) == ("laptop", 160_000)


def test_a_displaced_policy_reads_another_place(benchmark: Any) -> None:
    shift = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    policy = TensorDictModule(nn.Identity(), ["observation"], ["action"])
    data = TensorDict({"observation": torch.zeros(2, 4)}, [2])
    benchmark("random_starts").Displaced(policy, shift)(data)
    assert data["action"].tolist() == [[1.0, -2.0, 0.0, 0.0], [0.5, 3.0, 0.0, 0.0]]
    assert not data["observation"].any()


def test_a_blind_policy_does_not_read_the_skill(benchmark: Any) -> None:
    failures = benchmark("failures")
    case = failures.Case(("num_cells=[8,8]", "num_envs=2"), blind=True, scale=(2.0, 1.0))
    settings = failures.read_settings(case, 0)
    prior = UnitSphere(2)
    env = failures.make_world(case, prior, 2, seed=0)
    networks = failures.make_blind_networks(settings, env, prior)
    assert networks.policy.in_keys == ["observation"]
    rollout = env.rollout(3, networks.policy)
    torch.testing.assert_close(
        rollout["next", "observation"], rollout["next", "position"] * torch.tensor([2.0, 1.0])
    )


def test_stages_that_fail_or_take_too_long_lose_no_others(benchmark: Any, tmp_path: Path) -> None:
    gpu = benchmark("gpu")

    def python(code: str, **keywords: Any) -> Any:
        return gpu.Stage([sys.executable, "-c", code], **keywords)

    results, pid, stale = tmp_path / "results.json", tmp_path / "pid", tmp_path / "stale.json"
    stale.write_text("[0]")
    child = f"import subprocess; child = subprocess.Popen(['sleep', '60']); open({str(pid)!r}, 'w')"
    stop = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0));"
    stages = {
        "fails": python("print('why'); raise SystemExit(3)", results=stale),
        "hangs": python(f"{child}.write(str(child.pid)); child.wait()", seconds=2.0),
        "stops": python(f"{stop} time.sleep(60)", stop_after=2.0, seconds=30.0),
        "works": python(f"open({str(results)!r}, 'w').write('[1, 2]')", results=results),
        "leaves_nothing": python("pass", results=tmp_path / "nothing.json"),
    }
    assert not gpu.run(stages, tmp_path)
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {"commit", "hardware", "torch"} <= record.keys()
    found = record["stages"]
    assert {name: stage["outcome"] for name, stage in found.items()} == {
        "fails": "failed",
        "hangs": "took too long",
        "stops": "done",
        "works": "done",
        "leaves_nothing": "failed",
    }
    assert (found["fails"]["rc"], found["fails"]["tail"].split("\n")[-2]) == (3, "why")
    assert found["fails"]["numbers"] is None, "of an earlier run"
    assert found["works"]["numbers"] == [1, 2]
    assert "why" in (tmp_path / "log.txt").read_text()
    # A child of a stage that was killed is gone, too, or about to be.
    status = Path(f"/proc/{pid.read_text()}/status")
    for _ in range(50):
        if not status.exists() or "State:\tZ" in status.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("it outlives the stage")


def test_a_dry_run_on_the_cpu_gives_a_row_for_each_variant(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = benchmark("gpu")
    monkeypatch.setattr(benchmark("measuring"), "SECONDS_PER_ROUND", 1.0)
    variants = {name: gpu.STATES[name] for name in ("eager/float32", "eager/bfloat16")}
    monkeypatch.setitem(gpu.VARIANTS, "learner", {**variants, "broken": {"no_switch": True}})
    assert not gpu.measure("learner", tmp_path, dry_run=True)
    *rows, broken = json.loads((tmp_path / "learner.json").read_text())
    assert [row["name"] for row in rows] == [f"learner/cpu/{name}" for name in variants]
    for row in rows:
        assert row["value"] / row["yardstick"] == pytest.approx(row["ratio"], rel=1e-2)
    assert broken["error"]


class TestAsymmetry:
    def test_fewest_steps(self, benchmark: Any) -> None:
        """Against the environment: as many steps lead there, and one less does not."""
        fewest_steps = benchmark("asymmetry").fewest_steps
        goals = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [3.0, -3.0], [-1.0, 3.0]])
        steps = fewest_steps(goals, 0.1)
        assert steps.tolist() == pytest.approx([10, 30, 15, 15, 15])
        torch.testing.assert_close(fewest_steps(goals, 0.0), goals.abs().amax(-1) / 0.2)
        env = WindyPointEnv(len(goals))
        state = env.reset()
        for _ in range(30):
            remaining = goals - state["position"]
            is_there = remaining.norm(dim=-1) < 1e-3
            state = env.step(state.set("action", remaining - torch.tensor([0.1, 0.0])))["next"]
            steps = steps - 1
            assert (is_there == (steps < -0.5)).all()
        assert (goals - state["position"]).abs().max() < 1e-3

    def test_measure(self, benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        asymmetry = benchmark("asymmetry")
        monkeypatch.setattr(asymmetry, "NUM_SKILLS", 48)
        prior = UnitSphere(2)
        networks = make_sac_networks(2, make_env("point").action_spec, prior, num_cells=[8])
        policy = SkillPolicy.from_networks(networks, prior)
        # φ(s) = 2 s: a step of 0.3 becomes 0.6.
        policy.encoder.module = torch.nn.Linear(2, 2, bias=False)
        policy.encoder.module.weight.data = 2 * torch.eye(2)
        results = asymmetry.measure(policy, "windy_point")
        for name, step, steps in (
            ("downwind", 0.6, 100 / 3), ("upwind", 0.2, 100), ("across, left", 0.4, 50)
        ):  # fmt: skip
            assert results[name]["latent_step"] == pytest.approx(step, rel=1e-3)
            assert results[name]["temporal_distance"] == pytest.approx(steps)
            assert results[name]["latent_distance"] == pytest.approx(20)
            assert results[name]["final_distance"] > 0
        assert results["pairs"]["beyond_longer_way"] == 0.0
        asymmetry.draw({"windy_point": policy}, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 10_000
