"""``manyheads kws stream | compose``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Outcome, say
from manyheads.lab.data.files import check_suffix, write_figure

if TYPE_CHECKING:
    from manyheads.kws.streaming.detection import Detection
    from manyheads.kws.streaming.spotter import KeywordSpotter

PICTURES = (".png", ".svg", ".pdf")


def stream(
    file: Positional[Path | None] = None,
    *,
    microphone: bool = False,
    spotter: Path | None = None,
    threshold: float | None = None,
    smoothing: float | None = None,
    refractory: float | None = None,
    chunk: float = 0.02,
    paced: bool = False,
    seconds: float | None = None,
    device: str | None = None,
    plot: Path | None = None,
    truth: Path | None = None,
) -> Outcome:
    """Detect keywords in a sound file or from the microphone. Print one line per detection, as soon as it is made.

    Args:
        file: sound file: WAV, FLAC, OGG, MP3, AIFF or AU. Other sample rates are resampled and channels averaged, with
            a note on standard error.
        microphone: use the microphone instead of a file, until Ctrl-C or for --seconds.
        spotter: spotter file written by 'train'. Default: the newest below runs/.
        threshold: lowest score of a detection, from 0 to 1. Default: the threshold in the spotter file.
        smoothing: window in seconds over which the logits are averaged. Default: as in the spotter file.
        refractory: seconds after a detection without another one. Default: as in the spotter file.
        chunk: seconds of audio per chunk, at least 0.01.
        paced: process a file in real time.
        seconds: stop after this many seconds of audio.
        device: microphone, by name or number.
        plot: draw the waveform and the scores to this file: .png, .svg or .pdf.
        truth: CSV file of the spoken words with the columns start, end, label ('compose' writes one). Each detection is
            then marked right or false alarm, and missed words are listed.
    """
    import numpy as np
    from rich.console import Group

    from manyheads.kws.audio.reading import read_sound
    from manyheads.kws.audio.recordings import check_truth, read_truth
    from manyheads.kws.commands.evaluate import open_spotter, rejection_said
    from manyheads.kws.evaluation.det_curve import judge
    from manyheads.kws.streaming.sources import check_chunk, chunks_of
    from manyheads.kws.streaming.sources import microphone as open_microphone

    check_suffix("plot", plot, PICTURES)
    check_chunk(chunk)
    if (file is None) != microphone:
        raise ArgumentError("file: expected a file or --microphone, one of them")
    changes = {"threshold": threshold, "smoothing": smoothing, "refractory": refractory}
    chosen = open_spotter(spotter)
    chosen.rule = replace(chosen.rule, **{name: value for name, value in changes.items() if value is not None})
    spoken = None if truth is None else read_truth(truth)
    notes: tuple[str, ...] = ()
    if file is not None:
        sound = read_sound(file, chosen.sample_rate)
        notes, samples = sound.notes, sound.samples
        if truth is not None and spoken is not None:
            check_truth(spoken, truth, sound.seconds)
        if seconds is not None:
            samples = samples[: round(seconds * chosen.sample_rate)]
        source = chunks_of(samples, chosen.sample_rate, chunk, paced=paced)
    else:
        source = open_microphone(chosen.sample_rate, chunk, device)
    for note in notes:
        print(f"{file}: {note}", file=sys.stderr)
    detections: list[Detection] = []
    kept: list[tuple[Any, Any]] = []
    received = 0
    with rejection_said():
        try:
            for piece in source:
                found, tracks = chosen.hear(piece)
                received += len(piece)
                for detection in found:
                    say(str(detection))
                detections += found
                if plot is not None:
                    kept.append((piece, tracks[0]))
                if seconds is not None and received >= seconds * chosen.sample_rate:
                    break
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
        for detection in (last := chosen.finish()):
            say(str(detection))
        detections += last
    duration = received / chosen.sample_rate
    document: dict[str, Any] = {
        "spotter": str(chosen.trained.get("file", "")),
        "seconds": duration,
        "notes": notes,
        "detections": [asdict(found) for found in detections],
    }
    closing: list[Any] = [f"{len(detections)} detections in {duration:.1f} s"]
    judged = None
    if spoken is not None:
        judged = judge(detections, [word for word in spoken if word.end <= duration], chosen.keywords)
        for found, verdict in zip(document["detections"], judged.verdicts, strict=True):
            found["verdict"] = verdict
        document |= judged.document()
        closing = [judged.table(), f"{judged.summary()}, in {duration:.1f} s"]
    if plot is not None:
        whole = np.concatenate([piece for piece, _ in kept]) if kept else np.zeros(1, np.float32)
        _draw(plot, chosen, whole, [track for _, track in kept], detections, spoken, judged, str(file or "microphone"))
        document["plot"] = str(plot)
        closing.append(f"drawn: {plot}")
    return Outcome(document, Group(*closing))


def compose(
    *,
    set: str = "arabic_sc_10w",
    part: str = "test",
    count: int | None = 20,
    others: str | None = None,
    snr: float = 20.0,
    noise: Path | None = None,
    sample_rate: int = 16000,
    seed: int = 0,
    out: Path = Path("stream.wav"),
) -> Outcome:
    """Make a test recording: clips in random order over background noise, and a CSV file of the spoken words.

    Args:
        set: source of the clips: name of a data set, or a folder of label/*.wav.
        part: part of the set: train, validation, test or all.
        count: number of clips, drawn at random. The same number is drawn from --others.
        others: data set of distractor words to mix in: words of the same part that are not in the first set.
        snr: signal-to-noise ratio in dB.
        noise: recording of background noise. Default: pink noise.
        sample_rate: sample rate of the recording in Hz.
        seed: random seed of the choice of clips, their order, the gaps and the noise.
        out: output file, .wav or .flac. The CSV file has the same name.
    """
    import numpy as np

    from manyheads.kws.audio.clips import clips_of, labels_of
    from manyheads.kws.audio.recordings import compose as make
    from manyheads.kws.audio.recordings import write_tape
    from manyheads.kws.commands.evaluate import clips_of_part, negatives_of

    random = np.random.default_rng(seed)
    chosen = []
    own, other = clips_of_part(set, part), []
    if others is not None:
        unheard = {clip.path for clip in negatives_of(others, labels_of(clips_of(set)), part)}
        other = [clip for clip in clips_of(others) if clip.path in unheard]
    for clips in (own, other):
        kept = random.permutation(len(clips))[: len(clips) if count is None else count]
        chosen += [clips[index] for index in kept]
    tape = make(chosen, sample_rate, snr=snr, noise=noise, seed=seed)
    sound, truth = write_tape(tape, out)
    document = {"recording": str(sound), "truth": str(truth), "seconds": tape.seconds, "words": len(tape.spoken)}
    return Outcome(document, f"{sound}: {len(tape.spoken)} words in {tape.seconds:.1f} s; words and times: {truth}")


def _draw(
    path: Path,
    spotter: KeywordSpotter,
    samples: Any,
    tracks: list,
    detections: list,
    spoken: Any,
    judged: Any,
    title: str,
) -> None:
    import numpy as np

    from manyheads.kws.evaluation import plots

    times = np.concatenate([track.times for track in tracks]) if tracks else np.zeros(0)
    scores = np.concatenate([track.scores for track in tracks]) if tracks else np.zeros((0, len(spotter.labels)))
    figure = plots.timeline(
        samples,
        spotter.sample_rate,
        times,
        scores,
        spotter.labels,
        detections,
        threshold=spotter.rule.threshold,
        truth=spoken,
        verdicts=None if judged is None else judged.verdicts,
        missed=() if judged is None else judged.missed,
        title=title,
    )
    write_figure(path, figure)


commands: dict[str, Callable[..., Outcome]] = {"stream": stream, "compose": compose}
