"""A look at what a checkpoint's next group would be like: `python -m rllib_gpg.inspect CHECKPOINT`.

Needs matplotlib, `pip install "rllib-gpg[diagnosis]"`. An env that a script of yours registers is
known to that script alone: call `inspect_checkpoint` there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray.rllib.utils.typing import ModuleID

from rllib_gpg.checkpoints import config_in_one_process
from rllib_gpg.diagnosis import GroupReport, draw
from rllib_gpg.diagnosis.figure import check_matplotlib
from rllib_gpg.gpg import GPG


def inspect_checkpoint(
    checkpoint: str | Path, output: str | Path = "group.png"
) -> Mapping[ModuleID, GroupReport]:
    """Samples one group with the policy of a checkpoint, and draws it. The checkpoint stays as is.

    It is the group that the run would go on with, if its config names a seed (and it doesn't sample
    ahead). It is sampled in this process, however many machines the run was on.

    Args:
        checkpoint: The folder, or a URI. Trust it like code: RLlib unpickles it.
        output: The PNG to write. Default: "group.png", in the current folder.

    Returns:
        What the picture shows, per module. `print` says the main numbers.

    Raises:
        ModuleNotFoundError: If there is no matplotlib.
        FileNotFoundError: If there is no such checkpoint, or no folder for the picture.
        ValueError: If it isn't whole.
        ImportError: If it needs a module, that of an env for instance, that isn't known here.
    """
    check_matplotlib()
    folder = Path(output).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} to write the picture to.")
    path = str(checkpoint)
    path = path if "://" in path else str(Path(path).absolute())
    algo = GPG.from_checkpoint(path, config=config_in_one_process(path))
    try:
        reports = algo.report_next_group()
    finally:
        algo.stop()
    draw(reports).savefig(output, format="png")
    return reports


def main(arguments: Sequence[str] | None = None) -> None:
    """Does it, and prints the main numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m rllib_gpg.inspect",
        description="Samples one group with the policy of a checkpoint, and draws it.",
    )
    parser.add_argument("checkpoint", help="the folder of a checkpoint of GPG")
    parser.add_argument("--output", default="group.png", help="the picture (default: %(default)s)")
    given = parser.parse_args(arguments)
    for module_id, report in inspect_checkpoint(given.checkpoint, given.output).items():
        print(f"{module_id}: {report}")
    print(f"Picture: {Path(given.output).absolute()}")


if __name__ == "__main__":
    main()
