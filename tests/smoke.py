"""What `make dist` asks of an installed wheel or sdist: builds, trains, saves and restores.

Not a test of pytest's, which needs the checkout. It runs in an environment that has the package
and its dependencies, and nothing else.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import sys
import tempfile

import numpy as np
import ray

import rllib_gpg
from rllib_gpg import GPG, GPGConfig


def check_files() -> None:
    """The installed package, typed, and nothing beside it."""
    package = pathlib.Path(rllib_gpg.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} isn't what was installed."
    files = importlib.metadata.files("rllib-gpg") or []
    assert "rllib_gpg/py.typed" in map(str, files)
    tops = {file.parts[0] for file in files if ".." not in file.parts}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rllib_gpg"}, tops
    assert any(file.name == "LICENSE" for file in files)


def policy_of(algo: GPG) -> dict[str, np.ndarray]:
    return algo.get_module().get_state()


def check_training() -> None:
    """An iteration on CartPole, which a checkpoint brings back."""
    config = (
        GPGConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=4)
        .training(group_size=8)
    )
    algo = config.build_algo()
    before = policy_of(algo)
    before = {name: np.array(value) for name, value in before.items()}
    result = algo.train()
    assert result["learners"]["default_policy"]["group_num_episodes"] == 8
    after = policy_of(algo)
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = algo.save_to_path(folder)
        restored = GPG.from_checkpoint(checkpoint)
    again = policy_of(restored)
    assert all(np.array_equal(again[name], after[name]) for name in after)
    assert restored.train()["training_iteration"] == 2
    algo.stop()
    restored.stop()


if __name__ == "__main__":
    check_files()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    check_training()
    print(
        f"rllib_gpg {importlib.metadata.version('rllib-gpg')} works with Ray {ray.__version__} on "
        f"Python {sys.version.split()[0]}."
    )
