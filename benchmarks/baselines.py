"""What a baseline is worth: bins, bins carried over groups, the ridge, and RLlib's PPO beside.

Every contender has the same env steps, the same policy network and, on each task, the settings of
the tuned examples; the learning rate is constant. With continuous actions minibatches have 64 steps
however large a group is, as in PPO's published settings. What is compared is the mean return of the
episodes that ended in the last 10 % of the env steps, over seeds::

    python -m benchmarks.baselines status       # what is missing, and what it will take
    python -m benchmarks.baselines run          # runs that, two cells at a time
    python -m benchmarks.baselines run --envs LunarLander-v3 --contenders bins ridge-0.95
    python -m benchmarks.baselines run --group-sizes 4 --tuning --contenders ppo-candidates
    python -m benchmarks.baselines run --group-sizes 4 --contenders ppo
    python -m benchmarks.baselines report       # the tables and pictures of docs/baselines.md

`ppo` is, per task, the best of eight candidates on the seeds of `--tuning`, which are others than
those of the table: two; where actions are continuous, of four on one. Of GPG no setting is chosen
per task; how long rollouts are was chosen for all of them, on the seeds of `--tuning`. Its other
settings, and which λ to recommend, were chosen on seeds below 40: `results/earlier` has those runs.
Needs the extras `examples` and `envpool`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter

from benchmarks.cells import Cell, last_return, run_all, status
from benchmarks.training import EndedEpisodes, ScaleRewards, after, settings_of, train
from benchmarks.witness_critic import WitnessCritic
from rllib_gpg import GPGConfig
from rllib_gpg.advantages import BinBaseline, RidgeBaseline
from rllib_gpg.envs.envpool import register_envpool

EXPERIMENT, TUNING = "baselines", "baselines_tuning"
SEEDS, TUNING_SEEDS = (40, 41, 42, 43), (0, 1)
HIDDENS = [64, 64]
# In a group of rollouts; with their 64 or 256 steps, an update has as many env steps as one of PPO.
NUM_ROLLOUTS = 8


@dataclass(frozen=True)
class Task:
    """An env, and what all contenders share on it.

    Attributes:
        training: GPG's settings, those of the tuned examples.
        num_env_steps: Of a run, for each group size.
        is_continuous: Whether actions are: then observations are normalised too.
        is_discrete: Whether observations are: then they are one-hot.
    """

    training: dict[str, Any]
    num_env_steps: dict[int, int]
    is_continuous: bool = False
    is_discrete: bool = False

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """The seeds that PPO's settings are chosen on; one where it takes a quarter of an hour."""
        return TUNING_SEEDS[:1] if self.is_continuous else TUNING_SEEDS


CLASSIC = {"lr": 1e-3, "gamma": 0.99, "num_epochs": 4, "num_minibatches": 4}
BOX2D = {"lr": 1e-3, "gamma": 0.99, "num_epochs": 4, "minibatch_size": 256}
MUJOCO = {"lr": 3e-4, "gamma": 0.99, "num_epochs": 10, "minibatch_size": 64}
TASKS = {
    "CartPole-v1": Task(CLASSIC, {1: 100_000, 4: 40_000, 16: 100_000, 32: 200_000, 128: 500_000}),
    # The only reward is 1 at the goal.
    "FrozenLake-v1": Task(
        CLASSIC, {4: 40_000, 16: 80_000, 32: 120_000, 128: 300_000}, is_discrete=True
    ),
    "LunarLander-v3": Task(BOX2D, {4: 200_000, 16: 400_000, 32: 800_000, 128: 2_000_000}),
    "HalfCheetah-v5": Task(MUJOCO, {4: 280_000, 16: 480_000, 32: 960_000}, is_continuous=True),
    "Hopper-v5": Task(MUJOCO, {4: 100_000, 16: 200_000, 32: 400_000}, is_continuous=True),
    "Walker2d-v5": Task(MUJOCO, {4: 200_000, 16: 300_000, 32: 500_000}, is_continuous=True),
}


def ridge(lambda_: float, **settings: Any) -> dict[str, Any]:
    """GPG's settings for a ridge."""
    return {"baseline": RidgeBaseline(**settings), "lambda_": lambda_}


