"""Episodes come from env runners as they were sampled there, bit for bit."""

from __future__ import annotations

import pickle
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray import cloudpickle
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner import AddInfosFromEpisodesToTrainBatch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.tune import register_env

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.advantages import GroupAdvantageEstimation
from rllib_gpg.learning.infos import reads_infos
from rllib_gpg.learning.pipeline import _make_writable
from rllib_gpg.sampling import GroupEnvRunner, MultiAgentGroupEnvRunner
from rllib_gpg.sampling.group import cut_into_shares
from rllib_gpg.sampling.messages import ShareResult, Weights
from rllib_gpg.sampling.packing import Episodes, PackedEpisodes, pack
from tests.envs import ComingAndGoing, DictIdentity, NativeVector, ShortOrLong
from tests.helpers import LinearPolicy, built, fingerprint, sample_group, small_config

LSTM = {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4}


class Images(ShortOrLong):
    """Frames of 12 kB: the 6 of a short episode are more than what travels with others."""

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__(config)
        self.observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self._frame(), {"name": np.array([self.name, None], object)}

    def step(self, action: int) -> Any:
        _, *rest = super().step(action)
        return self._frame(), *rest

    def _frame(self) -> np.ndarray:
        return np.full(self.observation_space.shape, self.t % 256, np.uint8)


class Notes(RLlibCallback):
    """Keeps objects of all kinds with an episode, one array twice."""

    def on_episode_end(self, *, episode: Any, **kwargs: Any) -> None:
        array = np.arange(5.0)
        notes = {
            "array": array,
            "again": array,
            "empty": np.zeros((0, 3)),
            "number": np.float32(0.1),
            "scalar": np.array(7),
            "objects": np.array([{"a": 1}, None], object),
            "columns first": np.asfortranarray(np.arange(6).reshape(2, 3)),
            "strided": np.arange(10)[::3],
            "record": np.array([(1, 0.5)], [("n", np.int16), ("x", np.float64)]),
            "function": lambda: 3,
        }
        episode.custom_data.update(notes)


def multi_agent() -> GPGConfig:
    config = small_config(ComingAndGoing)
    return config.multi_agent(policies={"p"}, policy_mapping_fn=lambda *args, **kwargs: "p")


def native() -> GPGConfig:
    # Each time: Ray forgets it when a test before shuts Ray down.
    register_env("native", lambda context: NativeVector(context["num_envs"]))
    return small_config("native").env_runners(gym_env_vectorize_mode="vector_entry_point")


CONFIGS = {
    "columns": lambda: small_config(ShortOrLong).callbacks(Notes),
    "steps": lambda: small_config(ShortOrLong).env_runners(episodes_to_numpy=False),
    "infos": native,
    "recurrent": lambda: small_config(ShortOrLong).rl_module(model_config=LSTM),
    "dict observations": lambda: small_config(DictIdentity).rl_module(
        rl_module_spec=RLModuleSpec(module_class=LinearPolicy)
    ),
    "images": lambda: small_config(Images).rl_module(
        model_config={"conv_filters": [[4, 16, 16]], "fcnet_hiddens": [8]}
    ),
    "rollouts": lambda: small_config(ShortOrLong).env_runners(
        batch_mode="truncate_episodes", rollout_fragment_length=30, num_envs_per_env_runner=8
    ),
    "several agents": multi_agent,
}


def sampled(config: GPGConfig) -> list[Any]:
    """One share, from an env runner of this process."""
    config.validate()
    kind = MultiAgentGroupEnvRunner if config.is_multi_agent else GroupEnvRunner
    runner = kind(config=config, worker_index=0)
    weights = Weights(1, runner.get_state(components="rl_module"))
    (share, *_) = cut_into_shares(config, 1, 0)
    result = runner.sample_share(share, weights)
    assert isinstance(result, ShareResult), result.traceback
    return result.episodes


