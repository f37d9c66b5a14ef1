"""RLlib's contenders: its PPO with CleanRL's settings, and GPG."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core import COMPONENT_ENV_TO_MODULE_CONNECTOR, COMPONENT_RL_MODULE

from benchmarks.cells import Cell
from benchmarks.evidence.protocol import (
    ADVANTAGES,
    EVALUATION_EPISODES,
    PPO_LAMBDA_1,
    TASKS,
    Task,
)
from benchmarks.training import EndedEpisodes, ScaleRewards, after, settings_of, train
from rllib_gpg import GPGConfig
from rllib_gpg.sampling import GroupEnvRunner

HIDDENS = [64, 64]


def run(cell: Cell) -> dict[str, Any]:
    """Trains, evaluates; gives settings, learning curve, and the evaluation's returns."""
    config = _config_of(cell)
    algo = config.build_algo()
    try:
        curve = train(algo, after(cell.num_env_steps))
        evaluation = {
            name: _returns(algo, cell.seed, explore)
            for name, explore in (("sampled", True), ("greedy", False))
        }
    finally:
        algo.stop()
    return {"settings": settings_of(config), "curve": curve, "evaluation": evaluation}


def _config_of(cell: Cell) -> AlgorithmConfig:
    task = TASKS[cell.env]
    is_gpg = cell.contender in ADVANTAGES
    config = _gpg_config(cell, task) if is_gpg else _ppo_config(cell, task)
    config.environment(cell.env).callbacks(EndedEpisodes)
    # Falls to 0 over the run.
    config.training(lr=[[0, config.lr], [cell.num_env_steps, 0.0]], gamma=task.gamma)
    return config.debugging(seed=cell.seed, log_level="ERROR", log_sys_usage=False)


def _gpg_config(cell: Cell, task: Task) -> GPGConfig:
    config = GPGConfig().env_runners(num_envs_per_env_runner=cell.group_size)
    model = {"free_log_std": True, "normalize_observations": True} if task.is_continuous else {}
    config.rl_module(model_config={"fcnet_hiddens": HIDDENS, **model})
    config.training(group_size=cell.group_size, **task.update, **ADVANTAGES[cell.contender])
    return config


def _ppo_config(cell: Cell, task: Task) -> PPOConfig:
    config = PPOConfig().env_runners(num_env_runners=0, num_envs_per_env_runner=8)
    config.rl_module(
        model_config={
            "fcnet_hiddens": HIDDENS,
            "fcnet_activation": "tanh",
            "fcnet_kernel_initializer": "orthogonal_",
            "fcnet_kernel_initializer_kwargs": {"gain": 2**0.5},
            "vf_share_layers": False,
            "free_log_std": task.is_continuous,
        }
    )
    config.training(
        **task.ppo,
        lambda_=1.0 if cell.contender == PPO_LAMBDA_1 else 0.95,
        clip_param=0.2,
        vf_loss_coeff=0.5,
        vf_clip_param=float("inf"),
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    if task.is_continuous:
        config.env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
        config.learners(learner_connector=lambda *_, **__: ScaleRewards(gamma=task.gamma))
    return config


def _returns(algo: Algorithm, seed: int, explore: bool) -> list[float]:
    """The returns of fresh episodes, all of which were started and finished."""
    config = algo.config.copy(copy_frozen=False)
    # Seeds of its own, the same for all contenders.
    config.debugging(seed=10_000 + seed).callbacks(callbacks_class=[])
    config.env_runners(num_envs_per_env_runner=EVALUATION_EPISODES)
    runner = GroupEnvRunner(config=config)
    try:
        state = algo.env_runner.get_state([COMPONENT_ENV_TO_MODULE_CONNECTOR])
        # GPG's own env runner has the weights before the last update.
        runner.set_state({**state, COMPONENT_RL_MODULE: algo.get_module().get_state()})
        episodes = runner.sample(num_episodes=EVALUATION_EPISODES, explore=explore)
    finally:
        runner.stop()
    return [round(float(np.sum(episode.get_rewards())), 3) for episode in episodes]
