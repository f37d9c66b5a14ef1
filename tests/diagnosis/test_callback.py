from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import tune
from ray.air._internal.json import SafeFallbackEncoder
from ray.air.integrations import wandb
from tensorboardX.proto.event_pb2 import Event

from rllib_gpg import GPGConfig
from rllib_gpg.diagnosis import DiagnosisCallback
from rllib_gpg.diagnosis.picture import Picture
from tests.envs import Identity, MultiIdentity, StartDecides
from tests.helpers import SMALL_NET, built, guarded, module_results, same, small_config, snapshot

every_2 = functools.partial(DiagnosisCallback, every=2)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"baseline": "ridge", "lambda_": 0.98},
        {"baseline": "optimal", "normalize_advantages": False},
        {"episodes_per_start": 4, "max_extra_starts": 2},
    ],
    ids=["bins", "ridge", "optimal", "starts"],
)
def test_a_run_is_the_same_to_the_last_bit(training: dict[str, Any]) -> None:
    snapshots, torch_state = [], torch.get_rng_state()
    for callback in (None, functools.partial(DiagnosisCallback, every=1)):
        config = small_config(StartDecides, **training)
        if callback is not None:
            config.callbacks(callback)
        torch.set_rng_state(torch_state)
        with built(config) as algo:
            results = [algo.train() for _ in range(3)]
            snapshots.append(snapshot(algo))
    assert all("diagnosis" in result for result in results)
    assert same(*snapshots)


@pytest.mark.usefixtures("ray_session")
def test_there_is_a_picture_every_so_often_of_the_group_that_was_learned_from() -> None:
    with built(small_config(Identity).callbacks(every_2)) as algo:
        for iteration in range(4):
            result = algo.train()
            assert ("diagnosis" in result) == (iteration % 2 == 0)
            if iteration % 2 == 0:
                report = algo.group_reports["default_policy"]
                learned = module_results(result)
                assert report.return_mean == learned["group_return_mean"]
                assert report.singleton_fraction == learned["group_singleton_fraction"]
                assert report.before.std == learned["group_advantage_std"]
                picture = result["diagnosis"]["default_policy"]
                assert picture.shape[0] == 3 and picture.dtype == np.uint8
        # A restored run goes on with the same count.
        checkpoint = algo.save()
        algo.train()
        algo.restore(checkpoint)
        assert "diagnosis" in algo.train()


@pytest.mark.usefixtures("ray_session")
def test_each_module_has_a_picture() -> None:
    config = small_config(MultiIdentity).callbacks(every_2)
    config.environment(env_config={"num_agents": 2}).multi_agent(
        policies={"a", "b"}, policy_mapping_fn=lambda agent, episode, **_: "ab"[int(agent)]
    )
    with built(config) as algo:
        assert algo.train()["diagnosis"].keys() == {"a", "b"}


def test_without_matplotlib_it_is_said_before_the_first_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"rllib-gpg\[diagnosis\]\""):
        DiagnosisCallback().on_algorithm_init(algorithm=None)


@pytest.mark.parametrize("every", [0, -1, 2.5, "often"])
def test_how_often_is_an_integer(every: Any) -> None:
    with pytest.raises(ValueError, match="every must be an integer above 0"):
        DiagnosisCallback(every=every)


def test_a_picture_is_a_few_words_where_text_is_written() -> None:
    picture = np.full((3, 40, 60), 255, np.uint8).view(Picture)
    picture[0, 20] = 7
    words = "picture of 60 x 40 pixels"
    assert json.dumps({"x": picture}, cls=SafeFallbackEncoder) == f'{{"x": "{words}"}}'
    assert f"{picture}" == repr(picture) == words
    packed = ray.cloudpickle.dumps(picture)
    assert len(packed) < picture.nbytes / 10
    again = ray.cloudpickle.loads(packed)
    assert isinstance(again, Picture)
    assert np.array_equal(again, picture)


def test_weights_and_biases_is_handed_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's part is real. W&B's own, `wandb.Image`, asks what it is given for `numpy()`."""
    monkeypatch.setattr(wandb, "Image", lambda pixels, **_: pixels.numpy(), raising=False)
    picture = np.zeros((3, 40, 60), np.uint8).view(Picture)
    picture[0] = 255
    logged = wandb._clean_log({"diagnosis": {"policy": picture}})["diagnosis"]["policy"]
    assert logged.shape == (40, 60, 3)
    assert (logged == [255, 0, 0]).all()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_remote_learners_report_too() -> None:
    config = small_config(Identity).callbacks(every_2).env_runners(num_env_runners=2)
    reports = []
    for num_learners in (0, 2):
        with guarded(config.copy(copy_frozen=False).learners(num_learners=num_learners)) as algo:
            algo.train()
            reports.append(str(algo.group_reports["default_policy"]))
    assert reports[0] == reports[1]


def events_of(folder: Path) -> list[Event]:
    """What TensorBoard reads: records of 8 bytes length, 4 bytes sum, the event, 4 bytes sum."""
    events = []
    for file in folder.rglob("events.out.tfevents.*"):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_tune_hands_the_picture_to_tensorboard_and_not_to_text(tmp_path: Path) -> None:
    config = (
        GPGConfig()
        .environment(Identity)
        .training(group_size=4)
        .rl_module(model_config=SMALL_NET)
        .callbacks(every_2)
    )
    results = tune.Tuner(
        "GPG",
        param_space=config,
        run_config=tune.RunConfig(storage_path=str(tmp_path), stop={"training_iteration": 3}),
    ).fit()
    assert not results.errors
    folder = Path(results[0].path)
    images = [
        (event.step, value)
        for event in events_of(folder)
        for value in event.summary.value
        if value.HasField("image")
    ]
    assert {value.tag for _, value in images} == {"ray/tune/diagnosis/default_policy"}
    assert len(images) == 2
    height, width = images[0][1].image.height, images[0][1].image.width
    assert images[0][1].image.encoded_image_string.startswith(b"\x89PNG")
    words = f"picture of {width} x {height} pixels"
    lines = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    shown = [line.get("diagnosis", {}).get("default_policy") for line in lines]
    assert shown == [words, None, words]
    # Tune remembers the last result twice, as pickles in a JSON; also that is less than the pixels.
    for file in tmp_path.rglob("*.[jc]s*"):
        assert file.stat().st_size < 3 * height * width, file
    assert words in (folder / "progress.csv").read_text()
