"""Export a spotter to files for other runtimes, and measure the accuracy of each file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyheads.kws.audio.clips import Clip
from manyheads.kws.audio.reading import read_sound
from manyheads.kws.evaluation.clip_accuracy import BATCH, ClipResults, check_labels
from manyheads.kws.export.formats import StepRunner, export_nir, export_step, quantise
from manyheads.kws.streaming.spotter import KeywordSpotter
from manyheads.lab.data.storage import save_document

STEP, STEP_INT8, NEURONS, AROUND = "step.onnx", "step.int8.onnx", "neurons.nir", "spotter.json"


def export_spotter(spotter: KeywordSpotter, folder: Path, *, int8: bool = True, nir: bool = False) -> list[dict]:
    """Write the step as ONNX, the settings around it as JSON, and optionally the neurons as NIR. Return a row per file.

    Raises :class:`MissingPackageError` without onnx (or nir), :class:`ArgumentError` for a network that cannot be
    exported.
    """
    made = [(export_step(spotter.network, folder / STEP), "one step, state in and out, float32")]
    if int8:
        made.append((quantise(folder / STEP, folder / STEP_INT8), "the same with weights in 8 bits"))
    around = {
        "labels": spotter.labels,
        "features": asdict(spotter.features),
        "running_mean_tau_frames": spotter.tau,
        "rule": asdict(spotter.rule),
        "stride_frames": spotter.network.stride,
        "lookahead_frames": spotter.network.lookahead,
    }
    save_document(folder / AROUND, around, kind="keyword spotter's export")
    made.append((folder / AROUND, "features, running mean and rule, which stay outside the step"))
    if nir:
        made.append((export_nir(spotter.network, folder / NEURONS), "the spiking neurons"))
    return [{"file": str(path), "bytes": path.stat().st_size, "what": what} for path, what in made]


def evaluate_step(spotter: KeywordSpotter, step: Path, clips: Sequence[Clip]) -> ClipResults:
    """Evaluate an exported step on clips, like :func:`evaluate_clips` for the network itself.

    Raises :class:`DataError` for labels that the spotter does not know.
    """
    check_labels(spotter, {clip.label for clip in clips})
    frames = [_frames(spotter, clip) for clip in clips]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, found in enumerate(frames):
        by_length[len(found)].append(index)
    logits, known = [np.empty(0)] * len(clips), [np.empty(0)] * len(clips)
    stride, ahead = spotter.network.stride, spotter.network.lookahead
    for length, indices in by_length.items():
        for start in range(0, len(indices), BATCH):
            chosen = indices[start : start + BATCH]
            # Run the step over all clips of one length at once, with quiet frames for the look-ahead at the end.
            runner = StepRunner(step, streams=len(chosen))
            heard = np.stack([frames[index] for index in chosen])
            heard = np.pad(heard, ((0, 0), (0, ahead), (0, 0)))
            steps = [runner(heard[:, at : at + stride]).copy() for at in range(0, length + ahead - stride + 1, stride)]
            # With a look-ahead, the first outputs belong to no frame of the clip.
            made = np.stack(steps[ahead // stride :], 1) if steps else np.empty((len(chosen), 0, len(spotter.labels)))
            times = spotter.time_of_clip(0) + np.arange(made.shape[1]) * spotter.step_seconds
            for row, index in enumerate(chosen):
                logits[index], known[index] = made[row], times + spotter.lookahead_seconds
    truth = np.array([spotter.labels.index(clip.label) for clip in clips])
    seconds = np.array([len(found) * spotter.features.hop_samples / spotter.sample_rate for found in frames])
    return ClipResults(spotter.labels, truth, logits, known, seconds)


def measured(spotter: KeywordSpotter, folder: Path, clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """Return the accuracy of the network and of each exported step, and how many predictions differ from the network's.

    Each row has ``what``, ``accuracy``, ``clips`` and ``other_words``.
    """
    from manyheads.kws.evaluation.clip_accuracy import evaluate_clips

    plain = evaluate_clips(spotter, clips)
    rows = [{"what": "network", "accuracy": plain.accuracy, "clips": len(clips), "other_words": 0}]
    for name in (STEP, STEP_INT8):
        if (folder / name).is_file():
            found = evaluate_step(spotter, folder / name, clips)
            changed = int((found.predicted != plain.predicted).sum())
            rows.append({"what": name, "accuracy": found.accuracy, "clips": len(clips), "other_words": changed})
    return rows


@torch.no_grad()
def _frames(spotter: KeywordSpotter, clip: Clip) -> np.ndarray:
    """Return the frames ``(T, M)`` of a clip, with quiet before and after it."""
    samples = read_sound(clip.path, spotter.sample_rate).samples
    return spotter.clip_frames(samples[None])[0].float().cpu().numpy()
