"""Check the length and checksum in the header of a sound file, so that a truncated or damaged file is an error.

Decoders trust some sizes and clamp others without a warning. These functions read the chunks of WAV and AIFF, the
header of AU, the checksum of FLAC and the pages of Ogg. MP3 has neither sizes nor checksums.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np

from manyheads.core.errors import DataError

FORMATS = {
    "WAV": (".wav", ".wave"),
    "WAVEX": (".wav",),
    "RF64": (".rf64",),
    "FLAC": (".flac",),
    "OGG": (".ogg", ".oga", ".opus"),
    "MP3": (".mp3",),
    "AIFF": (".aif", ".aiff", ".aifc"),
    "AU": (".au", ".snd"),
}
KINDS = "WAV, FLAC, OGG, MP3, AIFF or AU"
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
COMPRESSED = (".3gp", ".aac", ".ac3", ".amr", ".ape", ".avi", ".gsm", ".m4a", ".mka", ".mkv", ".mov", ".mp2", ".mp4")
UNREADABLE = frozenset(
    (*COMPRESSED, ".ra", ".webm", ".wma", ".wv", ".caf", ".dsf", ".pcm", ".raw", ".sph", ".voc", ".w64")
)
# Lowest and highest sample rate in Hz.
RATES = (1_000, 768_000)
CHUNKS: dict[bytes, Literal["little", "big"]] = {b"RIFF": "little", b"RF64": "little", b"RIFX": "big", b"FORM": "big"}
# Names of the chunk of samples in WAV and in AIFF.
SAMPLES = (b"data", b"SSND")
MOST_CHUNKS = 10_000
# Smallest placeholder size in bytes: programs that write to a pipe put such a size, or 0, into the header.
UNKNOWN = 0x7FFFF000
# Bytes per sample of each encoding.
WIDTHS = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}
# Each byte with its bits in reverse order.
REVERSED = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))


class Container(NamedTuple):
    """Facts from the header of a sound file."""

    content: bytes | None = None
    """The file with its sizes filled in, if its header left them open."""
    length: int | None = None
    """Bytes of samples, if the header gives them."""
    md5: tuple[bytes, int] | None = None
    """Checksum of a FLAC file, and its bits per sample."""
    notes: tuple[str, ...] = ()
    known: bool = True
    """False for MP3 and for unknown formats, whose length cannot be checked."""


def check_container(path: Path) -> Container:
    """Read and check the header of a sound file.

    Raises :class:`DataError` for a file that is shorter or longer than its header says, or whose checksums are wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(42)
        if head[:4] in CHUNKS:
            return _chunks(path, stream, size, CHUNKS[head[:4]], head[:4] == b"FORM")
        if head[:4] == b".snd":
            return _au(path, head, size)
        if head[:4] == b"OggS":
            stream.seek(0)
            return _ogg(path, stream.read())
    if head[:4] == b"fLaC" and len(head) == 42 and any(head[26:42]):
        return Container(md5=(head[26:42], ((head[20] & 1) << 4 | head[21] >> 4) + 1))
    return Container(known=False)


def _chunks(path: Path, stream: BinaryIO, size: int, order: Literal["little", "big"], aiff: bool) -> Container:
    """Find the chunk of samples in a WAV or AIFF file and check its size. Raises :class:`DataError`."""
    at, long = 12, None
    for _ in range(MOST_CHUNKS):
        stream.seek(at)
        head = stream.read(24)
        name, length = head[:4], int.from_bytes(head[4:8], order)
        if len(head) < 8:
            break
        if name == b"ds64":
            long = int.from_bytes(head[16:24], order)
        if name in SAMPLES:
            length = long if long is not None and length == 0xFFFFFFFF else length
            return _samples(path, stream, size, order, aiff, at + 8, length)
        at += 8 + length + length % 2
    raise DataError(f"{path} holds no samples: found no chunk of them, expected a whole WAV or AIFF file")


