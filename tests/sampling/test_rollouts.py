"""Rollouts of a fixed number of steps: whole and cut trajectories, as exact as whole episodes."""

from __future__ import annotations

import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.sampling.group import SamplingError, cut_into_shares
from rllib_gpg.sampling.rollout.vector_env import adapt
from tests.envs import Identity, ShortOrLong, Slow, TellsTooMuch, Unreliable
from tests.helpers import (
    SMALL_NET,
    built,
    fingerprint,
    guarded,
    logged_warnings,
    module_results,
    same,
    sample_group,
    small_config,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("ray_session")

LSTM = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 5}


def rollouts(env: Any = ShortOrLong, num_steps: int = 12, **env_runners: Any) -> GPGConfig:
    """Four rollouts; most cut an episode, and some hold several."""
    return small_config(env, group_size=4).env_runners(
        batch_mode="truncate_episodes",
        rollout_fragment_length=num_steps,
        **{"num_envs_per_env_runner": 4, "episodes_per_share": 2, **env_runners},
    )


def step_by_step(env: Any, spaces: Any, device: Any) -> FlattenObservations:
    return FlattenObservations()


def mean_std(env: Any, spaces: Any, device: Any) -> MeanStdFilter:
    return MeanStdFilter()


def groups(config: GPGConfig, number: int = 4) -> list[Any]:
    with built(config) as algo:
        return [fingerprint(sample_group(algo)) for _ in range(number)]


def test_each_rollout_makes_its_steps_and_goes_on_where_it_was_cut() -> None:
    names = defaultdict(list)  # of every episode, by what it observes: its pieces
    with built(rollouts()) as algo:
        for _ in range(30):
            group = sample_group(algo)
            assert sum(map(len, group)) == 4 * 12
            for piece in group:
                observations = np.asarray(piece.get_observations())
                assert len(observations) == len(piece) + 1
                names[float(observations[0, 0])].append(piece)
    for pieces in names.values():
        whole = np.concatenate([np.asarray(p.get_observations())[:-1] for p in pieces])
        # From step 0 on, without a gap.
        np.testing.assert_array_equal(whole[:, 1], np.arange(len(whole)))
        assert [piece.t_started for piece in pieces] == [0, *(piece.t for piece in pieces[:-1])]
        assert len({piece.id_ for piece in pieces}) == 1
        assert [piece.is_done for piece in pieces[:-1]] == [False] * (len(pieces) - 1)
        if pieces[-1].is_done:
            assert len(whole) in (5, 200)
    lengths = [sum(map(len, pieces)) for pieces in names.values()]
    assert 5 in lengths and 200 in lengths and max(map(len, names.values())) > 10


def test_columns_and_steps_give_the_same_rollouts() -> None:
    assert groups(rollouts()) == groups(rollouts(env_to_module_connector=step_by_step))


def test_another_seed_gives_other_rollouts() -> None:
    assert groups(rollouts()) != groups(rollouts().debugging(seed=2))


@pytest.mark.slow
@pytest.mark.parametrize("connector", [None, step_by_step, mean_std])
def test_rollouts_are_the_same_on_any_number_of_env_runners(connector: Any) -> None:
    """With three for two shares, who goes on with a rollout changes: whoever is free first."""
    one, *others = (
        groups(
            rollouts(
                num_env_runners=number,
                num_envs_per_env_runner=num_envs,
                env_to_module_connector=connector,
            )
        )
        for number, num_envs in ((0, 4), (1, 6), (2, 2), (3, 4))
    )
    assert others == [one, one, one]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["short or long", "unreliable"])
def test_faults_change_nothing(env: str) -> None:
    """Env runners are killed between groups, and in the midst of them envs raise."""
    config = rollouts(Slow, num_env_runners=2)
    if env == "unreliable":
        config.environment(Unreliable, env_config={"probability": 0.002})
        config.fault_tolerance(max_share_failures=1000)
    found = []
    with guarded(config) as algo:
        for number in range(4):
            if number == 2:
                ray.kill(algo.env_runner_group._worker_manager.actors()[1], no_restart=False)
            found.append(fingerprint(sample_group(algo)))
    assert found == groups(rollouts())


