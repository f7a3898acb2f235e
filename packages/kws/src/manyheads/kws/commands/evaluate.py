"""``manyheads kws eval | export``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.cli.command import Outcome
from manyheads.lab.data.files import write_csv

if TYPE_CHECKING:
    from manyheads.kws.audio.clips import Clip
    from manyheads.kws.streaming.spotter import KeywordSpotter

PARTS = ("train", "validation", "test", "all")


def open_spotter(path: Path | None, **changes: Any) -> KeywordSpotter:
    """Load the spotter of a file; without a path, the newest below runs/, named on standard error."""
    from manyheads.kws.streaming.spotter import KeywordSpotter
    from manyheads.kws.training.trained import newest_spotter

    chosen = newest_spotter() if path is None else path
    if path is None:
        print(f"spotter: {chosen}", file=sys.stderr)
    spotter = KeywordSpotter.load(chosen, **changes)
    spotter.trained["file"] = str(chosen)
    return spotter


@contextmanager
def rejection_said() -> Generator[None]:
    """Print each :class:`RejectionWarning` raised inside as one line on standard error."""
    from manyheads.kws.streaming.spotter import RejectionWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", RejectionWarning)
        shown = warnings.showwarning

        def say(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, RejectionWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = say  # ty: ignore[invalid-assignment]
        yield


def clips_of_part(name: str, part: str, held_out: str = "") -> list[Clip]:
    """Return the clips of one part of a set.

    Raises :class:`ArgumentError` for an unknown part, :class:`DataError` for a part without clips.
    """
    from manyheads.kws.audio.clips import clips_of, hold_out
    from manyheads.kws.audio.split import parted

    if part not in PARTS:
        raise ArgumentError(f"part: found {part!r}, expected one of {', '.join(PARTS)}")
    clips = parted(clips_of(name))
    clips = hold_out(clips, held_out) if held_out else clips
    chosen = clips if part == "all" else [clip for clip in clips if clip.split == part]
    if not chosen:
        raise DataError(f"{name}: found no clips in its {part} part: choose another, or all")
    return chosen


def negatives_of(name: str, labels: Sequence[str], part: str) -> list[Clip]:
    """Return the clips of a set whose words are not in ``labels``, by speakers that the spotter was not trained on.

    Raises :class:`DataError` if none are left.
    """
    from manyheads.kws.training.stream_data import other_words

    clips = [c for c in other_words(name, labels) if part == "all" or c.split == part]
    if not clips:
        raise DataError(f"negatives: {name} has no words in its {part} part but {', '.join(labels)}")
    return clips


def evaluate(
    spotter: Path | None = None,
    /,
    *,
    set: str | None = None,
    part: str = "test",
    negatives: str | None = "gsc_v001_sample",
    snr: tuple[float, ...] = (20.0,),
    noise: Path | None = None,
    tolerance: float = 0.5,
    seed: int = 0,
    tune: float | None = None,
    report: Path | None = None,
    csv: Path | None = None,
) -> Outcome:
    """Evaluate a spotter: accuracy, confusion matrix, miss rate and false alarms per hour (DET curve), latency, spikes.

    Also reports how early in a clip the right word is known.

    Args:
        spotter: spotter file written by 'train'. Default: the newest below runs/.
        set: labelled clips: name of a data set, or a folder of label/*.wav. Default: the set used for training.
        part: part of the set: train, validation, test or all.
        negatives: data set of distractor words, which must not be detected. Words that the spotter knows are left out.
            The same part is used.
        snr: signal-to-noise ratios in dB. Each gives one stream.
        noise: recording of background noise. Default: pink noise.
        tolerance: seconds after the end of a word in which a detection still counts as a hit.
        seed: random seed of the streams.
        tune: target in false alarms per hour. Choose the threshold with the fewest misses at this target or below, and
            store it in the spotter file. Use it with --part validation.
        report: write an HTML page with plots to this file.
        csv: write the figures to this CSV file, one row per stream. Rows of other spotters and sets are kept.
    """
    from manyheads.kws.evaluation.confidence import rate_text
    from manyheads.kws.evaluation.measures import evaluate_spotter, merged_rows, summary_rows, text_of, tune_threshold
    from manyheads.kws.evaluation.page import write_report

    chosen = open_spotter(spotter)
    name, _, held_out = trained_on(chosen, set, part)
    clips = clips_of_part(name, part, held_out)
    other = negatives_of(negatives, chosen.labels, part) if negatives else []
    with rejection_said():
        found = evaluate_spotter(
            chosen, clips, other, snr=snr, noise=noise, tolerance=tolerance, seed=seed, name=f"{name}, {part}"
        )
    document, closing = found.document(), []
    if tune is not None:
        threshold = tune_threshold(found, tune)
        chosen.change_rule(threshold=threshold)
        path = str(chosen.trained.pop("file"))
        chosen.save(path)
        chosen.trained["file"] = path
        document["tuned_threshold"] = threshold
        points = [p for s in found.streams for p in s.curve.points if p.threshold == threshold]
        alarms = rate_text(sum(p.false_alarms for p in points), sum(s.curve.hours for s in found.streams))
        closing.append(f"threshold set to {threshold:.4f} in {path}: false alarms on this part: {alarms}")
    if csv is not None:
        write_csv(csv, merged_rows(csv, summary_rows(found)))
        closing.append(f"written: {csv}")
    if report is not None:
        document["report"] = str(write_report(found, report).resolve())
        closing.append(f"report: {document['report']}")
    from rich.console import Group

    return Outcome(document, Group(text_of(found), *closing))


def export(
    spotter: Path | None = None,
    /,
    *,
    out: Path = Path("exported"),
    int8: bool = True,
    nir: bool = False,
    measure: bool = True,
    set: str | None = None,
    part: str = "test",
) -> Outcome:
    """Export one streaming step of the network to ONNX, in float32 and int8, and measure the accuracy of each file.

    Args:
        spotter: spotter file written by 'train'. Default: the newest below runs/.
        out: output folder.
        int8: also write the step with int8 weights.
        nir: also write the spiking neurons as a NIR file.
        measure: measure the accuracy of the network and of each exported step.
        set: clips for the measurement: name of a data set, or a folder of label/*.wav. Default: the set used for
            training.
        part: part of that set: train, validation, test or all.
    """
    from rich.console import Group

    from manyheads.kws.evaluation.confidence import accuracy_text
    from manyheads.kws.export.comparison import export_spotter, measured
    from manyheads.lab.reporting.tables import table

    chosen = open_spotter(spotter)
    files = export_spotter(chosen, out, int8=int8, nir=nir)
    document: dict[str, Any] = {"spotter": chosen.trained["file"], "files": files}
    cells = [(row["file"], f"{row['bytes']:,}", row["what"]) for row in files]
    shown: list[Any] = [table(("file", "bytes", "what"), cells)]
    if measure:
        document["accuracy"] = rows = measured(chosen, out, clips_of_part(*trained_on(chosen, set, part)))
        found = [(r["what"], accuracy_text(r["accuracy"] * r["clips"], r["clips"]), r["other_words"]) for r in rows]
        shown.append(table(("model", "accuracy", "predictions unlike the network's"), found))
    return Outcome(document, Group(*shown))


def trained_on(spotter: KeywordSpotter, name: str | None, part: str) -> tuple[str, str, str]:
    """Return set, part and held-out speaker: the set that is named, or the one that the spotter was trained on.

    Raises :class:`ArgumentError` if neither is known.
    """
    own = str(spotter.trained.get("set", ""))
    if not name and not own:
        raise ArgumentError("set: the spotter does not say what it was trained on: name a set or a folder")
    held_out = str(spotter.trained.get("held_out", "")) if name in (None, own) else ""
    return name or own, part, held_out


commands: dict[str, Callable[..., Outcome]] = {"eval": evaluate, "export": export}
