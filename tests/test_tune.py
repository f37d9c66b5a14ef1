"""Ray Tune: searches over GPG's settings, schedulers on its metrics, interrupted experiments."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.learning import GPGTorchLearner
from tests.envs import Identity, ShortOrLong
from tests.helpers import SMALL_NET, built, module_results, same, small_config, snapshot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

GROUP_RETURN = "learners/default_policy/group_return_mean"
ENV_STEPS = "env_runners/num_env_steps_sampled_lifetime"


def fit(
    config: GPGConfig | dict[str, Any],
    path: Path,
    *,
    trainable: Any = "GPG",
    iterations: int,
    callbacks: list[tune.Callback] | None = None,
    checkpoint_frequency: int = 0,
    **tune_config: Any,
) -> tune.ResultGrid:
    return tune.Tuner(
        trainable,
        param_space=config,
        tune_config=tune.TuneConfig(**tune_config),
        run_config=tune.RunConfig(
            stop={"training_iteration": iterations},
            storage_path=str(path),
            name="experiment",
            callbacks=callbacks,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=checkpoint_frequency),
            verbose=0,
        ),
    ).fit()


@pytest.mark.parametrize("trainable", [GPG, "GPG"], ids=["class", "name"])
@pytest.mark.parametrize("param_space", ["config", "dict"])
def test_a_grid_search_by_class_and_name_config_and_dict(
    tmp_path: Path, trainable: Any, param_space: str
) -> None:
    searched = {"group_size": tune.grid_search([4, 6]), "lr": 0.02}
    config: Any = small_config(Identity, **searched)
    if param_space == "dict":
        config = {"env": Identity, "num_envs_per_env_runner": 4, "seed": 1, **searched}
    results = fit(config, tmp_path, trainable=trainable, iterations=2)
    assert not results.errors
    found = [module_results(result.metrics) for result in results]
    assert sorted(metrics["group_num_episodes"] for metrics in found) == [4, 6]
    assert {metrics["default_optimizer_learning_rate"] for metrics in found} == {0.02}


def test_asha_stops_trials_by_the_names_we_publish(tmp_path: Path) -> None:
    """One after the other: the trial that learns nothing is held against the one that learns."""
    group_steps = 16 * Identity.LENGTH
    config = small_config(Identity, group_size=16, lr=tune.grid_search([0.02, 1e-9]))
    results = fit(
        config.env_runners(num_envs_per_env_runner=16),
        tmp_path,
        iterations=100,
        metric=GROUP_RETURN,
        mode="max",
        max_concurrent_trials=1,
        scheduler=ASHAScheduler(
            time_attr=ENV_STEPS,
            grace_period=6 * group_steps,
            max_t=12 * group_steps,
            reduction_factor=2,
        ),
    )
    assert not results.errors
    iterations = {result.config["lr"]: result.metrics["training_iteration"] for result in results}
    assert iterations == {0.02: 12, 1e-9: 6}
    assert results.get_best_result().config["lr"] == 0.02


class InUse(GPGTorchLearner):
    """Reports what the minibatches of an update were really learned with."""

    def compute_loss_for_module(self, *, module_id: Any, config: Any, **kwargs: Any) -> Any:
        (optimizer,) = self._named_optimizers.values()
        self.in_use = {
            "lr": optimizer.param_groups[0]["lr"],
            "clip_param": config.clip_param,
            "entropy_coeff": self.entropy_coeff(module_id),
        }
        return super().compute_loss_for_module(module_id=module_id, config=config, **kwargs)

    def after_gradient_based_update(self, **kwargs: Any) -> None:
        in_use = {f"{name}_in_use": value for name, value in self.in_use.items()}
        self.metrics.log_dict(in_use, key=DEFAULT_MODULE_ID, window=1)
        super().after_gradient_based_update(**kwargs)


class Results(tune.Callback):
    """All results of all trials, in their order."""

    def __init__(self) -> None:
        self.of_trial: dict[str, list[dict[str, Any]]] = {}

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.of_trial.setdefault(trial.trial_id, []).append(result)


def test_pbt_puts_what_it_perturbs_in_force(tmp_path: Path) -> None:
    """Two trials; after two iterations the worse one takes over the other's state, perturbed."""
    first = {"lr": 0.02, "clip_param": 0.2, "entropy_coeff": 0.01, "group_size": 16}
    perturbed = {"lr": 0.005, "clip_param": 0.3, "entropy_coeff": 0.03, "group_size": 5}
    results = Results()
    grid = fit(
        small_config(Identity, **{**first, "lr": tune.grid_search([0.02, 1e-9])}).learners(
            learner_class=InUse
        ),
        tmp_path,
        iterations=4,
        callbacks=[results],
        metric=GROUP_RETURN,
        mode="max",
        scheduler=PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=2,
            quantile_fraction=0.5,
            # Always these values.
            resample_probability=1.0,
            hyperparam_mutations={name: [value] for name, value in perturbed.items()},
            synch=True,
        ),
    )
    assert not grid.errors
    seen = []
    for of_trial in results.of_trial.values():
        assert [result["training_iteration"] for result in of_trial][-1] == 4
        for result in of_trial:
            metrics = module_results(result)
            in_use = {
                "lr": metrics["lr_in_use"],
                "clip_param": metrics["clip_param_in_use"],
                "entropy_coeff": metrics["entropy_coeff_in_use"],
                "group_size": metrics["group_num_episodes"],
            }
            expected = {name: result["config"][name] for name in perturbed}
            assert in_use == pytest.approx(expected)
            seen.append((result["training_iteration"], expected))
    # From the first update after the exploit on.
    assert (2, perturbed) not in seen
    assert [(3, perturbed), (4, perturbed)] == [pair for pair in seen if pair[1] == perturbed]


