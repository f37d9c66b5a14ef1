"""When a run is to stop, and how long that may take."""

from __future__ import annotations

import difflib
import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ray.rllib.utils.metrics import EPISODE_RETURN_MEAN
from ray.tune.utils import flatten_dict

ITERATION = "training_iteration"
_TIME = "time_total_s"

# The speed of a run is that over so many iterations: episodes become longer as a policy learns.
_NUM_ITERATIONS = 10
# What these hold may be missing at first: until an episode has ended, or an evaluation was due; and
# metrics of the user's own even longer.
_LATER = ("env_runners", "evaluation")


class Criteria:
    """Stop criteria in Tune's form: least values by the paths of metrics, any of which ends a run.

    A name without a slash that isn't at the top of the result is a metric of a module.
    """

    def __init__(self, stop: Mapping[str, float]):
        """Takes the least values."""
        self._stop = dict(stop)
        self._seen: deque[Mapping[str, float]] = deque(maxlen=_NUM_ITERATIONS)
        self._named: set[str] = set()

    def reached(self, result: Mapping[str, Any]) -> str | None:
        """Returns the first criterion that a result meets, with its value, in words.

        Raises:
            ValueError: If a criterion is about something that isn't in the result and won't be, or
                that is no number.
        """
        for path, least in self._stop.items():
            value = look_up(result, path)
            if value is None and path.split("/")[0] not in _LATER:
                raise ValueError(f"`stop`: the results have no {_with_nearest(path, result)}.")
            if value is not None and value >= least:
                return f"{path} is {value:,.6g}, and {least:,.6g} was asked for"
        return None

    def missing(self, result: Mapping[str, Any]) -> Iterator[str]:
        """Yields, once each, the criteria that could be in a result by now, in a sentence."""
        for path in self._stop:
            root = path.split("/")[0]
            if root not in _LATER or path in self._named or look_up(result, path) is not None:
                continue
            if _has_episodes(result.get(root, {})):
                self._named.add(path)
                yield f"`stop`: so far the results have no {_with_nearest(path, result)}."

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
        left = [seconds for seconds in left if math.isfinite(seconds)]
        return max(0.0, min(left)) if left else None


def look_up(result: Mapping[str, Any], path: str) -> float | None:
    """Returns the number that stands in a result at a path, None if there is none.

    Args:
        result: A result of `Algorithm.train`, nested.
        path: Its keys, joined by slashes. A name that isn't at the top of the result is looked for
            among the metrics of `default_policy`.

    Raises:
        ValueError: If something else stands there.
    """
    for root in (result, result.get("learners", {}).get("default_policy", {})):
        found: Any = root
        for key in path.split("/"):
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None:
            if np.ndim(found) or not np.issubdtype(np.asarray(found).dtype, np.number):
                raise ValueError(f"`stop`: {path!r} isn't a number in the results.")
            return float(found)
    return None


def _has_episodes(sampled: Mapping[str, Any]) -> bool:
    """Whether an episode has ended, of training or of an evaluation."""
    return EPISODE_RETURN_MEAN in sampled.get("env_runners", sampled)


def _only_grows(path: str) -> bool:
    return path in (ITERATION, _TIME) or path.endswith("_lifetime")


def _with_nearest(path: str, result: Mapping[str, Any]) -> str:
    of_policy = result.get("learners", {}).get("default_policy", {})
    known = [*result, *flatten_dict(dict(result)), *of_policy]
    nearest = difflib.get_close_matches(path, known, n=1)
    return f"{path!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else "")
