"""Commands on two synthetic words: output, files and errors."""

from __future__ import annotations

import json
import sys
import types

import numpy as np
import pytest
import soundfile

from manyheads.core.errors import MissingPackageError
from manyheads.kws import domain
from manyheads.kws.audio.clips import clips_of, labels_of
from manyheads.kws.streaming.sources import chunks_of, microphone
from manyheads.kws.streaming.spotter import KeywordSpotter, RejectionWarning
from manyheads.lab.cli.command import run_commands
from manyheads.lab.cli.experiments import experiment_commands, overrides_first

from .spotters import small_spotter


def manyheads_kws(*words):
    commands = {**experiment_commands(domain), **domain.load_commands()}
    return run_commands("manyheads kws", domain.summary, commands, overrides_first([str(word) for word in words]))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Create ``words/high``, ``words/low`` and a spotter from a very short training on them."""
    folder = tmp_path_factory.mktemp("kws")
    t = np.arange(8000) / 16000
    for label, pitch in (("high", 1400.0), ("low", 300.0)):
        (folder / "words" / label).mkdir(parents=True)
        for n in range(60):
            tone = np.sin(2 * np.pi * pitch * (1 + 0.01 * n) * t) * np.hanning(8000)
            noise = np.random.default_rng(n).standard_normal(8000)
            soundfile.write(folder / "words" / label / f"{n}.wav", 0.3 * tone + 0.01 * noise, 16000)
    overrides = ["model.channels=16", "budget.batch_size=16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["train", "arabic-lmuformer", "--smoke", "--out", "spotter.safetensors", "data.set=words", *overrides]
        assert manyheads_kws(*words) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


def test_training_writes_a_spotter_with_its_labels(place):
    spotter = KeywordSpotter.load("spotter.safetensors", labels=("high", "low"))
    assert spotter.trained["set"] == "words"
    assert list(place.glob("runs/*/*/seed-1/spotter.safetensors"))


def test_training_json_has_report_and_path(capsys):
    words = ["train", "arabic-lmuformer", "--smoke", "data.set=words", "model.channels=16", "budget.batch_size=16"]
    assert manyheads_kws(*words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metrics"]["1"]["accuracy"] >= 50
    low, high = document["accuracy_interval"]
    assert low < document["mean"]["accuracy"] <= high
    assert document["spotters"][0].endswith("seed-1/spotter.safetensors")


def test_composed_stream_gives_detections_plot_and_json(capsys, place):
    assert manyheads_kws("compose", "--set", "words", "--part", "all", "--count", 8, "--out", "s.wav") == 0
    capsys.readouterr()
    words = ["stream", "s.wav", "--spotter", "spotter.safetensors", "--threshold", 0.5, "--truth", "s.csv"]
    assert manyheads_kws(*words, "--plot", "t.png", "--json") == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    spotter = KeywordSpotter.load("spotter.safetensors", threshold=0.5)
    with pytest.warns(RejectionWarning):
        expected = spotter.detect_file("s.wav")
    assert expected
    assert [(d["label"], d["time"]) for d in document["detections"]] == [(d.label, d.time) for d in expected]
    assert all(0 <= d["latency"] < 0.02 for d in document["detections"])
    *lines, warning = sorted(said.err.strip().splitlines(), key=lambda line: line.startswith("warning: "))
    assert warning.startswith("warning: labels: found no label for other sounds beside high, low, expected one such")
    assert len(lines) == len(expected)
    assert (place / "t.png").read_bytes()[:4] == b"\x89PNG"


def test_truth_file_marks_right_detections_false_alarms_and_misses(capsys, place):
    """Counted by hand: a detection is right if it lies in a word of its label, or at most 0.5 s after it."""
    manyheads_kws("compose", "--set", "words", "--part", "all", "--count", 12, "--seed", 3, "--out", "v.wav")
    capsys.readouterr()
    lines = (place / "v.csv").read_text().splitlines()
    lines[1] = lines[1].rsplit(",", 1)[0] + ",other"  # no keyword: what is heard there is a false alarm
    flipped = {"high": "low", "low": "high"}
    start, end, label = lines[3].split(",")
    lines[3] = f"{start},{end},{flipped[label]}"  # missed, and a false alarm where something is heard
    (place / "v.csv").write_text("\n".join(lines) + "\n")
    words = ["stream", "v.wav", "--spotter", "spotter.safetensors", "--threshold", 0.5, "--truth", "v.csv"]
    assert manyheads_kws(*words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    truth = [(float(a), float(b), c) for a, b, c in (line.split(",") for line in lines[1:])]
    hit = set()
    for detection in document["detections"]:
        fits = [w for w in truth if w[2] == detection["label"] and w[0] <= detection["time"] <= w[1] + 0.5]
        fits = [w for w in fits if w not in hit]
        assert detection["verdict"] == ("right" if fits else "false alarm")
        hit |= set(fits[:1])
    missed = [w for w in truth if w[2] != "other" and w not in hit]
    assert [(w["start"], w["end"], w["label"]) for w in document["missed"]] == missed
    assert (document["right"], document["keywords"]) == (len(hit), 11)
    assert missed
    assert document["false_alarms"] >= 1
    assert manyheads_kws(*words) == 0
    said = capsys.readouterr().out
    assert f"{len(hit)} right, {document['false_alarms']} false alarm" in said
    assert f"{len(missed)} missed of 11 keywords" in said
    assert said.count("right") == len(hit) + 1


def test_words_after_the_processed_audio_are_not_missed(capsys):
    manyheads_kws("compose", "--set", "words", "--part", "all", "--count", 6, "--out", "w.wav")
    capsys.readouterr()
    words = ["stream", "w.wav", "--spotter", "spotter.safetensors", "--truth", "w.csv", "--seconds", 0.4, "--json"]
    assert manyheads_kws(*words) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["keywords"], document["missed"], document["right"]) == (0, [], 0)


def test_truth_of_another_recording_is_refused(capsys, place):
    manyheads_kws("compose", "--set", "words", "--part", "all", "--count", 2, "--out", "x.wav")
    (place / "long.csv").write_text("start,end,label\n0.1,0.5,low\n99,100,low\n")
    capsys.readouterr()
    assert manyheads_kws("stream", "x.wav", "--spotter", "spotter.safetensors", "--truth", "long.csv") == 2
    assert (
        "long.csv: found 'low' at 99 s, expected all words before the end of the recording" in capsys.readouterr().err
    )


def test_distractor_words_in_a_composed_stream_are_not_keywords(capsys, place):
    """Arabic and English words share labels. An English "yes" is no hit for an Arabic one, and is left out."""
    words = ["--set", "arabic_sc_10w", "--others", "gsc_v001_sample", "--count", 40, "--out", "mixed.wav"]
    assert manyheads_kws("compose", *words) == 0
    said = [line.split(",")[2] for line in (place / "mixed.csv").read_text().split()[1:]]
    keywords = labels_of(clips_of("arabic_sc_10w"))
    assert len(said) == 80
    assert sum(label in keywords for label in said) == 40


def test_without_json_each_detection_is_one_line_on_stdout(capsys):
    manyheads_kws("compose", "--set", "words", "--part", "all", "--count", 4, "--out", "u.wav")
    capsys.readouterr()
    assert manyheads_kws("stream", "u.wav", "--threshold", 0.5, "--seconds", 3) == 0
    said = capsys.readouterr()
    *lines, last = said.out.strip().splitlines()
    assert last.endswith("detections in 3.0 s")
    assert int(last.split()[0]) == len(lines)
    assert said.err.startswith("spotter: runs/")


def test_resampling_is_reported(capsys):
    soundfile.write("r.wav", np.random.default_rng(0).standard_normal((8000, 2)) * 0.1, 8000)
    assert manyheads_kws("stream", "r.wav", "--spotter", "spotter.safetensors") == 0
    assert "r.wav: resampled from 8000 to 16000 Hz" in capsys.readouterr().err


def test_evaluation_gives_json_and_html(capsys, place):
    words = ["eval", "spotter.safetensors", "--negatives", "None", "--part", "all", "--snr", 20, 0]
    assert manyheads_kws(*words, "--report", "e.html", "--csv", "e.csv", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["clips"] == 120
    assert [stream["snr_db"] for stream in document["streams"]] == [20, 0]
    assert sum(map(sum, document["confusion"])) == 120
    assert document["early"]["0.5"] <= 1
    assert "Confusion" in (place / "e.html").read_text()
    assert (place / "e.csv").read_text().splitlines()[0].startswith("experiment,seed,set,snr_db,clips,accuracy")


def test_tuned_threshold_is_stored_in_the_file(capsys, place):
    small = KeywordSpotter.load("spotter.safetensors")
    small.save("tuned.safetensors")
    assert (
        manyheads_kws(
            "eval", "tuned.safetensors", "--negatives", "None", "--part", "validation", "--tune", 400, "--json"
        )
        == 0
    )
    tuned = json.loads(capsys.readouterr().out)["tuned_threshold"]
    assert KeywordSpotter.load("tuned.safetensors").rule.threshold == tuned
    assert "file" not in KeywordSpotter.load("tuned.safetensors").trained


def test_export_writes_the_step_and_its_accuracy(capsys, place):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert manyheads_kws("export", "spotter.safetensors", "--out", "x", "--part", "all", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {path.name for path in (place / "x").iterdir()} == {"step.onnx", "step.int8.onnx", "spotter.json"}
    network, step, int8 = document["accuracy"]
    assert step["other_words"] == 0
    assert step["accuracy"] == network["accuracy"]
    assert int8["other_words"] <= 6


def test_export_writes_the_neurons_of_a_spiking_spotter(capsys, place):
    pytest.importorskip("onnx")
    nir = pytest.importorskip("nir")
    spotter = small_spotter(stem="1d", spiking=True)
    spotter.save("spiking.safetensors")
    words = ["export", "spiking.safetensors", "--out", "n", "--nir", "--no-int8", "--no-measure", "--json"]
    assert manyheads_kws(*words) == 0
    files = [row["file"] for row in json.loads(capsys.readouterr().out)["files"]]
    assert files == ["n/step.onnx", "n/spotter.json", "n/neurons.nir"]
    nodes = nir.read(str(place / "n" / "neurons.nir")).nodes
    sites = {product.source for product in spotter.network.products()} - {None}
    assert {name for name in nodes if name.endswith("_neurons")} == {f"{site}_neurons" for site in sites}


def test_list_shows_the_published_figures(capsys):
    assert manyheads_kws("list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"arabic-lmuformer", "arabic-spotter"} <= set(rows)
    assert rows["speech-commands-lmuformer"]["source"]["reported"]["accuracy"] == 96.53


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stream"], "file: expected a file or --microphone"),
        (["stream", "s.wav", "--microphone"], "file: expected a file or --microphone"),
        (["stream", "absent.wav"], "absent.wav: no such file"),
        (["stream", "empty.wav"], "empty.wav is empty"),
        (["stream", "text.wav"], "text.wav cannot be read as audio"),
        (["stream", "text.wav", "--spotter", "text.wav"], "text.wav: damaged, or not a keyword spotter"),
        (["stream", "text.wav", "--spotter", "absent"], "absent: no such file, expected a keyword spotter"),
        (["stream", "text.wav", "--chunk", "0.001"], "chunk: found 0.001 s, expected at least 0.01 s"),
        (["stream", "text.wav", "--threshold", "nan"], "threshold: found nan"),
        (["stream", "text.wav", "--plot", "t.jpg"], "plot: found t.jpg, expected a name that ends in"),
        (["stream", "text.wav", "--truth", "text.wav"], "found the columns"),
        (["eval", "spotter.safetensors", "--set", "nothing"], "unknown set or folder 'nothing'"),
        (["eval", "spotter.safetensors", "--part", "best"], "part: found 'best', expected one of train"),
        (["eval", "spotter.safetensors", "--set", "arabic"], "found close, down, left"),
        (["export", "silent.safetensors", "--out", "y"], "set: the spotter does not say what it was trained on"),
        (["compose", "--set", "words", "--out", "s.ogg"], "expected a name that ends in .wav or .flac"),
        (["train", "nothing"], "unknown experiment 'nothing'"),
        (["train", "arabic-lmuformer", "--smoke", "data.set=lonely"], "found 1 clips, expected at least 3"),
    ],
)
def test_bad_input_gives_one_line_and_status_two(words, said, capsys, place):
    (place / "empty.wav").write_bytes(b"")
    (place / "text.wav").write_text("hello\n" * 100)
    small_spotter().save("silent.safetensors")
    for label, count in (("a", 1), ("b", 4)):
        (place / "lonely" / label).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            soundfile.write(place / "lonely" / label / f"{n}.wav", np.zeros(8000), 16000)
    if words[0] == "export":
        pytest.importorskip("onnx")
    assert manyheads_kws(*words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("spotter: ")]
    assert len(errors) == 1
    assert said in errors[0]


def test_missing_spotter_says_how_to_train_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("s.wav", np.zeros(1600), 16000)
    assert manyheads_kws("stream", "s.wav") == 2
    assert "train one (manyheads kws train arabic-lmuformer)" in capsys.readouterr().err


def test_microphone_without_sounddevice_shows_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingPackageError, match=r"sounddevice is not installed: pip install .*kws\[microphone\]"):
        next(microphone(16000, 0.02))


def test_microphone_yields_its_blocks(monkeypatch):
    class Stream:
        def __init__(self, *, samplerate, blocksize, channels, dtype, device, callback):
            assert (samplerate, blocksize, channels, dtype, device) == (16000, 320, 1, "float32", 3)
            self.callback = callback

        def __enter__(self):
            for n in range(3):
                self.callback(np.full((320, 1), n, np.float32), 320, None, None)

        def __exit__(self, *error):
            return False

    fake = types.SimpleNamespace(InputStream=Stream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    source = microphone(16000, 0.02, "3")
    assert [float(next(source)[0]) for _ in range(3)] == [0.0, 1.0, 2.0]


def test_paced_file_is_processed_in_real_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    heard = [(len(chunk), now[0]) for chunk in chunks_of(np.zeros(1000), 1000, 0.3, paced=True)]
    assert heard == [
        (300, pytest.approx(0.3)),
        (300, pytest.approx(0.6)),
        (300, pytest.approx(0.9)),
        (100, pytest.approx(1.0)),
    ]
