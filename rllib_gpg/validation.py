"""What GPG refuses in a config, by name, with the mend."""

from __future__ import annotations

import difflib
import importlib.util
import math
import numbers
import warnings
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.rllib.utils.typing import ModuleID

from rllib_gpg.advantages.binning import Binning, TimeBinning, resolve_binning
from rllib_gpg.sampling import GroupEnvRunner, MultiAgentGroupEnvRunner

if TYPE_CHECKING:
    from rllib_gpg.config import GPGConfig

CRITIC_SETTINGS = frozenset(
    {"use_critic", "use_gae", "lambda_", "vf_loss_coeff", "vf_clip_param", "vf_share_layers"}
)

# What all modules of one update have in common.
_COMMON_TO_MODULES = frozenset(
    {
        "group_size",
        "episodes_per_share",
        "max_episode_steps",
        "num_epochs",
        "num_minibatches",
        "minibatch_size",
        "shuffle_batch_per_epoch",
    }
)

# A key that RLlib translates into several settings.
_MULTI_AGENT = "multiagent"


def check_known(config: GPGConfig, keys: list[str]) -> None:
    """Refuses the keys of a dict config that are no settings; RLlib would ignore them.

    Raises:
        ValueError: Names each unknown key and the nearest known one.
    """
    known = {name for name in vars(config) if not name.startswith("_")}
    known |= {*CRITIC_SETTINGS, _MULTI_AGENT}

    def is_known(key: str) -> bool:
        # RLlib's own private settings, and what Ray Tune adds to a trial's config ("__...__").
        if key.startswith("_"):
            return True
        name = config._translate_special_keys(key, warn_deprecated=False)
        # Some settings are properties; methods, such as `training`, are none.
        setting = getattr(type(config), name, None)
        return name in known or (isinstance(setting, property) and setting.fset is not None)

    unknown = [key for key in keys if not is_known(key)]
    if unknown:
        hints = []
        for key in unknown:
            nearest = difflib.get_close_matches(key, known, n=1)
            hints.append(f"{key!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
        raise ValueError(f"Unknown settings in the config: {', '.join(hints)}.")


def check_stack(config: GPGConfig) -> None:
    """Refuses other stacks than the one GPG runs on, ahead of RLlib's own checks of these.

    Raises:
        ValueError: Names the setting and the mend.
    """
    if config.framework_str != "torch":
        config._value_error(
            f"GPG runs on PyTorch only, not on {config.framework_str!r}: remove the call of "
            "`framework(..)`, or set `framework('torch')`."
        )
    if not config.enable_rl_module_and_learner:
        config._value_error(
            "GPG runs on RLlib's new API stack only: remove the call of `api_stack(..)`."
        )


def check_config(config: GPGConfig) -> None:
    """Refuses, before any actor starts, what GPG can't run with.

    Raises:
        ValueError: Names the setting and the mend.
    """
    _check_module_settings(config)
    for module_id, overrides in config.algorithm_config_overrides_per_module.items():
        common = sorted(_COMMON_TO_MODULES & overrides.keys())
        if common:
            config._value_error(
                f"These settings can't differ from module to module, but are set for "
                f"{module_id!r}: {', '.join(common)}. Set them for the whole algorithm."
            )
        module_config = config.copy(copy_frozen=False).update_from_dict(overrides)
        _check_module_settings(module_config, f" of module {module_id!r}")
    # The evaluation copy of a config gets fragment lengths from RLlib, and it collects no groups.
    if not config.in_evaluation:
        _check_group(config)
        _check_env_runner(config)
        _check_recording(config)
        _check_learners(config)
        _check_batch_sizes(config)


def check_spaces(config: GPGConfig, spaces: dict[str, tuple[gym.Space, gym.Space]]) -> None:
    """Holds the binning against the observations, before the first sample.

    Warns of settings that can't give a signal.

    Args:
        config: The algorithm's config.
        spaces: (observation space, action space) of the env and of the modules.

    Raises:
        ValueError: If the binning can't take the observations.
    """
    env_space = spaces.get(INPUT_ENV_SINGLE_SPACES, (None,))[0]
    module_ids = spaces.keys() - {INPUT_ENV_SPACES, INPUT_ENV_SINGLE_SPACES}
    config = config.copy(copy_frozen=False)
    for module_id in sorted(module_ids):
        binning = resolve_binning(config.get_config_for_module(module_id).binning)
        # Several agents of one episode are a group.
        alone = config.group_size == 1 and not config.is_multi_agent
        if alone and isinstance(binning, TimeBinning):
            warnings.warn(
                "group_size=1 with time bins: every step is alone in its bin, its advantage is 0, "
                "and nothing will be learned. Set a larger `group_size`.",
                stacklevel=2,
            )
        if isinstance(binning, Binning):
            module_space = spaces[module_id][0]
            # The one-hot floats of a discrete space repeat exactly, as its integers do.
            dtype = _env_dtype(config, env_space, module_id) or module_space.dtype
            binning.check_space(shape=module_space.shape, dtype=dtype)


def _env_dtype(config: GPGConfig, env_space: gym.Space | None, module_id: ModuleID) -> Any:
    """Returns the dtype of what the env shows a module, if that is of one dtype."""
    agents = env_space.spaces if isinstance(env_space, gym.spaces.Dict) else {None: env_space}
    if len({space.dtype for space in agents.values() if space}) > 1 and config.is_multi_agent:
        # RLlib asks in the same way whose spaces are a module's.
        to_module, episode = config.policy_mapping_fn, MultiAgentEpisode()
        agents = {a: space for a, space in agents.items() if to_module(a, episode) == module_id}
    dtypes = {space.dtype for space in agents.values() if space}
    return dtypes.pop() if len(dtypes) == 1 else None


def _check_module_settings(config: GPGConfig, of: str = "") -> None:
    """Checks what may differ from module to module."""
    _check_critic_settings(config, of)
    _check_estimator(config, of)
    _check_loss(config, of)


def _check_critic_settings(config: GPGConfig, of: str) -> None:
    given = sorted(CRITIC_SETTINGS & vars(config).keys())
    model_config = config._model_config
    if isinstance(model_config, dict) and "vf_share_layers" in model_config:
        given.append("vf_share_layers")
    if given:
        config._value_error(
            f"GPG has no critic, so these settings{of} mean nothing to it: {', '.join(given)}. "
            "Remove them. What stands in place of the critic are `group_size` and `binning`."
        )


def _check_estimator(config: GPGConfig, of: str) -> None:
    if not _is_number(config.gamma) or not 0.0 <= config.gamma <= 1.0:
        config._value_error(f"`gamma`{of} must be between 0 and 1, got {config.gamma!r}.")
    try:
        resolve_binning(config.binning)
    except (ValueError, TypeError) as error:
        config._value_error(f"`binning`{of}: {error}")


def _check_loss(config: GPGConfig, of: str) -> None:
    for name in ("clip_param", "kl_target"):
        value = getattr(config, name)
        if not _is_number(value) or value <= 0.0:
            config._value_error(f"`{name}`{of} must be a number > 0, got {value!r}.")
    if not _is_number(config.kl_coeff) or config.kl_coeff < 0.0:
        config._value_error(f"`kl_coeff`{of} must be a number >= 0, got {config.kl_coeff!r}.")
    default = type(config)()
    if not config.use_kl_loss and (config.kl_coeff, config.kl_target) != (
        default.kl_coeff,
        default.kl_target,
    ):
        warnings.warn(
            f"`kl_coeff` and `kl_target`{of} do nothing without `use_kl_loss=True`, which is off "
            "by default in GPG.",
            stacklevel=2,
        )
    Scheduler.validate(
        fixed_value_or_schedule=config.entropy_coeff,
        setting_name=f"entropy_coeff{of}",
        description="entropy coefficient",
    )
    if _is_number(config.entropy_coeff) and config.entropy_coeff < 0.0:
        config._value_error(f"`entropy_coeff`{of} must be >= 0, got {config.entropy_coeff!r}.")


def _check_group(config: GPGConfig) -> None:
    _check_count(config, "group_size", "It is how many whole episodes one update learns from.")
    _check_count(config, "num_epochs")
    _check_count(config, "max_share_failures")
    for name in ("episodes_per_share", "max_episode_steps", "num_minibatches", "minibatch_size"):
        if getattr(config, name) is not None:
            _check_count(config, name)


def _check_env_runner(config: GPGConfig) -> None:
    """Refuses what env runners would refuse too, but remote ones only in their logs."""
    limit, mode = config.max_episode_steps, config.gym_env_vectorize_mode
    if config.is_multi_agent and mode != "sync":
        config._value_error(
            f"`gym_env_vectorize_mode={mode!r}` is for single-agent envs. RLlib steps multi-agent "
            "envs one by one ('sync'); remove the setting."
        )
    if limit is not None and mode != "sync":
        config._value_error(
            f"`max_episode_steps` can't cut the episodes of envs with `gym_env_vectorize_mode="
            f"{mode!r}`, only of those that gymnasium steps one by one ('sync'). Build the limit "
            "into the env. For an id that gymnasium or EnvPool knows: "
            f"`environment(env_config={{'max_episode_steps': {limit}}})`."
        )
    if config.use_env_runner_state_server:
        config._value_error(
            "`use_env_runner_state_server=True` is for algorithms that sample while they learn "
            "(IMPALA, APPO). GPG sends weights and connector states along with each share of a "
            "group; remove the setting."
        )
    needed = MultiAgentGroupEnvRunner if config.is_multi_agent else GroupEnvRunner
    runner_class = config.env_runner_cls
    if not (isinstance(runner_class, type) and issubclass(runner_class, needed)):
        config._value_error(
            f"`env_runner_cls` must be {needed.__name__} or a subclass of it, got "
            f"{runner_class!r}: other env runners drop the episodes that take longest, and bias "
            "the group."
        )


def _check_recording(config: GPGConfig) -> None:
    if not config.output:
        return
    if config.is_multi_agent:
        config._value_error(
            f"`output={config.output!r}`: RLlib has no form for recorded episodes of several "
            "agents. Remove the setting from `offline_data(..)`, or record with single agents."
        )
    if config.output_write_episodes and importlib.util.find_spec("msgpack_numpy") is None:
        config._value_error(
            f"`output={config.output!r}`: RLlib packs recorded episodes with the package "
            "`msgpack-numpy`. Install it, or record steps: `output_write_episodes=False`."
        )


def _check_learners(config: GPGConfig) -> None:
    if config.num_aggregator_actors_per_learner:
        config._value_error(
            "`num_aggregator_actors_per_learner` doesn't apply: the first learner runs the learner "
            "connectors, once over the whole group. Remove the setting."
        )


def _check_batch_sizes(config: GPGConfig) -> None:
    default = type(config)()
    for name in ("_train_batch_size_per_learner", "train_batch_size", "rollout_fragment_length"):
        if getattr(config, name) != getattr(default, name):
            config._value_error(
                f"`{name.removeprefix('_')}` doesn't apply: GPG learns from whole episodes, so the "
                "number of steps per update follows from their length. Set `group_size`, the "
                "number of episodes per update, instead."
            )
    if config.batch_mode != "complete_episodes":
        config._value_error(
            f"`batch_mode={config.batch_mode!r}` doesn't apply: without a critic a cut episode has "
            "no return. GPG always learns from `group_size` whole episodes; remove the setting."
        )
    if config.minibatch_size is not None and config.num_minibatches is not None:
        config._value_error(
            "Set `minibatch_size` or `num_minibatches`, not both: one follows from the other and "
            "the number of steps in the group."
        )


def _check_count(config: GPGConfig, name: str, meaning: str = "") -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        config._value_error(f"`{name}` must be an integer >= 1, got {value!r}. {meaning}".strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
