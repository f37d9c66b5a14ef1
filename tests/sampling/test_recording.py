"""`offline_data(output=..)`: what is trained on is recorded once, in forms that RLlib reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgpack
import msgpack_numpy
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.data
import torch
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.compression import unpack_if_needed

from rllib_gpg import GPG, GPGConfig
from tests.envs import Identity, MultiIdentity, ShortOrLong, Unreliable
from tests.helpers import (
    LinearPolicy,
    PlusTheStep,
    built,
    each_learner,
    fingerprint,
    sample_group,
    small_config,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def recorded_episodes(folder: Path) -> list[SingleAgentEpisode]:
    return [
        SingleAgentEpisode.from_state(msgpack.unpackb(item, object_hook=msgpack_numpy.decode))
        for file in files_in(folder)
        for item in pq.read_table(file)["item"].to_pylist()
    ]


def recorded_steps(folder: Path) -> list[dict[str, Any]]:
    return [row for file in files_in(folder) for row in pq.read_table(file).to_pylist()]


class TakesEachStep(RLlibCallback):
    """With it, episodes are sampled step by step instead of in columns."""

    def on_episode_step(self, **kwargs: Any) -> None:
        pass


def recording_config(path: Path, *, in_columns: bool = True, **output: Any) -> GPGConfig:
    config = small_config(ShortOrLong).offline_data(output=str(path), **output)
    return config if in_columns else config.callbacks(TakesEachStep)


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The fingerprints of all episodes that are trained on, with ids, as they were sampled."""
    estimate, seen = GPG._estimate_advantages, []

    def seeing(algo: GPG, episodes: list[Any]) -> Any:
        seen.extend(zip((e.id_ for e in episodes), fingerprint(episodes), strict=True))
        return estimate(algo, episodes)

    monkeypatch.setattr(GPG, "_estimate_advantages", seeing)
    return seen


@pytest.mark.parametrize("in_columns", [True, False])
def test_every_episode_is_recorded_once(
    in_columns: bool, tmp_path: Path, trained_on: list[Any]
) -> None:
    config = recording_config(tmp_path, in_columns=in_columns)
    # What is recorded is what the env gave.
    config.learners(learner_connector=lambda *spaces: PlusTheStep())
    config.evaluation(evaluation_interval=1, evaluation_duration=3)
    with built(config) as algo:
        algo.train()
        algo.train()
    episodes = recorded_episodes(tmp_path)
    assert len(trained_on) == 16
    # In RLlib's form: lists, not arrays.
    assert not any(episode.is_numpy for episode in episodes)
    assert all(episode.is_terminated and not episode.is_truncated for episode in episodes)
    recorded = [episode.to_numpy() for episode in episodes]
    assert list(zip((e.id_ for e in recorded), fingerprint(recorded), strict=True)) == trained_on
    assert len(files_in(tmp_path / "shortorlong")) == 2


@pytest.mark.parametrize("in_columns", [True, False])
def test_steps_are_recorded_in_rllibs_columns(in_columns: bool, tmp_path: Path) -> None:
    config = recording_config(tmp_path, in_columns=in_columns, output_write_episodes=False)
    with built(config) as algo:
        group = sample_group(algo)
        algo._groups.number = 0
        algo.train()
    steps = recorded_steps(tmp_path)
    assert {
        *("eps_id", "agent_id", "module_id", "obs", "actions", "rewards", "new_obs"),
        *("terminateds", "truncateds", "action_dist_inputs", "action_logp", "weights_seq_no"),
    } == steps[0].keys()
    assert len({step["eps_id"] for step in steps}) == 8
    observations = [episode.get_observations() for episode in group]
    np.testing.assert_array_equal(
        [unpack_if_needed(step["obs"]) for step in steps],
        np.concatenate([of_episode[:-1] for of_episode in observations]),
    )
    np.testing.assert_array_equal(
        [unpack_if_needed(step["new_obs"]) for step in steps],
        np.concatenate([of_episode[1:] for of_episode in observations]),
    )
    for name, column in (
        ("actions", [episode.get_actions() for episode in group]),
        ("rewards", [episode.get_rewards() for episode in group]),
        ("action_logp", [episode.get_extra_model_outputs("action_logp") for episode in group]),
    ):
        np.testing.assert_array_equal([step[name] for step in steps], np.concatenate(column))
    ends = np.cumsum([len(episode) for episode in group]) - 1
    assert np.flatnonzero([step["terminateds"] for step in steps]).tolist() == ends.tolist()
    assert not any(step["truncateds"] for step in steps)


def interrupted_once(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, *, calls_before: int = 0
) -> None:
    """Ctrl+C as a call of the method comes to its end."""
    method, calls = getattr(owner, name), []

    def calling(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        calls.append(args)
        if len(calls) == calls_before + 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, calling)


