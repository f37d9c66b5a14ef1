"""Checkpoints: everything comes back exactly, whichever way, also going back to an older one."""

from __future__ import annotations

import copy
import importlib
import itertools
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_gpg import GPG, GPGConfig, checkpoints
from rllib_gpg.checkpoints import config_in_one_process
from tests.envs import Identity
from tests.helpers import (
    SMALL_NET,
    built,
    fingerprint,
    module_results,
    same,
    sample_group,
    small_config,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("ray_session")

MODULE = f"learner_group/learner/rl_module/{DEFAULT_MODULE_ID}"
NORMALIZED = {**SMALL_NET, "normalize_observations": True}


def config_with_state(**env_runners: Any) -> GPGConfig:
    """Everything that has a state: schedules, KL coefficient, observation statistics, baseline.

    A group has 60 env steps; the KL divergence is above its target in every iteration.
    """
    return (
        small_config(
            Identity,
            group_size=6,
            lr=[[0, 0.01], [600, 0.001]],
            entropy_coeff=[[0, 0.1], [600, 0.01]],
            use_kl_loss=True,
            kl_coeff=0.2,
            kl_target=1e-9,
            baseline="ridge",
            lambda_=0.9,
        )
        .rl_module(model_config=NORMALIZED)
        .env_runners(**env_runners)
    )


def train(algo: GPG, iterations: int) -> dict[str, Any]:
    """Returns the results of the last iteration."""
    return [algo.train() for _ in range(iterations)][-1] if iterations else {}


def coefficients(algo: GPG) -> dict[str, float]:
    """What moves beside the weights, as it is in force."""

    def of_learner(learner: Any) -> dict[str, float]:
        (optimizer,) = learner._named_optimizers.values()
        return {
            "lr": float(optimizer.param_groups[0]["lr"]),
            "entropy_coeff": learner.entropy_coeff(DEFAULT_MODULE_ID),
            "kl_coeff": learner.kl_coeff(DEFAULT_MODULE_ID),
            "seq_no": learner._weights_seq_no,
        }

    return algo.learner_group.foreach_learner(of_learner).result_or_errors[0].get()


def weights(module: Any) -> dict[str, np.ndarray]:
    return copy.deepcopy(module.get_state())


def learned(algo: GPG) -> dict[str, np.ndarray]:
    return snapshot(algo)["rl_module"][DEFAULT_MODULE_ID]


def reproducible(result: dict[str, Any]) -> dict[str, Any]:
    """The results without those that measure time."""
    counters = {k: v for k, v in result["env_runners"].items() if k.startswith("num_")}
    metrics = {**counters, **module_results(result), "iteration": result["training_iteration"]}
    return {name: value for name, value in metrics.items() if "throughput" not in name}


def step_by_step(env: Any, spaces: Any, device: Any) -> FlattenObservations:
    """A connector piece of the user's own: with it, runners can't sample in columns."""
    return FlattenObservations()


# One run in two pieces.


@pytest.mark.parametrize(
    ("connector", "num_env_runners"),
    [
        pytest.param(None, 0, id="columns-0"),
        pytest.param(None, 2, id="columns-2", marks=pytest.mark.slow),
        pytest.param(step_by_step, 0, id="step-by-step-0"),
        pytest.param(step_by_step, 2, id="step-by-step-2", marks=pytest.mark.slow),
    ],
)
def test_a_run_cut_in_two_equals_the_run_in_one_piece(
    tmp_path: Path, connector: Any, num_env_runners: int
) -> None:
    config = config_with_state(
        num_env_runners=num_env_runners, env_to_module_connector=connector
    ).evaluation(evaluation_interval=1, evaluation_duration=3)

    def rest(algo: GPG) -> tuple[Any, ...]:
        result = train(algo, 2)
        evaluation = result["evaluation"]["env_runners"]["episode_return_mean"]
        end = (snapshot(algo), coefficients(algo), fingerprint(sample_group(algo)))
        return reproducible(result), evaluation, end

    with built(config) as algo:
        train(algo, 2)
        # Drawn from by others in this process; a run must not depend on it.
        np.random.seed(1)
        torch.manual_seed(1)
        path = algo.save_to_path(tmp_path)
        whole = rest(algo)
        algo.restore_from_path(path)
        back_in_place = rest(algo)
    new = GPG.from_checkpoint(path)
    try:
        second_piece = rest(new)
    finally:
        new.stop()
    for piece in (second_piece, back_in_place):
        np.testing.assert_equal(piece[0], whole[0])
        assert piece[1] == whole[1]
        assert same(piece[2][0], whole[2][0])
        assert piece[2][1:] == whole[2][1:]
    assert whole[0]["num_env_steps_sampled_lifetime"] == 240
    assert whole[0]["num_episodes_lifetime"] == 24
    assert whole[0]["iteration"] == 4


def test_training_leaves_the_users_generators_alone() -> None:
    with built(config_with_state()) as algo:
        algo.train()
        before = np.random.get_state()[1].copy(), torch.get_rng_state()
        algo.train()
        assert np.array_equal(np.random.get_state()[1], before[0])
        assert torch.equal(torch.get_rng_state(), before[1])


# Every way there and back.


def to_new(algo: GPG, path: Path) -> GPG:
    return GPG.from_checkpoint(path)


def by_path(algo: GPG, path: Path) -> GPG:
    algo.restore_from_path(path)
    return algo


def by_tune(algo: GPG, path: Path) -> GPG:
    """As a Tune trial is restored."""
    algo.restore(str(path))
    return algo


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize("way", [to_new, by_path, by_tune, "by state"])
def test_everything_comes_back(tmp_path: Path, way: Any, iterations: int) -> None:
    with built(config_with_state()) as algo:
        train(algo, iterations)
        path, state = algo.save_to_path(tmp_path), copy.deepcopy(algo.get_state())
        saved, in_force = snapshot(algo), coefficients(algo)
        train(algo, 2)
        assert not same(saved, snapshot(algo))
        if way == "by state":
            algo.set_state(state)
            restored = algo
        else:
            restored = way(algo, path)
        try:
            assert same(snapshot(restored), saved)
            assert coefficients(restored) == in_force
            assert restored.iteration == iterations
            results = reproducible(restored.train())
        finally:
            restored.stop()
    # 60 env steps per iteration; the schedules fall linearly over 600; 0.2 times 1.5 per iteration.
    done = iterations / 10
    assert in_force["lr"] == pytest.approx(0.01 - 0.009 * done)
    assert in_force["entropy_coeff"] == pytest.approx(0.1 - 0.09 * done)
    assert in_force["kl_coeff"] == pytest.approx(0.2 * 1.5**iterations)
    assert saved["rl_module"][DEFAULT_MODULE_ID]["observation_normalizer.count"] == 60 * iterations
    assert results["iteration"] == iterations + 1
    assert results["num_env_steps_sampled_lifetime"] == 60 * (iterations + 1)
    assert results["num_episodes_lifetime"] == 6 * (iterations + 1)
    assert results["num_module_steps_trained_lifetime"] == 4 * 60 * (iterations + 1)
    assert results["diff_num_grad_updates_vs_sampler_policy"] == 1.0


@pytest.mark.slow
def test_a_remote_learner_goes_back(tmp_path: Path) -> None:
    config = config_with_state().learners(num_learners=1)
    with built(config) as algo:
        algo.train()
        path, saved, in_force = algo.save_to_path(tmp_path), snapshot(algo), coefficients(algo)
        algo.train()
        algo.restore_from_path(path)
        assert same(snapshot(algo), saved)
        assert coefficients(algo) == in_force
        state = copy.deepcopy(algo.get_state())
        algo.train()
        algo.set_state(state)
        assert same(snapshot(algo), saved)
        assert coefficients(algo) == in_force


def test_other_settings_than_the_saved_ones_are_in_force(tmp_path: Path) -> None:
    """As a population based search restores: the state of one trial, the config of another."""
    with built(config_with_state()) as algo:
        train(algo, 2)
        path, saved = algo.save_to_path(tmp_path), coefficients(algo)
    other = config_with_state().training(lr=0.5, entropy_coeff=[[0, 2.0], [240, 0.0]])
    with built(other) as algo:
        algo.restore_from_path(path)
        assert coefficients(algo) == {**saved, "lr": 0.5, "entropy_coeff": pytest.approx(1.0)}


# Which seed a run goes on with.


def next_group_of(config: GPGConfig, path: str | Path) -> list[Any]:
    """The group that a new algorithm with this config samples from the checkpoint."""
    with built(config) as algo:
        algo.restore_from_path(path)
        return fingerprint(sample_group(algo))


def test_a_seed_that_the_config_names_wins(tmp_path: Path) -> None:
    """Three fine-tunings from one checkpoint are three; one of them is the run that saved it."""

    def seeded(seed: int | None) -> GPGConfig:
        return config_with_state().debugging(seed=seed)

    with built(seeded(1)) as algo:
        train(algo, 1)
        path, whole = algo.save_to_path(tmp_path), fingerprint(sample_group(algo))
    seeds = [1, 2, 3, None]
    groups = [next_group_of(seeded(seed), path) for seed in seeds]
    assert groups[0] == whole
    assert all(one != other for one, other in itertools.combinations(groups, 2))
    # And the one with the other seed can be cut in two like any other.
    with built(seeded(2)) as algo:
        algo.restore_from_path(path)
        path = algo.save_to_path(tmp_path / "another")
    assert next_group_of(seeded(2), path) == groups[1]


def test_unseeded_runs_part(tmp_path: Path) -> None:
    """From one checkpoint: in new algorithms, in place, and the run that saved it."""
    with built(config_with_state().debugging(seed=None)) as algo:
        train(algo, 1)
        path = algo.save_to_path(tmp_path)
        groups = [fingerprint(sample_group(algo))]
        for _ in range(2):
            algo.restore_from_path(path)
            groups.append(fingerprint(sample_group(algo)))
    for _ in range(2):
        new = GPG.from_checkpoint(path)
        try:
            groups.append(fingerprint(sample_group(new)))
        finally:
            new.stop()
    assert all(one != other for one, other in itertools.combinations(groups, 2))


@pytest.mark.parametrize("num_learners", [0, 1])
def test_unseeded_runs_are_saved_in_msgpack(tmp_path: Path, num_learners: int) -> None:
    """Whose integers have 64 bits. RLlib patches it, and Ray sends arrays with it."""
    config = small_config(Identity).debugging(seed=None).learners(num_learners=num_learners)
    with built(config) as algo:
        algo.train()
        algo.save_to_path(tmp_path, use_msgpack=True)
        saved = snapshot(algo)
        algo.train()
        algo.restore_from_path(tmp_path)
        assert same(snapshot(algo), saved)
        file = tmp_path / MODULE / "module_state.msgpack"
        os.truncate(file, file.stat().st_size - 1)
        with pytest.raises(ValueError, match="isn't whole: it is cut off"):
            algo.restore_from_path(tmp_path)


# The policy in place, everywhere and at once.


def evaluated_with(algo: GPG) -> dict[str, np.ndarray]:
    """The weights that an evaluation was just done with."""
    group = algo.eval_env_runner_group
    if group is None:
        return weights(algo.env_runner.module)
    return group.foreach_env_runner(
        lambda runner: runner.module.get_state(),
        local_env_runner=group.num_remote_env_runners() == 0,
    )[0]


@pytest.mark.parametrize(
    ("num_env_runners", "num_eval_runners"),
    [(0, None), (0, 0), pytest.param(1, 1, marks=pytest.mark.slow)],
    ids=str,
)
def test_all_env_runners_go_back_at_once(
    tmp_path: Path, num_env_runners: int, num_eval_runners: int | None
) -> None:
    config = config_with_state(num_env_runners=num_env_runners)
    if num_eval_runners is not None:
        # RLlib makes env runners for evaluation only if there is an interval.
        config.evaluation(evaluation_interval=100, evaluation_num_env_runners=num_eval_runners)
    with built(config) as algo:
        train(algo, 1)
        algo.evaluate()
        path, state = algo.save_to_path(tmp_path), copy.deepcopy(algo.get_state())
        saved, next_group = learned(algo), fingerprint(sample_group(algo))
        for restore in (lambda: algo.restore_from_path(path), lambda: algo.set_state(state)):
            train(algo, 2)
            algo.evaluate()
            assert not same(evaluated_with(algo), saved)
            restore()
            assert same(weights(algo.get_module()), saved)
            algo.evaluate()
            assert same(evaluated_with(algo), saved)
            assert fingerprint(sample_group(algo)) == next_group
        # And they follow again afterwards.
        train(algo, 1)
        algo.evaluate()
        assert same(evaluated_with(algo), learned(algo))


@pytest.mark.parametrize(
    ("num_env_runners", "create_local_env_runner"),
    [
        (0, True),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(1, False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_get_module_is_the_policy_in_force(
    tmp_path: Path, num_env_runners: int, create_local_env_runner: bool
) -> None:
    config = config_with_state(
        num_env_runners=num_env_runners, create_local_env_runner=create_local_env_runner
    )
    with built(config) as algo:
        assert same(weights(algo.get_module()), learned(algo))
        path = algo.save_to_path(tmp_path)
        train(algo, 1)
        assert same(weights(algo.get_module()), learned(algo))
        algo.restore_from_path(path)
        assert same(weights(algo.get_module()), learned(algo))
        assert algo.get_module("nobody's") is None or create_local_env_runner


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_module_alone_goes_into_a_running_algorithm(tmp_path: Path, num_env_runners: int) -> None:
    with built(config_with_state(num_env_runners=num_env_runners)) as algo:
        train(algo, 1)
        path, saved = algo.save_to_path(tmp_path), learned(algo)
        train(algo, 1)
        in_force = coefficients(algo)
        algo.restore_from_path(Path(path) / MODULE, component=MODULE)
        assert same(learned(algo), saved)
        assert coefficients(algo) == in_force
        episodes = sample_group(algo)
        assert_sampled_with(saved, algo, episodes)


def assert_sampled_with(state: Any, algo: GPG, episodes: list[Any]) -> None:
    module = algo.config.get_rl_module_spec(spaces=algo.spaces).build()
    module.set_state(state)
    for episode in episodes:
        observations = torch.tensor(episode.get_observations(slice(0, len(episode))))
        with torch.no_grad():
            expected = module.forward_exploration({Columns.OBS: observations})
        np.testing.assert_allclose(
            episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS),
            expected[Columns.ACTION_DIST_INPUTS],
            # Float32, with other batch sizes.
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_checkpoint_can_be_restored_as_the_algorithm_is_built(tmp_path: Path) -> None:
    """RLlib's own examples do so, in `on_algorithm_init`."""
    with built(config_with_state()) as algo:
        train(algo, 2)
        path, saved = algo.save_to_path(tmp_path), snapshot(algo)
        next_group = fingerprint(sample_group(algo))

    config = config_with_state().callbacks(
        on_algorithm_init=lambda algorithm, **kwargs: algorithm.restore_from_path(path)
    )
    with built(config) as algo:
        assert same(snapshot(algo), saved)
        assert fingerprint(sample_group(algo)) == next_group


# Damaged checkpoints.


@pytest.fixture(scope="module")
def checkpoint(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with built(config_with_state()) as algo:
        train(algo, 1)
        return Path(algo.save_to_path(tmp_path_factory.mktemp("checkpoints") / "whole"))


@pytest.fixture(scope="module")
def running(ray_session: None) -> Iterator[GPG]:
    with built(config_with_state()) as algo:
        yield algo


def cut_off(file: str) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / file, 100)


def without_its_last_byte(path: Path) -> None:
    file = path / MODULE / "module_state.pkl"
    os.truncate(file, file.stat().st_size - 1)


DAMAGES = {
    "empty folder": lambda path: (shutil.rmtree(path), path.mkdir()),
    # The last thing that is written.
    "no state": lambda path: (path / "algorithm_state.pkl").unlink(),
    "no learner": lambda path: shutil.rmtree(path / "learner_group"),
    "learner without state": lambda path: (path / "learner_group/learner/state.pkl").unlink(),
    "no module": lambda path: shutil.rmtree(path / MODULE),
    "module without state": lambda path: (path / MODULE / "module_state.pkl").unlink(),
    "state cut off": cut_off("algorithm_state.pkl"),
    "empty state": lambda path: os.truncate(path / "algorithm_state.pkl", 0),
    "learner cut off": cut_off("learner_group/learner/state.pkl"),
    "module cut off": cut_off(f"{MODULE}/module_state.pkl"),
    "module without its last byte": without_its_last_byte,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_nothing_of_it_restored(
    damage: str, tmp_path: Path, checkpoint: Path, running: GPG
) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(checkpoint, path)
    DAMAGES[damage](path)
    before = snapshot(running)
    for restore in (running.restore_from_path, GPG.from_checkpoint):
        with pytest.raises(ValueError, match=f"{path}.* isn't whole"):
            restore(path)
    assert same(snapshot(running), before)
    running.restore_from_path(checkpoint)


def test_what_others_put_into_a_checkpoint_is_theirs(
    tmp_path: Path, checkpoint: Path, running: GPG
) -> None:
    """An exported model, with metadata of its own; what RLlib has begun to write is refused."""
    path = tmp_path / "with more"
    shutil.copytree(checkpoint, path)
    exported = path / "exported" / "metadata.json"
    exported.parent.mkdir()
    exported.write_text('{"format": "onnx"}')
    running.restore_from_path(path)
    exported.write_text('{"ray_version": "2')
    with pytest.raises(ValueError, match=r"exported has no state"):
        running.restore_from_path(path)


@pytest.mark.parametrize("file", ["class_and_ctor_args.pkl", "rllib_checkpoint.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 100)])
def test_a_checkpoint_without_its_config_is_refused(
    damage: Any, file: str, tmp_path: Path, checkpoint: Path
) -> None:
    """Only a new algorithm needs it."""
    shutil.copytree(checkpoint, tmp_path / "damaged")
    damage(tmp_path / "damaged" / file)
    with pytest.raises(ValueError, match=f"{tmp_path}.* isn't whole"):
        GPG.from_checkpoint(tmp_path / "damaged")


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 100)])
def test_the_config_for_one_process_is_read_alone(
    damage: Any, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building the algorithm reads the rest through, which takes long where a policy is large."""
    config = "class_and_ctor_args.pkl"
    shutil.copytree(checkpoint, tmp_path / "damaged")
    damage(tmp_path / "damaged" / config)
    read, read_through = [], checkpoints._read_through

    def noted(file: Any, stream: Any) -> None:
        read.append(file.name)
        read_through(file, stream)

    monkeypatch.setattr(checkpoints, "_read_through", noted)
    assert config_in_one_process(checkpoint).num_env_runners == 0
    assert read == [config]
    with pytest.raises(ValueError, match=f"{tmp_path}.* isn't whole"):
        config_in_one_process(tmp_path / "damaged")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        config_in_one_process(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="must be absolute"):
        config_in_one_process("runs/best")


class ReadsAFile(Identity):
    """As envs with assets do."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        Path(config["asset"]).read_text()


def test_what_the_env_does_not_find_is_the_envs(tmp_path: Path) -> None:
    (asset := tmp_path / "level.txt").touch()
    config = small_config(ReadsAFile).environment(env_config={"asset": str(asset)})
    with built(config) as algo:
        path = algo.save_to_path(tmp_path / "checkpoint")
    asset.unlink()
    with pytest.raises(FileNotFoundError, match=r"level\.txt"):
        GPG.from_checkpoint(path)


class CountsItsReading:
    """A callback's state, for instance, that takes long to be put together again."""

    times = 0

    def __getstate__(self) -> Any:
        return {"some": "state"}

    def __setstate__(self, state: Any) -> None:
        type(self).times += 1


def test_a_checkpoint_of_a_module_that_is_not_known_here_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An env of the user's own file, and a command that is run from another folder."""
    (tmp_path / "my_maze.py").write_text(
        "from tests.envs import Identity\nclass Maze(Identity): ...\n"
    )
    with monkeypatch.context() as here:
        here.syspath_prepend(tmp_path)
        with built(small_config(importlib.import_module("my_maze").Maze)) as algo:
            path = algo.save_to_path(tmp_path / "checkpoint")
    del sys.modules["my_maze"]
    with pytest.raises(ImportError, match=r"needs something of the run.*'my_maze'.*PYTHONPATH"):
        GPG.from_checkpoint(path)
    # RLlib takes another config instead.
    GPG.from_checkpoint(path, config=small_config(Identity)).stop()


def test_a_checkpoint_is_put_together_once(tmp_path: Path, running: GPG) -> None:
    state = {**running.get_state(), "mine": CountsItsReading()}
    path = running.save_to_path(tmp_path, state=state)
    CountsItsReading.times = 0
    running.restore_from_path(path)
    assert CountsItsReading.times == 1


def test_a_path_without_a_checkpoint_is_named(tmp_path: Path, running: GPG) -> None:
    for restore in (running.restore_from_path, GPG.from_checkpoint):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            restore(tmp_path / "nowhere")


def test_a_relative_path_is_refused_with_the_absolute_one(running: GPG) -> None:
    for restore in (running.restore_from_path, GPG.from_checkpoint):
        with pytest.raises(ValueError, match=r"must be absolute .* did you mean '/.*/runs/best'"):
            restore("runs/best")


def fail(*args: Any, **kwargs: Any) -> None:
    raise OSError("No space left on device")


def test_a_save_that_fails_leaves_the_checkpoint_that_was_there(
    tmp_path: Path, running: GPG, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somewhere between two files."""
    (tmp_path / "notes.txt").write_text("a user's")
    running.save_to_path(tmp_path)
    saved = snapshot(running)
    running.train()
    with monkeypatch.context() as patch:
        patch.setattr(type(running.env_runner), "save_to_path", fail)
        for folder in (tmp_path, tmp_path / "new"):
            with pytest.raises(OSError, match="No space") as caught:
                running.save_to_path(folder)
            assert "earlier ones, there too, are as they were" in caught.value.__notes__[0]
    assert not (tmp_path / "new").exists()
    running.restore_from_path(tmp_path)
    assert same(snapshot(running), saved)
    # And once there is room again, it is replaced.
    running.train()
    running.save_to_path(tmp_path)
    later = snapshot(running)
    running.train()
    running.restore_from_path(tmp_path)
    assert same(snapshot(running), later)
    assert (tmp_path / "notes.txt").read_text() == "a user's"


def test_a_remote_learner_that_cannot_save_leaves_the_checkpoint_that_was_there(
    tmp_path: Path,
) -> None:
    """RLlib passes over what it raises."""

    def break_it(learner: Any) -> None:
        learner.module.save_to_path = fail

    config = small_config(Identity).learners(num_learners=1)
    with built(config.copy()) as algo:
        algo.save_to_path(tmp_path)
        saved = snapshot(algo)
        algo.train()
        algo.learner_group.foreach_learner(break_it)
        with pytest.raises(OSError, match="A remote learner couldn't save its part"):
            algo.save_to_path(tmp_path)
    # RLlib takes a learner out of service that has raised something.
    with built(config) as algo:
        algo.restore_from_path(tmp_path)
        assert same(snapshot(algo), saved)


def test_a_process_that_was_killed_while_it_saved_leaves_the_checkpoint_that_was_there(
    tmp_path: Path, running: GPG
) -> None:
    running.save_to_path(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    next((tmp_path / "half").rglob("*.pkl")).unlink()
    (tmp_path / "half").rename(tmp_path / "whole" / ".unfinished")
    running.restore_from_path(tmp_path / "whole")
    running.save_to_path(tmp_path / "whole")
    assert not (tmp_path / "whole" / ".unfinished").exists()
    running.restore_from_path(tmp_path / "whole")


def test_a_folder_that_cannot_be_written_is_named(running: GPG) -> None:
    with pytest.raises(OSError, match="/proc/run"):
        running.save_to_path("/proc/run/checkpoint")


def test_a_relative_path_is_one_of_the_working_directory(
    tmp_path: Path, running: GPG, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert running.save_to_path("checkpoint") == f"{tmp_path}/checkpoint"
    running.restore_from_path(tmp_path / "checkpoint")


FULL_DISK = """
import resource
import sys

from tests.envs import Identity
from tests.helpers import built, small_config, start_ray

start_ray()
with built(small_config(Identity)) as algo:
    path = algo.save_to_path(sys.argv[1])
    algo.train()
    # No file may grow beyond 1 kB.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        algo.save_to_path(path)
    except OSError as error:
        print("saved nothing:", *error.__notes__)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    algo.restore_from_path(path)
    print("restored iteration", algo.iteration)
"""


@pytest.mark.slow
def test_a_disk_without_room_leaves_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FULL_DISK, str(tmp_path / "checkpoint")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "saved nothing: No checkpoint was saved" in run.stdout
    assert "restored iteration 0" in run.stdout


# The module alone.

INFERENCE = """
import sys

import numpy as np
import ray
import torch
from ray.rllib.core.rl_module.rl_module import RLModule

import rllib_gpg

ran = set()
package = rllib_gpg.__path__[0]


def note(frame, event, arg):
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(package):
        ran.add(name.removeprefix(package + "/"))


sys.setprofile(note)
module = RLModule.from_checkpoint(sys.argv[1])
with torch.no_grad():
    batch = {"obs": torch.from_numpy(np.load(sys.argv[2]))}
    logits = module.forward_inference(batch)["action_dist_inputs"]
sys.setprofile(None)
np.save(sys.argv[3], logits.numpy())
assert not ray.is_initialized()
print(*sorted(ran))
"""


def test_the_exported_module_needs_no_training_code_and_no_ray(tmp_path: Path) -> None:
    with built(config_with_state()) as algo:
        train(algo, 2)
        module = Path(algo.save_to_path(tmp_path / "checkpoint")) / MODULE
        # Raw, far from mean 0 and variance 1, so that the statistics show.
        observations = np.linspace(-3.0, 3.0, 7, dtype=np.float32)[:, None]
        with torch.no_grad():
            batch = {Columns.OBS: torch.from_numpy(observations)}
            expected = algo.get_module().forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    # Alone: a copy of the module's folder, and no tests to import envs from.
    shutil.copytree(module, tmp_path / "module")
    shutil.rmtree(tmp_path / "checkpoint")
    np.save(tmp_path / "observations.npy", observations)
    (tmp_path / "inference.py").write_text(textwrap.dedent(INFERENCE))
    paths = [tmp_path / name for name in ("module", "observations.npy", "logits.npy")]
    finished = subprocess.run(
        [sys.executable, str(tmp_path / "inference.py"), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), expected.numpy())
    # Of this package only the module and how it takes weights have run, whatever else was imported.
    ran = set(finished.stdout.split())
    assert "learning/rl_module.py" in ran
    assert ran <= {"learning/rl_module.py", "learning/warm_start.py"}
    assert RLModule.from_checkpoint(tmp_path / "module").observation_normalizer.count == 120
