"""Bad binnings and bad envs: an error that names what is wrong, soon, and nothing learned."""

from __future__ import annotations

import logging
import re
import time
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.tune import register_env

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.advantages import SpatialBinning, SpatialTimeBinning, StateBinning
from rllib_gpg.learning import GPGCatalog
from rllib_gpg.sampling import SamplingError
from rllib_gpg.sampling.group import cut_into_shares
from rllib_gpg.sampling.rollout import loop
from tests.envs import Broken, DictIdentity, Endless, Identity, Long, NativeVector, TwoRoles
from tests.helpers import (
    GROUP_METRICS,
    PlusTheStep,
    built,
    logged_warnings,
    module_results,
    same,
    sample_group,
    small_config,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("ray_session")


class DictModule(TorchRLModule):
    """A user's policy for dict observations; RLlib has no default one."""

    def setup(self) -> None:
        self.layer = torch.nn.Linear(1, 2)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.layer(batch[Columns.OBS]["bit"])}


def flattened(config: GPGConfig) -> GPGConfig:
    return config.env_runners(
        env_to_module_connector=lambda env, spaces, device: FlattenObservations()
    )


def cliff_walking(**training: Any) -> GPGConfig:
    """Observations are one of 48 states, seen by the module as one-hot floats."""
    return flattened(small_config("CliffWalking-v1", **training).env_runners(max_episode_steps=5))


def build_warnings(config: GPGConfig) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with built(config):
            pass
    return [str(warning.message) for warning in caught]


# As soon as the spaces are known, before the first sample.


@pytest.mark.parametrize("binning", [SpatialBinning(0.5), SpatialTimeBinning(0.5), "state"])
def test_bins_over_numbers_refuse_dict_observations(binning: Any) -> None:
    config = small_config(DictIdentity, binning=binning)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=DictModule))
    with pytest.raises(ValueError, match=r"Binning.*one array of numbers.*give a function f"):
        config.build_algo()


def test_a_function_over_dict_observations_learns() -> None:
    """Where a built-in binning is refused, a function is the way out that the error names."""

    def of_the_bit(observations: Any, timesteps: Any) -> Any:
        return (observations["bit"][:, 0] > 0).astype(np.int64)

    config = small_config(DictIdentity, binning=of_the_bit)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=DictModule))
    with built(config) as algo:
        assert module_results(algo.train())["group_num_bins"] == 2


def test_bins_over_numbers_accept_flattened_dict_observations() -> None:
    with built(flattened(small_config(DictIdentity, binning=SpatialBinning(0.5)))) as algo:
        # The bit is -1 or 1: two cells.
        assert module_results(algo.train())["group_num_bins"] == 2


def test_epsilon_of_the_wrong_length_is_refused() -> None:
    config = small_config("CartPole-v1", binning=SpatialBinning([0.5, 1.0, 0.5]))
    with pytest.raises(ValueError, match=r"epsilon has 3 entries.*4 dimensions"):
        config.build_algo()


def test_epsilon_is_counted_against_the_observations_that_the_module_sees() -> None:
    with built(cliff_walking(binning=SpatialBinning([0.5] * 48))):
        pass
    with pytest.raises(ValueError, match=r"epsilon has 1 entries.*48 dimensions"):
        cliff_walking(binning=SpatialBinning([0.5])).build_algo()


@pytest.mark.parametrize("binning", ["state", StateBinning()])
def test_state_bins_over_floats_warn(binning: Any) -> None:
    config = small_config("CartPole-v1", binning=binning)
    (warning,) = [text for text in build_warnings(config) if "Binning" in text]
    assert "no signal" in warning
    assert "SpatialBinning(epsilon=" in warning


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_state_bins_over_one_hot_states_do_not_warn(num_env_runners: int) -> None:
    config = cliff_walking(binning="state").env_runners(num_env_runners=num_env_runners)
    assert not [text for text in build_warnings(config) if "Binning" in text]


