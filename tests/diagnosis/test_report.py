from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rllib_gpg.advantages import estimate_group
from rllib_gpg.advantages.baselines import resolve_baseline
from rllib_gpg.diagnosis import GroupReport, describe_group, draw

REWARDS = [np.ones(length) for length in (5, 3, 4, 2)]


def report_of(rewards: list[np.ndarray] = REWARDS, **settings: object) -> GroupReport:
    observations = [np.zeros((len(reward), 1)) for reward in rewards]
    settings = {"gamma": 1.0, "binning": "time", "baseline": resolve_baseline("bins"), **settings}
    estimate = estimate_group(observations, rewards, **settings)
    return describe_group(estimate, rewards, **settings)


def test_numbers_worked_out_by_hand() -> None:
    report = report_of(normalize=True)
    assert (report.num_trajectories, report.num_steps) == (4, 14)
    assert report.return_mean == 3.5
    assert report.return_std == pytest.approx(np.sqrt(1.25))
    assert report.settings == "baseline bins in TimeBinning(), gamma 1"
    over = report.over_time
    assert over.timesteps.tolist() == [0, 1, 2, 3, 4]
    assert over.survivors.tolist() == [4, 4, 3, 2, 1]
    # Of what is left of 5, 3, 4 and 2: at timestep 2 that is 3, 1 and 2.
    np.testing.assert_allclose(over.returns[1], [3.5, 2.5, 2.0, 1.5, 1.0])
    np.testing.assert_allclose(over.returns[:, 2], [1.2, 2.0, 2.8])
    np.testing.assert_allclose(over.values, over.returns[1])
    # Timestep 4 is alone, 3 has two entries, 2 has three, 0 and 1 have four.
    assert report.entries == {1: 1, 2: 1, 3: 1, 4: 2}
    assert report.singleton_fraction == 1 / 14
    # The advantages: R less the mean at its timestep.
    advantages = [1.5, -0.5, 0.5, -1.5] * 2 + [1.0, -1.0, 0.0] + [0.5, -0.5] + [0.0]
    assert report.before.mean == pytest.approx(0.0)
    assert report.before.std == pytest.approx(np.std(advantages))
    assert report.before.counts.sum() == report.after.counts.sum() == 14
    assert report.after.std == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1.0, 1e-9, 1e12])
def test_numbers_that_rounding_alone_tells_apart_are_shown_as_one(size: float) -> None:
    """The same rewards in another order, credited with their sum."""
    rewards = [size * np.array(r) for r in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])]
    baseline = resolve_baseline("none")
    report = report_of(rewards, baseline=baseline, credit="outcome", binning="universal")
    assert report.before.counts.sum() == report.before.counts.max() == 6
    assert report.before.mean == pytest.approx(0.6 * size)


def test_a_long_group_is_shown_at_some_timesteps_its_ends_among_them() -> None:
    over = report_of([np.ones(5000), np.ones(2)]).over_time
    assert len(over.timesteps) == 200
    assert (over.timesteps[0], over.timesteps[-1]) == (0, 4999)
    assert over.survivors[0] == 2
    assert over.survivors[1:].max() == 1


def test_what_it_prints_says_which_setting_is_which() -> None:
    lines = str(report_of()).splitlines()
    assert lines[0] == "4 trajectories, 14 steps, baseline bins in TimeBinning(), gamma 1"
    assert any("time bins" in line and "binning='time'" in line for line in lines)


@pytest.mark.parametrize("lengths", [(5, 3, 4, 2), (1,), (300, 1)])
def test_there_is_a_picture_of_any_group(lengths: tuple[int, ...]) -> None:
    report = report_of([np.ones(length) for length in lengths])
    sizes = []
    for modules in (["one"], ["one", "other"]):
        stream = io.BytesIO()
        draw(dict.fromkeys(modules, report)).savefig(stream, format="png")
        sizes.append(Image.open(stream).size)
    assert sizes[1] == (sizes[0][0], 2 * sizes[0][1])


def test_the_picture_shows_the_numbers() -> None:
    report = report_of()
    time, bins, *_, explained = draw({"policy": report}).axes[:5]
    lines = {line.get_label(): line.get_ydata() for line in time.get_lines()}
    np.testing.assert_array_equal(lines["baseline"], report.over_time.values)
    np.testing.assert_array_equal(
        lines["returns-to-go: mean, 10 to 90 %"], report.over_time.returns[1]
    )
    assert [bar.get_height() for bar in bins.patches] == [1, 1, 1, 2]
    widths = [bar.get_width() for bar in explained.patches]
    shares = [row.share for row in report.explained[::-1] if row.share is not None]
    assert widths == pytest.approx([max(share, -1.0) for share in shares])
