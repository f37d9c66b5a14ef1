"""What a config refuses, before any actor starts, and what it carries unharmed."""

from __future__ import annotations

import logging
import math
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.tune.registry import get_trainable_cls

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.advantages import (
    BinBaseline,
    Level,
    RidgeBaseline,
    SpatialBinning,
    SpatialTimeBinning,
    TimeBinning,
)
from rllib_gpg.learning import DefaultGPGTorchRLModule, GPGCatalog, GPGTorchLearner
from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.validation import check_spaces
from tests.envs import Identity
from tests.helpers import SMALL_NET, LinearPolicy, built, module_results, small_config

pytestmark = pytest.mark.usefixtures("ray_session")

CRITIC_SETTINGS = {
    "use_critic": True,
    "use_gae": False,
    "vf_loss_coeff": 0.5,
    "vf_clip_param": 10.0,
    "vf_share_layers": True,
}


def cartpole() -> GPGConfig:
    return GPGConfig().environment("CartPole-v1")


def test_the_defaults_validate() -> None:
    cartpole().validate()


# What one setting may be.


@pytest.mark.parametrize("group_size", [0, -1, 1.5, 8.0, True, "8", None])
def test_group_size_must_be_a_positive_integer(group_size: Any) -> None:
    with pytest.raises(ValueError, match="`group_size` must be an integer >= 1"):
        cartpole().training(group_size=group_size).validate()


@pytest.mark.parametrize("name", ["num_epochs", "num_minibatches", "minibatch_size"])
@pytest.mark.parametrize("value", [0, 2.5, True])
def test_counts_of_the_update_must_be_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1"):
        cartpole().training(**{name: value}).validate()


@pytest.mark.parametrize("name", ["max_episode_steps", "episodes_per_share"])
@pytest.mark.parametrize("value", [0, 2.5, True])
def test_counts_of_the_env_runners_must_be_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1"):
        cartpole().env_runners(**{name: value}).validate()


@pytest.mark.parametrize("gamma", [-0.1, 1.001, math.nan, math.inf, "0.9", None, True])
def test_gamma_must_be_between_0_and_1(gamma: Any) -> None:
    with pytest.raises(ValueError, match="`gamma` must be between 0 and 1"):
        cartpole().training(gamma=gamma).validate()


@pytest.mark.parametrize("gamma", [0, 1, 0.0, 0.99, 1.0])
def test_gammas_ends_are_in(gamma: float) -> None:
    cartpole().training(gamma=gamma).validate()


@pytest.mark.parametrize(
    ("name", "nearest"), [("tme", "time"), ("univers", "universal"), ("states", "state")]
)
def test_an_unknown_binning_is_refused_with_the_nearest_known_name(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"`binning`: .*{name!r}.* the nearest is {nearest!r}"):
        cartpole().training(binning=name).validate()


def test_a_binning_that_needs_an_epsilon_says_so() -> None:
    with pytest.raises(ValueError, match=r"give SpatialTimeBinning\(epsilon="):
        cartpole().training(binning="spatial-time").validate()


@pytest.mark.parametrize("binning", [3, None, TimeBinning])
def test_a_binning_that_is_neither_name_nor_callable_is_refused(binning: Any) -> None:
    with pytest.raises(ValueError, match="`binning`: binning must be a name"):
        cartpole().training(binning=binning).validate()


