"""A search with Ray Tune on CartPole-v1: how large should the group be, and which bins?

What it shows: a GPG config whose settings are search spaces, run by `tune.Tuner("GPG", ..)`; a
table of the results; the learning curves per group size, as in the paper's Figure 2, over env
steps: mean ± standard deviation over the seeds.

How to run it::

    python tuned_examples/tune_group_size.py

Each trial takes one CPU. `--group-sizes 8 32 --binnings time --seeds 0 1 --stop-iters 50` is a
shorter search.

What to expect: 4 minutes on 2 cores, 18 trials of 60 iterations. All of them learn. Small groups
need fewer env steps, large ones fewer iterations, and end steadier::

         binning  group      last return   env steps to 475
            time      4    495.8 ±   3.6   15,657  16,154  28,485
            time     16    497.0 ±   4.3   72,709  63,220  89,349
            time     64    500.0 ±   0.0   239,622  271,771  233,864
       universal      4    495.8 ±   6.0   16,929  26,130  23,243
       universal     16    482.5 ±  12.5   95,692  65,477  107,242
       universal     64    499.9 ±   0.1   368,946  206,500  238,653
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from run_example import GROUP_RETURN

from rllib_gpg import GPGConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ENV_STEPS = "env_runners/num_env_steps_sampled_lifetime"
# A group's mean return that counts as learned, as in `cartpole_gpg.py`.
TARGET = 475.0

# The env steps and mean returns of the groups of one trial.
Curve = tuple[np.ndarray, np.ndarray]

parser = argparse.ArgumentParser(description="Sweeps group size and binning on CartPole-v1.")
parser.add_argument("--group-sizes", type=int, nargs="+", default=[4, 16, 64])
parser.add_argument("--binnings", nargs="+", default=["time", "universal"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--stop-iters", type=int, default=60, help="Iterations of each trial.")


def search(args: argparse.Namespace) -> tune.ResultGrid:
    """Runs one trial per group size, binning and seed."""
    config = (
        GPGConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=32)
        .training(
            group_size=tune.grid_search(args.group_sizes),
            binning=tune.grid_search(args.binnings),
            lr=1e-3,
            gamma=0.99,
        )
        .rl_module(model_config={"fcnet_hiddens": [64, 64]})
        .debugging(seed=tune.grid_search(args.seeds))
    )
    run_config = tune.RunConfig(
        stop={"training_iteration": args.stop_iters}, callbacks=[Progress()], verbose=0
    )
    return tune.Tuner("GPG", param_space=config, run_config=run_config).fit()


class Progress(tune.Callback):
    """Prints a line per trial; Tune's own tables list every setting of the config."""

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Prints the trial's last result."""
        settings = {name: trial.config[name] for name in ("binning", "group_size", "seed")}
        last = trial.last_result["learners"]["default_policy"]["group_return_mean"]
        print(f"{trial}: {settings}, mean return of the last group {last:.1f}", flush=True)


def curves(results: tune.ResultGrid) -> dict[tuple[str, int], list[Curve]]:
    """Returns, per binning and group size, the curves of all seeds."""
    found: dict[tuple[str, int], list[Curve]] = defaultdict(list)
    for result in results:
        if result.error:
            raise result.error
        table = result.metrics_dataframe
        curve = (table[ENV_STEPS].to_numpy(), table[GROUP_RETURN].to_numpy())
        found[result.config["binning"], result.config["group_size"]].append(curve)
    return dict(sorted(found.items()))


def print_table(found: dict[tuple[str, int], list[Curve]]) -> None:
    """Prints how good each setting was at the end, and how soon it was good."""
    print(f"\n{'binning':>12} {'group':>6}   {'last return':>14}   env steps to {TARGET:.0f}")
    for (binning, group_size), seeds in found.items():
        last = [returns[-1] for _, returns in seeds]
        # The first group that reaches the target; "-" for a seed without one.
        first = [env_steps[returns >= TARGET][:1] for env_steps, returns in seeds]
        needed = "  ".join(f"{steps[0]:,.0f}" if len(steps) else "-" for steps in first)
        spread = f"{np.mean(last):6.1f} ± {np.std(last):5.1f}"
        print(f"{binning:>12} {group_size:>6}   {spread:>14}   {needed}")


def draw(found: dict[tuple[str, int], list[Curve]], path: Path) -> None:
    """Draws one panel per binning with one curve per group size."""
    binnings = sorted({binning for binning, _ in found})
    figure, panels = plt.subplots(
        1, len(binnings), figsize=(6 * len(binnings), 4), sharey=True, squeeze=False
    )
    for axes, binning in zip(panels[0], binnings, strict=True):
        for (of, group_size), seeds in found.items():
            if of != binning:
                continue
            # Episodes differ in length: the seeds' groups end at different env steps.
            start = max(env_steps[0] for env_steps, _ in seeds)
            end = min(env_steps[-1] for env_steps, _ in seeds)
            at = np.geomspace(start, max(start, end), 200)
            returns = np.stack([np.interp(at, *curve) for curve in seeds])
            mean, std = returns.mean(0), returns.std(0)
            (line,) = axes.plot(at, mean, label=f"group of {group_size}")
            axes.fill_between(at, mean - std, mean + std, alpha=0.2, color=line.get_color())
        axes.set(title=f"GPG on CartPole-v1, {binning} bins", xlabel="env steps", xscale="log")
        axes.axhline(TARGET, color="gray", linestyle="--", linewidth=1)
        axes.legend(loc="best")
    panels[0][0].set_ylabel("mean return of a group, ± 1 std over seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    results = search(parser.parse_args())
    found = curves(results)
    print_table(found)
    path = Path(results.experiment_path) / "group_sizes.png"
    draw(found, path)
    print(f"\nlearning curves: {path}")
