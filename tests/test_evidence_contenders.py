"""Contenders of the evidence have the settings that they are said to have."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID

from benchmarks.cells import Cell
from benchmarks.evidence import cleanrl, protocol, rllib_runs
from benchmarks.evidence.published import ZOO
from rllib_gpg import presets
from rllib_gpg.advantages import RidgeBaseline


class Ramp(gym.Env):
    """Observes 0, 10, .. 90, whatever is done."""

    observation_space = gym.spaces.Box(-1e3, 1e3, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, config: Any = None):
        self._t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._t = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self._t += 1
        return self._observation(), 1.0, self._t >= 9, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([10.0 * self._t], np.float32)


@pytest.mark.usefixtures("ray_session")
def test_rllibs_ppo_begins_and_steps_as_cleanrls(monkeypatch: pytest.MonkeyPatch) -> None:
    # As everywhere with continuous actions, on a task that is built at once.
    monkeypatch.setitem(protocol.TASKS, "Pendulum-v1", protocol.TASKS["Hopper-v5"])
    config = rllib_runs.config_of(Cell("x", "Pendulum-v1", protocol.RLLIB_PPO, 0, 1, 8192))
    config.training(num_epochs=1)
    algo = config.build_algo()
    try:
        learner = algo.learner_group._learner
        module = learner.module[DEFAULT_MODULE_ID]
        gains = {
            "pi.net": 0.01,
            "vf.net": 1.0,
            "encoder.actor_encoder": 2**0.5,
            "encoder.critic_encoder": 2**0.5,
        }
        for part, gain in gains.items():
            for name, weights in module.get_submodule(part).named_parameters():
                if weights.ndim == 1:
                    assert not weights.any(), f"{part}.{name}"
                else:
                    sizes = torch.linalg.svdvals(weights).detach().numpy()
                    np.testing.assert_allclose(sizes, gain, rtol=1e-4, err_msg=f"{part}.{name}")
        assert not module.get_submodule("pi").log_std.any()
        (optimizer,) = learner._named_optimizers.values()
        assert optimizer.defaults["eps"] == 1e-5
        # The first update has the whole learning rate, the second of four three quarters.
        rates = []
        for _ in range(2):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            algo.train()
    finally:
        algo.stop()
    assert rates == pytest.approx([3e-4, 3e-4 * 0.75], rel=1e-3)
    # CleanRL's loss has 0.5 times a halved squared error.
    assert config.vf_loss_coeff == 0.25
    assert (config.normalize_actions, config.clip_actions) == (False, True)


@pytest.mark.usefixtures("ray_session")
def test_rllibs_ppo_shuffles_and_normalises_as_cleanrls(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sampled steps once per epoch, none of RLlib's own, in minibatches of mixed episodes."""
    seen: list[tuple[np.ndarray, float, float]] = []

    def look(self: Any, *, batch: dict[str, Any], **kwargs: Any) -> Any:
        advantages = batch["advantages"]
        seen.append((batch["obs"][:, 0].numpy(), advantages.mean().item(), advantages.std().item()))
        return loss(self, batch=batch, **kwargs)

    loss = PPOTorchLearner.compute_loss_for_module
    monkeypatch.setattr(PPOTorchLearner, "compute_loss_for_module", look)
    config = cleanrl.ppo_config(2, is_continuous=True, normalizes=False).environment(Ramp)
    config.training(train_batch_size_per_learner=80, minibatch_size=20, num_epochs=1)
    config.debugging(seed=1)
    algo = config.build_algo()
    try:
        algo.train()
    finally:
        algo.stop()
    assert [len(observations) for observations, *_ in seen] == [20] * 4
    # Each env has made 40 steps: four episodes of 9, and the first 4 steps of another.
    shown, times = np.unique(np.concatenate([obs for obs, *_ in seen]), return_counts=True)
    np.testing.assert_array_equal(shown, 10.0 * np.arange(9))
    np.testing.assert_array_equal(times, [10] * 4 + [8] * 5)
    for observations, mean, std in seen:
        assert (mean, std) == pytest.approx((0.0, 1.0), abs=1e-4)
        assert len({*np.diff(observations)}) > 3  # In order they rise by 10, or fall by 80.


@pytest.mark.usefixtures("ray_session")
def test_ppo_is_evaluated_with_the_observations_statistics_of_its_training() -> None:
    """The same observation looks the same at any time in the evaluation."""
    config = cleanrl.ppo_config(2, is_continuous=True, normalizes=True).environment(Ramp)
    config.training(train_batch_size_per_learner=40, minibatch_size=40, num_epochs=1)
    algo = config.build_algo()
    try:
        algo.train()
        episodes = rllib_runs.fresh_episodes(algo, Ramp, 3, explore=True)
    finally:
        algo.stop()
    seen = np.array([episode.get_observations()[:, 0] for episode in episodes])
    assert seen.shape == (20, 10)
    assert np.ptp(seen, axis=0).max() == 0.0
    # 40 steps are whole episodes but for the last ones of 2 envs: mean and deviation near a ramp's.
    expected = (np.arange(10) - 4.5) / np.std(np.arange(10))
    np.testing.assert_allclose(seen[0], expected, atol=0.5)


