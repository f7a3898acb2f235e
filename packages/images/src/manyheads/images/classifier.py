"""A trained classifier of pictures, as one file: tensors of the backbone, its arguments, labels and standardisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manyheads.core.backbones.image import ImageBackbone
from manyheads.core.backbones.presets import BACKBONES
from manyheads.core.errors import ArgumentError, CheckpointError, DataError
from manyheads.lab.data.fields import plain
from manyheads.lab.data.pictures import converted, read_picture, resized
from manyheads.lab.data.storage import checked_tensors, load_tensors, save_tensors
from manyheads.lab.training.run import newest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

KIND, FILE = "image classifier", "classifier.safetensors"
_FIX = "train it again (manyheads images train)"


@dataclass(frozen=True)
class Prediction:
    """The labels of one picture by probability, the largest first; ``notes`` say what was converted on reading."""

    file: str
    probabilities: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The most probable label."""
        return next(iter(self.probabilities))


class ImageClassifier:
    """A backbone with labels, image size and standardisation.

    Args:
        model: the backbone.
        labels: name of each class.
        image_size: pixels of a side, to which pictures are resized.
        mean: of each channel of the train part, for pixels from 0 to 1.
        sd: standard deviation of each channel.
    """

    def __init__(
        self,
        model: ImageBackbone,
        labels: Sequence[str],
        image_size: int,
        mean: Sequence[float],
        sd: Sequence[float],
    ) -> None:
        self.model, self.labels, self.image_size = model.eval(), tuple(labels), image_size
        self.mean, self.sd = np.array(mean, np.float32), np.array(sd, np.float32)

    @classmethod
    def of(cls, model: nn.Module, facts: Mapping[str, Any]) -> ImageClassifier:
        """Build one from a trained model and the facts of its data."""
        assert isinstance(model, ImageBackbone)
        return cls(model, facts["labels"], facts["image_size"], facts["mean"], facts["sd"])

    def save(self, path: str | Path) -> None:
        """Write the file, atomically."""
        header = {
            "backbone": self.model.info.name,
            "arguments": plain(self.model.config),
            "labels": list(self.labels),
            "image_size": self.image_size,
            "mean": self.mean.tolist(),
            "sd": self.sd.tolist(),
        }
        save_tensors(path, self.model.state_dict(), header, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> ImageClassifier:
        """Read a file. Raises :class:`CheckpointError` for one that is absent, damaged, or of another kind."""
        tensors, header = load_tensors(path, kind=KIND, fix=_FIX)
        try:
            model = BACKBONES[header["backbone"]](**_tuples(header["arguments"]))
            model.load_state_dict(dict(checked_tensors(tensors, model.state_dict())))
            return cls(model, header["labels"], header["image_size"], header["mean"], header["sd"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {type(error).__name__}: {error}: {_FIX}") from error

    def predict(self, pictures: Sequence[str | Path | np.ndarray | Image]) -> list[Prediction]:
        """Classify picture files, Pillow images, or arrays ``(H, W)`` or ``(H, W, C)``: bytes, or numbers from 0 to 1.

        Raises :class:`DataError` for a file that is no picture, :class:`ArgumentError` for an array of another form and
        for one picture that is not in a list.
        """
        if isinstance(pictures, str | Path | np.ndarray) or hasattr(pictures, "getbands"):
            raise ArgumentError(
                f"pictures: found one {type(pictures).__name__}, expected a list of pictures: put it in brackets"
            )
        found = []
        for place, picture in enumerate(pictures):
            pixels, notes, name = self._read(picture, place)
            scores = self._scores(pixels)
            order = np.argsort(-scores, kind="stable")
            found.append(Prediction(name, {self.labels[i]: float(scores[i]) for i in order}, notes))
        return found

    def _read(self, picture: str | Path | np.ndarray | Image, place: int) -> tuple[np.ndarray, tuple[str, ...], str]:
        channels = self.model.channels
        if isinstance(picture, str | Path):
            read = read_picture(Path(picture), channels)
            return read.pixels, read.notes, str(picture)
        if not isinstance(picture, np.ndarray) and hasattr(picture, "getbands"):
            read = converted(picture, channels, f"pictures[{place}]")
            return read.pixels, read.notes, f"pictures[{place}]"
        given = np.asarray(picture)
        pixels = given.astype(np.float32) / 255 if given.dtype == np.uint8 else np.asarray(given, np.float32)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[2] != channels or 0 in pixels.shape:
            raise ArgumentError(
                f"pictures[{place}]: found an array of shape {pixels.shape}, expected (height, width, {channels})"
            )
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise ArgumentError(
                f"pictures[{place}]: found {given.dtype} numbers outside 0 to 1, expected bytes (uint8), or pixels "
                "divided by the largest possible one"
            )
        return pixels, (), f"pictures[{place}]"

    @torch.no_grad()
    def _scores(self, pixels: np.ndarray) -> np.ndarray:
        # rounded to bytes, as in training
        small = np.round(resized(pixels, self.image_size) * 255) / 255
        images = torch.from_numpy(((small - self.mean) / self.sd).astype(np.float32)).permute(2, 0, 1)[None]
        return self.model(images)[0].softmax(0).numpy()


def _tuples(value: Any) -> Any:
    """JSON has lists only; the sizes of a backbone are tuples."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def newest_classifier(root: Path = Path("runs")) -> Path:
    """Return the newest classifier file below ``root``. Raises :class:`DataError` if there is none."""
    found = newest(root, FILE)
    if found is None:
        raise DataError(
            f"{root}: found no {FILE}: train one (manyheads images train folder-vit-nano data.folder=photos) or name "
            "one with --model"
        )
    return found
