import copy
import pickle
import warnings

import numpy as np
import pytest

from rllib_gpg.advantages.binning import (
    Binning,
    SpatialBinning,
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
    resolve_binning,
)

BUILT_IN = [
    TimeBinning(),
    UniversalBinning(),
    StateBinning(),
    SpatialBinning(0.5),
    SpatialTimeBinning([0.5, 2.0, 1.0]),
]


def keys(binning, observations):
    """The keys as a list of tuples, one per step."""
    observations = np.asarray(observations)
    found = binning(observations, np.arange(len(observations)))
    assert found.dtype.kind in "iu"
    return [tuple(np.atleast_1d(key).tolist()) for key in found]


def pattern(binning, observations):
    """Equal keys as equal small numbers, in order of appearance: keys without their values."""
    seen = {}
    return [seen.setdefault(key, len(seen)) for key in keys(binning, observations)]


# -- keys ------------------------------------------------------------------------------------------


def test_time_keys_are_the_timesteps():
    assert keys(TimeBinning(), [7.0, 7.0, 7.0]) == [(0,), (1,), (2,)]


def test_universal_keys_are_all_equal():
    assert pattern(UniversalBinning(), [1.0, 2.0, 3.0]) == [0, 0, 0]


@pytest.mark.parametrize("binning", [TimeBinning(), UniversalBinning()])
def test_time_and_universal_take_observations_of_any_kind(binning):
    nested = {"image": np.zeros((3, 4)), "words": np.array(["a", "b", "c"])}
    assert len(binning(nested, np.arange(3))) == 3


def test_spatial_keys_worked_by_hand():
    # epsilon 0.5: 0.2/0.5 = 0.4 -> 0;  0.3/0.5 = 0.6 -> 1;  -0.3 -> -1;  1.0 -> 2
    assert keys(SpatialBinning(0.5), [[0.2, 0.3], [-0.3, 1.0]]) == [(0, 1), (-1, 2)]


def test_spatial_time_keys_append_the_timestep():
    assert keys(SpatialTimeBinning(0.5), [[0.2, 0.3], [0.2, 0.3]]) == [(0, 1, 0), (0, 1, 1)]


def test_spatial_epsilon_per_dimension():
    # 3/1 -> 3 and 3/2 = 1.5 -> 2 (ties go to even numbers)
    assert keys(SpatialBinning([1.0, 2.0]), [[3.0, 3.0]]) == [(3, 2)]


def test_spatial_flattens_observations():
    assert keys(SpatialBinning((1.0, 10.0, 100.0, 1000.0)), np.full((1, 2, 2), 1000.0)) == [
        (1000, 100, 10, 1)
    ]


def test_spatial_takes_scalars_integers_and_bools():
    assert keys(SpatialBinning(2), [0, 3, 8]) == [(0,), (2,), (4,)]
    assert keys(SpatialBinning(1.0), [True, False]) == [(1,), (0,)]