GPG_CONTENDERS: dict[str, dict[str, Any]] = {
    "bins": {},
    "bins-carried": {"baseline": BinBaseline(decay=0.8)},
    "ridge-1": ridge(1.0),
    "ridge-0.98": ridge(0.98),
    "ridge-0.97": ridge(0.97),
    "ridge-0.95": ridge(0.95),
    "ridge-0.9": ridge(0.9),
    "ridge-0.95-decay-0.5": ridge(0.95, decay=0.5),
    "ridge-0.95-decay-0.9": ridge(0.95, decay=0.9),
    "ridge-0.95-features-0": ridge(0.95, num_features=0),
    "ridge-0.95-features-256": ridge(0.95, num_features=256),
    "ridge-0.95-bootstrap": {**ridge(0.95), "bootstrap_truncated": True},
    # Rollouts, not episodes: cut off, completed by the ridge, gone on with in the next group.
    **{
        f"ridge-0.95-rollouts-{length}": {
            **ridge(0.95),
            "bootstrap_truncated": True,
            "group_size": NUM_ROLLOUTS,
            "rollout_fragment_length": length,
        }
        for length in (64, 256)
    },
    # The same as without it, with a critic that learns from the same groups and isn't used.
    "ridge-0.95-witness": ridge(0.95),
}
# RLlib's PPO: env steps per update, the learning rate, and GAE's lambda.
PPO_CONTENDERS: dict[str, dict[str, Any]] = {
    f"ppo-{batch}-{lr:g}-{lambda_}": {
        "train_batch_size_per_learner": batch,
        "lr": lr,
        "lambda_": lambda_,
    }
    for batch in (512, 2048)
    for lr in (3e-4, 1e-3)
    for lambda_ in (0.95, 0.98)
}
# Names for PPO's contenders: the best one on a task, and all of them.
PPO, PPO_CANDIDATES = "ppo", "ppo-candidates"
TUNING_GROUP_SIZE = 4
MAIN = ("bins", "bins-carried", "ridge-1", "ridge-0.98", "ridge-0.97", "ridge-0.95")
WITNESS = "ridge-0.95-witness"
ROLLOUTS = tuple(name for name in GPG_CONTENDERS if "-rollouts-" in name)
# What is compared on the seeds of `--tuning`: episodes, and rollouts of two lengths.
SAMPLED = ("ridge-0.95", *ROLLOUTS)
VARIANTS = tuple(name for name in GPG_CONTENDERS if name not in (*MAIN, *ROLLOUTS, WITNESS))


def gpg_config(cell: Cell, task: Task, training: dict[str, Any]) -> GPGConfig:
    """GPG's settings: all episodes of a group, or all rollouts, side by side."""
    training = {**task.training, "group_size": cell.group_size, **training}
    config = GPGConfig().env_runners(num_envs_per_env_runner=training["group_size"])
    if length := training.pop("rollout_fragment_length", None):
        config.env_runners(batch_mode="truncate_episodes", rollout_fragment_length=length)
    model = {"free_log_std": True, "normalize_observations": True} if task.is_continuous else {}
    config.rl_module(model_config={"fcnet_hiddens": HIDDENS, **model})
    return config.training(**training)