def test_a_group_of_one_with_time_bins_warns() -> None:
    texts = build_warnings(small_config("CartPole-v1", group_size=1))
    assert [text for text in texts if "group_size=1 with time bins" in text]


def test_settings_of_a_module_that_there_is_not_are_talked_about() -> None:
    config = small_config(TwoRoles).multi_agent(
        policies={"pointer", "reader"}, policy_mapping_fn=lambda agent, episode, **_: agent
    )
    config.env_runners(env_to_module_connector=lambda *_: FlattenObservations(multi_agent=True))
    overrides = {"reader": {"gamma": 0.5}, "pointr": {"baseline": "ridge"}}
    config.rl_module(algorithm_config_overrides_per_module=overrides)
    with logged_warnings() as logged, built(config):
        pass
    [said] = [text for text in logged if "overrides" in text]
    assert "the module 'pointr' (did you mean 'pointer'?), and there are pointer, reader" in said


@pytest.mark.parametrize("training", [{"group_size": 2}, {"group_size": 1, "binning": "universal"}])
def test_other_groups_do_not_warn(training: dict[str, Any]) -> None:
    texts = build_warnings(small_config("CartPole-v1", **training))
    assert not [text for text in texts if "group_size" in text]


class Embeds(GPGCatalog):
    """A user's catalog, with an encoder of numbers."""

    def _determine_components_hook(self) -> None:
        self.observation_space = gym.spaces.Box(0.0, 1.0, (48,))
        super()._determine_components_hook()


def test_normalising_observations_that_are_no_box_is_refused() -> None:
    config = small_config("CliffWalking-v1").env_runners(max_episode_steps=5)
    config.rl_module(
        model_config={"normalize_observations": True},
        rl_module_spec=RLModuleSpec(catalog_class=Embeds),
    )
    with pytest.raises(ValueError, match=r"`normalize_observations` needs `Box`.*Flatten"):
        config.build_algo()


def test_what_a_default_module_has_no_encoder_for_is_flattened_by_default() -> None:
    """The same groups and weights as with the user's own flattening."""
    config = small_config("CliffWalking-v1", binning="state").env_runners(max_episode_steps=5)
    with built(config) as algo, built(cliff_walking(binning="state")) as other:
        for _ in range(2):
            of_group, of_other = module_results(algo.train()), module_results(other.train())
            assert all(of_group[name] == of_other[name] for name in GROUP_METRICS)
        assert same(snapshot(algo), snapshot(other))


def test_what_nothing_flattens_is_refused_with_the_mend() -> None:
    config = small_config("CliffWalking-v1").env_runners(
        max_episode_steps=5,
        env_to_module_connector=lambda env, spaces, device: PlusTheStep(),
    )
    with pytest.raises(ValueError, match=r"shown .*Flatten observations: `env_runners\(env_to_mod"):
        config.build_algo()


# With the first group.


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (lambda timesteps: timesteps[:-1], "9"),
        (lambda timesteps: timesteps.astype(np.float64), "float64"),
        (lambda timesteps: np.where(timesteps == 3, np.nan, timesteps), "float64"),
        (lambda timesteps: np.zeros((len(timesteps), 2, 2), np.int64), "2, 2"),
        (lambda timesteps: 0, "shape"),
    ],
    ids=["too short", "floats", "nan", "three axes", "one key for all"],
)
def test_keys_of_the_wrong_form_are_refused_with_the_episode(keys: Any, message: str) -> None:
    def my_bins(observations: Any, timesteps: Any) -> Any:
        return keys(timesteps)

    with built(small_config(Identity, binning=my_bins)) as algo:
        before = snapshot(algo)
        with pytest.raises(
            (ValueError, TypeError), match=r"binning my_bins, episode [0-9a-f]{32}"
        ) as error:
            algo.train()
        assert message in str(error.value)
        assert same(before, snapshot(algo))


