"""The seeds of a share: where its episodes begin, and what they draw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rllib_gpg.seeding import MAX_SEED, ROLLOUT, SAMPLE_CALL, START, generator


@dataclass(frozen=True)
class Seeds:
    """The seeds of a few whole episodes.

    Attributes:
        episodes: One per episode, for `env.reset(seed=..)`; all different, unless episodes share
            their starts. Those of other shares coincide with them by chance only: as 31 bits have
            it, which is as much as envs take.
        actions: The seed of the actions drawn, over all these episodes.
    """

    episodes: tuple[int, ...]
    actions: int

    @classmethod
    def draw(cls, num_episodes: int, run_seed: int, *key: int) -> Seeds:
        """Derives the seeds of `num_episodes` episodes from the run's seed and a key."""
        source = generator(run_seed, *key)
        episodes = source.choice(MAX_SEED, size=num_episodes, replace=False)
        return cls(tuple(int(seed) for seed in episodes), int(source.integers(MAX_SEED)))

    @classmethod
    def for_sample_call(cls, num_episodes: int, run_seed: int, *key: int) -> Seeds:
        """Derives the seeds of one plain `sample(num_episodes=..)` call (PPO)."""
        return cls.draw(num_episodes, run_seed, SAMPLE_CALL, *key)


def seed_of_start(run_seed: int, group: int, start: int) -> int:
    """Returns the seed of a start of a group, with which several episodes begin.

    The number of the start alone tells it from others: the episodes of one may be in two shares.
    """
    return int(generator(run_seed, START, group, start).integers(MAX_SEED))


def seeds_of_rollout(run_seed: int, group: int, rollout: int) -> Iterator[int]:
    """Yields the seeds of the episodes that begin in one rollout of a group."""
    source = generator(run_seed, ROLLOUT, group, rollout)
    while True:
        yield int(source.integers(MAX_SEED))
