"""A group that takes long says how far it has come."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from rllib_gpg.sampling import progress
from tests.envs import ShortOrLong, Slow, Unreliable
from tests.helpers import built, sample_group, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


@contextmanager
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[tuple[int, str, float]]]:
    """What is said meanwhile about episodes that are in: how many, of what, after which time."""
    found: list[tuple[int, str, float]] = []
    logger = logging.getLogger("ray.rllib")
    logger.addHandler(caplog.handler)
    try:
        yield found
    finally:
        logger.removeHandler(caplog.handler)
    for record in caplog.records:
        if match := re.match(r"(\d+) of (.*) are in after (\d+) s", record.getMessage()):
            # By default RLlib shows warnings, and nothing less.
            assert record.levelno == logging.WARNING
            found.append((int(match[1]), match[2], record.created))


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_group_that_takes_long_says_how_many_episodes_are_in(
    num_env_runners: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Remote env runners count by shares, the local one episode by episode."""
    monkeypatch.setattr(progress, "_SECONDS", 0.1)
    config = small_config(Slow, group_size=12).env_runners(
        num_env_runners=num_env_runners, num_envs_per_env_runner=2, episodes_per_share=4
    )
    with built(config) as algo, said(caplog) as lines:
        sample_group(algo)
    assert {whole for _, whole, _ in lines} == {"12 episodes of the group"}
    numbers = [number for number, _, _ in lines]
    assert numbers == sorted(numbers) and 0 <= numbers[0] < numbers[-1] <= 12
    assert all(number % 4 == 0 for number in numbers) == (num_env_runners > 0)
    times = [time for _, _, time in lines]
    assert len(times) >= 3 and all(b - a > 0.09 for a, b in pairwise(times))


def test_a_group_of_rollouts_says_how_many_of_these_are_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not how many episodes have ended meanwhile, which may be more."""
    monkeypatch.setattr(progress, "_SECONDS", 0.1)
    config = small_config(Slow, group_size=4).env_runners(
        num_envs_per_env_runner=4,
        episodes_per_share=2,
        batch_mode="truncate_episodes",
        rollout_fragment_length=200,
    )
    with built(config) as algo, said(caplog) as lines:
        sample_group(algo)
    assert {whole for _, whole, _ in lines} == {"4 rollouts of the group"}
    assert {number for number, _, _ in lines} == {0, 2}


def test_a_failed_share_is_not_counted_as_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    config = small_config(Unreliable, group_size=8).environment(env_config={"probability": 1 / 400})
    config.env_runners(episodes_per_share=2).fault_tolerance(max_share_failures=1000)
    with built(config) as algo:
        with said(caplog) as lines:
            for _ in range(3):
                sample_group(algo)
        assert algo.metrics.peek(("env_runners", "num_episodes_redispatched_lifetime")) > 0
    numbers = [number for number, _, _ in lines]
    assert max(numbers) == 8


def test_a_group_that_is_fast_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with built(small_config(ShortOrLong)) as algo, said(caplog) as lines:
        sample_group(algo)
    assert lines == []


def test_an_evaluation_that_takes_long_says_so_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    config = small_config(ShortOrLong).evaluation(evaluation_interval=1, evaluation_duration=3)
    with built(config) as algo, said(caplog) as lines:
        algo.evaluate()
    assert lines[-1][:2] == (3, "3 episodes of the evaluation")
