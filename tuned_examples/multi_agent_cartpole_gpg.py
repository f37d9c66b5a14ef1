"""GPG on CartPole-v1 for two agents at a time, each with a policy of its own, or one for both.

What it shows: `multi_agent(..)` is all that changes. A group is 32 whole episodes of the env, which
end when the last pole has fallen; a policy's group is all trajectories of the agents that it
controls, each as long as its own pole stood.

How to run it::

    python tuned_examples/multi_agent_cartpole_gpg.py
    python tuned_examples/multi_agent_cartpole_gpg.py --shared-policy --num-agents=4

`--stop-reward` is per agent.

What to expect: a mean return of 450 per agent in one group after 13 and 15 iterations (seeds 0 and
1; 103,000 and 126,000 env steps, less than a minute on 2 cores), and after 16 with one policy for
both (seed 0).
"""

from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole
from run_example import EPISODE_RETURN, example_parser, run_example

from rllib_gpg import GPGConfig

parser = example_parser(reward=450.0, iterations=100)
parser.set_defaults(num_agents=2)
parser.add_argument("--shared-policy", action="store_true", help="One policy for all agents.")


def get_config(num_agents: int, shared_policy: bool) -> GPGConfig:
    """Returns the config for so many agents."""
    return (
        GPGConfig()
        .environment(MultiAgentCartPole, env_config={"num_agents": num_agents})
        .env_runners(num_envs_per_env_runner=16)
        .training(group_size=32, lr=1e-3, gamma=0.99)
        .rl_module(model_config={"fcnet_hiddens": [64, 64]})
        .multi_agent(
            policies={"shared"} if shared_policy else {f"p{i}" for i in range(num_agents)},
            policy_mapping_fn=lambda agent_id, episode, **kwargs: (
                "shared" if shared_policy else f"p{agent_id}"
            ),
        )
    )


if __name__ == "__main__":
    args = parser.parse_args()
    args.stop_reward *= args.num_agents
    run_example(get_config(args.num_agents, args.shared_policy), args, metric=EPISODE_RETURN)
