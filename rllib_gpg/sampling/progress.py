"""How far a group has come, for whoever waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rllib_gpg.sampling.messages import Share

logger = logging.getLogger("ray.rllib")

# A group that takes longer says every so many seconds how far it has come.
_SECONDS = 10.0
# Who listens is told this often.
_SECONDS_TO_LISTENER = 0.25

_listener: Callable[[str], None] | None = None


@contextmanager
def heard_by(listener: Callable[[str], None]) -> Iterator[None]:
    """Has somebody listen meanwhile: what would be logged every 10 s is told, four times a second.

    Args:
        listener: Is told how many episodes are in; by several threads, if evaluation runs beside
            training or groups are sampled ahead.
    """
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


class Progress:
    """Says every few seconds how many episodes are in, of a group or an evaluation that takes long.

    As a warning: by default RLlib shows nothing less, and a run that says nothing for minutes
    looks as if it hung.
    """

    def __init__(self, shares: list[Share]):
        """Starts the clock.

        Args:
            shares: All shares of one group or one evaluation.
        """
        what = "evaluation" if shares[0].in_evaluation else "group"
        self._of_rollouts = shares[0].num_steps > 0
        unit = "rollouts" if self._of_rollouts else "episodes"
        self._owed = sum(share.num_episodes for share in shares)
        self._whole = f"{self._owed} {unit} of the {what}"
        self._num_episodes = 0
        self._num_env_steps = 0
        # What the share that is being sampled in this process has come to.
        self._share = 0, 0
        self._begun = time.monotonic()
        self._next = self._begun + (_SECONDS_TO_LISTENER if _listener else _SECONDS)

    def share_is_at(self, num_ended: int, num_env_steps: int) -> None:
        """Takes note of how far a share has come that is being sampled in this process.

        Args:
            num_ended: How many of its episodes have ended.
            num_env_steps: How many env steps have been made for it.
        """
        # Rollouts of a share all end together.
        self._share = 0 if self._of_rollouts else num_ended, num_env_steps
        self.say()

    def share_is_in(self, share: Share) -> None:
        """Takes note of a share whose episodes are all in."""
        self._num_episodes += share.num_episodes
        self._num_env_steps += self._share[1]
        self._share = 0, 0
        if _listener and self._num_episodes == self._owed:
            _listener(f"all {self._whole} are in")

    def say(self) -> None:
        """Says how many episodes are in, if that has not been said for a while."""
        now = time.monotonic()
        if now < self._next:
            return
        listener = _listener
        self._next = now + (_SECONDS_TO_LISTENER if listener else _SECONDS)
        num_ended, num_env_steps = self._share
        steps = self._num_env_steps + num_env_steps
        said = (
            f"{self._num_episodes + num_ended} of {self._whole} are in after "
            f"{now - self._begun:.0f} s" + (f" ({steps:,} env steps)." if steps else ".")
        )
        if listener:
            listener(said)
        else:
            logger.warning(said)
