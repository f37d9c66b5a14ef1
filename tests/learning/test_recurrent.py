"""Recurrent modules: they remember, padding counts nowhere, and groups repeat on any runners."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.core.columns import Columns

from rllib_gpg import GPGConfig
from tests.envs import Identity, ShortOrLong
from tests.helpers import (
    SMALL_NET,
    Recorder,
    built,
    each_learner,
    fingerprint,
    module_results,
    sample_group,
    small_config,
)

pytestmark = pytest.mark.usefixtures("ray_session")

LSTM = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4}


# Padding.


def steps_and_gradient(max_seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """What the learner makes of one group of episodes of 10 steps, as one minibatch."""
    config = small_config(Identity, num_epochs=1, num_minibatches=1, grad_clip=None)
    config.rl_module(model_config={**LSTM, "max_seq_len": max_seq_len})
    config.learners(learner_class=Recorder)
    with built(config) as algo:
        algo.train()
        ((steps, gradients),) = each_learner(algo, lambda one: (one.steps, one.gradients))
    return steps[0], gradients[0]


def test_the_gradient_does_not_depend_on_the_padding() -> None:
    """No padding, or three steps of padding to each real one: the loss is the mean of real ones."""
    steps, gradient = steps_and_gradient(max_seq_len=10)
    padded_steps, padded_gradient = steps_and_gradient(max_seq_len=40)
    assert len(steps) == 80
    np.testing.assert_array_equal(padded_steps, steps)
    np.testing.assert_allclose(padded_gradient, gradient, rtol=1e-4, atol=1e-7)
    assert np.linalg.norm(gradient) > 1e-3


def test_bins_see_real_steps_only() -> None:
    seen: list[int] = []

    def spy(observations: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        assert len(observations) == len(timesteps)
        seen.append(len(timesteps))
        return timesteps

    config = small_config(ShortOrLong, binning=spy)
    with built(config.rl_module(model_config={**LSTM, "max_seq_len": 64})) as algo:
        results = module_results(algo.train())
    assert set(seen) == {5, 200}
    assert results["group_num_env_steps"] == sum(seen)
    # Time bins: no step beyond the last of the longest episode.
    assert results["group_num_bins"] == 200


# Env runners.


@pytest.mark.slow
def test_a_seeded_group_is_the_same_on_any_number_of_env_runners() -> None:
    """States of the LSTM and all: they begin anew with each episode, wherever it runs."""
    groups = []
    for num_env_runners in (0, 2):
        config = small_config(ShortOrLong).env_runners(
            num_env_runners=num_env_runners, episodes_per_share=2
        )
        with built(config.rl_module(model_config={**LSTM, "max_seq_len": 16})) as algo:
            sample_group(algo)
            group = sample_group(algo)
        states = [episode.get_extra_model_outputs(Columns.STATE_OUT) for episode in group]
        groups.append((fingerprint(group), [state["h"].tobytes() for state in states]))
    assert groups[0] == groups[1]


# Memory.


@pytest.fixture
def memory_example(monkeypatch: pytest.MonkeyPatch) -> Any:
    examples = Path(__file__).parents[2] / "tuned_examples"
    monkeypatch.syspath_prepend(str(examples))
    return importlib.import_module("memory_gpg")


def percent_recalled(config: GPGConfig, num_iterations: int) -> list[float]:
    with built(config) as algo:
        return [module_results(algo.train())["group_return_mean"] for _ in range(num_iterations)]


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_lstm_learns_to_remember(memory_example: Any, seed: int) -> None:
    config = memory_example.config.copy(copy_frozen=False).debugging(seed=seed)
    assert np.mean(percent_recalled(config, 60)[-10:]) >= 95.0


@pytest.mark.learning
def test_without_a_memory_there_is_only_guessing(memory_example: Any) -> None:
    config = memory_example.config.copy(copy_frozen=False).debugging(seed=0)
    config.rl_module(model_config={"fcnet_hiddens": [32]})
    recalled = percent_recalled(config, 60)
    # 60 groups of 64 guesses, right or wrong: five standard deviations, 5 * 50 / sqrt(60 * 64).
    assert abs(np.mean(recalled) - 50.0) < 4.1
