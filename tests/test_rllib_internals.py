"""What rllib_gpg relies on in RLlib that isn't public API: one test per thing.

When one of these fails after an upgrade of Ray, its message says which part of rllib_gpg to look
at. The other tests may fail too, but in less helpful words.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import queue
import signal
from collections.abc import Iterator
from typing import Any
from unittest.mock import ANY

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.bc.bc_catalog import BCCatalog
from ray.rllib.algorithms.ppo import PPOConfig, ppo
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.connectors.learner import AddObservationsFromEpisodesToBatch
from ray.rllib.connectors.module_to_env import GetActions
from ray.rllib.core import (
    COMPONENT_LEARNER,
    COMPONENT_RL_MODULE,
    DEFAULT_MODULE_ID,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.filter import RunningStat
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.minibatch_utils import MiniBatchCyclicIterator
from ray.train._internal.storage import StorageContext
from ray.tune import Trainable
from ray.util.metrics import Counter

from rllib_gpg import GPG
from rllib_gpg.learning import GPGTorchLearner
from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.sampling.rollout.columnar import obstacle_to_columns
from tests.envs import Identity
from tests.helpers import SMALL_NET, built, small_config

pytestmark = pytest.mark.usefixtures("ray_session")

ENV_RUNNER = "rllib_gpg/sampling/share_runner.py"
COLUMNS = "rllib_gpg/sampling/rollout/columnar.py"
GATHERING = "rllib_gpg/sampling/gathering.py"
REQUESTS = "rllib_gpg/sampling/requests.py"
PACKING = "rllib_gpg/sampling/packing.py"
VECTOR_ENV = "rllib_gpg/sampling/rollout/vector_env.py"
VALIDATION = "rllib_gpg/validation/"
LEARNER = "rllib_gpg/learning/torch_learner.py"
BATCH = "rllib_gpg/learning/batch.py"
PIPELINE = "rllib_gpg/learning/pipeline.py"
MODULE = "rllib_gpg/learning/rl_module.py"
CONNECTOR = "rllib_gpg/advantages/connector.py"
CONNECTOR_STATES = "rllib_gpg/sampling/connector_states.py"
CONFIG = "rllib_gpg/config.py"
HALL = "rllib_gpg/group_algorithm.py"
POLICY = "rllib_gpg/policy.py"


def require(condition: object, where: str, what_for: str) -> None:
    assert condition, f"{where} needs it: {what_for}"


class Calls(RLlibCallback):
    """Writes down which callbacks came, for which env."""

    log: list[tuple[str, int]] = []  # noqa: RUF012

    def on_episode_created(self, *, env_index: int, **kwargs: Any) -> None:
        self.log.append(("created", env_index))

    def on_episode_end(self, *, env_index: int, **kwargs: Any) -> None:
        self.log.append(("end", env_index))


def stock_runner(**env_runners: Any) -> SingleAgentEnvRunner:
    """RLlib's own env runner, with 4 envs whose episodes last 10 steps."""
    config = small_config(Identity).callbacks(Calls).env_runners(**env_runners)
    return SingleAgentEnvRunner(config=config, worker_index=0)


@pytest.fixture(scope="module")
def runner(ray_session: None) -> SingleAgentEnvRunner:
    return stock_runner()


@pytest.fixture(scope="module")
def algo(ray_session: None) -> Iterator[GPG]:
    with built(small_config(Identity)) as algo:
        algo.train()
        yield algo


# AlgorithmConfig.


def test_config_validate_config() -> None:
    require(
        AlgorithmConfig()._validate_config
        and not AlgorithmConfig().experimental(_validate_config=False)._validate_config,
        CONFIG,
        "`_validate_config`, a setting of `experimental()`, switches validation off.",
    )


@pytest.mark.parametrize(
    ("key", "setting"), [("num_workers", "num_env_runners"), ("input", "input_")]
)
def test_config_knows_the_keys_it_translates(key: str, setting: str) -> None:
    require(
        key in AlgorithmConfig() and not hasattr(AlgorithmConfig, key),
        VALIDATION,
        f"`in` knows {key!r}, the key of a dict config that stands for `{setting}`.",
    )


