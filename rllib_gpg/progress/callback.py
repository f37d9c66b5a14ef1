"""`ProgressCallback`: the same lines for the trials of Ray Tune."""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from rllib_gpg.progress.lines import Lines


class ProgressCallback(tune.Callback):
    """Prints a line per iteration of each trial, as `progress` does for one algorithm.

    Before its first one, what the search has chosen for the trial.

        tune.RunConfig(callbacks=[ProgressCallback()], verbose=0)

    With `verbose=0` they take the place of Tune's tables, which by default have hundreds of lines
    per trial.
    """

    def __init__(self) -> None:
        """Initializes a ProgressCallback instance."""
        self._lines: dict[str, Lines] = {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Prints what the search has chosen for a trial: `group_size=4, lr=0.001`."""
        if trial.evaluated_params:
            chosen = (f"{path}={value}" for path, value in trial.evaluated_params.items())
            print(f"{trial} | {', '.join(chosen)}", flush=True)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Prints the line of a trial's iteration, with the trial's name if there are several."""
        if trial.trial_id not in self._lines:
            self._lines[trial.trial_id] = Lines(trial.stopping_criterion)
        line = self._lines[trial.trial_id].of(result)
        print(f"{trial} | {line}" if len(trials) > 1 else line, flush=True)