@pytest.mark.parametrize("kind", [ZeroDivisionError, IndexError, ValueError])
def test_an_error_inside_a_binning_comes_through_and_names_it(kind: type[Exception]) -> None:
    def my_bins(observations: Any, timesteps: Any) -> Any:
        raise kind("my own mistake")

    with built(small_config(Identity, binning=my_bins)) as algo:
        before = snapshot(algo)
        with pytest.raises(kind, match="my own mistake") as error:
            algo.train()
        assert same(before, snapshot(algo))
    (note,) = error.value.__notes__
    assert re.match(r"Raised in binning my_bins, episode [0-9a-f]{32}", note)


# At any time.


def broken(how: str, num_env_runners: int = 0) -> GPGConfig:
    return (
        small_config(None)
        .environment(Broken, env_config={"how": how})
        .env_runners(num_env_runners=num_env_runners)
    )


def mend(algo: GPG) -> None:
    def mend_envs(runner: Any) -> None:
        # For an env made anew, and for those there are.
        runner.config.env_config["how"] = "nothing"
        for env in runner.env.unwrapped.envs:
            env.unwrapped.how = "nothing"

    local = algo.env_runner_group.num_remote_env_runners() == 0
    algo.env_runner_group.foreach_env_runner(mend_envs, local_env_runner=local)


@pytest.mark.parametrize(
    ("how", "message", "num_env_runners"),
    [
        ("reward", r"episode [0-9a-f]{32}.*the reward at step 3 is not finite: nan", 0),
        pytest.param(
            "reward",
            r"episode [0-9a-f]{32}.*the reward at step 3 is not finite: nan",
            1,
            marks=pytest.mark.slow,
        ),
        ("observation", r"episode [0-9a-f]{32}.*the observation at step 4 is not finite: inf", 0),
    ],
    ids=["reward", "reward-remote", "observation"],
)
def test_numbers_that_are_not_finite_are_refused_and_nothing_is_learned(
    how: str, message: str, num_env_runners: int
) -> None:
    with built(broken(how, num_env_runners)) as algo:
        before = snapshot(algo)
        with pytest.raises(ValueError, match=message):
            algo.train()
        assert same(before, snapshot(algo))
        # The algorithm is none the worse for it.
        mend(algo)
        assert module_results(algo.train())["group_num_episodes"] == 8
        assert not same(before, snapshot(algo))


