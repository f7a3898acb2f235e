"""Damaged and lying sound files without end: ``for description, content, suffix in damaged_audio(seed): …``.

Each is a small whole file of one kind with one or two things done to it, such as a field of its header set to an
extreme, bytes changed, cut off, put in twice or in another order. Whoever reads one must either say what is wrong with
it in one line, or give samples that are finite, at a sane rate, in time and memory that its size bounds.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import soundfile

EXTREMES = (0, 1, 2, 3, 7, 8, 255, 399, 400, 401, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
KINDS: tuple[tuple[str, str, str], ...] = (
    (".wav", "WAV", "PCM_16"),
    (".wav", "WAV", "PCM_U8"),
    (".wav", "WAV", "PCM_24"),
    (".wav", "WAV", "FLOAT"),
    (".wav", "WAV", "IMA_ADPCM"),
    (".wav", "WAV", "ULAW"),
    (".wav", "WAVEX", "PCM_16"),
    (".wav", "RF64", "PCM_16"),
    (".flac", "FLAC", "PCM_16"),
    (".flac", "FLAC", "PCM_24"),
    (".aiff", "AIFF", "PCM_16"),
    (".au", "AU", "PCM_16"),
    (".ogg", "OGG", "VORBIS"),
    (".opus", "OGG", "OPUS"),
    (".mp3", "MP3", "MPEG_LAYER_III"),
)
# Where the numbers of a header lie: (name, offset, bytes, order); of a plain RIFF file with its "fmt " chunk first.
WAV_FIELDS = (
    ("RIFF size", 4, 4, "little"),
    ("size of fmt", 16, 4, "little"),
    ("format", 20, 2, "little"),
    ("channels", 22, 2, "little"),
    ("rate", 24, 4, "little"),
    ("bytes a second", 28, 4, "little"),
    ("bytes a frame", 32, 2, "little"),
    ("bits", 34, 2, "little"),
)
FIELDS: dict[str, tuple[tuple[str, int, int, str], ...]] = {
    "WAV": (*WAV_FIELDS, ("data size", 40, 4, "little")),
    "WAVEX": WAV_FIELDS,
    "FLAC": (
        ("block size", 8, 4, "big"),
        ("rate, channels, bits and length", 18, 4, "big"),
        ("low bits of the length", 22, 4, "big"),
    ),
    "AIFF": (("FORM size", 4, 4, "big"), ("channels", 20, 2, "big"), ("frames", 22, 4, "big"), ("rate", 28, 4, "big")),
    "AU": (
        ("offset", 4, 4, "big"),
        ("data size", 8, 4, "big"),
        ("encoding", 12, 4, "big"),
        ("rate", 16, 4, "big"),
        ("channels", 20, 4, "big"),
    ),
}


class Damaged(NamedTuple):
    """``suffix`` is that of the file's name."""

    description: str
    content: bytes
    suffix: str


Harm = Callable[[bytes, str, np.random.Generator], tuple[str, bytes]]


