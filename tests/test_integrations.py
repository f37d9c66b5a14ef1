"""A checkpoint's policy in other surroundings: exported, watched, served."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModule

from tests.helpers import built, small_config
from tests.test_tuned_examples import EXAMPLES, run_example

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

# Of another process: reads observations, writes what the policy makes of them.
ACT = """
import json, sys
import torch
policy = torch.export.load(sys.argv[1]).module()
answers = [part.tolist() for part in policy(torch.tensor(json.load(sys.stdin)))]
ray = {"ray", "rllib_gpg"} & sys.modules.keys()
print(json.dumps({"answers": answers, "ray": bool(ray)}))
"""


def checkpoint_of(env: str, folder: Path) -> str:
    config = small_config(env, group_size=4)
    config.rl_module(
        model_config={
            "fcnet_hiddens": [8],
            "normalize_observations": True,
            "free_log_std": env == "Pendulum-v1",
        }
    )
    with built(config) as algo:
        algo.train()
        return algo.save_to_path(folder)


def module_of(checkpoint: str) -> Any:
    return RLModule.from_checkpoint(f"{checkpoint}/learner_group/learner/rl_module/default_policy")


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_an_exported_policy_acts_without_ray_as_its_module_does(env: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(env, tmp_path / "checkpoint")
    file = tmp_path / "policy.pt2"
    # A relative path, as it is typed.
    run_example("export_policy.py", tmp_path, os.path.relpath(checkpoint), str(file))
    module = module_of(checkpoint)
    # Statistics that matter: without them, other outputs.
    assert int(module.observation_normalizer.count) > 0
    observations = np.random.default_rng(0).normal(size=(5, *module.observation_space.shape))
    for size in (1, 5):
        batch = torch.tensor(observations[:size], dtype=torch.float32)
        acted = subprocess.run(
            [sys.executable, "-c", ACT, str(file)],
            input=json.dumps(batch.tolist()),
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(acted.stdout)
        assert not found["ray"]
        inputs = module.forward_inference({"obs": batch})["action_dist_inputs"].detach()
        actions = module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic()
        np.testing.assert_allclose(found["answers"][0], inputs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["answers"][1], actions.sample(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_an_episode_is_rendered_frame_by_frame(env: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(env, tmp_path / "checkpoint")
    file = tmp_path / "episode.gif"
    typed = os.path.relpath(checkpoint)
    output = run_example("watch.py", tmp_path, typed, str(file), SDL_VIDEODRIVER="dummy")
    num_steps = int(output.split(" in ")[1].split(" steps")[0])
    frames = imageio.mimread(file, memtest=False)
    # A GIF merges frames that are equal.
    assert 1 < len(frames) <= num_steps + 1
    assert frames[0].std() > 0.0
    if env == "CartPole-v1":
        # A reward of 1 per step.
        assert f"return {num_steps}.0" in output
    else:
        assert num_steps == 200


def test_an_episode_is_watched_no_longer_than_the_run_lets_it_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An env that has no end of its own would be played for ever."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    watch = runpy.run_path(str(EXAMPLES / "watch.py"))
    config = small_config("CartPole-v1").env_runners(max_episode_steps=3)
    with built(config) as algo:
        frames, _ = watch["play"](algo, watch["renderable"](algo.config), seed=0)
    assert len(frames) == 1 + 3


@pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None,
    reason="needs the extra `serve`, which also starts Ray's dashboard with every Ray",
)
def test_a_served_policy_answers_with_its_most_probable_action(tmp_path: Path) -> None:
    checkpoint = checkpoint_of("CartPole-v1", tmp_path / "checkpoint")
    observation = [0.01, -0.3, 0.1, 1.0]
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    question = [str(number) for number in observation]
    typed = os.path.relpath(checkpoint)
    output = run_example("serve_policy.py", tmp_path, typed, "--port", port, "--ask", *question)
    batch = {"obs": torch.tensor([observation])}
    logits = module_of(checkpoint).forward_inference(batch)["action_dist_inputs"]
    assert f"action: {int(logits.argmax())}" in output
