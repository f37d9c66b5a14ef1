"""What travels between the algorithm and an env runner: a share, and what became of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.typing import ModuleID

from rllib_gpg.sampling.connector_states import ConnectorStates
from rllib_gpg.sampling.episode_metrics import Summaries
from rllib_gpg.sampling.packing import PackedEpisodes
from rllib_gpg.sampling.seeds import Seeds, seed_of_start
from rllib_gpg.sampling.standing import Standing
from rllib_gpg.seeding import EVALUATION, GROUP


@dataclass(frozen=True)
class Share:
    """A few whole episodes, or rollouts, of a group: a function of `Weights` and its seed.

    A share that was lost with its env runner is sent again as it is and gives the same episodes,
    so that no fault can favour short ones.

    Attributes:
        run_seed: The seed of the whole run.
        group: The number of the group (or of the evaluation) in the run, counted from 0.
        index: The number of the share in the group, counted from 0.
        num_episodes: How many whole episodes, or rollouts, are owed; at least 1.
        in_evaluation: Whether it is part of an evaluation. Only metrics come back then.
        explore: Whether actions are drawn as for training. None: as the env runner's config says.
        num_steps: How many steps each rollout makes; 0: what is owed are whole episodes.
        first: The number, in the group, of the first episode or rollout; there are `num_episodes`
            of them.
        standing: Where the rollouts stand; None for one that begins with a reset.
        first_env: The number of the env that the first of its rollouts has, on any env runner; the
            others have those that follow.
        per_start: How many episodes of the group have one start in common; 1: each has its own.
    """

    run_seed: int
    group: int
    index: int
    num_episodes: int
    in_evaluation: bool = False
    explore: bool | None = None
    num_steps: int = 0
    first: int = 0
    standing: tuple[Standing | None, ...] = field(default=(), compare=False, repr=False)
    first_env: int = 0
    per_start: int = 1

    def seeds(self) -> Seeds:
        """Returns the seeds of this share, drawn independently of those of any other share.

        But for the seeds of starts that go on in another share.
        """
        use = EVALUATION if self.in_evaluation else GROUP
        seeds = Seeds.draw(self.num_episodes, self.run_seed, use, self.group, self.index)
        if self.per_start == 1:
            return seeds
        numbers = range(self.first, self.first + self.num_episodes)
        starts = (number // self.per_start for number in numbers)
        episodes = tuple(seed_of_start(self.run_seed, self.group, start) for start in starts)
        return dataclasses.replace(seeds, episodes=episodes)

    @property
    def rollouts(self) -> range:
        """The numbers of its rollouts in the group; none if it is of whole episodes."""
        return range(self.first, self.first + len(self.standing))

    @property
    def envs(self) -> range:
        """The numbers of the envs of its rollouts."""
        return range(self.first_env, self.first_env + len(self.standing))

    @property
    def timeout_setting(self) -> str:
        """The name of the setting that limits how long an env runner may take for it."""
        return "evaluation_sample_timeout_s" if self.in_evaluation else "sample_timeout_s"


@dataclass(frozen=True)
class ModuleChanges:
    """What `add_module` and `remove_module` changed since the env runners were made.

    An env runner that comes back is made as the config was in the beginning.

    Attributes:
        added: The specs of the modules that were added, and the how many-th change each was: two
            modules that were added under one id, the first of them removed since, are told apart.
        removed: The ids of the modules that were removed.
        multi_agent: The arguments of `AlgorithmConfig.multi_agent` that are in force since, such as
            `policy_mapping_fn`.
        number: How often something was changed. What a user has set on an env runner since the
            last change stays.
    """

    added: Mapping[ModuleID, tuple[RLModuleSpec, int]] = field(default_factory=dict)
    removed: frozenset[ModuleID] = frozenset()
    multi_agent: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0

    def add(self, module_id: ModuleID, spec: RLModuleSpec, arguments: Mapping[str, Any]) -> Self:
        """Returns what is changed after a call of `add_module` with these arguments."""
        number = self.number + 1
        return dataclasses.replace(
            self,
            added={**self.added, module_id: (spec, number)},
            removed=self.removed - {module_id},
            multi_agent={**self.multi_agent, **_settings(arguments)},
            number=number,
        )

    def remove(self, module_id: ModuleID, arguments: Mapping[str, Any]) -> Self:
        """Returns what is changed after a call of `remove_module` with these arguments."""
        return dataclasses.replace(
            self,
            added={key: value for key, value in self.added.items() if key != module_id},
            removed=self.removed | {module_id},
            multi_agent={**self.multi_agent, **_settings(arguments)},
            number=self.number + 1,
        )


def _settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that RLlib's `add_module` and `remove_module` change."""
    names = {
        "new_agent_to_module_mapping_fn": "policy_mapping_fn",
        "new_should_module_be_updated": "policies_to_train",
    }
    given = {setting: arguments.get(name) for name, setting in names.items()}
    return {setting: value for setting, value in given.items() if value is not None}


@dataclass(frozen=True)
class Weights:
    """What a group is sampled with: the policy, and what goes with it.

    Attributes:
        version: Different for any two states that one algorithm hands out; an env runner loads
            the state when this differs from what it holds.
        state: The module's state with its sequence number, as `EnvRunner.set_state` takes it; or
            a reference to it in Ray's object store, resolved only when it is needed.
        connectors: What the connectors remembered when the version was made; each share begins
            with it.
        changes: What must have changed about the modules before.
        infos: Whether to send the infos of episodes: something may read them.
    """

    version: int
    state: Any
    connectors: ConnectorStates = field(default_factory=dict)
    changes: ModuleChanges = field(default_factory=ModuleChanges)
    infos: bool = True


@dataclass(frozen=True)
class ShareResult:
    """The episodes of one share, all finished, in the order in which they were started.

    Attributes:
        share: The share.
        episodes: The episodes, packed if they come from another process; none if the share is part
            of an evaluation.
        summaries: What to log of each episode that is over.
        metrics: What the env runner and the user's callbacks logged meanwhile.
        connectors: What the connectors remember at the end of the share; nothing in evaluation.
        standing: Where the rollouts stand at the end of the share.
    """

    share: Share
    episodes: list[Any] | PackedEpisodes
    summaries: Summaries
    metrics: dict[str, Any]
    connectors: ConnectorStates
    standing: list[Standing | None] = field(default_factory=list)


@dataclass(frozen=True)
class ShareFailure:
    """What the env or the policy raised while a share was sampled.

    A value and no exception: RLlib's remote call puts a failed env runner to sleep for
    `delay_between_env_runner_restarts_s` before anybody hears of it.

    Attributes:
        share: The share.
        error: What was raised, and where.
        traceback: How it came to that.
        has_new_env: Whether the env has been made anew since.
    """

    share: Share
    error: str
    traceback: str
    has_new_env: bool