class EpisodesSeen(RLlibCallback):
    """Logs what tells the groups of `ShortOrLong` apart."""

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        seen = float(episode.get_observations()[0][0])
        metrics_logger.log_value("episodes_seen", seen, reduce="sum")


def test_a_trial_that_takes_over_anothers_state_draws_its_own_groups(tmp_path: Path) -> None:
    """All trials have one seed, and nothing is perturbed that would change the draws.

    Those that are only paused go on as they would have.
    """
    results = Results()
    config = small_config(ShortOrLong, lr=tune.grid_search([1e-3, 2e-3, 3e-3]))
    grid = fit(
        config.callbacks(EpisodesSeen),
        tmp_path,
        iterations=4,
        callbacks=[results],
        metric=GROUP_RETURN,
        mode="max",
        scheduler=PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=2,
            quantile_fraction=0.34,
            resample_probability=1.0,
            hyperparam_mutations={"clip_param": [0.3]},
            synch=True,
        ),
    )
    assert not grid.errors
    seen = {
        trial: {r["training_iteration"]: r["env_runners"]["episodes_seen"] for r in of_trial}
        for trial, of_trial in results.of_trial.items()
    }
    exploited = [t for t, r in results.of_trial.items() if r[-1]["config"]["clip_param"] == 0.3]
    assert len(exploited) == 1
    for iteration in (1, 2):
        assert len({of_trial[iteration] for of_trial in seen.values()}) == 1
    for iteration in (3, 4):
        of_others = {s[iteration] for trial, s in seen.items() if trial not in exploited}
        assert len(of_others) == 1
        assert seen[exploited[0]][iteration] not in of_others


class PausesOnce(FIFOScheduler):
    """Pauses a trial after its second iteration; it goes on from the checkpoint of then."""

    def __init__(self) -> None:
        super().__init__()
        self.has_paused = False

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["training_iteration"] == 2 and not self.has_paused:
            self.has_paused = True
            return self.PAUSE
        return self.CONTINUE


def test_a_trial_that_is_paused_while_it_samples_ahead_goes_on(tmp_path: Path) -> None:
    """With the group that was under way, of the policy that it was begun with."""
    config = small_config(ShortOrLong, lr=0.05, sample_ahead=1).callbacks(EpisodesSeen)
    config.env_runners(num_env_runners=1, episodes_per_share=2)

    def seen(result: dict[str, Any]) -> tuple[float, float]:
        return result["env_runners"]["episodes_seen"], module_results(result)["policy_loss"]

    results, scheduler = Results(), PausesOnce()
    grid = fit(config, tmp_path, iterations=4, callbacks=[results], scheduler=scheduler)
    assert not grid.errors
    assert scheduler.has_paused
    (of_trial,) = results.of_trial.values()
    assert of_trial[-1]["iterations_since_restore"] == 2
    with built(config) as algo:
        assert [seen(result) for result in of_trial] == [seen(algo.train()) for _ in range(4)]


class Interrupt(tune.Callback):
    """Ctrl+C, after the third iteration; once, though it is restored with the experiment."""

    def __init__(self, done: Path):
        self._done = done

    def on_trial_result(self, *, result: dict[str, Any], **info: Any) -> None:
        if result["training_iteration"] == 3 and not self._done.exists():
            self._done.touch()
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_experiment_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = small_config(
        Identity, lr=[[0, 0.01], [600, 0.001]], use_kl_loss=True, kl_target=1e-9
    ).rl_module(model_config={**SMALL_NET, "normalize_observations": True})
    fit(
        config,
        tmp_path,
        iterations=6,
        callbacks=[Interrupt(tmp_path / "x")],
        checkpoint_frequency=1,
    )
    experiment = str(tmp_path / "experiment")
    assert tune.Tuner.can_restore(experiment)
    results = tune.Tuner.restore(experiment, "GPG", param_space=config).fit()
    assert not results.errors
    (result,) = results
    assert result.metrics["training_iteration"] == 6
    # It went on from a checkpoint, and did not begin anew.
    assert 3 <= result.metrics["iterations_since_restore"] < 6

    with built(config) as algo:
        whole = module_results([algo.train() for _ in range(6)][-1])
        names = [name for name in whole if "throughput" not in name]
        for name in names:
            np.testing.assert_equal(module_results(result.metrics)[name], whole[name], name)
        restored = GPG.from_checkpoint(result.checkpoint)
        try:
            assert restored.iteration == 6
            assert same(snapshot(restored), snapshot(algo))
        finally:
            restored.stop()


def test_reusing_actors_is_refused(tmp_path: Path) -> None:
    """No algorithm of RLlib takes a new config in place; with PPO, Tune hangs."""
    results = fit(
        small_config(Identity, lr=tune.grid_search([1e-3, 1e-2])),
        tmp_path,
        iterations=1,
        max_concurrent_trials=1,
        reuse_actors=True,
    )
    (error,) = results.errors
    assert "remove `reuse_actors=True`" in str(error)
