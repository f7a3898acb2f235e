"""Store tensors with a header, and JSON documents; each file carries a SHA-256 digest, nothing is pickled.

A tensor file is a safetensors file with one metadata entry, ``manyheads``: the JSON header, and the digest of
everything else in the file (names, dtypes, shapes, header, bytes). There is only one entry because safetensors writes
several in random order, and the same content should give the same bytes. A document is a JSON object with the member
``digest``.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from manyheads.core.errors import CheckpointError
from manyheads.lab.data.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Tensors = Mapping[str, Tensor] | Mapping[str, np.ndarray]

ENTRY = "manyheads"
MODEL, MODEL_FILE = "model", "model.safetensors"
# Largest JSON header, in bytes.
MAX_HEADER = 64 << 20


def save_tensors(path: str | Path, tensors: Tensors, header: Mapping[str, Any], *, kind: str) -> None:
    """Write tensors and a JSON header as one file, atomically. ``kind`` names the content, such as ``"forecaster"``."""
    write_atomically(path, *_parts(tensors, header, kind))


def packed(tensors: Tensors, header: Mapping[str, Any], *, kind: str) -> bytes:
    """Return the bytes that :func:`save_tensors` writes."""
    return b"".join(_parts(tensors, header, kind))


def load_tensors(path: str | Path, *, kind: str, fix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header of a file written by :func:`save_tensors`.

    Raises :class:`CheckpointError`, ending with ``fix``, if the file is absent, damaged, or of another kind.
    """
    from safetensors.torch import load

    header, raw = _verified(path, kind, fix)
    return _loaded(load, raw, path, kind, fix), header


def load_arrays(path: str | Path, *, kind: str, fix: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a tensor file as numpy arrays, without importing torch; otherwise as :func:`load_tensors`."""
    from safetensors.numpy import load

    header, raw = _verified(path, kind, fix)
    return _loaded(load, raw, path, kind, fix), header


def checked_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Check names, shapes and dtypes of ``tensors`` against ``expected``, and that all numbers are finite; return them.

    Raises :class:`ValueError` that names the first wrong tensor.
    """
    names = sorted(set(tensors) ^ set(expected))
    if names:
        raise ValueError(f"{names[0]}: {'not expected' if names[0] in tensors else 'missing'}")
    for name, tensor in tensors.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise ValueError(f"{name}: found {found}, expected {wanted.dtype} of shape {tuple(wanted.shape)}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name}: found a number that is not finite")
    return tensors


def save_document(path: str | Path, document: Mapping[str, Any], *, kind: str) -> None:
    """Write a JSON object with its digest, atomically. Raises :class:`ValueError` for NaN and infinities."""
    write_atomically(path, packed_document(document, kind=kind))


def packed_document(document: Mapping[str, Any], *, kind: str) -> bytes:
    """Return the bytes that :func:`save_document` writes."""
    stored = {"kind": kind, **document}
    stored["digest"] = _digest(_canonical(stored))
    return json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"


def load_document(path: str | Path, *, kind: str, fix: str) -> dict[str, Any]:
    """Read a JSON object written by :func:`save_document`, without the members ``kind`` and ``digest``.

    Raises :class:`CheckpointError`, ending with ``fix``, if the file is absent, damaged, or of another kind.
    """
    raw = _content(path, kind, fix)
    try:
        document = json.loads(raw.decode("utf-8", "surrogatepass"))
        intact = document.pop("digest", None) == _digest(_canonical(document))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, kind, "it cannot be read", fix) from error
    if not intact:
        raise _damaged(path, kind, "its digest is not that of its content", fix)
    _check_kind(document.pop("kind", None), path, kind, fix)
    return document


def save_model(
    folder: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], beside: Mapping[str, bytes] | None = None
) -> None:
    """Write ``model.safetensors`` and the files beside it; the header keeps the SHA-256 of each of these."""
    for name, content in (beside or {}).items():
        write_atomically(folder / name, content)
    digests = {name: sha256(content) for name, content in (beside or {}).items()}
    save_tensors(folder / MODEL_FILE, tensors, {**header, "beside": digests}, kind=MODEL)


