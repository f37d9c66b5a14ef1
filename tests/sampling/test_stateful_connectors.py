"""Connectors that remember: the same groups and the same memory, whatever happens to runners."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import (
    EnvToModulePipeline,
    FlattenObservations,
    MeanStdFilter,
)
from ray.rllib.connectors.module_to_env import ModuleToEnvPipeline
from ray.rllib.utils.filter import RunningStat

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.learning import GPGTorchLearner
from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.sampling.connector_states import Connectors, merge_mean_std_filters
from tests.envs import Identity, MultiShortOrLong, ShortOrLong, Slow, Unreliable
from tests.helpers import (
    built,
    fingerprint,
    logged_warnings,
    same,
    sample_group,
    small_config,
    snapshot,
)

BOX = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


def mean_std(env: Any, spaces: Any, device: Any) -> MeanStdFilter:
    return MeanStdFilter()


def filtered(env: Any = ShortOrLong, **env_runners: Any) -> GPGConfig:
    """A group in three shares, each of which filters a few hundred observations."""
    return small_config(env, group_size=6).env_runners(
        num_envs_per_env_runner=2,
        **{"episodes_per_share": 2, "env_to_module_connector": mean_std, **env_runners},
    )


def statistics(algo: GPG, agent_id: Any = None) -> RunningStat:
    state = algo._policy.connectors.get_states()["env_to_module_connector/MeanStdFilter"]
    return RunningStat.from_state(state[agent_id]["running_stats"][0])


def remembered(algo: GPG) -> list[Any]:
    """What all filters hold."""
    filters = [
        one for state in algo._policy.connectors.get_states().values() for one in state.values()
    ]
    stats = [RunningStat.from_state(stat) for one in filters for stat in one["running_stats"]]
    return [(s.num_pushes, s.mean.tolist(), s.sum_sq_diff_array.tolist()) for s in stats]


def next_group(algo: GPG) -> list[Any]:
    """The next group; what it adds to the connectors is in force for the one behind it."""
    group = sample_group(algo)
    algo._policy.connectors.set_states(algo._connectors_after_group)
    algo._sync_weights()
    return group


# Groups and filters.


def run(config: GPGConfig, iterations: int = 3) -> tuple[Any, Any]:
    with built(config) as algo:
        groups = []
        for _ in range(iterations):
            groups.append(algo.train()["learners"]["default_policy"]["group_return_mean"])
        groups.append(fingerprint(next_group(algo)))
        return groups, remembered(algo)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_env_runners", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_same_groups_and_filter_on_any_number_of_env_runners(num_env_runners: int) -> None:
    alone = run(filtered())
    assert run(filtered(num_env_runners=num_env_runners)) == alone


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_filter_is_that_of_all_observations(num_env_runners: int) -> None:
    """The second observation is the step: 0, 1, .., L of an episode of L steps."""
    with built(filtered(num_env_runners=num_env_runners)) as algo:
        lengths = [len(episode) for _ in range(3) for episode in next_group(algo)]
        stat = statistics(algo)
        seen = np.concatenate([np.arange(length + 1) for length in lengths])
        assert stat.num_pushes == len(seen)
        np.testing.assert_allclose(stat.mean[1], seen.mean())
        np.testing.assert_allclose(stat.std[1], seen.std(ddof=1), rtol=1e-6)
        # RLlib merges after an iteration and before an evaluation: nothing comes twice.
        algo.train()
        assert (
            statistics(algo).num_pushes
            == len(seen)
            + algo.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"))
            - sum(lengths)
            + 6
        )


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_failed_shares_leave_nothing_behind(num_env_runners: int) -> None:
    outcomes = []
    for probability in (0.0, 1 / 200):
        config = filtered(Unreliable, num_env_runners=num_env_runners, episodes_per_share=1)
        config.environment(env_config={"probability": probability})
        config.fault_tolerance(max_share_failures=1000)
        with built(config) as algo:
            groups = [fingerprint(next_group(algo)) for _ in range(3)]
            outcomes.append((groups, remembered(algo)))
            redispatched = algo.metrics.peek(("env_runners", "num_episodes_redispatched_lifetime"))
    assert outcomes[1] == outcomes[0]
    assert redispatched > 3


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_killed_env_runners_change_nothing() -> None:
    def three_groups(*, kill: bool) -> Any:
        with built(filtered(Slow, num_env_runners=2)) as algo:
            groups = []
            for _ in range(3):
                if kill:
                    (pid, *_) = algo.env_runner_group.foreach_env_runner(
                        lambda runner: os.getpid(), local_env_runner=False
                    )
                    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
                groups.append(fingerprint(next_group(algo)))
            redispatched = algo.metrics.peek(("env_runners", "num_episodes_redispatched_lifetime"))
            return groups, remembered(algo), redispatched > 0

    assert three_groups(kill=True) == (*three_groups(kill=False)[:2], True)


class Interrupting(RLlibCallback):
    """Ctrl-C, when it is asked for."""

    asked_for = False

    def on_episode_end(self, **kwargs: Any) -> None:
        if Interrupting.asked_for:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("ray_session")
def test_an_interrupted_group_leaves_nothing_behind() -> None:
    with built(filtered().callbacks(Interrupting)) as algo:
        algo.train()
        before = remembered(algo)
        Interrupting.asked_for = True
        with pytest.raises(KeyboardInterrupt):
            sample_group(algo)
        Interrupting.asked_for = False
        assert remembered(algo) == before


class FailsOnce(GPGTorchLearner):
    fails_next = False

    def update(self, *args: Any, **kwargs: Any) -> Any:
        if FailsOnce.fails_next:
            FailsOnce.fails_next = False
            raise RuntimeError("once")
        return super().update(*args, **kwargs)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_group_that_is_repeated_after_a_failed_update_counts_once(num_env_runners: int) -> None:
    """The filter goes on as if nothing had failed, and is in checkpoints as the group found it."""
    config = filtered(num_env_runners=num_env_runners)
    config.training(learner_class=FailsOnce)
    ends = []
    for fails in (False, True):
        with built(config.copy(copy_frozen=False)) as algo:
            algo.train()
            before = remembered(algo)
            if fails:
                FailsOnce.fails_next = True
                with pytest.raises(RuntimeError, match="once"):
                    algo.train()
                assert remembered(algo) == before
            algo.train()
            ends.append((remembered(algo), snapshot(algo)))
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1], ends[1][1])


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_without_merging_the_filter_stays_as_it_is(num_env_runners: int) -> None:
    config = filtered(num_env_runners=num_env_runners, merge_env_runner_states=False)
    with built(config) as algo:
        algo.train()
        assert statistics(algo).num_pushes == 0


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_several_agents(num_env_runners: int) -> None:
    config = filtered(
        MultiShortOrLong,
        num_env_runners=num_env_runners,
        env_to_module_connector=lambda env, spaces, device: MeanStdFilter(multi_agent=True),
    ).environment(env_config={"num_agents": 2})
    config.multi_agent(policies={"p"}, policy_mapping_fn=lambda agent_id, episode, **kwargs: "p")
    with built(config) as algo:
        lengths: dict[int, list[int]] = {0: [], 1: []}
        for _ in range(2):
            for episode in next_group(algo):
                for agent_id, agent in episode.agent_episodes.items():
                    lengths[agent_id].append(len(agent))
        for agent_id, of_agent in lengths.items():
            stat = statistics(algo, agent_id)
            seen = np.concatenate([np.arange(length + 1) for length in of_agent])
            assert stat.num_pushes == len(seen)
            np.testing.assert_allclose(stat.mean[1], seen.mean())


# Checkpoints and evaluation.


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("num_env_runners", "local"),
    [
        (0, True),
        pytest.param(2, True, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
    ],
)
def test_a_run_cut_in_two_equals_the_run_in_one_piece(
    tmp_path: Path, num_env_runners: int, local: bool
) -> None:
    config = filtered(num_env_runners=num_env_runners, create_local_env_runner=local)
    config.evaluation(evaluation_interval=1, evaluation_duration=3)

    def rest(algo: GPG) -> Any:
        for _ in range(2):
            result = algo.train()
        evaluated = result["evaluation"]["env_runners"]["episode_return_mean"]
        return evaluated, fingerprint(sample_group(algo)), remembered(algo), snapshot(algo)

    with built(config) as algo:
        algo.train()
        path = algo.save_to_path(tmp_path)
        whole = rest(algo)
        # An older checkpoint in place: the env runners hold what has come since.
        algo.restore_from_path(path)
        pieces = [rest(algo)]
        if local:  # Without, RLlib's `set_state` looks for the state of an env runner in vain.
            state, end = algo.get_state(), remembered(algo)
            algo.restore_from_path(path)
            algo.set_state(state)
            assert remembered(algo) == end
    new = GPG.from_checkpoint(path)
    try:
        pieces.append(rest(new))
    finally:
        new.stop()
    for piece in pieces:
        assert piece[:3] == whole[:3]
        assert same(piece[3], whole[3])


class Filtering(RLlibCallback):
    """Logs how much the filter had seen when the first episode began."""

    def on_episode_start(self, *, env_runner: Any, metrics_logger: Any, **kwargs: Any) -> None:
        ((stat,),) = [
            one["running_stats"]
            for one in env_runner._env_to_module.connectors[0].get_state().values()
        ]
        metrics_logger.log_value("seen", stat["num_pushes"], reduce="min", window=1000)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("num_eval_runners", [None, 0, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluation_uses_the_filter_and_leaves_it_as_it_is(num_eval_runners: int | None) -> None:
    config = filtered().evaluation(evaluation_duration=2)
    with built(config) as algo:
        algo.train()
        undisturbed = fingerprint(sample_group(algo))
    if num_eval_runners is not None:
        config = config.copy(copy_frozen=False)
        config.evaluation(evaluation_interval=100, evaluation_num_env_runners=num_eval_runners)
    with built(config.copy(copy_frozen=False).callbacks(Filtering)) as algo:
        algo.train()
        before = remembered(algo)
        results = [algo.evaluate()["env_runners"] for _ in range(2)]
        # Both envs' first observations have been filtered by then.
        for result in results:
            assert result["seen"] == statistics(algo).num_pushes + 2
        assert remembered(algo) == before
        assert fingerprint(sample_group(algo)) == undisturbed


@pytest.mark.usefixtures("ray_session")
def test_evaluation_by_timesteps_leaves_the_filter_as_it_is_too() -> None:
    """RLlib's own, by the env runner for training."""
    config = filtered().evaluation(evaluation_duration=40, evaluation_duration_unit="timesteps")
    with built(config) as algo:
        algo.train()
        before = remembered(algo)
        undisturbed = fingerprint(sample_group(algo))
    with built(config) as algo:
        algo.train()
        assert algo.evaluate()["env_runners"]["num_env_steps_sampled"] >= 40
        assert remembered(algo) == before
        assert fingerprint(sample_group(algo)) == undisturbed


