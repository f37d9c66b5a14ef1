"""What can only be checked once the spaces of the env and the modules are known."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.typing import ModuleID

from rllib_gpg.advantages.baselines import Baseline
from rllib_gpg.advantages.binning import Binning, TimeBinning, keys_last, name_of, resolve_binning
from rllib_gpg.learning import GPGTRPOTorchLearner
from rllib_gpg.learning.reference import References, needs_reference
from rllib_gpg.validation.numbers import baseline_of


def check_spaces(
    config: AlgorithmConfig,
    spaces: dict[str, tuple[gym.Space, gym.Space]],
    recurrent: Collection[ModuleID] = (),
    *,
    together: bool = False,
) -> None:
    """Holds binning and baseline against the observations, before the first sample.

    Warns of settings that can't give a signal.

    Args:
        config: The algorithm's config.
        spaces: (observation space, action space) of the env and of the modules.
        recurrent: The modules that are recurrent.
        together: Whether the modules have one forward pass, as after a shared encoder.

    Raises:
        ValueError: If the binning or the baseline can't take the observations, or the baseline the
            module; if something runs a module by itself whose pass is one with others.
    """
    env_space = spaces.get(INPUT_ENV_SINGLE_SPACES, (None,))[0]
    module_ids = spaces.keys() - {INPUT_ENV_SPACES, INPUT_ENV_SINGLE_SPACES}
    config = config.copy(copy_frozen=False)
    for module_id in sorted(module_ids):
        module_config = config.get_config_for_module(module_id)
        binning, baseline = resolve_binning(module_config.binning), baseline_of(module_config)
        module_space = spaces[module_id][0]
        if baseline.needs_scores and module_id in recurrent:
            raise ValueError(
                f"{baseline} needs the policy's gradients step by step, and module {module_id!r} "
                "is recurrent. Take baseline='bins' or 'ridge'."
            )
        if together and (setting := _runs_alone(module_config, baseline)):
            raise ValueError(
                f"{setting} runs module {module_id!r} by itself, and this `MultiRLModule` has a "
                "`_forward_train` for all of its modules: what that hands them, such as the output "
                "of a shared encoder, would be missing. Leave the setting out."
            )
        baseline.check_space(_num_numbers(module_space))
        # Several agents of one episode are a group, and so are the episodes of one rollout.
        whole = config.batch_mode == "complete_episodes"
        alone = config.group_size == 1 and whole and not config.is_multi_agent
        carried = baseline.remembers and keys_last(binning)
        if alone and not carried and (isinstance(binning, TimeBinning) or baseline.remembers):
            bins = (
                "time bins" if isinstance(binning, TimeBinning) else f"bins of {name_of(binning)}"
            )
            warnings.warn(
                f"group_size=1 with {bins}: every step is alone in its bin, its advantage is 0, "
                "and nothing will be learned. Set a larger `group_size`, or a baseline that "
                "remembers earlier groups (`baseline_decay=0.8`), with bins that last from group "
                "to group.",
                stacklevel=2,
            )
        # The one-hot floats of a discrete space repeat exactly, as its integers do.
        dtype = _env_dtype(config, env_space, module_id) or module_space.dtype
        level = module_config.second_level
        for each in (binning, resolve_binning(level.binning) if level else None):
            if isinstance(each, Binning):
                each.check_space(shape=module_space.shape, dtype=dtype)


def check_new_module(
    config: AlgorithmConfig,
    spaces: dict[str, tuple[gym.Space, gym.Space]],
    module_id: ModuleID,
    spec: RLModuleSpec,
    arguments: Mapping[str, Any],
) -> None:
    """Holds a module that is to be added against its settings, as those of the beginning are.

    Args:
        config: The algorithm's config.
        spaces: (observation space, action space) of the env and of the modules that are there.
        module_id: The ID that the module is to have.
        spec: What it is built from.
        arguments: Further ones of `Algorithm.add_module`, by name.

    Raises:
        ValueError: As `check_spaces` does; or if the module can't have the reference that it is to.
    """
    module = spec.build()
    overrides = arguments.get("config_overrides") or {}
    trained = arguments.get("new_should_module_be_updated")
    config = config.copy(copy_frozen=False).multi_agent(
        algorithm_config_overrides_per_module={module_id: dict(overrides)},
        policies_to_train=config.policies_to_train if trained is None else trained,
    )
    of_env = {key: each for key, each in spaces.items() if key == INPUT_ENV_SINGLE_SPACES}
    of_module = {module_id: (module.observation_space, module.action_space)}
    check_spaces(config, of_env | of_module, {module_id} if module.is_stateful() else ())
    if needs_reference(config, module_id):
        References(config.reference).of(module_id, module)


def _runs_alone(config: AlgorithmConfig, baseline: Baseline) -> str | None:
    """Returns the setting by which a module is run by itself, if there is one."""
    if config.reference_kl_coeff > 0.0:
        return f"`reference_kl_coeff={config.reference_kl_coeff}`"
    if issubclass(config.learner_class, GPGTRPOTorchLearner):
        return "`GPGTRPOTorchLearner`"
    return f"{baseline}" if baseline.needs_scores else None


def _num_numbers(space: gym.Space) -> int | None:
    """Returns how many numbers a flattened observation has, None if it can't be flattened."""
    return gym.spaces.utils.flatdim(space) if space.is_np_flattenable else None


def _env_dtype(config: AlgorithmConfig, env_space: gym.Space | None, module_id: ModuleID) -> Any:
    """Returns the dtype of what the env shows a module, if that is of one dtype."""
    agents = env_space.spaces if isinstance(env_space, gym.spaces.Dict) else {None: env_space}
    if len({space.dtype for space in agents.values() if space}) > 1 and config.is_multi_agent:
        # RLlib asks in the same way whose spaces are a module's.
        to_module, episode = config.policy_mapping_fn, MultiAgentEpisode()
        agents = {a: space for a, space in agents.items() if to_module(a, episode) == module_id}
    dtypes = {space.dtype for space in agents.values() if space}
    return dtypes.pop() if len(dtypes) == 1 else None
