from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ray.rllib.connectors.env_to_module import FlattenObservations

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.checkpoints import config_in_one_process
from rllib_gpg.inspect import inspect_checkpoint, main
from tests.envs import DictIdentity, Identity, TwoRoles
from tests.helpers import SMALL_NET, built, module_results, small_config


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def saved(config: GPGConfig, folder: Path, iterations: int = 1) -> Path:
    with built(config) as algo:
        for _ in range(iterations):
            algo.train()
        algo.save_to_path(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.mark.usefixtures("ray_session")
def test_it_draws_the_group_that_the_run_goes_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(Identity, baseline="ridge", lambda_=0.98)
    checkpoint = saved(config, tmp_path, iterations=4)
    before = contents(checkpoint)
    monkeypatch.chdir(tmp_path)
    # As it is typed: a relative path.
    main(["checkpoint"])
    printed = capsys.readouterr().out
    assert contents(checkpoint) == before
    with Image.open(tmp_path / "group.png") as picture:
        assert picture.format == "PNG"
    assert f"Picture: {tmp_path / 'group.png'}" in printed

    report = inspect_checkpoint(checkpoint, tmp_path / "again.png")["default_policy"]
    assert str(report) in printed
    algo = GPG.from_checkpoint(checkpoint)
    learned = module_results(algo.train())
    algo.stop()
    assert report.return_mean == learned["group_return_mean"]
    # With what the ridge remembers in the checkpoint.
    shares = {row.name: row for row in report.explained}
    assert shares["ridge"].share == pytest.approx(learned["baseline_explained_variance"])
    assert shares["carried bins"].share is not None


@pytest.mark.usefixtures("ray_session")
def test_a_run_on_a_cluster_is_looked_at_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(Identity, sample_ahead=1).env_runners(num_env_runners=2)
    config.env_runners(num_envs_per_env_runner=3, duplicate_last_shares=True)
    config.evaluation(
        evaluation_interval=1, evaluation_num_env_runners=1, evaluation_parallel_to_training=True
    )
    checkpoint = saved(config.learners(num_learners=1), tmp_path)
    looked_at: list[GPG] = []
    setup = GPG.setup
    monkeypatch.setattr(GPG, "setup", lambda algo, c: [looked_at.append(algo), setup(algo, c)])
    report = inspect_checkpoint(checkpoint, tmp_path / "group.png")["default_policy"]
    assert looked_at[0].env_runner_group.num_remote_env_runners() == 0
    assert looked_at[0].eval_env_runner_group is None
    assert looked_at[0].learner_group.is_local
    # In the same shares, and so with the same seeds: the next group of the run without sampling
    # ahead.
    config = config_in_one_process(checkpoint)
    assert config.episodes_per_share == 3
    config.env_runners(num_env_runners=1)
    algo = GPG.from_checkpoint(checkpoint, config=config)
    assert report.return_mean == module_results(algo.train())["group_return_mean"]
    algo.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_rollouts_of_several_env_runners_are_looked_at_in_one_process(tmp_path: Path) -> None:
    config = small_config(Identity, baseline="ridge").env_runners(
        num_env_runners=2,
        num_envs_per_env_runner=4,
        batch_mode="truncate_episodes",
        rollout_fragment_length=16,
    )
    checkpoint = saved(config, tmp_path)
    report = inspect_checkpoint(checkpoint, tmp_path / "group.png")["default_policy"]
    algo = GPG.from_checkpoint(checkpoint)
    assert report.return_mean == module_results(algo.train())["group_return_mean"]
    algo.stop()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("kind", ["roles", "one-hot", "nested", "recurrent", "truncated"])
def test_any_policy_can_be_looked_at(kind: str, tmp_path: Path) -> None:
    modules = ["default_policy"]
    if kind == "roles":
        modules = ["pointer", "reader"]
        config = small_config(TwoRoles).multi_agent(
            policies=set(modules), policy_mapping_fn=lambda agent, episode, **_: agent
        )
        # The reader's observations are Discrete.
        config.env_runners(env_to_module_connector=_flatten_each)
    elif kind == "one-hot":
        config = small_config("FrozenLake-v1")
        config.env_runners(
            env_to_module_connector=lambda env, spaces, device: FlattenObservations()
        )
    elif kind == "nested":
        config = small_config(DictIdentity)
        config.env_runners(
            env_to_module_connector=lambda env, spaces, device: FlattenObservations()
        )
    elif kind == "recurrent":
        config = small_config(Identity).rl_module(
            model_config={**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 4}
        )
    else:
        config = small_config(Identity).env_runners(
            batch_mode="truncate_episodes",
            rollout_fragment_length=7,
            num_envs_per_env_runner=8,
        )
    reports = inspect_checkpoint(saved(config, tmp_path), tmp_path / "group.png")
    assert sorted(reports) == modules
    for report in reports.values():
        assert report.explained[3].name in ("state bins", "grid (1 std) bins")
        assert report.explained[3].share is not None


def _flatten_each(env: Any, spaces: Any, device: Any) -> Any:
    return FlattenObservations(multi_agent=True)


def test_no_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no checkpoint at"):
        inspect_checkpoint(tmp_path / "nowhere")


def test_a_picture_without_a_folder_is_refused_before_a_group_is_sampled(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path / 'pictures'} to write"):
        inspect_checkpoint(tmp_path / "checkpoint", tmp_path / "pictures" / "group.png")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_it_is_a_command(tmp_path: Path) -> None:
    checkpoint = saved(small_config("CartPole-v1"), tmp_path)
    command = [sys.executable, "-m", "rllib_gpg.inspect", str(checkpoint)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "default_policy: 8 trajectories" in done.stdout
    assert (tmp_path / "group.png").exists()
