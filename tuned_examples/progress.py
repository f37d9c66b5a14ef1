"""What all tuned examples share: how a run is started, stopped, shown and summed up."""

from __future__ import annotations

import argparse
from pathlib import Path
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

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GROUP_RETURN = "learners/default_policy/group_return_mean"


def example_parser(*, reward: float, iterations: int) -> argparse.ArgumentParser:
    """Returns RLlib's parser for example scripts, with the defaults of one example.

    Args:
        reward: The mean return of one group at which to stop, and which `--as-test` asks for.
        iterations: The number of iterations after which to stop at the latest.
    """
    parser = add_rllib_example_script_args(
        default_reward=reward, default_iters=iterations, default_timesteps=10**9
    )
    # Our own lines take the place of Tune's tables; the last policy is kept.
    parser.set_defaults(algo="GPG", verbose=0, checkpoint_at_end=True)
    return parser


def run_example(config: GPGConfig, args: argparse.Namespace) -> ResultGrid | dict[str, Any]:
    """Runs a tuned example: one line per iteration, then a summary and the learning curve.

    Args:
        config: What to train.
        args: The arguments that the parser of `example_parser` returned. With `--no-tune`, RLlib
            prints its own lines instead, and nothing is kept.
    """
    stop = {
        GROUP_RETURN: args.stop_reward,
        "training_iteration": args.stop_iters,
        "env_runners/num_env_steps_sampled_lifetime": args.stop_timesteps,
    }
    return run_rllib_example_script_experiment(
        config,
        args,
        stop=stop,
        success_metric={GROUP_RETURN: args.stop_reward},
        tune_callbacks=[Progress(target=args.stop_reward)],
        progress_reporter=_Silent(),
    )


class Progress(tune.Callback):
    """Prints a line per iteration, and at the end a summary with the paths of what was kept."""

    def __init__(self, target: float):
        """Takes the return to be drawn as a line into the learning curve."""
        self._target = target
        self._curves: dict[str, list[tuple[int, float, float]]] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Prints the trial's iteration."""
        group = result["learners"]["default_policy"]
        mean, std = group["group_return_mean"], group["group_return_std"]
        env_steps = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
        self._curves.setdefault(trial.trial_id, []).append((env_steps, mean, std))
        steps_per_s = group["group_num_env_steps"] / result["time_this_iter_s"]
        name = f"{trial.trial_id} | " if len(trials) > 1 else ""
        print(
            f"{name}iteration {result['training_iteration']:4d} | "
            f"mean return of the group {mean:8.1f} ± {std:6.1f} | "
            f"env steps {env_steps:10,d} | {steps_per_s:8,.0f} steps/s",
            flush=True,
        )

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Prints the summary and draws the learning curve of every trial."""
        for trial in trials:
            curve = self._curves.get(trial.trial_id)
            if not curve:
                continue
            result = trial.last_result
            returns = [mean for _, mean, _ in curve]
            print(
                f"\n{trial}: {result['training_iteration']} iterations, {curve[-1][0]:,d} env "
                f"steps, {result['time_total_s']:.1f} s of training\n"
                f"  mean return of a group: last {returns[-1]:.1f}, best {max(returns):.1f}\n"
                f"  learning curve: {self._draw(trial, curve)}\n"
                f"  checkpoint: {trial.checkpoint.path if trial.checkpoint else 'none'}"
            )

    def _draw(self, trial: Trial, curve: list[tuple[int, float, float]]) -> Path:
        env_steps, means, stds = zip(*curve, strict=True)
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        low, high = zip(*((m - s, m + s) for m, s in zip(means, stds, strict=True)), strict=True)
        axes.fill_between(env_steps, low, high, alpha=0.2, label="± 1 standard deviation")
        axes.plot(env_steps, means, label="mean return of the group")
        axes.axhline(self._target, color="gray", linestyle="--", linewidth=1, label="target")
        axes.set(xlabel="env steps", ylabel="return", title=f"GPG on {trial.config['env']}")
        axes.legend(loc="best")
        path = Path(trial.path) / "learning_curve.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        return path


class _Silent(tune.CLIReporter):
    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        return False
