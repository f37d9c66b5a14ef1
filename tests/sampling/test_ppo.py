"""`GroupEnvRunner` under RLlib's own PPO: one line makes its whole-episode sampling unbiased."""

from __future__ import annotations

from typing import Any

import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from scipy.stats import binomtest

from rllib_gpg.sampling import GroupEnvRunner
from tests.envs import ShortOrLong
from tests.helpers import SMALL_NET, fingerprint

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


def test_a_restored_env_runner_draws_what_it_has_not_drawn_before() -> None:
    def runner(worker_index: int = 1) -> GroupEnvRunner:
        return GroupEnvRunner(config=ppo_config(0), worker_index=worker_index)

    whole, idle = runner(), runner(worker_index=0)
    group = [fingerprint(whole.sample(num_episodes=3)) for _ in range(2)]
    state = whole.get_state()
    group += [fingerprint(whole.sample(num_episodes=3)) for _ in range(2)]
    restored = runner()
    restored.set_state(state)
    assert fingerprint(restored.sample(num_episodes=3)) == group[2]
    # RLlib brings an env runner up to date with the state of another one.
    restored.set_state(idle.get_state(not_components="rl_module"))
    assert fingerprint(restored.sample(num_episodes=3)) == group[3]
    # Weights alone, or the connectors alone, say nothing of calls.
    for component in ("rl_module", "env_to_module_connector"):
        state = whole.get_state(components=[component])
        assert "num_sample_calls" not in state
        restored.set_state(state)
    assert restored.get_state()["num_sample_calls"] == 4
    # As older versions saved it.
    state = whole.get_state()
    del state["num_sample_calls"]
    restored.set_state(state)