@pytest.mark.parametrize("binning", [SpatialBinning, SpatialTimeBinning])
@pytest.mark.parametrize("epsilon", [0.0, -0.5, math.inf, math.nan, [0.1, 0.0], []])
def test_epsilon_must_be_positive_and_finite(binning: Any, epsilon: Any) -> None:
    with pytest.raises(ValueError, match="epsilon must be a number > 0 and finite"):
        binning(epsilon)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("clip_param", 0.0, "`clip_param` must be a number > 0"),
        ("grad_clip", 0.0, "`grad_clip` must be a number > 0, or None"),
        ("grad_clip", "0.5", "`grad_clip` must be a number > 0, or None"),
        ("grad_clip", math.nan, "`grad_clip` must be a number > 0, or None"),
        ("clip_param", math.nan, "`clip_param` must be a number > 0"),
        ("kl_target", 0.0, "`kl_target` must be a number > 0"),
        ("kl_coeff", -1.0, "`kl_coeff` must be a number >= 0"),
        ("entropy_coeff", -0.01, "`entropy_coeff` must be a number >= 0"),
        ("entropy_coeff", [[0, 0.1], [20, -0.1]], "`entropy_coeff` must be a number >= 0"),
        ("lr", -1, "`lr` must be a number >= 0"),
        ("lr", math.nan, "`lr` must be a number >= 0"),
        ("lr", None, "`lr` must be a number >= 0"),
        ("lr", [1e-3, 1e-4], "`lr` must be a number >= 0 or a schedule"),
        ("lr", [[0, 1e-3], [10, "1e-4"]], "`lr` must be a number >= 0 or a schedule"),
        ("lr", "1e-3", "`lr` must be a number >= 0.*got '1e-3'.*YAML"),
        ("num_minibatches", 100_000, "`num_minibatches`.*not their size.*`minibatch_size`"),
        ("entropy_coeff", [[10, 0.1], [20, 0.0]], "entropy_coeff.*first timestep must be 0"),
    ],
)
def test_the_loss_settings_have_ranges(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cartpole().training(**{name: value}).validate()


@pytest.mark.parametrize("name", ["lr", "entropy_coeff", "clip_param", "gamma", "group_size"])
def test_minus_one_is_no_way_to_say_nothing(name: str) -> None:
    """RLlib's mark of deprecated settings: left to it, the algorithm has the default."""
    with pytest.raises(ValueError, match=rf"`{name}` must be"):
        cartpole().training(**{name: -1}).build_algo()


def test_settings_of_the_kl_loss_without_it_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="^`kl_coeff` does nothing without `use_kl_loss=True`"):
        cartpole().training(kl_coeff=0.5).validate()
    with pytest.warns(UserWarning, match="^`kl_coeff` and `kl_target` do nothing without"):
        cartpole().training(kl_coeff=0.5, kl_target=0.1).validate()
    overrides = {"default_policy": {"kl_coeff": 0.5}}
    config = cartpole().rl_module(algorithm_config_overrides_per_module=overrides)
    with pytest.warns(UserWarning, match="of module 'default_policy' does nothing"):
        config.validate()
    config.training(use_kl_loss=True).validate()


# What has no meaning without a critic.


@pytest.mark.parametrize(("name", "value"), CRITIC_SETTINGS.items())
@pytest.mark.parametrize("way", ["training", "dict", "attribute", "override"])
def test_a_critic_setting_is_refused_by_name(way: str, name: str, value: Any) -> None:
    config = cartpole()
    if way == "training":
        config.training(**{name: value})
    elif way == "dict":
        config.update_from_dict({name: value})
    elif way == "attribute":
        setattr(config, name, value)
    else:
        overrides = {"default_policy": {name: value}}
        config.rl_module(algorithm_config_overrides_per_module=overrides)
    with pytest.raises(ValueError, match=f"no critic.*{name}") as error:
        config.validate()
    assert "group_size" in str(error.value)


def test_lambda_is_refused_over_bins_with_the_way_out_and_taken_over_a_ridge() -> None:
    """Also in a dict config, under the name that it has there in PPO."""
    config = GPGConfig().update_from_dict({"env": "CartPole-v1", "lambda": 0.95})
    with pytest.raises(ValueError, match=r"lambda_=0.95 .*don't see the state.*baseline='ridge'"):
        config.validate()
    config.training(baseline="ridge").validate()
    assert config.lambda_ == 0.95


@pytest.mark.parametrize(
    ("training", "match"),
    [
        ({"baseline": "rigde"}, r"`baseline`OF: Unknown .*nearest is 'ridge'"),
        ({"baseline": RidgeBaseline}, "`baseline`OF: baseline must be a name or an object"),
        (
            {"baseline": "ridge", "lambda_": 1.2},
            r"`baseline`OF: lambda_ must be a number in \[0, 1\]",
        ),
        (
            {"baseline": "ridge", "lambda_": "0.9"},
            r"`baseline`OF: lambda_ must be a number in \[0, 1\]",
        ),
        ({"baseline": BinBaseline(0.8), "lambda_": 0.9}, "`baseline`OF: .*don't see the state"),
        ({"baseline_decay": 1.0}, r"`baseline`OF: decay must lie in \[0, 1\)"),
        ({"baseline": RidgeBaseline(), "baseline_decay": 0.5}, "`baseline`OF: .*its own setting"),
        ({"bootstrap_truncated": True}, "`baseline`OF: A truncated episode.*baseline='ridge'"),
        (
            {"baseline": "ridge", "baseline_decay": "0.8"},
            r"`baseline`OF: decay must lie in \[0, 1\)",
        ),
        (
            {"bootstrap_truncated": "no", "baseline": "ridge"},
            "`bootstrap_truncated`OF must be True",
        ),
        ({"leave_one_out": "no"}, "`leave_one_out`OF must be True or False"),
        (
            {"bootstrap_truncated": True, "baseline": "ridge", "binning": lambda obs, t: t},
            "`baseline`OF: .*don't last from group to group.*`f.keys_last = True`",
        ),
        (
            {"bootstrap_truncated": True, "baseline": "ridge", "gamma": 1.0},
            "`bootstrap_truncated`OF needs `gamma` < 1",
        ),
    ],
)
@pytest.mark.parametrize("of_module", [False, True])
def test_baselines_that_cannot_be_meant_are_refused(
    training: dict[str, Any], match: str, of_module: bool
) -> None:
    config = cartpole()
    if of_module:
        overrides = {"default_policy": training}
        config.rl_module(algorithm_config_overrides_per_module=overrides)
    else:
        config.training(**training)
    of = " of module 'default_policy'" if of_module else ""
    with pytest.raises(ValueError, match=match.replace("OF", of)):
        config.validate()


