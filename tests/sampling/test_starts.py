"""Episodes that share their starts: who begins alike, what is compared, and what is replaced."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.tune import register_env

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.sampling.group import cut_into_shares
from rllib_gpg.sampling.messages import Share
from rllib_gpg.sampling.seeds import Seeds
from rllib_gpg.sampling.starts import StartsOfGroup
from tests.envs import (
    MultiShortOrLong,
    NativeVector,
    ShortOrLong,
    Slow,
    StartDecides,
    Unreliable,
    ZeroSum,
)
from tests.helpers import (
    built,
    fingerprint,
    module_results,
    sample_group,
    small_config,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("ray_session")

PER_START = 4


def shared(env: Any = StartDecides, **training: Any) -> GPGConfig:
    """4 starts of 4 episodes, in shares that neither a start nor the group fills."""
    settings = {"group_size": 16, "episodes_per_start": PER_START, **training}
    return small_config(env, **settings).env_runners(episodes_per_share=3)


def by_start(episodes: list[Any], per_start: int = PER_START) -> list[list[Any]]:
    return [episodes[at : at + per_start] for at in range(0, len(episodes), per_start)]


def first_observations(episodes: list[Any]) -> list[bytes]:
    return [np.asarray(episode.get_observations(0)).tobytes() for episode in episodes]


def num_equal(group: list[Any]) -> int:
    """Of how many starts all episodes have one return."""
    return sum(len({float(e.get_return()) for e in start}) == 1 for start in by_start(group))


def module_map(agent_id: str, episode: Any, **kwargs: Any) -> str:
    return str(agent_id)


# Who begins alike.


@pytest.mark.parametrize("per_share", [None, 1, 3, 16], ids=str)
def test_episodes_of_a_start_begin_alike_and_act_differently(per_share: int | None) -> None:
    with built(shared().env_runners(episodes_per_share=per_share)) as algo:
        groups = [sample_group(algo) for _ in range(3)]
    for group in groups:
        assert len(group) == 16
        for start in by_start(group):
            assert len(set(first_observations(start))) == 1
            assert len({np.asarray(e.get_actions()).tobytes() for e in start}) == PER_START
    # And no other start does, in this group or in another.
    assert len(set(first_observations([e for group in groups for e in group]))) == 3 * 4


def test_a_start_is_alike_in_whatever_shares_its_episodes_are() -> None:
    starts = []
    for per_share in (3, 5):
        with built(shared().env_runners(episodes_per_share=per_share)) as algo:
            starts.append(first_observations(sample_group(algo)))
    assert starts[0] == starts[1]


def test_all_agents_of_an_episode_have_its_start() -> None:
    config = shared(MultiShortOrLong).environment(env_config={"num_agents": 2})
    config.multi_agent(policies={"p"}, policy_mapping_fn=lambda *args, **kwargs: "p")
    with built(config) as algo:
        group = sample_group(algo)
        begins = [
            tuple(first_observations([*episode.agent_episodes.values()])) for episode in group
        ]
        assert all(len(begin) == 2 for begin in begins)
        assert [len(set(start)) for start in by_start(begins)] == [1] * 4
        assert len(set(begins)) == 4
        result = algo.train()["learners"]["p"]
    # All get 1 per step, as many as the start says.
    assert result["group_num_episodes"] == 2 * 16
    assert result["group_equal_starts"] == 4


def test_an_unseeded_run_shares_starts_of_its_own() -> None:
    starts = []
    for _ in range(2):
        with built(shared().debugging(seed=None)) as algo:
            starts += first_observations(sample_group(algo))
    assert [len(set(start)) for start in by_start(starts)] == [1] * 8
    assert len(set(starts)) == 8


def test_without_shared_starts_seeds_are_drawn_as_ever() -> None:
    config = small_config(ShortOrLong, group_size=10).env_runners(episodes_per_share=4)
    assert config.episodes_per_start == 1
    for share in cut_into_shares(config, 1, 2):
        assert share.seeds() == Seeds.draw(share.num_episodes, 1, 0, 2, share.index)


def test_an_evaluation_has_a_start_for_every_episode() -> None:
    evaluation = shared().copy()
    evaluation.in_evaluation = True
    seeds = [seed for s in cut_into_shares(evaluation, 1, 0, 12) for seed in s.seeds().episodes]
    assert len(set(seeds)) == 12


# Exact, whatever happens.


@pytest.mark.parametrize(
    "numbers", [(0, 2), pytest.param((0, 1, 3), marks=pytest.mark.slow)], ids=str
)
def test_training_is_the_same_on_any_number_of_env_runners(numbers: tuple[int, ...]) -> None:
    found = []
    for number in numbers:
        config = shared(max_extra_starts=3).env_runners(num_env_runners=number)
        with built(config) as algo:
            results = algo.train()["env_runners"]
            # There is something that could differ.
            assert results["num_extra_starts"] > 0
            found.append((fingerprint(sample_group(algo)), results["num_extra_starts"]))
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("number", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_env_that_raises_now_and_then_changes_nothing(number: int) -> None:
    groups, redispatched = [], []
    for probability in (0.0, 1 / 200):
        config = shared(Unreliable, max_extra_starts=2)
        config.environment(env_config={"probability": probability})
        config.env_runners(num_env_runners=number, episodes_per_share=1)
        with built(config.fault_tolerance(max_share_failures=1000)) as algo:
            groups.append(fingerprint(sample_group(algo)))
            key = ("env_runners", "num_episodes_redispatched_lifetime")
            redispatched.append(algo.metrics.peek(key))
            assert algo.metrics.peek(("env_runners", "num_episodes")) == 16 + 2 * PER_START
    assert groups[0] == groups[1]
    assert redispatched[0] == 0 < redispatched[1]


@pytest.mark.slow
def test_a_killed_env_runner_changes_nothing() -> None:
    config = shared(Slow, max_extra_starts=2).env_runners(num_env_runners=2)
    with built(config) as algo:
        undisturbed = fingerprint(sample_group(algo))
    with built(config) as algo:
        (pid, _) = algo.env_runner_group.foreach_env_runner(
            lambda runner: os.getpid(), local_env_runner=False
        )
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        assert fingerprint(sample_group(algo)) == undisturbed
        assert algo.metrics.peek(("env_runners", "num_episodes_redispatched")) > 0


def test_a_checkpoint_goes_on_with_the_same_starts(tmp_path: Any) -> None:
    with built(shared(max_extra_starts=3)) as algo:
        algo.train()
        path = algo.save_to_path(tmp_path)
        group = fingerprint(sample_group(algo))
    restored = GPG.from_checkpoint(path)
    try:
        assert fingerprint(sample_group(restored)) == group
    finally:
        restored.stop()


# What is compared.


def advantages_of(algo: GPG, episodes: list[Any]) -> np.ndarray:
    """The advantages of the group, with the numbers of the steps' starts as the last column."""
    seen = {}
    update = algo.learner_group.update
    algo.learner_group.update = lambda **kwargs: seen.update(kwargs) or []
    try:
        algo._update(algo._estimate_advantages(episodes))
    finally:
        algo.learner_group.update = update
    batch = seen["batch"]["default_policy"]
    return np.column_stack([batch[Columns.OBS], batch[Columns.ADVANTAGES]])