def test_config_model_config_is_what_the_user_said() -> None:
    dataclass = DefaultModelConfig(**SMALL_NET)
    for given, expected in ((SMALL_NET, SMALL_NET), (dataclass, dataclasses.asdict(dataclass))):
        require(
            AlgorithmConfig().rl_module(model_config=given).model_config == expected,
            CONFIG,
            "`AlgorithmConfig.model_config` is what the user said, a dataclass as a dict.",
        )


def test_config_train_batch_size_per_learner() -> None:
    config = AlgorithmConfig().training(train_batch_size_per_learner=5)
    require(
        config._train_batch_size_per_learner == 5
        and AlgorithmConfig()._train_batch_size_per_learner is None,
        VALIDATION,
        "`_train_batch_size_per_learner` tells whether the user set a size in steps.",
    )


def test_config_settings_are_its_attributes() -> None:
    config = AlgorithmConfig()
    public = {name for name in vars(config) if not name.startswith("_")}
    require(
        {"lr", "gamma", "num_env_runners", "env_config", "callbacks_class"} <= public,
        VALIDATION,
        "`vars(config)` are the names a dict config may hold; all others are typos.",
    )


def test_config_evaluation_copy_is_marked() -> None:
    config = PPOConfig().environment("CartPole-v1").evaluation(evaluation_interval=1)
    require(
        config.get_evaluation_config_object().in_evaluation and not config.in_evaluation,
        VALIDATION,
        "`in_evaluation` exempts RLlib's evaluation copy, which has sizes in steps.",
    )


def test_learner_pipeline_insert_after() -> None:
    pipeline = AlgorithmConfig().build_learner_connector(None, None)
    inserted = FlattenObservations()
    pipeline.insert_after(AddObservationsFromEpisodesToBatch, inserted)
    before = pipeline.connectors[pipeline.connectors.index(inserted) - 1]
    require(
        type(before) is AddObservationsFromEpisodesToBatch,
        CONFIG,
        "`insert_after(AddObservationsFromEpisodesToBatch, ..)` puts `AddEpisodeEnds` behind the "
        "user's pieces and in front of RLlib's, which leaves columns alone that are there.",
    )


# Env runner.


def test_env_runner_sample_calls_sample() -> None:
    calls: list[dict[str, Any]] = []

    class Runner(SingleAgentEnvRunner):
        def _sample(self, **kwargs: Any) -> list[Any]:
            calls.append(kwargs)
            return []

    runner = Runner(config=small_config(Identity), worker_index=0)
    runner.sample(num_episodes=3)
    runner.sample(num_timesteps=7, force_reset=True)
    expected = [
        {"num_episodes": 3, "explore": True, "random_actions": False},
        {"num_timesteps": 7, "explore": True, "random_actions": False, "force_reset": True},
    ]
    require(calls == expected, ENV_RUNNER, "`_sample` is overridden to finish started episodes.")


def test_env_runner_sample_by_timesteps_takes_the_same_arguments() -> None:
    # Ray adds an argument of its own to the methods of a class that has been an actor.
    theirs, ours = (
        {name for name in signature(runner._sample) if not name.startswith("_ray")}
        for runner in (SingleAgentEnvRunner, GroupEnvRunner)
    )
    require(ours == theirs, ENV_RUNNER, "`_sample` by timesteps is left to RLlib's own.")


def test_rllibs_merging_of_filters_goes_wrong_with_the_second_merge() -> None:
    central, shares = RunningStat((1,)), [np.full(100, 5.0), np.full(100, 5.0)]
    for share in shares:
        remote = RunningStat.from_state(central.to_state())
        for observation in share:
            remote.push([observation])
        central.update(RunningStat.from_state(remote.to_state()))
    require(
        float(central.mean[0]) == 2.5,
        CONNECTOR_STATES,
        "its own merging of `MeanStdFilter`. Has RLlib mended `RunningStat`? Then it can go.",
    )


def test_env_runner_connectors() -> None:
    remote = stock_runner(env_to_module_connector=lambda env, spaces, device: MeanStdFilter())
    state = remote.get_state()
    pieces = [type(piece).__name__ for piece in remote._env_to_module.connectors]
    require(
        pieces[0] == "MeanStdFilter"
        and state["env_to_module_connector"].keys() == {"MeanStdFilter"}
        and state["module_to_env_connector"] == {}
        and bool(remote._module_to_env.connectors),
        CONNECTOR_STATES,
        "the pieces of `_env_to_module` and `_module_to_env` are those whose states are merged.",
    )