@pytest.mark.parametrize(
    "training",
    [
        {"baseline": "ridge", "lambda_": 0.0},
        {"baseline": "ridge", "leave_one_out": True},
        {"baseline": "ridge", "baseline_decay": 0.5, "bootstrap_truncated": True},
        {"baseline": RidgeBaseline(num_features=8), "lambda_": 0.95},
        {"baseline_decay": 0.8},
        {"baseline": BinBaseline(decay=0.8)},
    ],
)
def test_baselines_that_can_be_meant_are_taken(training: dict[str, Any]) -> None:
    cartpole().training(**training).validate()


def spaces_of(space: gym.Space) -> dict[str, tuple[gym.Space, gym.Space]]:
    return {"default_policy": (space, gym.spaces.Discrete(2))}


@pytest.mark.parametrize(
    ("space", "got"),
    [
        (gym.spaces.Box(0, 255, (42, 42, 1), np.uint8), "1764"),
        (
            gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (1000,)), "b": gym.spaces.Discrete(25)}),
            "1025",
        ),
        (gym.spaces.Sequence(gym.spaces.Discrete(2)), "something else"),
    ],
    ids=["image", "dict", "sequence"],
)
def test_what_a_ridge_cannot_take_is_refused_before_the_first_sample(
    space: gym.Space, got: str
) -> None:
    ridge = RidgeBaseline(features=lambda observations, timesteps: timesteps)
    check_spaces(cartpole().training(baseline=ridge), spaces_of(space))
    with pytest.raises(ValueError, match=f"at most 1024 numbers per step, got {got}.*features=f"):
        check_spaces(cartpole().training(baseline="ridge"), spaces_of(space))


def test_what_a_ridge_can_take_is_taken() -> None:
    flat = gym.spaces.Box(-1.0, 1.0, (400,))
    nested = gym.spaces.Dict({"a": flat, "b": gym.spaces.Tuple([gym.spaces.Discrete(5), flat])})
    for space in (flat, gym.spaces.Discrete(48), nested, gym.spaces.MultiDiscrete([3, 4])):
        check_spaces(cartpole().training(baseline="ridge"), spaces_of(space))


@pytest.mark.parametrize(
    ("training", "warns"),
    [
        ({}, True),
        ({"baseline": "ridge"}, False),
        ({"baseline_decay": 0.5}, False),
        ({"baseline": "ridge", "baseline_decay": 0.0}, True),
        ({"group_size": 2}, False),
    ],
)
def test_a_group_of_one_is_warned_of_only_where_nothing_can_be_learned(
    training: dict[str, Any], warns: bool, recwarn: pytest.WarningsRecorder
) -> None:
    config = cartpole().training(**{"group_size": 1, **training})
    check_spaces(config, spaces_of(gym.spaces.Box(-1.0, 1.0, (4,))))
    assert any("nothing will be learned" in str(w.message) for w in recwarn) == warns


def test_the_bins_of_a_second_level_are_looked_at_too() -> None:
    config = cartpole().training(second_level=Level("state"))
    with pytest.warns(UserWarning, match="unless states repeat exactly"):
        check_spaces(config, spaces_of(gym.spaces.Box(-1.0, 1.0, (4,))))


def test_a_single_rollout_holds_episodes_to_compare() -> None:
    config = cartpole().training(group_size=1)
    config.env_runners(batch_mode="truncate_episodes", rollout_fragment_length=128)
    check_spaces(config, spaces_of(gym.spaces.Box(-1.0, 1.0, (4,))))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("way", ["model_config", "spec", "several specs", "model", "dict"])
