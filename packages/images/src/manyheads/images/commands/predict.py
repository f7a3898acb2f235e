"""``manyheads images predict``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from manyheads.images.classifier import Prediction


# pictures in a plot
MOST = 16


def predict(
    pictures: tuple[Path, ...], /, *, model: Path | None = None, top: int = 3, plot: Path | None = None
) -> Outcome:
    """Classify pictures with a trained classifier.

    Args:
        pictures: picture files (.png, .jpg, …).
        model: classifier file of a training run; the newest below runs/ by default.
        top: number of labels to print for each picture.
        plot: picture file to write (.png, .svg or .pdf): the first 16 pictures with the probabilities of their labels.
    """
    from manyheads.images.classifier import ImageClassifier, newest_classifier
    from manyheads.lab.data.files import check_suffix, write_figure
    from manyheads.lab.reporting.tables import table

    check_suffix("--plot", plot, (".png", ".svg", ".pdf"))
    if not pictures:
        raise ArgumentError("pictures: found none, expected one or more picture files")
    if top < 1:
        raise ArgumentError(f"top: found {top}, expected 1 or more")
    chosen = newest_classifier() if model is None else model
    if model is None:
        print(f"model: {chosen}", file=sys.stderr)
    found = ImageClassifier.load(chosen).predict(pictures)
    for one in found:
        for note in one.notes:
            print(f"note: {one.file}: {note}", file=sys.stderr)
    if plot is not None:
        write_figure(plot, draw(found[:MOST], top))
        if len(found) > MOST:
            print(f"note: {plot}: the first {MOST} of {len(found)} pictures", file=sys.stderr)
    rows = [
        (one.file, one.label, ", ".join(f"{name} {share:.3f}" for name, share in list(one.probabilities.items())[:top]))
        for one in found
    ]
    document = [{**asdict(one), "label": one.label, "model": str(chosen)} for one in found]
    return Outcome(document, table(("picture", "label", "probabilities"), rows))


def draw(predictions: list[Prediction], top: int) -> Figure:
    """Each picture beside the probabilities of its labels."""
    from matplotlib.figure import Figure

    from manyheads.lab.data.pictures import read_picture

    figure = Figure(figsize=(6, 1.8 * len(predictions)), layout="constrained")
    for row, one in zip(figure.subplots(len(predictions), 2, squeeze=False), predictions, strict=True):
        row[0].imshow(read_picture(Path(one.file), 3).pixels)
        row[0].set_axis_off()
        row[0].set_title(f"{Path(one.file).name}: {one.label}", fontsize="small")
        labels = list(one.probabilities)[:top][::-1]
        row[1].barh(labels, [one.probabilities[label] for label in labels])
        row[1].set(xlim=(0, 1), xlabel="probability" if one is predictions[-1] else "")
    return figure
