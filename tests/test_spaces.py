"""Observations and actions of every kind: they train, and bins of them are what they should be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tree
from gymnasium import spaces
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.advantages import (
    SpatialBinning,
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.validation import check_spaces
from tests.advantages.naive import naive_advantages
from tests.helpers import (
    SMALL_NET,
    LinearPolicy,
    built,
    module_results,
    run_pipeline,
    same,
    sample_group,
    small_config,
    snapshot,
)

pytestmark = [
    pytest.mark.usefixtures("ray_session"),
    # Four cards repeat exactly, which the binning can't know.
    pytest.mark.filterwarnings("ignore:StateBinning.* observations"),
]

Space = gym.Space[Any]


class Cards(gym.Env):
    """Shows one of four observations at each step of 2 to 5; takes any valid action.

    Its infos hold the observation, as the env has it, whatever connectors make of it.
    """

    def __init__(self, config: dict[str, Any]):
        self.observation_space = copy.deepcopy(config["observation_space"])
        self.action_space = copy.deepcopy(config["action_space"])
        self.observation_space.seed(0)
        self._cards = [self.observation_space.sample() for _ in range(4)]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._steps_left = int(self.np_random.integers(2, 6))
        return self._show()

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self._steps_left -= 1
        card, info = self._show()
        return card, self.np_random.normal(), self._steps_left == 0, False, info

    def _show(self) -> Any:
        card = self._cards[self.np_random.integers(4)]
        return card, {"card": card}


VECTOR = spaces.Box(-1.0, 1.0, (3,))
TWO_ACTIONS = spaces.Discrete(2)

# What RLlib has encoders for.
ENCODED: dict[str, Space] = {
    "vector": VECTOR,
    "doubles": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "integers": spaces.Box(0, 9, (3,), np.int64),
    "image": spaces.Box(0, 255, (10, 10, 3), np.uint8),
    "image of floats": spaces.Box(0.0, 1.0, (10, 10, 1)),
}
# What RLlib flattens, or a user's own module takes.
FLATTENED: dict[str, Space] = {
    "number": spaces.Box(-1.0, 1.0, ()),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3)),
    "four axes": spaces.Box(-1.0, 1.0, (2, 1, 2, 2)),
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"z": spaces.Discrete(3), "a": spaces.Box(-1.0, 1.0, (2,))}),
    "tuple": spaces.Tuple(
        [spaces.MultiBinary(2), spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2, 2))})]
    ),
}
OBSERVATIONS = {**ENCODED, **FLATTENED}

ACTIONS: dict[str, Space] = {
    "discrete": spaces.Discrete(3),
    "bounded": spaces.Box(-2.0, 1.0, (2,)),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,)),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1.0, 1.0, (2,))]),
    "dict": spaces.Dict(
        {"turn": spaces.Discrete(3), "push": spaces.Box(-3.0, 1.0, (2,)), "arm": spaces.Discrete(2)}
    ),
}


def config_for(
    observation_space: Space = VECTOR, action_space: Space = TWO_ACTIONS, **training: Any
) -> GPGConfig:
    config = small_config(Cards, **{"num_epochs": 1, "num_minibatches": 2, **training})
    return config.environment(
        env_config={"observation_space": observation_space, "action_space": action_space}
    )


def flattened(config: GPGConfig) -> GPGConfig:
    return config.env_runners(
        env_to_module_connector=lambda env, spaces, device: FlattenObservations()
    )


def config_for_kind(observation: str, *args: Any, **training: Any) -> GPGConfig:
    """RLlib's default module, with its flattening where it has no encoder."""
    config = config_for(OBSERVATIONS[observation], *args, **training)
    return flattened(config) if observation in FLATTENED else config


# Of observations, vectors are sampled in columns and matrices step by step.
BOTH_PATHS = ("vector", "matrix")


def pairs(observations: Iterable[str], others: Iterable[str], *whole: str) -> list[Any]:
    """All of them. Fast ones: each of both once, along a diagonal, and the `whole` observations."""
    observations, others = list(observations), list(others)
    return [
        pytest.param(
            observation,
            other,
            id=f"{observation}-{other}",
            marks=() if observation in whole or row % len(others) == column else pytest.mark.slow,
        )
        for row, observation in enumerate(observations)
        for column, other in enumerate(others)
    ]


# Training.


