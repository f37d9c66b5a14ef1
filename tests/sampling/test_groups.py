"""Exactly N whole episodes per group, unbiased, on any number of env runners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.tune import register_env
from scipy.stats import binomtest

from rllib_gpg import GPG
from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.sampling.group import cut_into_shares
from tests.envs import NativeVector, ShortOrLong
from tests.helpers import built, fingerprint, sample_group, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


def share_of_long(lengths: list[int]) -> tuple[int, int]:
    assert set(lengths) <= {ShortOrLong.SHORT, ShortOrLong.LONG}
    return sum(length == ShortOrLong.LONG for length in lengths), len(lengths)


def is_one_half(num_long: int, num_episodes: int) -> bool:
    """Whether the share of long episodes is one half within a 99.9% binomial interval."""
    return binomtest(num_long, num_episodes, 0.5).pvalue > 1e-3


@pytest.fixture(scope="module", params=[0, 2], ids=["local", "two-runners"])
def algo(request: pytest.FixtureRequest, ray_session: None) -> Iterator[GPG]:
    with built(small_config(ShortOrLong).env_runners(num_env_runners=request.param)) as algo:
        yield algo


def first_groups(algo: GPG, number: int, *, group_size: int) -> list[list[Any]]:
    """The first groups of a run, whatever was sampled before, in a size of their own."""
    algo.config = algo.config.copy(copy_frozen=False).training(group_size=group_size)
    algo._groups.number = 0
    return [sample_group(algo) for _ in range(number)]


def test_long_episodes_are_half_of_all_episodes(algo: GPG) -> None:
    groups = first_groups(algo, 16, group_size=24)
    assert [len(group) for group in groups] == [24] * 16
    assert is_one_half(*share_of_long([len(episode) for group in groups for episode in group]))


def test_the_stock_env_runner_prefers_short_episodes() -> None:
    """Why `GroupEnvRunner` exists; the same env, the same numbers, the same test as above."""
    config = small_config(ShortOrLong).env_runners(num_envs_per_env_runner=8)
    stock = SingleAgentEnvRunner(config=config.debugging(seed=None), worker_index=0)
    ours = GroupEnvRunner(config=config.debugging(seed=1), worker_index=0)
    lengths = {
        runner: [len(e) for _ in range(48) for e in runner.sample(num_episodes=4)]
        for runner in (stock, ours)
    }
    num_long, num_episodes = share_of_long(lengths[stock])
    # The first 4 to finish on 8 envs are short unless 5 or more of the 8 begin long and go on so.
    assert num_long / num_episodes < 0.2
    assert not is_one_half(num_long, num_episodes)
    assert is_one_half(*share_of_long(lengths[ours]))


@pytest.mark.parametrize("group_size", [1, 3, 4, 5, 13])
def test_every_group_has_exactly_n_whole_episodes(algo: GPG, group_size: int) -> None:
    for group in first_groups(algo, 2, group_size=group_size):
        assert len(group) == group_size
        assert all(episode.is_done and episode.t_started == 0 for episode in group)
        assert len({episode.id_ for episode in group}) == group_size


@pytest.mark.parametrize("num_episodes", [0, 1, 4, 7, 13])
def test_sample_returns_exactly_the_episodes_asked_for(num_episodes: int) -> None:
    runner = GroupEnvRunner(config=small_config(ShortOrLong), worker_index=0)
    episodes = runner.sample(num_episodes=num_episodes)
    assert len(episodes) == num_episodes
    metrics = runner.get_metrics()
    assert metrics["num_episodes"].peek() == num_episodes
    assert metrics["num_env_steps_sampled"].peek() == sum(map(len, episodes))


def test_sampling_by_timesteps_still_works_between_groups() -> None:
    runner = GroupEnvRunner(config=small_config(ShortOrLong), worker_index=0)
    for _ in range(2):
        assert len(runner.sample(num_episodes=3)) == 3
        fragments = runner.sample(num_timesteps=40)
        assert 40 <= sum(map(len, fragments)) < 44


def test_a_native_vector_env_gives_unbiased_whole_episodes() -> None:
    register_env("native", lambda context: NativeVector(context["num_envs"]))
    config = small_config("native", group_size=24).env_runners(
        num_envs_per_env_runner=8,
        gym_env_vectorize_mode="vector_entry_point",
        episodes_per_share=24,
    )
    lengths: list[int] = []
    with built(config) as algo:
        for _ in range(16):
            group = sample_group(algo)
            lengths += map(len, group)
            for episode in group:
                # Every row belongs to one episode: its name is the same throughout, t goes up.
                observations = episode.get_observations()
                assert len(set(observations[:, 0])) == 1
                assert (observations[:, 1] == np.arange(len(episode) + 1)).all()
                infos = episode.get_infos()
                assert [info["t"] for info in infos[1:]] == list(range(1, len(episode) + 1))
    assert len(lengths) == 16 * 24
    assert is_one_half(*share_of_long(lengths))


def start_states(group: list[Any]) -> list[float]:
    return [float(episode.get_observations(0)[0]) for episode in group]


def test_a_seeded_run_never_starts_two_episodes_alike(algo: GPG) -> None:
    groups = first_groups(algo, 4, group_size=13)
    starts = [start for group in groups for start in start_states(group)]
    assert len(starts) == 4 * 13
    assert max(Counter(starts).values()) == 1


def test_an_unseeded_run_differs_from_the_next() -> None:
    starts = []
    for _ in range(2):
        with built(small_config(ShortOrLong).debugging(seed=None)) as algo:
            starts += start_states(sample_group(algo))
    assert max(Counter(starts).values()) == 1


def test_two_runs_with_one_seed_sample_the_same_episodes() -> None:
    groups = []
    for _ in range(2):
        with built(small_config(ShortOrLong)) as algo:
            groups.append([fingerprint(sample_group(algo)) for _ in range(3)])
    assert groups[0] == groups[1]


def test_unseeded_calls_draw_actions_of_their_own() -> None:
    """Under PPO for instance."""
    runner = GroupEnvRunner(config=small_config(ShortOrLong).debugging(seed=None), worker_index=0)
    torch.manual_seed(0)
    draws = []
    for _ in range(2):
        episodes = runner.sample(num_episodes=8)
        draws.append([action for episode in episodes for action in episode.get_actions()[:5]])
    assert draws[0] != draws[1]


@pytest.mark.parametrize(
    "numbers", [(0, 2), pytest.param((0, 1, 3), marks=pytest.mark.slow)], ids=str
)
def test_training_is_the_same_on_any_number_of_env_runners(numbers: tuple[int, ...]) -> None:
    """Also after updates: weights, groups and their order are the same."""
    groups = []
    for num_env_runners in numbers:
        config = small_config(ShortOrLong, group_size=10).env_runners(
            num_env_runners=num_env_runners, episodes_per_share=3
        )
        with built(config) as algo:
            algo.train()
            groups.append(fingerprint(sample_group(algo)))
    assert len(groups[0]) == 10
    assert all(group == groups[0] for group in groups)


def test_plain_sample_calls_of_two_runners_and_of_evaluation_are_seeded_apart() -> None:
    config = small_config(ShortOrLong)
    evaluation = config.copy()
    evaluation.in_evaluation = True
    starts: list[float] = []
    for runner_config, index in ((config, 1), (config, 2), (evaluation, 1)):
        runner = GroupEnvRunner(config=runner_config, worker_index=index)
        for _ in range(2):
            starts += start_states(runner.sample(num_episodes=6))
    assert max(Counter(starts).values()) == 1


@pytest.mark.parametrize(
    ("group_size", "runners", "envs", "per_share", "expected"),
    [
        (32, 2, 8, None, [8, 8, 8, 8]),  # as many as there are envs
        (32, 0, 8, None, [32]),  # nobody to share with
        (32, 1, 8, None, [32]),
        (10, 4, 8, None, [3, 3, 3, 1]),  # fewer, so that every env runner has work
        (3, 0, 8, None, [3]),
        (7, 2, 1, None, [1] * 7),
        (7, 2, 1, 5, [5, 2]),
    ],
)
def test_shares_add_up_to_the_group(
    group_size: int, runners: int, envs: int, per_share: int | None, expected: list[int]
) -> None:
    config = SimpleNamespace(
        group_size=group_size,
        num_env_runners=runners,
        num_envs_per_env_runner=envs,
        episodes_per_share=per_share,
        episodes_per_start=1,
        in_evaluation=False,
        batch_mode="complete_episodes",
    )
    shares = cut_into_shares(config, 0, 0)
    assert [share.num_episodes for share in shares] == expected
    assert [share.index for share in shares] == list(range(len(expected)))


def test_no_two_shares_are_seeded_alike() -> None:
    """Of 3 runs, 20 groups and 20 evaluations each, in shares of 4 episodes."""
    config = small_config(ShortOrLong, group_size=128).env_runners(num_env_runners=2)
    evaluation = config.copy()
    evaluation.in_evaluation = True
    seeds = [
        share.seeds()
        for run_seed in range(3)
        for number in range(20)
        for share in (
            *cut_into_shares(config, run_seed, number),
            *cut_into_shares(evaluation, run_seed, number, 16),
        )
    ]
    assert len(seeds) == 3 * 20 * (32 + 4)
    assert len({s.actions for s in seeds}) == len(seeds)
    episodes = [seed for s in seeds for seed in s.episodes]
    assert len(set(episodes)) == len(episodes) == 3 * 20 * (128 + 16)
