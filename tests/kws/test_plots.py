"""Plots: the DET curve is monotone, and labels do not overlap."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from manyheads.kws.audio.recordings import Spoken
from manyheads.kws.evaluation.det_curve import DetCurve, OperatingPoint
from manyheads.kws.evaluation.plots import best_points, det, timeline
from manyheads.kws.streaming.detection import Detection


def curve(seed, *, hours=0.1, keywords=180, thresholds=61, most=200):
    """Return a DET curve whose counts are not monotone in the threshold, as happens with a refractory time."""
    random, points = np.random.default_rng(seed), []
    for level in np.linspace(0.02, 0.999, thresholds):
        misses = int(np.clip(keywords * (0.8 * level**3 + 0.05 * random.random()), 0, keywords))
        alarms = int(max(0, most * (1 - level) ** 2 + 2 * random.standard_normal()))
        rate = misses / keywords if keywords else float("nan")
        points.append(OperatingPoint(float(level), rate, alarms / hours, misses, alarms))
    return DetCurve(tuple(points), keywords, hours)


@pytest.mark.parametrize("seed", range(5))
def test_det_line_is_the_fewest_misses_at_each_false_alarm_rate(seed):
    found = curve(seed)
    alarms, misses = best_points(found)
    assert alarms == sorted(alarms)
    assert misses == sorted(misses, reverse=True)
    for allowed in np.geomspace(5, 5000, 60):
        possible = [p.miss_rate for p in found.points if p.false_alarms_per_hour <= allowed]
        drawn = [m for a, m in zip(alarms, misses, strict=True) if a <= allowed]
        assert min(drawn, default=None) == min(possible, default=None)
    assert min(alarms) == min(p.false_alarms_per_hour for p in found.points)


@pytest.mark.parametrize(
    "curves",
    [
        {"20 dB": curve(0), "10 dB": curve(1, most=600)},
        {"few": curve(0, keywords=40, most=20)},
        {"long": curve(0, hours=100.0, keywords=5000, most=100_000)},
        {"none wrong": DetCurve((OperatingPoint(0.5, 0.0, 0.0, 0, 0),), 9, 0.01)},
        {"no keyword": curve(0, keywords=0)},
    ],
)
@pytest.mark.filterwarnings("error")
def test_det_axis_labels_do_not_overlap(curves):
    figure = det(curves)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()] if low <= tick.get_loc() <= high]
        boxes = [tick.label1.get_window_extent() for tick in ticks if tick.label1.get_text()]
        assert len(boxes) >= 2
        for n, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[n + 1 :])


def test_timeline_labels_do_not_overlap():
    """A missed word with a false alarm in it, and two false alarms 1.5 s apart."""
    spoken = [Spoken("open", 0.8, 1.1), Spoken("stop", 2.2, 2.6)]
    found = [Detection("start", 1.05, 0.9, 0.0), Detection("start", 2.55, 0.9, 0.0)]
    random = np.random.default_rng(0)
    figure = timeline(
        random.standard_normal(64000).astype(np.float32) * 0.1,
        8000,
        np.arange(400) / 50,
        random.random((400, 3)),
        ("open", "start", "stop"),
        found,
        threshold=0.8,
        truth=spoken,
        verdicts=["false alarm", "false alarm"],
        missed=spoken,
    )
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
