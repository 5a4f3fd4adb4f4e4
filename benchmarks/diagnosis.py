"""Does a failing run warn of the right failure, and does a healthy run not warn?

The thresholds of ``torchrl_metra/trainers/diagnosis.py`` were chosen on failing and healthy runs of
PointEnv. They are tested on other runs, of HalfCheetah and with other seeds.

python benchmarks/diagnosis.py chosen_by
python benchmarks/diagnosis.py held_out
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import asdict, replace
from typing import Any

from failures import FAILURES, RESULTS, Case, train
from measuring import environment

from torchrl_metra.trainers import FailureWarning

# What the rules read, of everything that is logged.
WATCHED = {
    "alpha",
    "constraint_violation",
    "dual",
    "entropy",
    "intrinsic_reward",
    "latent_rank",
    "latent_step",
    "observation_spread_max",
    "observation_spread_min",
    "optim_steps",
    "policy_coverage",
    "skill_accuracy",
    "skill_alignment",
}
CHEETAH = Case(env="half_cheetah")
# What is wrong with a run, its seed and the run; None if nothing is.
RUNS: dict[str, list[tuple[str | None, int, Case]]] = {
    "chosen_by": [
        *[(name, 0, failure.case) for name, failure in FAILURES.items()],
        *[(name, 1, FAILURES[name].case) for name in ("skills ignored", "one direction")],
        ("encoder does not move", 0, Case(("+learning_rate.encoder=1e-7",))),
        *[(None, seed, Case()) for seed in range(5)],
    ],
    "held_out": [
        ("skills ignored", 10, replace(CHEETAH, blind=True)),
        ("observations too large", 11, replace(CHEETAH, scale=(1e2,))),
        ("observations too small", 12, replace(CHEETAH, scale=(1e-4,))),
        ("entropy wins", 13, replace(CHEETAH, settings=FAILURES["entropy wins"].case.settings)),
        ("dual too small", 14, replace(CHEETAH, settings=FAILURES["dual too small"].case.settings)),
        *[(None, seed, CHEETAH) for seed in range(10, 15)],
    ],
}


def main() -> None:
    """Train all and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", choices=list(RUNS))
    chosen = parser.parse_args().runs
    warnings.simplefilter("ignore", FailureWarning)
    record: dict[str, Any] = {"environment": environment(), "runs": []}
    for fails_by, seed, case in RUNS[chosen]:
        result = train(case, seed)
        curves = result.pop("curves")
        result["curves"] = {name: curves[name] for name in sorted(WATCHED & curves.keys())}
        right = result["found"][:1] == ([fails_by] if fails_by else [])
        print(
            f"{fails_by or 'healthy'}, seed {seed}: found {result['found']}, "
            f"{'right' if right else 'WRONG'} ({result['seconds']} s)",
            flush=True,
        )
        run = {"fails_by": fails_by, "right": right, "seed": seed, "case": asdict(case), **result}
        record["runs"].append(run)
    (RESULTS / f"diagnosis_{chosen}.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
