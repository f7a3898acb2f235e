"""Spotter: chunks equal the whole, streams are independent, and memory is constant."""

from __future__ import annotations

import itertools
import resource
import warnings
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from manyheads.core.errors import ArgumentError, CheckpointError, DataError
from manyheads.kws.audio.clips import Clip
from manyheads.kws.audio.features import LogMel, RunningMean
from manyheads.kws.streaming.detection import Rule, Smoother, Trigger
from manyheads.kws.streaming.spotter import KeywordSpotter, RejectionWarning
from manyheads.kws.streaming.stream_state import Surround
from manyheads.kws.training.data import ClipSet, splits_of
from manyheads.lab.data.storage import load_tensors, save_tensors

from .spotters import FEATURES, LABELS, babble, small_spotter, sweep

pytestmark = pytest.mark.filterwarnings("ignore::manyheads.kws.streaming.spotter.RejectionWarning")
TAPE = babble(12.0, seed=1)
NETWORKS = {
    "plain": {},
    "spiking": {"spiking": True},
    "look-ahead": {"stem": "1d", "lookahead": 4, "kernels": (5, 5, 3)},
    "every frame": {"stride": 1},
}


def chunks(samples, size, seed=0):
    random, at = np.random.default_rng(seed), 0
    while at < samples.shape[-1]:
        step = size if isinstance(size, int) else int(random.integers(0, size[1]))
        yield samples[..., at : at + step]
        at += step


