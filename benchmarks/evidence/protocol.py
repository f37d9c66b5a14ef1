"""What is compared with what, on which tasks, with which settings and seeds.

`docs/results/protocol.md` says it in words, and why; also what was changed after the first runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.cells import Cell, seeds_run
from benchmarks.evidence.published import (
    CLEANRL_CONTINUOUS,
    CLEANRL_DISCRETE,
    ZOO_LUNAR_LANDER,
    ZOO_PENDULUM,
)
from rllib_gpg.advantages import RidgeBaseline

# Settings were chosen on seeds below.
FIRST_SEED = 100
SEEDS = (100, 101, 102, 103, 104)
# Of these, runs of earlier settings were seen before the last were chosen.
SEEDS_SEEN = (100,)
EVALUATION_EPISODES = 20

RLLIB_PPO, PPO_LAMBDA_1, SB3_PPO = "rllib-ppo", "ppo-lambda-1", "sb3-ppo"
GPG_PAPER, GPG = "gpg-paper", "gpg"
CONTENDERS = (RLLIB_PPO, SB3_PPO, PPO_LAMBDA_1, GPG_PAPER, GPG)
GROUP_SIZES = (2, 4, 8, 16, 32, 64)

# What GPG compares a group's members with, by name.
ADVANTAGES: dict[str, dict[str, Any]] = {
    "universal": {"binning": "universal"},
    "time": {},
    "ridge-1": {"baseline": "ridge"},
    "ridge-0.98": {"baseline": "ridge", "lambda_": 0.98},
    "ridge-0.95": {"baseline": "ridge", "lambda_": 0.95},
}
ROLLOUTS, ROLLOUTS_UNIVERSAL = "ridge-0.95-rollouts-256", "ridge-0.98-rollouts-256-universal"
_ROLLOUTS = {
    "baseline": RidgeBaseline(num_features=512),
    "lambda_": 0.95,
    "bootstrap_truncated": True,
    "rollout_fragment_length": 256,
}
# The same, with another gamma than the task's, or with groups that aren't episodes.
GPG_SETTINGS: dict[str, dict[str, Any]] = {
    **ADVANTAGES,
    "time-gamma-0.99": {"gamma": 0.99},
    ROLLOUTS: _ROLLOUTS,
    ROLLOUTS_UNIVERSAL: {**_ROLLOUTS, "binning": "universal", "lambda_": 0.98},
}
# Pairs of a name above and the group's size: what `gpg-paper` is, and what `gpg` is on which tasks.
PAPERS, PAPERS_GAMMA_099 = ("time", 16), ("time-gamma-0.99", 16)
EPISODES_DISCRETE = ("ridge-0.98", 4)
EPISODES_CONTINUOUS = ("ridge-0.95", 4)
ROLLOUTS_THAT_END, ROLLOUTS_THAT_NEVER_END = (ROLLOUTS, 8), (ROLLOUTS_UNIVERSAL, 8)

# GPG's update: on discrete actions its defaults, on continuous ones CleanRL's of PPO.
GPG_DISCRETE = {"lr": "lin_0.001", "num_epochs": 4, "num_minibatches": 4}
GPG_CONTINUOUS = {"lr": "lin_0.0003", "num_epochs": 10, "minibatch_size": 64}


def evaluation_seed(seed: int) -> int:
    """The seed of the first env of a run's evaluation; the others count on from it."""
    return 1_000_000 + 1_000 * seed


@dataclass(frozen=True)
class Task:
    """One env, and what contenders have there.

    Attributes:
        num_env_steps: Of each run.
        ppo: The settings of RLlib's PPO.
        gamma: GPG's.
        is_continuous: Whether actions are. If so, GPG normalises observations.
        ppo_normalizes: Whether RLlib's PPO normalises observations and scales rewards.
        never_ends: Whether episodes end at their time limit only.
        paper: What `gpg-paper` is.
    """

    num_env_steps: int
    ppo: dict[str, Any]
    gamma: float = 0.99
    is_continuous: bool = False
    ppo_normalizes: bool = False
    never_ends: bool = False
    paper: tuple[str, int] = PAPERS

    @property
    def update(self) -> dict[str, Any]:
        """GPG's settings of an update."""
        return GPG_CONTINUOUS if self.is_continuous else GPG_DISCRETE

    @property
    def episodes(self) -> tuple[str, int]:
        """How GPG as recommended compares, in groups of episodes, and their size."""
        return EPISODES_CONTINUOUS if self.is_continuous else EPISODES_DISCRETE

    @property
    def gpg(self) -> tuple[str, int]:
        """What `gpg` is: episodes, or rollouts where actions are continuous."""
        if not self.is_continuous:
            return self.episodes
        return ROLLOUTS_THAT_NEVER_END if self.never_ends else ROLLOUTS_THAT_END


