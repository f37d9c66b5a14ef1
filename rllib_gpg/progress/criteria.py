"""When a run is to stop, and how long that may take."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Mapping
from typing import Any

ITERATION = "training_iteration"
_TIME = "time_total_s"

# The speed of a run is that over so many iterations: episodes become longer as a policy learns.
_NUM_ITERATIONS = 10
# What these hold may be missing at first: until an episode has ended, or an evaluation was due.
_LATER = ("env_runners", "evaluation")


class Criteria:
    """Stop criteria in Tune's form: least values by the paths of metrics, any of which ends a run.

    A name without a slash that isn't at the top of the result is a metric of a module.
    """

    def __init__(self, stop: Mapping[str, float]):
        """Takes the least values."""
        self._stop = dict(stop)
        self._seen: deque[Mapping[str, float]] = deque(maxlen=_NUM_ITERATIONS)

    def reached(self, result: Mapping[str, Any]) -> str | None:
        """Returns the first criterion that a result meets, with its value, in words.

        Raises:
            ValueError: If a criterion is about something that isn't in the result and won't be.
        """
        for path, least in self._stop.items():
            value = look_up(result, path)
            if value is None and path.split("/")[0] not in _LATER:
                raise ValueError(f"`stop`: the results have no {_with_nearest(path, result)}.")
            if value is not None and value >= least:
                return f"{path} is {value:,.6g}, and {least:,.6g} was asked for"
        return None

    def seconds_left(self, result: Mapping[str, Any]) -> float | None:
        """Returns after how much time the run ends at the latest, if that can be told.

        By what only grows, such as iterations, time and env steps. A return may end it sooner.
        """
        # dx/dt over the last iterations
        now = {path: look_up(result, path) for path in (_TIME, *filter(_only_grows, self._stop))}
        self._seen.append({path: value for path, value in now.items() if value is not None})
        first, last = self._seen[0], self._seen[-1]
        seconds = last[_TIME] - first[_TIME]
        # (c - x) / (dx/dt)
        left = [
            (self._stop[path] - last[path]) * seconds / (last[path] - first[path])
            for path in last
            if path in self._stop and path in first and last[path] > first[path]
        ]
        return max(0.0, min(left)) if left else None


def look_up(result: Mapping[str, Any], path: str) -> float | None:
    """Returns the number that stands in a result at a path, None if there is none.

    Args:
        result: A result of `Algorithm.train`, nested.
        path: Its keys, joined by slashes. A name that isn't at the top of the result is looked for
            among the metrics of `default_policy`.
    """
    for root in (result, result.get("learners", {}).get("default_policy", {})):
        found: Any = root
        for key in path.split("/"):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            return float(found)
    return None


def _only_grows(path: str) -> bool:
    return path in (ITERATION, _TIME) or path.endswith("_lifetime")


def _with_nearest(path: str, result: Mapping[str, Any]) -> str:
    known = [*result, *result.get("learners", {}).get("default_policy", {})]
    nearest = difflib.get_close_matches(path, known, n=1)
    return f"{path!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else "")