def whole_file(kind: int, random: np.random.Generator) -> bytes:
    """A tone with noise, of at most 0.4 s."""
    _, form, subtype = KINDS[kind % len(KINDS)]
    rate = 48000 if subtype == "OPUS" else int(random.choice([8000, 16000, 44100]))
    count, channels = int(random.integers(1, rate * 2 // 5)), int(random.integers(1, 3))
    time = np.arange(count)[:, None] / rate
    samples = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.02 * random.standard_normal((count, channels))
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format=form, subtype=subtype)
    return made.getvalue()


def set_field(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    name, at, width, order = FIELDS[form][int(random.integers(len(FIELDS[form])))]
    value = int(random.choice(EXTREMES)) % (1 << 8 * width)
    return f"{name} = {value}", content[:at] + value.to_bytes(width, order) + content[at + width :]


def nudge_field(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    name, at, width, order = FIELDS[form][int(random.integers(len(FIELDS[form])))]
    change = int(random.choice([-1000, -8, -2, -1, 1, 2, 8, 1000]))
    value = (int.from_bytes(content[at : at + width], order) + change) % (1 << 8 * width)
    return f"{name} {change:+}", content[:at] + value.to_bytes(width, order) + content[at + width :]


def cut(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    left = int(random.integers(len(content)))
    return f"cut to {left} of {len(content)} bytes", content[:left]


def change_bytes(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    made, head = bytearray(content), bool(random.integers(2))
    places = random.integers(0, min(len(made), 64) if head else len(made), int(random.integers(1, 9)))
    for at in places:
        made[at] = int(random.integers(256))
    return f"bytes changed at {sorted({int(at) for at in places})}", bytes(made)


def flip_bit(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    made, at = bytearray(content), int(random.integers(len(content)))
    made[at] ^= 1 << int(random.integers(8))
    return f"a bit flipped in byte {at}", bytes(made)


def append(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    more = int(random.choice([1, 2, 7, 8, 100, 4096]))
    noise = bool(random.integers(2))
    return f"{more} bytes after the end", content + (random.bytes(more) if noise else bytes(more))


def put_in(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    at, more = int(random.integers(len(content))), int(random.integers(1, 40))
    return f"{more} bytes put in at {at}", content[:at] + random.bytes(more) + content[at:]


def take_out(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    at, less = int(random.integers(len(content))), int(random.integers(1, 200))
    return f"{less} bytes taken out at {at}", content[:at] + content[at + less :]


def zero(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    at, count = int(random.integers(len(content))), int(random.integers(1, 400))
    return f"{count} zeros from {at} on", (content[:at] + bytes(count) + content[at + count :])[: len(content)]


def repeat(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    return "the file twice over", content + content


def other_magic(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    magic = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"OggS", b".snd", b"ID3\x03", b"\xff\xfb\x90\x00", b"caff")
    chosen = magic[int(random.integers(len(magic)))]
    return f"begins with {chosen!r}", chosen + content[4:]


def nothing_but_noise(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    return "noise", content[: int(random.choice([0, 4, 12, 44]))] + random.bytes(int(random.integers(0, 2000)))


def lying_chunk(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    """A chunk of an extreme size before the others, as of a WAV file."""
    size = int(random.choice(EXTREMES))
    name = (b"LIST", b"fmt ", b"data", b"ds64", b"\0\0\0\0", b"SSND")[int(random.integers(6))]
    return f"a chunk {name!r} of {size} bytes", content[:12] + name + struct.pack("<I", size) + content[12:]


def wild_floats(content: bytes, form: str, random: np.random.Generator) -> tuple[str, bytes]:
    """Another file altogether: samples that are no numbers, infinite, huge or tiny."""
    samples = 0.1 * random.standard_normal(500)
    value = float(random.choice([np.nan, np.inf, -np.inf, 1e30, -3e38, 32767.0, 5.0, 1e-40]))
    samples[random.integers(500, size=3)] = value
    made = io.BytesIO()
    soundfile.write(made, samples, 16000, format="WAV", subtype="DOUBLE" if abs(value) > 1e38 else "FLOAT")
    return f"samples of {value:g}", made.getvalue()


ANYWHERE: tuple[Harm, ...] = (
    *(cut, change_bytes, flip_bit, append, put_in, take_out, zero, repeat, other_magic, nothing_but_noise),
    *(lying_chunk, wild_floats),
)


def damaged_audio(seed: int = 0) -> Iterator[Damaged]:
    """Endless; the n-th depends on the seed and on n alone. All kinds of files and of harm come round."""
    return (damaged(seed, n) for n in itertools.count())


def damaged(seed: int, n: int) -> Damaged:
    """One file."""
    random = np.random.default_rng((seed, n))
    suffix, form, subtype = KINDS[n % len(KINDS)]
    content, done = whole_file(n, random), []
    for _ in range(1 + int(random.random() < 0.3)):
        heads: tuple[Harm, ...] = (set_field, set_field, nudge_field) * 3 if form in FIELDS else ()
        every = heads + ANYWHERE
        said, content = every[int(random.integers(len(every)))](content or b"\0", form, random)
        done.append(said)
    return Damaged(f"{n}: {form} {subtype}: {'; '.join(done)}", content, suffix)
