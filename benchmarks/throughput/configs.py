"""The settings of a row, of GPG and of RLlib's PPO."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig

from benchmarks.throughput.rows import NATIVE, Row
from rllib_gpg import GPGConfig
from rllib_gpg.envs.envpool import register_envpool

HIDDENS = [64, 64]
EPOCHS = MINIBATCHES = 4
SEED = 0


def gpg_config(row: Row, lr: float = 0.0) -> GPGConfig:
    """Returns GPG's config for a row."""
    config = GPGConfig().training(group_size=row.group_size, num_minibatches=MINIBATCHES)
    if row.envpool_threads:
        config.environment(register_envpool(row.env, num_threads=row.envpool_threads))
        config.env_runners(gym_env_vectorize_mode=NATIVE)
    else:
        config.environment(row.env).env_runners(gym_env_vectorize_mode=row.vectorize)
    config.env_runners(episodes_per_share=row.episodes_per_share)
    return common_config(config, row).training(lr=lr)


def ppo_config(row: Row, batch_size: int) -> PPOConfig:
    """Returns RLlib's PPO for a row."""
    config = PPOConfig().training(
        train_batch_size_per_learner=batch_size,
        minibatch_size=batch_size // MINIBATCHES,
        use_kl_loss=False,
    )
    config.environment(row.env).env_runners(gym_env_vectorize_mode=row.vectorize)
    return common_config(config, row, vf_share_layers=False)


def common_config(config: AlgorithmConfig, row: Row, **model_config: Any) -> Any:
    """Sets what GPG and RLlib's PPO have in common."""
    return (
        config.env_runners(
            num_env_runners=row.num_env_runners, num_envs_per_env_runner=row.num_envs
        )
        .learners(num_learners=1 if row.num_env_runners else 0)
        .training(lr=0.0, num_epochs=EPOCHS)
        .rl_module(
            model_config={
                "fcnet_hiddens": HIDDENS,
                "fcnet_activation": "tanh",
                "free_log_std": row.is_continuous,
                **model_config,
            }
        )
        .debugging(seed=SEED, log_level="ERROR")
    )
