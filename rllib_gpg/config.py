"""`GPGConfig`: the settings of Group Policy Gradient, with PPO's names where PPO has them."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.connectors.learner import AddObservationsFromEpisodesToBatch
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.annotations import override

from rllib_gpg.advantages.baselines import Baseline
from rllib_gpg.advantages.binning import BinningFunction
from rllib_gpg.advantages.connector import GroupAdvantageEstimation
from rllib_gpg.advantages.levels import Level
from rllib_gpg.evaluation import evaluate_episodes
from rllib_gpg.learning.episode_ends import AddEpisodeEnds
from rllib_gpg.learning.rl_module import DefaultGPGTorchRLModule, are_default, has_encoder
from rllib_gpg.learning.surrogates import Bounds, Surrogate
from rllib_gpg.learning.torch_learner import GPGTorchLearner
from rllib_gpg.learning.trajectories import AddTrajectories
from rllib_gpg.sampling import GroupEnvRunner, MultiAgentGroupEnvRunner
from rllib_gpg.validation import CRITIC_SETTINGS, check_arguments, check_config, check_keys
from rllib_gpg.validation.names import is_said

_ESTIMATOR_SETTINGS = (
    "gamma",
    "binning",
    "leave_one_out",
    "normalize_advantages",
    "baseline",
    "lambda_",
    "credit",
    "second_level",
    "baseline_decay",
    "bootstrap_truncated",
)

# A nearly uniform first policy: returns without a critic are noisy, and whatever the first policy
# happens to prefer is hard to unlearn.
_INITIALIZERS: dict[str, Any] = {
    "fcnet_kernel_initializer": "orthogonal_",
    "fcnet_kernel_initializer_kwargs": {"gain": 2**0.5},
    "fcnet_bias_initializer": "zeros_",
    "head_fcnet_kernel_initializer": "orthogonal_",
    "head_fcnet_kernel_initializer_kwargs": {"gain": 0.01},
    "head_fcnet_bias_initializer": "zeros_",
}


class GPGConfig(AlgorithmConfig):
    """Defines a configuration class from which a GPG Algorithm can be built.

    A PPO script becomes a GPG script by changing the class and deleting the settings of the critic
    and the size of the batch:

        from rllib_gpg import GPGConfig

        config = (
            GPGConfig()
            .environment("CartPole-v1")
            .env_runners(num_env_runners=2, num_envs_per_env_runner=16)
            .training(group_size=32, lr=1e-3, gamma=0.99)
        )
        algo = config.build_algo()
        print(algo.train()["learners"]["default_policy"]["group_return_mean"])

    It also works with Ray Tune, by class or - `import rllib_gpg` registers it - by name:

        from ray import tune

        config.training(group_size=tune.grid_search([8, 32, 128]))
        tune.Tuner("GPG", param_space=config).fit()
    """

    def __init__(self, algo_class: type | None = None):
        """Initializes a GPGConfig instance."""
        # RLlib's default; GPG has no exploration but the policy's own.
        self.exploration_config = {"type": "StochasticSampling"}
        from rllib_gpg.gpg import GPG  # It needs this class in its turn.

        super().__init__(algo_class=algo_class or GPG)

        # The group, and what each step of it was worth.
        self.group_size = 32
        self.episodes_per_start = 1
        self.max_extra_starts = 0
        self.binning: str | BinningFunction = "time"
        self.leave_one_out = False
        self.normalize_advantages: bool | str = True
        self.baseline: str | Baseline = "bins"
        self.lambda_ = 1.0
        self.credit = "returns"
        self.second_level: Level | None = None
        self.baseline_decay: float | None = None
        self.bootstrap_truncated = False
        self.max_episode_steps: int | None = None
        self.episodes_per_share: int | None = None
        self.duplicate_last_shares = False

        # The update.
        self.lr = 1e-3
        self.num_epochs = 4
        self.num_minibatches: int | None = None
        self.minibatch_size = None
        self.shuffle_batch_per_epoch = True
        self.surrogate: str | Surrogate = "clip"
        self.clip_param: Bounds = 0.2
        self.ratio_level = "step"
        self.loss_averaging: str | float = "steps"
        self.reference_kl_coeff = 0.0
        self.reference: str | None = None
        self.reference_refresh: int | None = None
        self.sample_ahead = 0
        self.entropy_coeff: Any = 0.0
        self.grad_clip = 0.5
        self.use_kl_loss = False
        self.kl_coeff = 0.2
        self.kl_target = 0.01
        # That of `GPGTRPOTorchLearner`.
        self.max_kl = 0.01
        self.cg_iterations = 10
        self.cg_damping = 0.1

        # Whole episodes; see also `env_runner_cls`.
        self.batch_mode = "complete_episodes"
        self.rollout_fragment_length = "auto"

        # Faults. RLlib's PPO gives up on what takes longer than 60 s; here that would cost an env
        # runner, so it should be longer than any healthy share. A missing node must not hold up
        # each iteration for RLlib's 30 s.
        self.sample_timeout_s = 600.0
        self.evaluation_sample_timeout_s = 600.0
        self.custom_evaluation_function: Any = None
        self.max_share_failures = 5
        self.env_runner_health_probe_timeout_s = 1.0
        # All that RLlib would ask and tell each env runner after an iteration goes with the shares;
        # env runners that sample ahead are busy then.
        self._dont_auto_sync_env_runner_states = True

    @property
    def env_runner_cls(self) -> type[EnvRunner]:
        """The env runner: by default `GroupEnvRunner` or, of a multi-agent config, its like."""
        default = MultiAgentGroupEnvRunner if self.is_multi_agent else GroupEnvRunner
        return self._env_runner_cls or default

    @env_runner_cls.setter
    def env_runner_cls(self, value: type[EnvRunner] | None) -> None:
        self._env_runner_cls = value

    @property
    def learner_class(self) -> type[Learner]:
        """What moves the policy: by default `GPGTorchLearner`."""
        return self._learner_class or self.get_default_learner_class()

    @learner_class.setter
    def learner_class(self, value: type[Learner] | None) -> None:
        self._learner_class = value

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        group_size: int = NotProvided,
        episodes_per_start: int = NotProvided,
        max_extra_starts: int = NotProvided,
        binning: str | BinningFunction = NotProvided,
        leave_one_out: bool = NotProvided,
        normalize_advantages: bool | str = NotProvided,
        baseline: str | Baseline = NotProvided,
        lambda_: float = NotProvided,
        credit: str = NotProvided,
        second_level: Level | None = NotProvided,
        baseline_decay: float | None = NotProvided,
        bootstrap_truncated: bool = NotProvided,
        num_minibatches: int = NotProvided,
        surrogate: str | Surrogate = NotProvided,
        clip_param: Bounds = NotProvided,
        ratio_level: str = NotProvided,
        loss_averaging: str | float = NotProvided,
        reference_kl_coeff: float = NotProvided,
        reference: str | None = NotProvided,
        reference_refresh: int | None = NotProvided,
        sample_ahead: int = NotProvided,
        entropy_coeff: Any = NotProvided,
        use_kl_loss: bool = NotProvided,
        kl_coeff: float = NotProvided,
        kl_target: float = NotProvided,
        learner_class: type[Learner] | None = NotProvided,
        max_kl: float = NotProvided,
        cg_iterations: int = NotProvided,
        cg_damping: float = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the training related configuration.

        Args:
            group_size: Whole episodes (of the env, if there are several agents) per update, over
                all env runners. Larger groups make better baselines and smoother updates, at more
                env steps each; 8 to 128 are usual. With 1 and time bins there is nothing to compare
                with, and so no signal, unless the baseline remembers earlier groups. Default 32:
                with it and the other defaults CartPole is learned in about 20 iterations.
            episodes_per_start: How many episodes of a group have each start in common; `group_size`
                must be a multiple of it. Above 1, bins hold the episodes of one start only, as
                answers to one prompt are compared in GRPO: for envs whose start decides much of the
                return. 4 to 16 are usual: more starts see more of the env, more episodes of each
                make better baselines. The same start is the same seed of the env's `reset`. What
                the env draws later from the generator that this seeds is alike too: in gymnasium,
                the noise of the dynamics, for as long as the episodes draw as many numbers. So
                advantages are those under the same noise, and what differs are the actions, which
                are drawn independently. What an env or a connector draws from elsewhere, such as
                NumPy's global generator, or remembers of other episodes, as `MeanStdFilter` does,
                differs from the start on. Refused for native and asynchronous vector envs, which
                can't be reset one by one. Default 1: every episode has a start of its own, and bins
                hold all of them.
            max_extra_starts: How many further starts may be drawn in an iteration, in place of
                starts whose episodes all have the same undiscounted return (the sum over all
                agents): DAPO's dynamic sampling. It goes in rounds, until no such start is left in
                the group or so many have been drawn; starts without replacement stay. For envs that
                reward the end: there such a start has no signal, and without it the gradient only
                becomes larger. Where rewards come on the way, what is dropped may have had one.
                Dropped episodes were sampled: they count in env steps, `episode_return_mean` and
                what connectors remember. Needs `episodes_per_start` above 1. Default 0: none.
            binning: Which steps share a baseline (equation 6): "time" (default, as in all headline
                experiments of the paper), "universal", "state"; an object such as
                `rllib_gpg.advantages.SpatialTimeBinning(epsilon=0.2)`; or a function
                `f(observations, timesteps) -> integer keys`, called once per trajectory.
            leave_one_out: Whether a trajectory's own return is left out of its baselines
                (Proposition 1: unbiased, but for singletons). Default False, as in the paper.
            normalize_advantages: Whether to normalise advantages by their mean and standard
                deviation over the steps of the group, as PPO does. Makes `lr` independent of the
                scale of rewards. "bins": by the standard deviation of their bin, as GRPO does with
                universal bins, so that each bin counts the same. Default True.
            baseline: What returns are compared with: "bins" (default), the mean of the bin, as in
                the paper; "ridge", which also sees where in the bin a state lies, by a regression
                on fixed features that is solved in closed form and remembers earlier groups, for
                more from each episode where groups are small or episodes long; or an object such as
                `rllib_gpg.advantages.RidgeBaseline(num_features=128)`, also of a class of one's
                own. With "ridge" set `lambda_` too. "none" compares with nothing (REINFORCE),
                "optimal" with the constant that makes the gradient vary least, which
                `normalize_advantages=True` would take away again: that is refused.
            lambda_: PPO's name, and GAE's λ, over a baseline that isn't trained. Below 1, part of
                what happens later is replaced by its value: less noise, some bias. 0.95 to 0.98 are
                usual with "ridge"; refused with a baseline that doesn't see the state. Default 1.
            credit: What each step is credited with: "returns" (default), the rewards from it on;
                "outcome", the sum of all rewards of its episode (outcome supervision); or
                "process", returns of rewards that are normalised over the group, or over the
                episodes of their start (process supervision; with gamma 1 that of GRPO).
            second_level: A second comparison whose advantages are added, such as
                `rllib_gpg.advantages.Level("state")` (GiGPO). Default None.
            baseline_decay: The weight of each group relative to the next one in what the baseline
                remembers, in [0, 1). Default None: that of the baseline, 0 (nothing) for "bins"
                and 0.8 for "ridge", whose regression has the square root. Above 0, a group of one
                learns too.
            bootstrap_truncated: Whether the return of an episode that a time limit cuts is
                completed by the baseline's value of its last observation. Needs a baseline that
                sees the state, and gamma below 1. Default False: returns stop at the cut.
            num_minibatches: Minibatches per epoch, default 4. A group's number of steps changes
                from one iteration to the next, so that this and not `minibatch_size` keeps the
                number of gradient steps constant. Set one of them.
            surrogate: How the ratio pi/pi_old enters the loss: "clip" (default, equation 2);
                "soft_gate" (SAPO); "clipped_weight" (CISPO); "unclipped", for one update per group
                or with `use_kl_loss`; or an object such as
                `rllib_gpg.learning.surrogates.Clip(dual=3.0)`, also of a class of one's own.
            clip_param: How far the ratio may move from 1 before a step stops counting: one number,
                or (lower, upper), as in DAPO's (0.2, 0.28). Of "clip" and "clipped_weight". Smaller
                is safer and slower; 0.1 to 0.3 are usual. Default 0.2.
            ratio_level: "step" (default), or "trajectory": one ratio per trajectory, the geometric
                mean of those of its steps (GSPO), which are much closer to 1. Steps keep their own
                advantages (GSPO-token). Needs all of a trajectory at once: `num_minibatches=1`.
            loss_averaging: "steps" (default): the mean over all steps. "trajectories": the mean
                over trajectories of the mean over their steps (GRPO). A number c: the mean over
                trajectories of the sum over their steps, over c, such as the episodes' limit
                (Dr. GRPO).
            reference_kl_coeff: The weight of KL(policy, reference) in the loss, estimated at the
                sampled actions. 0.01 to 0.1 are usual; refused for recurrent modules. Default 0:
                there is no reference.
            reference: The checkpoint, of an algorithm or of a module, that the reference policy is
                from: an absolute path or a URI. Checkpoints of the run have it too, and theirs is
                in force after restoring. Default None: the policy that the run begins with.
            reference_refresh: The reference becomes the policy after every so many updates.
                Default None: never.
            sample_ahead: How many groups are sampled ahead: with 1, the next one while the policy
                learns from this one, so that an iteration takes as long as the longer of the two.
                Groups are then of the policy before the last update; ratios are against the policy
                that sampled. Needs remote env runners. Default 0: groups are of the policy that
                learns from them.
            entropy_coeff: The weight of the entropy bonus, a float or a schedule
                `[[env steps, value], ..]`. It helps where a policy settles too early, and harms
                where it should settle. Default 0.
            use_kl_loss: Whether to add `kl_coeff * KL(old, new)` to the loss. Default False: the
                clip does the same job.
            kl_coeff: The first KL coefficient. It is adapted after each update, times 1.5 when the
                KL is above twice `kl_target`, halved when it is below half of it. Default 0.2.
            kl_target: The KL divergence per update to steer to. Default 0.01.
            learner_class: How the policy is moved. Default None: `GPGTorchLearner`, by PPO's
                clipped loss. `rllib_gpg.learning.GPGTRPOTorchLearner` makes one step of TRPO per
                group, so set `num_epochs=1` and `num_minibatches=1` with it; `lr`, `grad_clip`,
                the surrogate, the reference and the KL loss mean nothing to it. Or a subclass of
                either.
            max_kl: TRPO's bound on the mean KL(old, new) over the steps of a group. Larger is
                faster as long as the group is large enough to know the direction; 0.001 to 0.05
                are usual. Default 0.01, as in its paper.
            cg_iterations: How many conjugate gradient iterations TRPO's direction may take, each
                a backward pass through a backward pass over the group. More are more exact; 10 to
                20 are usual. Default 10: further ones turn the direction little.
            cg_damping: What is added to the diagonal of TRPO's Fisher matrix, which is singular
                for most networks. Larger is nearer to the plain gradient, and makes steps shorter;
                0.001 to 0.1 are usual, 0 is allowed. Default 0.1, the safe end.
            **kwargs: The settings of `AlgorithmConfig.training`. Defaults that differ: `lr` 1e-3
                (there is no critic to wait for), `num_epochs` 4 (with 4 minibatches, as in the
                paper's source), `grad_clip` 0.5 by global norm (returns without a critic's
                smoothing give heavy-tailed gradients), `shuffle_batch_per_epoch` True.
                The critic's settings of PPO are refused when the config is validated.

        Returns:
            This updated AlgorithmConfig object.

        Raises:
            TypeError: If there is no such setting; with the nearest one.
        """
        check_arguments(self, "training", kwargs)
        for name in CRITIC_SETTINGS & kwargs.keys():
            setattr(self, name, kwargs.pop(name))
        # What old scripts say here about the model goes unused on RLlib's new API stack.
        old_model = kwargs.get("model")
        if isinstance(old_model, dict) and is_said("vf_share_layers", old_model, self.model):
            self.vf_share_layers = old_model["vf_share_layers"]
        super().training(**kwargs)
        return self._set(
            group_size=group_size,
            episodes_per_start=episodes_per_start,
            max_extra_starts=max_extra_starts,
            binning=binning,
            leave_one_out=leave_one_out,
            normalize_advantages=normalize_advantages,
            baseline=baseline,
            lambda_=lambda_,
            credit=credit,
            second_level=second_level,
            baseline_decay=baseline_decay,
            bootstrap_truncated=bootstrap_truncated,
            num_minibatches=num_minibatches,
            surrogate=surrogate,
            clip_param=clip_param,
            ratio_level=ratio_level,
            loss_averaging=loss_averaging,
            reference_kl_coeff=reference_kl_coeff,
            reference=reference,
            reference_refresh=reference_refresh,
            sample_ahead=sample_ahead,
            entropy_coeff=entropy_coeff,
            use_kl_loss=use_kl_loss,
            kl_coeff=kl_coeff,
            kl_target=kl_target,
            learner_class=learner_class,
            max_kl=max_kl,
            cg_iterations=cg_iterations,
            cg_damping=cg_damping,
        )

    @override(AlgorithmConfig)
    def env_runners(
        self,
        *,
        max_episode_steps: int | None = NotProvided,
        episodes_per_share: int | None = NotProvided,
        duplicate_last_shares: bool = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets the rollout worker configuration.

        Args:
            max_episode_steps: Cuts episodes after so many steps (truncated), for an env without a
                time limit of its own. Returns stop at the cut. Default None: the env's own limit.
                With several agents, all that are there are cut, with what they saw last. Native
                vector envs can't be cut; give them a limit of their own.
            episodes_per_share: The group is sampled in shares of so many episodes, handed to
                whichever env runner is free. Small shares balance the load; shares smaller than
                `num_envs_per_env_runner` leave envs idle. With it set, a seeded run gives the same
                episodes on any number of env runners. Default None: as many as an env runner has
                envs, or fewer if that is needed to give every env runner work; with a single env
                runner, the whole group.
            duplicate_last_shares: Whether env runners that have nothing left to do sample second
                copies of the shares that are still out, those that have been out for longest first.
                Whichever copy comes first is taken, so that near its end a group doesn't wait for
                a slow or overloaded machine. Both are the same, and so is the group; but for an env
                that draws from anything but `reset(seed=..)`, to take the first would favour short
                episodes. It costs simulation that is thrown away, and env runners that share cores
                slow each other down with it. One whose copy nobody needs any more finishes it, and
                gets no share of the next group until then. Refused for rollouts
                (`batch_mode="truncate_episodes"`), which go on in an env of their own. Default
                False: where env runners are alike it gains nothing.
            **kwargs: The settings of `AlgorithmConfig.env_runners`. Two defaults differ.
                `batch_mode` is "complete_episodes"; with "truncate_episodes" a group is
                `group_size` rollouts of `rollout_fragment_length` steps each, and every rollout
                goes on in its own env from group to group: see docs/in_rllib.md.
                `sample_timeout_s` is 600. An env runner that takes longer for one share is killed
                and its share sent to another; None: never. What connectors remember is merged by
                shares, also without remote env runners; with `merge_env_runner_states=False` what
                a group adds to it is dropped, and `broadcast_env_runner_states` means nothing.

        Returns:
            This updated AlgorithmConfig object.
        """
        check_arguments(self, "env_runners", kwargs)
        super().env_runners(**kwargs)
        return self._set(
            max_episode_steps=max_episode_steps,
            episodes_per_share=episodes_per_share,
            duplicate_last_shares=duplicate_last_shares,
        )

    @override(AlgorithmConfig)
    def fault_tolerance(self, *, max_share_failures: int = NotProvided, **kwargs: Any) -> Self:
        """Sets the fault tolerance configuration.

        Args:
            max_share_failures: How often one share of a group may fail - its env runner lost, its
                env raising, or longer than `env_runners(sample_timeout_s=..)` - before the run
                ends with an error, after a checkpoint. Each time it is sampled again with the same
                seeds, on another env runner if one is free. Of an env runner that fails again and
                again, while others don't, only the first failure in a row counts. Default 5.
            **kwargs: The settings of `AlgorithmConfig.fault_tolerance`. The default that differs:
                `env_runner_health_probe_timeout_s` 1.

        Returns:
            This updated AlgorithmConfig object.
        """
        check_arguments(self, "fault_tolerance", kwargs)
        super().fault_tolerance(**kwargs)
        return self._set(max_share_failures=max_share_failures)

    def _set(self, **settings: Any) -> Self:
        for name, value in settings.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    @override(AlgorithmConfig)
    def update_from_dict(self, config_dict: dict[str, Any]) -> Self:
        """Modifies this config via the provided dict, or by all settings of another config.

        Raises:
            ValueError: If a key is no setting (RLlib would set it and ignore it); with the nearest
                known name.
        """
        check_keys(self, config_dict.keys())
        return super().update_from_dict(config_dict)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Validates all values in this config.

        Raises:
            ValueError: Names the settings that GPG can't run with, and the mends.
        """
        if self._validate_config:
            check_config(self)
        super().validate()
        # RLlib's evaluation by episodes drops the env runners that take longest. What a user sets
        # here stays; so does "auto", and evaluation by timesteps.
        if self.custom_evaluation_function in (None, evaluate_episodes):
            exact = self.evaluates_exactly
            self.custom_evaluation_function = evaluate_episodes if exact else None

    @property
    def evaluates_exactly(self) -> bool:
        """Whether evaluations are of so many episodes, sampled as groups are."""
        by_episodes = self.evaluation_duration_unit == "episodes"
        is_ours = self.custom_evaluation_function in (None, evaluate_episodes)
        return is_ours and by_episodes and self.evaluation_duration != "auto"

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Returns the spec of the critic-free default module."""
        return RLModuleSpec(module_class=DefaultGPGTorchRLModule)

    @property
    @override(AlgorithmConfig)
    def model_config(self) -> dict[str, Any]:
        """The settings of the default module: GPG's defaults, changed by what the user said.

        A `DefaultModelConfig` says nothing where it holds None. With another initialiser than
        GPG's, the arguments of GPG's don't apply.
        """
        given = super().model_config
        everything = {field.name for field in dataclasses.fields(DefaultModelConfig)}
        # RLlib makes a dict of the dataclass.
        said = {k: v for k, v in given.items() if v is not None or not everything <= given.keys()}
        defaults = {k: v for k, v in _INITIALIZERS.items() if k.removesuffix("_kwargs") not in said}
        return given | defaults | said

    @override(AlgorithmConfig)
    def get_state(self) -> dict[str, Any]:
        """Returns all settings.

        RLlib leaves out what is -1, its mark of deprecated settings, and so builds algorithms with
        the default in place of `lr=-1`. What isn't deprecated stays, to be refused by name.
        """
        default = vars(type(self)())
        meant = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int | float) and value == -1 and default.get(name) != -1
        }
        return {**super().get_state(), **meant}

    @override(AlgorithmConfig)
    def build_env_to_module_connector(self, *args: Any, **kwargs: Any) -> ConnectorV2:
        """Builds RLlib's pipeline; in front of it, flattens what the default module can't take.

        Not where the user has set connectors, or a module or a catalog.
        """
        pipeline = super().build_env_to_module_connector(*args, **kwargs)
        is_left_to_us = (
            self._env_to_module_connector is None
            and self.add_default_connectors_to_env_to_module_pipeline
            and not self.is_multi_agent
            and are_default(self.rl_module_spec)
        )
        space = pipeline.input_observation_space
        if is_left_to_us and space is not None and not has_encoder(space):
            pipeline.prepend(FlattenObservations())
        return pipeline

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type[Learner]:
        """Returns `GPGTorchLearner`."""
        return GPGTorchLearner

    @override(AlgorithmConfig)
    def build_learner_connector(self, *args: Any, **kwargs: Any) -> ConnectorV2:
        """Builds RLlib's learner pipeline, with `GroupAdvantageEstimation` at its end.

        There, where PPO has its advantages too, it sees what all other pieces have made of the
        rewards, also those that a `Learner.build` puts behind `NumpyToTensor`.
        """
        pipeline = super().build_learner_connector(*args, **kwargs)
        if self.add_default_connectors_to_learner_pipeline:
            pipeline.insert_after(AddObservationsFromEpisodesToBatch, AddEpisodeEnds())
            pipeline.append(
                GroupAdvantageEstimation(
                    **{name: getattr(self, name) for name in _ESTIMATOR_SETTINGS},
                    fragments=self.batch_mode == "truncate_episodes",
                    # The dict itself: `Learner.add_module` adds to it.
                    module_overrides=self.algorithm_config_overrides_per_module,
                )
            )
            pipeline.append(
                AddTrajectories(
                    ratio_level=self.ratio_level,
                    loss_averaging=self.loss_averaging,
                    module_overrides=self.algorithm_config_overrides_per_module,
                )
            )
        return pipeline
