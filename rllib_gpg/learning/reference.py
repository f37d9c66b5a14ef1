"""Frozen policies that learners hold on to, and don't want to get too far away from."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pyarrow.fs
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.typing import ModuleID
from torch import Tensor

from rllib_gpg.nested import fresh
from rllib_gpg.patches import msgpack_as_it_is

_MODULES = "learner_group/learner/rl_module"


class NotFoundError(ValueError):
    """There is nothing where the reference's checkpoint should be."""


class References:
    """One per module: the policy when it was asked for first, or that of a checkpoint.

    They know nothing of the optimizer, and env runners know nothing of them.
    """

    def __init__(self, path: str | None) -> None:
        """Takes the checkpoint, of an algorithm or of a module; None: the initial policies."""
        self._path = path
        self._modules: dict[ModuleID, TorchRLModule] = {}
        self._not_found: dict[ModuleID, NotFoundError] = {}

    def prepare(self, module_id: ModuleID, module: TorchRLModule) -> None:
        """Makes the reference of a module that is sure to need it, before a group is sampled.

        That a checkpoint isn't there is kept for `what_is_missing`: the run may be about to be
        restored, and its own checkpoint has the reference.

        Raises:
            ValueError: If the checkpoint has none that fits, or the module is recurrent.
        """
        check_has_reference(module_id, module)
        # Without a path it is the policy that the run begins with, which is perhaps restored yet.
        if self._path is not None:
            try:
                self.of(module_id, module)
            except NotFoundError as error:
                self._not_found[module_id] = error

    def what_is_missing(self) -> ValueError | None:
        """Returns the error of a checkpoint that isn't there, if nothing restored stands in."""
        missing = self._not_found.keys() - self._modules.keys()
        return self._not_found[min(missing)] if missing else None

    def of(self, module_id: ModuleID, module: TorchRLModule) -> TorchRLModule:
        """Returns a module's reference. At first it is made.

        Args:
            module_id: The module's ID.
            module: The module as it is.

        Raises:
            ValueError: If the checkpoint has none that fits, or the module is recurrent.
        """
        if module_id not in self._modules:
            check_has_reference(module_id, module)
            reference = _frozen(module)
            if self._path is not None:
                _load(reference, self._path, module_id)
            self._modules[module_id] = reference
        return self._modules[module_id]

    def logp(self, module_id: ModuleID, module: TorchRLModule, batch: dict[str, Any]) -> Tensor:
        """Returns log pi_ref(a|s) of the actions of a batch."""
        reference = self.of(module_id, module)
        with torch.no_grad():
            # Not `forward_train`, which switches dropout on.
            outputs = reference._forward_train(fresh(batch))
            inputs = outputs[Columns.ACTION_DIST_INPUTS]
            dist = reference.get_train_action_dist_cls().from_logits(inputs)
            return dist.logp(batch[Columns.ACTIONS])

    def refresh(self, module_id: ModuleID, module: TorchRLModule) -> None:
        """Takes the module as it is now, in place of what there is."""
        if module_id in self._modules:
            self._modules[module_id] = _frozen(module)

    def forget(self, module_id: ModuleID) -> None:
        """Lets go of one, so that another module of that name gets its own."""
        self._modules.pop(module_id, None)
        self._not_found.pop(module_id, None)

    def get_state(self) -> dict[ModuleID, Any]:
        """Returns the weights of all."""
        return {module_id: module.get_state() for module_id, module in self._modules.items()}

    def set_state(
        self, state: Mapping[ModuleID, Any], modules: Mapping[ModuleID, TorchRLModule]
    ) -> None:
        """Restores what `get_state` returned, of the modules that are there, as RLlib does.

        Args:
            state: The weights.
            modules: The policies, to copy the rest from.
        """
        self._modules = {mid: _frozen(modules[mid]) for mid in state if mid in modules}
        for module_id, reference in self._modules.items():
            reference.set_state(state[module_id])


def needs_reference(config: AlgorithmConfig, module_id: ModuleID) -> bool:
    """Whether a module is sure to be asked for its reference.

    What a function says of whom to train is known with the first batch.
    """
    trained = config.policies_to_train
    is_trained = trained is None or (not callable(trained) and module_id in trained)
    return is_trained and config.get_config_for_module(module_id).reference_kl_coeff > 0.0


def check_has_reference(module_id: ModuleID, module: TorchRLModule) -> None:
    """Refuses recurrent modules.

    Raises:
        ValueError: The states in the batch are the policy's, and mean nothing to another network.
    """
    if module.is_stateful():
        raise ValueError(
            f"Module {module_id!r} is recurrent: a reference would go on from the policy's own "
            "states, which mean nothing to it. Set `reference_kl_coeff=0`."
        )


def _frozen(module: TorchRLModule) -> TorchRLModule:
    module = module.unwrapped()
    # What a module keeps of its last forward pass hangs on the graph, which can't be copied.
    kept = (value for part in module.modules() for value in vars(part).values())
    activations = {id(x): x.detach() for x in kept if isinstance(x, Tensor) and not x.is_leaf}
    reference = copy.deepcopy(module, activations)
    # Where RLlib has compiled a module, these are attributes of it, and those of the copy would
    # still be the module's own.
    for compiled in ("_forward_train", "_forward_inference", "_forward_exploration"):
        vars(reference).pop(compiled, None)
    reference.requires_grad_(False)
    return reference.eval()


def _load(reference: TorchRLModule, path: str, module_id: ModuleID) -> None:
    errors: list[Exception] = []
    for folder in (f"{path}/{_MODULES}/{module_id}", path):
        try:
            _restore(reference, folder)
            return
        # PyTorch's own for weights of another shape is a RuntimeError.
        except (FileNotFoundError, ValueError, KeyError, RuntimeError) as error:
            errors.append(error)
    filesystem, folder = pyarrow.fs.FileSystem.from_uri(path)
    is_gone = filesystem.get_file_info(folder).type == pyarrow.fs.FileType.NotFound
    raise (NotFoundError if is_gone else ValueError)(
        f"`reference`={path!r} is no checkpoint with a policy that fits module {module_id!r}: "
        f"{errors[0]}"
    )


def _restore(reference: TorchRLModule, folder: str) -> None:
    """Restores a module, all of it: RLlib leaves what the checkpoint hasn't as it is.

    Raises:
        ValueError: Names what the checkpoint hasn't.
    """
    weights = {n: w for n, w in reference.state_dict().items() if w.is_floating_point()}
    for weight in weights.values():
        weight.fill_(torch.nan)
    with msgpack_as_it_is():
        reference.restore_from_path(folder)
    if missing := [name for name, weight in weights.items() if weight.isnan().any()]:
        raise ValueError(f"it has no {', '.join(missing)}.")