# Any connector.


class Tally(ConnectorV2):
    """Counts its calls, in the very state that it is given and hands out."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.counts: dict[str, int] = {"calls": 0}

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        self.counts["calls"] += 1
        return batch

    def get_state(self, *args: Any, **kwargs: Any) -> Any:
        return self.counts

    def set_state(self, state: Any) -> None:
        self.counts = state


class MergingTally(Tally):
    def merge_states(self, states: list[Any]) -> Any:
        now = self.counts["calls"]
        return {"calls": now + sum(state["calls"] - now for state in states)}


class LateTally(MergingTally):
    """Has no state before its first call."""

    def get_state(self, *args: Any, **kwargs: Any) -> Any:
        return self.counts if self.counts["calls"] else {}

    def reset_state(self) -> None:
        self.counts = {"calls": 0}


class EmptyAtFirst(ConnectorV2):
    """Counts its calls, of which there are none at first, and doesn't know how to reset itself."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.counts: Counter[str] = Counter()

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        self.counts["calls"] += 1
        return batch

    def get_state(self, *args: Any, **kwargs: Any) -> Any:
        return dict(self.counts)

    def set_state(self, state: Any) -> None:
        self.counts = Counter(state)

    def merge_states(self, states: list[Any]) -> Any:
        added = [Counter(state) - self.counts for state in states]
        return dict(sum(added, self.counts))