@pytest.mark.parametrize("how", ["observation", "nan observation"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_an_observation_that_breaks_the_policy_is_named_all_the_same(
    how: str, activation: str
) -> None:
    """The module makes nan logits of it, so it is found while sampling."""
    model_config = {"fcnet_hiddens": [8], "fcnet_activation": activation}
    with built(broken(how).rl_module(model_config=model_config)) as algo:
        before = snapshot(algo)
        with pytest.raises((ValueError, SamplingError)) as error:
            algo.train()
        assert same(before, snapshot(algo))
    assert re.search(r"[Ee]pisode [0-9a-f]{32}.*observation at step 4", str(error.value))


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_env_that_raises_is_reported_at_once_and_nothing_is_learned(
    num_env_runners: int,
) -> None:
    with built(broken("raises", num_env_runners)) as algo:
        before = snapshot(algo)
        start = time.perf_counter()
        with pytest.raises(SamplingError, match=r"OSError.*the simulator is gone") as error:
            algo.train()
        # RLlib would sleep for 60 s before anybody hears of it.
        assert time.perf_counter() - start < 20.0
        assert same(before, snapshot(algo))

        # What is needed to see it again: the seeds of the share, and where it was raised.
        shares = cut_into_shares(algo.config, 1, 0)
        named = re.search(r"(?i)share (\d+) of group 0", str(error.value))
        assert named
        assert str(shares[int(named[1])].seeds().episodes) in str(error.value)
        assert 'raise OSError("the simulator is gone")' in str(error.value)

        mend(algo)
        assert module_results(algo.train())["group_num_episodes"] == 8
        assert not same(before, snapshot(algo))


class Unlicensed(Identity):
    """Can't be made."""

    def __init__(self, config: Any = None):
        raise PermissionError("no licence for the simulator")


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_env_that_cannot_be_made_ends_with_its_own_reason(num_env_runners: int) -> None:
    """Left to RLlib, remote env runners end with `IndexError: list index out of range`."""
    config = small_config(Unlicensed).env_runners(num_env_runners=num_env_runners)
    with pytest.raises(PermissionError, match=r"^no licence for the simulator$"):
        config.build_algo()


# Envs without a time limit.


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_max_episode_steps_cuts_episodes_at_exactly_that_length(num_env_runners: int) -> None:
    config = small_config(Endless).env_runners(num_env_runners=num_env_runners, max_episode_steps=7)
    with built(config) as algo:
        for _ in range(2):
            group = sample_group(algo)
            assert [len(episode) for episode in group] == [7] * 8
            assert all(e.is_truncated and not e.is_terminated for e in group)
            # Observations count the steps: the final one is the 8th.
            assert all(e.get_observations(-1)[1] == 7.0 for e in group)


def test_max_episode_steps_leaves_shorter_episodes_alone() -> None:
    with built(small_config(Identity).env_runners(max_episode_steps=11)) as algo:
        group = sample_group(algo)
        assert all(len(e) == Identity.LENGTH and e.is_terminated for e in group)


def test_max_episode_steps_holds_in_evaluation() -> None:
    config = small_config(Endless).env_runners(max_episode_steps=7)
    config.evaluation(evaluation_interval=1, evaluation_duration=3)
    with built(config) as algo:
        evaluation = algo.evaluate()["env_runners"]
    assert evaluation["episode_len_max"] == 7
    assert evaluation["num_episodes"] == 3


def test_a_native_vector_env_cannot_be_cut_and_says_so() -> None:
    register_env("native", lambda context: NativeVector(context["num_envs"]))
    config = small_config("native").env_runners(
        gym_env_vectorize_mode="vector_entry_point", max_episode_steps=7
    )
    with pytest.raises(ValueError, match=r"`max_episode_steps` can't cut.*vector_entry_point"):
        config.build_algo()


def test_episodes_that_do_not_end_are_talked_about_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "_STEPS_BEFORE_WARNING", 50)
    logger = logging.getLogger("ray.rllib")
    logger.addHandler(caplog.handler)
    try:
        with built(small_config(Long, group_size=4)) as algo:
            assert [len(episode) for episode in sample_group(algo)] == [300] * 4
    finally:
        logger.removeHandler(caplog.handler)
    texts = [r.getMessage() for r in caplog.records if "No episode has ended" in r.getMessage()]
    # After 50 steps, then after twice as many each time.
    patience = [re.search(r"in (\d+) steps", text) for text in dict.fromkeys(texts)]
    assert [found and found[1] for found in patience] == ["50", "100", "200"]
    assert all("config.env_runners(max_episode_steps=..)" in text for text in texts)


def test_an_env_with_a_limit_is_not_talked_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "_STEPS_BEFORE_WARNING", 50)
    logger = logging.getLogger("ray.rllib")
    logger.addHandler(caplog.handler)
    try:
        with built(small_config(Endless).env_runners(max_episode_steps=20)) as algo:
            sample_group(algo)
            sample_group(algo)
            sample_group(algo)
    finally:
        logger.removeHandler(caplog.handler)
    assert not [r for r in caplog.records if "No episode has ended" in r.getMessage()]


@pytest.mark.parametrize("setting", ["group_size", "num_epochs", "minibatch_size"])
def test_what_all_modules_have_in_common_is_refused_for_one(setting: str) -> None:
    config = small_config("CartPole-v1").rl_module(
        algorithm_config_overrides_per_module={"default_policy": {setting: 5}}
    )
    with pytest.raises(ValueError, match=f"can't differ from module to module.*: {setting}"):
        config.validate()
