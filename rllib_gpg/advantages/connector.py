"""`GroupAdvantageEstimation`: the learner connector piece that adds the advantages column."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.typing import EpisodeType, ModuleID, StateDict

from rllib_gpg.advantages.baselines import Baseline, resolve_baseline
from rllib_gpg.advantages.binning import BinningFunction, resolve_binning
from rllib_gpg.advantages.episodes import (
    check_whole,
    final_observations_of,
    name_of_episode,
    observations_of,
    rewards_left_in,
    rewards_of,
    start_of_episode,
)
from rllib_gpg.advantages.estimator import estimate_group
from rllib_gpg.advantages.grouping import ScoreFunction
from rllib_gpg.advantages.levels import Level
from rllib_gpg.advantages.metrics import group_metrics, num_equal_starts
from rllib_gpg.advantages.settings import check_settings
from rllib_gpg.learning.columns import as_column
from rllib_gpg.learning.pipeline import REPORT, REPORTS
from rllib_gpg.learning.scores import score_products

# In a pipeline's `shared_data`: the number of the group. A group whose update was interrupted comes
# again, under the same number, and is then the first to come after what was remembered before it.
GROUP_NUMBER = "group_number"
# There as well: a dict, id of an episode -> the number of its start; None where no episodes share
# one.
STARTS = "starts"

_MEMORY, _BEFORE = "memory", "before"
# What RLlib's `AddOneTsToEpisodesAndTruncate` leaves in `shared_data`. It is there for a critic,
# which values the state after the last step.
_EXTRA_STEPS = "_added_loss_mask_for_valid_episode_ts"


class GroupAdvantageEstimation(ConnectorV2):
    """Learner connector piece: works out what each step of a group was worth (Algorithm 2).

    Each call takes its list of episodes as one group and adds `Columns.ADVANTAGES` to the batch.
    Where agents are mapped to several modules, a module's group is all trajectories of the agents
    mapped to it, with time counted in the agent's own steps.

    It assumes episodes that were all sampled with the same weights. By default it refuses pieces of
    episodes, which other algorithms' env runners return. Pieces of the pipeline in front of it may
    change rewards and observations. Bins see the observations that they leave in the episodes,
    returns see the rewards that they leave in the episodes or, at the end of the pipeline, in the
    batch.

    `GPGConfig` puts it at the end of the learner pipeline, where PPO has its advantages too. It
    also works alone, in the pipeline of any algorithm that samples whole episodes, has one learner
    (RLlib slices episodes before the pipeline when there are several) and no advantages of its own
    (PPO's would replace them: that is refused):

        config.learners(
            learner_connector=lambda obs_space, act_space: GroupAdvantageEstimation(gamma=0.99)
        )

    What a baseline remembers of earlier groups is this piece's state: `get_state`, `set_state`.
    GPG's learners save it with theirs; RLlib's don't.

    With a metrics logger, logs per module: `group_num_episodes`, `group_num_env_steps`,
    `group_num_bins`, `group_singleton_fraction`, `baseline_explained_variance`,
    `bins_explained_variance`, `group_advantage_std` (before advantages are normalised; 0: there is
    nothing to learn), `group_truncated_fraction` (of the trajectories, those that were cut and
    haven't ended); of undiscounted returns `group_return_mean`, `group_return_std` and their 10 %
    and 90 % quantiles, `group_return_p10` and `group_return_p90`; and what baselines log themselves
    (`baseline_ridge_share`, `baseline_constant`). Where episodes share starts, bins hold those of
    one start only, and `group_equal_starts` is logged too: of how many starts all episodes have the
    same undiscounted return (the sum over the module's agents).
    """

    # Env runners may leave infos behind. Binning functions and baselines are shown observations.
    reads_infos = False

    def __init__(
        self,
        input_observation_space: gym.Space | None = None,
        input_action_space: gym.Space | None = None,
        *,
        gamma: float,
        binning: str | BinningFunction = "time",
        leave_one_out: bool = False,
        normalize_advantages: bool | str = True,
        baseline: str | Baseline = "bins",
        lambda_: float = 1.0,
        credit: str = "returns",
        second_level: Level | None = None,
        baseline_decay: float | None = None,
        bootstrap_truncated: bool = False,
        fragments: bool = False,
        module_overrides: Mapping[ModuleID, Mapping[str, Any]] | None = None,
    ):
        """Initializes a GroupAdvantageEstimation instance.

        Args:
            input_observation_space: The observation space of the episodes; not used.
            input_action_space: The action space of the episodes; not used.
            gamma: The discount factor, in [0, 1].
            binning: Which steps share a baseline, see `rllib_gpg.advantages.binning`.
            leave_one_out: Whether a trajectory's own return is left out of its baselines.
            normalize_advantages: Whether to normalise the advantages of a module's group by their
                mean and standard deviation over all steps, or "bins": by that of their bin.
            baseline: What returns are compared with, see `rllib_gpg.advantages.baselines`.
            lambda_: λ of the λ-returns, as in GAE. Below 1 it needs a baseline that sees the state.
            credit: What each step is credited with, see `rllib_gpg.advantages.credit`.
            second_level: A second comparison, whose advantages are added.
            baseline_decay: The decay of a baseline that is given by name. None: its default.
            bootstrap_truncated: Whether the baseline completes the returns of truncated episodes.
                Needs one that sees the state.
            fragments: Whether to take pieces of episodes as well. Time is counted from the reset of
                the episode; returns stop at a cut, or are completed with `bootstrap_truncated`.
            module_overrides: Per module, other values of the settings above; other settings in it
                are passed over. Read at each call.

        Raises:
            ValueError: If the settings of some module don't go together.
        """
        super().__init__(input_observation_space, input_action_space)
        self._settings: dict[str, Any] = {
            "gamma": gamma,
            "binning": binning,
            "leave_one_out": leave_one_out,
            "normalize_advantages": normalize_advantages,
            "baseline": baseline,
            "lambda_": lambda_,
            "credit": credit,
            "second_level": second_level,
            "baseline_decay": baseline_decay,
            "bootstrap_truncated": bootstrap_truncated,
        }
        self._fragments = fragments
        self._module_overrides = {} if module_overrides is None else module_overrides
        for module_id in ("", *self._module_overrides):
            self._settings_of(module_id)  # refuses what doesn't go together
        # What the baseline of each module has handed back; the number of the last group, and what
        # was remembered before it.
        self._memory: dict[ModuleID, Any] = {}
        self._before: tuple[int | None, dict[ModuleID, Any]] = (None, {})

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: RLModule,
        batch: dict[str, Any],
        episodes: list[EpisodeType],
        shared_data: dict[str, Any] | None = None,
        metrics: MetricsLogger | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds the advantages of all steps to the batch.

        Raises:
            ValueError: If an episode isn't whole; if a reward or an observation isn't finite; if
                the binning returns keys it must not. The error names the episode. If the learner
                works out advantages itself, as PPO's does.
        """
        told = {} if shared_data is None else shared_data
        _check_is_last_word(told)
        number, start_of, report = (told.get(name) for name in (GROUP_NUMBER, STARTS, REPORT))
        is_again = number is not None and number == self._before[0]
        before = self._before[1] if is_again else self._memory
        memory = dict(before)
        if isinstance(rl_module, MultiRLModule):
            memory = {mid: kept for mid, kept in memory.items() if mid in rl_module}
        groups: dict[ModuleID, list[SingleAgentEpisode]] = defaultdict(list)
        for episode in self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False):
            if not self._fragments:
                check_whole(episode)
            groups[episode.module_id or DEFAULT_MODULE_ID].append(episode)
        for module_id, group in groups.items():
            # At the end of the pipeline there is a batch per module; at its beginning, none yet.
            columns = batch.get(module_id)
            rewards = rewards_of(group) if columns is None else rewards_left_in(columns, group)
            settings, bootstrap = self._settings_of(module_id)
            # Agents of one episode share its luck, and perhaps its rewards.
            ids = [episode.multi_agent_episode_id or episode.id_ for episode in group]
            starts = None if start_of is None else [start_of_episode(id_, start_of) for id_ in ids]
            estimate = estimate_group(
                [observations_of(episode) for episode in group],
                rewards,
                memory=memory.get(module_id),
                final_observations=final_observations_of(group) if bootstrap else None,
                first_timesteps=[episode.t_started for episode in group],
                episodes=ids,
                starts=starts,
                names=[name_of_episode(episode) for episode in group],
                scores=_scores(settings["baseline"], rl_module, module_id, columns, group),
                **settings,
            )
            memory.pop(module_id, None)
            if estimate.memory is not None:
                memory[module_id] = estimate.memory
            if columns is None:
                self._add_items(batch, group, estimate.advantages)
            else:
                columns[Columns.ADVANTAGES] = as_column(estimate.advantages, columns)
            if metrics is not None:
                logged = group_metrics(rewards, [e.is_terminated for e in group], estimate)
                if starts is not None:
                    logged["group_equal_starts"] = num_equal_starts(rewards, ids, starts)
                metrics.log_dict(logged, key=module_id, window=1)
            if report is not None:
                of_modules = told.setdefault(REPORTS, {})
                of_modules[module_id] = report(estimate, rewards, starts=starts, **settings)
        # All modules or, if one of them raises, none.
        self._memory, self._before = memory, (number, before)
        return batch

    @override(ConnectorV2)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        """Returns what the baselines remember of earlier groups, per module."""
        return {_MEMORY: dict(self._memory), _BEFORE: self._before}

    @override(ConnectorV2)
    def set_state(self, state: StateDict) -> None:
        """Restores what `get_state` returned, and forgets modules that aren't in it."""
        self._memory = dict(state[_MEMORY])
        self._before = state.get(_BEFORE, (None, {}))

    @override(ConnectorV2)
    def reset_state(self) -> None:
        """Forgets all earlier groups."""
        self._memory, self._before = {}, (None, {})

    def forget(self, module_id: ModuleID) -> None:
        """Forgets all earlier groups of one module, which another one may follow by that name."""
        number, before = self._before
        self._before = (number, _without(before, module_id))
        self._memory = _without(self._memory, module_id)

    def _settings_of(self, module_id: ModuleID) -> tuple[dict[str, Any], bool]:
        """Returns a module's settings for `estimate_group`, and whether to show it final steps."""
        overrides = dict(self._module_overrides.get(module_id, {}))
        if "lambda" in overrides:  # RLlib's configs take it as well.
            overrides["lambda_"] = overrides.pop("lambda")
        settings = {name: overrides.get(name, value) for name, value in self._settings.items()}
        baseline = resolve_baseline(
            settings.pop("baseline"),
            decay=settings.pop("baseline_decay"),
            leave_one_out=settings.pop("leave_one_out"),
        )
        bootstrap, normalize = map(settings.pop, ("bootstrap_truncated", "normalize_advantages"))
        check_settings(
            baseline,
            resolve_binning(settings["binning"]),
            lambda_=settings["lambda_"],
            normalize=normalize,
            credit=settings["credit"],
            second_level=settings["second_level"],
            bootstrap=bootstrap,
            of_pieces=self._fragments,
        )
        return {**settings, "baseline": baseline, "normalize": normalize}, bootstrap

    def _add_items(
        self,
        batch: dict[str, Any],
        group: Sequence[SingleAgentEpisode],
        advantages: Sequence[np.ndarray],
    ) -> None:
        """Adds advantages to a batch under construction, for RLlib's pieces to put together."""
        for episode, advantages_T in zip(group, advantages, strict=True):
            self.add_n_batch_items(
                batch,
                Columns.ADVANTAGES,
                items_to_add=advantages_T.astype(np.float32),
                num_items=len(episode),
                single_agent_episode=episode,
            )


def _check_is_last_word(shared_data: Mapping[str, Any]) -> None:
    """Refuses pipelines of learners with a critic, at whose end are advantages of their own."""
    if _EXTRA_STEPS in shared_data:
        raise ValueError(
            "This learner works out advantages with its critic, after GroupAdvantageEstimation: "
            "they would replace those of the group. Use `GPGConfig`, or a learner whose `build` "
            "doesn't add `GeneralAdvantageEstimation`."
        )


def _without(memory: dict[ModuleID, Any], module_id: ModuleID) -> dict[ModuleID, Any]:
    return {mid: kept for mid, kept in memory.items() if mid != module_id}


def _scores(
    baseline: Baseline,
    rl_module: RLModule,
    module_id: ModuleID,
    columns: dict[str, Any] | None,
    group: Sequence[SingleAgentEpisode],
) -> ScoreFunction | None:
    """Returns the gradients of a module's policy, if the baseline asks for them.

    Raises:
        ValueError: If there is no batch yet to take them on, or one of padded sequences.
    """
    if not baseline.needs_scores:
        return None
    if columns is None or Columns.SEQ_LENS in columns:
        raise ValueError(
            f"{baseline} needs the policy's gradients on a finished batch without sequences: at "
            "the end of a learner pipeline, as under GPG, and of a module that isn't recurrent. "
            "Take baseline='bins' or 'ridge'."
        )
    module = rl_module[module_id] if isinstance(rl_module, MultiRLModule) else rl_module
    lengths = [len(episode) for episode in group]
    return functools.partial(score_products, module.unwrapped(), columns, lengths)
