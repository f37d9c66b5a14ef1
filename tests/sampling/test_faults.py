"""Nothing lost, nothing twice, nothing biased: groups are the same whatever happens to runners."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.learner import AddInfosFromEpisodesToTrainBatch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from scipy.stats import binomtest

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.sampling import GroupEnvRunner, SamplingError
from rllib_gpg.sampling.gathering import RemoteGathering, _Failures
from rllib_gpg.sampling.group import cut_into_shares
from rllib_gpg.sampling.messages import Share
from tests.envs import (
    Broken,
    ComingAndGoing,
    HangsOnce,
    Identity,
    InterruptsItself,
    ShortOrLong,
    Slow,
    TellsTooMuch,
    Unreliable,
)
from tests.helpers import (
    LinearPolicy,
    built,
    fingerprint,
    interrupt,
    interruptible,
    same,
    sample_group,
    small_config,
    snapshot,
    start_ray,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def num_redispatched(algo: GPG) -> int:
    return int(algo.metrics.peek(("env_runners", "num_episodes_redispatched_lifetime")))


def pids(algo: GPG) -> list[int]:
    return algo.env_runner_group.foreach_env_runner(
        lambda runner: os.getpid(), local_env_runner=False
    )


class Killer(threading.Thread):
    """Kills env runners at random moments until it is told to stop."""

    def __init__(self, algo: GPG, times: int):
        super().__init__(daemon=True)
        self._pids = pids(algo)
        self._times = times

    def run(self) -> None:
        chance = random.Random(0)
        for pid in chance.sample(self._pids, self._times):
            time.sleep(chance.uniform(0.1, 0.6))
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_killed_env_runners_change_nothing() -> None:
    """SIGKILL at random moments: the same groups, episode by episode, and without delay."""
    config = small_config(Slow, group_size=12).env_runners(
        num_env_runners=3, num_envs_per_env_runner=2, episodes_per_share=2
    )
    with built(config) as algo:
        undisturbed = [fingerprint(sample_group(algo)) for _ in range(4)]
    with built(config) as algo:
        groups, redispatched = [], 0
        for _ in range(4):
            killer = Killer(algo, times=2)
            killer.start()
            start = time.monotonic()
            group = sample_group(algo)
            assert time.monotonic() - start < 30.0
            killer.join()
            assert len({episode.id_ for episode in group}) == 12
            seq_nos = {int(s) for e in group for s in e.get_extra_model_outputs("weights_seq_no")}
            assert len(seq_nos) == 1
            groups.append(fingerprint(group))
            redispatched = num_redispatched(algo)
            # Let Ray start them again, as `train` does before each group.
            wait_until(lambda: len(restored(algo)) == 3)
    assert groups == undisturbed
    assert redispatched >= 2


def restored(algo: GPG, group: Any = None) -> list[int]:
    """The env runners, for training by default, that are there or could be brought back."""
    group = group or algo.env_runner_group
    algo.restore_env_runners(group)
    return group.healthy_env_runner_ids()


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_when_all_env_runners_are_lost_the_group_waits_for_them() -> None:
    config = small_config(Slow, group_size=6).env_runners(num_env_runners=2)
    with built(config) as algo:
        undisturbed = fingerprint(sample_group(algo))
        algo._groups.number = 0
        for pid in pids(algo):
            os.kill(pid, signal.SIGKILL)
        assert fingerprint(sample_group(algo)) == undisturbed
        algo.train()


@pytest.mark.slow
def test_when_none_comes_back_the_error_names_the_checkpoint() -> None:
    config = small_config(Slow, group_size=6).env_runners(num_env_runners=2)
    config.fault_tolerance(max_num_env_runner_restarts=0, env_runner_restore_timeout_s=2.0)
    with built(config) as algo:
        algo.train()
        for pid in pids(algo):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SamplingError, match="env_runner_restore_timeout_s") as error:
            sample_group(algo)
    assert_checkpoint(str(error.value))


def assert_checkpoint(message: str) -> Path:
    path = Path(re.search(r"The run as it was: (\S+)", message)[1])
    assert (path / "rllib_checkpoint.json").is_file()
    return path


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_env_that_raises_now_and_then_biases_nothing(num_env_runners: int) -> None:
    """One failure in 200 steps would all but wipe out long episodes, were they drawn afresh."""

    def unreliable(probability: float) -> GPGConfig:
        config = small_config(Unreliable, group_size=16).environment(
            env_config={"probability": probability}
        )
        config.env_runners(num_env_runners=num_env_runners, episodes_per_share=1)
        return config.fault_tolerance(max_share_failures=1000)

    groups, redispatched = {}, {}
    for probability in (0.0, 1 / 200):
        with built(unreliable(probability)) as algo:
            groups[probability] = [e for _ in range(4) for e in sample_group(algo)]
            redispatched[probability] = num_redispatched(algo)
    assert fingerprint(groups[1 / 200]) == fingerprint(groups[0.0])
    assert redispatched[0.0] == 0
    assert redispatched[1 / 200] > 10
    num_long = sum(len(episode) == ShortOrLong.LONG for episode in groups[1 / 200])
    assert binomtest(num_long, 4 * 16, 0.5).pvalue > 1e-3


class Counts(RLlibCallback):
    """What a user may log of episodes: a sum, RLlib's default (an average), and a series."""

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        metrics_logger.log_value("episodes_counted", 1, reduce="sum")
        metrics_logger.log_value("length_averaged", len(episode))
        metrics_logger.log_value("lengths", len(episode), reduce="item_series", window=100)


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_users_metrics_count_no_episode_of_a_failed_share(num_env_runners: int) -> None:
    logged = []
    for probability in (0.0, 1 / 200):
        config = small_config(Unreliable, group_size=16).callbacks(Counts)
        config.environment(env_config={"probability": probability})
        config.env_runners(num_env_runners=num_env_runners, episodes_per_share=4)
        with built(config.fault_tolerance(max_share_failures=1000)) as algo:
            group = sample_group(algo)
            results = algo.metrics.peek("env_runners")
            assert (num_redispatched(algo) > 0) == (probability > 0.0)
        assert results["episodes_counted"] == results["num_episodes"] == 16
        assert sorted(results["lengths"]) == sorted(map(len, group))
        logged.append([results["length_averaged"], list(results["lengths"])])
    assert logged[0] == logged[1]


