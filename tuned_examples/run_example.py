"""What all tuned examples share: how a run is started, stopped, shown and summed up."""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
from collections import defaultdict
from typing import Any

import matplotlib
from ray import tune
from ray.rllib.examples.utils import (
    add_rllib_example_script_args,
    run_rllib_example_script_experiment,
)
from ray.tune import ResultGrid
from ray.tune.experiment import Trial

from rllib_gpg import GPGConfig
from rllib_gpg.progress import ProgressCallback, groups_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GROUP_RETURN = "learners/default_policy/group_return_mean"
# Of all agents together.
EPISODE_RETURN = "env_runners/episode_return_mean"


def example_parser(*, reward: float, iterations: int) -> argparse.ArgumentParser:
    """Returns RLlib's parser for example scripts, with the defaults of one example.

    Args:
        reward: The value of the example's metric (see `run_example`) at which to stop, and which
            `--as-test` asks for.
        iterations: The number of iterations after which to stop at the latest.
    """
    parser = add_rllib_example_script_args(
        default_reward=reward, default_iters=iterations, default_timesteps=10**9
    )
    parser.add_argument(
        "--storage-path",
        help="Where checkpoints and learning curves go; on a cluster, what all of its nodes can "
        "write to, such as s3://bucket or a network drive. Default: ~/ray_results.",
    )
    # Our own lines take the place of Tune's tables; the last policy is kept.
    parser.set_defaults(algo="GPG", verbose=0, checkpoint_at_end=True)
    return parser


def run_example(
    config: GPGConfig, args: argparse.Namespace, metric: str = GROUP_RETURN
) -> ResultGrid | dict[str, Any]:
    """Runs a tuned example: one line per iteration, then a summary and the learning curve.

    Args:
        config: What to train.
        args: The arguments that the parser of `example_parser` returned. With `--no-tune`, RLlib
            prints its own lines instead, and nothing is kept.
        metric: What `--stop-reward` is about. Default: the mean return of one group. With several
            policies, whose groups differ, `EPISODE_RETURN`.

    Raises:
        SystemExit: With `--env`: settings and return are those of the example's env.
    """
    if args.env:
        raise SystemExit(
            "`--env` doesn't apply: the settings of an example are tuned for its env. Copy the "
            f"script and run_example.py, and change its `environment(..)` to {args.env!r}."
        )
    if args.storage_path:
        # RLlib's runner makes the `RunConfig`, and this is where that looks.
        os.environ["RAY_STORAGE"] = args.storage_path
    stop = {
        metric: args.stop_reward,
        "training_iteration": args.stop_iters,
        "env_runners/num_env_steps_sampled_lifetime": args.stop_timesteps,
    }
    return run_rllib_example_script_experiment(
        config,
        args,
        stop=stop,
        success_metric={metric: args.stop_reward},
        tune_callbacks=[Summary(target=args.stop_reward)],
        progress_reporter=_Silent(),
    )


# Per module: env steps so far, and of the group's returns the mean and the quantiles of the band;
# of rollouts, under this name, those of the episodes that have ended, and the least and greatest.
_ENDED = "ended"
Curves = dict[str, list[tuple[int, float, float, float]]]


class Summary(ProgressCallback):
    """Prints a line per iteration, and at the end a summary with the paths of what was kept.

    Ctrl-C ends the run after the iteration, as its stop criteria do.
    """

    def __init__(self, target: float):
        """Takes the return to be drawn as a line into the learning curve of a single policy."""
        super().__init__()
        self._target = target
        self._curves: dict[str, Curves] = defaultdict(lambda: defaultdict(list))
        self._trials: list[Trial] = []

    def setup(self, **info: Any) -> None:
        """Takes Ctrl-C over from Tune, which would end the run without a checkpoint."""
        self._before = signal.signal(signal.SIGINT, self._stop)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Takes note of the trials there are."""
        self._trials = trials

    def _stop(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self._before)
        print("Stops after this iteration, with a checkpoint. Ctrl-C again: at once, without one.")
        for trial in self._trials:
            trial.stopping_criterion = {"training_iteration": 0}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Prints the trial's iteration, and keeps what is to be drawn of it."""
        super().on_trial_result(iteration, trials, trial, result, **info)
        sampled, curves = result["env_runners"], self._curves[trial.trial_id]
        env_steps, groups = int(sampled["num_env_steps_sampled_lifetime"]), [*groups_of(result)]
        for module_id, group in groups:
            band = (group["group_return_p10"], group["group_return_p90"])
            curves[module_id].append((env_steps, group["group_return_mean"], *band))
        # Of rollouts, what the episodes had that have ended.
        mean = sampled.get("episode_return_mean", math.nan)
        if not groups and not math.isnan(mean):
            band = (sampled["episode_return_min"], sampled["episode_return_max"])
            curves[_ENDED].append((env_steps, mean, *band))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Prints the summary and draws the learning curves of every trial."""
        signal.signal(signal.SIGINT, self._before)
        for trial in trials:
            result, curves = trial.last_result, self._curves.get(trial.trial_id)
            if "env_runners" not in result:
                continue
            env_steps = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
            print(
                f"\n{trial}: {result['training_iteration']} iterations, {env_steps:,d} env "
                f"steps, {result['time_total_s']:.1f} s of training"
            )
            for module_id, curve in (curves or {}).items():
                returns = [mean for _, mean, *_ in curve]
                whose = "episodes that ended" if module_id == _ENDED else "a group"
                name = f" of {module_id}" if len(curves) > 1 else ""
                print(
                    f"  mean return of {whose}{name}: last {returns[-1]:.1f}, "
                    f"best {max(returns):.1f}"
                )
            if curves:
                print(f"  learning curve: {self._draw(trial, curves)}")
            if trial.checkpoint:
                path = trial.checkpoint.path
                print(f"  checkpoint: {path}\n  to go on: GPG.from_checkpoint({path!r}).train()")

    def _draw(self, trial: Trial, curves: Curves) -> str:
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for module_id, curve in curves.items():
            env_steps, means, lows, highs = zip(*curve, strict=True)
            name = f", {module_id}" if len(curves) > 1 else ""
            band, line = "80 % of its episodes", "mean return of the group"
            if module_id == _ENDED:
                band, line = "least to greatest", "mean return of the episodes that ended"
            axes.fill_between(env_steps, lows, highs, alpha=0.2, label=f"{band}{name}")
            axes.plot(env_steps, means, label=f"{line}{name}")
        if len(curves) == 1:
            axes.axhline(self._target, color="gray", linestyle="--", linewidth=1, label="target")
        env = trial.config["env"]
        name = env if isinstance(env, str) else env.__name__
        axes.set(xlabel="env steps", ylabel="return", title=f"GPG on {name}")
        axes.legend(loc="best")
        picture = io.BytesIO()
        figure.savefig(picture, dpi=120)
        plt.close(figure)
        # Beside the checkpoints, wherever those are.
        path = f"{trial.path}/learning_curve.png"
        with trial.storage.storage_filesystem.open_output_stream(path) as file:
            file.write(picture.getvalue())
        return path


class _Silent(tune.CLIReporter):
    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        return False
