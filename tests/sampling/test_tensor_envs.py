"""Vector envs that give and take torch tensors, beside the same ones for NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.tune import register_env

from rllib_gpg import GPGConfig
from tests.envs import TensorVector
from tests.helpers import SMALL_NET, built, fingerprint, same, sample_group, small_config, snapshot

pytestmark = pytest.mark.usefixtures("ray_session")

SPACES = {
    "discrete": gym.spaces.Discrete(2),
    "box": gym.spaces.Box(-0.5, 1.5, (2,), np.float32),
    "multi-discrete": gym.spaces.MultiDiscrete([2, 3]),
}


def config_of(space: str, *, one_hot: bool = False, **settings: Any) -> GPGConfig:
    register_env(
        "tensors",
        lambda context: TensorVector(
            context["num_envs"], action_space=SPACES[space], one_hot=one_hot, **settings
        ),
    )
    config = small_config("tensors", num_epochs=1).env_runners(
        gym_env_vectorize_mode="vector_entry_point"
    )
    if one_hot:
        config.env_runners(env_to_module_connector=lambda *_, **__: FlattenObservations())
    return config


def everything(episodes: list[Any]) -> list[Any]:
    return [
        {
            "actions": np.asarray(episode.get_actions()).tolist(),
            "rewards": np.asarray(episode.get_rewards()).tolist(),
            "observations": np.asarray(episode.get_observations()).tolist(),
            "infos": [dict(info) for info in episode.get_infos()],
            "outputs": {
                name: (str(column.data.dtype), column.data.tolist())
                for name, column in episode.extra_model_outputs.items()
                if isinstance(column.data, np.ndarray)
            },
            "ends": (episode.is_terminated, episode.is_truncated),
        }
        for episode in episodes
    ]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("one_hot", [False, True], ids=["box", "one-hot"])
@pytest.mark.parametrize("clips", [False, True], ids=["normalized", "clipped"])
def test_a_group_is_that_of_the_same_envs_for_numpy(space: str, one_hot: bool, clips: bool) -> None:
    groups, ends = [], []
    for gives_tensors in (True, False):
        config = config_of(space, one_hot=one_hot, gives_tensors=gives_tensors)
        config.environment(normalize_actions=not clips, clip_actions=clips)
        with built(config) as algo:
            groups.append(everything(sample_group(algo)))
            algo.train()
            ends.append(snapshot(algo))
    assert groups[0] == groups[1]
    assert any(info for episode in groups[0] for info in episode["infos"])
    assert same(*ends)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("why", ["callback", "lstm"])
def test_step_by_step_too(why: str, space: str) -> None:
    groups = []
    for gives_tensors in (True, False):
        config = config_of(space, gives_tensors=gives_tensors)
        if why == "callback":
            config.callbacks(on_episode_step=lambda **kwargs: None)
        else:
            config.rl_module(
                model_config={**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 8}
            )
        with built(config) as algo:
            groups.append(everything(sample_group(algo)))
            algo.train()
    assert groups[0] == groups[1]


@pytest.mark.slow
def test_remote_env_runners_sample_the_same_group() -> None:
    groups = []
    for num_env_runners in (0, 2):
        config = config_of("box").env_runners(
            num_env_runners=num_env_runners, num_envs_per_env_runner=2, episodes_per_share=2
        )
        with built(config) as algo:
            groups.append(fingerprint(sample_group(algo)))
            algo.train()
    assert groups[0] == groups[1]


def test_neither_observations_nor_actions_become_numpys_between_policy_and_envs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While no episode begins or ends, only ends and a check of probabilities reach the host."""
    seen: list[tuple[int, ...]] = []
    by_step: list[tuple[bool, list[tuple[int, ...]]]] = []
    to_numpy, step = torch.Tensor.numpy, TensorVector.step

    def numpy(tensor: torch.Tensor, **kwargs: Any) -> np.ndarray:
        seen.append(tuple(tensor.shape))
        return to_numpy(tensor, **kwargs)

    def stepped(env: TensorVector, actions: Any) -> Any:
        result = step(env, actions)
        is_quiet = not (env._done.any() or (env._t == 0.0).any())
        by_step.append((is_quiet, seen.copy()))
        seen.clear()
        return result

    with built(config_of("box")) as algo:
        monkeypatch.setattr(torch.Tensor, "numpy", numpy)
        monkeypatch.setattr(TensorVector, "step", stepped)
        sample_group(algo)
    # What comes of a step is worked on before the next one.
    quiet = [shapes for (is_quiet, _), (_, shapes) in itertools.pairwise(by_step) if is_quiet]
    assert len(quiet) > 5
    # Whether episodes are over [2, E], and numbers per env.
    assert all(shape == (2, 4) or len(shape) == 1 for shapes in quiet for shape in shapes), quiet


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU on this machine")
def test_a_simulator_on_a_gpu_gives_what_it_gives_on_the_host() -> None:
    with built(config_of("box", device="cuda")) as algo:
        episodes = sample_group(algo)
        algo.train()
    assert all(isinstance(episode.get_observations(), np.ndarray) for episode in episodes)
