"""Second copies of the last shares: the same groups, sooner, whatever happens to either copy."""

from __future__ import annotations

import functools
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from benchmarks.stand_ins import RunnerGroup
from rllib_gpg import GPG, GPGConfig
from rllib_gpg.sampling import SamplingError
from rllib_gpg.sampling.group import Group, cut_into_shares, gather
from rllib_gpg.sampling.messages import Share, ShareFailure, ShareResult, Weights
from rllib_gpg.sampling.requests import Request, Requests
from tests.envs import ShortOrLong, Slow
from tests.helpers import built, fingerprint, sample_group, small_config
from tests.sampling.test_faults import Killer, restored, wait_until


def slow_first(*, env_runner: Any, env: Any, **kwargs: Any) -> None:
    """Env runner 1 is slower than the others by far."""
    if env_runner.worker_index == 1:
        for sub_env in env.unwrapped.envs:
            sub_env.unwrapped.step = functools.partial(slowly, sub_env.unwrapped.step)


def slowly(step: Any, action: Any) -> Any:
    time.sleep(0.05)
    return step(action)


def config(env: Any = Slow, *, duplicate: bool = True) -> GPGConfig:
    return small_config(env, group_size=8).env_runners(
        num_env_runners=3,
        num_envs_per_env_runner=2,
        episodes_per_share=2,
        duplicate_last_shares=duplicate,
    )


def duplicated(algo: GPG) -> int:
    return int(algo.metrics.peek(("env_runners", "num_shares_duplicated_lifetime")))


@pytest.mark.usefixtures("ray_session")
def test_groups_are_the_same_with_a_slow_env_runner() -> None:
    groups = {}
    for duplicate in (False, True):
        settings = config(ShortOrLong, duplicate=duplicate)
        settings.callbacks(on_environment_created=slow_first)
        if not duplicate:
            # Alike, and without remote env runners.
            settings.callbacks(on_environment_created=None).env_runners(num_env_runners=0)
        with built(settings) as algo:
            groups[duplicate] = [fingerprint(sample_group(algo)) for _ in range(3)]
            algo.train()
            groups[duplicate].append(fingerprint(sample_group(algo)))
            results = algo.metrics.peek("env_runners")
            assert ("num_shares_duplicated_lifetime" in results) == duplicate
            assert results["num_episodes_lifetime"] == 5 * 8
            assert results["num_episodes_redispatched_lifetime"] == 0
            if duplicate:
                assert duplicated(algo) > 0
    assert groups[True] == groups[False]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_killed_env_runners_change_nothing() -> None:
    groups = {}
    for duplicate in (False, True):
        with built(config(duplicate=duplicate)) as algo:
            groups[duplicate] = []
            for _ in range(3):
                killer = Killer(algo, times=2 * duplicate)
                killer.start()
                groups[duplicate].append(fingerprint(sample_group(algo)))
                killer.join()
                wait_until(lambda: len(restored(algo)) == 3)
            if duplicate:
                assert duplicated(algo) > 0
    assert groups[True] == groups[False]


# What becomes of either copy, by env runners that do what they are told.


class Scripted:
    """In the place of an actor: answers each share as it is told to, after so many seconds."""

    def __init__(self, *script: tuple[float, str]):
        self.script = [*script]
        self.asked: list[tuple[float, Share]] = []
        self.apply = SimpleNamespace(remote=self._remote)
        # It is the episode that it samples, too.
        self.id_ = ""

    def _remote(self, function: functools.partial[Any]) -> Any:
        share = function.keywords["share"]
        self.asked.append((time.monotonic(), share))
        answer: Future[Any] = Future()
        seconds, what = self.script.pop(0) if self.script else (0.05, "samples")
        outcome = {
            "samples": lambda: answer.set_result(ShareResult(share, [self], {}, {}, {})),
            "fails": lambda: answer.set_result(
                ShareFailure(share, "it broke", "", has_new_env=False)
            ),
            "dies": lambda: answer.set_exception(ActorDiedError()),
        }
        timer = threading.Timer(seconds, outcome[what])
        timer.daemon = True
        timer.start()
        return SimpleNamespace(future=lambda: answer)


def gathered(runners: list[Scripted] | RunnerGroup, num_shares: int, **settings: Any) -> Group:
    if isinstance(runners, list):
        runners = RunnerGroup(dict(enumerate(runners, 1)))
    config = small_config(ShortOrLong, group_size=num_shares).env_runners(
        episodes_per_share=1, duplicate_last_shares=True, **settings
    )
    shares = cut_into_shares(config, 1, 0)
    return gather(runners, shares, Weights(1, None), config=config, restore=lambda: None)


def counted(group: Group) -> tuple[int, int]:
    """How many episodes were sent out again, and of how many shares there was a second copy."""
    names = ("num_episodes_redispatched", "num_shares_duplicated")
    return tuple(int(group.metrics[-1][name].peek()) for name in names)