def sent(packed: PackedEpisodes) -> PackedEpisodes:
    """As Ray sends it: arrays beside the rest, and read-only."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = cloudpickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(pickled, buffers=[bytes(buffer.raw()) for buffer in buffers])


def contents(thing: Any) -> Any:
    """All that an episode consists of, in a form that can be compared."""
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        order = thing.flags.f_contiguous, thing.flags.c_contiguous
        return str(thing.dtype), thing.shape, order, thing.tobytes()
    if isinstance(thing, np.ndarray | list | tuple):
        return type(thing).__name__, [contents(item) for item in thing]
    if isinstance(thing, dict):
        return {key: contents(value) for key, value in thing.items()}
    if isinstance(thing, SingleAgentEpisode | MultiAgentEpisode):
        slots = type(thing).__mro__[-2].__slots__
        return type(thing), {name: contents(getattr(thing, name)) for name in slots}
    if isinstance(thing, InfiniteLookbackBuffer):
        return type(thing), contents(vars(thing))
    return thing() if callable(thing) and thing.__name__ == "<lambda>" else thing


@pytest.mark.parametrize("name", CONFIGS)
def test_episodes_come_as_they_were(name: str) -> None:
    episodes = sampled(CONFIGS[name]())
    for episode in episodes:
        if isinstance(episode, MultiAgentEpisode):
            # A function, of which every process has its own.
            episode.agent_to_module_mapping_fn = None
    expected = contents(pickle.loads(cloudpickle.dumps(episodes)))
    packed = sent(pack(episodes, infos=True))
    group = Episodes([packed])
    assert len(group) == len(episodes) == len(packed.lengths)
    assert group.ids == packed.ids == [episode.id_ for episode in episodes]
    assert packed.lengths == [len(episode) for episode in episodes]
    assert contents(list(group)) == expected
    # They are written to, by connectors.
    _make_writable(list(group))
    assert contents(list(group)) == expected


def test_what_is_one_array_stays_one() -> None:
    (episode, *_) = Episodes([sent(pack(sampled(CONFIGS["columns"]()), infos=True))])
    assert episode.custom_data["array"] is episode.custom_data["again"]


def test_a_share_is_a_few_arrays_whatever_the_number_of_episodes() -> None:
    episodes = sampled(small_config(ShortOrLong, group_size=12))
    assert len(pack(episodes, infos=True).columns) == len(pack(episodes[:1], infos=True).columns)
    assert not pack(episodes, infos=True).large


def test_frames_are_handed_on_without_a_copy() -> None:
    packed = sent(pack(sampled(CONFIGS["images"]()), infos=True))
    for episode, frames in zip(Episodes([packed]), packed.large, strict=True):
        assert episode.observations.data is frames
        assert not frames.flags.writeable


def test_a_group_travels_packed_unless_somebody_has_looked() -> None:
    group = Episodes([sent(pack(sampled(CONFIGS["columns"]()), infos=True)) for _ in range(2)])
    before = len(cloudpickle.dumps(group))
    again = pickle.loads(cloudpickle.dumps(group))
    assert fingerprint(again) == fingerprint(group)
    assert group[0] is group[0]
    assert group[1:3] == [group[1], group[2]]
    group[0].set_rewards(new_data=np.full(len(group[0]), 7.0, np.float32))
    changed = pickle.loads(cloudpickle.dumps(group))
    assert fingerprint(changed) == fingerprint(group) != fingerprint(again)
    assert before < len(cloudpickle.dumps(group))


# Infos.


def test_infos_that_nobody_reads_stay_behind() -> None:
    episodes = sampled(CONFIGS["infos"]())
    (episode, *_) = Episodes([sent(pack(episodes, infos=False))])
    assert fingerprint([episode]) == fingerprint(episodes[:1])
    episode.validate()
    assert len(episode.infos) == len(episodes[0].infos)
    assert "'t'" not in repr(episode.infos)
    with pytest.raises(RuntimeError, match="reads_infos"):
        episode.get_infos()
    with pytest.raises(RuntimeError, match="reads_infos"):
        episode.get_infos(-1)


class Piece(ConnectorV2):
    """Somebody's own piece."""

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        return batch


class SaysItReadsNone(Piece):
    reads_infos = False


class SaysNothing(SaysItReadsNone):
    """What another class says isn't said of it."""


class OnesOwn(GPG):
    """An algorithm of one's own, which may look at the group."""