def test_a_step_is_compared_with_those_of_its_start() -> None:
    with built(shared(normalize_advantages=False, gamma=1.0)) as algo:
        group = sample_group(algo)
        steps = advantages_of(algo, group)
    expected = []
    for start in by_start(group):
        mean = np.mean([e.get_return() for e in start])  # the reward is at the end: R = return
        expected += [
            (*observation, e.get_return() - mean)
            for e in start
            for observation in e.get_observations(slice(0, 10))
        ]
    np.testing.assert_allclose(sorted(map(tuple, steps)), sorted(map(tuple, expected)), atol=1e-5)


def test_shared_starts_lower_the_variance_of_advantages() -> None:
    """Returns vary by 100 with the start, and by 10/4 with the 10 actions."""
    variance = {}
    for per_start in (1, 8):
        config = shared(
            group_size=64,
            episodes_per_start=per_start,
            normalize_advantages=False,
            leave_one_out=True,
            gamma=1.0,
        )
        with built(config.environment(env_config={"dead": 0.0})) as algo:
            groups = [advantages_of(algo, sample_group(algo)) for _ in range(4)]
        variance[per_start] = np.concatenate(groups)[:, -1].var()
    # With the mean of 7 others: 2.5 (1 + 1/7) = 2.9; with that of 63 of all starts: 104.
    assert 2.0 < variance[8] < 4.0
    assert 60.0 < variance[1] < 160.0


def test_the_number_of_equal_starts_is_logged_where_starts_are_shared() -> None:
    with built(shared()) as algo:
        group = sample_group(algo)
        algo._groups.number = 0  # the same group once more
        results = module_results(algo.train())
        assert results["group_equal_starts"] == num_equal(group)
        assert 0 < num_equal(group) < 4
    with built(small_config(StartDecides)) as algo:
        assert "group_equal_starts" not in module_results(algo.train())


# What is replaced.


def sampled_by(config: GPGConfig) -> tuple[list[Any], dict[str, Any]]:
    with built(config) as algo:
        group = sample_group(algo)
        return group, algo.metrics.peek("env_runners")