def test_spatial_rounds_float32_observations_in_float64():
    # 0.1 as float32 is 0.100000001..: just above the tie 0.1 / 0.2 = 0.5, which would go to 0.
    assert keys(SpatialBinning(0.2), np.array([0.1], np.float32)) == [(1,)]


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32, np.uint64, np.float16])
def test_state_keys_are_equal_where_states_are(dtype):
    states = np.array([[0, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype)
    assert pattern(StateBinning(), states) == [0, 1, 0, 2]


def test_state_keys_of_a_discrete_space_are_the_states():
    assert keys(StateBinning(), np.array([5, -3, 5], np.int64)) == [(5,), (-3,), (5,)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_state_zero_equals_negative_zero_and_nothing_else(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    assert pattern(StateBinning(), np.array([0.0, -0.0, tiny, -tiny, 0.0], dtype)) == [
        0,
        0,
        1,
        2,
        0,
    ]


def test_state_tells_neighbouring_floats_apart():
    assert pattern(StateBinning(), [1.0, np.nextafter(1.0, 2.0), 1.0]) == [0, 1, 0]


def test_state_packs_image_bytes_exactly_and_small():
    images = np.random.default_rng(0).integers(0, 256, (4, 7, 7, 3), np.uint8)
    images[2] = images[0]
    images[3] = images[0]
    images[3, 6, 6, 2] ^= 1  # the last of 147 bytes
    found = StateBinning()(images, np.arange(4))
    assert found.shape == (4, 19)  # ceil(147 / 8)
    assert pattern(StateBinning(), images) == [0, 1, 0, 2]


def test_state_packs_without_a_copy_where_bytes_fill_words():
    images = np.zeros((3, 84, 84, 4), np.uint8)
    assert np.shares_memory(StateBinning()(images, np.arange(3)), images)


def test_state_takes_arrays_that_are_not_contiguous():
    states = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    assert pattern(StateBinning(), states) == [0, 1, 2]


@pytest.mark.parametrize("binning", BUILT_IN, ids=str)
def test_keys_do_not_depend_on_what_comes_after(binning):
    rng = np.random.default_rng(1)
    observations = rng.standard_normal((40, 3)).astype(np.float32)
    before = keys(binning, observations)
    for t in range(1, 40):
        changed = observations.copy()
        changed[t:] = rng.standard_normal((40 - t, 3))
        assert keys(binning, changed)[:t] == before[:t]  # another future
        assert keys(binning, observations[:t]) == before[:t]  # no future


@pytest.mark.parametrize("binning", BUILT_IN, ids=str)
def test_observations_are_not_written_to(binning):
    observations = np.array([[-0.0, 1.0, 2.0]])
    keys(binning, observations)
    assert np.signbit(observations[0, 0])
    np.testing.assert_array_equal(observations, [[0.0, 1.0, 2.0]])


# -- as settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("binning", BUILT_IN, ids=str)
def test_copies_are_equal_and_hash_alike(binning):
    for twin in (pickle.loads(pickle.dumps(binning)), copy.deepcopy(binning)):
        assert twin == binning
        assert hash(twin) == hash(binning)
        assert keys(twin, np.ones((2, 3))) == keys(binning, np.ones((2, 3)))


def test_binnings_are_unequal_where_they_differ():
    different = [*BUILT_IN, SpatialBinning(0.2), SpatialTimeBinning(0.5), SpatialTimeBinning([0.5])]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("binning", "name"),
    [
        (TimeBinning(), "TimeBinning()"),
        (SpatialTimeBinning(epsilon=0.2), "SpatialTimeBinning(epsilon=0.2)"),
        (SpatialBinning(1), "SpatialBinning(epsilon=1.0)"),
        (SpatialBinning(np.float64(0.5)), "SpatialBinning(epsilon=0.5)"),
        (SpatialBinning(np.array([0.5, 1.0])), "SpatialBinning(epsilon=(0.5, 1.0))"),
        (SpatialBinning([0.5, 1]), "SpatialBinning(epsilon=(0.5, 1.0))"),
    ],
)
def test_names_are_short_enough_for_trial_names(binning, name):
    assert repr(binning) == str(binning) == name


@pytest.mark.parametrize("binning", BUILT_IN, ids=str)
def test_binnings_cannot_be_changed(binning):
    with pytest.raises(AttributeError):
        binning.epsilon = 3.0


@pytest.mark.parametrize("cls", [SpatialBinning, SpatialTimeBinning])
@pytest.mark.parametrize(
    "epsilon",
    [0, -1.0, np.nan, np.inf, [0.5, 0.0], [], [[0.5]], None, "0.5", True],
    ids=str,
)
def test_epsilon_that_is_no_grid_is_refused(cls, epsilon):
    with pytest.raises(ValueError, match=r"epsilon must be a number > 0 and finite"):
        cls(epsilon)


@pytest.mark.parametrize("binning", [TimeBinning(), StateBinning(), len, lambda o, t: t])
def test_resolve_returns_objects_and_functions_as_they_are(binning):
    assert resolve_binning(binning) is binning


def test_resolve_knows_the_names():
    assert resolve_binning("time") == TimeBinning()
    assert resolve_binning("universal") == UniversalBinning()
    assert resolve_binning("state") == StateBinning()


@pytest.mark.parametrize(("wrong", "nearest"), [("tine", "time"), ("States", "state"), ("?", "")])
def test_resolve_refuses_unknown_names_and_lists_the_known(wrong, nearest):
    with pytest.raises(ValueError, match=rf"'time', 'universal', 'state'.*nearest is '{nearest}"):
        resolve_binning(wrong)


@pytest.mark.parametrize(
    ("name", "cls"), [("spatial", "SpatialBinning"), ("spatial-time", "SpatialTimeBinning")]
)
def test_resolve_asks_for_epsilon(name, cls):
    with pytest.raises(ValueError, match=rf"needs an epsilon: give {cls}\(epsilon=\.\.\.\)"):
        resolve_binning(name)


@pytest.mark.parametrize("wrong", [None, 3, ["time"], TimeBinning])
def test_resolve_refuses_what_cannot_be_called_with_a_trajectory(wrong):
    with pytest.raises(TypeError, match="binning must be a name, an object"):
        resolve_binning(wrong)


# -- observations that do not fit ------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e30, -1e30, np.nan, np.inf])
def test_spatial_names_the_step_value_and_epsilon_of_a_key_beyond_int64(value):
    observations = np.zeros((4, 2))
    observations[2:, 1] = value
    with pytest.raises(ValueError, match=r"epsilon=0.1\).*step 2.*larger epsilon") as error:
        SpatialBinning(0.1)(observations, np.arange(4))
    assert str(value) in str(error.value)


def test_spatial_keys_up_to_the_limit_of_int64_are_exact():
    edge = np.nextafter(2.0**63, 0.0)
    assert keys(SpatialBinning(1.0), [edge, -edge]) == [(int(edge),), (-int(edge),)]
    with pytest.raises(ValueError, match="larger epsilon"):
        keys(SpatialBinning(1.0), [2.0**63])


def test_spatial_division_that_overflows_is_refused_without_a_warning():
    with warnings.catch_warnings(), pytest.raises(ValueError, match="larger epsilon"):
        warnings.simplefilter("error")
        keys(SpatialBinning(1e-300), [1e300])


@pytest.mark.parametrize("binning", [StateBinning(), SpatialBinning(1.0), SpatialTimeBinning(1.0)])
@pytest.mark.parametrize(
    "observations",
    [
        np.array(["a", "b"]),
        np.array([{}, {}]),
        {"x": np.zeros(2)},
        (np.zeros(2), np.zeros(2)),
        np.zeros(2, complex),
        np.zeros(2, np.longdouble),
    ],
    ids=["words", "objects", "dict", "tuple", "complex", "longdouble"],
)
def test_observations_that_are_not_one_numeric_array_are_refused(binning, observations):
    with pytest.raises(TypeError, match="needs one array of numbers"):
        binning(observations, np.arange(2))


@pytest.mark.parametrize("cls", [SpatialBinning, SpatialTimeBinning])
def test_epsilon_of_another_length_names_both(cls):
    with pytest.raises(ValueError, match=r"epsilon has 2 entries.*3 dimensions"):
        cls([0.5, 0.5])(np.zeros((4, 3)), np.arange(4))


# -- check_space -----------------------------------------------------------------------------------

FLOAT, BYTE = np.dtype(np.float32), np.dtype(np.uint8)


@pytest.mark.parametrize(
    "binning",
    [Binning(), TimeBinning(), UniversalBinning()],
    ids=lambda binning: type(binning).__name__,
)
def test_check_space_of_the_rest_takes_everything_in_silence(binning, recwarn):
    binning.check_space(shape=None, dtype=None)
    binning.check_space(shape=(8,), dtype=FLOAT)
    assert not recwarn


def test_check_space_warns_of_state_bins_on_floats(recwarn):
    StateBinning().check_space(shape=(84, 84, 4), dtype=BYTE)
    StateBinning().check_space(shape=(), dtype=np.dtype(np.int64))
    assert not recwarn
    with pytest.warns(UserWarning, match=r"bin of its own \(a singleton\): no signal"):
        StateBinning().check_space(shape=(4,), dtype=FLOAT)


def test_check_space_compares_the_length_of_epsilon(recwarn):
    SpatialBinning(0.5).check_space(shape=(8,), dtype=FLOAT)
    SpatialBinning([0.5] * 8).check_space(shape=(8,), dtype=FLOAT)
    SpatialTimeBinning([0.5] * 8).check_space(shape=(2, 4), dtype=FLOAT)
    SpatialTimeBinning([0.5]).check_space(shape=(), dtype=BYTE)
    assert not recwarn
    for cls in (SpatialBinning, SpatialTimeBinning):
        with pytest.raises(ValueError, match=r"epsilon has 8 entries.*6 dimensions"):
            cls([0.5] * 8).check_space(shape=(2, 3), dtype=FLOAT)


@pytest.mark.parametrize("binning", [StateBinning(), SpatialBinning(1.0), SpatialTimeBinning(1.0)])
@pytest.mark.parametrize(
    ("shape", "dtype"), [(None, None), ((3,), np.dtype("U8")), ((3,), np.dtype(object))]
)
def test_check_space_refuses_what_is_not_one_numeric_array(binning, shape, dtype):
    with pytest.raises(ValueError, match="needs observations that are one array of numbers"):
        binning.check_space(shape=shape, dtype=dtype)