def calls_per_share(algo: GPG) -> list[int]:
    """How often each share of the next group calls the local env runner's `Tally`."""
    counted = []
    original = algo.env_runner.sample
    (piece,) = (p for p in algo.env_runner._env_to_module.connectors if hasattr(p, "counts"))

    def sample(**kwargs: Any) -> Any:
        before = piece.counts["calls"]
        episodes = original(**kwargs)
        counted.append(piece.counts["calls"] - before)
        return episodes

    algo.env_runner.sample = sample
    next_group(algo)
    algo.env_runner.sample = original
    return counted


def pipelines(*pieces: ConnectorV2) -> Connectors:
    return Connectors(
        EnvToModulePipeline(BOX, gym.spaces.Discrete(2), connectors=list(pieces)),
        ModuleToEnvPipeline(BOX, gym.spaces.Discrete(2), connectors=[]),
    )


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kind", [MergingTally, LateTally, EmptyAtFirst])
def test_any_connector_is_merged_by_its_own_rule(kind: type[ConnectorV2]) -> None:
    """Behind a stateless piece, where RLlib's pipeline would ask that one to merge."""
    config = filtered(env_to_module_connector=lambda e, s, d: [FlattenObservations(), kind()])
    with built(config) as algo:
        total = 0
        for _ in range(2):
            added = calls_per_share(algo)
            assert len(added) == 3
            total += sum(added)
            (state,) = algo._policy.connectors.get_states().values()
            assert state == {"calls": total}