@pytest.mark.slow
def test_what_cant_be_sent_is_named() -> None:
    config = small_config(TellsTooMuch).env_runners(num_env_runners=1)
    config.fault_tolerance(env_runner_restore_timeout_s=30.0)
    with built(config) as algo:
        # Nobody reads it, so that it needn't be sent.
        algo.train()
    config = config.copy(copy_frozen=False).learners(
        learner_connector=lambda *spaces: AddInfosFromEpisodesToTrainBatch()
    )
    with built(config.copy().env_runners(num_env_runners=0)) as algo:
        # One process needs to send nothing.
        algo.train()
    with (
        built(config) as algo,
        pytest.raises(SamplingError, match=r"The info 'handle' at step 3 .* can't be pickled"),
    ):
        algo.train()


# Ctrl+C.


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl+C while env runners are busy with the first shares."""

    with monkeypatch.context() as patch, interruptible():
        # Called in each round of the loop, after shares were handed out.
        patch.setattr(RemoteGathering, "_collect", interrupt)
        yield


@pytest.mark.parametrize("restore", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("max_requests_in_flight", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_goes_on_after_an_interrupt(
    max_requests_in_flight: int, restore: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Env runners are still busy then, with shares of the same numbers and older weights."""
    config = small_config(Slow, group_size=8).env_runners(
        num_env_runners=2,
        num_envs_per_env_runner=2,
        episodes_per_share=2,
        max_requests_in_flight_per_env_runner=max_requests_in_flight,
    )

    def rest(algo: GPG) -> Any:
        assert algo.train()["training_iteration"] == 2
        return fingerprint(sample_group(algo))

    with built(config) as algo:
        algo.train()
        path = algo.save_to_path(tmp_path)
        undisturbed = rest(algo)
        algo.restore_from_path(path)
        with interrupted(monkeypatch):
            algo.train()
        if restore:
            algo.restore_from_path(path)
        assert rest(algo) == undisturbed
        assert num_redispatched(algo) == 0


