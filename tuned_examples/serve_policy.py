"""Serves a checkpoint's policy with Ray Serve: an observation comes by HTTP, an action goes back.

What it shows: the module alone, without the algorithm and the env, as a deployment. It takes
observations as the env-to-module connectors leave them, and answers with the most probable action.

How to run it (it needs `pip install ".[serve]"`)::

    python tuned_examples/serve_policy.py CHECKPOINT &
    curl -X POST localhost:8000 -d '{"obs": [0.0, 0.0, 0.0, 0.0]}'

CHECKPOINT is what a run ends with the path of; on a cluster, a folder that all nodes see.

What to expect: `{"action": 1}`. `--ask 0 0 0 0` asks once, from Python, and ends.
"""

import argparse
from pathlib import Path
from typing import Any

import requests
import torch
from ray import serve
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule


@serve.deployment
class Policy:
    """Answers observations with actions."""

    def __init__(self, checkpoint: str):
        """Loads the policy."""
        self.module: Any = RLModule.from_checkpoint(
            f"{checkpoint}/learner_group/learner/rl_module/{DEFAULT_MODULE_ID}"
        )

    async def __call__(self, request: Any) -> dict[str, Any]:
        """Answers one request, a JSON object with "obs"."""
        observation = (await request.json())["obs"]
        # A batch of one.
        batch = {Columns.OBS: torch.tensor([observation], dtype=torch.float32)}
        with torch.no_grad():
            inputs = self.module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
        distribution = self.module.get_inference_action_dist_cls().from_logits(inputs)
        return {"action": distribution.to_deterministic().sample()[0].tolist()}


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("checkpoint", help="the folder of a checkpoint")
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--ask", type=float, nargs="+", help="an observation")


def main() -> None:
    """Serves until Ctrl-C, or answers one observation."""
    args = parser.parse_args()
    serve.start(http_options={"port": args.port})
    # It is loaded by another process, which may run in another folder.
    checkpoint = str(Path(args.checkpoint).absolute())
    serve.run(Policy.bind(checkpoint), blocking=args.ask is None)
    answer = requests.post(f"http://localhost:{args.port}", json={"obs": args.ask}, timeout=60)
    print(f"action: {answer.json()['action']}")
    serve.shutdown()


if __name__ == "__main__":
    main()
