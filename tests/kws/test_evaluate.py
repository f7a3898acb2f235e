"""Figures of an evaluation against plain counts."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from manyheads.core.errors import ArgumentError, DataError
from manyheads.kws.audio.clips import Clip
from manyheads.kws.audio.recordings import Spoken, Tape, compose, extent, read_truth, write_tape
from manyheads.kws.evaluation.clip_accuracy import ClipResults, evaluate_clips
from manyheads.kws.evaluation.det_curve import det_curve, latency, match, thresholds
from manyheads.kws.evaluation.measures import evaluate_spotter, tune_threshold
from manyheads.kws.evaluation.page import write_report
from manyheads.kws.streaming.detection import Detection, Rule

from .spotters import LABELS, babble, small_spotter

pytestmark = pytest.mark.filterwarnings("ignore::manyheads.kws.streaming.spotter.RejectionWarning")


def drawn_results(seed=0, clips=40):
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 12, clips)
    lengths[:3] = [0, 1, 11]
    logits = [random.standard_normal((n, 3)) for n in lengths]
    known = [0.1 + 0.05 * np.arange(n) for n in lengths]
    return ClipResults(("a", "b", "c"), random.integers(0, 3, clips), logits, known, 0.1 + 0.05 * lengths)


def test_accuracy_and_confusion_are_counts():
    results = drawn_results()
    counts = np.zeros((3, 4), int)
    for truth, logits in zip(results.truth, results.logits, strict=True):
        sums = [sum(row[c] for row in logits) for c in range(3)]
        counts[truth, sums.index(max(sums)) if len(logits) else 3] += 1
    np.testing.assert_array_equal(results.confusion, counts)
    assert results.accuracy == pytest.approx(np.trace(counts[:, :3]) / 40)


@pytest.mark.parametrize("time", [0.0, 0.0999, 0.1, 0.3, 0.3001, 0.6, 9.0])
def test_early_decision_uses_only_outputs_known_by_then(time):
    results = drawn_results()
    right = 0
    for truth, logits, known in zip(results.truth, results.logits, results.known, strict=True):
        heard = [row for row, at in zip(logits, known, strict=True) if at <= time + 1e-9]
        if heard:
            sums = [sum(row[c] for row in heard) for c in range(3)]
            right += sums.index(max(sums)) == truth
    assert results.early([time])[0] == pytest.approx(right / 40)


def test_early_decision_at_the_end_equals_the_accuracy():
    results = drawn_results()
    assert results.early([100.0])[0] == results.accuracy


def test_time_to_a_share_of_the_accuracy_is_when_it_stays_above():
    logits = [np.array([[1.0, 0], [-3, 0], [9, 0]]), np.array([[1.0, 0], [1, 0], [1, 0]])]
    known = [np.array([0.1, 0.2, 0.3])] * 2
    results = ClipResults(("a", "b"), np.array([0, 0]), logits, known, np.array([0.35, 0.35]))
    np.testing.assert_array_equal(results.early([0.1, 0.2, 0.3]), [1.0, 0.5, 1.0])
    assert results.time_to(0.99) == pytest.approx(0.3)


times = st.floats(0, 10, allow_nan=False).map(lambda t: round(t, 2))
words = st.lists(st.tuples(times, st.floats(0.1, 1.0), st.sampled_from("abx")), max_size=6)
alarms = st.lists(st.tuples(times, st.sampled_from("ab")), max_size=8)


@given(words, alarms)
def test_matching_equals_a_plain_loop(said, found):
    spoken = [Spoken(label, start, start + length) for start, length, label in said]
    detections = [Detection(label, time, 1.0, 0.0) for time, label in found]
    free = [word for word in spoken if word.label != "x"]
    hits = false = 0
    for time, label in sorted(found, key=lambda f: f[0]):
        fitting = [w for w in free if w.label == label and w.start <= time <= w.end + 0.5]
        if fitting:
            free.remove(fitting[0])
            hits += 1
        else:
            false += 1
    result = match(detections, spoken, ["a", "b"])
    assert (len(result.hits), len(result.misses), len(result.false_alarms)) == (hits, len(free), false)
    assert len(result.hits) + len(result.misses) == sum(w.label != "x" for w in spoken)


def test_second_detections_and_other_labels_are_false_alarms():
    spoken = [Spoken("a", 1.0, 1.5)]
    found = [Detection("a", 1.4, 1, 0), Detection("a", 1.9, 1, 0), Detection("b", 1.4, 1, 0), Detection("a", 2.1, 1, 0)]
    result = match(found, spoken, ["a", "b"])
    assert [d.time for _, d in result.hits] == [1.4]
    assert [(d.label, d.time) for d in result.false_alarms] == [("b", 1.4), ("a", 1.9), ("a", 2.1)]


def tape_of(seed):
    spoken = tuple(Spoken(LABELS[i % 4] if i % 3 else "other", 0.7 * i, 0.7 * i + 0.5) for i in range(1, 14))
    return Tape(babble(10.0, seed=seed), 8000, spoken)


def test_each_det_point_equals_a_run_at_that_threshold():
    tapes = [tape_of(1), tape_of(2)]
    spotter = small_spotter(rule=Rule(0.5, 0.16, 0.2))
    levels = [0.3, 0.5, 0.7, 0.9, 0.99, 1.01]
    curve = det_curve(spotter, tapes, levels=levels)
    assert curve.hours == pytest.approx(20 / 3600)
    assert curve.keywords == sum(word.label in LABELS for tape in tapes for word in tape.spoken)
    for point, level in zip(curve.points, levels, strict=True):
        spotter.change_rule(threshold=level)
        misses = false = 0
        for tape in tapes:
            spotter.reset()
            result = match(spotter.stream(tape.samples), tape.spoken, LABELS)
            misses, false = misses + len(result.misses), false + len(result.false_alarms)
        assert (point.misses, point.false_alarms) == (misses, false)
        assert point.miss_rate == pytest.approx(misses / curve.keywords)
        assert point.false_alarms_per_hour == pytest.approx(false / curve.hours)
    assert curve.points[0].false_alarms > curve.points[-1].false_alarms == 0
    assert curve.points[-1].miss_rate == 1.0
    best = curve.at(curve.points[3].false_alarms_per_hour)
    allowed = [p.misses for p in curve.points if p.false_alarms_per_hour <= curve.points[3].false_alarms_per_hour]
    assert best.misses == min(allowed)


def test_largest_threshold_detects_nothing():
    levels = thresholds()
    assert (np.diff(levels) > 0).all()
    assert levels[-1] > 1 > levels[-2]


def test_latency_counts_from_start_and_end_of_words():
    hits = [(Spoken("a", 1.0, 1.5), Detection("a", 1.4, 1, 0)), (Spoken("a", 3.0, 3.4), Detection("a", 3.7, 1, 0))]
    found = latency(hits, lookahead=0.05)
    assert found.after_start[0] == pytest.approx((0.45 + 0.75) / 2)
    assert found.after_end[0] == pytest.approx((-0.05 + 0.35) / 2)
    assert found.before_end == 0.5
    assert np.isnan(latency([]).after_end[0])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("clips"), []
    for index in range(8):
        path = folder / f"{index}.wav"
        silence = np.zeros(2000, np.float32)
        soundfile.write(path, np.concatenate([silence, 0.3 * babble(0.5, seed=index), silence]), 8000)
        made.append(Clip(path, [*LABELS, "other"][index % 5], "s", "test"))
    return made


def test_composed_recording_has_each_clip_at_its_time_and_snr(clips):
    tape = compose(clips, 8000, snr=12.0, seed=3)
    quiet = np.ones(len(tape.samples), bool)
    speech = np.zeros(len(tape.samples), bool)
    for word in tape.spoken:
        start, end = round(word.start * 8000), round(word.end * 8000)
        speech[start:end] = True
        quiet[start - 2000 : end + 2000] = False
        assert 0.4 < word.end - word.start < 0.5001
    assert sorted(word.label for word in tape.spoken) == sorted(clip.label for clip in clips)
    noise = np.square(tape.samples[quiet]).mean()
    ratio = 10 * np.log10(np.square(tape.samples[speech]).mean() / noise - 1)
    assert ratio == pytest.approx(12.0, abs=1.5)
    np.testing.assert_array_equal(compose(clips, 8000, snr=12.0, seed=3).samples, tape.samples)
    assert not np.array_equal(compose(clips, 8000, snr=12.0, seed=4).samples, tape.samples)


def test_extent_finds_the_speech():
    samples = np.concatenate([np.zeros(1600), np.sin(np.arange(4000)), np.zeros(800)]) + 1e-4
    assert extent(samples, 8000) == (1600, 5600)
    assert extent(np.zeros(100), 8000) == (0, 100)


def test_truth_file_is_read_back_and_bad_rows_are_refused(tmp_path, clips):
    tape = compose(clips[:3], 8000)
    sound, truth = write_tape(tape, tmp_path / "s.wav")
    assert soundfile.info(sound).frames == len(tape.samples)
    for read, word in zip(read_truth(truth), tape.spoken, strict=True):
        assert (read.label, read.start, read.end) == (
            word.label,
            pytest.approx(word.start, abs=1e-3),
            pytest.approx(word.end, abs=1e-3),
        )
    for text, said in (
        ("a,b\n1,2\n", "found the columns"),
        ("start,end,label\n1,x,yes\n", "line 2: found"),
        ("start,end,label\n2,1,yes\n", "line 2: found start 2.0"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(DataError, match=said):
            read_truth(tmp_path / "t.csv")
    with pytest.raises(ArgumentError, match="ends in"):
        write_tape(tape, tmp_path / "s.mp3")


@pytest.mark.parametrize("label", ["نعم", "left, right", 'say "go"', "zwei\nZeilen"])
def test_truth_of_any_label_is_read_back_in_any_locale(tmp_path, monkeypatch, label):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    tape = Tape(np.zeros(8000, np.float32), 8000, (Spoken(label, 0.25, 0.5),))
    _, truth = write_tape(tape, tmp_path / "s.wav")
    assert read_truth(truth) == tape.spoken
    truth.write_bytes(b"\xef\xbb\xbf" + truth.read_bytes())  # as a spreadsheet saves it
    assert read_truth(truth) == tape.spoken


def test_false_alarm_rates_that_short_audio_cannot_resolve_are_omitted(clips):
    """In 5 to 60 s of audio, one false alarm is 60 per hour or more."""
    found = evaluate_spotter(small_spotter(), [clip for clip in clips if clip.label != "other"])
    document = found.streams[0].document()
    assert 1 / document["hours"] > 60
    assert document["at_false_alarms_per_hour"] == {"1": None, "10": None, "60": None}


def test_clips_of_unknown_labels_are_refused(clips):
    with pytest.raises(DataError, match="found other, but the spotter was trained on go, no, stop, yes"):
        evaluate_clips(small_spotter(), clips)


def test_clips_in_a_batch_equal_single_clips(clips):
    spotter = small_spotter()
    known = [clip for clip in clips if clip.label in LABELS]
    results = evaluate_clips(spotter, known)
    for clip, predicted in zip(known, results.predicted, strict=True):
        assert spotter.predict_file(clip.path).label == LABELS[predicted]


@pytest.mark.parametrize("spiking", [False, True])
def test_evaluation_report_has_all_sections(clips, spiking, tmp_path):
    spotter = small_spotter(spiking=spiking)
    known, other = [c for c in clips if c.label in LABELS], [c for c in clips if c.label not in LABELS]
    found = evaluate_spotter(spotter, known, other, snr=(20.0, 5.0), name="toy")
    document = found.document()
    assert document["streams"][1]["snr_db"] == 5.0
    assert document["streams"][0]["keywords"] == len(known)
    assert (document.get("spikes") is not None) == spiking
    page = write_report(found, tmp_path / "r.html").read_text()
    assert page.count("<img") == 4 + spiking
    assert "://" not in page
    with pytest.raises(ArgumentError, match="no threshold gives so few"):
        tune_threshold(found, -1.0)
    assert 0.02 <= tune_threshold(found, 1e9) <= 1.01
    assert tune_threshold(found, 0.0) > tune_threshold(found, 1e9) - 1e-12