def by(piece: Any) -> Any:
    return lambda config: config.learners(learner_connector=lambda *spaces: piece)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda config: config, False),
        (lambda config: config.callbacks(Notes), False),
        (lambda config: config.training(binning=lambda observations, t: t), False),
        (lambda config: config.training(ratio_level="trajectory", num_minibatches=1), False),
        (by(SaysItReadsNone()), False),
        (by(Piece()), True),
        (by([SaysItReadsNone(), SaysNothing()]), True),
        (by(AddInfosFromEpisodesToTrainBatch()), True),
        (lambda config: config.offline_data(output="/tmp/never", output_write_episodes=True), True),
        (
            lambda config: config.offline_data(output="/tmp/never", output_write_episodes=False),
            False,
        ),
    ],
)
def test_who_reads_infos_is_asked(change: Any, expected: bool) -> None:
    with built(change(small_config(ShortOrLong))) as algo:
        assert reads_infos(algo) == expected


@pytest.mark.usefixtures("ray_session")
def test_an_algorithm_of_ones_own_and_pieces_that_come_later_are_given_infos() -> None:
    with built(small_config(ShortOrLong)) as algo:
        assert not reads_infos(algo)
        algo.learner_group.foreach_learner(
            lambda learner: learner._learner_connector.append(GroupAdvantageEstimation(gamma=0.9))
        )
        assert not reads_infos(algo)
        algo.learner_group.foreach_learner(
            lambda learner: learner._learner_connector.append(Piece())
        )
        assert reads_infos(algo)
    config = small_config(ShortOrLong)
    config.algo_class = OnesOwn
    with built(config) as algo:
        assert reads_infos(algo)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("piece", [Piece(), pytest.param(None, marks=pytest.mark.slow)])
def test_remote_env_runners_send_infos_to_who_reads_them(piece: Any) -> None:
    infos = []
    for number in (0, 1):
        config = CONFIGS["infos"]().env_runners(num_env_runners=number, episodes_per_share=4)
        if piece is not None:
            by(piece)(config)
        with built(config) as algo:
            group = sample_group(algo)
            if piece is None and number:
                with pytest.raises(RuntimeError, match="reads_infos"):
                    group[0].get_infos()
                algo.train()
                return
            infos.append([episode.get_infos() for episode in group])
    assert infos[0] == infos[1]


# Groups and what is logged of them.


# Not "ema": an env runner's goes on from share to share, so that it depends on who samples what.
REDUCTIONS = ("sum", "mean", "min", "max", "lifetime_sum", "item", "item_series", "percentiles")


class Counts(RLlibCallback):
    """Logs by each way of reducing there is, what is different in each episode."""

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        value = (float(episode.get_return()) + len(episode)) / 3.0
        for reduce in REDUCTIONS:
            kwargs = {"window": 100} if reduce in ("item_series", "percentiles") else {}
            metrics_logger.log_value(("mine", reduce), value, reduce=reduce, **kwargs)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("several", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_groups_and_metrics_are_those_of_one_process(several: bool) -> None:
    """To the last digit; in one process nothing is packed."""
    seen = []
    for number in (0, 2):
        config = multi_agent() if several else small_config(ShortOrLong)
        config.callbacks(Counts).env_runners(num_env_runners=number, episodes_per_share=2)
        with built(config) as algo:
            groups = [contents(list(sample_group(algo))) for _ in range(2)]
            seen.append((without_ids_and_times(groups), told(algo.metrics.peek("env_runners"))))
    (alone, logged_alone), (remote, logged) = seen
    assert logged == logged_alone
    assert set(logged["mine"]) == {*REDUCTIONS}
    assert remote == alone


def without_ids_and_times(thing: Any) -> Any:
    if isinstance(thing, dict):
        apart = {"id_", "multi_agent_episode_id", "_start_time", "_last_step_time"}
        apart |= {"infos", "_last_added_infos", "agent_to_module_mapping_fn"}
        return {k: without_ids_and_times(v) for k, v in thing.items() if k not in apart}
    if isinstance(thing, list | tuple):
        return [without_ids_and_times(item) for item in thing]
    return thing


def told(metrics: dict[str, Any]) -> dict[str, Any]:
    """What is logged, but for times, and for averages of RLlib that go on from share to share."""
    return {
        name: told(value) if isinstance(value, dict) else value
        for name, value in metrics.items()
        if not re.search("timer|throughput|duration|^sample$|^time_|sum_episodes_length", str(name))
    }
