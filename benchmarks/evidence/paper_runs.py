"""Runs of the paper's experiments: GPG with its binning functions, and RLlib's PPO."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.env_to_module import FlattenObservations

from benchmarks.cells import Cell
from benchmarks.evidence import rllib_runs
from benchmarks.evidence.cleanrl import ppo_config
from benchmarks.evidence.paper import EPSILONS, PAPER_TASKS, PaperTask
from benchmarks.evidence.protocol import RLLIB_PPO
from benchmarks.training import after_iterations
from rllib_gpg import GPGConfig
from rllib_gpg.advantages import SpatialBinning, SpatialTimeBinning
from rllib_gpg.envs.envpool import register_envpool

GRIDS = {"spatial": SpatialBinning, "spatial-time": SpatialTimeBinning}


def run(cell: Cell) -> dict[str, Any]:
    """Trains, evaluates; gives settings, learning curve, and the evaluation's returns."""
    until = after_iterations(cell.num_iterations)
    return rllib_runs.train_and_evaluate(config_of(cell), cell, until)


def config_of(cell: Cell) -> AlgorithmConfig:
    """The config of a cell of Table 1 or Figure 4."""
    task = PAPER_TASKS[cell.env]
    is_ppo = cell.contender == RLLIB_PPO
    config = _ppo_config(cell, task) if is_ppo else _gpg_config(cell, task)
    config.environment(cell.env, env_config=task.env_config)
    if task.is_discrete:
        config.env_runners(env_to_module_connector=lambda *_, **__: FlattenObservations())
    # Rollouts need envs that can be reset one by one.
    if task.on_envpool and (is_ppo or cell.group_size > 1):
        config.environment(register_envpool(cell.env))
        config.env_runners(gym_env_vectorize_mode="vector_entry_point")
    return config


def _ppo_config(cell: Cell, task: PaperTask) -> AlgorithmConfig:
    config = ppo_config(cell.group_size, task.is_continuous, normalizes=task.is_continuous)
    settings = task.ppo(cell.group_size)
    del settings["num_envs"]  # As many as the group has rollouts.
    return config.training(
        **settings | {"lr": rllib_runs.schedule(settings["lr"], cell.num_env_steps)}
    )


def _gpg_config(cell: Cell, task: PaperTask) -> GPGConfig:
    config = rllib_runs.gpg_config(cell.group_size, task.is_continuous)
    config.training(**task.update, gamma=task.gamma, binning=_binning(cell))
    if cell.group_size == 1:
        # A single whole episode has nothing to be compared with.
        config.env_runners(
            batch_mode="truncate_episodes", rollout_fragment_length=task.rollout_length
        )
    return config


def _binning(cell: Cell) -> Any:
    if cell.contender in GRIDS:
        return GRIDS[cell.contender](epsilon=EPSILONS[cell.group_size])
    return cell.contender
