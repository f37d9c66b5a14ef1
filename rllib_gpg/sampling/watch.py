"""What an env runner says of envs that misbehave."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import tree

logger = logging.getLogger("ray.rllib")

# Vector steps without the end of any episode after which the runner says so; then after twice as
# many, and so on. Longer than an episode of any common benchmark but Atari's longest.
_STEPS_BEFORE_WARNING = 10_000


def blame_observations(observed: Iterable[tuple[str, int, Any]], error: Exception) -> None:
    """Raises an error that names the first observation that isn't finite, if there is one.

    What a policy makes of nan says nothing about where it comes from.

    Args:
        observed: Words for an episode, the step it has come to, and what it observes there.
        error: What the policy raised.

    Raises:
        ValueError: From `error`.
    """
    for name, t, observation in observed:
        for leaf in map(np.asarray, tree.flatten(observation)):
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                raise ValueError(
                    f"{name}: the observation at step {t} is not finite: {leaf}. Mend the "
                    "environment."
                ) from error


class Watch:
    """Says so when no episode ends: an env without a time limit would hang in silence."""

    def __init__(self, mend: str):
        """Takes what to do about it, as a sentence."""
        self._mend = mend
        self._num_steps = 0
        self._patience = _STEPS_BEFORE_WARNING

    def step(self, *, any_ended: bool) -> None:
        """Counts one vector step."""
        self._num_steps = 0 if any_ended else self._num_steps + 1
        if self._num_steps >= self._patience:
            logger.warning(
                f"No episode has ended in {self._num_steps} steps of every env. GPG waits for "
                f"whole episodes. If this env has no time limit, set one: {self._mend}."
            )
            self._patience *= 2