def load_model(folder: Path, *, fix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read ``model.safetensors`` and check the files beside it.

    Raises :class:`CheckpointError`, ending with ``fix``, if a file is absent, damaged, or of another model.
    """
    tensors, header = load_tensors(folder / MODEL_FILE, kind=MODEL, fix=fix)
    check_beside(folder, header.pop("beside", {}), fix=fix)
    return tensors, header


def check_beside(folder: Path, digests: Mapping[str, str], *, fix: str) -> None:
    """Check the files beside a model against the SHA-256 of each that the model keeps.

    Raises :class:`CheckpointError` if one is absent, damaged, or of another model.
    """
    for name, expected in digests.items():
        path, kind = folder / Path(name).name, "file of this model"
        if sha256(_content(path, kind, fix)) != expected:
            raise _damaged(path, kind, "the model was saved with another", fix)


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _parts(tensors: Tensors, header: Mapping[str, Any], kind: str) -> tuple[bytes, bytes, memoryview]:
    layout, data = _split(_serialised(tensors))
    text = json.dumps({"kind": kind, **header})
    stored = {"header": text, "digest": _digest(_canonical(layout), text, data)}
    content = json.dumps({"__metadata__": {ENTRY: json.dumps(stored)}, **layout}, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return struct.pack("<Q", len(content)), content, data


def _loaded(load: Callable[[bytes], dict[str, Any]], raw: bytes, path: str | Path, kind: str, fix: str) -> Any:
    from safetensors import SafetensorError

    try:
        return load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(path, kind, "it cannot be read", fix) from error


def _serialised(tensors: Tensors) -> bytes:
    import numpy as np

    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        from safetensors.numpy import save

        return save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    from safetensors.torch import save

    own = cast("Mapping[str, Tensor]", tensors)
    # safetensors refuses tensors that share memory, so each is copied
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in own.items()})


def _verified(path: str | Path, kind: str, fix: str) -> tuple[dict[str, Any], bytes]:
    """Check the digest of a tensor file; return its header and its bytes."""
    raw = _content(path, kind, fix)
    try:
        layout, data = _split(raw)
        stored = json.loads(layout.pop("__metadata__")[ENTRY])
        text, found = stored["header"], stored["digest"]
        if found != _digest(_canonical(layout), text, data):
            raise _damaged(path, kind, "its digest is not that of its content", fix)
        header = json.loads(text)
        found = header.pop("kind", None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise _damaged(path, kind, "it cannot be read", fix) from error
    _check_kind(found, path, kind, fix)
    return header, raw


def _split(raw: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split a safetensors file into its JSON layout and its data. Raises :class:`ValueError`."""
    (length,) = struct.unpack_from("<Q", raw)
    if length > min(len(raw) - 8, MAX_HEADER):
        raise ValueError("the header is longer than the file")
    layout = json.loads(raw[8 : 8 + length])
    if not isinstance(layout, dict):
        raise ValueError("the header is not an object")
    data = memoryview(raw)[8 + length :]
    ends = [one["data_offsets"][1] for name, one in layout.items() if name != "__metadata__"]
    if max(ends, default=0) != len(data):
        raise ValueError("the tensors end before or after the file does")
    return layout, data


def _content(path: str | Path, kind: str, fix: str) -> bytes:
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file, expected {_a(kind)}: {fix}")
    if not path.is_file():
        raise CheckpointError(f"{path}: found a folder or a device, expected the file of {_a(kind)}: {fix}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}), expected {_a(kind)}: {fix}") from error


def _check_kind(found: Any, path: str | Path, kind: str, fix: str) -> None:
    if found != kind:
        raise CheckpointError(f"{path}: found the file of {_a(found)}, expected {_a(kind)}: {fix}")


def _damaged(path: str | Path, kind: str, reason: str, fix: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged, or not {_a(kind)} ({reason}): {fix}")


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=True)


def _digest(*parts: str | bytes | memoryview) -> str:
    """Return the SHA-256 of parts, each preceded by its length."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(struct.pack("<Q", len(content)))
        found.update(content)
    return found.hexdigest()


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
