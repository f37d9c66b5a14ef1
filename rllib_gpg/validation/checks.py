"""What several files ask of a setting: is it a number, a count, a schedule?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


def schedule(config: AlgorithmConfig, name: str, of: str) -> Iterator[str]:
    """Yields a sentence if a setting is no number >= 0 and no schedule of such."""
    value = getattr(config, name)
    if not (_is_value(value) or _is_schedule(value)):
        hint = " YAML takes 1e-3 for text, and 1.0e-3 for a number." * isinstance(value, str)
        yield (
            f"`{name}`{of} must be a number >= 0 or a schedule of such numbers, `[[0, first], "
            f"[env steps, next], ..]`, whose first timestep must be 0; got {value!r}.{hint}"
        )


def _is_value(value: Any) -> bool:
    # RLlib's schedules know Python's own numbers only.
    return isinstance(value, int | float) and is_number(value) and value >= 0


def _is_schedule(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 1
        and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
        and all(_is_value(number) for pair in value for number in pair)
        and value[0][0] == 0
    )


def count(config: AlgorithmConfig, name: str, meaning: str = "", of: str = "") -> Iterator[str]:
    """Yields a sentence if a setting is no integer >= 1."""
    value = getattr(config, name)
    if not is_count(value):
        yield f"`{name}`{of} must be an integer >= 1, got {value!r}. {meaning}".strip()


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether it is an integer >= 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
