"""Renders an episode of a checkpoint's policy to a GIF, or to an MP4.

What it shows: a policy that acts outside of RLlib's env runners, through the same connectors, and
by its most probable actions. The env, its config and the connectors are those of the checkpoint.

How to run it::

    python tuned_examples/watch.py CHECKPOINT episode.gif

CHECKPOINT is what a run ends with the path of. GIFs need the extra `examples`, whose `imageio`
writes them; for `episode.mp4` also `pip install "imageio[ffmpeg]"`. For single agents, and envs
that render with `render_mode="rgb_array"`, as gymnasium's do.

What to expect: the file, and the return of the episode.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio
import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_gpg import GPG
from rllib_gpg.checkpoints import config_in_one_process


def renderable(config: Any) -> gym.Env:
    """Returns the env of a config, ready to be rendered."""
    env_config = dict(config.env_config)
    if isinstance(config.env, str):
        env = gym.make(config.env, render_mode="rgb_array", **env_config)
    else:
        env_config = {**env_config, "render_mode": "rgb_array"}
        env = config.env(EnvContext(env_config, worker_index=0))
    # Episodes may have no other end.
    limit = config.max_episode_steps
    return gym.wrappers.TimeLimit(env, limit) if limit else env


def play(algo: GPG, env: gym.Env, seed: int) -> tuple[list[np.ndarray], float]:
    """Plays one episode; returns its frames and its return."""
    runner, module = algo.env_runner, algo.get_module()
    # As they stand in the checkpoint, with what filters have seen.
    to_module, to_env = runner._env_to_module, runner._module_to_env
    episode = SingleAgentEpisode(
        observation_space=env.observation_space, action_space=env.action_space
    )
    episode.add_env_reset(*env.reset(seed=seed))
    frames = [env.render()]
    while not episode.is_done:
        shared: dict[str, Any] = {}
        parts = {"rl_module": module, "episodes": [episode], "explore": False}
        batch = to_module(batch={}, shared_data=shared, **parts)
        outputs = to_env(batch=module.forward_inference(batch), shared_data=shared, **parts)
        action = outputs[Columns.ACTIONS][0]
        # What the env is given may be the action unsquashed, or clipped.
        observation, reward, terminated, truncated, info = env.step(
            outputs.get(Columns.ACTIONS_FOR_ENV, outputs[Columns.ACTIONS])[0]
        )
        episode.add_env_step(
            observation, action, reward, info, terminated=terminated, truncated=truncated
        )
        frames.append(env.render())
    return frames, episode.get_return()


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("checkpoint", help="the folder of a checkpoint")
parser.add_argument("file", help="the file to write, .gif or .mp4")
parser.add_argument("--seed", type=int, default=0, help="of the episode")


def main() -> None:
    """Plays an episode and writes it to the file."""
    args = parser.parse_args()
    path = str(Path(args.checkpoint).absolute())
    # In this process alone, however many machines the run was on.
    algo = GPG.from_checkpoint(path, config=config_in_one_process(path))
    env = renderable(algo.config)
    frames, episode_return = play(algo, env, args.seed)
    fps = env.metadata.get("render_fps", 30)
    algo.stop()
    # A GIF's unit is the duration of a frame, in ms.
    timing = {"duration": 1000 / fps, "loop": 0} if args.file.endswith(".gif") else {"fps": fps}
    imageio.mimsave(args.file, frames, **timing)
    print(f"return {episode_return:.1f} in {len(frames) - 1} steps\nepisode: {args.file}")


if __name__ == "__main__":
    main()
