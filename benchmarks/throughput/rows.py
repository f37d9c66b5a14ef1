"""What is measured: one row of the table each, and what the ratios should be."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym

NATIVE = "vector_entry_point"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        env: The gymnasium id.
        num_envs: Parallel envs.
        group_size: Episodes per group.
        episode_length: The mean length of an episode to which the policy is trained; 0: not at all.
        iterations: Iterations per repetition.
        vectorize: `gym_env_vectorize_mode` of GPG and RLlib's PPO on gymnasium's env.
        envpool_threads: With how many threads GPG runs on EnvPool; 0: on gymnasium.
        targets: What the ratios should be at least: to RLlib's PPO and to SB3's end to end, and to
            the bare loop in sampling. None: only simulated steps are counted.
        episodes_per_share: GPG's setting; None: its default.
        num_env_runners: Remote ones, each with so many envs, and then the learner is in a process
            of its own as well; 0: everything is in one process. What is compared is how fast
            iterations are; the target is the first.
    """

    env: str
    num_envs: int
    group_size: int
    episode_length: int
    iterations: int
    vectorize: str = "sync"
    envpool_threads: int = 0
    targets: tuple[float, ...] | None = None
    episodes_per_share: int | None = None
    num_env_runners: int = 0

    def __str__(self) -> str:
        """Names the row in tables."""
        simulator = "EnvPool" if self.envpool_threads else "gymnasium"
        simulator = "native" if self.vectorize == NATIVE else simulator
        runners = f", {self.num_env_runners} env runners" if self.num_env_runners else ""
        return f"{self.env}, {self.num_envs} envs, {simulator}{runners}"

    @property
    def is_continuous(self) -> bool:
        """Whether actions are continuous."""
        return isinstance(gym.make(self.env).action_space, gym.spaces.Box)


ROWS = {
    "cartpole-32": Row("CartPole-v1", 32, 256, 200, 1, NATIVE, targets=(4.0, 1.8, 0.9)),
    "cartpole-128": Row("CartPole-v1", 128, 1024, 200, 1, NATIVE, targets=(4.5, 2.3, 0.9)),
    "halfcheetah-16": Row("HalfCheetah-v5", 16, 16, 0, 1, targets=(1.7, 1.0, 0.9)),
    "halfcheetah-64": Row(
        "HalfCheetah-v5", 64, 64, 0, 1, envpool_threads=2, targets=(3.5, 2.0, 0.85)
    ),
    "lunarlander-64": Row(
        "LunarLander-v3", 64, 512, 300, 1, envpool_threads=2, targets=(2.5, 3.5, 0.8)
    ),
    "lunarlander-32": Row("LunarLander-v3", 32, 32, 300, 1),
    "lunarlander-32-envpool": Row("LunarLander-v3", 32, 32, 300, 1, envpool_threads=2),
    # As one env runner, whose share is the whole group: its vector env moves as a whole.
    "cartpole-32-runners-2": Row(
        "CartPole-v1",
        32,
        512,
        200,
        1,
        NATIVE,
        targets=(5.0,),
        episodes_per_share=256,
        num_env_runners=2,
    ),
    "halfcheetah-16-runners-2": Row(
        "HalfCheetah-v5", 16, 32, 0, 1, targets=(3.0,), num_env_runners=2
    ),
}
