"""RLlib's contenders: its PPO with CleanRL's settings, and GPG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core import COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_RL_MODULE
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from benchmarks.cells import Cell
from benchmarks.evidence.cleanrl import HIDDENS, ppo_config
from benchmarks.evidence.protocol import (
    EVALUATION_EPISODES,
    FOLDERS,
    GPG_SETTINGS,
    PPO_LAMBDA_1,
    TASKS,
    evaluation_seed,
)
from benchmarks.training import Curve, EndedEpisodes, after, settings_of, train
from rllib_gpg import GPGConfig
from rllib_gpg.sampling import GroupEnvRunner


def run(cell: Cell) -> dict[str, Any]:
    """Runs a cell of the protocol."""
    return train_and_evaluate(config_of(cell), cell, after(cell.num_env_steps))


def train_and_evaluate(
    config: AlgorithmConfig, cell: Cell, until: Callable[[Curve], bool]
) -> dict[str, Any]:
    """Trains, evaluates; gives settings, learning curve, and the evaluation's returns."""
    config.debugging(seed=cell.seed, log_level="ERROR", log_sys_usage=False)
    algo = config.build_algo()
    try:
        curve = train(algo, until)
        seed = evaluation_seed(cell.seed)
        evaluation = {
            name: returns_of(algo, cell.env, seed, explore)
            for name, explore in (("sampled", True), ("greedy", False))
        }
    finally:
        algo.stop()
    return {"settings": settings_of(config), "curve": curve, "evaluation": evaluation}


def config_of(cell: Cell) -> AlgorithmConfig:
    """The config of a contender of the protocol."""
    task = TASKS[cell.env]
    config: AlgorithmConfig
    if cell.contender in GPG_SETTINGS:
        config = gpg_config(cell.group_size, task.is_continuous)
        settings = {"gamma": task.gamma, **task.update, **GPG_SETTINGS[cell.contender]}
        length = settings.pop("rollout_fragment_length", None)
        if length:
            config.env_runners(batch_mode="truncate_episodes", rollout_fragment_length=length)
    else:
        settings = {**task.ppo, **({"lambda_": 1.0} if cell.contender == PPO_LAMBDA_1 else {})}
        config = ppo_config(settings.pop("num_envs"), task.is_continuous, task.ppo_normalizes)
    config.environment(cell.env)
    # A run that is cut short, to be timed alone, is the beginning of a whole one.
    is_part = cell.experiment == FOLDERS["alone"]
    num_env_steps = task.num_env_steps if is_part else cell.num_env_steps
    return config.training(**settings | {"lr": schedule(settings["lr"], num_env_steps)})


def schedule(lr: float | str, num_env_steps: int) -> float | list[list[float]]:
    """A learning rate as RLlib takes it; `lin_0.001` falls from 0.001 to 0 over the env steps."""
    if isinstance(lr, float):
        return lr
    return [[0, float(lr.removeprefix("lin_"))], [num_env_steps, 0.0]]


def gpg_config(group_size: int, is_continuous: bool) -> GPGConfig:
    """GPG, with the env steps of a group side by side in one process."""
    config = GPGConfig().env_runners(num_envs_per_env_runner=group_size).callbacks(EndedEpisodes)
    model = {"free_log_std": True, "normalize_observations": True} if is_continuous else {}
    config.rl_module(model_config={"fcnet_hiddens": HIDDENS, **model})
    return config.training(group_size=group_size)


def returns_of(algo: Algorithm, env: str, seed: int, explore: bool, **where: Any) -> list[float]:
    """The returns of fresh episodes."""
    episodes = fresh_episodes(algo, env, seed, explore, **where)
    return [round(float(np.sum(episode.get_rewards())), 3) for episode in episodes]


def fresh_episodes(
    algo: Algorithm,
    env: str,
    seed: int,
    explore: bool,
    number: int = EVALUATION_EPISODES,
    vectorize: str = "sync",
) -> list[SingleAgentEpisode]:
    """Some episodes of the policy as it is, all of which were started and finished."""
    config = algo.config.copy(copy_frozen=False)
    config.debugging(seed=seed).callbacks(callbacks_class=[])
    config.environment(env).env_runners(
        num_envs_per_env_runner=EVALUATION_EPISODES,
        gym_env_vectorize_mode=vectorize,
        batch_mode="complete_episodes",
    )
    runner = GroupEnvRunner(config=config)
    try:
        state = algo.env_runner.get_state([COMPONENT_ENV_TO_MODULE_CONNECTOR])
        # GPG's own env runner has the weights before the last update.
        runner.set_state({**state, COMPONENT_RL_MODULE: algo.get_module().get_state()})
        for piece in runner._env_to_module.connectors:
            if isinstance(piece, MeanStdFilter):
                # What it has learned in training holds; RLlib's would go on learning.
                piece._update_stats = False
        return runner.sample(num_episodes=number, explore=explore)
    finally:
        runner.stop()
