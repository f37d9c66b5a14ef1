"""What `RidgeBaseline` looks at: observations of all kinds, features of a user, wild numbers."""

from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rllib_gpg.advantages import Baseline, RidgeBaseline, Valuation
from rllib_gpg.advantages.estimator import estimate_group
from tests.advantages.ridge_groups import estimates, flat, random_groups


def test_affine_changes_of_observations_change_nothing():
    groups = random_groups(12, 5)
    scale, shift = np.array([1000.0, 1e-3]), np.array([-5e4, 7.0])
    changed = [([scale * o + shift for o in os], rs) for os, rs in groups]
    for one, other in zip(
        estimates(groups, lambda_=0.9), estimates(changed, lambda_=0.9), strict=True
    ):
        assert_allclose(flat(other), flat(one), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: np.full_like(o, 0.1),
        lambda o: o * [0.0, 1.0],
        lambda o: o * 1e200,
        lambda o: o + 1e300 * (np.arange(len(o)) == 3)[:, None],
        lambda o: o.astype(np.float32) * np.float32(1e38),
        lambda o: np.repeat(np.arange(len(o))[:, None], 2, axis=1),  # known from the timestep
    ],
    ids=["constant", "half-constant", "huge", "explodes", "float32", "time"],
)
def test_odd_observations_stay_finite(spoil):
    groups = random_groups(13, 6)
    spoilt = groups[:2] + [([spoil(o) for o in os], rs) for os, rs in groups[2:4]] + groups[4:]
    for sequence in (spoilt, [([spoil(o) for o in os], rs) for os, rs in groups]):
        with np.errstate(all="raise", under="ignore"):
            for estimate in estimates(sequence, lambda_=0.9, baseline="ridge"):
                assert np.isfinite(flat(estimate)).all()
                assert np.abs(flat(estimate)).max() < 100.0


def test_one_wild_observation_in_the_first_group_blinds_nobody():
    groups = random_groups(20, 12, lengths=[30] * 8)
    plain = estimates(groups, gamma=0.0)
    groups[0][0][2] = groups[0][0][2] + 1e8 * (np.arange(30) == 3)[:, None]
    spoilt = estimates(groups, gamma=0.0)
    for one, other in zip(plain[4:], spoilt[4:], strict=True):
        assert one.baseline_explained_variance > 0.3
        assert abs(other.baseline_explained_variance - one.baseline_explained_variance) < 0.05


def test_it_follows_observations_that_move_away():
    """A policy that learns to run sees other velocities than one that falls."""
    far = [([o + 30.0 for o in os], rs) for os, rs in random_groups(22, 60, lengths=[30] * 8)]
    found = estimates(random_groups(21, 60, lengths=[30] * 8) + far, gamma=0.0)
    before = np.mean([e.baseline_explained_variance for e in found[50:60]])
    after = np.mean([e.baseline_explained_variance for e in found[-10:]])
    assert after > before - 0.05


def test_nested_observations_are_flattened():
    groups = random_groups(17, 3)
    nested = [([{"a": o[:, 0], "b": (o[:, 1:],)} for o in os], rs) for os, rs in groups]
    for one, other in zip(estimates(groups), estimates(nested), strict=True):
        assert_array_equal(flat(one), flat(other))


def test_integers_and_small_images_are_numbers():
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 255, (9, 5, 5, 3), dtype=np.uint8)) for _ in range(4)]
    for _ in range(3):
        estimates([(images, [rng.normal(size=9) for _ in images])] * 3)


@pytest.mark.parametrize(
    "observations",
    [np.zeros((4, 64, 64, 3), np.uint8), np.array(["a", "b", "c", "d"]), np.zeros(4, object)],
    ids=["images", "words", "objects"],
)
def test_images_and_words_are_refused_with_the_way_out(observations):
    with pytest.raises(ValueError, match=r"at most 1024 numbers per step.*features=f"):
        estimates([([observations], [np.ones(4)])])

    def features(observations, timesteps):
        return np.column_stack([timesteps % 2, np.ones(len(timesteps))])

    ridge = RidgeBaseline(features=features)
    assert len(estimates([([observations], [np.ones(4)])] * 2, baseline=ridge)) == 2


def test_features_stand_in_place_of_the_observations():
    groups = random_groups(18, 4)

    def first_only(observations, timesteps):
        assert timesteps[0] == 0
        return observations[:, :1]

    cut = [([o[:, :1] for o in os], rs) for os, rs in groups]
    for one, other in zip(
        estimates(groups, baseline=RidgeBaseline(features=first_only)),
        estimates(cut, baseline=RidgeBaseline()),
        strict=True,
    ):
        assert_array_equal(flat(one), flat(other))


