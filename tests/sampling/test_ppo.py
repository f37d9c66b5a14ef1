"""`GroupEnvRunner` under RLlib's own PPO: one line makes its whole-episode sampling unbiased."""

from __future__ import annotations

from typing import Any

import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from scipy.stats import binomtest

from rllib_gpg.sampling import GroupEnvRunner
from tests.envs import ShortOrLong
from tests.helpers import SMALL_NET

pytestmark = pytest.mark.usefixtures("ray_session")


class Lengths(RLlibCallback):
    """Reports the lengths of the episodes that each `sample` call returns."""

    def on_sample_end(self, *, samples: list[Any], metrics_logger: Any, **kwargs: Any) -> None:
        assert all(episode.is_done and episode.t_started == 0 for episode in samples)
        num_long = sum(len(episode) == ShortOrLong.LONG for episode in samples)
        metrics_logger.log_value("num_long", num_long, reduce="lifetime_sum")


def ppo_config(num_env_runners: int) -> PPOConfig:
    return (
        PPOConfig()
        .environment(ShortOrLong)
        .env_runners(
            env_runner_cls=GroupEnvRunner,
            batch_mode="complete_episodes",
            num_env_runners=num_env_runners,
            num_envs_per_env_runner=8,
        )
        # Fewer steps than one round of episodes: each iteration is one round.
        .training(train_batch_size_per_learner=20, minibatch_size=20, num_epochs=1)
        .rl_module(model_config=SMALL_NET)
        .callbacks(Lengths)
        .debugging(seed=1, log_sys_usage=False)
    )


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_ppo_learns_from_whole_unbiased_episodes(num_env_runners: int) -> None:
    algo = ppo_config(num_env_runners).build_algo()
    try:
        for _ in range(24 // max(1, num_env_runners)):
            runners = algo.train()["env_runners"]
    finally:
        algo.stop()
    num_episodes = int(runners["num_episodes_lifetime"])
    assert num_episodes == 24 * 8
    assert binomtest(int(runners["num_long"]), num_episodes, 0.5).pvalue > 1e-3
