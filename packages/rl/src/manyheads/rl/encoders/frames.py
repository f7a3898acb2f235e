"""A vision transformer on a stack of frames, and its file: pretraining writes it, agents load it.

The file is a safetensors file with the tensors of the backbone; its header holds the arguments of the backbone and the
size of the frames.

Axes: b batch, s frames of a stack, h and w pixels, n patches, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.backbones.image import Encoded
from manyheads.core.backbones.vit import ViT
from manyheads.core.errors import ArgumentError, CheckpointError
from manyheads.core.methods.mixing_matrix import mixing_matrices
from manyheads.lab.data.fields import plain
from manyheads.lab.data.storage import checked_tensors, load_tensors, save_tensors

KIND, FILE = "encoder of frames", "encoder.safetensors"
_FIX = "train one again (manyheads rl train vicreg-small)"


def patch_attention(network: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return ``(B, heads, rows, columns)``: how much the last block of a ViT reads each patch.

    The reader is the class token, or, without one, the mean of all patches.

    Args:
        network: the ViT.
        run: calls it once.

    Raises:
        ArgumentError: another network, or a ViT around a layer without mixing matrix.
    """
    if not isinstance(network, ViT):
        kind = getattr(getattr(network, "info", None), "name", "a convolutional network")
        raise ArgumentError(f"attention over frames: found {kind}, expected a vit as encoder (encoder=vit-nano)")
    grid: list[tuple[int, int]] = []
    hook = network.patches.register_forward_hook(lambda _, inputs, output: grid.append(tuple(output.shape[1:3])))
    try:
        matrices = mixing_matrices(network.stack.residual_blocks[-1], run)
    finally:
        hook.remove()
    if not matrices:
        raise ArgumentError(
            f"attention over frames: found a vit around {network.layer!r}, which has no mixing matrix, expected a "
            "layer with one, such as softmax"
        )
    (shares,) = matrices.values()
    read = shares[:, :, 0, 1:] if network.pool == "token" else shares.mean(2)
    return read.unflatten(-1, grid[-1])


class FrameEncoder(nn.Module):
    """A :class:`~manyheads.core.backbones.vit.ViT` without head, for bytes or for pixels from 0 to 1.

    Rows and columns beyond the last whole patch are dropped, as the published code does with 84 pixels and patches of
    8.

    Args:
        size: height and width of the frames.
        arguments: of the backbone, without ``classes`` and ``image_size``.

    Raises:
        ArgumentError: a patch larger than a frame, arguments that the backbone does not take.
    """

    def __init__(self, size: int, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        patch = int(arguments.get("patch", 16))
        if not 1 <= patch <= size:
            raise ArgumentError(f"encoder: patch: found {patch}, expected 1 to the size of a frame, {size}")
        self.size, self.seen = size, size // patch * patch
        given: dict[str, Any] = {**arguments, "classes": None, "image_size": self.seen}
        self.network = ViT(**given)

    @property
    def width(self) -> int:
        """D."""
        return self.network.dim

    @property
    def stack(self) -> int:
        """S."""
        return self.network.channels

    def with_random_weights(self, seed: int) -> FrameEncoder:
        """Return an encoder of the same arguments with new random weights."""
        arguments = {name: one for name, one in self.network.config.items() if name not in ("classes", "image_size")}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return FrameEncoder(self.size, arguments).eval()

    def encode(self, frames: Tensor) -> Encoded:
        """Return features of the patches, and the pooled vector, of ``(B, S, H, W)``.

        Raises :class:`ArgumentError` for frames of another size.
        """
        if frames.shape[-2:] != (self.size, self.size):
            raise ArgumentError(f"encoder: found frames of shape {tuple(frames.shape)}, expected {self.size} pixels")
        weight = next(self.network.parameters())
        pixels = frames.to(weight.dtype) / 255 if frames.dtype == torch.uint8 else frames
        return self.network.encode(pixels[..., : self.seen, : self.seen])

    def forward(self, frames: Tensor) -> Tensor:
        """Return the pooled vectors ``(B, D)``."""
        return self.encode(frames).pooled

    def attention(self, frames: Tensor) -> Tensor:
        """Return ``(B, heads, rows, columns)``: how much the last block reads each patch.

        The reader is the class token, or, without one, the mean of all patches.
        """
        return patch_attention(self.network, lambda: self.encode(frames))

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None) -> None:
        """Write the file, atomically; ``facts`` are kept in its header."""
        header = {"backbone": "vit", "arguments": plain(self.network.config), "size": self.size, "facts": facts or {}}
        save_tensors(path, self.network.state_dict(), header, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> FrameEncoder:
        """Read a file. Raises :class:`CheckpointError` for one that is absent, damaged or of another kind."""
        tensors, header = load_tensors(path, kind=KIND, fix=_FIX)
        try:
            made = cls(header["size"], header["arguments"])
            made.network.load_state_dict(dict(checked_tensors(tensors, made.network.state_dict())))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {type(error).__name__}: {error}: {_FIX}") from error
        return made.eval()
