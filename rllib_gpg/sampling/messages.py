"""What travels between the algorithm and an env runner: a share, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rllib_gpg.sampling.connector_states import ConnectorStates
from rllib_gpg.sampling.seeds import Seeds
from rllib_gpg.seeding import EVALUATION, GROUP


@dataclass(frozen=True)
class Share:
    """A few whole episodes of a group or an evaluation: a function of `Weights` and its seed.

    A share that was lost with its env runner is sent again as it is and gives the same episodes,
    so that no fault can favour short ones.

    Attributes:
        run_seed: The seed of the whole run.
        group: The number of the group (or of the evaluation) in the run, counted from 0.
        index: The number of the share in the group, counted from 0.
        num_episodes: How many whole episodes are owed, at least 1.
        in_evaluation: Whether it is part of an evaluation. Only metrics come back then.
    """

    run_seed: int
    group: int
    index: int
    num_episodes: int
    in_evaluation: bool = False

    def seeds(self) -> Seeds:
        """Returns the seeds of this share, different from those of any other share."""
        use = EVALUATION if self.in_evaluation else GROUP
        return Seeds.draw(self.num_episodes, self.run_seed, use, self.group, self.index)

    @property
    def timeout_setting(self) -> str:
        """The name of the setting that limits how long an env runner may take for it."""
        return "evaluation_sample_timeout_s" if self.in_evaluation else "sample_timeout_s"


@dataclass(frozen=True)
class Weights:
    """The policy that a group is sampled with.

    Attributes:
        version: Different for any two states that one algorithm hands out; an env runner loads
            the state when this differs from what it holds.
        state: The module's state with its sequence number, as `EnvRunner.set_state` takes it; or
            a reference to it in Ray's object store, resolved only when it is needed.
        connectors: What the connectors remembered when the version was made; each share begins
            with it.
    """

    version: int
    state: Any
    connectors: ConnectorStates = field(default_factory=dict)


@dataclass(frozen=True)
class ShareResult:
    """The episodes of one share, all finished, in the order in which they were started.

    An evaluation's aren't handed on: `episodes` is empty. `metrics` are those of a remote env
    runner since its last share, None from a local one. `connectors` is what the connectors remember
    at the end of the share; empty in evaluation.
    """

    share: Share
    weights_version: int
    episodes: list[Any]
    metrics: dict[str, Any] | None
    connectors: ConnectorStates


@dataclass(frozen=True)
class ShareFailure:
    """What the env or the policy raised while a share was sampled.

    A value and no exception: RLlib's remote call puts a failed env runner to sleep for
    `delay_between_env_runner_restarts_s` before anybody hears of it.
    """

    share: Share
    error: str
    traceback: str
