"""Settings together: each combination trains, with numbers that can be, or is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ray.rllib.env.multi_agent_env import make_multi_agent

from rllib_gpg import GPGConfig
from rllib_gpg.advantages import BinBaseline, Level, SpatialTimeBinning
from rllib_gpg.learning import GPGTRPOTorchLearner
from rllib_gpg.learning.surrogates import Clip
from tests.envs import Identity
from tests.helpers import SMALL_NET, each_learner, small_config

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of settings that do nothing, or can't
]

NUM_COMBINATIONS = 200
ONCE = {"num_epochs": 1, "num_minibatches": 1}


class Cut(Identity):
    """Episodes of 1 to 6 steps; those of an odd number are cut."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        start = super().reset(seed=seed)
        self.length = int(self.np_random.integers(1, 7))
        return start

    def step(self, action: int) -> Any:
        observation, reward, _, _, info = super().step(action)
        is_over, is_odd = self.t >= self.length, self.length % 2 == 1
        return observation, reward, is_over and not is_odd, is_over and is_odd, info


# Per question the answers that aren't the default, each with what it can't do without.
QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "credit": [{"credit": "outcome"}, {"credit": "process"}],
    "baseline": [
        {"baseline": "ridge", "lambda_": 0.9, "credit": "returns"},
        {"baseline": "ridge", "bootstrap_truncated": True, "credit": "returns"},
        {"baseline": "none"},
        {"baseline": "optimal", "normalize_advantages": False},
        {"baseline": BinBaseline(decay=0.5)},
        {"leave_one_out": True},
    ],
    "bins": [{"binning": "universal"}, {"binning": "state"}],
    "unit": [{"normalize_advantages": False}, {"normalize_advantages": "bins"}],
    "second level": [
        {"second_level": Level("state")},
        {"second_level": Level("universal", credit="outcome", normalize=True, weight=0.5)},
    ],
    "surrogate": [
        {"surrogate": "soft_gate"},
        {"surrogate": "clipped_weight"},
        {"surrogate": "unclipped", "use_kl_loss": True},
        {"surrogate": "unclipped", **ONCE},
        {"surrogate": Clip(dual=3.0)},
        {"clip_param": (0.2, 0.28)},
    ],
    "averaging": [{"loss_averaging": "trajectories"}, {"loss_averaging": 7.0}],
    "penalty": [
        {"reference_kl_coeff": 0.1},
        {"reference_kl_coeff": 0.1, "reference_refresh": 1},
        {"use_kl_loss": True},
        {"entropy_coeff": 0.01},
    ],
    "starts": [
        {"episodes_per_start": 4},
        {"episodes_per_start": 4, "max_extra_starts": 2},
        {"group_size": 1},
    ],
    "update": [
        {"minibatch_size": 5},
        {"ratio_level": "trajectory", "num_minibatches": 1},
        {"learner_class": GPGTRPOTorchLearner, **ONCE},
    ],
}
# Numbers as far as somebody may take them, each with the chance of one half.
NUMBERS: dict[str, Callable[[random.Random], Any]] = {
    "lr": lambda rng: 10.0 ** rng.uniform(-5.0, -1.0),
    "gamma": lambda rng: rng.choice([0.0, 0.9, 0.99, 1.0]),
    "group_size": lambda rng: rng.choice([1, 2, 8, 24]),
    "num_epochs": lambda rng: rng.randint(1, 4),
    "num_minibatches": lambda rng: rng.randint(1, 6),
    "clip_param": lambda rng: rng.choice([0.05, 0.2, 0.5, (0.1, 0.3)]),
    "entropy_coeff": lambda rng: rng.choice([0.0, 0.001, 0.1]),
    "grad_clip": lambda rng: rng.choice([None, 0.1, 40.0]),
    "kl_target": lambda rng: 10.0 ** rng.uniform(-4.0, -1.0),
    "binning": lambda rng: SpatialTimeBinning(epsilon=10.0 ** rng.uniform(-2.0, 2.0)),
}
PLACES = [
    "plain",
    "ahead",
    "rollouts",
    "recurrent",
    "normalized",
    "two policies",
    "one policy of two",
]


def config_for(place: str, training: dict[str, Any]) -> GPGConfig:
    several = "polic" in place
    config = small_config(
        make_multi_agent(lambda _: Cut()) if several else Cut, **{"lr": 0.01, **training}
    )
    if several:
        one = place.startswith("one")
        config.environment(env_config={"num_agents": 2}).multi_agent(
            policies={"0"} if one else {"0", "1"},
            policy_mapping_fn=lambda agent, episode, **_: "0" if one else str(agent),
        )
    if place == "ahead":
        config.env_runners(num_env_runners=2).training(sample_ahead=1)
    if place == "rollouts":
        config.env_runners(
            num_envs_per_env_runner=8,
            batch_mode="truncate_episodes",
            rollout_fragment_length=7,
        )
    models = {
        "recurrent": {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 3},
        "normalized": {"normalize_observations": True},
    }
    return config.rl_module(model_config={**SMALL_NET, **models.get(place, {})})


def drawn(seed: int) -> tuple[str, dict[str, Any]]:
    """A place, numbers, and answers to some of the questions, a later one having the last word."""
    rng, training = random.Random(seed), {}
    for name, number in NUMBERS.items():
        if rng.random() < 0.5:
            training[name] = number(rng)
    for answers in QUESTIONS.values():
        if rng.random() < 0.4:
            training.update(rng.choice(answers))
    return rng.choice(PLACES), training


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_COMBINATIONS))
def test_a_combination_trains_or_is_refused(seed: int) -> None:
    place, training = drawn(seed)
    config = config_for(place, training)
    try:
        algo = config.build_algo()
    except ValueError as refusal:
        assert all(line.endswith(".") for line in str(refusal).splitlines())
        return
    try:
        for _ in range(2):
            results = algo.train()["learners"]
        for learner in each_learner(algo, lambda learner: learner):
            for module_id, module in learner.module.items():
                assert all(p.isfinite().all() for p in module.parameters())
                of_module = results[module_id]
                assert np.isfinite(of_module["policy_loss"])
                assert 0.0 <= of_module["entropy"] <= np.log(2.0) + 1e-6
                assert of_module["mean_kl_loss"] >= -1e-6
                assert 0.0 <= of_module.get("clip_fraction", 0.0) <= 1.0
                assert of_module.get("reference_kl", 0.0) >= 0.0
                if "trpo_step_size" in of_module:
                    assert of_module["mean_kl_loss"] <= config.max_kl * (1.0 + 1e-4)
    finally:
        algo.stop()


def test_most_combinations_are_tried() -> None:
    """A sample that is refused says little."""
    accepted = 0
    for seed in range(NUM_COMBINATIONS):
        try:
            config_for(*drawn(seed)).validate()
            accepted += 1
        except ValueError:
            pass
    assert accepted > NUM_COMBINATIONS / 2
