"""What `GroupAdvantageEstimation` remembers from group to group: per module, and as its state."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_gpg.advantages import (
    BinBaseline,
    GroupAdvantageEstimation,
    RidgeBaseline,
    estimate_group,
)
from tests.helpers import logged_warnings

RIDGE = RidgeBaseline(num_features=4)
SETTINGS = {"gamma": 0.9, "baseline": RIDGE, "lambda_": 0.9, "normalize_advantages": False}
OF_ESTIMATOR = {"gamma": 0.9, "baseline": RIDGE, "lambda_": 0.9, "binning": "time"}


def episode(
    rng: np.random.Generator, module_id: str | None = None, team: str | None = None, **ends: bool
) -> Any:
    """5 to 9 steps of two numbers; the reward follows from the first."""
    length = int(rng.integers(5, 10))
    observations = rng.normal(size=(length + 1, 2)).astype(np.float32)
    of_agent = {"agent_id": "a", "module_id": module_id, "multi_agent_episode_id": team}
    return SingleAgentEpisode(
        observations=list(observations),
        actions=[0] * length,
        rewards=[float(x) for x in observations[:-1, 0] + 0.1 * rng.normal(size=length)],
        observation_space=gym.spaces.Box(-10.0, 10.0, (2,)),
        action_space=gym.spaces.Discrete(2),
        len_lookback_buffer=0,
        **({"terminated": True} | ends),
        **(of_agent if module_id else {}),
    )


def groups(seed: int, number: int, size: int = 4, **of_episode: Any) -> list[list[Any]]:
    rng = np.random.default_rng(seed)
    return [[episode(rng, **of_episode) for _ in range(size)] for _ in range(number)]


def run(piece: GroupAdvantageEstimation, group: list[Any], rl_module: Any = None) -> np.ndarray:
    """The advantages of a group, in the order of its episodes."""
    batch = piece(rl_module=rl_module, batch={}, episodes=group)
    return np.concatenate([np.concatenate(x) for x in batch[Columns.ADVANTAGES].values()])


def by_hand(sequence: list[list[Any]], **settings: Any) -> list[np.ndarray]:
    memory, advantages = None, []
    for group in sequence:
        found = estimate_group(
            [np.asarray(e.get_observations()[:-1]) for e in group],
            [np.asarray(e.get_rewards()) for e in group],
            memory=memory,
            **{**OF_ESTIMATOR, **settings},
        )
        memory = found.memory
        advantages.append(np.concatenate(found.advantages).astype(np.float32))
    return advantages


def test_each_group_is_given_what_the_one_before_has_left() -> None:
    piece, sequence = GroupAdvantageEstimation(**SETTINGS), groups(0, 4)
    for group, expected in zip(sequence, by_hand(sequence), strict=True):
        np.testing.assert_array_equal(run(piece, group), expected)


def test_plain_bins_have_no_state() -> None:
    piece = GroupAdvantageEstimation(gamma=0.9)
    first, second = groups(1, 2)
    run(piece, first)
    assert piece.get_state()["memory"] == {}
    fresh = run(GroupAdvantageEstimation(gamma=0.9), second)
    np.testing.assert_array_equal(run(piece, second), fresh)


def test_what_another_baseline_has_left_is_not_revived() -> None:
    """A restored run goes on with plain bins, and later with the ridge again."""
    piece, (first, *between, last) = GroupAdvantageEstimation(**SETTINGS), groups(6, 4)
    run(piece, first)
    plain = GroupAdvantageEstimation(gamma=0.9)
    plain.set_state(piece.get_state())
    for group in between:
        run(plain, group)
    assert plain.get_state()["memory"] == {}
    piece.set_state(plain.get_state())
    fresh = run(GroupAdvantageEstimation(**SETTINGS), last)
    np.testing.assert_array_equal(run(piece, last), fresh)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"binning": "universal"}, ["RidgeBaseline with TimeBinning()", "UniversalBinning()"]),
        (
            {"baseline": BinBaseline(decay=0.5), "lambda_": 1.0},
            ["RidgeBaseline with", "BinBaseline with"],
        ),
        (
            {"baseline": RidgeBaseline(num_features=5)},
            ["4 waves of 3 numbers", "now there are 5 waves of 3 numbers"],
        ),
    ],
    ids=["bins", "baseline", "features"],
)
def test_that_what_was_remembered_does_not_fit_is_said_once(
    settings: dict[str, Any], words: list[str]
) -> None:
    """A run that is restored with other settings begins anew, and so may look worse at first."""
    piece, (first, second, third) = GroupAdvantageEstimation(**SETTINGS), groups(6, 3)
    with logged_warnings() as messages:
        run(piece, first)
        run(piece, second)
    assert messages == []
    other = GroupAdvantageEstimation(**SETTINGS | settings)
    other.set_state(piece.get_state())
    with logged_warnings() as messages:
        run(other, second)
        run(other, third)
    (sentence,) = messages
    assert all(word in sentence for word in ["begins anew", *words]), sentence
    # Nobody misses what isn't asked for.
    plain = GroupAdvantageEstimation(gamma=0.9)
    plain.set_state(piece.get_state())
    with logged_warnings() as messages:
        run(plain, second)
    assert messages == []


@pytest.mark.parametrize("slip", ["memory", {"kind": 1}, 3], ids=str)
def test_what_is_no_memory_is_refused_with_its_type(slip: Any) -> None:
    with pytest.raises(
        TypeError, match=f"attribute `memory` of the estimate.*{type(slip).__name__}"
    ):
        estimate_group([np.zeros((2, 1))], [np.ones(2)], gamma=0.9, binning="time", memory=slip)


def test_the_state_brings_back_the_rest_of_a_run_to_the_last_bit() -> None:
    whole, sequence = GroupAdvantageEstimation(**SETTINGS), groups(2, 6)
    expected = []
    for n, group in enumerate(sequence):
        if n == 3:
            state = pickle.dumps(whole.get_state())
        expected.append(run(whole, group))
    restored = GroupAdvantageEstimation(**SETTINGS)
    # In place too, where newer groups have been seen since.
    for piece in (restored, whole):
        piece.set_state(pickle.loads(state))
        for group, advantages in zip(sequence[3:], expected[3:], strict=True):
            np.testing.assert_array_equal(run(piece, group), advantages)
    whole.reset_state()
    np.testing.assert_array_equal(run(whole, sequence[0]), expected[0])


def test_a_state_does_not_change_when_the_piece_goes_on() -> None:
    piece = GroupAdvantageEstimation(**SETTINGS)
    first, second = groups(3, 2)
    run(piece, first)
    state = piece.get_state()
    saved = pickle.dumps(state)
    run(piece, second)
    assert pickle.dumps(state) == saved


def test_modules_remember_apart_and_may_have_settings_of_their_own() -> None:
    ones, twos = groups(4, 3, module_id="one"), groups(5, 3, size=3, module_id="two")
    settings = {"gamma": 0.5, "baseline": "bins", "baseline_decay": 0.5, "lambda_": 1.0}
    piece = GroupAdvantageEstimation(**SETTINGS, module_overrides={"two": settings})
    expected_two = by_hand(
        twos, gamma=0.5, lambda_=1.0, baseline=RidgeBaseline(num_features=0, decay=0.0)
    )
    for n, (one, two) in enumerate(zip(ones, twos, strict=True)):
        found = run(piece, [*one, *two])
        length = sum(map(len, one))
        np.testing.assert_array_equal(found[:length], by_hand(ones)[n])
        # The first group of carried bins, and of a ridge, are alike: the others' mean.
        assert (n == 0) == np.allclose(found[length:], expected_two[n], atol=1e-6)
    assert set(piece.get_state()["memory"]) == {"one", "two"}


def test_a_module_without_steps_remembers_and_one_that_is_gone_is_forgotten() -> None:
    class Modules(MultiRLModule):
        def __init__(self, *names: str):
            self._rl_modules = dict.fromkeys(names)

    piece = GroupAdvantageEstimation(**SETTINGS)
    (one,), (two,) = groups(6, 1, module_id="one"), groups(7, 1, module_id="two")
    run(piece, [*one, *two], Modules("one", "two"))
    run(piece, one, Modules("one", "two"))
    assert set(piece.get_state()["memory"]) == {"one", "two"}
    run(piece, one, Modules("one"))
    assert set(piece.get_state()["memory"]) == {"one"}


def test_only_truncated_episodes_are_completed() -> None:
    settings = {**SETTINGS, "bootstrap_truncated": True}
    *before, ended = groups(8, 4)
    rng = np.random.default_rng(9)
    cut = [episode(rng, terminated=False, truncated=True) for _ in range(4)]
    plain, completing = GroupAdvantageEstimation(**SETTINGS), GroupAdvantageEstimation(**settings)
    for group in before:
        np.testing.assert_array_equal(run(plain, group), run(completing, group))
    np.testing.assert_array_equal(run(plain, ended), run(completing, ended))

    finals = [np.asarray(e.get_observations())[-1:] for e in cut]
    expected = estimate_group(
        [np.asarray(e.get_observations()[:-1]) for e in cut],
        [np.asarray(e.get_rewards()) for e in cut],
        memory=completing.get_state()["memory"]["default_policy"],
        final_observations=finals,
        **OF_ESTIMATOR,
    )
    completed = run(completing, cut)
    np.testing.assert_array_equal(completed, np.concatenate(expected.advantages).astype(np.float32))
    assert not np.allclose(completed, run(plain, cut), atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lambda_": 0.9}, "don't see the state"),
        ({"bootstrap_truncated": True}, "don't see the state"),
        ({"baseline": RIDGE, "baseline_decay": 0.5}, "its own setting"),
        ({"module_overrides": {"one": {"lambda_": 0.9}}}, "don't see the state"),
    ],
)
def test_what_does_not_go_together_is_refused_also_without_gpgs_config(
    settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        GroupAdvantageEstimation(gamma=0.9, **settings)


def test_agents_of_one_episode_are_not_compared_with_each_other() -> None:
    """Two teams of two: what is compared is team with team."""
    rng = np.random.default_rng(6)
    group = [episode(rng, module_id="one", team=team) for team in ("a", "a", "b", "b")]
    piece = GroupAdvantageEstimation(gamma=1.0, leave_one_out=True, normalize_advantages=False)
    advantages = np.split(run(piece, group), np.cumsum([len(e) for e in group])[:-1])
    returns = [e.get_return() for e in group]
    assert advantages[0][0] == pytest.approx(returns[0] - (returns[2] + returns[3]) / 2, rel=1e-6)
    assert advantages[3][0] == pytest.approx(returns[3] - (returns[0] + returns[1]) / 2, rel=1e-6)


def test_a_group_that_comes_again_replaces_itself() -> None:
    """Its update was interrupted. In a copy that was saved meanwhile, too."""
    sequence = groups(7, 4)
    piece = GroupAdvantageEstimation(**SETTINGS)

    def numbered(of: GroupAdvantageEstimation, number: int) -> np.ndarray:
        batch = of(
            rl_module=None,
            batch={},
            episodes=sequence[number],
            shared_data={"group_number": number},
        )
        return np.concatenate([np.concatenate(x) for x in batch[Columns.ADVANTAGES].values()])

    expected = [numbered(piece, number) for number in range(4)]
    piece.reset_state()
    for number in (0, 0, 1, 2, 2):
        np.testing.assert_array_equal(numbered(piece, number), expected[number])
    restored = GroupAdvantageEstimation(**SETTINGS)
    restored.set_state(pickle.loads(pickle.dumps(piece.get_state())))
    for number in (2, 3):
        np.testing.assert_array_equal(numbered(restored, number), expected[number])


def test_a_module_that_fails_leaves_the_memory_of_all_as_it_was() -> None:
    ones, twos = groups(8, 2, module_id="one"), groups(9, 2, size=3, module_id="two")
    piece = GroupAdvantageEstimation(**SETTINGS)
    run(piece, [*ones[0], *twos[0]])
    state = pickle.dumps(piece.get_state())
    twos[1][0].rewards[2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        run(piece, [*ones[1], *twos[1]])
    assert pickle.dumps(piece.get_state()) == state


def test_what_is_remembered_of_a_module_can_be_forgotten() -> None:
    ones, twos = groups(10, 2, module_id="one"), groups(11, 2, size=3, module_id="two")
    piece = GroupAdvantageEstimation(**SETTINGS)
    run(piece, [*ones[0], *twos[0]])
    piece.forget("one")
    advantages = run(piece, [*ones[1], *twos[1]])
    length = sum(map(len, ones[1]))
    np.testing.assert_array_equal(advantages[:length], by_hand([ones[1]])[0])
    np.testing.assert_array_equal(advantages[length:], by_hand(twos)[1])
