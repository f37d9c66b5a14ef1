"""Which Ray this version of rllib_gpg is made for; said at import, before anything else can fail.

Of RLlib it relies on more than the public API, which tests/test_rllib_internals.py lists.
"""

import warnings

import ray

# As in pyproject.toml.
TESTED_RAY = "2.60"


def warn_of_another_ray() -> None:
    """Warns, in one sentence, if the installed Ray isn't of the tested minor version."""
    if ray.__version__.split(".")[:2] == TESTED_RAY.split("."):
        return
    warnings.warn(
        f"This is Ray {ray.__version__}, but rllib_gpg is tested with Ray {TESTED_RAY} and relies "
        "on internals of RLlib, so if anything fails or looks wrong, "
        f'`pip install "ray[rllib]=={TESTED_RAY}.*"` or take the rllib_gpg for your Ray.',
        UserWarning,
        # The line that imports rllib_gpg.
        stacklevel=3,
    )