@pytest.mark.usefixtures("ray_session")
def test_one_that_cannot_be_merged_is_named_once() -> None:
    config = filtered(env_to_module_connector=lambda env, spaces, device: Tally())
    with logged_warnings() as warnings, built(config) as algo:
        total = 0
        for _ in range(2):
            total += calls_per_share(algo)[0]
            (state,) = algo._policy.connectors.get_states().values()
            assert state == {"calls": total}
    (named,) = (text for text in warnings if "Tally" in text)
    assert "merge_states" in named


@pytest.mark.usefixtures("ray_session")
def test_with_one_share_nothing_has_to_be_merged() -> None:
    config = filtered(
        episodes_per_share=None, env_to_module_connector=lambda env, spaces, device: Tally()
    )
    with logged_warnings() as warnings, built(config) as algo:
        (calls,) = calls_per_share(algo)
        (state,) = algo._policy.connectors.get_states().values()
        assert state == {"calls": calls}
    assert not [text for text in warnings if "Tally" in text]


def test_pieces_of_one_class_keep_states_of_their_own() -> None:
    """In a row and in pipelines of their own."""
    pieces = [MergingTally(), MergingTally(), MergingTally()]
    inner = EnvToModulePipeline(BOX, gym.spaces.Discrete(2), connectors=[pieces[2]])
    connectors = pipelines(pieces[0], pieces[1], inner)
    before = connectors.get_states()
    assert len(before) == 3
    after = []
    for share in range(2):
        with connectors.beginning_with(before):
            for count, piece in enumerate(pieces, start=1):
                piece.counts["calls"] += 10 * count + share
            after.append(connectors.get_states())
        assert connectors.get_states() == before
    connectors.merge(before, after)
    assert [piece.counts["calls"] for piece in pieces] == [21, 41, 61]