def ppo_config(task: Task, training: dict[str, Any]) -> PPOConfig:
    """RLlib's PPO with 8 envs and scaled rewards, without its KL term."""
    model = {"free_log_std": True} if task.is_continuous else {}
    config = PPOConfig().env_runners(num_env_runners=0, num_envs_per_env_runner=8)
    config.rl_module(
        model_config={
            "fcnet_hiddens": HIDDENS,
            "fcnet_activation": "tanh",
            "vf_share_layers": False,
            **model,
        }
    )
    batch = training["train_batch_size_per_learner"]
    # As many epochs, and as large minibatches, as published settings for these tasks have.
    epochs, minibatch = (10, 64) if task.is_continuous else (4, 128)
    config.training(
        train_batch_size_per_learner=batch,
        minibatch_size=minibatch,
        num_epochs=epochs,
        lr=training["lr"],
        gamma=task.training["gamma"],
        lambda_=training["lambda_"],
        clip_param=0.2,
        use_kl_loss=False,
        vf_clip_param=float("inf"),
        vf_loss_coeff=0.5,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    if task.is_continuous:
        config.env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
    # Its critic learns in units of 1 on every task; without, LunarLander's returns of 200 leave
    # nothing of the policy's gradient within the limit on the norm of both.
    return config.callbacks([EndedEpisodes, ScaleRewards])


def config_of(cell: Cell) -> AlgorithmConfig:
    """The whole config of a cell."""
    task = TASKS[cell.env]
    if cell.contender in PPO_CONTENDERS:
        config = ppo_config(task, PPO_CONTENDERS[cell.contender])
    else:
        config = gpg_config(cell, task, GPG_CONTENDERS[cell.contender]).callbacks(EndedEpisodes)
    if task.is_discrete:
        config.env_runners(env_to_module_connector=lambda *_, **__: FlattenObservations())
    if cell.contender in ROLLOUTS:
        config.environment(cell.env)  # a rollout can go on only in an env that can be replayed
    else:
        config.environment(register_envpool(cell.env))
        config.env_runners(gym_env_vectorize_mode="vector_entry_point")
    return config.debugging(seed=cell.seed, log_level="ERROR", log_sys_usage=False)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Trains; gives the settings and the learning curve."""
    config = config_of(cell)
    training = TASKS[cell.env].training
    witness = WitnessCritic(
        gamma=training["gamma"], lr=training["lr"], num_epochs=training["num_epochs"]
    )
    if cell.contender.endswith("-witness"):
        config.learners(learner_connector=lambda *_, **__: witness)
    algo = config.build_algo()
    try:
        curve = train(algo, after(cell.num_env_steps))
    finally:
        algo.stop()
    if witness.explained_variance:
        curve["critic"] = [round(value, 4) for value in witness.explained_variance]
    return {"settings": settings_of(config), "curve": curve}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """The cells that are asked for."""
    return [
        Cell(
            TUNING if arguments.tuning else EXPERIMENT, env, contender, group_size, seed, num_steps
        )
        for env in arguments.envs
        for group_size, num_steps in TASKS[env].num_env_steps.items()
        if group_size in arguments.group_sizes
        for seed in (arguments.seeds or (TASKS[env].tuning_seeds if arguments.tuning else SEEDS))
        for name in arguments.contenders
        for contender in resolved(name, env)
    ]


def resolved(name: str, env: str) -> list[str]:
    """The contenders that a name stands for on a task.

    Raises:
        SystemExit: If PPO's settings haven't been chosen yet.
    """
    # With continuous actions λ is 0.95, as in all published settings for these tasks.
    candidates = [
        contender
        for contender, training in PPO_CONTENDERS.items()
        if training["lambda_"] == 0.95 or not TASKS[env].is_continuous
    ]
    if name == PPO_CANDIDATES:
        return candidates
    if name != PPO:
        return [name]
    mean_returns = {}
    for contender in candidates:
        tuning = tuning_cells(env, contender)
        if not all(cell.is_done for cell in tuning):
            raise SystemExit(f"{env}: run `--tuning --contenders {PPO_CANDIDATES}` first.")
        mean_returns[contender] = np.mean([last_return(cell.result()) for cell in tuning])
    return [max(mean_returns, key=lambda contender: mean_returns[contender])]


def tuning_cells(env: str, contender: str) -> list[Cell]:
    """Those that PPO's settings are chosen by."""
    num_env_steps = TASKS[env].num_env_steps[TUNING_GROUP_SIZE]
    return [
        Cell(TUNING, env, contender, TUNING_GROUP_SIZE, seed, num_env_steps)
        for seed in TASKS[env].tuning_seeds
    ]


def report() -> None:
    """Writes the tables and draws the pictures, of whatever has been run."""
    from benchmarks import reporting as to

    steps = {(env, n): s for env, task in TASKS.items() for n, s in task.num_env_steps.items()}
    page = to.DOCS / "baselines.md"
    small = {key: number for key, number in steps.items() if key[1] == TUNING_GROUP_SIZE}
    results = to.results_of(
        Cell(EXPERIMENT, env, contender, n, seed, num_env_steps)
        for (env, n), num_env_steps in steps.items()
        for contender in (*GPG_CONTENDERS, *PPO_CONTENDERS)
        for seed in SEEDS
    )
    if not results:
        raise SystemExit("Nothing to report: `python -m benchmarks.baselines run` comes first.")
    # One name for the settings of PPO that were run, those chosen for the task.
    for env, n in steps:
        for contender in PPO_CONTENDERS:
            if (env, n, contender) in results:
                results[env, n, PPO] = results[env, n, contender]

    to.write_table(page, "returns", to.table(results, [*MAIN, *ROLLOUTS, PPO], steps))
    to.write_table(page, "variants", to.table(results, VARIANTS, small))
    tuning = to.results_of(
        cell
        for env in TASKS
        for name in (*PPO_CONTENDERS, *SAMPLED)
        for cell in tuning_cells(env, name)
    )
    to.write_table(page, "tuning", to.table(tuning, list(PPO_CONTENDERS), small))
    to.write_table(page, "rollouts", to.table(tuning, SAMPLED, small))

    def panels(names: dict[str, str], curve_of: Any, only_if: str) -> dict[str, Any]:
        return {
            env: {
                label: [curve_of(label)(result) for result in results.get((env, 4, name), [])]
                for label, name in names.items()
            }
            for env in TASKS
            if (env, 4, only_if) in results
        }

    names = {
        "time bins": "bins",
        "ridge, λ 0.95": "ridge-0.95",
        "ridge, λ 0.98": "ridge-0.98",
        "RLlib's PPO, tuned": PPO,
        "ridge, λ 0.95, rollouts": "ridge-0.95-rollouts-64",
    }
    curves = panels(names, lambda _: to.returns_curve, "ridge-0.95")
    to.draw(curves, "mean return", to.DOCS / "images" / "baselines_returns")
    series = {"bins": "bins", "ridge in bins": "baseline", "PPO's trained critic": "critic"}
    curves = panels(
        dict.fromkeys(series, WITNESS), lambda label: to.explained_curve(series[label]), WITNESS
    )
    to.draw(curves, "explained variance", to.DOCS / "images" / "baselines_explained")


def main() -> None:
    """Does what the command line says."""
    everyone = [*GPG_CONTENDERS, *PPO_CONTENDERS, PPO, PPO_CANDIDATES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "status", "report"])
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--contenders", nargs="+", default=list(MAIN), choices=everyone)
    parser.add_argument("--group-sizes", nargs="+", type=int, default=[1, 4, 16, 32, 128])
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--tuning", action="store_true", help="runs to choose settings by")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    arguments = parser.parse_args()
    if arguments.what == "run":
        run_all(cells(arguments), run_cell, arguments.jobs)
    elif arguments.what == "status":
        print(status(cells(arguments)))
    else:
        report()


if __name__ == "__main__":
    main()