def test_starts_without_a_signal_are_replaced_by_starts_with_one() -> None:
    plain, _ = sampled_by(shared())
    group, results = sampled_by(shared(max_extra_starts=64))
    assert num_equal(plain) > 0
    assert num_equal(group) == 0
    for before, after in zip(by_start(plain), by_start(group), strict=True):
        assert (fingerprint(before) == fingerprint(after)) == (num_equal(before) == 0)
    assert len(set(first_observations(group))) == 4
    assert num_equal(plain) <= results["num_extra_starts"] < 64


@pytest.mark.parametrize("most", [1, 2, 7])
def test_so_many_are_drawn_at_most_and_those_that_are_left_stay(most: int) -> None:
    # Returns are the lengths, which the start decides: none has a signal.
    group, results = sampled_by(shared(ShortOrLong, max_extra_starts=most))
    assert results["num_extra_starts"] == most
    assert len(group) == 16
    assert [len(set(start)) for start in by_start(first_observations(group))] == [1] * 4
    plain, _ = sampled_by(shared(ShortOrLong))
    replaced = [
        fingerprint(before) != fingerprint(after)
        for before, after in zip(by_start(plain), by_start(group), strict=True)
    ]
    # In the order of their places, round by round.
    assert replaced == [place < most for place in range(4)]


def test_steps_and_episodes_that_were_dropped_count() -> None:
    config = shared(max_extra_starts=3).environment(env_config={"dead": 1.0})
    with built(config) as algo:
        for iteration in (1, 2):
            results = algo.train()
            runners, module = results["env_runners"], module_results(results)
            # 4 starts and 3 more, in rounds of 3.
            assert runners["num_extra_starts"] == 3
            assert runners["num_episodes"] == 7 * PER_START
            assert runners["num_env_steps_sampled"] == 7 * PER_START * 10
            assert runners["num_env_steps_sampled_lifetime"] == iteration * 7 * PER_START * 10
            assert module["group_num_episodes"] == 16
            assert module["group_num_env_steps"] == 160


def test_means_are_over_the_episodes_of_all_rounds() -> None:
    returns = []
    config = shared(max_extra_starts=3).environment(env_config={"dead": 1.0})
    with built(config) as algo:
        sample = algo.env_runner.sample

        def remember(**kwargs: Any) -> list[Any]:
            episodes = sample(**kwargs)
            returns.extend(float(e.get_return()) for e in episodes)
            return episodes

        algo.env_runner.sample = remember
        results = algo.train()["env_runners"]
    assert len(returns) == 7 * PER_START
    assert results["episode_return_mean"] == pytest.approx(np.mean(returns), rel=1e-6)
    assert results["episode_return_max"] == pytest.approx(max(returns), rel=1e-6)


def test_none_are_drawn_and_nothing_is_logged_of_them_by_default() -> None:
    _, results = sampled_by(shared(ShortOrLong))
    assert "num_extra_starts" not in results
    assert results["num_episodes"] == 16


def test_the_return_of_an_episode_is_the_sum_over_its_agents() -> None:
    config = shared(ZeroSum, max_extra_starts=3)
    config.multi_agent(policies={"a", "b"}, policy_mapping_fn=module_map)
    with built(config) as algo:
        results = algo.train()
    assert results["env_runners"]["num_extra_starts"] == 3
    assert results["learners"]["a"]["group_equal_starts"] < 4
    config = shared(ZeroSum)
    config.multi_agent(policies={"p"}, policy_mapping_fn=lambda *args, **kwargs: "p")
    with built(config) as algo:
        assert algo.train()["learners"]["p"]["group_equal_starts"] == 4


