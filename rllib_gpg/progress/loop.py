"""`progress`: trains in a loop of the user's own, and shows how far it has come."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.typing import ResultDict

from rllib_gpg.progress.criteria import ITERATION, Criteria
from rllib_gpg.progress.display import Display
from rllib_gpg.progress.lines import Lines


def progress(algo: Algorithm, stop: Mapping[str, float] | None = None) -> Iterator[ResultDict]:
    """Trains an algorithm iteration by iteration, and prints a line for each.

        for result in progress(algo, stop={"training_iteration": 100, "group_return_mean": 450}):
            ...

    A line has the number of the iteration; the mean return of the group, and between which returns
    80 % of its episodes are; all env steps so far, and those per second of this iteration; how much
    of the iteration's time went into sampling, estimating the advantages and updating the policy,
    and into an evaluation, if there was one (beside training, the shares come to more than 100 %);
    and how long it takes at most until the run stops, judged by the last ten iterations. On a
    terminal, where the package `rich` is installed, the iteration that is running is shown as well,
    with how many episodes of its group are in.

    Args:
        algo: The algorithm. It is neither built nor stopped here.
        stop: Stops after the iteration in which one of these metrics is at least so large, as in
            `ray.tune.RunConfig(stop=..)`: paths into the result, joined by slashes, such as
            "env_runners/num_env_steps_sampled_lifetime". For metrics of `default_policy`, the name
            is enough. Default None: goes on until the loop is left.

    Yields:
        What `algo.train()` returned.

    Raises:
        ValueError: If `stop` asks for something that isn't in the results, or is no number there;
            after one iteration. (What `env_runners` and `evaluation` hold may come later: that it
            isn't there is said once.)
    """
    stop = stop or {}
    criteria, lines, display = Criteria(stop), Lines(stop), Display()
    limit = stop.get(ITERATION, math.inf)
    if algo.iteration >= limit:
        # A restored run, for instance.
        display.say(
            f"stopped: {ITERATION} is {algo.iteration} already, and {limit:,.6g} was asked for"
        )
        return
    while True:
        with display.waiting(f"iteration {algo.iteration + 1:4d}"):
            result = algo.train()
        display.say(lines.of(result))
        reached = criteria.reached(result)
        for sentence in criteria.missing(result):
            display.say(sentence)
        yield result
        if reached:
            display.say(f"stopped: {reached}")
            return
