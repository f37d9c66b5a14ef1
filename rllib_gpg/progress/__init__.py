"""Shows how far a run has come: a line per iteration, in a loop of one's own or in Ray Tune."""

from rllib_gpg.progress.callback import ProgressCallback
from rllib_gpg.progress.lines import groups_of
from rllib_gpg.progress.loop import progress

__all__ = ["ProgressCallback", "groups_of", "progress"]