def _samples(
    path: Path, stream: BinaryIO, size: int, order: Literal["little", "big"], aiff: bool, at: int, length: int
) -> Container:
    """Check the size of the chunk of samples, which begins at byte ``at``, against the size of the file.

    Raises :class:`DataError` for a truncated file, and for bytes after the samples that are no chunks.
    """
    there = size - at
    # The size is plausible: only whole chunks may follow.
    if length <= there and (length or there <= 0 or _are_chunks(stream, at, size, order)):
        after = at + length + length % 2
        if not _are_chunks(stream, after, size, order):
            raise DataError(
                f"{path}: found {size - after} bytes after its {length} bytes of samples, expected the end of the file "
                "or a chunk: its header is wrong; write it again with another program"
            )
        if not aiff:
            return Container(length=length)
        stream.seek(at)
        return Container(length=length - 8 - int.from_bytes(stream.read(4), "big"))
    if length and length < UNKNOWN:
        raise DataError(f"{path} is truncated: found {there} bytes of samples, its header promises {length}")
    # The size is 0 or a placeholder: read to the end of the file, with the true sizes filled in.
    if aiff:
        raise DataError(f"{path}: found no length in its header, expected one: write it again with another program")
    stream.seek(0)
    content = bytearray(stream.read())
    content[:4] = b"RIFF" if content[:4] == b"RF64" else content[:4]
    content[4:8] = min(size - 8, 0xFFFFFFFE).to_bytes(4, order)
    content[at - 4 : at] = min(there, 0xFFFFFFFE).to_bytes(4, order)
    return Container(bytes(content), there, notes=("no length in its header: read to the end of the file",))


def _are_chunks(stream: BinaryIO, at: int, size: int, order: Literal["little", "big"]) -> bool:
    """Return whether only whole chunks without samples follow from ``at``; up to 7 more bytes are padding."""
    for _ in range(MOST_CHUNKS):
        if size - at < 8:
            return True
        stream.seek(at)
        head = stream.read(8)
        length = int.from_bytes(head[4:8], order)
        if head[:4] in (*SAMPLES, *CHUNKS) or not all(32 <= byte < 127 for byte in head[:4]) or at + 8 + length > size:
            return False
        at += 8 + length + length % 2
    return False


def _au(path: Path, head: bytes, size: int) -> Container:
    """Check the length in the header of an AU file. Raises :class:`DataError`."""
    start, length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
    if length == 0xFFFFFFFF:
        return Container(notes=("no length in its header: read to the end of the file",))
    if length != size - start:
        raise DataError(f"{path}: found {size - start} bytes of samples, its header promises {length}")
    return Container(length=length)


def _ogg(path: Path, content: bytes) -> Container:
    """Check the checksum and the sequence number of each Ogg page, and the mark of the last page."""
    at, numbers, last = 0, {}, 0
    while at < len(content):
        table = content[at + 27 : at + 27 + (content[at + 26] if at + 26 < len(content) else 0)]
        end = at + 27 + len(table) + sum(table)
        if content[at : at + 4] != b"OggS" or end > len(content) or len(content) < at + 28:
            raise DataError(f"{path} is truncated or damaged: found no whole page at byte {at}")
        stream, number = content[at + 14 : at + 18], int.from_bytes(content[at + 18 : at + 22], "little")
        page = content[at : at + 22] + bytes(4) + content[at + 26 : end]
        if _ogg_checksum(page) != content[at + 22 : at + 26] or number != numbers.get(stream, number):
            raise DataError(f"{path} is damaged: found another checksum or number in its page at byte {at}")
        numbers[stream], last, at = number + 1, content[at + 5], end
    if len(numbers) > 1:
        raise DataError(f"{path}: found {len(numbers)} streams in one Ogg file, expected one: split it")
    return Container(notes=() if last & 4 else ("its last page is not marked as the last: it may have been cut",))


def _ogg_checksum(page: bytes) -> bytes:
    """Return the CRC-32 of an Ogg page: the polynomial of zlib, bits of each byte reversed, without inversion."""
    found = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return found.to_bytes(4, "big").translate(REVERSED)


class Checksum:
    """MD5 of the samples of a FLAC file with at most 24 bits, from float32 blocks ``(N, channels)`` in [-1, 1]."""

    def __init__(self, bits: int) -> None:
        self.bits, self.found = bits, hashlib.md5(usedforsecurity=False)

    def add(self, block: np.ndarray) -> None:
        whole = np.rint(block.astype(np.float64) * 2 ** (self.bits - 1)).astype("<i4")
        width = -(-self.bits // 8)
        self.found.update(np.ascontiguousarray(whole).view(np.uint8).reshape(-1, 4)[:, :width].tobytes())