@pytest.mark.parametrize("connector", [None, step_by_step])
def test_a_run_cut_in_two_equals_the_run_in_one_piece(tmp_path: Path, connector: Any) -> None:
    config = rollouts(Identity, num_steps=7, env_to_module_connector=connector)
    config.training(baseline="ridge", lambda_=0.9, bootstrap_truncated=True)

    def rest(algo: GPG) -> tuple[Any, Any]:
        return [module_results(algo.train())["policy_loss"] for _ in range(3)], snapshot(algo)

    with built(config) as algo:
        for _ in range(2):
            algo.train()
        path = algo.save_to_path(tmp_path)
        losses, end = rest(algo)
        algo.restore_from_path(path)
        in_place = rest(algo)
    new = GPG.from_checkpoint(path)
    try:
        elsewhere = rest(new)
    finally:
        new.stop()
    for found in (in_place, elsewhere):
        assert found[0] == losses
        assert same(found[1], end)


def test_to_restore_the_learners_alone_leaves_rollouts_where_they_stand() -> None:
    """As callbacks do that put weights into a module."""
    with built(rollouts()) as algo:
        found = []
        for _ in range(4):
            found.append(fingerprint(sample_group(algo)))
            algo.set_state({"learner_group": algo.learner_group.get_state()})
    assert found == groups(rollouts())


def test_an_evaluation_in_between_changes_nothing() -> None:
    """It is by whole episodes, in the same envs."""
    config = rollouts()
    plain = groups(config)
    config.evaluation(evaluation_duration=3)
    with built(config) as algo:
        found = []
        for _ in range(4):
            found.append(fingerprint(sample_group(algo)))
            results = algo.evaluate()["env_runners"]
            assert results["episode_len_mean"] in (5, 70, 135, 200)
    assert found == plain