def test_a_shared_value_network_in_a_model_config_is_refused(way: str, shared: bool) -> None:
    model_config = {"vf_share_layers": shared}
    spec = RLModuleSpec(model_config=model_config)
    config = cartpole()
    if way == "model_config":
        config.rl_module(model_config=model_config)
    elif way == "spec":
        config.rl_module(rl_module_spec=spec)
    elif way == "several specs":
        config.multi_agent(policies={"a", "b"})
        specs = {"a": RLModuleSpec(), "b": spec}
        config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))
    elif way == "model":
        config.training(model=model_config)
    else:
        config.update_from_dict({"model": model_config})
    with pytest.raises(ValueError, match=r"no critic.*vf_share_layers"):
        config.validate()


@pytest.mark.parametrize("way", ["model_config", "spec"])
def test_value_layers_apart_in_rllibs_dataclass_are_refused(way: str) -> None:
    model_config = DefaultModelConfig(vf_share_layers=False)
    spec = RLModuleSpec(model_config=model_config)
    given = {"model_config": model_config} if way == "model_config" else {"rl_module_spec": spec}
    with pytest.raises(ValueError, match=r"no critic.*vf_share_layers"):
        cartpole().rl_module(**given).validate()


@pytest.mark.parametrize(("name", "value"), CRITIC_SETTINGS.items())
def test_a_critic_setting_for_evaluation_is_refused(name: str, value: Any) -> None:
    """Before anything starts, also where evaluation is only called by hand."""
    config = cartpole().evaluation(evaluation_config={name: value})
    with pytest.raises(ValueError, match=rf"no critic.*`evaluation_config`.*{name}"):
        config.validate()


def test_ppos_config_for_evaluation_is_refused() -> None:
    config = cartpole().evaluation(evaluation_config=PPOConfig())
    with pytest.raises(ValueError, match="`evaluation_config`"):
        config.validate()


@pytest.mark.parametrize("base", [PPOTorchLearner, TorchLearner])
def test_a_learner_that_is_not_gpgs_is_refused(base: type) -> None:
    class MyLearner(base):
        pass

    for learner_class in (base, MyLearner):
        with pytest.raises(ValueError, match=r"`learner_class`.*GPGTorchLearner"):
            cartpole().training(learner_class=learner_class).validate()


def test_a_learner_of_both_is_refused() -> None:
    """Its `build` would add PPO's connectors, which ask for values."""

    class MyLearner(GPGTorchLearner, PPOTorchLearner):
        pass

    with pytest.raises(ValueError, match=r"`learner_class`.*GPGTorchLearner"):
        cartpole().training(learner_class=MyLearner).validate()


def test_a_catalog_of_ppos_is_refused_for_the_default_module() -> None:
    class MyCatalog(PPOCatalog):
        pass

    for module_class in (None, DefaultGPGTorchRLModule):
        spec = RLModuleSpec(module_class=module_class, catalog_class=MyCatalog)
        config = cartpole().rl_module(rl_module_spec=spec)
        with pytest.raises(ValueError, match=r"MyCatalog.*GPGCatalog.*`build_encoder`"):
            config.validate()


def test_all_critic_settings_given_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="use_gae, vf_loss_coeff"):
        cartpole().training(use_gae=False, vf_loss_coeff=1.0).validate()


def test_rllibs_dataclass_of_model_settings_is_accepted() -> None:
    """It has a field `vf_share_layers` whatever the user sets, so that can't be an error."""
    model_config = DefaultModelConfig(**SMALL_NET)
    with built(small_config(Identity).rl_module(model_config=model_config)) as algo:
        # Encoder 1 x 8 + 8, head 8 x 2 + 2.
        assert module_results(algo.train())["num_trainable_parameters"] == 34


# Settings of the model.


@pytest.mark.parametrize("way", ["model_config", "spec"])
def test_an_unknown_setting_of_the_default_module_is_refused(way: str) -> None:
    model_config = {"fcnet_hidens": [8], "normalise_observations": True}
    spec = RLModuleSpec(model_config=model_config)
    given = {"model_config": model_config} if way == "model_config" else {"rl_module_spec": spec}
    with pytest.raises(ValueError) as error:
        cartpole().rl_module(**given).validate()
    assert "'fcnet_hidens' (did you mean 'fcnet_hiddens'?)" in str(error.value)
    assert "'normalise_observations' (did you mean 'normalize_observations'?)" in str(error.value)


class MyModule(DefaultGPGTorchRLModule):
    pass


class MyCatalog(GPGCatalog):
    pass


@pytest.mark.parametrize("way", ["model_config", "spec"])
@pytest.mark.parametrize(
    "own",
    [{"module_class": MyModule}, {"module_class": LinearPolicy}, {"catalog_class": MyCatalog}],
    ids=["derived module", "module", "catalog"],
)
def test_a_users_own_module_or_catalog_has_settings_of_its_own(own: Any, way: str) -> None:
    model_config = {"my_own": 3, "vf_share_layers": True}
    config = cartpole()
    if way == "model_config":
        config.rl_module(model_config=model_config, rl_module_spec=RLModuleSpec(**own))
    else:
        config.rl_module(rl_module_spec=RLModuleSpec(**own, model_config=model_config))
    config.validate()