def test_env_runner_new_episode(runner: SingleAgentEnvRunner) -> None:
    Calls.log.clear()
    episodes: list[Any] = [None] * 4
    runner._new_episode(2, episodes)
    require(
        isinstance(episodes[2], SingleAgentEpisode) and Calls.log == [("created", 2)],
        ENV_RUNNER,
        "`_new_episode(index, episodes)` makes an episode and calls `on_episode_created`.",
    )


def test_env_runner_make_on_episode_callback(runner: SingleAgentEnvRunner) -> None:
    Calls.log.clear()
    episodes = [SingleAgentEpisode() for _ in range(4)]
    runner._make_on_episode_callback("on_episode_end", 1, episodes)
    require(
        Calls.log == [("end", 1)],
        ENV_RUNNER,
        "`_make_on_episode_callback(which, index, episodes)` calls the user's callbacks.",
    )


def test_env_runner_weights_seq_no() -> None:
    runner = stock_runner()
    state = {**runner.get_state(), WEIGHTS_SEQ_NO: 5}
    runner.set_state(state)
    parameter = next(iter(runner.module.parameters()))
    with torch.no_grad():
        parameter += 1.0
    changed = parameter.clone()
    runner.set_state({**state, WEIGHTS_SEQ_NO: 4})
    guarded = torch.equal(parameter, changed)
    runner._weights_seq_no = 0
    runner.set_state({**state, WEIGHTS_SEQ_NO: 4})
    require(
        guarded and not torch.equal(parameter, changed) and runner._weights_seq_no == 4,
        ENV_RUNNER,
        "`_weights_seq_no` guards against older weights; set to 0, it lets a restored "
        "checkpoint's through.",
    )


def test_env_runner_needs_initial_reset(runner: SingleAgentEnvRunner) -> None:
    runner.sample(num_timesteps=4)
    runner._needs_initial_reset = True
    (first, *_) = runner.sample(num_timesteps=4)
    require(
        first.t_started == 0,
        ENV_RUNNER,
        "`_needs_initial_reset` makes sampling by timesteps begin with new episodes.",
    )


def test_env_runner_episodes_for_metrics() -> None:
    ours, other = stock_runner(), stock_runner()
    episodes = other.sample(num_episodes=4)
    ours._done_episodes_for_metrics.extend(episodes)
    ours._ongoing_episodes_for_metrics.clear()
    metrics = ours.get_metrics()
    require(
        metrics["episode_len_mean"].peek() == 10,
        ENV_RUNNER,
        "`_done_episodes_for_metrics` are the episodes that `get_metrics` reports.",
    )


def test_env_runner_increase_sampled_metrics() -> None:
    runner = stock_runner()
    runner._increase_sampled_metrics(30, 3)
    metrics = runner.get_metrics()
    require(
        metrics["num_env_steps_sampled"].peek() == 30
        and metrics["num_env_steps_sampled_lifetime"].peek() == 30
        and metrics["num_episodes"].peek() == 3,
        ENV_RUNNER,
        "`_increase_sampled_metrics(steps, episodes)` counts what was sampled.",
    )


def test_env_runner_counter_of_env_steps(runner: SingleAgentEnvRunner) -> None:
    require(
        isinstance(runner._metrics_num_env_steps_sampled, Counter),
        ENV_RUNNER,
        "`_metrics_num_env_steps_sampled` is what Ray's dashboard shows.",
    )


def test_env_runner_connector_pipelines(runner: SingleAgentEnvRunner) -> None:
    """From a new episode to the action that its env gets."""
    episode = SingleAgentEpisode(
        observation_space=runner.env.single_observation_space,
        action_space=runner.env.single_action_space,
    )
    episode.add_env_reset(observation=np.array([0.5], np.float32), infos={})
    common = {
        "episodes": [episode],
        "explore": True,
        "rl_module": runner.module,
        "shared_data": {},
        "metrics": runner.metrics,
    }
    to_module = runner._env_to_module(batch={}, **common)
    require(
        to_module[Columns.OBS].tolist() == [[0.5]],
        ENV_RUNNER,
        "`_env_to_module` is the pipeline from episodes to the module's input.",
    )
    to_env = runner._module_to_env(batch=runner.module.forward_exploration(to_module), **common)
    require(
        {Columns.ACTIONS, Columns.ACTIONS_FOR_ENV, Columns.ACTION_LOGP} <= to_env.keys()
        and runner.env.single_action_space.contains(to_env[Columns.ACTIONS_FOR_ENV][0]),
        ENV_RUNNER,
        "`_module_to_env` is the pipeline from the module's output to actions.",
    )


