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
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.spaces.space_utils import batch as batch_items
from ray.rllib.utils.typing import EpisodeType, ModuleID, StateDict

from rllib_gpg.advantages.baselines import Baseline, resolve_baseline
from rllib_gpg.advantages.baselines.choice import check_uses
from rllib_gpg.advantages.binning import BinningFunction, resolve_binning
from rllib_gpg.advantages.credit import check_credit
from rllib_gpg.advantages.estimator import estimate_group
from rllib_gpg.advantages.grouping import ScoreFunction
from rllib_gpg.advantages.levels import Level, check_level
from rllib_gpg.advantages.metrics import group_metrics, num_equal_starts
from rllib_gpg.advantages.units import check_unit
from rllib_gpg.learning.columns import as_column, is_step
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
                _check_whole(episode)
            groups[episode.module_id or DEFAULT_MODULE_ID].append(episode)
        for module_id, group in groups.items():
            # At the end of the pipeline there is a batch per module; at its beginning, none yet.
            columns = batch.get(module_id)
            rewards = _rewards(group) if columns is None else _rewards_left_in(columns, group)
            settings, bootstrap = self._settings_of(module_id)
            # Agents of one episode share its luck, and perhaps its rewards.
            ids = [episode.multi_agent_episode_id or episode.id_ for episode in group]
            starts = None if start_of is None else [_start(id_, start_of) for id_ in ids]
            estimate = estimate_group(
                [_observations(episode) for episode in group],
                rewards,
                memory=memory.get(module_id),
                final_observations=_final_observations(group) if bootstrap else None,
                first_timesteps=[episode.t_started for episode in group],
                episodes=ids,
                starts=starts,
                names=[_name(episode) for episode in group],
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
        binning, lambda_ = resolve_binning(settings["binning"]), settings["lambda_"]
        check_unit(normalize)
        check_uses(baseline, binning, lambda_=lambda_, normalize=normalize, bootstrap=bootstrap)
        of_these = {"bootstrap": bootstrap, "of_pieces": self._fragments}
        check_credit(settings["credit"], lambda_=lambda_, **of_these)
        check_level(settings["second_level"], **of_these)
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


def _rewards(group: Sequence[SingleAgentEpisode]) -> list[np.ndarray]:
    """Returns the episodes' rewards, in double precision."""
    return [np.asarray(e.get_rewards(slice(0, len(e))), np.float64) for e in group]


def _rewards_left_in(
    columns: Mapping[str, Any], group: Sequence[SingleAgentEpisode]
) -> list[np.ndarray]:
    """Returns the rewards of a module's batch, in which other pieces may have changed them.

    Raises:
        ValueError: If the batch has other steps than the episodes.
    """
    lengths = [len(episode) for episode in group]
    of_batch = convert_to_numpy(columns[Columns.REWARDS])[is_step(columns)]
    if len(of_batch) != sum(lengths):
        raise ValueError(
            f"The rewards column has {len(of_batch)} steps, the episodes have {sum(lengths)}: a "
            "learner connector piece has added or removed some. GroupAdvantageEstimation needs all "
            "steps of its episodes."
        )
    _check_order(columns, group)
    of_episodes = np.concatenate(_rewards(group))
    # The batch is in single precision. What it has of the episodes is taken from these.
    unchanged = of_batch.astype(np.float32) == of_episodes.astype(np.float32)
    rewards = np.where(unchanged, of_episodes, of_batch)
    return np.split(rewards, np.cumsum(lengths)[:-1])


def _check_order(columns: Mapping[str, Any], group: Sequence[SingleAgentEpisode]) -> None:
    """Refuses a batch that has the steps of the episodes in another order.

    Raises:
        ValueError: If its log-probabilities are those of the episodes, but not one by one.
    """
    if Columns.ACTION_LOGP not in columns or not all(
        Columns.ACTION_LOGP in episode.extra_model_outputs for episode in group
    ):
        return  # There is nothing to tell steps apart by.
    of_episodes = np.concatenate(
        [np.asarray(episode.get_extra_model_outputs(Columns.ACTION_LOGP)) for episode in group]
    )
    of_batch = convert_to_numpy(columns[Columns.ACTION_LOGP])[is_step(columns)]
    if not np.array_equal(of_batch, of_episodes) and np.array_equal(
        np.sort(of_batch), np.sort(of_episodes)
    ):
        raise ValueError(
            "The batch has the steps of its episodes in another order: a learner connector piece "
            "has moved them, and GroupAdvantageEstimation would give each step the advantage of "
            "another. Have that piece come after it, or leave the order as it is: minibatches are "
            "shuffled anyway."
        )


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


def _observations(episode: SingleAgentEpisode) -> Any:
    """Returns the observations of the episode's steps, without the final one: [T, ...]."""
    return _as_array(episode.get_observations(slice(0, len(episode))))


def _final_observations(group: Sequence[SingleAgentEpisode]) -> list[Any]:
    """Returns the observation after the last step, [1, ...], of truncated episodes; else None."""
    return [
        None
        if episode.is_terminated
        else _as_array(episode.get_observations(slice(len(episode), len(episode) + 1)))
        for episode in group
    ]


def _as_array(observations: Any) -> Any:
    return batch_items(observations) if isinstance(observations, list) else observations


def _name(episode: SingleAgentEpisode) -> str:
    if episode.agent_id is None:
        return f"episode {episode.id_}"
    return f"agent {episode.agent_id!r} of episode {episode.multi_agent_episode_id}"


def _check_whole(episode: SingleAgentEpisode) -> None:
    if episode.t_started == 0 and episode.is_done:
        return
    name = _name(episode)
    raise ValueError(
        f"{name[0].upper()}{name[1:]} is a fragment (steps {episode.t_started} to {episode.t}, "
        f"done: {episode.is_done}). GroupAdvantageEstimation needs whole episodes: a return that "
        "stops at a fragment's end is wrong, and there is no critic to continue it with. Sample "
        "with `batch_mode='complete_episodes'`, and with one learner: RLlib slices episodes in "
        "order to share them out to several."
    )


def _start(episode_id: str, start_of: Mapping[str, int]) -> int:
    """Returns the number of an episode's start, also where RLlib has added numbers to its id.

    Raises:
        ValueError: If the episode isn't one of the group.
    """
    known = episode_id
    while known and known not in start_of:
        known = known.rpartition("_")[0]
    if not known:
        raise ValueError(
            f"Episode {episode_id} has no start: where episodes share their starts "
            "(`episodes_per_start`), learner connector pieces can't add others."
        )
    return start_of[known]
