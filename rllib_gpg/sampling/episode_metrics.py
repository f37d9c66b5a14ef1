"""What is logged of episodes, under RLlib's names: means over the episodes themselves.

RLlib's env runners each log the mean over the last `metrics_num_episodes_for_smoothing` episodes
of a `sample` call, and what is reported is the mean of these means: with shares of different sizes
or with many episodes, another number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ray.rllib.core import DEFAULT_AGENT_ID, DEFAULT_MODULE_ID
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    EPISODE_AGENT_RETURN_MEAN,
    EPISODE_AGENT_STEPS,
    EPISODE_DURATION_SEC_MEAN,
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_MODULE_RETURN_MEAN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.metrics.stats import ItemStats
from ray.rllib.utils.typing import ResultDict

Key = tuple[str, ...]
Summary = dict[Key, float]
"""The numbers of one episode, under the names of their means."""

Summaries = dict[Key, list[float]]
"""The numbers of several episodes, each in those lists whose names it has, in their order."""

_EXTREMES = {
    (EPISODE_LEN_MEAN,): (EPISODE_LEN_MIN, EPISODE_LEN_MAX),
    (EPISODE_RETURN_MEAN,): (EPISODE_RETURN_MIN, EPISODE_RETURN_MAX),
}


def summarize(
    episode: SingleAgentEpisode | MultiAgentEpisode, earlier_return: float = 0.0
) -> Summary:
    """Returns what RLlib's env runners log of a whole episode.

    Args:
        episode: The episode, or its last piece.
        earlier_return: The sum of the rewards of the pieces before.
    """
    episode_return = earlier_return + float(episode.get_return())
    summary: Summary = {
        (EPISODE_LEN_MEAN,): episode.t if isinstance(episode, SingleAgentEpisode) else len(episode),
        (EPISODE_RETURN_MEAN,): episode_return,
        (EPISODE_DURATION_SEC_MEAN,): episode.get_duration_s(),
    }
    if isinstance(episode, SingleAgentEpisode):
        # The names are RLlib's; with several agents they are others.
        summary["agent_episode_return_mean", DEFAULT_AGENT_ID] = episode_return
        summary["module_episode_return_mean", DEFAULT_MODULE_ID] = episode_return
        return summary
    of_modules: defaultdict[str, float] = defaultdict(float)
    for agent_id, agent_episode in episode.agent_episodes.items():
        agent_return = float(agent_episode.get_return())
        summary[EPISODE_AGENT_RETURN_MEAN, str(agent_id)] = agent_return
        summary[EPISODE_AGENT_STEPS, str(agent_id)] = len(agent_episode)
        of_modules[agent_episode.module_id] += agent_return
    for module_id, module_return in of_modules.items():
        summary[EPISODE_MODULE_RETURN_MEAN, module_id] = module_return
    return summary


def in_columns(summaries: Iterable[Summary]) -> Summaries:
    """Returns the numbers of several episodes, by their names."""
    columns: defaultdict[Key, list[float]] = defaultdict(list)
    for summary in summaries:
        for key, value in summary.items():
            columns[key].append(value)
    return dict(columns)


def log_episodes(shares: Iterable[Summaries], metrics: MetricsLogger) -> None:
    """Logs the means over all episodes, and the least and greatest lengths and returns.

    The mean of an agent or a module is that over the episodes in which it was.
    """
    values: defaultdict[Key, list[float]] = defaultdict(list)
    for summaries in shares:
        for key, column in summaries.items():
            values[key] += column
    for key, column in values.items():
        metrics.log_value(key, sum(column) / len(column), reduce="mean")
        if key in _EXTREMES:
            least, greatest = _EXTREMES[key]
            metrics.log_value(least, min(column), reduce="min")
            metrics.log_value(greatest, max(column), reduce="max")


def keep_last_items(of_shares: list[ResultDict]) -> list[ResultDict]:
    """Leaves out, of what is logged with `reduce="item"`, all but what the last share has.

    An item takes the place of the one before, and RLlib refuses to merge two of them. An env runner
    that has logged one before keeps an empty one in its place, which says nothing.

    Args:
        of_shares: What the env runners logged during each share, in the order of the shares.
    """
    seen: set[Key] = set()

    def without_seen(metrics: ResultDict, key: Key) -> ResultDict:
        kept = {}
        for name, stats in metrics.items():
            if isinstance(stats, dict):
                stats = without_seen(stats, (*key, name))
            elif isinstance(stats, ItemStats):
                if (*key, name) in seen or stats.peek() is None:
                    continue
                seen.add((*key, name))
            kept[name] = stats
        return kept

    return [without_seen(metrics, ()) for metrics in reversed(of_shares)][::-1]