def test_env_runner_ongoing_episodes() -> None:
    runner = stock_runner()
    chunks = runner.sample(num_timesteps=12)
    require(
        [episode.t for episode in runner._ongoing_episodes] == [3] * 4,
        ENV_RUNNER,
        "`_ongoing_episodes` is the list that callbacks and connectors see the episodes in.",
    )
    require(
        dict(runner._ongoing_episodes_for_metrics) == {chunk.id_: [chunk] for chunk in chunks},
        ENV_RUNNER,
        "`_ongoing_episodes_for_metrics` are chunks of episodes; whole episodes have none.",
    )


def test_env_runner_device_and_callbacks(runner: SingleAgentEnvRunner) -> None:
    devices = {parameter.device for parameter in runner.module.parameters()}
    require({torch.device(runner._device)} == devices, ENV_RUNNER, "`_device` computes actions.")
    require(
        [type(callback) for callback in runner._callbacks] == [Calls],
        ENV_RUNNER,
        "`_callbacks` are the user's callbacks, to see if one wants every step.",
    )


def test_env_runner_vector_env_has_sub_envs_that_step_one_by_one(
    runner: SingleAgentEnvRunner,
) -> None:
    env = runner.env
    require(
        isinstance(env, DictInfoToList)
        and isinstance(env.env, SyncVectorEnv)
        and env.unwrapped.envs[0].reset(seed=1)[0].shape == (1,)
        and len(env.unwrapped.envs[0].step(0)) == 5,
        VECTOR_ENV,
        "the env is one `DictInfoToList` around gymnasium's `SyncVectorEnv`, whose `envs` are "
        "reset and stepped one by one.",
    )


def test_env_runner_default_connectors() -> None:
    runner = GroupEnvRunner(config=small_config(Identity), worker_index=0)
    obstacle = obstacle_to_columns(runner._parts(explore=True))
    require(
        obstacle is None,
        COLUMNS,
        "the lists of RLlib's default connector pieces are what it recognises the fast path by; "
        f"it fell back, because {obstacle}.",
    )


def test_flattened_discrete_observations_are_one_hot() -> None:
    space = gym.spaces.Discrete(3)
    piece = FlattenObservations(space, gym.spaces.Discrete(2))
    episode = SingleAgentEpisode(observation_space=space, action_space=gym.spaces.Discrete(2))
    episode.add_env_reset(observation=2, infos={})
    piece(rl_module=None, batch={}, episodes=[episode], shared_data={})
    flat = episode.get_observations(-1)
    require(
        flat.dtype == np.float32 and flat.tolist() == [0.0, 0.0, 1.0],
        COLUMNS,
        "`FlattenObservations` of a discrete space is what `np.eye(n)[observation]` stands in for.",
    )


def test_get_actions_alone(runner: SingleAgentEnvRunner) -> None:
    outputs = {Columns.ACTION_DIST_INPUTS: torch.zeros(4, 2)}
    episode = SingleAgentEpisode()
    batch = GetActions()(rl_module=runner.module, batch=outputs, episodes=[episode], explore=True)
    require(
        len(batch[Columns.ACTIONS]) == len(batch[Columns.ACTION_LOGP]) == 4,
        COLUMNS,
        "`GetActions` alone draws the actions of a batch and their log-probabilities.",
    )


# Episodes.