@pytest.mark.parametrize("number", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_filters_have_seen_what_was_dropped(number: int) -> None:
    config = shared(max_extra_starts=3).environment(env_config={"dead": 1.0})
    config.env_runners(
        num_env_runners=number, env_to_module_connector=lambda *args: MeanStdFilter()
    )
    with built(config) as algo:
        algo.train()
        states = algo._policy.connectors.get_states()
    (stat,) = states["env_to_module_connector/MeanStdFilter"][None]["running_stats"]
    assert stat["num_pushes"] == 7 * PER_START * 11


def rounds(returns_of: dict[int, list[float]], num_starts: int, most: int) -> list[list[int]]:
    """Which starts are sampled round by round, and which are in the group in the end."""
    per_start = len(returns_of[0])
    config = SimpleNamespace(
        group_size=num_starts * per_start,
        episodes_per_start=per_start,
        max_extra_starts=most,
        episodes_per_share=per_start,
        num_env_runners=0,
        in_evaluation=False,
        batch_mode="complete_episodes",
    )
    starts, results, sampled = StartsOfGroup(config), [], []
    shares: list[Share] = cut_into_shares(config, 0, 0)
    while shares:
        sampled.append([share.first // per_start for share in shares])
        for share in shares:
            summaries = {("episode_return_mean",): returns_of[share.first // per_start]}
            results.append(SimpleNamespace(share=share, summaries=summaries))
        shares = starts.further(results)
    # None draws the actions of another.
    assert [result.share.index for result in results] == list(range(len(results)))
    episodes = [start for of_round in sampled for start in of_round for _ in range(per_start)]
    return [*sampled, starts.in_group(episodes)[::per_start]]


def test_rounds_by_hand() -> None:
    equal, varied = [1.0, 1.0], [0.0, 1.0]
    # Starts 1 and 2 are equal; 3 and 4 replace them; 4 is equal too, and 5 replaces it.
    starts = dict(enumerate([varied, equal, equal, varied, equal, varied]))
    assert rounds(starts, 3, 10) == [[0, 1, 2], [3, 4], [5], [0, 3, 5]]
    assert rounds(starts, 3, 2) == [[0, 1, 2], [3, 4], [0, 3, 4]]
    assert rounds(starts, 3, 1) == [[0, 1, 2], [3], [0, 3, 2]]
    assert rounds(starts, 3, 0) == [[0, 1, 2], [0, 1, 2]]


# What is refused.


@pytest.mark.parametrize(
    ("training", "env_runners", "message"),
    [
        ({"episodes_per_start": 0}, {}, "`episodes_per_start` must be an integer >= 1, got 0"),
        ({"episodes_per_start": 2.0}, {}, "`episodes_per_start` must be an integer >= 1, got 2.0"),
        ({"episodes_per_start": 5}, {}, r"multiple of `episodes_per_start`.* set 15 or 20 instead"),
        ({"episodes_per_start": 32}, {}, "set 32 instead of 16"),
        ({"max_extra_starts": -1}, {}, "`max_extra_starts` must be an integer >= 0, got -1"),
        ({"max_extra_starts": True}, {}, "`max_extra_starts` must be an integer >= 0, got True"),
        (
            {"max_extra_starts": 2, "episodes_per_start": 1},
            {},
            "set `episodes_per_start` above 1, or remove the setting",
        ),
        ({}, {"gym_env_vectorize_mode": "async"}, r"one by one \(`gym_env_vectorize_mode='sync'`"),
        (
            {},
            {"gym_env_vectorize_mode": "vector_entry_point"},
            r"one by one \(`gym_env_vectorize_mode='sync'`",
        ),
        (
            {},
            {"batch_mode": "truncate_episodes", "rollout_fragment_length": 8},
            "remove `batch_mode='truncate_episodes'`",
        ),
        ({"baseline_decay": 0.5}, {}, r"hold one start's episodes only.*baseline='ridge'"),
        (
            {"baseline": "ridge", "bootstrap_truncated": True},
            {},
            "without `bootstrap_truncated`",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refused_with_the_mend(
    training: dict[str, Any], env_runners: dict[str, Any], message: str
) -> None:
    config = shared(**training).env_runners(**env_runners)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_refused_of_one_module() -> None:
    config = shared().rl_module(
        algorithm_config_overrides_per_module={"p": {"episodes_per_start": 2}}
    )
    with pytest.raises(ValueError, match=r"can't differ from module to module.*episodes_per_start"):
        config.validate()


def test_a_vector_env_that_moves_as_a_whole_is_refused_by_the_env_runner_too() -> None:
    register_env("native-starts", lambda context: NativeVector(context["num_envs"]))
    config = shared("native-starts").env_runners(gym_env_vectorize_mode="vector_entry_point")
    with pytest.raises(ValueError, match=r"`episodes_per_start` = 4 needs envs.*NativeVector"):
        GroupEnvRunner(config=config, worker_index=0)
    evaluation = config.copy()
    evaluation.in_evaluation = True
    assert len(GroupEnvRunner(config=evaluation, worker_index=0).sample(num_episodes=2)) == 2


def test_a_ridge_learns_over_shared_starts() -> None:
    with built(shared(baseline="ridge", lambda_=0.95)) as algo:
        algo.train()
        before = snapshot(algo)
        results = module_results(algo.train())
        assert results["group_num_bins"] == 4 * 10
        assert np.isfinite(results["policy_loss"])
        (state,) = before["connector_pieces"]["GroupAdvantageEstimation"]
        assert len(state["memory"]["default_policy"]["baseline"]["bins"]["counts"]) == 0
