"""What is wrong with a run, in sentences with the mend: each is said once per run and module.

A symptom is spoken of when it has been seen in several iterations in a row: one is noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import ALL_MODULES
from ray.rllib.utils.metrics import LEARNER_RESULTS, TIMERS
from ray.rllib.utils.typing import ModuleID, ResultDict

from rllib_gpg.diagnosis.symptoms import (
    MIN_STD,
    Iteration,
    Symptom,
    all_alone,
    all_cut,
    entropy_gone,
    kl_exploding,
    most_alone,
    mostly_clipped,
    nothing_explained,
    nothing_to_learn,
    update_takes_longer,
)

# Symptom, what it counts as, and in how many iterations in a row it has to be seen.
_SYMPTOMS: tuple[tuple[Symptom, str, int], ...] = (
    (all_alone, "alone", 1),
    (most_alone, "alone", 5),
    # Rare rewards are missed several times in a row.
    (nothing_to_learn, "nothing to learn", 10),
    (nothing_explained, "nothing explained", 10),
    (entropy_gone, "entropy", 5),
    (mostly_clipped, "clipped", 5),
    (kl_exploding, "kl", 3),
    (all_cut, "cut", 10),
)
# Of the whole algorithm, not of one module.
_SYMPTOMS_OF_ALL: tuple[tuple[Symptom, str, int], ...] = ((update_takes_longer, "update", 5),)


class TrainingWarnings:
    """Says what is wrong with a run, once per module."""

    def __init__(self, config: AlgorithmConfig):
        """Takes the algorithm's config."""
        # Not the frozen one of the algorithm, of which RLlib can't make those of modules.
        self._config = config.copy(copy_frozen=False)
        self._said: set[tuple[str, ModuleID]] = set()
        self._in_a_row: Counter[tuple[str, ModuleID]] = Counter()
        self._best_return: dict[ModuleID, float] = {}

    def add_module(self, module_id: ModuleID, overrides: Mapping[str, Any]) -> None:
        """Judges a module by its own settings from now on, whatever was there of that name.

        Args:
            module_id: The module's ID.
            overrides: The settings that are another than the config's.
        """
        self._config.algorithm_config_overrides_per_module[module_id] = dict(overrides)
        self._config._per_module_overrides.pop(module_id, None)
        self._best_return.pop(module_id, None)
        self._said = {key for key in self._said if key[1] != module_id}
        for key in [key for key in self._in_a_row if key[1] == module_id]:
            del self._in_a_row[key]

    def of(
        self, result: ResultDict, spaces: Mapping[ModuleID, tuple[gym.Space, gym.Space]]
    ) -> Iterator[str]:
        """Yields what is to be said after an iteration.

        Args:
            result: Its results.
            spaces: The spaces of observations and actions of each module.
        """
        timers = result.get(TIMERS, {})
        of_all = Iteration({}, timers, self._config, None, math.inf)
        yield from self._noticed(ALL_MODULES, of_all, _SYMPTOMS_OF_ALL)
        for module_id, learned in result.get(LEARNER_RESULTS, {}).items():
            # Beside modules there is what learner connectors of the user's have logged.
            if not isinstance(learned, Mapping) or "group_num_episodes" not in learned:
                continue
            seen = Iteration(
                learned,
                timers,
                self._config.get_config_for_module(module_id),
                spaces[module_id][1] if module_id in spaces else None,
                self._best_return.get(module_id, math.inf),
            )
            for sentence in self._noticed(module_id, seen, _SYMPTOMS):
                yield f"Module {module_id!r}: {sentence}"
            if seen["group_advantage_std"] >= MIN_STD:
                best = max(seen["group_return_mean"], self._best_return.get(module_id, -math.inf))
                self._best_return[module_id] = best

    def _noticed(
        self, module_id: ModuleID, seen: Iteration, symptoms: Sequence[tuple[Symptom, str, int]]
    ) -> Iterator[str]:
        for symptom, name, patience in symptoms:
            key = (name, module_id)
            if key in self._said:
                continue
            counted = (symptom.__name__, module_id)
            sentence = symptom(seen)
            self._in_a_row[counted] = self._in_a_row[counted] + 1 if sentence else 0
            if sentence and self._in_a_row[counted] >= patience:
                self._said.add(key)
                yield f"{sentence[0].upper()}{sentence[1:]}"