def brute_force(spotter, samples):
    """Compute scores and detections of a whole recording by plain loops over steps."""
    frames = RunningMean(spotter.tau)(LogMel(FEATURES)(torch.from_numpy(samples)[None])[0])[0]
    with torch.no_grad():
        logits = spotter.network(frames).logits[0, spotter.network.lookahead // spotter.network.stride :].numpy()
    rule, step = spotter.rule, spotter.network.stride * 0.01
    window, refractory = max(1, round(rule.smoothing / step)), round(rule.refractory / step)
    scores, found, last, held = [], [], None, None
    for t in range(len(logits)):
        mean = sum(logits[max(0, t - window + 1) : t + 1]) / min(t + 1, window)
        weights = np.exp(mean - mean.max())
        scores.append(weights / weights.sum())
        best = max(range(len(LABELS)), key=lambda c: scores[t][c] if LABELS[c] not in rule.background else -1.0)
        if held is not None and scores[t][held] < rule.threshold:
            held = None
        if scores[t][best] >= rule.threshold and best != held and (last is None or t - last >= refractory):
            time = (((t + 1) * spotter.network.stride - 1) * 80 + 200) / 8000
            found.append((LABELS[best], time, scores[t][best]))
            last, held = t, best
    return np.array(scores), found


def close(detections, expected):
    assert [(d.label, pytest.approx(d.time), pytest.approx(d.score, abs=2e-4)) for d in detections] == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_recording_equals_plain_loops(name):
    spotter = small_spotter(**NETWORKS[name])
    scores, found = brute_force(spotter, TAPE)
    detections, [heard] = spotter.hear(TAPE)
    assert len(found) >= 4
    assert len({label for label, *_ in found}) >= 2
    np.testing.assert_allclose(heard.scores, scores, atol=2e-4)
    close(detections, found)


@pytest.mark.parametrize("size", [1, 7, 80, 100, 800, 4001, (0, 300)])
@pytest.mark.parametrize("name", NETWORKS)
def test_chunks_of_any_size_equal_the_whole(name, size):
    tape = TAPE[: 3000 * size] if size in (1, 7) else TAPE
    spotter = small_spotter(**NETWORKS[name], rule=Rule(threshold=0.5, smoothing=0.1, refractory=0.05))
    expected, [whole] = spotter.hear(tape)
    spotter.reset()
    found, scores = [], []
    for chunk in chunks(tape, size):
        detections, [heard] = spotter.hear(chunk)
        found += detections
        scores.append(heard.scores)
    assert expected
    np.testing.assert_allclose(np.concatenate(scores), whole.scores, atol=2e-4)
    close(found, [(d.label, d.time, d.score) for d in expected])


def test_background_labels_are_never_reported():
    spotter = small_spotter()
    loud = {d.label for d in spotter.stream(TAPE)}
    spotter.change_rule(background=(sorted(loud)[0],))
    _, expected = brute_force(spotter, TAPE)
    found = spotter.stream(TAPE)
    close(found, expected)
    assert sorted(loud)[0] not in {d.label for d in found}


def test_streams_in_one_batch_and_their_resets_do_not_affect_each_other():
    spotter, alone = small_spotter(streams=3), small_spotter()
    tapes = np.stack([babble(6.0, seed=seed) for seed in (1, 2, 3)])
    resets = {1: 13_370, 2: 24_001}  # a row and the sample before which it begins afresh
    cuts = [0, *sorted(resets.values()), tapes.shape[1]]
    found = {row: [] for row in range(3)}
    for start, end in itertools.pairwise(cuts):
        for row, at in resets.items():
            if at == start:
                found[row].clear()
                spotter.reset(row)
        for piece in chunks(tapes[:, start:end], 560):
            for detection in spotter.stream(piece):
                found[detection.stream].append(detection)
    for row in range(3):
        alone.reset()
        expected = alone.stream(tapes[row, resets.get(row, 0) :])
        assert expected
        close(found[row], [(d.label, d.time, d.score) for d in expected])


def test_streams_aligned_again_become_one_batch():
    spotter = small_spotter(streams=4)
    spotter.stream(np.zeros((4, 320), np.float32))
    spotter.reset(2)
    spotter.stream(np.zeros((4, 80), np.float32))
    assert len(spotter._groups) == 2
    spotter.stream(np.zeros((4, 1600), np.float32))  # all hold back the same again
    spotter.stream(np.zeros((4, 160), np.float32))
    assert len(spotter._groups) == 1
    assert sorted(spotter._groups[0].rows) == [0, 1, 2, 3]


def test_latency_is_look_ahead_plus_rest_of_the_chunk():
    for config in NETWORKS.values():
        spotter = small_spotter(**config)
        ahead = config.get("lookahead", 0) * 0.01
        for detection in [d for chunk in chunks(TAPE, 80) for d in spotter.stream(chunk)]:
            assert ahead - 1e-9 <= detection.latency < ahead + 0.01
        spotter.reset()
        for detection in spotter.stream(TAPE):
            assert detection.time + detection.latency == pytest.approx(12.0)


def test_future_samples_do_not_change_past_detections():
    spotter = small_spotter()
    first = [d for d in spotter.stream(TAPE) if d.time <= 6.0]
    spotter.reset()
    other = np.concatenate([TAPE[:48000], babble(6.0, seed=77)])
    assert first
    assert [(d.label, d.time) for d in spotter.stream(other) if d.time <= 6.0] == [(d.label, d.time) for d in first]


@pytest.mark.parametrize("name", NETWORKS)
def test_stream_begins_and_ends_in_the_quiet_of_training(name):
    """The logits equal those of the network on quiet, the frames, and quiet, in one piece.

    The sound has a constant level, so that no part of it counts as background and replaces the quiet at the end.
    """
    surround = Surround(12, 6, 1e-4)
    spotter = small_spotter(**NETWORKS[name], surround=surround, rule=Rule(0.5, 0.1, 0.05))
    network, features = spotter.network, spotter.features
    tape = sweep(3.0)
    frames = LogMel(FEATURES)(torch.from_numpy(tape)[None])[0]
    line = spotter.log_mel.log_mel(torch.full((features.fft_samples // 2 + 1,), 1e-4))
    quiet = [line.expand(1, count, -1) for count in (12, 50 + network.lookahead)]
    with torch.no_grad():
        whole = network(RunningMean(spotter.tau)(torch.cat([quiet[0], frames, quiet[1]], 1))[0]).logits[0].numpy()
    skip, ahead = 12 // network.stride, network.lookahead // network.stride
    found, [heard] = spotter.hear(tape)
    # float32 sums in another order: relative to the largest logit
    limit = 1e-5 * np.abs(whole).max()
    np.testing.assert_allclose(heard.logits, whole[skip + ahead :][: len(heard.logits)], rtol=0, atol=limit)
    smoother = Smoother(round(0.1 / spotter.step_seconds))
    logits = torch.from_numpy(whole[skip + ahead :])[None]
    scores = smoother(logits, smoother.init_state(1, len(LABELS)))[0][0].numpy()
    [trigger] = spotter.triggers(1)
    expected = [LABELS[event.label] for event in trigger(scores, 0)]
    found += spotter.finish()
    assert expected
    assert [detection.label for detection in found] == expected
    assert all(detection.time <= len(tape) / 8000 for detection in found)


@pytest.mark.parametrize("name", NETWORKS)
def test_finish_returns_all_detections_and_resets(name):
    rule = Rule(threshold=0.5, smoothing=0.1, refractory=0.05)
    spotter = small_spotter(**NETWORKS[name], rule=rule, surround=Surround(12, 6), streams=2)
    first, second = babble(4.0, seed=1), babble(4.0, seed=2)
    expected = spotter.detect(first), spotter.detect(second)
    assert all(expected)
    for _ in range(2):
        found = [d for piece in chunks(np.stack([first, second]), (0, 900)) for d in spotter.stream(piece)]
        found += spotter.finish()
        for row in (0, 1):
            mine = [detection for detection in found if detection.stream == row]
            close(mine, [(d.label, d.time, d.score) for d in expected[row]])


def test_word_at_the_very_end_is_detected():
    """A stream that ends at the time of a detection in a long recording still gives this detection."""
    spotter = small_spotter(rule=Rule(threshold=0.5, smoothing=0.2, refractory=0.3))
    whole = spotter.detect(TAPE)
    for index, detection in enumerate(whole):
        cut = TAPE[: round(detection.time * 8000)]
        assert [d.label for d in spotter.detect(cut)][: index + 1] == [d.label for d in whole[: index + 1]]


def test_detect_does_not_change_the_streams(tmp_path):
    spotter = small_spotter(surround=Surround(12, 6))
    soundfile.write(tmp_path / "s.wav", TAPE, 8000, subtype="FLOAT")
    spotter.stream(TAPE[:5000])
    assert spotter.detect_file(tmp_path / "s.wav") == spotter.detect(TAPE)
    after = spotter.hear(TAPE[5000:])[1][0].scores
    spotter.reset()
    np.testing.assert_allclose(after, spotter.hear(TAPE)[1][0].scores[-len(after) :], atol=2e-4)


def test_stream_warns_once_for_a_network_without_rejection_label():
    spotter = small_spotter()
    with pytest.warns(RejectionWarning, match="found no label for other sounds beside go, no, stop, yes"):
        spotter.stream(TAPE[:800])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RejectionWarning)
        spotter.stream(TAPE[:800])
    for use in (lambda s: s.hear(TAPE[:800]), lambda s: s.detect(TAPE[:800])):
        with pytest.warns(RejectionWarning):
            use(small_spotter())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RejectionWarning)
        small_spotter(rule=Rule(background=("no",))).stream(TAPE[:800])
        small_spotter().predict(TAPE[:8000])  # of clips nothing else is asked


def test_integers_are_full_scale_samples():
    spotter = small_spotter()
    integers = (TAPE * 32768).round().astype(np.int16)
    expected = spotter.scores((integers / 32768).astype(np.float32)).scores
    np.testing.assert_array_equal(spotter.scores(integers).scores, expected)


def test_scores_do_not_change_the_stream():
    spotter = small_spotter()
    spotter.stream(TAPE[:5000])
    spotter.scores(TAPE)
    spotter.predict(TAPE[:8000])
    after = spotter.hear(TAPE[5000:])[1][0].scores
    spotter.reset()
    np.testing.assert_allclose(after, spotter.hear(TAPE)[1][0].scores[-len(after) :], atol=2e-4)


@pytest.mark.parametrize("surround", [Surround(), Surround(12, 6), Surround(3, 0, 1e-4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_clip_frames_equal_training_frames(name, surround, tmp_path):
    stride = NETWORKS[name].get("stride", 2)
    surround = Surround(surround.lead // stride * stride, surround.trail, surround.power)
    clips = []
    for index, label in enumerate(LABELS):
        path = tmp_path / f"{label}.wav"
        soundfile.write(path, babble(0.8 + 0.1 * index, seed=index), 8000, subtype="FLOAT")
        clips.append(Clip(path, label, label, "test"))
    config = ClipSet("", FEATURES, lead=surround.lead, trail=surround.trail, quiet=surround.power)
    part = splits_of(clips, config).test
    spotter = small_spotter(**NETWORKS[name], surround=surround)
    for index, clip in enumerate(clips):
        frames, lengths, _ = part.batch(torch.tensor([index]))
        with torch.no_grad():
            logits = spotter.network.whole(frames)[0]
        count = int(lengths[0])
        assert spotter.network.lookahead or torch.equal(spotter.network(frames).logits[0], logits)
        mine = spotter.clip_logits(soundfile.read(clip.path, dtype="float32")[0][None])[0]
        np.testing.assert_allclose(mine, logits[: count // stride], atol=2e-3)
        prediction = spotter.predict_file(clip.path)
        assert prediction.label == LABELS[int(logits[: count // stride].mean(0).argmax())]
        assert sum(prediction.scores.values()) == pytest.approx(1.0)


def test_files_of_another_sample_rate_are_resampled_with_a_note(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([babble(1.0, sample_rate=16000)] * 2, 1), 16000)
    notes = small_spotter().predict_file(tmp_path / "a.wav").notes
    assert notes == ("2 channels averaged to one", "resampled from 16000 to 8000 Hz")


def test_trigger_equals_a_plain_loop():
    random = np.random.default_rng(0)
    for case in range(50):
        scores = random.dirichlet(np.full(3, 0.25), size=300)
        level, quiet = random.uniform(0.3, 0.95), int(random.integers(0, 30))
        expected, last, held = [], -(10**9), None
        for t, row in enumerate(scores):
            held = None if held is not None and row[held] < level else held
            best = int(row[1:].argmax()) + 1
            if row[best] >= level and best != held and t - last >= quiet:
                expected.append((t, best))
                last, held = t, best
        trigger, found = Trigger(level, quiet, [1, 2]), []
        for start in range(0, 300, 1 + case % 7):
            found += trigger(scores[start : start + 1 + case % 7], start)
        assert [(e.step, e.label) for e in found] == expected


def test_smoothing_is_the_mean_of_the_window():
    logits = torch.randn(2, 40, 3, dtype=torch.float64)
    smoother = Smoother(7, "sigmoid")
    found, _ = smoother(logits, smoother.init_state(2, 3, dtype=torch.float64))
    expected = torch.stack([logits[:, max(0, t - 6) : t + 1].mean(1) for t in range(40)], 1).sigmoid()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_loaded_spotter_gives_the_same_detections(tmp_path):
    spotter = small_spotter(spiking=True, surround=Surround(12, 4), rule=Rule(0.7, 0.24, 0.4, ("no",)))
    spotter.trained["set"] = "toy"
    spotter.save(tmp_path / "s.safetensors")
    loaded = KeywordSpotter.load(tmp_path / "s.safetensors", labels=LABELS)
    assert (loaded.rule, loaded.surround, loaded.features) == (spotter.rule, spotter.surround, spotter.features)
    assert loaded.trained == {"set": "toy"}
    assert loaded.stream(TAPE) == spotter.stream(TAPE)
    other = KeywordSpotter.load(tmp_path / "s.safetensors", threshold=0.4, streams=2)
    assert other.rule == replace(spotter.rule, threshold=0.4)
    assert other.streams == 2


def test_a_checkpoint_of_another_set_or_version_is_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    small_spotter().save(path)
    with pytest.raises(CheckpointError, match=r"s.safetensors: found the labels go, no, stop, yes, expected a, b"):
        KeywordSpotter.load(path, labels=("a", "b"))
    tensors, header = load_tensors(path, kind="keyword spotter", fix="")
    for change, said in (
        ({"version": 7}, "found version 7, this package reads version 1"),
        ({"labels": ["go", "no"]}, "do not fit"),
        ({"model": {"kind": "nothing"}}, "do not fit"),
    ):
        save_tensors(tmp_path / "t.safetensors", tensors, {**header, **change}, kind="keyword spotter")
        with pytest.raises(CheckpointError, match=said):
            KeywordSpotter.load(tmp_path / "t.safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1
    for content in (bytes(damaged), b"", b"RIFF....WAVE"):
        (tmp_path / "d.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged, or not a keyword spotter"):
            KeywordSpotter.load(tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        KeywordSpotter.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("chunk", "rate", "said"),
    [
        (TAPE, 16000, "found 16000 Hz, expected 8000 Hz: resample"),
        (np.array([0.0, np.nan], np.float32), None, "a sample that is not finite"),
        (np.array([0.0, np.inf], np.float32), None, "a sample that is not finite"),
        (np.ma.array([0.0, 0.5], mask=[False, True], dtype=np.float32), None, "an array with masked samples"),
        (TAPE * 32768, None, r"a sample of \d+.*int16"),
        (np.zeros((2, 100), np.float32), None, r"found shape \(2, 100\), expected \(N,\)"),
        (np.zeros(10, np.uint8), None, "found uint8"),
        (np.array(["a"]), None, "found <U1"),
        ([[0.1], [0.2, 0.3]], None, "found a list that is no array of numbers"),
        (torch.zeros(9, dtype=torch.bfloat16), None, "found a Tensor that is no array of numbers"),
    ],
)
def test_bad_chunks_are_refused_without_a_change_of_state(chunk, rate, said):
    spotter = small_spotter()
    spotter.stream(TAPE[:1000])
    with pytest.raises(ArgumentError, match=said):
        spotter.stream(chunk, rate)
    after = spotter.hear(TAPE[1000:])[1][0].scores
    np.testing.assert_allclose(after, small_spotter().hear(TAPE)[1][0].scores[-len(after) :], atol=2e-4)


def test_bad_arguments_are_refused():
    spotter = small_spotter()
    with pytest.raises(ArgumentError, match="threshold: found nan"):
        spotter.change_rule(threshold=float("nan"))
    with pytest.raises(ArgumentError, match="refractory: found -1"):
        spotter.change_rule(refractory=-1.0)
    with pytest.raises(ArgumentError, match="background: found 'maybe', expected some of go"):
        spotter.change_rule(background=("maybe",))
    with pytest.raises(ArgumentError, match="streams: found 3, expected 0 to 0"):
        spotter.reset(3)
    with pytest.raises(ArgumentError, match="found 40 bins, the network reads 16"):
        KeywordSpotter(spotter.network, replace(FEATURES, bins=40, sample_rate=16000))
    with pytest.raises(ArgumentError, match=r"too few for one output, expected at least 0\.035 s"):
        spotter.predict(TAPE[:200])
    with pytest.raises(DataError, match="no such file"):
        spotter.predict_file("absent.wav")


def test_state_size_after_two_minutes_equals_ten_seconds():
    spotter = small_spotter()
    spotter.stream(babble(10.0))
    size = spotter.nbytes
    for minute in range(2):
        for chunk in chunks(babble(60.0, seed=minute), 800):
            spotter.stream(chunk)
    assert spotter.nbytes == size


@pytest.mark.slow
def test_an_hour_of_audio_needs_no_more_memory_than_a_minute():
    spotter = small_spotter(streams=2)
    minute = np.stack([babble(60.0, seed=1), babble(60.0, seed=2)])
    sizes, peaks = [], []
    for _ in range(60):
        for chunk in chunks(minute, 800):
            spotter.stream(chunk)
        sizes.append(spotter.nbytes)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(set(sizes)) == 1
    assert peaks[-1] - peaks[1] < 4096  # kilobytes