def test_an_env_that_was_interrupted_is_made_anew() -> None:
    """In the midst of a step it may be in any state."""
    config = small_config(InterruptsItself)
    with built(config) as algo:
        undisturbed = fingerprint(sample_group(algo))
        algo._groups.number = 0
        InterruptsItself.at_step = 3
        try:
            with pytest.raises(KeyboardInterrupt):
                sample_group(algo)
        finally:
            InterruptsItself.at_step = None
        assert fingerprint(sample_group(algo)) == undisturbed
        assert num_redispatched(algo) == 0


@pytest.mark.slow
def test_an_env_that_hangs_is_killed_and_its_share_sent_again(tmp_path: Path) -> None:
    def config(path: Path) -> GPGConfig:
        config = small_config(HangsOnce, group_size=8).environment(env_config={"path": str(path)})
        return config.env_runners(num_env_runners=2, sample_timeout_s=20.0, episodes_per_share=2)

    already_hung = tmp_path / "already_hung"
    already_hung.touch()
    with built(config(already_hung)) as algo:
        undisturbed = fingerprint(sample_group(algo))
    with built(config(tmp_path / "hangs")) as algo:
        group = sample_group(algo)
        assert fingerprint(group) == undisturbed
        assert num_redispatched(algo) == 2


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_share_that_always_fails_ends_the_run_after_a_checkpoint(num_env_runners: int) -> None:
    config = small_config(Broken).environment(env_config={"how": "raises"})
    config.env_runners(num_env_runners=num_env_runners)
    config.fault_tolerance(max_share_failures=3)
    with built(config) as algo:
        start = time.monotonic()
        with pytest.raises(SamplingError) as error:
            algo.train()
        assert time.monotonic() - start < 30.0
        before = algo.get_module().get_state()
    message = str(error.value)
    assert "the simulator is gone" in message
    assert "Broken" in message
    assert "envs.py:" in message
    assert "in `step`" in message
    assert "3 times" in message
    assert "Seeds(episodes=(" in message
    again = GPG.from_checkpoint(assert_checkpoint(message))
    try:
        after = again.get_module().get_state()
        assert all((before[name] == after[name]).all() for name in before)
    finally:
        again.stop()


class Raises(RLlibCallback):
    def on_episode_end(self, **kwargs: Any) -> None:
        raise KeyError("of the user's own")


class LogsWhatHasNoMean(RLlibCallback):
    def on_episode_end(self, *, metrics_logger: Any, **kwargs: Any) -> None:
        metrics_logger.log_value("colour", "green", reduce="mean", window=10)


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_metrics_that_cannot_be_reduced_are_named_and_cost_no_env_runner(
    num_env_runners: int,
) -> None:
    config = small_config(Identity).callbacks(LogsWhatHasNoMean)
    config.fault_tolerance(max_share_failures=1)
    config.env_runners(num_env_runners=num_env_runners)
    with built(config) as algo:
        before = pids(algo)
        with pytest.raises(SamplingError, match=r"TypeError.* in `"):
            algo.train()
        assert pids(algo) == before


def test_where_an_error_was_raised_is_named_and_not_only_the_env() -> None:
    config = small_config(Identity).callbacks(Raises).fault_tolerance(max_share_failures=1)
    with built(config) as algo, pytest.raises(SamplingError) as error:
        algo.train()
    assert "KeyError" in str(error.value)
    assert "test_faults.py:" in str(error.value)
    assert "in `on_episode_end`, with env" in str(error.value)


@pytest.mark.slow
def test_training_goes_on_when_a_node_is_removed_and_runners_come_back() -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        config = small_config(ShortOrLong, group_size=8).env_runners(
            num_env_runners=4, episodes_per_share=2
        )
        with built(config) as algo:
            algo.train()
            cluster.remove_node(nodes[0], allow_graceful=False)
            for _ in range(3):
                assert algo.train()["learners"]["default_policy"]["group_num_episodes"] == 8
            cluster.add_node(num_cpus=2)
            wait_until(lambda: len(restored(algo)) == 4, seconds=120.0)
            algo.train()
    finally:
        ray.shutdown()
        cluster.shutdown()
        # Back to the Ray of all tests, which knows nothing yet of what was registered with Tune.
        start_ray()
        tune.register_trainable("GPG", GPG)


