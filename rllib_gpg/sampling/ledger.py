"""Which shares of a group are still owed, and how often each has failed."""

from __future__ import annotations

import logging
from collections import Counter, deque

from rllib_gpg.sampling.messages import Share, ShareFailure, ShareResult
from rllib_gpg.sampling.progress import Progress

logger = logging.getLogger("ray.rllib")


class SamplingError(RuntimeError):
    """A group couldn't be completed."""


class CancelledSamplingError(SamplingError):
    """Nobody wants the group any more."""


class Ledger:
    """Which shares of a group wait, which have come back, and how often each has failed.

    Attributes:
        waiting: The shares that nobody samples, the next one first.
        results: What has come back, by the share's index.
        num_redispatched: How many episodes were sent out again.
        num_duplicated: Of how many shares a second copy was sampled.
        progress: Says how far the group has come.
    """

    def __init__(self, shares: list[Share], max_failures: int):
        """Takes the shares of one round, and `max_share_failures`."""
        self.waiting = deque(shares)
        self.results: dict[int, ShareResult] = {}
        self.num_redispatched = 0
        self.num_duplicated = 0
        self.progress = Progress(shares)
        self._num_shares = len(shares)
        self._max_failures = max_failures
        self._failures: Counter[int] = Counter()

    @property
    def is_complete(self) -> bool:
        """Whether all shares have come back."""
        return len(self.results) == self._num_shares

    def enter(self, result: ShareResult | ShareFailure) -> None:
        """Books what an env runner returned for a share."""
        if isinstance(result, ShareFailure):
            self.fail(result.share, result.error, result.traceback)
        else:
            self.results[result.share.index] = result
            self.progress.share_is_in(result.share)

    def fail(self, share: Share, why: str, traceback: str = "", counts: bool = True) -> None:
        """Books a share that has to be sent out again.

        Args:
            share: The share.
            why: What came in between, in words.
            traceback: Where it was raised.
            counts: Whether it may be the share's fault.

        Raises:
            SamplingError: If it has failed `max_failures` times.
        """
        self._failures[share.index] += counts
        if counts and self._failures[share.index] >= self._max_failures:
            raise SamplingError(
                f"Share {share.index} of {'evaluation' if share.in_evaluation else 'group'} "
                f"{share.group} failed {self._max_failures} times "
                f"(`max_share_failures`), the last time with: {why}."
                + (f" It is sampled with {share.seeds()}." if not share.num_steps else "")
                + f"\n{traceback}"
            )
        logger.warning(f"Sampling {share} again, with the same seeds, because of: {why}")
        self.waiting.appendleft(share)
        self.num_redispatched += share.num_episodes