def assert_trains(config: GPGConfig) -> None:
    with built(config) as algo:
        before = snapshot(algo)
        for _ in range(2):
            results = module_results(algo.train())
            for name in ("policy_loss", "total_loss", "entropy", "mean_kl_loss", "clip_fraction"):
                assert math.isfinite(results[name]), name
        after = snapshot(algo)
        assert not same(before["rl_module"], after["rl_module"])
        for path, leaf in tree.flatten_with_path(after):
            if np.asarray(leaf).dtype.kind == "f":
                assert np.isfinite(leaf).all(), path
        advantages = run_pipeline(algo, sample_group(algo))[Columns.ADVANTAGES].numpy()
        assert np.isfinite(advantages).all()
        assert advantages.std() > 0.1


@pytest.mark.parametrize(("observation", "action"), pairs(OBSERVATIONS, ACTIONS, *BOTH_PATHS))
def test_every_pair_of_spaces_trains(observation: str, action: str) -> None:
    assert_trains(config_for_kind(observation, ACTIONS[action], use_kl_loss=True))


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_recurrent_module_takes_every_kind_of_observation(observation: str) -> None:
    lstm = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 3}
    assert_trains(config_for_kind(observation).rl_module(model_config=lstm))


@pytest.mark.parametrize(
    ("normalize", "clip"), [(True, False), (False, True)], ids=["squashed", "clipped"]
)
@pytest.mark.parametrize("observation", BOTH_PATHS)
def test_bounded_actions_use_the_whole_range_and_stay_in_it(
    observation: str, normalize: bool, clip: bool
) -> None:
    """The env asserts that every action is valid; a standard deviation of 1 reaches both ends."""
    space = spaces.Box(np.array([-0.5, -3.0], np.float32), np.array([0.25, 0.0], np.float32))
    config = config_for_kind(observation, space)
    config.environment(normalize_actions=normalize, clip_actions=clip)
    assert_trains(config)


# Deterministic actions.


@pytest.mark.parametrize(("observation", "action"), pairs(BOTH_PATHS, ACTIONS, "vector"))
def test_evaluation_without_exploration_takes_the_most_probable_actions(
    observation: str, action: str
) -> None:
    config = config_for_kind(observation, ACTIONS[action]).evaluation(
        evaluation_interval=1, evaluation_duration=5, evaluation_config={"explore": False}
    )
    with built(config) as algo:
        assert algo.train()["evaluation"]["env_runners"]["num_episodes"] == 5
        module = algo.get_module()
        for episode in algo.eval_env_runner.sample(num_episodes=5, explore=False):
            inputs = episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)
            expected = most_probable(module.action_space, inputs)
            tree.map_structure(np.testing.assert_array_equal, episode.get_actions(), expected)


def most_probable(space: Space, inputs: np.ndarray) -> Any:
    """By hand, from inputs [T, D]: means and log-stds of a `Box`, logits of all else."""
    if isinstance(space, spaces.Dict):
        # In the order of the keys, sorted.
        values = most_probable(spaces.Tuple([space[key] for key in sorted(space)]), inputs)
        return dict(zip(sorted(space), values, strict=True))
    if isinstance(space, spaces.Tuple):
        ends = np.cumsum([num_inputs(child) for child in space])
        parts = np.split(inputs, ends[:-1], axis=1)
        return tuple(most_probable(child, part) for child, part in zip(space, parts, strict=True))
    if isinstance(space, spaces.MultiDiscrete):
        parts = np.split(inputs, np.cumsum(space.nvec)[:-1], axis=1)
        return np.stack([part.argmax(1) for part in parts], axis=1)
    if isinstance(space, spaces.Box):
        return inputs[:, : space.shape[0]]
    return inputs.argmax(1)


def num_inputs(space: Space) -> int:
    return 2 * space.shape[0] if isinstance(space, spaces.Box) else int(space.n)


# What RLlib itself can't do.


@pytest.mark.parametrize(
    ("action", "model_config", "message"),
    [
        ("bounded", {"free_log_std": True}, "`free_log_std` can't take the sequences of an LSTM"),
        ("tuple", {}, "nested actions for sequences"),
        ("dict", {}, "nested actions for sequences"),
    ],
)
def test_an_lstm_refuses_the_actions_that_rllib_has_none_for(
    action: str, model_config: dict[str, Any], message: str
) -> None:
    config = config_for(action_space=ACTIONS[action])
    config.rl_module(model_config={**SMALL_NET, "use_lstm": True, **model_config})
    with pytest.raises(ValueError, match=message):
        config.build_algo()


# Bins.


KeyFunction = Callable[[np.ndarray, np.ndarray], Any]

