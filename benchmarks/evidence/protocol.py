"""What is compared with what, on which tasks, with which settings and seeds.

`docs/results/protocol.md` says it in words, and why. Everything here was written down before the
runs that it is about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.cells import Cell, seeds_run
from benchmarks.evidence.published import CLEANRL_CONTINUOUS, CLEANRL_DISCRETE

TUNING_SEEDS = (0, 1)
SEEDS = (100, 101, 102, 103, 104)
EVALUATION_EPISODES = 20
# Of tuning: GPG's settings are chosen on runs of this share of the env steps.
TUNING_SHARE = 0.25

RLLIB_PPO, PPO_LAMBDA_1, SB3_PPO = "rllib-ppo", "ppo-lambda-1", "sb3-ppo"
GPG_PAPER, GPG = "gpg-paper", "gpg"
CONTENDERS = (RLLIB_PPO, SB3_PPO, PPO_LAMBDA_1, GPG_PAPER, GPG)
# The road from PPO to GPG as recommended; the first two and the last are contenders above.
LADDER = (RLLIB_PPO, PPO_LAMBDA_1, "universal", "time", "ridge-1", GPG)
GROUP_SIZES = (2, 4, 8, 16, 32, 64)

# GPG's settings of a group's advantages, by name.
ADVANTAGES: dict[str, dict[str, Any]] = {
    "universal": {"binning": "universal"},
    "time": {},
    "ridge-1": {"baseline": "ridge"},
    "ridge-0.98": {"baseline": "ridge", "lambda_": 0.98},
    "ridge-0.95": {"baseline": "ridge", "lambda_": 0.95},
}
# What GPG is chosen from, for each task: as many candidates with bins as with the ridge.
CANDIDATES: tuple[tuple[str, int], ...] = (
    *(("time", n) for n in (4, 8, 16, 32)),
    *((name, n) for name in ("ridge-0.98", "ridge-0.95") for n in (4, 8)),
)

# GPG's update: on discrete actions its defaults, on continuous ones CleanRL's of PPO.
GPG_DISCRETE = {"lr": 1e-3, "num_epochs": 4, "num_minibatches": 4}
GPG_CONTINUOUS = {"lr": 3e-4, "num_epochs": 10, "minibatch_size": 64}


def evaluation_seed(seed: int) -> int:
    """The seed of the first env of a run's evaluation; the others count on from it."""
    return 1_000_000 + 1_000 * seed


@dataclass(frozen=True)
class Task:
    """One env, and what contenders have there.

    Attributes:
        num_env_steps: Of each run.
        is_continuous: Whether actions are. If so, RLlib's contenders normalise observations, and
            PPO scales rewards.
        gamma: Of RLlib's contenders, and of GPG.
        gpg: The candidate that tuning has chosen for `gpg`, of those with the ridge; None before.
        gpg_paper: The same for `gpg-paper`, of those with time bins.
    """

    num_env_steps: int
    is_continuous: bool = False
    gamma: float = 0.99
    gpg: tuple[str, int] | None = None
    gpg_paper: tuple[str, int] | None = None
    ppo: dict[str, Any] = field(init=False)
    update: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Takes the settings that tasks of this kind share."""
        object.__setattr__(
            self, "ppo", CLEANRL_CONTINUOUS if self.is_continuous else CLEANRL_DISCRETE
        )
        object.__setattr__(self, "update", GPG_CONTINUOUS if self.is_continuous else GPG_DISCRETE)


TASKS = {
    "CartPole-v1": Task(200_000),
    "Acrobot-v1": Task(200_000),
    "Pendulum-v1": Task(200_000, is_continuous=True),
    "LunarLander-v3": Task(1_000_000),
    "Hopper-v5": Task(1_000_000, is_continuous=True),
    "Walker2d-v5": Task(1_000_000, is_continuous=True),
    "HalfCheetah-v5": Task(1_000_000, is_continuous=True),
    "Ant-v5": Task(1_000_000, is_continuous=True),
}
EXPERIMENTS = ("tuning", "ppo", "ladder", "groups", "alone")
LADDER_TASKS = ("LunarLander-v3", "Hopper-v5", "HalfCheetah-v5")
GROUPS_TASKS = ("LunarLander-v3", "Hopper-v5")
# Cells with nothing beside them, to compare their CPU time and the clock's with those of the rest.
ALONE_TASKS, ALONE_SHARE = ("LunarLander-v3", "Hopper-v5"), 0.1
# Where files are. Runs that two experiments have in common are one.
FOLDERS = {"tuning": "evidence_tuning", "alone": "evidence_alone"}
FOLDER = "evidence"


def cells_of(experiment: str, env: str, seeds: tuple[int, ...] | None = None) -> list[Cell]:
    """The cells of an experiment on one task, seed by seed.

    Those of GPG are left out until tuning has chosen its settings.

    Args:
        experiment: One of `EXPERIMENTS`.
        env: One of `TASKS`.
        seeds: Others than the protocol's.

    Raises:
        SystemExit: If one of the seeds is among those that settings are tuned on.
    """
    if experiment != "tuning" and {*(seeds or ())} & {*TUNING_SEEDS}:
        raise SystemExit(f"Settings were tuned on seeds {TUNING_SEEDS}: they aren't reported.")
    defaults = {"tuning": TUNING_SEEDS, "alone": SEEDS[:1]}
    share = {"tuning": TUNING_SHARE, "alone": ALONE_SHARE}.get(experiment, 1.0)
    budget = int(TASKS[env].num_env_steps * share)
    folder = FOLDERS.get(experiment, FOLDER)
    return [
        Cell(folder, env, contender, group_size, seed, budget)
        for seed in seeds or defaults.get(experiment, SEEDS)
        for contender, group_size in _who(experiment, env)
    ]


def seeds_of(env: str) -> tuple[int, ...]:
    """The protocol's seeds, and those that have been added."""
    return tuple(sorted({*SEEDS} | seeds_run(FOLDER, env)))


def contenders_of(env: str) -> dict[str, tuple[str, int]]:
    """The contenders whose settings are known: how their cells name them, and their group size.

    PPO has none, which is 0.
    """
    task = TASKS[env]
    settings = {name: (name, 0) for name in (RLLIB_PPO, SB3_PPO, PPO_LAMBDA_1)}
    chosen = {GPG_PAPER: task.gpg_paper, GPG: task.gpg}
    return settings | {name: pair for name, pair in chosen.items() if pair is not None}


def _who(experiment: str, env: str) -> list[tuple[str, int]]:
    """Pairs of a contender and its group size."""
    known = contenders_of(env)
    if experiment == "tuning":
        return list(CANDIDATES)
    if experiment == "ppo" or (experiment == "alone" and env in ALONE_TASKS):
        return list(known.values())
    if experiment == "ladder" and env in LADDER_TASKS:
        if GPG in known:
            n = known[GPG][1]
            known |= {rung: (rung, n) for rung in LADDER if rung not in known}
        return [known[rung] for rung in LADDER if rung in known]
    if experiment == "groups" and env in GROUPS_TASKS and GPG in known:
        return [(name, n) for n in GROUP_SIZES for name in ("time", known[GPG][0])]
    return []