def test_an_episode_can_be_put_together_from_columns() -> None:
    """The columns of a three-step episode, as the columnar rollout cuts them out."""
    episode = SingleAgentEpisode()
    episode.add_env_reset(observation=np.zeros(1, np.float32), infos={})
    last = np.full(1, 3.0, np.float32)
    episode.add_env_step(last, None, 0.0, {"last": 1}, terminated=True, truncated=False)
    episode.observations = InfiniteLookbackBuffer(np.arange(4, dtype=np.float32)[:, None])
    episode.infos = InfiniteLookbackBuffer([{}, {}, {}, {"last": 1}])
    episode.actions = InfiniteLookbackBuffer(np.array([0, 1, 0]))
    episode.rewards = InfiniteLookbackBuffer(np.array([1.0, 2.0, 3.0]))
    episode.extra_model_outputs = {"x": InfiniteLookbackBuffer(np.array([7, 8, 9]))}
    episode.t = 3
    episode.validate()
    require(
        len(episode) == 3
        and episode.is_done
        and episode.is_numpy
        and episode.get_return() == 6.0
        and episode.get_observations(-1) == 3.0
        and episode.get_extra_model_outputs("x").tolist() == [7, 8, 9]
        and episode.get_infos(-1) == {"last": 1}
        and episode.get_duration_s() > 0
        and len(episode[1:]) == 2,
        COLUMNS,
        "`SingleAgentEpisode`'s slots hold `InfiniteLookbackBuffer(array)`s, `t` and the end.",
    )


def test_a_fresh_whole_episode_has_no_lookback(runner: SingleAgentEnvRunner) -> None:
    (episode, *_) = runner.sample(num_episodes=1)
    require(
        episode.t_started == 0
        and len(episode.get_observations(slice(0, len(episode)))) == len(episode) == 10,
        CONNECTOR,
        "`get_observations(slice(0, len))` are the observations of the steps, without the last.",
    )


# Env runner group.


def get_spaces(env_runner: Any) -> Any:
    return env_runner.get_spaces()


