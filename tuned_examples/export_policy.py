"""Exports a checkpoint's policy to one file that PyTorch alone can run.

What it shows: `torch.export` of a module. The file holds the network, its weights and, with
`normalize_observations`, the statistics of observations; it takes observations [B, ...] as the
env-to-module connectors leave them, and returns the inputs of the action distribution and the most
probable actions. Whoever loads it needs neither Ray nor this package::

    import torch

    policy = torch.export.load("policy.pt2").module()
    inputs, actions = policy(torch.zeros(1, 4))

How to run it::

    python tuned_examples/export_policy.py CHECKPOINT policy.pt2

CHECKPOINT is what a run ends with the path of. Recurrent modules, which also take a state, need
another `forward`.

What to expect: the same outputs, to the last bits of single precision, as the module's own.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule


class Policy(torch.nn.Module):
    """A module of RLlib as a function from observations to actions."""

    def __init__(self, module: Any):
        """Takes a `TorchRLModule`."""
        super().__init__()
        self.module = module
        self._distribution = module.get_inference_action_dist_cls()

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Returns what the action distribution is made of, and the most probable actions."""
        outputs = self.module.forward_inference({Columns.OBS: observations})
        inputs = outputs[Columns.ACTION_DIST_INPUTS]
        return inputs, self._distribution.from_logits(inputs).to_deterministic().sample()


def export_policy(checkpoint: str, file: str, module_id: str = DEFAULT_MODULE_ID) -> None:
    """Writes the policy of an algorithm's checkpoint to a file.

    Args:
        checkpoint: The checkpoint's folder.
        file: The file to write, by custom with the ending `.pt2`.
        module_id: Which policy, where there are several.
    """
    # RLlib takes a relative path for a URI.
    folder = Path(checkpoint).absolute()
    module = RLModule.from_checkpoint(folder / "learner_group/learner/rl_module" / module_id)
    space = module.observation_space
    # Two, since PyTorch would take a batch of one for the only size there is.
    example = torch.from_numpy(np.stack([space.sample(), space.sample()]))
    program = torch.export.export(
        Policy(module).eval(),
        (example,),
        dynamic_shapes={"observations": {0: torch.export.Dim("batch")}},
        # Reads the code: a plain trace makes a constant of the `len` in RLlib's `free_log_std`.
        strict=True,
    )
    torch.export.save(program, file)


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("checkpoint", help="the folder of a checkpoint")
parser.add_argument("file", help="the file to write")

if __name__ == "__main__":
    args = parser.parse_args()
    export_policy(args.checkpoint, args.file)
    print(f"policy: {args.file}")