@pytest.mark.parametrize(
    ("first", "second", "expected", "winner"),
    [
        # The share is sent to the first one, the copy to the second when it has nothing left.
        ((60.0, "samples"), (0.1, "samples"), (0, 1), 1),
        ((1.0, "samples"), (60.0, "samples"), (0, 1), 0),
        # A fault of either is none of the share, as long as the other may still come.
        ((1.5, "samples"), (0.1, "fails"), (0, 1), 0),
        ((1.5, "samples"), (0.1, "dies"), (0, 1), 0),
        ((1.0, "fails"), (1.5, "samples"), (0, 1), 1),
        ((1.0, "dies"), (1.5, "samples"), (0, 1), 1),
        # If both fail, it is one failure; then it is sampled again, in one copy or two.
        ((1.0, "dies"), (1.5, "fails"), (1, 2), None),
    ],
)
def test_whichever_copy_comes_first_is_taken(
    first: tuple[float, str], second: tuple[float, str], expected: Any, winner: int | None
) -> None:
    # The second one samples the other share before, and then the copy.
    runners = [Scripted(first), Scripted((0.1, "samples"), second)]
    group = gathered(runners, 2)
    assert [share.index for _, share in runners[1].asked][:2] == [1, 0]
    assert len(group.episodes) == 2
    redispatched, num_duplicated = counted(group)
    assert redispatched == expected[0]
    assert 1 <= num_duplicated <= expected[1]
    if winner is not None:
        assert group.episodes[0] is runners[winner]


def test_a_share_of_which_all_copies_fail_ends_the_run() -> None:
    """Though one copy is always out when the other fails."""
    runners = [Scripted(*[(0.05, "fails")] * 20), Scripted(*[(0.06, "fails")] * 20)]
    with pytest.raises(SamplingError, match="failed 5 times"):
        gathered(runners, 1)
    assert sum(len(runner.asked) for runner in runners) <= 10


def test_there_are_two_copies_at_most() -> None:
    runners = [Scripted((1.0, "samples")), Scripted((1.0, "samples"))]
    runners += [Scripted((1.0, "samples")) for _ in range(4)]
    gathered(runners, 2)
    asked = [share.index for runner in runners for _, share in runner.asked]
    assert sorted(asked) == [0, 0, 1, 1]


def test_who_samples_a_copy_that_nobody_needs_is_not_waited_for() -> None:
    runners = [Scripted((5.0, "samples")), Scripted(), Scripted()]
    group = RunnerGroup(dict(enumerate(runners, 1)))
    start = time.monotonic()
    gathered(group, 2)
    # It is busy: the next group is sampled by the others, and it comes in when it is free.
    second = gathered(group, 4)
    assert time.monotonic() - start < 4.0
    assert runners[0] not in list(second.episodes)
    assert len(runners[0].asked) == 1
    time.sleep(max(0.0, start + 5.5 - time.monotonic()))
    assert runners[0] in list(gathered(group, 6).episodes)


def test_an_answer_that_comes_as_somebody_begins_to_wait_is_seen() -> None:
    """Ray's thread has looked where the answer goes, and nobody waited for it yet."""
    group = RunnerGroup({1: Scripted()})
    request = Request(1, None, None)
    still_owed = {1: request}

    class Interrupted(Request):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "answers" and value is None:
                begun.append(Requests(group, still_owed))
            return value

    begun: list[Requests] = []
    request.__class__ = Interrupted
    request.take(Future())
    (requests,) = begun
    assert not requests.open or list(requests.answered(time.monotonic() + 0.1))


def test_one_that_hangs_with_a_copy_that_nobody_needs_is_killed(monkeypatch: Any) -> None:
    killed = []
    monkeypatch.setattr("ray.kill", lambda actor, no_restart: killed.append(actor))
    runners = [Scripted((60.0, "samples")), Scripted(*[(0.5, "samples")] * 20)]
    group = RunnerGroup(dict(enumerate(runners, 1)))
    for _ in range(2):
        assert counted(gathered(group, 3, sample_timeout_s=2.0))[0] == 0
    assert killed == runners[:1]
    assert not group.is_actor_healthy(1)


def test_without_the_option_there_are_none() -> None:
    runners = [Scripted((0.5, "samples")), Scripted()]
    config = small_config(ShortOrLong, group_size=2).env_runners(episodes_per_share=1)
    shares = cut_into_shares(config, 1, 0)
    group = RunnerGroup(dict(enumerate(runners, 1)))
    result = gather(group, shares, Weights(1, None), config=config, restore=lambda: None)
    assert "num_shares_duplicated" not in result.metrics[-1]
    assert [len(runner.asked) for runner in runners] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"duplicate_last_shares": 2}, "True or False"),
        (
            {
                "duplicate_last_shares": True,
                "batch_mode": "truncate_episodes",
                "rollout_fragment_length": 10,
                "num_envs_per_env_runner": 8,
            },
            "needs whole episodes",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        small_config(ShortOrLong).env_runners(**settings).validate()
