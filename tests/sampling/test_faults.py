"""Nothing lost, nothing twice, nothing biased: groups are the same whatever happens to runners."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from scipy.stats import binomtest

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.sampling import SamplingError
from tests.envs import Broken, HangsOnce, ShortOrLong, Slow, Unreliable
from tests.helpers import built, fingerprint, sample_group, small_config, start_ray

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


def restored(algo: GPG) -> list[int]:
    algo.restore_env_runners(algo.env_runner_group)
    return algo.env_runner_group.healthy_env_runner_ids()


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
        algo._num_groups = 0
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


@pytest.mark.parametrize("num_env_runners", [0, 1])
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
    assert "3 times" in message
    assert "Seeds(episodes=(" in message
    again = GPG.from_checkpoint(assert_checkpoint(message))
    try:
        after = again.get_module().get_state()
        assert all((before[name] == after[name]).all() for name in before)
    finally:
        again.stop()


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
