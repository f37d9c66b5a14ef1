"""What the pages have in common: returns of runs, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import reporting
from benchmarks.reporting import Curve, spread

Result = dict[str, Any]
"""What a cell says."""
Runs = dict[str, dict[str, list[Result]]]
"""Contender -> task -> what its cells say, seed by seed."""


def at_the_end(result: Result, how: str = "sampled") -> float:
    """The mean return of the final evaluation, with actions as in training or `greedy`."""
    return float(np.mean(result["evaluation"][how]))


def mean_at_the_end(results: Sequence[Result], how: str = "sampled") -> float:
    """The mean of some runs."""
    return float(np.mean([at_the_end(result, how) for result in results]))


def final(results: Sequence[Result], digits: int = 0, how: str = "sampled") -> str:
    """Mean and standard error over seeds of the final evaluation."""
    return spread([at_the_end(result, how) for result in results], digits)


def curve_against(result: Result, axis: str) -> Curve:
    """The learning curve against `steps`, `cpu_seconds` or `updates`."""
    at, returns = reporting.returns_curve(result)
    if axis == "steps":
        return at, returns
    curve = result["curve"]
    known = {**curve, "updates": list(range(1, 1 + len(curve["steps"])))}
    return np.interp(at, curve["steps"], known[axis]), returns