def test_common_settings_may_be_of_one_module_among_several() -> None:
    specs = {"a": RLModuleSpec(), "b": RLModuleSpec(module_class=MyModule)}
    config = cartpole().multi_agent(policies={"a", "b"})
    config.rl_module(
        model_config={"my_own": 3}, rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs)
    )
    config.validate()
    specs["a"].model_config = {"my_own": 3}
    with pytest.raises(ValueError, match="'my_own'"):
        config.validate()


# What follows from the length of the episodes.


@pytest.mark.parametrize(
    "config",
    [
        cartpole().training(train_batch_size_per_learner=4000),
        cartpole().training(train_batch_size=4000),
        cartpole().env_runners(rollout_fragment_length=200),
        cartpole().env_runners(batch_mode="truncate_episodes"),
    ],
    ids=[
        "train_batch_size_per_learner",
        "train_batch_size",
        "rollout_fragment_length",
        "batch_mode",
    ],
)
def test_sizes_in_steps_are_refused_and_point_to_group_size(
    config: GPGConfig, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ValueError, match=request.node.callspec.id) as error:
        config.validate()
    assert "group_size" in str(error.value)


def test_aggregator_actors_are_refused() -> None:
    """RLlib gives learners no pipeline then, and GPG has the first learner run its own."""
    config = cartpole().learners(num_aggregator_actors_per_learner=1)
    with pytest.raises(ValueError, match=r"`num_aggregator_actors_per_learner` doesn't apply"):
        config.validate()


def test_minibatch_size_and_num_minibatches_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"`minibatch_size` or `num_minibatches`, not both"):
        cartpole().training(minibatch_size=64, num_minibatches=4).validate()


@pytest.mark.parametrize("setting", [{"minibatch_size": 64}, {"num_minibatches": 8}])
def test_one_of_minibatch_size_and_num_minibatches_is_fine(setting: dict[str, int]) -> None:
    cartpole().training(**setting).validate()


# What GPG doesn't run on.


@pytest.mark.parametrize("runner", [SingleAgentEnvRunner, object(), "GroupEnvRunner"])
def test_another_env_runner_is_refused(runner: Any) -> None:
    with pytest.raises(ValueError, match="`env_runner_cls` must be GroupEnvRunner") as error:
        cartpole().env_runners(env_runner_cls=runner).validate()
    # The way out for `EnvRunnerServerForExternalInference` and its like.
    assert "docs/from_ppo.md" in str(error.value)


def test_a_subclass_of_the_env_runner_is_accepted() -> None:
    class MyEnvRunner(GroupEnvRunner):
        pass

    cartpole().env_runners(env_runner_cls=MyEnvRunner).validate()


def test_the_old_api_stack_is_refused() -> None:
    config = cartpole().api_stack(
        enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False
    )
    with pytest.raises(ValueError, match="new API stack only"):
        config.validate()


@pytest.mark.parametrize("framework", ["tf2", "tf"])
def test_another_framework_is_refused_pointing_to_torch(framework: str) -> None:
    with pytest.raises(ValueError, match=r"PyTorch only.*framework\('torch'\)"):
        cartpole().framework(framework).validate()


# Settings per module.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gamma": 1.5}, "`gamma` of module 'default_policy'"),
        ({"binning": "tme"}, "`binning` of module 'default_policy'.*'time'"),
        ({"clip_param": -0.2}, "`clip_param`.*'default_policy'"),
        ({"entropy_coeff": -0.2}, "`entropy_coeff`.*'default_policy'"),
        ({"lr": -0.2}, "`lr`.*'default_policy'"),
        ({"gama": 0.9}, "'gama' .did you mean 'gamma'"),
    ],
    ids=["gamma", "binning", "clip_param", "entropy_coeff", "lr", "unknown"],
)
def test_bad_overrides_of_a_module_are_refused(overrides: dict[str, Any], message: str) -> None:
    config = cartpole().rl_module(
        algorithm_config_overrides_per_module={"default_policy": overrides}
    )
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_overrides_of_a_module_are_in_force() -> None:
    overrides = {"clip_param": 0.1, "entropy_coeff": 0.5, "binning": "universal", "gamma": 0.9}
    config = small_config(Identity).rl_module(
        algorithm_config_overrides_per_module={"default_policy": overrides}
    )
    with built(config) as algo:
        results = module_results(algo.train())
    assert results["curr_entropy_coeff"] == 0.5
    assert results["group_num_bins"] == 1