class Forgetful(ShortOrLong):
    """Draws from numbers that no seed controls."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=int(np.random.default_rng().integers(2**31)))


def test_an_env_that_cannot_be_brought_back_begins_anew_and_says_so() -> None:
    with built(rollouts(Forgetful, num_steps=3)) as algo, logged_warnings() as messages:
        sample_group(algo)
        first = [piece.t_started for piece in sample_group(algo)]
        # As a restored run, whose envs are new.
        algo.env_runner._stands = {}
        then = [piece.t_started for piece in sample_group(algo)]
    assert 3 in first
    assert set(then) == {0}
    assert [m for m in messages if "can't be taken up where it was cut" in m]


def test_metrics_are_those_of_whole_episodes() -> None:
    """Rewards are 1 per step: returns are lengths, 5 or 200, however often they were cut."""
    seen = set()
    with built(rollouts(num_steps=50)) as algo:
        for _ in range(6):
            result = algo.train()
            runners = result["env_runners"]
            if not np.isnan(runners["episode_return_mean"]):
                seen |= {runners["episode_return_max"], runners["episode_len_max"]}
                assert runners["episode_return_mean"] == runners["episode_len_mean"]
            assert runners["num_env_steps_sampled"] == 200
            assert module_results(result)["group_num_env_steps"] == 200
    assert seen == {5.0, 200.0} or seen == {200.0}


def brought_back(config: GPGConfig) -> list[list[int]]:
    """Where the pieces of two groups begin, if no env is where it was left in between."""
    with built(config) as algo:
        starts = []
        for _ in range(3):
            starts.append([piece.t_started for piece in sample_group(algo)])
            algo.env_runner._stands.clear()
    return starts[1:]


class Picky(Identity):
    """Takes actions from a dict, writes into what it is given, and shows float64 for float32."""

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__()
        self._is_box = (config or {}).get("box", False)
        if self._is_box:
            self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def step(self, action: Any) -> Any:
        if self._is_box:
            action *= 2.0
            action = int(action[0] > 0.0)
        observation, reward, *rest = super().step({0: 0, 1: 1}[action])
        return observation.astype(np.float64) / 3.0, np.float32(reward) / 3, *rest


@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("connector", [None, step_by_step])
def test_an_env_is_brought_back_with_what_it_was_given(box: bool, connector: Any) -> None:
    config = rollouts(Picky, num_steps=2, env_to_module_connector=connector)
    assert brought_back(config.environment(env_config={"box": box})) == [[2] * 4, [4] * 4]


def test_discrete_observations_go_on() -> None:
    config = rollouts("FrozenLake-v1", num_steps=3, env_to_module_connector=step_by_step)
    first, second = brought_back(config)
    assert 3 in first and set(first) | set(second) <= {0, 1, 2, 3, 4, 5, 6}


class Sums(Identity):
    """Shows the sum of all actions, 0 counting as -1; never ends."""

    def step(self, action: int) -> Any:
        self.position += 2 * action - 1
        return np.array([self.position], np.float32), 0.0, False, False, {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position = 0
        return np.zeros(1, np.float32), {}


def test_a_newer_checkpoint_after_an_older_one_is_another_time(tmp_path: Path) -> None:
    """Unseeded: what the envs did after going back isn't what they had done before."""
    config = rollouts(Sums, num_steps=30).debugging(seed=None)
    with built(config) as algo:
        algo.train()
        older = algo.save_to_path(tmp_path / "older")
        algo.train()
        newer = algo.save_to_path(tmp_path / "newer")
        algo.restore_from_path(older)
        algo.train()
        algo.restore_from_path(newer)
        for piece in sample_group(algo):
            assert piece.t_started == 60
            positions = np.asarray(piece.get_observations())[:, 0]
            steps = 2 * np.asarray(piece.get_actions()) - 1
            np.testing.assert_array_equal(np.diff(positions), steps)


def test_envs_that_are_made_anew_are_brought_back() -> None:
    with built(rollouts(Sums, num_steps=3)) as algo:
        sample_group(algo)
        algo.env_runner.make_env()
        assert [piece.t_started for piece in sample_group(algo)] == [3] * 4


class Pays(Sums):
    """The same, with a reward."""

    def step(self, action: int) -> Any:
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest


class Halves(ConnectorV2):
    """Halves rewards in the episode, as others clip them."""

    def __call__(self, *, episodes: Any, batch: Any, **kwargs: Any) -> Any:
        for episode in episodes:
            if len(episode) > 0:
                episode.set_rewards(new_data=0.5 * episode.get_rewards(-1), at_indices=-1)
        return batch


def halves(env: Any, spaces: Any, device: Any) -> Halves:
    return Halves()


def test_rewards_that_connectors_change_are_no_reason_to_begin_anew() -> None:
    """What the env does again is what it gave, not what became of it."""
    config = rollouts(Pays, num_steps=3, env_to_module_connector=halves)
    with built(config) as algo, logged_warnings() as messages:
        for _ in range(2):
            sample_group(algo)
            algo.env_runner.make_env()
        assert [piece.t_started for piece in sample_group(algo)] == [6] * 4
    assert not [m for m in messages if "can't be taken up" in m]


def test_what_cannot_be_pickled_goes_on_all_the_same(tmp_path: Path) -> None:
    """In an info; between groups it is dropped."""
    with built(rollouts(TellsTooMuch, num_steps=3)) as algo:
        sample_group(algo)
        assert 3 in [piece.t_started for piece in sample_group(algo)]
        algo.save_to_path(tmp_path)


class Wrapped(GroupEnvRunner):
    """Puts a vector wrapper around the env."""

    def make_env(self) -> None:
        super().make_env()
        self.env = gym.wrappers.vector.RecordEpisodeStatistics(self.env)
        self._envs = adapt(self.env)