# Each binning, and its keys by hand from flat observations [T, D] and timesteps [T].
BINNINGS: dict[str, tuple[Callable[[int], Any], KeyFunction]] = {
    "time": (lambda size: TimeBinning(), lambda flat, t: t),
    "universal": (lambda size: UniversalBinning(), lambda flat, t: 0 * t),
    "state": (lambda size: StateBinning(), lambda flat, t: flat),
    "spatial": (lambda size: SpatialBinning(0.7), lambda flat, t: np.rint(flat / 0.7)),
    "spatial-time": (
        lambda size: SpatialTimeBinning(epsilons(size).tolist()),
        lambda flat, t: np.column_stack([np.rint(flat / epsilons(flat.shape[1])), t]),
    ),
    "custom": (lambda size: coarse_sum, lambda flat, t: coarse_sum(flat, t)),
}


def epsilons(size: int) -> np.ndarray:
    """One per dimension, no two alike."""
    return 0.5 + np.arange(size) / 10


def coarse_sum(observations: Any, timesteps: np.ndarray) -> np.ndarray:
    """A user's binning, which takes any observations."""
    leaves = [np.reshape(leaf, (len(timesteps), -1)) for leaf in tree.flatten(observations)]
    return np.rint(np.concatenate(leaves, axis=1).sum(1) / 2.0).astype(np.int64)


Sampled = tuple[GPG, list[SingleAgentEpisode]]


def sampled(config: GPGConfig) -> Iterator[Sampled]:
    """An algorithm that has trained on one group, so that a normaliser has statistics; the next."""
    with built(config) as algo:
        algo.train()
        yield algo, sample_group(algo)


@pytest.fixture(scope="module")
def normalized(request: pytest.FixtureRequest, ray_session: None) -> Iterator[Sampled]:
    """RLlib's flattening, if any, and the normaliser."""
    config = config_for_kind(request.param)
    yield from sampled(config.rl_module(model_config={**SMALL_NET, "normalize_observations": True}))


@pytest.fixture(scope="module")
def as_they_are(request: pytest.FixtureRequest, ray_session: None) -> Iterator[Sampled]:
    """No connector flattens: the module takes what the env gives."""
    config = config_for(FLATTENED[request.param])
    yield from sampled(config.rl_module(rl_module_spec=RLModuleSpec(module_class=LinearPolicy)))


def assert_bins_by_hand(sampled: Sampled, binning: str, flat: Callable[[Any], np.ndarray]) -> None:
    """Compares with the naive Algorithm 2 on the env's own observations, made flat by `flat`."""
    algo, group = sampled
    cards = [np.stack([flat(info["card"]) for info in e.get_infos()[:-1]]) for e in group]
    make, keys = BINNINGS[binning]
    config = algo.config.copy(copy_frozen=False)
    config.training(binning=make(cards[0].shape[1]), normalize_advantages=False, gamma=0.9)
    check_spaces(config, algo.spaces)
    advantages = run_pipeline(algo, copy.deepcopy(group), config)[Columns.ADVANTAGES]
    expected = naive_advantages(
        [card.astype(np.float64) for card in cards],
        [episode.get_rewards() for episode in group],
        gamma=0.9,
        binning=keys,
    )
    np.testing.assert_allclose(advantages, np.concatenate(expected), atol=1e-5)
    # Not singletons only: a group of zeros would prove nothing.
    assert np.concatenate(expected).std() > 0.1


@pytest.mark.parametrize(
    ("normalized", "binning"), pairs(OBSERVATIONS, BINNINGS, "vector"), indirect=["normalized"]
)
def test_bins_are_those_of_the_flat_observations_before_normalisation(
    normalized: Sampled, binning: str
) -> None:
    """By gymnasium's own flattening, which knows nothing of RLlib's."""
    space = normalized[0].config.env_config["observation_space"]
    assert_bins_by_hand(normalized, binning, lambda card: np.asarray(spaces.flatten(space, card)))


@pytest.mark.parametrize(
    ("as_they_are", "binning"),
    pairs(FLATTENED, BINNINGS, "matrix", "tuple"),
    indirect=["as_they_are"],
)
def test_bins_of_observations_that_no_connector_flattens(
    as_they_are: Sampled, binning: str
) -> None:
    """They are those of the env's own observations, or refused before the first sample."""
    config = as_they_are[0].config.copy(copy_frozen=False)
    is_nested = isinstance(config.env_config["observation_space"], spaces.Dict | spaces.Tuple)
    if is_nested and binning in ("state", "spatial", "spatial-time"):
        config.training(binning=BINNINGS[binning][0](1))
        with pytest.raises(ValueError, match="needs observations that are one array of numbers"):
            config.build_algo()
        return
    assert_bins_by_hand(
        as_they_are,
        binning,
        lambda card: np.concatenate([np.ravel(leaf) for leaf in tree.flatten(card)]),
    )
