"""What GPG refuses in a config, by name, with the mend.

One file per question: is it a setting at all (`names`), of the critic or the model (`modules`), a
number in its range (`numbers`, `loss`), something env runners can do (`env_runners`), of use to the
learner (`updates`)? Each yields a sentence per problem. `spaces` looks again once the spaces of the
env are known.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.typing import ModuleID

from rllib_gpg.validation import env_runners, loss, modules, names, numbers, updates
from rllib_gpg.validation.env_runners import why_none_starts
from rllib_gpg.validation.names import CRITIC_SETTINGS, check_arguments
from rllib_gpg.validation.spaces import check_new_module, check_spaces

logger = logging.getLogger("ray.rllib")

__all__ = [
    "CRITIC_SETTINGS",
    "check_arguments",
    "check_attributes",
    "check_config",
    "check_keys",
    "check_new_module",
    "check_overrides",
    "check_spaces",
    "warn_of_unknown_modules",
    "why_none_starts",
]


def check_keys(config: AlgorithmConfig, keys: Iterable[str]) -> None:
    """Refuses the keys of a dict config that are no settings; RLlib would ignore them.

    Raises:
        ValueError: Names each unknown key and the nearest known one.
    """
    _refuse(names.unknown_keys(config, keys, "Unknown settings in the config"))


def check_attributes(config: AlgorithmConfig) -> None:
    """Refuses attributes that are no settings, and would go unused.

    Raises:
        ValueError: Names each unknown attribute and the nearest setting.
    """
    _refuse(names.unknown_attributes(config))


def check_config(config: AlgorithmConfig) -> None:
    """Refuses, before any actor starts, what GPG can't run with.

    Raises:
        ValueError: Names the settings and the mends, a line each.
    """
    # The evaluation copy of a config gets fragment lengths from RLlib, and it collects no groups.
    if config.in_evaluation:
        _refuse(_of_one_module(config, ""))
        return
    check_attributes(config)
    _refuse(
        _of_one_module(config, ""),
        modules.problems(config),
        numbers.of_the_group(config),
        numbers.of_the_batch(config),
        env_runners.problems(config),
        updates.problems(config),
    )
    updates.warn_of_idle_settings(config, "")
    for module_id, overrides in config.algorithm_config_overrides_per_module.items():
        check_overrides(config, module_id, overrides)
    _check_evaluation(config)
    env_runners.warn_of_idle_runners(config, config.get_evaluation_config_object())


def check_overrides(
    config: AlgorithmConfig, module_id: ModuleID, overrides: Mapping[str, Any]
) -> None:
    """Refuses what a module can't have in place of the config's settings.

    Raises:
        ValueError: Names the settings and the mends, a line each.
    """
    _refuse(modules.common_settings(config, module_id, overrides))
    module_config = config.copy(copy_frozen=False).update_from_dict(dict(overrides))
    of = f" of module {module_id!r}"
    _refuse(_of_one_module(module_config, of))
    updates.warn_of_idle_settings(module_config, of)


def warn_of_unknown_modules(config: AlgorithmConfig, modules: Iterable[ModuleID]) -> None:
    """Says which settings of single modules are of none that there is, but may be added later."""
    known = {module_id: module_id for module_id in modules if not module_id.startswith("__")}
    for module_id in sorted(config.algorithm_config_overrides_per_module.keys() - known.keys()):
        logger.warning(
            f"`algorithm_config_overrides_per_module` has settings for the module "
            f"{names.with_nearest(module_id, known)}, and there are {', '.join(sorted(known))}: "
            "they count for nothing, unless such a module is added."
        )


def _check_evaluation(config: AlgorithmConfig) -> None:
    if isinstance(config.evaluation_config, dict):
        unknown = "Unknown settings in `evaluation_config`"
        _refuse(names.unknown_keys(config, config.evaluation_config, unknown))
    evaluation_config = config.get_evaluation_config_object()
    _refuse(
        modules.critic_settings(evaluation_config, " in `evaluation_config`"),
        # Evaluation by episodes is as exact as groups are, by the same env runners.
        env_runners.of_the_class(evaluation_config)
        if config.evaluation_interval and config.evaluates_exactly
        else (),
        env_runners.of_failures(evaluation_config) if config.evaluates_exactly else (),
    )


def _of_one_module(config: AlgorithmConfig, of: str) -> Iterable[str]:
    """Yields what is wrong with settings that may differ from module to module."""
    yield from modules.critic_settings(config, of)
    yield from numbers.of_the_estimator(config, of)
    yield from loss.of_the_loss(config, of)


def _refuse(*problems: Iterable[str]) -> None:
    found = [problem for of_one_kind in problems for problem in of_one_kind]
    if found:
        raise ValueError("\n".join(found))