class PacedTally(MergingTally):
    """Counts each call several times."""

    def __init__(self, pace: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.pace = pace

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        self.counts["calls"] += self.pace
        return batch


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("local", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pieces_of_one_class_are_restored_from_states_of_their_own(
    tmp_path: Path, local: bool
) -> None:
    config = filtered(
        num_env_runners=1,
        create_local_env_runner=local,
        env_to_module_connector=lambda env, spaces, device: [PacedTally(1), PacedTally(10)],
    )
    with built(config) as algo:
        next_group(algo)
        saved = algo._policy.connectors.get_states()
        first, second = (state["calls"] for state in saved.values())
        assert second == 10 * first
        path = algo.save_to_path(tmp_path)
        next_group(algo)
        algo.restore_from_path(path)
        assert algo._policy.connectors.get_states() == saved


def test_an_empty_state_is_put_back() -> None:
    piece = EmptyAtFirst()
    connectors = pipelines(piece)
    before, after = connectors.get_states(), []
    for num_calls in (1, 0, 2):
        with connectors.beginning_with(before):
            for _ in range(num_calls):
                piece(batch={})
            after.append(connectors.get_states())
    assert [list(states.values()) for states in after] == [[{"calls": 1}], [{}], [{"calls": 2}]]
    connectors.merge(before, after)
    assert piece.counts == {"calls": 3}


@pytest.mark.usefixtures("ray_session")
def test_stateless_pipelines_send_nothing() -> None:
    config = filtered(env_to_module_connector=lambda env, spaces, device: FlattenObservations())
    with built(config) as algo:
        weights = algo._sync_weights()
        assert weights.connectors == {}
        sample_group(algo)
        runner = algo.env_runner
        assert runner.connectors.get_states() == {}


# RLlib's filter.


def observe(piece: MeanStdFilter, observations: np.ndarray, agent_id: Any = None) -> None:
    for observation in observations:
        piece._filters[agent_id](observation)


@pytest.mark.parametrize("shape", [(1,), (2, 3, 2)], ids=["vectors", "images"])
def test_merged_statistics_are_those_of_all_observations(shape: tuple[int, ...]) -> None:
    """Three groups of shares around 5, one of them empty; RLlib's own merging says 1.8."""
    space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    generator = np.random.default_rng(0)

    def new() -> MeanStdFilter:
        piece = MeanStdFilter()
        piece.input_action_space = gym.spaces.Discrete(2)
        piece.input_observation_space = space
        return piece

    before, seen = new().get_state(), []
    for _ in range(3):
        after = []
        for size in (1000, 0, 1, 300):
            piece, added = new(), generator.normal(5.0, 2.0, (size, *shape))
            piece.set_state(before)
            observe(piece, added)
            after.append(piece.get_state())
            seen.extend(added)
        before = merge_mean_std_filters(before, after)
        stat = RunningStat.from_state(before[None]["running_stats"][0])
        assert stat.num_pushes == len(seen)
        np.testing.assert_allclose(stat.mean, np.mean(seen, 0), rtol=1e-12)
        np.testing.assert_allclose(stat.std, np.std(seen, 0, ddof=1), rtol=1e-6)


def test_agents_with_different_observations_are_merged() -> None:
    spaces = gym.spaces.Dict({"a": BOX, "b": gym.spaces.Box(-1.0, 1.0, (3,), np.float32)})
    piece = MeanStdFilter(multi_agent=True)
    piece.input_action_space = gym.spaces.Discrete(2)
    piece.input_observation_space = spaces
    before = piece.get_state()
    observe(piece, np.ones((4, 2)), "a")
    observe(piece, np.ones((7, 3)), "b")
    merged = merge_mean_std_filters(before, [piece.get_state()] * 2)
    counts = {name: state["running_stats"][0]["num_pushes"] for name, state in merged.items()}
    assert counts == {"a": 8, "b": 14}


# What RLlib does about connectors besides.


def test_only_the_env_runners_of_gpg_keep_connectors_from_rllibs_merging() -> None:
    kept = {}
    for config_class in (GPGConfig, PPOConfig):
        config = config_class().environment(ShortOrLong)
        config.env_runners(num_env_runners=0, env_to_module_connector=mean_std)
        for worker_index in (0, 1):
            runner = GroupEnvRunner(config=config, worker_index=worker_index)
            state = runner.get_state(components=["env_to_module_connector"])
            kept[config_class, worker_index] = "env_to_module_connector" in state
    assert kept == {
        (GPGConfig, 0): True,
        (GPGConfig, 1): False,
        (PPOConfig, 0): True,
        (PPOConfig, 1): True,
    }


def test_a_state_server_is_refused() -> None:
    config = filtered(use_env_runner_state_server=True)
    with pytest.raises(ValueError, match="use_env_runner_state_server"):
        config.validate()


def test_a_frozen_filter_that_only_evaluation_has_stays_as_it_is() -> None:
    class Frozen(GroupEnvRunner):
        """Builds a pipeline that the env runners for training don't have."""

        def __init__(self, *, config: Any, **kwargs: Any):
            config = config.copy(copy_frozen=False).env_runners(
                env_to_module_connector=lambda env, spaces, device: MeanStdFilter(
                    update_stats=False
                )
            )
            super().__init__(config=config, **kwargs)

    config = small_config(Identity).evaluation(
        evaluation_interval=1,
        evaluation_duration=2,
        evaluation_config=GPGConfig.overrides(env_runner_cls=Frozen),
    )
    with built(config) as algo:
        for _ in range(2):
            result = algo.train()
    assert result["evaluation"]["env_runners"]["num_episodes"] == 2
