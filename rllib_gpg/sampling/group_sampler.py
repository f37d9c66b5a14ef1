"""The groups of a run, one after the other: each sampled when it is asked for, or one ahead.

With `sample_ahead=1` the group that comes next is sampled while the learners learn from this one,
by a thread that hands out shares. It is sampled with the weights from before that update, so it is
one version behind when its turn comes, and never two.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.typing import EpisodeType, ResultDict

from rllib_gpg.sampling.connector_states import ConnectorStates
from rllib_gpg.sampling.group import Group, cut_into_shares, gather
from rllib_gpg.sampling.messages import Weights
from rllib_gpg.sampling.standing import Standing
from rllib_gpg.sampling.starts import StartsOfGroup

Standings = tuple[Standing | None, ...]


@dataclass(frozen=True)
class SampledGroup:
    """A group whose turn has come.

    Attributes:
        weights: What it was sampled with.
        episodes: Its episodes, in their order.
        num_extra_starts: How many further starts were drawn.
        metrics: What to log.
        connectors: What the connectors remembered at the end of each share.
        standing: Where each rollout stands after it.
    """

    weights: Weights
    episodes: Sequence[EpisodeType]
    num_extra_starts: int
    metrics: list[ResultDict]
    connectors: list[ConnectorStates]
    standing: Standings


@dataclass(frozen=True)
class _Ahead:
    """A group that is being sampled ahead, or has been."""

    number: int
    weights: Weights
    result: Future[SampledGroup]
    cancelled: threading.Event


class GroupSampler:
    """Samples the groups of a run.

    Attributes:
        number: The number of the group that is next, which is how many have been trained on.
        standing: Where rollouts stand after the last group that has been trained on.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        restore: Callable[[EnvRunnerGroup], Any],
        tell_of_new: Callable[[EnvRunnerGroup, list[int]], Any],
    ):
        """Takes what samples.

        Args:
            algorithm: The algorithm, which may still be without env runners.
            restore: Tries to bring lost env runners back; called when all are lost.
            tell_of_new: Called when env runners have an env that was made anew.
        """
        self._algorithm = algorithm
        self._restore = restore
        self._tell_of_new = tell_of_new
        self.number = 0
        self.standing: Standings = ()
        self._next_standing: Standings = ()
        self._ahead: _Ahead | None = None
        # What the next group is sampled with, if that has been decided and nothing was begun.
        self._of_next: Weights | None = None

    def next(self, run_seed: int, weights: Weights) -> SampledGroup:
        """Returns the next group: the one that was begun ahead, or else one that is sampled now.

        Until `take_note` is called it stays the next one; what has been sampled is sampled again.

        Args:
            run_seed: The seed of the whole run.
            weights: What to sample it with, if it wasn't begun; and whether something reads infos.

        Raises:
            SamplingError: If it couldn't be completed.
        """
        ahead = self._ahead
        has_all = ahead is not None and ahead.weights.infos >= weights.infos
        if ahead is not None and ahead.number == self.number and has_all:
            # An interrupt leaves it where it is.
            self.wait()
            self._ahead = None
            # If it failed, it is sampled anew the next time, as it would have been.
            if ahead.result.exception() is not None:
                self._of_next = ahead.weights
            group = ahead.result.result()
        else:
            self._of_next = self.weights_of_next
            self._cancel()
            # Something may have come meanwhile that reads infos.
            of_next = dataclasses.replace(self._of_next or weights, infos=weights.infos)
            group = self._sample(self.number, self.standing, run_seed, of_next)
        self._next_standing = group.standing
        return group

    def begin_ahead(self, run_seed: int, weights: Weights) -> None:
        """Begins to sample the group after the one that `next` has returned.

        Args:
            run_seed: The seed of the whole run.
            weights: Those that are in force, with what connectors remember after the group before.
        """
        ahead = _Ahead(self.number + 1, weights, Future(), threading.Event())
        arguments = (ahead.number, self._next_standing, run_seed, weights, ahead.cancelled)

        def sample() -> None:
            try:
                ahead.result.set_result(self._sample(*arguments))
            except BaseException as error:  # For who waits for it.
                ahead.result.set_exception(error)

        # It must not keep a process from ending whose algorithm was never stopped.
        threading.Thread(target=sample, name="sample-ahead", daemon=True).start()
        self._ahead = ahead

    def take_note(self) -> None:
        """Takes note that the group that `next` has returned has been trained on."""
        self.number += 1
        self.standing = self._next_standing
        self._of_next = None

    @property
    def weights_of_next(self) -> Weights | None:
        """What the next group is sampled with, if that has been decided; else None."""
        ahead = self._ahead
        if ahead is not None and ahead.number == self.number:
            return ahead.weights
        return self._of_next

    def go_on(self, number: int, standing: Standings, weights_of_next: Weights | None) -> None:
        """Goes on from a checkpoint; what was being sampled then is sampled again.

        Args:
            number: What it was then, like all that follows.
            standing: See above.
            weights_of_next: See above.
        """
        self.drop()
        self.number, self.standing, self._of_next = number, standing, weights_of_next

    def wait(self) -> None:
        """Waits until the env runners are free."""
        if self._ahead is not None:
            # What it raised is for `next` to raise.
            self._ahead.result.exception()

    def drop(self) -> None:
        """Has the next group sampled with what `next` is given, whatever has been begun."""
        self._of_next = None
        self._cancel()

    def _cancel(self) -> None:
        """Ends the thread. The env runners finish the shares that they have, for nothing."""
        # Nobody's from now on, also if the waiting is interrupted.
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancelled.set()
            ahead.result.exception()

    def _sample(
        self,
        number: int,
        standing: Standings,
        run_seed: int,
        weights: Weights,
        cancelled: threading.Event | None = None,
    ) -> SampledGroup:
        config, env_runner_group = self._algorithm.config, self._algorithm.env_runner_group
        shares = cut_into_shares(config, run_seed, number, standing=standing)
        starts = StartsOfGroup(config)
        group: Group = gather(
            env_runner_group,
            shares,
            weights,
            config=config,
            restore=lambda: self._restore(env_runner_group),
            tell_of_new_env=lambda runner: self._tell_of_new(env_runner_group, [runner]),
            further=starts.further,
            cancelled=cancelled,
        )
        return SampledGroup(
            weights,
            starts.in_group(group.episodes),
            starts.num_extra,
            group.metrics,
            group.connectors,
            group.standing,
        )