def test_without_a_decay_it_has_no_weights_and_a_lambda_is_refused():
    assert len(estimates(random_groups(0, 2), baseline=RidgeBaseline(decay=0.0))) == 2
    with pytest.raises(ValueError, match=r"don't see the state.*with a decay above 0"):
        estimates(random_groups(0, 1), baseline=RidgeBaseline(decay=0.0), lambda_=0.95)


@pytest.mark.parametrize("empty", [{}, np.zeros((12, 0))], ids=["dict", "array"])
def test_observations_without_a_number_are_refused_or_taken(empty):
    """An empty box has as many rows as there are steps; an empty dict has none."""
    groups = [([empty] * 2, [np.ones(12)] * 2)] * 2
    if isinstance(empty, dict):
        with pytest.raises(ValueError, match="no numbers to look at"):
            estimates(groups)
    else:
        assert len(estimates(groups)) == 2


def test_what_is_remembered_of_another_function_of_the_same_width_counts_for_nothing():
    def first(observations, timesteps):
        return observations[:, :1]

    def second(observations, timesteps):
        return observations[:, 1:2]

    groups = random_groups(14, 4)
    options = {"gamma": 0.9, "binning": "universal"}
    memory = estimates(groups[:3], baseline=RidgeBaseline(features=first), **options)[-1].memory
    after, anew = (
        estimate_group(
            *groups[3], memory=before, baseline=RidgeBaseline(features=second), **options
        )
        for before in (memory, None)
    )
    assert_array_equal(flat(after), flat(anew))


def test_features_of_several_widths_are_refused():
    def features(observations, timesteps):
        return observations[:, : 1 + len(timesteps) % 2]

    with pytest.raises(ValueError, match=r"as many numbers in all trajectories, got \[1, 2\]"):
        estimates(random_groups(0, 1), baseline=RidgeBaseline(features=features))


def test_features_that_are_not_one_row_per_step_are_refused():
    ridge = RidgeBaseline(features=lambda observations, timesteps: observations[1:])
    with pytest.raises(ValueError, match=r"one row per step: 12 rows, got .* shape \(11, 2\)"):
        estimates(random_groups(0, 1), baseline=ridge)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_features": -1},
        {"num_features": True},
        {"decay": 1.0},
        {"decay": -0.1},
        {"decay": float("nan")},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RidgeBaseline(**settings)


@pytest.mark.parametrize("size", [1e3, 1e5, 1e7])
def test_one_wild_observation_is_not_all_that_is_seen(size):
    groups = random_groups(0, 20, lengths=[20] * 8)
    plain = estimates(groups, baseline="ridge", gamma=0.0)
    groups[3][0][0][5] *= size
    groups[3][0][0][5] += size
    found = estimates(groups, baseline="ridge", gamma=0.0)
    # The wild one is not explained itself.
    before, after = (abs(group[3].advantages[0][5]) for group in (plain, found))
    assert before < 0.5 < 1.0 < after
    assert found[3].baseline_explained_variance < plain[3].baseline_explained_variance - 0.01
    assert found[8].baseline_explained_variance > 0.8


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda o, t: np.where(t == 3, np.nan, o[:, 0]), r"finite.*at step 3"),
        (lambda o, t: np.where(t == 2, -np.inf, o[:, 0]), r"finite.*at step 2"),
        (lambda o, t: o[:2], r"12 rows"),
        (lambda o, t: None, r"one row per step"),
        (lambda o, t: 1.0, r"one row per step"),
        (lambda o, t: o.missing, r"missing"),
    ],
)
def test_bad_features_are_refused_with_the_trajectory(bad, message):
    ((observations, rewards),) = random_groups(0, 1)
    calls = []

    def features(observed, timesteps):
        calls.append(len(timesteps))
        return bad(observed, timesteps) if len(calls) == 3 else observed

    with pytest.raises((ValueError, AttributeError), match=message) as error:
        estimates([(observations, rewards)], baseline=RidgeBaseline(features=features))
    assert "features of trajectory 2, which were given an array of shape (12, 2)" in str(
        error.value.__notes__
    )


def test_values_that_are_not_finite_are_refused_with_the_trajectory():
    class Bad(Baseline):
        values_of: ClassVar[Any] = None

        def values(self, group, returns, memory):
            return Valuation(type(self).values_of(returns))

    (group,) = random_groups(0, 1)
    Bad.values_of = lambda returns: np.where(np.arange(len(returns)) == 14, np.nan, returns)
    with pytest.raises(ValueError, match=r"trajectory 1: a value is not finite: nan"):
        estimates([group], baseline=Bad())
    Bad.values_of = lambda returns: returns[:-1]
    with pytest.raises(ValueError, match=r"shape \(40,\), got \(39,\)"):
        estimates([group], baseline=Bad())