# Env runners that come back after modules were added or removed.


def to_first(agent_id: Any, episode: Any, **kwargs: Any) -> str:
    return "first"


def to_late(agent_id: Any, episode: Any, **kwargs: Any) -> str:
    return "late" if agent_id == "c" else "first"


def with_changed_modules(config: GPGConfig) -> Any:
    """Builds it, adds the module "late" for the agent "c", and removes "others"."""
    config.environment(ComingAndGoing)
    config.multi_agent(policies={"first", "others"}, policy_mapping_fn=to_first)
    algo = config.build_algo()
    algo.train()
    spec = RLModuleSpec.from_module(algo.get_module("others"))
    algo.add_module("late", spec, new_should_module_be_updated=["late"])
    algo.remove_module("others", new_agent_to_module_mapping_fn=to_late)
    return algo


def kill_the_only_one(group: Any, *, noticed: bool) -> None:
    """Not noticed: Ray starts an idle env runner again before RLlib hears that it was gone."""
    (actor,) = group._worker_manager.actors().values()
    pid = ray.get(actor.apply.remote(lambda runner: os.getpid()))
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return ray.get(actor.apply.remote(lambda runner: os.getpid())) != pid
        except ray.exceptions.RayActorError:
            return False

    if not noticed:
        wait_until(is_back, seconds=180.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noticed", "create_local_env_runner"),
    [
        (True, True),
        (False, True),
        (True, False),
    ],
)
def test_an_env_runner_that_comes_back_has_the_modules_in_force(
    noticed: bool, create_local_env_runner: bool
) -> None:
    config = small_config(None).env_runners(
        num_env_runners=1, create_local_env_runner=create_local_env_runner
    )
    algo = with_changed_modules(config)
    try:
        kill_the_only_one(algo.env_runner_group, noticed=noticed)
        for episode in sample_group(algo):
            modules = {agent: episode.module_for(agent) for agent in "abc"}
            assert modules == {"a": "first", "b": "first", "c": "late"}
        before = snapshot(algo)["rl_module"]
        algo.train()
        after = snapshot(algo)["rl_module"]
        trained = [
            module_id for module_id in after if not same(after[module_id], before[module_id])
        ]
        assert trained == ["late"]
    finally:
        algo.stop()


@pytest.mark.slow
@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("unit", ["episodes", "timesteps"])
def test_an_env_runner_for_evaluation_that_comes_back_too(unit: str, noticed: bool) -> None:
    config = small_config(None).evaluation(
        # In every iteration, as it brings lost env runners back.
        evaluation_interval=1,
        evaluation_num_env_runners=1,
        # Episodes, or steps of 4 envs together: "c" comes at the fourth.
        evaluation_duration=40,
        evaluation_duration_unit=unit,
    )
    algo = with_changed_modules(config)
    try:
        kill_the_only_one(algo.eval_env_runner_group, noticed=noticed)
        if unit == "timesteps" and noticed:
            # RLlib notices, evaluates nothing, and brings it back before a later evaluation.
            algo.train()
            wait_until(lambda: restored(algo, algo.eval_env_runner_group))
        results = algo.train()["evaluation"]
        assert results["env_runners"]["num_module_steps_sampled"].keys() == {"first", "late"}
    finally:
        algo.stop()


@pytest.mark.slow
@pytest.mark.parametrize("noticed", [True, False])
def test_an_env_runner_that_comes_back_has_the_module_that_was_added_last(noticed: bool) -> None:
    """It is made with the config's own module of that id, which the weights don't fit."""
    config = small_config(ComingAndGoing).env_runners(num_env_runners=1)
    config.multi_agent(policies={"first", "late"}, policy_mapping_fn=to_late)
    config.fault_tolerance(delay_between_env_runner_restarts_s=0, env_runner_restore_timeout_s=120)
    with built(config) as algo:
        spec = RLModuleSpec.from_module(algo.get_module("late"))
        spec.model_config = {**spec.model_config, "fcnet_hiddens": [16]}
        algo.remove_module("late", new_agent_to_module_mapping_fn=to_first)
        algo.add_module("late", spec, new_agent_to_module_mapping_fn=to_late)
        algo.train()
        kill_the_only_one(algo.env_runner_group, noticed=noticed)
        pids_seen = set()
        for _ in range(3):
            assert "policy_loss" in algo.train()["learners"]["late"]
            pids_seen |= set(pids(algo))
        # It isn't lost again by what it is given as it comes back.
        assert len(pids_seen) == 1