def dies(env_runner: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_env_runner_group_and_its_worker_manager() -> None:
    config = small_config(Identity).env_runners(num_env_runners=1)
    config.fault_tolerance(restart_failed_env_runners=False)
    with built(config) as algo:
        group = algo.env_runner_group
        manager = group._worker_manager
        require(
            list(manager.actors()) == manager.actor_ids() == group.healthy_env_runner_ids() == [1],
            GATHERING,
            "`_worker_manager.actors()` maps ids to the actors, to ask them for shares, and to "
            "kill one that hangs.",
        )
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        manager.actors()[1].apply.remote(get_spaces).future().add_done_callback(answers.put)
        require(
            DEFAULT_MODULE_ID in answers.get(timeout=60.0).result(),
            REQUESTS,
            "an env runner's `apply` calls a function with it; a reference's `future` tells when "
            "there is a result.",
        )
        manager.actors()[1].apply.remote(dies).future().add_done_callback(answers.put)
        require(
            isinstance(answers.get(timeout=60.0).exception(), RayError),
            REQUESTS,
            "and when there will be none.",
        )
        require(
            group._ignore_ray_errors_on_env_runners is False,
            GATHERING,
            "`_ignore_ray_errors_on_env_runners` says whether a lost env runner ends the run.",
        )
        manager.set_actor_state(1, healthy=False)
        require(
            group.healthy_env_runner_ids() == [] and group.num_remote_env_runners() == 1,
            GATHERING,
            "`_worker_manager.set_actor_state` takes a lost env runner out of service.",
        )
        require(
            manager.actor_ids() == [1] and not manager.is_actor_healthy(1),
            GATHERING,
            "`_worker_manager` knows the ids of lost env runners, and which are lost.",
        )


def test_episodes_are_pickled_by_their_slots() -> None:
    _, _, (others, slots), *_ = SingleAgentEpisode().__reduce_ex__(2)
    require(
        others is None and {"infos", "_last_added_infos"} <= slots.keys(),
        PACKING,
        "an episode is pickled by its slots, of which two hold infos.",
    )


# Algorithm, learner group and learner.


def test_algorithm_spaces(algo: GPG) -> None:
    require(
        algo.spaces[DEFAULT_MODULE_ID][0].shape == (1,)
        and algo.spaces[INPUT_ENV_SINGLE_SPACES][0].shape == (1,),
        VALIDATION,
        "`Algorithm.spaces` holds the module's and the env's spaces, to check binnings against.",
    )


def test_algorithm_restore_env_runners(algo: GPG) -> None:
    require(
        algo.restore_env_runners(algo.env_runner_group) == [],
        HALL,
        "`restore_env_runners(group)` brings lost env runners back within a group.",
    )
    require(
        {"config", "env_runner_group", "restored_env_runner_indices"}
        == set(signature(algo._make_on_env_runners_recreated_callbacks)),
        HALL,
        "`_make_on_env_runners_recreated_callbacks` tells callbacks of them.",
    )


def test_tune_names_the_trial_by_its_folder(algo: GPG) -> None:
    require(
        algo._storage is None
        and "storage" in signature(Trainable.__init__)
        and "trial_dir_name" in signature(StorageContext.__init__),
        HALL,
        "`_storage.trial_dir_name` tells trials with one seed apart, as `trial_id` would.",
    )


def test_learner_group_state_of_the_module_alone(algo: GPG) -> None:
    state = algo.learner_group.get_state(
        components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
    )[COMPONENT_LEARNER]
    require(
        DEFAULT_MODULE_ID in state[COMPONENT_RL_MODULE]
        and state[WEIGHTS_SEQ_NO] == 1
        and "optimizer" not in state,
        POLICY,
        "`get_state(components='learner/rl_module')` has the weights, their number, no more.",
    )


@pytest.fixture(scope="module")
def remote_learner(ray_session: None) -> Iterator[LearnerGroup]:
    """One remote learner and no env runners."""
    group = small_config(Identity).learners(num_learners=1).build_learner_group(env=Identity())
    yield group
    group.shutdown()


def test_learner_group_foreach_learner_calls_the_first_one(
    algo: GPG, remote_learner: LearnerGroup
) -> None:
    for group in (algo.learner_group, remote_learner):
        results = group.foreach_learner(
            lambda learner, factor: factor * 2,
            remote_actor_ids=[0],
            healthy_only=False,
            factor=21,
        )
        require(
            [result.get() for result in results] == [42],
            PIPELINE,
            "`foreach_learner(function, remote_actor_ids=[0])` is for the first learner.",
        )


def test_a_reference_of_one_learner_reaches_another(remote_learner: LearnerGroup) -> None:
    """To a local learner go `batch`es, to remote ones `batch_refs`, one each."""
    require(
        any(p.kind is p.VAR_KEYWORD for p in signature(LearnerGroup.update).values())
        and "num_total_minibatches" in signature(Learner.update),
        HALL,
        "`LearnerGroup.update(num_total_minibatches=..)` gives all learners one number of steps.",
    )
    (result,) = remote_learner.foreach_learner(
        lambda learner: ray.put(MultiAgentBatch({}, env_steps=2)), remote_actor_ids=[0]
    )
    references = [ray.put(MultiAgentBatch({}, env_steps=1)), result.get()]
    shards = TrainingData(batch_refs=references).shard(
        num_shards=2, len_lookback_buffer=0, num_total_minibatches=3
    )
    for data, _ in shards:
        data.solve_refs()
    require(
        [(data.batch.env_steps(), kwargs) for data, kwargs in shards] == [(1, {}), (2, {})],
        HALL,
        "`batch_refs` go to one learner each, and `num_total_minibatches` isn't set a second time.",
    )


def test_learner_pipeline_is_an_attribute_that_build_may_change(algo: GPG) -> None:
    learner = algo.learner_group.foreach_learner(lambda learner: learner).result_or_errors[0].get()
    require(
        isinstance(learner._learner_connector, ConnectorPipelineV2)
        and learner._learner_connector.connectors,
        PIPELINE,
        "`_learner_connector` is the pipeline, `connectors` its pieces.",
    )


def test_learner_check_component(algo: GPG) -> None:
    learner = algo.learner_group.foreach_learner(lambda learner: learner).result_or_errors[0].get()
    require(
        learner._check_component("mine", None, None)
        and learner._check_component("mine", None, ["other"])
        and not learner._check_component("mine", ["other"], None),
        LEARNER,
        "`_check_component` says whether a part of the state is asked for.",
    )


def test_multi_rl_module_can_be_copied_with_other_parts(algo: GPG) -> None:
    learner = algo.learner_group.foreach_learner(lambda learner: learner).result_or_errors[0].get()
    view = copy.copy(learner.module.unwrapped())
    view._rl_modules = {"mine": learner.module[DEFAULT_MODULE_ID].unwrapped()}
    require(
        list(view.keys()) == ["mine"]
        and list(learner.module.keys()) == [DEFAULT_MODULE_ID]
        and view["mine"] is learner.module[DEFAULT_MODULE_ID],
        PIPELINE,
        "`_rl_modules` holds the parts of a module, for a view of it without DDP.",
    )


def test_algorithm_config_overrides_are_one_dict() -> None:
    config = AlgorithmConfig()
    overrides = config.algorithm_config_overrides_per_module
    config.multi_agent(algorithm_config_overrides_per_module={"mine": {"gamma": 0.5}})
    require(
        overrides == {"mine": {"gamma": 0.5}},
        CONFIG,
        "`Learner.add_module` adds to the dict that `GroupAdvantageEstimation` looks into.",
    )


def signature(function: Any) -> Any:
    return inspect.signature(function).parameters


@pytest.mark.parametrize("num_total_minibatches", [1, 5])
def test_the_minibatch_iterator_obeys_num_total_minibatches(num_total_minibatches: int) -> None:
    batch = MultiAgentBatch({"p": SampleBatch({"x": torch.arange(7)})}, env_steps=7)
    minibatches = MiniBatchCyclicIterator(
        batch,
        num_epochs=1,
        minibatch_size=3,
        shuffle_batch_per_epoch=False,
        num_total_minibatches=num_total_minibatches,
    )
    sizes = [len(minibatch["p"]["x"]) for minibatch in minibatches]
    require(
        sizes == [3] * num_total_minibatches,
        BATCH,
        "there are exactly `num_total_minibatches` of `minibatch_size` rows, going round if need "
        "be, so that no learner waits for another.",
    )


def test_sample_batch_zero_padded() -> None:
    """Three sequences of 4 steps, of which 4, 2 and 1 are real."""
    columns = {
        "x": torch.arange(12).reshape(3, 4),
        Columns.SEQ_LENS: torch.tensor([4, 2, 1]),
        Columns.STATE_IN: {"h": torch.arange(3)[:, None]},
    }
    batch = SampleBatch(columns, _zero_padded=True)
    batch.enable_slicing_by_batch_id()
    last = batch[1:3]
    require(
        last["x"].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
        and last[Columns.STATE_IN]["h"].tolist() == [[1], [2]],
        BATCH,
        "`SampleBatch(_zero_padded=True)` is cut into minibatches by whole sequences.",
    )


def test_learner_convert_batch_type(algo: GPG) -> None:
    learner = algo.learner_group._learner
    columns = {Columns.OBS: torch.zeros(2, 3), Columns.SEQ_LENS: torch.tensor([3, 1])}
    batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns, _zero_padded=True)}, 4)
    converted = learner._convert_batch_type(batch)
    require(
        converted is not batch and converted.policy_batches[DEFAULT_MODULE_ID].zero_padded,
        LEARNER,
        "`_convert_batch_type` moves shards to the learner's device; they stay zero-padded.",
    )