def mujoco(**settings: Any) -> Task:
    """A task that CleanRL's settings for continuous actions are meant for."""
    return Task(1_000_000, CLEANRL_CONTINUOUS, is_continuous=True, ppo_normalizes=True, **settings)


TASKS = {
    "CartPole-v1": Task(200_000, CLEANRL_DISCRETE),
    "Acrobot-v1": Task(200_000, CLEANRL_DISCRETE),
    "Pendulum-v1": Task(200_000, ZOO_PENDULUM, gamma=0.9, is_continuous=True, never_ends=True),
    "LunarLander-v3": Task(1_000_000, ZOO_LUNAR_LANDER, gamma=0.999, paper=PAPERS_GAMMA_099),
    "Hopper-v5": mujoco(),
    "Walker2d-v5": mujoco(),
    "HalfCheetah-v5": mujoco(never_ends=True),
    "Ant-v5": mujoco(),
}
# Those that have had no part in the choice of GPG's settings.
HELD_OUT = ("Acrobot-v1", "Pendulum-v1", "Ant-v5")
EXPERIMENTS = ("ppo", "ladder", "groups", "alone")
LADDER_TASKS = ("LunarLander-v3", "Hopper-v5", "HalfCheetah-v5")
# Seeds of the experiments beside `ppo`.
OTHER_SEEDS = SEEDS[:3]
GROUPS_TASKS = ("LunarLander-v3", "Hopper-v5")
# Cells with nothing beside them, to compare their CPU time and the clock's with those of the rest.
ALONE_TASKS, ALONE_SHARE = ("LunarLander-v3", "Hopper-v5"), 0.1
# Where files are. Runs that two experiments have in common are one.
FOLDERS = {"alone": "evidence_alone"}
FOLDER = "evidence"


def cells_of(experiment: str, env: str, seeds: tuple[int, ...] | None = None) -> list[Cell]:
    """The cells of an experiment on one task, seed by seed.

    Args:
        experiment: One of `EXPERIMENTS`.
        env: One of `TASKS`.
        seeds: Others than the protocol's.

    Raises:
        SystemExit: If settings may have been chosen on one of the seeds.
    """
    if min(seeds or SEEDS) < FIRST_SEED:
        raise SystemExit(f"Settings were chosen on seeds below {FIRST_SEED}: they aren't reported.")
    defaults = {"ppo": SEEDS, "alone": SEEDS[:1]}
    share = ALONE_SHARE if experiment == "alone" else 1.0
    budget = int(TASKS[env].num_env_steps * share)
    folder = FOLDERS.get(experiment, FOLDER)
    return [
        Cell(folder, env, contender, group_size, seed, budget)
        for seed in seeds or defaults.get(experiment, OTHER_SEEDS)
        for contender, group_size in _who(experiment, env)
    ]


def seeds_of(env: str) -> tuple[int, ...]:
    """The protocol's seeds, and those that have been added."""
    return tuple(sorted({*SEEDS} | seeds_run(FOLDER, env)))


def contenders_of(env: str) -> dict[str, tuple[str, int]]:
    """How their cells name the contenders, and their group size: of PPO 0.

    PPO with λ 1 is there on the ladder's tasks only.
    """
    named = {name: (name, 0) for name in (RLLIB_PPO, SB3_PPO)}
    if env in LADDER_TASKS:
        named[PPO_LAMBDA_1] = (PPO_LAMBDA_1, 0)
    return named | {GPG_PAPER: TASKS[env].paper, GPG: TASKS[env].gpg}


def ladder_of(env: str) -> dict[str, tuple[str, int]]:
    """The rungs from PPO to GPG as recommended: a name, and the pair that cells have."""
    task = TASKS[env]
    regression, number = task.episodes
    rungs = {rung: (rung, number) for rung in ("universal", "time", "ridge-1")}
    ends = {} if task.gpg == task.episodes else {"rollouts": task.gpg}
    known = contenders_of(env)
    return {
        **{rung: known[rung] for rung in (RLLIB_PPO, PPO_LAMBDA_1)},
        **rungs,
        "ridge-λ": (regression, number),
        **ends,
    }


def _who(experiment: str, env: str) -> list[tuple[str, int]]:
    """Pairs of a contender and its group size."""
    if experiment == "ppo" or (experiment == "alone" and env in ALONE_TASKS):
        return list(contenders_of(env).values())
    if experiment == "ladder" and env in LADDER_TASKS:
        return list(ladder_of(env).values())
    if experiment == "groups" and env in GROUPS_TASKS:
        return [(name, n) for n in GROUP_SIZES for name in ("time", TASKS[env].episodes[0])]
    return []
