"""Evaluation by episodes: which of them, and with which settings."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.typing import ResultDict

from rllib_gpg.sampling.group import cut_into_shares
from rllib_gpg.sampling.messages import Share

if TYPE_CHECKING:
    from rllib_gpg.group_algorithm import GroupAlgorithm

# What the env runners for training are told with each share; all else is theirs since they began.
_WITHIN_REACH = frozenset(
    {"explore", "seed", "episodes_per_share", "duplicate_last_shares", "max_share_failures"}
)


def evaluate_episodes(
    algorithm: GroupAlgorithm, eval_env_runner_group: EnvRunnerGroup | None
) -> tuple[ResultDict, int, int]:
    """Has the form of a `custom_evaluation_function`; RLlib takes the results from the metrics."""
    algorithm.evaluate_episodes(eval_env_runner_group)
    return {}, 0, 0


def evaluation_shares(
    config: AlgorithmConfig,
    evaluation_config: AlgorithmConfig,
    run_seed: int,
    number: int,
    *,
    num_env_runners: int,
) -> list[Share]:
    """Cuts the episodes of one evaluation into shares.

    Args:
        config: The algorithm's config: how many episodes.
        evaluation_config: The evaluation's. A seed that it alone names is its own.
        run_seed: The seed of the whole run.
        number: The number of the evaluation in the run.
        num_env_runners: How many env runners there are for it.
    """
    named = evaluation_config.seed not in (None, config.seed)
    return cut_into_shares(
        evaluation_config,
        evaluation_config.seed if named else run_seed,
        number,
        config.evaluation_duration,
        num_env_runners=num_env_runners,
    )


def refuse_if_out_of_reach(config: AlgorithmConfig, evaluation_config: AlgorithmConfig) -> None:
    """Refuses an evaluation by the env runners for training that they can't do as it says.

    Args:
        config: The algorithm's config.
        evaluation_config: The evaluation's, as RLlib makes it of the former.

    Raises:
        ValueError: Names the settings that those can't take, and the mend.
    """
    unmet = _out_of_reach(config, evaluation_config)
    if unmet is not None:
        raise ValueError(unmet)


def warn_if_out_of_reach(config: AlgorithmConfig, evaluation_config: AlgorithmConfig) -> None:
    """Warns of what `refuse_if_out_of_reach` will refuse, perhaps after hours of training."""
    unmet = _out_of_reach(config, evaluation_config)
    if unmet is not None:
        warnings.warn(f"{unmet} `evaluate()` will refuse.", stacklevel=3)


def _out_of_reach(config: AlgorithmConfig, evaluation_config: AlgorithmConfig) -> str | None:
    given = config.evaluation_config or {}
    if "in_evaluation" in given:  # RLlib makes dicts of config objects.
        names = ["a config of its own"]
    else:
        by_episodes = config.custom_evaluation_function is evaluate_episodes
        names = [
            f"`{name}`"
            for name in sorted(given.keys() - (_WITHIN_REACH if by_episodes else set()))
            # Some keys stand for several settings, none of which has this name.
            if getattr(evaluation_config, name, 0) != getattr(config, name, 1)
        ]
    if not names:
        return None
    return (
        f"The evaluation config sets {', '.join(names)}, but there are no env runners for "
        "evaluation, and those for training can't take it. Set `evaluation(evaluation_interval=..)`"
        " or `evaluation_num_env_runners`, and there are."
    )