# Names.


@pytest.mark.parametrize(
    "use",
    [
        lambda config: config.validate(),
        lambda config: config.build_algo(),
        lambda config: config.copy().build_algo(),
        lambda config: GPG(config=config),
    ],
    ids=["validate", "build", "build a copy", "GPG"],
)
def test_a_misspelled_attribute_is_refused_with_the_nearest_setting(use: Any) -> None:
    config = cartpole()
    config.group_sise = 3
    with pytest.raises(ValueError, match=r"'group_sise' .did you mean 'group_size'"):
        use(config)


def test_attributes_of_a_users_own_config_class_are_settings() -> None:
    class MyConfig(GPGConfig):
        def __init__(self, algo_class: type | None = None):
            super().__init__(algo_class)
            self.my_own = 1

    config = MyConfig().environment("CartPole-v1")
    config.my_own = 2
    config._mine = 3
    config.validate()


@pytest.mark.parametrize(
    ("method", "argument", "nearest"),
    [
        ("training", "gruop_size", "training(group_size=..)"),
        ("training", "vf_loss_coef", "training(vf_loss_coeff=..)"),
        ("training", "num_epoch", "training(num_epochs=..)"),
        ("training", "num_env_runners", "env_runners(num_env_runners=..)"),
        ("env_runners", "max_episode_step", "env_runners(max_episode_steps=..)"),
        ("fault_tolerance", "max_share_failure", "fault_tolerance(max_share_failures=..)"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_setting(
    method: str, argument: str, nearest: str
) -> None:
    with pytest.raises(TypeError) as error:
        getattr(GPGConfig(), method)(**{argument: 8})
    assert (
        str(error.value) == f"{method}() has no setting {argument!r} (did you mean {nearest!r}?)."
    )


SB3 = {
    "n_steps": ("training(group_size=..)", "group_size"),
    "n_envs": ("env_runners(num_envs_per_env_runner=..)", "num_envs_per_env_runner"),
    "learning_rate": ("training(lr=..)", "lr"),
    "clip_range": ("training(clip_param=..)", "clip_param"),
    "n_epochs": ("training(num_epochs=..)", "num_epochs"),
    "batch_size": ("training(minibatch_size=..)", "minibatch_size"),
    "ent_coef": ("training(entropy_coeff=..)", "entropy_coeff"),
    "gae_lambda": ("training(lambda_=..)", "lambda_"),
    "max_grad_norm": ("training(grad_clip=..)", "grad_clip"),
    "normalize_advantage": ("training(normalize_advantages=..)", "normalize_advantages"),
    "vf_coef": ("training(vf_loss_coeff=..)", "vf_loss_coeff"),
    "clip_range_vf": ("training(vf_clip_param=..)", "vf_clip_param"),
}


@pytest.mark.parametrize("name", SB3)
def test_names_of_stable_baselines3_are_refused_with_ours(name: str) -> None:
    argument, key = SB3[name]
    # A number of steps isn't one of episodes.
    unit = ", in whole episodes" if name == "n_steps" else ""
    with pytest.raises(TypeError) as error:
        GPGConfig().training(**{name: 1})
    assert f"{name!r} (did you mean {argument!r}{unit}?)" in str(error.value)
    with pytest.raises(ValueError) as error:
        GPGConfig().update_from_dict({name: 1})
    assert f"{name!r} (did you mean {key!r}{unit}?)" in str(error.value)


def test_an_argument_like_no_other_is_refused_too() -> None:
    with pytest.raises(TypeError, match=r"training\(\) has no setting 'zzzzzzzz'\.$"):
        GPGConfig().training(zzzzzzzz=1)


def test_an_unknown_key_for_evaluation_is_refused() -> None:
    config = cartpole().evaluation(evaluation_config={"exlpore": False})
    with pytest.raises(ValueError, match=r"`evaluation_config`: 'exlpore' .did you mean 'explore'"):
        config.validate()


@pytest.mark.parametrize("num_learners", [0, 2])
def test_a_config_object_is_as_good_as_a_dict(num_learners: int) -> None:
    """Function trainables of Tune pass one, to learn what an algorithm needs."""
    request = [
        kind.default_resource_request(
            config.environment("CartPole-v1")
            .env_runners(num_env_runners=3)
            .learners(num_learners=num_learners)
        )
        for kind, config in ((GPG, GPGConfig()), (PPO, PPOConfig()))
    ]
    assert request[0] == request[1]


def test_a_restored_config_may_be_of_another_version() -> None:
    """RLlib puts the attributes back that there were, and marks the config."""
    config = GPGConfig.from_state({**cartpole().get_state(), "setting_of_an_older_rllib": 1})
    config.validate()
    again = GPGConfig.from_state(cartpole().get_state())
    GPGConfig().update_from_dict(again).validate()


def test_validation_can_be_switched_off_as_in_ppo() -> None:
    config = cartpole().training(gamma=2.0).experimental(_validate_config=False)
    config.validate()


# Dict configs.


def test_an_unknown_key_is_refused_with_the_nearest_known_name() -> None:
    with pytest.raises(ValueError, match=r"'grup_size' .did you mean 'group_size'"):
        GPGConfig().update_from_dict({"grup_size": 64})


def test_all_unknown_keys_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"'grup_size'.*'zzzzzzzz'"):
        GPGConfig().update_from_dict({"grup_size": 64, "gamma": 0.9, "zzzzzzzz": 1})


@pytest.mark.parametrize("method", ["learners", "env_runners", "training", "model_config"])
def test_a_key_that_names_no_setting_but_a_method_is_refused(method: str) -> None:
    """`{"env_runners": 2}` in place of `{"num_env_runners": 2}` would overwrite the method."""
    with pytest.raises(ValueError, match=f"Unknown settings in the config: '{method}'"):
        GPGConfig().update_from_dict({method: 2})


def test_the_names_that_rllib_translates_stay_known() -> None:
    config = GPGConfig().update_from_dict({"num_workers": 3, "framework": "torch"})
    assert config.num_env_runners == 3


def test_a_typo_in_a_dict_config_stops_the_algorithm() -> None:
    with pytest.raises(ValueError, match="did you mean 'group_size'"):
        GPG(config={"env": "CartPole-v1", "grup_size": 64})


# Round trips.


def full_config() -> GPGConfig:
    return (
        small_config("CartPole-v1", binning=SpatialTimeBinning([0.5, 1.0, 0.5, 1.0]), gamma=0.97)
        .training(leave_one_out=True, normalize_advantages=False, entropy_coeff=[[0, 0.1], [9, 0]])
        .env_runners(max_episode_steps=50, episodes_per_share=2)
    )


def settings(config: GPGConfig) -> dict[str, Any]:
    return {name: repr(value) for name, value in config.to_dict().items()}


@pytest.mark.parametrize(
    "round_trip",
    [
        lambda config: GPGConfig().update_from_dict(config.to_dict()),
        lambda config: config.copy(),
        lambda config: cloudpickle.loads(cloudpickle.dumps(config)),
    ],
    ids=["to_dict", "copy", "pickle"],
)
def test_a_round_trip_keeps_every_setting(round_trip: Any) -> None:
    config = full_config()
    again = round_trip(config)
    assert settings(again) == settings(config)
    assert (again.group_size, again.max_episode_steps) == (8, 50)
    assert again.binning == SpatialTimeBinning([0.5, 1.0, 0.5, 1.0])
    again.validate()


def test_a_copy_shares_nothing_with_its_original() -> None:
    config = full_config()
    copied = config.copy(copy_frozen=False).training(group_size=99, lr=0.5)
    copied.env_runners(max_episode_steps=7).environment(env_config={"x": 1})
    copied.algorithm_config_overrides_per_module["some module"] = {"gamma": 0.5}
    assert settings(copied) != settings(config)
    assert settings(config) == settings(full_config())


def test_the_evaluation_copy_validates() -> None:
    config = cartpole().evaluation(evaluation_interval=1, evaluation_duration_unit="timesteps")
    config.validate()
    evaluation = config.get_evaluation_config_object()
    assert evaluation.in_evaluation
    evaluation.validate()


def test_ppos_settings_keep_their_names() -> None:
    shared = {
        "clip_param": 0.1,
        "entropy_coeff": 0.01,
        "use_kl_loss": True,
        "kl_coeff": 0.3,
        "kl_target": 0.02,
        "num_epochs": 3,
        "minibatch_size": 64,
        "shuffle_batch_per_epoch": False,
        "lr": [[0, 1e-3], [1000, 0.0]],
        "gamma": 0.9,
        "grad_clip": 1.0,
        "grad_clip_by": "norm",
    }
    for config in (PPOConfig(), cartpole()):
        config.training(**shared)
        assert {name: getattr(config, name) for name in shared} == shared
    config.validate()


# Tune.


def test_importing_the_package_registers_gpg_with_tune() -> None:
    assert get_trainable_cls("GPG") is GPG


def test_search_spaces_pass_the_setters_unharmed() -> None:
    spaces = {
        "group_size": tune.grid_search([4, 8]),
        "binning": tune.choice(["time", SpatialBinning(0.5)]),
        "lr": tune.loguniform(1e-4, 1e-2),
        "gamma": tune.uniform(0.9, 1.0),
        "clip_param": tune.choice([0.1, 0.2]),
        "entropy_coeff": tune.loguniform(1e-4, 1e-2),
        "num_minibatches": tune.choice([2, 4]),
    }
    episodes = {"max_episode_steps": tune.choice([10, 20])}
    as_dict = cartpole().training(**spaces).env_runners(**episodes).to_dict()
    for name, space in {**spaces, **episodes}.items():
        if isinstance(space, dict):
            assert as_dict[name] == space
        else:
            assert type(as_dict[name]) is type(space)
            assert as_dict[name].domain_str == space.domain_str


def test_the_mode_of_vector_envs_may_be_gymnasiums_enum() -> None:
    """As RLlib's docstring asks for it."""
    config = cartpole().env_runners(
        gym_env_vectorize_mode=gym.VectorizeMode.SYNC,
        batch_mode="truncate_episodes",
        rollout_fragment_length=8,
        num_envs_per_env_runner=64,
    )
    config.training(group_size=4).validate()
    config.env_runners(gym_env_vectorize_mode=gym.VectorizeMode.ASYNC)
    with pytest.raises(ValueError, match="one by one"):
        config.validate()


def test_env_runners_of_an_evaluation_by_episodes_sample_groups() -> None:
    config = cartpole().evaluation(
        evaluation_interval=1,
        evaluation_config=PPOConfig.overrides(env_runner_cls=SingleAgentEnvRunner),
    )
    with pytest.raises(ValueError, match="`env_runner_cls` must be GroupEnvRunner"):
        config.validate()
    # Others are by whichever env runners RLlib's evaluation, or a user's, takes.
    config.copy().evaluation(evaluation_duration_unit="timesteps").validate()
    auto = {"evaluation_duration": "auto", "evaluation_parallel_to_training": True}
    config.copy().evaluation(evaluation_num_env_runners=1, **auto).validate()
    config.copy().evaluation(custom_evaluation_function=lambda algo, runners: ({}, 0, 0)).validate()


def test_envs_that_failed_are_not_replaced_by_other_episodes() -> None:
    config = cartpole().fault_tolerance(restart_failed_sub_environments=True)
    with pytest.raises(ValueError, match=r"favours those that don't fail.*`max_share_failures`"):
        config.validate()


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (
            {"num_env_runners": 64, "episodes_per_share": 8},
            "Groups of 128 episodes are cut into 16 shares, so that 48 of 64 env runners have "
            "nothing to do: lower `episodes_per_share`, now 8, or take 16 env runners",
        ),
        (
            {"num_env_runners": 200},
            "cut into 128 shares, so that 72 of 200 env runners have nothing to do: take 128 env",
        ),
        ({"num_env_runners": 16, "episodes_per_share": 8}, None),
        ({"num_env_runners": 0}, None),
        # Those without a share of their own sample second copies.
        ({"num_env_runners": 64, "episodes_per_share": 8, "duplicate_last_shares": True}, None),
    ],
)
def test_env_runners_with_nothing_to_do_are_spoken_of(
    sampling: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(logging.getLogger("ray.rllib"), "warning", warnings.append)
    cartpole().training(group_size=128).env_runners(**sampling).validate()
    idle = [text for text in warnings if "have nothing to do" in text]
    assert len(idle) == (said is not None)
    assert (said or "") in "".join(idle)


def test_env_runners_of_an_evaluation_with_nothing_to_do_are_spoken_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A size of shares that is meant for training is that of evaluations, too."""
    warnings: list[str] = []
    monkeypatch.setattr(logging.getLogger("ray.rllib"), "warning", warnings.append)
    config = cartpole().env_runners(episodes_per_share=32).training(group_size=32)
    config.evaluation(evaluation_num_env_runners=10, evaluation_duration=20)
    config.copy().validate()
    (said,) = warnings
    assert "Evaluations of 20 episodes are cut into 1 share, so that 9 of 10" in said
    assert "evaluation_config={'episodes_per_share': ..}" in said
    config.evaluation(evaluation_config={"episodes_per_share": 2}).validate()
    assert len(warnings) == 1


def test_an_evaluation_replaces_no_episode_either() -> None:
    config = cartpole().evaluation(
        evaluation_num_env_runners=1,
        evaluation_config={"restart_failed_sub_environments": True},
    )
    with pytest.raises(ValueError, match="`restart_failed_sub_environments=True` begins another"):
        config.copy().validate()
    # By timesteps it is RLlib's own.
    config.evaluation(evaluation_duration_unit="timesteps").validate()