def test_envs_that_cannot_be_reset_one_by_one_are_refused() -> None:
    refused = pytest.raises(SamplingError, match="without a vector wrapper around them")
    with built(rollouts(env_runner_cls=Wrapped)) as algo, refused:
        sample_group(algo)


@pytest.mark.parametrize(
    ("num_env_runners", "num_envs", "group_size", "per_share", "expected"),
    [
        (4, 8, 8, None, [(0, [0, 1]), (1, [0, 1]), (2, [0, 1]), (3, [0, 1])]),
        (2, 4, 6, None, [(0, [0, 1, 2]), (1, [0, 1, 2])]),
        (3, 8, 16, None, [(0, range(6)), (1, range(6)), (2, range(4))]),
        (2, 4, 8, 2, [(0, [0, 1]), (1, [0, 1]), (0, [2, 3]), (1, [2, 3])]),
        (2, 3, 5, 2, [(0, [0, 1]), (1, [0, 1]), (0, [2])]),
        (0, 4, 4, 3, [(0, [0, 1, 2]), (0, [3])]),
    ],
)
def test_rollouts_share_out_the_env_runners_and_no_env_has_two(
    num_env_runners: int, num_envs: int, group_size: int, per_share: int | None, expected: Any
) -> None:
    config = rollouts(
        num_env_runners=num_env_runners,
        num_envs_per_env_runner=num_envs,
        episodes_per_share=per_share,
    ).training(group_size=group_size)
    config.validate()
    shares = cut_into_shares(config, 0, 0)
    envs = [(share.index % max(1, num_env_runners), [*share.envs]) for share in shares]
    assert envs == [(runner, [*own]) for runner, own in expected]
    config.env_runners(num_envs_per_env_runner=max(max(own) for _, own in envs))
    with pytest.raises(ValueError, match="an env of its own"):
        config.validate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_envs", "group_size", "per_share"), [(4, 8, 2), (4, 6, None), (8, 8, None)]
)
def test_nobody_repeats_what_another_env_runner_has_at_hand(
    num_envs: int, group_size: int, per_share: int | None, tmp_path: Path
) -> None:
    config = rollouts(
        Counting,
        20,
        num_env_runners=2,
        num_envs_per_env_runner=num_envs,
        episodes_per_share=per_share,
    )
    config.environment(env_config={"folder": str(tmp_path)}).training(group_size=group_size)
    with built(config) as algo:
        for _ in range(5):
            sample_group(algo)
    assert sum(len(path.read_bytes()) for path in tmp_path.iterdir()) == 5 * group_size * 20


