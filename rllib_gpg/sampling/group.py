"""Gathers a group: exactly N whole episodes, over all env runners."""

from __future__ import annotations

import math
from collections import deque

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.typing import EpisodeType, ResultDict

from rllib_gpg.sampling.share import Share, ShareFailure, ShareResult, Weights

# Results are fetched together: one that has come waits for the others, but no longer than this.
_POLL_S = 0.005
_TAG = "sample_share"


def cut_into_shares(config: AlgorithmConfig, run_seed: int, group: int) -> list[Share]:
    """Cuts a group into shares, by the config alone.

    Neither which env runner was slow or lost, nor - with `episodes_per_share` set - how many there
    are, changes a group.

    Args:
        config: The algorithm's config: `group_size`, `episodes_per_share`, and the numbers of env
            runners and of envs per env runner, from which the default size of a share follows.
        run_seed: The seed of the whole run.
        group: The number of the group in the run.

    Returns:
        The shares. Their numbers of episodes add up to `group_size`.
    """
    size = config.episodes_per_share or min(
        config.num_envs_per_env_runner,
        math.ceil(config.group_size / max(1, config.num_env_runners)),
    )
    return [
        Share(run_seed, group, index, min(size, config.group_size - first))
        for index, first in enumerate(range(0, config.group_size, size))
    ]


def gather(
    env_runner_group: EnvRunnerGroup, shares: list[Share], weights: Weights
) -> tuple[list[EpisodeType], list[ResultDict]]:
    """Has every share sampled, by the remote env runners or, if there are none, the local one.

    Args:
        env_runner_group: The env runners, all of them `GroupEnvRunner`s.
        shares: The shares of one group.
        weights: The weights to sample them with.

    Returns:
        The episodes in the order of the shares, whichever came first; and the metrics of the env
        runners.

    Raises:
        SamplingError: If the env or the policy raised an exception, or no env runner is left.
    """
    if env_runner_group.num_remote_env_runners() == 0:
        runner = env_runner_group.local_env_runner
        results = [_checked(runner.sample_share(share, weights)) for share in shares]
        metrics = [runner.get_metrics()]
    else:
        results = _gather_remote(env_runner_group, shares, weights)
        metrics = [result.metrics for result in results]
    return [episode for result in results for episode in result.episodes], metrics


class SamplingError(RuntimeError):
    """A group couldn't be completed."""


def _gather_remote(
    env_runner_group: EnvRunnerGroup, shares: list[Share], weights: Weights
) -> list[ShareResult]:
    """Hands the next share to whichever env runner is free, until all have come back."""
    waiting = deque(shares)
    in_flight: dict[int, Share] = {}
    results: dict[int, ShareResult] = {}
    while len(results) < len(shares):
        healthy = set(env_runner_group.healthy_env_runner_ids())
        # Sent again as it was, a lost share gives the same episodes.
        waiting.extendleft(in_flight.pop(runner) for runner in set(in_flight) - healthy)
        if not healthy:
            raise SamplingError(
                f"All {env_runner_group.num_remote_env_runners()} env runners are lost, and "
                f"{len(waiting)} of {len(shares)} shares of the group are still to be sampled. "
                "The logs of the env runners say why."
            )
        idle = sorted(healthy - set(in_flight))
        assigned = {runner: waiting.popleft() for runner in idle[: len(waiting)]}
        _dispatch(env_runner_group, assigned, weights)
        in_flight.update(assigned)
        for runner, result in env_runner_group.fetch_ready_async_reqs(
            tags=_TAG, timeout_seconds=_POLL_S
        ):
            share = in_flight.pop(runner, None)
            if share is None:
                continue
            if share == result.share:
                results[share.index] = _checked(result)
            else:
                # What came was asked for by an earlier call that ended in an error.
                waiting.appendleft(share)
    return [results[share.index] for share in shares]


def _dispatch(
    env_runner_group: EnvRunnerGroup, assigned: dict[int, Share], weights: Weights
) -> None:
    if not assigned:
        return
    env_runner_group.foreach_env_runner_async(
        # Lists throughout: RLlib pairs a scalar with the wrong env runner once one is unhealthy.
        func=["sample_share"] * len(assigned),
        kwargs=[{"share": share, "weights": weights} for share in assigned.values()],
        remote_worker_ids=list(assigned),
        tag=_TAG,
    )


def _checked(result: ShareResult | ShareFailure) -> ShareResult:
    if isinstance(result, ShareFailure):
        raise SamplingError(
            f"Sampling failed with {result.error}, in share {result.share.index} of group "
            f"{result.share.group} ({result.share.seeds()}). The env runner's traceback:\n"
            f"{result.traceback}"
        )
    return result