@pytest.mark.parametrize(
    ("owner", "name", "calls_before"),
    [
        # Of the third iteration: its update, taking the new weights (the first time is before the
        # update), writing the file.
        (GPG, "_update", 2),
        (GPG, "_sync_weights", 5),
        (ray.data.Dataset, "write_parquet", 2),
    ],
    ids=["update", "weights", "file"],
)
def test_interrupts_lose_and_repeat_nothing(
    owner: Any,
    name: str,
    calls_before: int,
    tmp_path: Path,
    trained_on: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with built(recording_config(tmp_path)) as algo:
        interrupted_once(owner, name, monkeypatch, calls_before=calls_before)
        for _ in range(2):
            algo.train()
        with pytest.raises(KeyboardInterrupt):
            algo.train()
        algo.train()
    ids = [episode.id_ for episode in recorded_episodes(tmp_path)]
    expected = [id_ for id_, _ in trained_on]
    if name == "_update":
        # Nobody knows how far it has come: the group is sampled again, and that is trained on.
        del expected[16:24]
    assert ids == expected


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_faults_leave_no_trace_in_the_recording(num_env_runners: int, tmp_path: Path) -> None:
    """Also when env runners have all CPUs, so that no task of Ray Data's would get one."""
    recordings, redispatched = [], 0
    for probability in (0.0, 1 / 200):
        folder = tmp_path / str(probability)
        config = recording_config(folder).environment(
            Unreliable, env_config={"probability": probability}
        )
        config.env_runners(
            num_env_runners=num_env_runners, num_cpus_per_env_runner=4, episodes_per_share=2
        ).fault_tolerance(max_share_failures=1000)
        with built(config) as algo:
            for _ in range(2):
                algo.train()
            counted = algo.metrics.peek(("env_runners", "num_episodes_redispatched_lifetime"))
            redispatched += counted
        episodes = [episode.to_numpy() for episode in recorded_episodes(folder)]
        assert len({episode.id_ for episode in episodes}) == 16
        recordings.append(fingerprint(episodes))
    assert redispatched > 0
    assert recordings[0] == recordings[1]


def test_a_group_that_was_never_trained_on_is_not_recorded(
    tmp_path: Path, trained_on: list[Any]
) -> None:
    """As after Ctrl-C in a notebook: the next call of `train` samples a group in its place."""
    with built(recording_config(tmp_path)) as algo:
        update = algo._update

        def interrupted(group: Any) -> None:
            raise KeyboardInterrupt

        algo._update = interrupted
        with pytest.raises(KeyboardInterrupt):
            algo.training_step()
        algo._update = update
        algo.train()
    assert [e.id_ for e in recorded_episodes(tmp_path)] == [id_ for id_, _ in trained_on[8:]]


@pytest.mark.parametrize("remaining", [True, False])
def test_files_have_as_many_rows_as_was_said(remaining: bool, tmp_path: Path) -> None:
    config = small_config(Identity, group_size=8).offline_data(
        output=str(tmp_path),
        output_write_episodes=False,
        output_max_rows_per_file=50,
        output_write_remaining_data=remaining,
    )

    def sizes() -> list[int]:
        return [pq.read_metadata(file).num_rows for file in files_in(tmp_path)]

    with built(config) as algo:
        for expected in ([50], [50] * 3):
            algo.train()
            assert sizes() == expected
    assert sizes() == [50] * 3 + ([10] if remaining else [])


def test_it_also_writes_json_and_adds_to_what_is_there(tmp_path: Path) -> None:
    config = small_config(Identity, group_size=8).offline_data(
        output=str(tmp_path), output_write_episodes=False, output_write_method="write_json"
    )
    for num_files in (1, 2):
        with built(config) as algo:
            algo.train()
        assert len(list(tmp_path.rglob("*.json"))) == num_files
    assert ray.data.read_json(str(tmp_path)).count() == 2 * 80


def test_an_unknown_filesystem_and_several_agents_are_refused(tmp_path: Path) -> None:
    config = recording_config(tmp_path, output_filesystem="ftp")
    with pytest.raises(ValueError, match=r"`output_filesystem` must be .* got 'ftp'"):
        config.build_algo()
    config = small_config(MultiIdentity).multi_agent(policies={"one"})
    config.offline_data(output=str(tmp_path))
    with pytest.raises(ValueError, match=r"`output='.*several agents"):
        config.validate()


def test_episodes_need_a_package_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"`msgpack-numpy`.*`output_write_episodes=False`"):
        recording_config(tmp_path).validate()
    recording_config(tmp_path, output_write_episodes=False).validate()


# Learning from it

BIT = Identity()


def repeat_the_bit(learner: Any) -> None:
    policy = learner.module[DEFAULT_MODULE_ID].policy
    with torch.no_grad():
        policy.weight.copy_(torch.tensor([[-20.0], [20.0]]))
        policy.bias.zero_()


def of_both_bits(learner: Any) -> torch.Tensor:
    batch = {"obs": torch.tensor([[-1.0], [1.0]])}
    with torch.no_grad():
        return learner.module[DEFAULT_MODULE_ID].forward_inference(batch)["action_dist_inputs"]


@pytest.mark.slow
@pytest.mark.parametrize("write_episodes", [True, False])
def test_bc_clones_the_policy_that_was_recorded(write_episodes: bool, tmp_path: Path) -> None:
    config = small_config(Identity, group_size=32, lr=0.0).offline_data(
        output=str(tmp_path), output_write_episodes=write_episodes
    )
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=LinearPolicy))
    with built(config) as algo:
        each_learner(algo, repeat_the_bit)
        algo._sync_weights()
        assert algo.train()["learners"]["default_policy"]["group_return_mean"] == 10.0
    bc = (
        BCConfig()
        .environment(observation_space=BIT.observation_space, action_space=BIT.action_space)
        .offline_data(
            input_=[str(tmp_path)],
            input_read_episodes=write_episodes,
            input_read_batch_size=8 if write_episodes else None,
            input_compress_columns=["obs", "new_obs"],
            dataset_num_iters_per_learner=1,
            map_batches_kwargs={"concurrency": 1},
            iter_batches_kwargs={"prefetch_batches": 0},
        )
        .training(lr=0.02, train_batch_size_per_learner=64)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(log_sys_usage=False)
    ).build_algo()
    try:
        for _ in range(10):
            bc.train()
        [logits] = each_learner(bc, of_both_bits)
    finally:
        bc.stop()
    assert logits.argmax(-1).tolist() == [0, 1]
    assert torch.softmax(logits, -1).max(-1).values.min() > 0.6