class Counting(Sums):
    """Leaves a mark for each of its steps."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self._path = Path(config["folder"]) / uuid.uuid4().hex

    def step(self, action: int) -> Any:
        with self._path.open("ab") as marks:
            marks.write(b".")
        return super().step(action)


def test_another_group_size_begins_anew_and_says_so(tmp_path: Path) -> None:
    config = rollouts(Sums, num_steps=3)
    with built(config) as algo:
        sample_group(algo)
        path = algo.save_to_path(tmp_path)
    with built(config.copy(copy_frozen=False).training(group_size=2)) as algo:
        algo.restore_from_path(path)
        with logged_warnings() as messages:
            assert [piece.t_started for piece in sample_group(algo)] == [0, 0]
    assert [m for m in messages if "`group_size` has changed" in m]


class Starts(RLlibCallback):
    """Counts, in this process."""

    calls: list[str] = []  # noqa: RUF012

    def on_episode_start(self, **kwargs: Any) -> None:
        self.calls.append("start")

    def on_episode_end(self, *, episode: Any, **kwargs: Any) -> None:
        self.calls.append(f"end after {episode.t}")


def test_callbacks_see_each_episode_start_and_end_once() -> None:
    Starts.calls.clear()
    with built(rollouts(Identity, num_steps=6).callbacks(Starts)) as algo:
        for _ in range(5):
            sample_group(algo)
    # 30 steps in each of 4 rollouts.
    assert sorted(Starts.calls) == ["end after 10"] * 12 + ["start"] * 12


class Sum(RLlibCallback):
    """Adds up over the pieces of an episode what it is worth."""

    found: list[tuple[float, int]] = []  # noqa: RUF012

    def on_episode_step(self, *, episode: Any, **kwargs: Any) -> None:
        data = episode.custom_data
        data["steps"] = data.get("steps", 0) + 1

    def on_episode_end(self, *, episode: Any, prev_episode_chunks: Any, **kwargs: Any) -> None:
        self.found.append((episode.custom_data["steps"], len(prev_episode_chunks)))


def test_what_a_callback_keeps_goes_along_with_an_episode() -> None:
    """Its earlier pieces are gone by the end, on whichever env runner."""
    Sum.found.clear()
    with built(rollouts(Identity, num_steps=6).callbacks(Sum)) as algo:
        for _ in range(5):
            sample_group(algo)
    assert Sum.found == [(10, 0)] * 12


def test_recurrent_modules_go_on_with_their_state() -> None:
    config = rollouts(Identity, num_steps=7).rl_module(model_config=LSTM)
    with built(config) as algo:
        for _ in range(3):
            result = algo.train()
    assert np.isfinite(module_results(result)["policy_loss"])
    with built(config) as algo:
        before, after = sample_group(algo), sample_group(algo)
    cut = {piece.id_: piece for piece in before if not piece.is_done}
    going_on = [piece for piece in after if piece.t_started > 0]
    assert len(going_on) == 4
    for piece in going_on:
        carried = piece.get_extra_model_outputs("state_out", -1, neg_index_as_lookback=True)
        left = cut[piece.id_].get_extra_model_outputs("state_out", -1)
        np.testing.assert_array_equal(carried["h"], left["h"])


def test_time_is_counted_from_the_reset_and_returns_stop_at_the_cut() -> None:
    """Identity in rollouts of 7: pieces 0-6, then 7-9 and 0-3, then 4-9 and 0, .."""
    config = rollouts(Identity, num_steps=7)
    with built(config) as algo:
        results = [module_results(algo.train()) for _ in range(3)]
    assert [r["group_num_episodes"] for r in results] == [4, 8, 8]
    assert [r["group_num_bins"] for r in results] == [7, 7, 7]
    assert all(r["group_singleton_fraction"] == 0.0 for r in results)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rollout_fragment_length": "auto"}, "needs `rollout_fragment_length`"),
        ({"rollout_fragment_length": 0}, "rollout_fragment_length"),
        (
            {"num_envs_per_env_runner": 3, "episodes_per_share": None},
            "an env of its own.*this process needs 4, but `num_envs_per_env_runner` is 3",
        ),
        (
            {"num_env_runners": 2, "num_envs_per_env_runner": 2, "episodes_per_share": 3},
            "3 in a share has.*one of 2 env runners needs 3, .* is 2.*remove `episodes_per_share`",
        ),
        (
            {"num_env_runners": 3, "num_envs_per_env_runner": 1, "episodes_per_share": 1},
            "one of 3 env runners needs 2",
        ),
        ({"episode_lookback_horizon": 0}, "`episode_lookback_horizon` of at least 1"),
        ({"gym_env_vectorize_mode": "async"}, "one by one"),
        ({"batch_mode": "complete_episodes"}, "set `batch_mode='truncate_episodes'` as well"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rollouts().env_runners(**settings).validate()


def test_several_agents_are_refused() -> None:
    config = rollouts().multi_agent(policies={"a"}, policy_mapping_fn=lambda *_, **__: "a")
    with pytest.raises(ValueError, match="is for single agents"):
        config.validate()