@pytest.mark.slow
def test_env_runners_for_evaluation_may_keep_their_modules() -> None:
    """The new module plays against the old ones in training alone."""
    config = small_config(ComingAndGoing).evaluation(
        evaluation_interval=1, evaluation_num_env_runners=1, evaluation_duration=3
    )
    config.multi_agent(policies={"first"}, policy_mapping_fn=to_first)
    with built(config) as algo:
        algo.add_module(
            "late",
            RLModuleSpec.from_module(algo.get_module("first")),
            new_agent_to_module_mapping_fn=to_late,
            add_to_eval_env_runners=False,
        )
        results = algo.train()
        steps = "num_module_steps_sampled"
        assert results["env_runners"][steps].keys() == {"first", "late"}
        assert results["evaluation"]["env_runners"][steps].keys() == {"first"}


class BrokenThere(ShortOrLong):
    """Raises at every step on some env runners."""

    def __init__(self, config: Any):
        super().__init__()
        self._is_broken = config.worker_index in config["on"]

    def step(self, action: int) -> Any:
        if self._is_broken:
            raise OSError("the simulator is gone")
        return super().step(action)


def broken_on(*runners: int, num_env_runners: int = 3) -> GPGConfig:
    config = small_config(BrokenThere, group_size=12)
    config.environment(env_config={"on": runners})
    return config.env_runners(num_env_runners=num_env_runners, episodes_per_share=2)


def test_env_runners_that_are_broken_do_not_end_the_run() -> None:
    """They are free again at once, and would be given the same share until it counts as failed."""
    with built(broken_on()) as algo:
        undisturbed = [fingerprint(sample_group(algo)) for _ in range(2)]
    with built(broken_on(1, 3).fault_tolerance(max_share_failures=3)) as algo:
        assert [fingerprint(sample_group(algo)) for _ in range(2)] == undisturbed
        assert num_redispatched(algo) > 0


def test_nobody_waits_for_another_env_runner_that_is_busy() -> None:
    """A share that has failed where another one is free goes there, else back at once."""
    share, ready = Share(1, 0, 0, 1), [1, 2]
    gathering = RemoteGathering.__new__(RemoteGathering)
    gathering._failures = _Failures()
    gathering._failures.add(1, share)
    assert not gathering._may_sample(1, share, ready)
    assert gathering._may_sample(2, share, ready)
    assert gathering._may_sample(1, share, [1])


def test_who_fails_again_and_again_rests_for_longer_and_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("rllib_gpg.sampling.gathering.time.monotonic", lambda: now)
    share, failures, rests = Share(1, 0, 0, 1), _Failures(), []
    failures.add(1, share)
    assert failures.resting() == failures.suspects() == set()
    for _ in range(2_000):
        failures.add(1, share)
        begun = now
        while failures.resting():
            now += 1.0
        rests.append(now - begun)
    assert rests[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0]
    assert set(rests[7:]) == {32.0}
    # One that was sampled, or another process in its place.
    failures.end(1)
    assert failures.suspects() == set()


def test_where_all_are_broken_the_run_ends_soon() -> None:
    with built(broken_on(1, 2, 3)) as algo:
        begun = time.monotonic()
        with pytest.raises(SamplingError, match=r"failed 5 times.*the simulator is gone"):
            algo.train()
        assert time.monotonic() - begun < 20.0