def test_learner_device(algo: GPG) -> None:
    learner = algo.learner_group.foreach_learner(lambda learner: learner).result_or_errors[0].get()
    require(
        isinstance(learner._device, torch.device) or learner._device == "cpu",
        LEARNER,
        "`_device` is where the schedule of the entropy coefficient lives.",
    )


def test_learner_calls_the_hook_after_an_update_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        GPGTorchLearner,
        "after_gradient_based_update",
        lambda learner, **kwargs: calls.append(kwargs),
    )
    with built(small_config(Identity)) as algo:
        algo.train()
    require(
        calls == [{"timesteps": ANY}]
        and calls[0]["timesteps"]["num_env_steps_sampled_lifetime"] == 80,
        LEARNER,
        "`after_gradient_based_update(timesteps=..)` is called once per update.",
    )


def test_learner_weights_seq_no(algo: GPG) -> None:
    learner = algo.learner_group.foreach_learner(lambda learner: learner).result_or_errors[0].get()
    state = learner.get_state()
    learner._weights_seq_no = state["weights_seq_no"] + 2
    learner.set_state(state)
    require(
        learner._weights_seq_no == state["weights_seq_no"],
        LEARNER,
        "`_weights_seq_no` is the number below which `set_state` ignores weights.",
    )


def test_learner_learning_rates(algo: GPG) -> None:
    learner = algo.learner_group.foreach_learner(lambda learner: learner).result_or_errors[0].get()
    ((optimizer, schedule),) = learner._optimizer_lr_schedules.items()
    learner._set_optimizer_lr(optimizer, lr=0.5)
    require(
        optimizer.param_groups[0]["lr"] == 0.5 and schedule.update(timestep=0) == algo.config.lr,
        LEARNER,
        "`_optimizer_lr_schedules` and `_set_optimizer_lr` put the config's `lr` in force again.",
    )
    require(
        algo.config._torch_lr_scheduler_classes is None,
        LEARNER,
        "`_torch_lr_scheduler_classes` takes the place of these schedules.",
    )
    learner._set_learning_rates()


