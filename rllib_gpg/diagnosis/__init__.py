"""What a group is like, in a picture; and what is wrong with a run, in sentences."""

from rllib_gpg.diagnosis.callback import DiagnosisCallback
from rllib_gpg.diagnosis.figure import draw
from rllib_gpg.diagnosis.report import GroupReport, describe_group

__all__ = ["DiagnosisCallback", "GroupReport", "describe_group", "draw"]