@pytest.mark.parametrize("env", ["LunarLander-v3", "Pendulum-v1"])
def test_rllibs_ppo_has_the_zoos_settings_where_cleanrl_has_none(env: str) -> None:
    """Of what the Zoo says, and the value loss of its library, a whole squared error."""
    config = rllib_runs.config_of(Cell("x", env, protocol.RLLIB_PPO, 0, 100, 8192))
    zoo = ZOO[env]
    assert config.train_batch_size_per_learner == zoo["n_envs"] * zoo["n_steps"]
    assert config.num_envs_per_env_runner == zoo["n_envs"]
    assert config.vf_loss_coeff == 0.5
    assert config._env_to_module_connector is None
    assert config.minibatch_size == zoo.get("batch_size", 64)
    assert (config.num_epochs, config.gamma) == (zoo["n_epochs"], zoo["gamma"])
    assert (config.lambda_, config.lr) == (zoo["gae_lambda"], zoo.get("learning_rate", 3e-4))
    assert config.entropy_coeff == zoo.get("ent_coef", 0.0)


@pytest.mark.parametrize(
    ("env", "binning", "lambda_"),
    [("Walker2d-v5", "time", 0.95), ("HalfCheetah-v5", "universal", 0.98)],
)
def test_gpg_learns_from_rollouts_where_actions_are_continuous(
    env: str, binning: str, lambda_: float
) -> None:
    config = rllib_runs.config_of(Cell("x", env, *protocol.TASKS[env].gpg, 100, 8192))
    assert config.binning == binning
    assert (config.batch_mode, config.rollout_fragment_length) == ("truncate_episodes", 256)
    assert (config.group_size, config.lambda_, config.bootstrap_truncated) == (8, lambda_, True)
    assert config.baseline == RidgeBaseline(num_features=512)
    assert config.lr == [[0, 3e-4], [8192, 0.0]]


@pytest.mark.parametrize(
    ("env", "preset", "but"),
    [
        ("LunarLander-v3", presets.RIDGE, {}),
        ("Walker2d-v5", presets.RIDGE_CONTINUOUS, {}),
        ("HalfCheetah-v5", presets.RIDGE_CONTINUOUS, {"binning": "universal", "lambda_": 0.98}),
    ],
)
def test_the_presets_are_what_is_compared(
    env: str, preset: dict[str, Any], but: dict[str, Any]
) -> None:
    config = rllib_runs.config_of(Cell("x", env, *protocol.TASKS[env].gpg, 100, 8192))
    of_preset = config.copy(copy_frozen=False).training(**preset | but, minibatch_size=None)
    for name in preset.keys() - {"learner_class", "num_minibatches"}:
        assert getattr(of_preset, name) == getattr(config, name), name
    # Minibatches of the same size.
    minibatches = of_preset.num_minibatches or 4
    steps = config.group_size * config.get_rollout_fragment_length()
    assert config.minibatch_size in (None, steps / minibatches)


@pytest.mark.parametrize(("env", "width"), [("Walker2d-v5", 64), ("Hopper-v5", 256)])
def test_sb3s_networks_are_those_of_its_zoo(env: str, width: int) -> None:
    pytest.importorskip("stable_baselines3", reason="in the optional extra `benchmarks`")
    from benchmarks.evidence import sb3_runs

    model = sb3_runs.model_of(Cell("x", env, protocol.SB3_PPO, 0, 1, 1000))
    layers = model.policy.mlp_extractor.policy_net
    assert [layer.out_features for layer in layers if hasattr(layer, "out_features")] == [width] * 2
    assert type(layers[1]) is (torch.nn.Tanh if width == 64 else torch.nn.ReLU)
    assert float(model.policy.log_std[0].detach()) == (0.0 if width == 64 else -2.0)
    model.get_env().close()


def test_sb3_explores_in_evaluations_as_in_training() -> None:
    """The Zoo's noise on Pendulum holds for 4 steps, and each env has its own."""
    pytest.importorskip("stable_baselines3", reason="in the optional extra `benchmarks`")
    from benchmarks.evidence import sb3_runs

    model = sb3_runs.model_of(Cell("x", "Pendulum-v1", protocol.SB3_PPO, 0, 1, 1000))
    policy = sb3_runs.AsInTraining(model)
    observations = np.ones((20, 3), np.float32)
    actions = np.array([policy.predict(observations)[0][:, 0] for _ in range(12)])
    greedy = policy.predict(observations, deterministic=True)[0][:, 0]
    model.get_env().close()
    # Steps that share their noise, and those that don't.
    assert (np.diff(actions, axis=0) != 0.0).any(1).nonzero()[0].tolist() == [3, 7]
    assert len(np.unique(actions[0])) > 10
    assert len(np.unique(greedy)) == 1


def test_evaluations_have_seeds_of_their_own() -> None:
    """No env of one run's evaluation has a seed of any run's training, or of another evaluation."""
    seeds = [*range(protocol.FIRST_SEED), *protocol.SEEDS]
    evaluations = [
        set(range(first, first + protocol.EVALUATION_EPISODES))
        for first in map(protocol.evaluation_seed, seeds)
    ]
    # Both libraries give an env the run's seed plus its number.
    training = {seed + env for seed in seeds for env in range(64)}
    assert len(set().union(*evaluations)) == sum(map(len, evaluations))
    assert not training & set().union(*evaluations)
