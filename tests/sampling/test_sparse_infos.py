"""Infos that nobody looks at aren't made; for those who look they are RLlib's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from rllib_gpg.sampling.rollout.sparse_infos import SparseInfos

LIST = [{}, {"lives": 3}, {}, {}]


def sparse() -> SparseInfos:
    return SparseInfos({1: {"lives": 3}}, 4)


@pytest.mark.parametrize("indices", [None, 1, -1, [0, 1], slice(1, 3), slice(-2, None)], ids=str)
def test_they_are_the_list_of_all(indices: Any) -> None:
    assert sparse().get(indices) == InfiniteLookbackBuffer(LIST).get(indices)
    assert len(sparse()) == 4
    assert sparse() == InfiniteLookbackBuffer(LIST)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_they_can_be_copied_and_sent(again: Any) -> None:
    assert again(sparse()).get() == LIST


def test_what_is_written_into_one_stays_there_alone() -> None:
    infos = sparse()
    infos.get(2)["seen"] = True
    assert infos.get() == [*LIST[:2], {"seen": True}, {}]
    infos.append({"lives": 2})
    assert len(infos) == 5
    assert len(pickle.loads(pickle.dumps(infos))) == 5


def test_empty_ones_are_not_sent() -> None:
    assert len(pickle.dumps(SparseInfos({}, 10_000))) < 1_000


def test_episodes_go_to_a_state_and_back_with_them() -> None:
    episode = SingleAgentEpisode(
        observations=[0, 1, 2, 3], actions=[0, 0, 0], rewards=[1.0, 1.0, 1.0], len_lookback_buffer=0
    )
    episode.infos = sparse()
    episode.validate()
    again = SingleAgentEpisode.from_state(episode.get_state())
    assert list(again.infos.data) == LIST
    assert episode[1:3].get_infos() == LIST[1:]