class Lesson(ShortOrLong):
    """Has a task that is set by hand, and raises once per process.

    Then it can't be made, as often as `config["failures"]` says.
    """

    has_raised = False
    num_made_since = 0

    def __init__(self, config: Any):
        super().__init__()
        if Lesson.has_raised:
            Lesson.num_made_since += 1
            if Lesson.num_made_since <= config["failures"]:
                raise OSError("the port is still in use")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.task = getattr(self, "task", 0.0)
        return super().reset(seed=seed)

    def step(self, action: int) -> Any:
        if self.t == 3 and not Lesson.has_raised:
            Lesson.has_raised = True
            raise OSError("the simulator is gone")
        observation, _, *rest = super().step(action)
        return observation, self.task, *rest


class Teacher(RLlibCallback):
    """Sets the task, also on env runners that have a new env."""

    def on_algorithm_init(self, *, algorithm: GPG, **kwargs: Any) -> None:
        self.set_task(algorithm.env_runner_group)

    def on_env_runners_recreated(
        self, *, env_runner_group: Any, env_runner_indices: list[int], **kwargs: Any
    ) -> None:
        self.set_task(env_runner_group, env_runner_indices)

    def set_task(self, env_runner_group: Any, indices: list[int] | None = None) -> None:
        def set_task(runner: Any) -> None:
            for env in runner.env.unwrapped.envs:
                env.unwrapped.task = 3.0

        env_runner_group.foreach_env_runner(
            set_task, remote_worker_ids=indices, local_env_runner=False
        )


@pytest.mark.parametrize("failures", [0, 1])
def test_callbacks_hear_of_an_env_that_was_made_anew(failures: int) -> None:
    """What was set on it by hand, as in a curriculum, is gone with the one before."""
    config = small_config(Lesson, group_size=12).callbacks(Teacher)
    config.environment(env_config={"failures": failures})
    config.env_runners(num_env_runners=2, episodes_per_share=2)
    with built(config) as algo:
        for _ in range(2):
            assert {float(r) for e in sample_group(algo) for r in e.get_rewards()} == {3.0}
        assert num_redispatched(algo) > 0


class RareItem(RLlibCallback):
    """Logs an item in the first episode of the first share alone."""

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        if not metrics_logger.peek("seen", default=0):
            metrics_logger.log_value("seen", 1, reduce="lifetime_sum")
            metrics_logger.log_value("what", 42.0, reduce="item")


def test_an_item_that_a_later_share_does_not_log_stays() -> None:
    config = small_config(ShortOrLong, group_size=4).callbacks(RareItem)
    with built(config.env_runners(episodes_per_share=1)) as algo:
        assert algo.train()["env_runners"]["what"] == 42.0


class Noisy(LinearPolicy):
    """Explores with a noise whose state is a buffer; another isn't part of the module's state."""

    def setup(self) -> None:
        super().setup()
        self.register_buffer("noise", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        outputs = super()._forward_exploration(batch, **kwargs)
        # Written into one, and another tensor in the place of the other.
        self.noise += 1.0
        self.count = self.count + 1.0
        outputs[Columns.ACTION_DIST_INPUTS][:, 0] += torch.sin(self.noise + self.count)
        return outputs


def test_what_exploring_changes_in_a_module_is_not_the_next_shares() -> None:
    """A share is a function of weights and seeds, whatever its env runner has sampled before."""
    config = small_config(ShortOrLong).rl_module(rl_module_spec=RLModuleSpec(Noisy))
    config.env_runners(episodes_per_share=2)
    with built(config) as algo:
        shares = cut_into_shares(algo.config, 1, 0)
        weights = algo._sync_weights()
        runner = algo.env_runner
        one, _, again = (
            fingerprint(runner.sample_share(share, weights).episodes)
            for share in (shares[0], shares[1], shares[0])
        )
        assert again == one
        # Nor the next group's.
        later = dataclasses.replace(weights, version=weights.version + 1)
        assert fingerprint(runner.sample_share(shares[0], later).episodes) == one


def test_under_ppo_too_no_other_episode_begins_where_an_env_has_failed() -> None:
    config = PPOConfig().environment(ShortOrLong)
    config.env_runners(
        env_runner_cls=GroupEnvRunner, num_env_runners=0, batch_mode="complete_episodes"
    )
    config.fault_tolerance(restart_failed_sub_environments=True)
    with pytest.raises(ValueError, match="GroupEnvRunner finishes those that were begun"):
        config.build_algo()
