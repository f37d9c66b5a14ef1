"""The paper's experiments: its Table 1 and Figure 4, with its own figures beside ours.

`docs/results/protocol.md` says it in words. Source of all figures: arXiv 2510.03679, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.cells import Cell
from benchmarks.evidence.protocol import RLLIB_PPO
from benchmarks.evidence.published import CLEANRL_CONTINUOUS, CLEANRL_DISCRETE

ITERATIONS = 200
TABLE_SEEDS, TABLE_GROUP_SIZES = (100, 101, 102, 103), (1, 4, 16, 32, 128)
BINNINGS_SEEDS, BINNINGS_GROUP_SIZES = (100, 101), (1, 4, 16, 32)
TABLE, BINNINGS = "paper_table1", "paper_binnings"
BINNINGS_TASK = "LunarLander-v3"
# By name; the paper has three sizes of the patches of state space.
TIME = "time"
BINNING_NAMES = ("universal", TIME, "state", "spatial", "spatial-time")
EPSILONS = {1: 1.0, 4: 1.0, 16: 0.5, 32: 0.5, 128: 0.2}


@dataclass(frozen=True)
class PaperTask:
    """One env of Table 1.

    Attributes:
        rollout_length: Of one env and iteration: the paper's, for PPO, and for groups of one.
        episode_length: About how long episodes are, for an idea of what a run will take.
        update: GPG's settings, those of the tuned examples.
        gamma: GPG's.
        env_config: What `gymnasium.make` takes.
        is_continuous: Whether actions are; then observations are normalised.
        is_discrete: Whether observations are; then they are one-hot.
        on_envpool: Whether EnvPool simulates it; see `simulators.py`.
    """

    rollout_length: int
    episode_length: int
    update: dict[str, Any]
    gamma: float = 0.99
    env_config: dict[str, Any] = field(default_factory=dict)
    is_continuous: bool = False
    is_discrete: bool = False
    on_envpool: bool = True

    def ppo(self, group_size: int) -> dict[str, Any]:
        """CleanRL's settings of PPO, with as many rollouts as the group has."""
        settings = CLEANRL_CONTINUOUS if self.is_continuous else CLEANRL_DISCRETE
        batch = group_size * self.rollout_length
        minibatch = batch // (32 if self.is_continuous else 4)
        return {**settings, "train_batch_size_per_learner": batch, "minibatch_size": minibatch}


PAPER_TASKS = {
    "CartPole-v1": PaperTask(128, 300, {"lr": 1e-3, "num_epochs": 4, "num_minibatches": 4}),
    # Without a limit no untrained policy ever ends an episode; falling off the cliff ends none.
    "CliffWalking-v1": PaperTask(
        1000,
        150,
        {"lr": 2.5e-4, "num_epochs": 4, "num_minibatches": 4, "entropy_coeff": 0.01},
        gamma=1.0,
        env_config={"max_episode_steps": 1000},
        is_discrete=True,
        on_envpool=False,
    ),
    "HalfCheetah-v5": PaperTask(
        2048, 1000, {"lr": 3e-4, "num_epochs": 10, "num_minibatches": 32}, is_continuous=True
    ),
    "LunarLander-v3": PaperTask(1024, 350, {"lr": 1e-3, "num_epochs": 4, "num_minibatches": 4}),
}

# Task -> group size -> mean and spread of (GPG, PPO), as printed in Table 1.
Figures = tuple[tuple[float, float], tuple[float, float]]
PUBLISHED: dict[str, dict[int, Figures]] = {
    "CartPole-v1": {
        1: ((255.73, 44.20), (205.82, 10.05)),
        4: ((388.65, 23.65), (316.85, 31.80)),
        16: ((428.05, 33.31), (423.17, 22.28)),
        32: ((481.10, 10.85), (442.80, 15.04)),
        128: ((495.45, 2.13), (474.20, 7.61)),
    },
    "CliffWalking-v1": {
        1: ((-261.30, 70.56), (-442.93, 73.40)),
        4: ((-17.45, 0.11), (-17.62, 0.15)),
        16: ((-17.00, 0.00), (-17.00, 0.00)),
        32: ((-17.15, 0.09), (-17.00, 0.00)),
        128: ((-17.00, 0.00), (-17.00, 0.00)),
    },
    "HalfCheetah-v5": {
        1: ((333.70, 94.87), (679.33, 278.55)),
        4: ((1031.65, 24.77), (1346.30, 15.33)),
        16: ((1000.05, 130.02), (736.45, 149.77)),
        32: ((1940.86, 142.08), (1142.48, 570.77)),
        128: ((2773.61, 222.93), (1516.90, 305.42)),
    },
    "LunarLander-v3": {
        1: ((-18.78, 6.76), (-19.58, 12.73)),
        4: ((74.29, 10.33), (117.77, 5.39)),
        16: ((75.81, 12.26), (157.59, 10.03)),
        32: ((169.67, 20.79), (157.77, 10.00)),
        128: ((257.39, 0.80), (200.97, 4.42)),
    },
}


def table1_cells(env: str, seeds: tuple[int, ...] | None = None) -> list[Cell]:
    """Those of Table 1 on one env, seed by seed; none if it isn't one of its tasks."""
    if env not in PAPER_TASKS:
        return []
    return [
        _cell(TABLE, env, contender, group_size, seed)
        for seed in seeds or TABLE_SEEDS
        for group_size in TABLE_GROUP_SIZES
        for contender in (TIME, RLLIB_PPO)
    ]


def binnings_cells(env: str, seeds: tuple[int, ...] | None = None) -> list[Cell]:
    """Those of Figure 4: none but on LunarLander."""
    if env != BINNINGS_TASK:
        return []
    return [
        # With time bins they are those of Table 1.
        _cell(TABLE if name == TIME else BINNINGS, env, name, group_size, seed)
        for seed in seeds or BINNINGS_SEEDS
        for group_size in BINNINGS_GROUP_SIZES
        for name in BINNING_NAMES
    ]


def _cell(experiment: str, env: str, contender: str, group_size: int, seed: int) -> Cell:
    task = PAPER_TASKS[env]
    has_rollouts = contender == RLLIB_PPO or group_size == 1
    length = task.rollout_length if has_rollouts else task.episode_length
    steps = group_size * length * ITERATIONS
    return Cell(experiment, env, contender, group_size, seed, steps, ITERATIONS)
