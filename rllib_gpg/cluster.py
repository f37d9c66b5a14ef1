"""Has Ray what an algorithm is about to ask it for? Actors that can't start are waited for."""

from __future__ import annotations

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_WAY_OUT = {
    "CPU": "`env_runners(num_cpus_per_env_runner=0.5)`, or `ray.init(num_cpus=..)` first",
    "GPU": "`learners(num_gpus_per_learner=..)`",
}


def why_it_waits(config: AlgorithmConfig) -> str | None:
    """Says what Ray is short of, or None if nothing.

    A cluster may grow, so that is no error. In Ray Tune a trial has what it needs before it begins.

    Args:
        config: Of the algorithm whose actors are about to be made.
    """
    needs = _needs(config)
    if not any(n for of_actors in needs.values() for n, _ in of_actors.values()):
        return None
    if not ray.is_initialized():
        ray.init()  # As the first actor would.
    if ray.util.get_current_placement_group() is not None:
        return None
    has, sentences = ray.cluster_resources(), []
    for resource, of_actors in needs.items():
        needed, there = sum(n * each for n, each in of_actors.values()), has.get(resource, 0.0)
        if needed > there:
            parts = [f"{n} {what} with {each:g} each" for what, (n, each) in of_actors.items() if n]
            sentences.append(
                f"Ray has {there:g} {resource}s, and this takes {needed:g}: {', '.join(parts)}. "
                f"Unless the cluster grows, it waits for ever. Take fewer, or less for each: "
                f"{_WAY_OUT[resource]}."
            )
    return " ".join(sentences) or None


def _needs(config: AlgorithmConfig) -> dict[str, dict[str, tuple[int, float]]]:
    """Per resource and kind of actor: how many there are, and what each takes."""
    evaluation = config.evaluation_config or {}
    learner_cpus = config.num_cpus_per_learner
    if learner_cpus == "auto":  # RLlib's rule
        learner_cpus = 0 if config.num_gpus_per_learner else 1

    def of_evaluation(setting: str) -> float:
        return float(evaluation.get(setting, getattr(config, setting)))

    return {
        resource: {
            "env runners": (config.num_env_runners, getattr(config, per_env_runner)),
            "for evaluation": (config.evaluation_num_env_runners, of_evaluation(per_env_runner)),
            "learners": (config.num_learners, per_learner),
        }
        for resource, per_env_runner, per_learner in (
            ("CPU", "num_cpus_per_env_runner", learner_cpus),
            ("GPU", "num_gpus_per_env_runner", config.num_gpus_per_learner),
        )
    }