def test_the_shuffle_between_epochs_is_numpys() -> None:
    batches = [SampleBatch({"x": np.arange(100)}) for _ in range(2)]
    state = np.random.get_state()
    for batch in batches:
        np.random.seed(1)
        batch.shuffle()
    np.random.set_state(state)
    require(
        bool((batches[0]["x"] == batches[1]["x"]).all()),
        BATCH,
        "`SampleBatch.shuffle` draws from NumPy's global generator, which an update seeds.",
    )


def test_ppos_result_keys() -> None:
    require(
        (
            ppo.LEARNER_RESULTS_KL_KEY,
            ppo.LEARNER_RESULTS_CURR_KL_COEFF_KEY,
            ppo.LEARNER_RESULTS_CURR_ENTROPY_COEFF_KEY,
        )
        == ("mean_kl_loss", "curr_kl_coeff", "curr_entropy_coeff"),
        LEARNER,
        "metrics keep the names they have in PPO, so that dashboards go on.",
    )


def test_metrics_of_a_logger_of_its_own_can_be_aggregated() -> None:
    inner, outer = MetricsLogger(root=False), MetricsLogger(root=True)
    inner.log_dict({"a": 3.0}, key="module", window=1)
    outer.aggregate([inner.reduce()], key="learners")
    require(
        outer.peek(("learners", "module", "a")) == 3.0,
        HALL,
        "`MetricsLogger(root=False).reduce()` carries the group's metrics into the results.",
    )


# Module and catalog.


def test_catalog_head_config() -> None:
    settings = {**PPOConfig().model_config, **SMALL_NET, "head_fcnet_hiddens": []}
    catalog = BCCatalog(
        observation_space=gym.spaces.Box(-1.0, 1.0, (4,)),
        action_space=gym.spaces.Discrete(2),
        model_config_dict=settings,
    )
    catalog.build_pi_head("torch")
    fields = {field.name for field in dataclasses.fields(catalog.pi_head_config)}
    expected = {
        f"{layer}_layer_{kind}_initializer{suffix}"
        for layer in ("hidden", "output")
        for kind in ("weights", "bias")
        for suffix in ("", "_config")
    } | {"hidden_layer_use_layernorm"}
    require(
        expected <= fields,
        MODULE,
        "`pi_head_config`, made by `build_pi_head`, has these fields: it is built again with the "
        "initialisers and the layernorm of the model config.",
    )


def test_module_parts(algo: GPG) -> None:
    names = {name.partition(".")[0] for name, _ in algo.get_module().named_parameters()}
    require(
        names == {"_encoder", "_pi_head"},
        MODULE,
        "`_encoder` and `_pi_head` are the parts of RLlib's BC module, and in checkpoints.",
    )


def test_all_forward_passes_of_the_default_module_are_one(algo: GPG) -> None:
    learners = algo.learner_group.foreach_learner(lambda learner: learner.module)
    module = learners.result_or_errors[0].get()[DEFAULT_MODULE_ID]
    batch = {Columns.OBS: torch.ones(2, 1)}
    outputs = [
        forward(batch)[Columns.ACTION_DIST_INPUTS]
        for forward in (module.forward_train, module.forward_exploration, module.forward_inference)
    ]
    require(
        torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2]),
        MODULE,
        "`_forward` serves all phases, so that observations are normalised in each of them.",
    )
