"""Data sets of spoken words: source, licence, size and checksum."""

from __future__ import annotations

from manyheads.lab.data.collection import Collection
from manyheads.lab.data.registry import Origin

_SPEECH_COMMANDS = "P. Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, 1804.03209"

ARABIC = Collection(
    name="arabic_sc_10w",
    domain="kws",
    title="Ten Arabic commands by 30 speakers, 900 clips of a second at 16 kHz, split by speaker",
    licence="CC BY 4.0",
    citation="A. Ghandoura et al., Building and benchmarking an Arabic Speech Commands dataset for small-footprint "
    "keyword spotting, Engineering Applications of Artificial Intelligence 102, 2021",
    bytes=13875517,
    sha256="01c4fd756a619103273dff29184721cf3fe25b0cb886d1ba9ca221639b820a39",
    local="kws/arabic_sc_10w",
    manifest="manyheads.kws:manifests/arabic_sc_10w.csv",
    landmark="LICENSE",
    origins=(
        Origin("checkout", "manyheads.kws:../../../data/arabic_sc_10w"),
        Origin("manual", "it comes with a clone of the repository (packages/kws/data), not with the wheel"),
    ),
    aliases=("arabic",),
)

GOOGLE_SAMPLE = Collection(
    name="gsc_v001_sample",
    domain="kws",
    title="300 clips of Google Speech Commands v0.01, 30 words, 41 speakers, 16 kHz",
    licence="CC BY 4.0",
    citation=_SPEECH_COMMANDS,
    bytes=4433785,
    sha256="7dddb00b09a93aff2368d83b25630aaf4cf5bf5025499934ea01132a716463d5",
    local="kws/gsc_v001_sample",
    manifest="manyheads.kws:manifests/gsc_v001_sample.csv",
    landmark="LICENSE",
    origins=(
        Origin("checkout", "manyheads.kws:../../../data/gsc_v001_sample"),
        Origin("manual", "it comes with a clone of the repository (packages/kws/data), not with the wheel"),
    ),
    aliases=("google-sample",),
)

DIGITS = Collection(
    name="fsdd",
    domain="kws",
    title="Free Spoken Digit Dataset, 3,000 clips of ten digits by six speakers, 8 kHz",
    licence="CC BY-SA 4.0",
    citation="Z. Jackson et al., Jakobovski/free-spoken-digit-dataset, Zenodo 2018",
    bytes=21128848,
    sha256="d65d0d0df25a9dc0364246feaf4a42d6c84be73858121c9471d7829133f44e00",
    local="kws/fsdd",
    manifest="manyheads.kws:manifests/fsdd.csv",
    landmark="recordings/0_george_0.wav",
    origins=(
        Origin(
            "manual",
            "clone github.com/Jakobovski/free-spoken-digit-dataset at 26eb9aaf76e81b692f806f9140c2d2777410d7a1 into "
            "$MANYHEADS_DATA/kws/fsdd",
        ),
    ),
    aliases=("digits", "free-spoken-digits"),
)

SPEECH_COMMANDS = Collection(
    name="speech_commands_v2",
    domain="kws",
    title="Google Speech Commands v0.02, 105,829 clips of 35 words, 16 kHz, with the official lists",
    licence="CC BY 4.0",
    citation=_SPEECH_COMMANDS,
    bytes=2428923189,
    sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    local="kws/speech_commands_v2",
    manifest=None,
    landmark="testing_list.txt",
    origins=(
        Origin(
            "url",
            "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
            sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        ),
    ),
    aliases=("scv2", "speech-commands"),
)

datasets: tuple[Collection, ...] = (ARABIC, GOOGLE_SAMPLE, DIGITS, SPEECH_COMMANDS)
