"""GPG on a memory task, with an LSTM: recall at the end what was seen at the start.

What it shows: a recurrent module. The first observation is a cue, one of two; 8 blank steps
follow; then the action must name the cue. All observations but the first are the same in all
episodes, so that a policy without a memory can only guess: 50 is the best it can do.

`max_seq_len` is the length of an episode here: gradients flow back to the cue. A smaller one cuts
episodes into sequences, each of which begins in the state that the LSTM had while sampling.

How to run it::

    python tuned_examples/memory_gpg.py

What to expect: 95 in one group after 17, 11 and 17 iterations (seeds 0, 1, 2; 700 to 1,100
episodes, seconds on 2 cores), and no less than 96 in each of the last 10 of 60 iterations. Without
`use_lstm` a group's mean return stays around 50.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from run_example import example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=95.0, iterations=100)


class Recall(gym.Env):
    """Shows one of two cues, then nothing for `delay` steps, then asks; 100 for the right answer.

    The observation is (the cue, -1 or 1, and 0 after the first step; whether this is the question).
    """

    def __init__(self, config: dict[str, Any]):
        """Takes `config["delay"]`, the number of blank steps."""
        self.delay = config["delay"]
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Draws and shows a cue."""
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(2))
        self.t = 0
        return np.array([2.0 * self.cue - 1.0, 0.0], np.float32), {}

    def step(self, action: int) -> Any:
        """Judges the answer if this was the question; other actions do nothing."""
        was_question = self.t == self.delay + 1
        self.t += 1
        is_question = self.t == self.delay + 1
        reward = 100.0 if was_question and action == self.cue else 0.0
        return np.array([0.0, is_question], np.float32), reward, was_question, False, {}


DELAY = 8

config = (
    GPGConfig()
    .environment(Recall, env_config={"delay": DELAY})
    .env_runners(num_envs_per_env_runner=32)
    .training(group_size=64, gamma=1.0)
    .rl_module(
        model_config={
            "fcnet_hiddens": [32],
            "use_lstm": True,
            "lstm_cell_size": 32,
            "max_seq_len": DELAY + 2,
        }
    )
)

if __name__ == "__main__":
    run_example(config, parser.parse_args())
