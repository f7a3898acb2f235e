"""The experiments: ``manyheads kws train NAME``.

``arabic-…`` and ``pixel-digits-…`` run from a clone as it is; ``fsdd-…`` needs Free Spoken Digits, and
``speech-commands-…`` Speech Commands v2, with the recipe of LMUFormer's code. ``fsdd-<speaker>-…`` never hears that
speaker in training. The Arabic set is heard in training beside the digits, as more speakers of other words;
``…-alone-…`` goes without it. All digits are also scored on the ten digits of the Google sample, which they never hear.

What was chosen was chosen on the validation part of the Arabic set and on two of the six speakers of Free Spoken
Digits, george and jackson. Training has a fixed length and ends with the last weights, or with their mean over the last
quarter: nothing is chosen by a part that is then reported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from manyheads.kws.audio.augment import LIGHT, Augmentation
from manyheads.kws.audio.features import Features
from manyheads.kws.models import LMUFormerConfig
from manyheads.kws.models.published import published
from manyheads.kws.training.data import ClipSet
from manyheads.kws.training.digit_sequences import PixelDigits
from manyheads.kws.training.objective import ClipLoss
from manyheads.kws.training.stream_data import SpottingSet
from manyheads.lab.training.experiment import Budget, Experiment, Source
from manyheads.lab.training.optimisers import Optimiser

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
PAPER = "2402.04882"

ONE_CYCLE = Optimiser("adamw", 3e-3, weight_decay=0.02, schedule="one-cycle")
ALONE = ClipSet(
    "fsdd",
    Features(sample_rate=8000),
    replace(LIGHT, shift=12, floor=2.0, noise=0.5, snr=(10.0, 50.0)),  # its clips are cut to the word; others are not
    lead=12,
    trail=24,
    quiet=5e-6,
    longest=104,
    elsewhere="gsc_v001_sample",
)
DIGITS = replace(ALONE, beside="arabic_sc_10w")  # thirty more speakers, who say other words
ARABIC = ClipSet(
    "arabic", Features(), replace(LIGHT, tempo=1.2, warp=1.2, equaliser=0.5, noise=0.4, shift=4), epoch_clips=512
)
ARABIC_STREAM = SpottingSet(  # words after noise of any length, other words and other sounds beside them
    "arabic",
    Features(),
    replace(ARABIC.augmentation, noise=0.8, position=60, floor=2.0),
    lead=12,
    trail=12,
    epoch_clips=512,
    distractors=240,
)
SMALL = LMUFormerConfig()
BROAD = LMUFormerConfig(channels=96)

# LMUFormer's code: masks of at most 48 of 128 bins and 48 of 98 frames, the same shares here; its noise and its mixup
# are of samples, here of power spectra
PUBLISHED_CHANGES = Augmentation(
    noise=0.5, snr=(10.0, 40.0), masks=1, mask_bins=15, mask_frames=48, mixup=0.6, mixup_shape=10.0, shift=10
)
COMMANDS = ClipSet("speech_commands_v2", Features(), PUBLISHED_CHANGES)
PUBLISHED_OPTIMISER = Optimiser("adam", 2.5e-3, betas=(0.95, 0.999), schedule="steps")


def clip_experiment(
    name: str,
    data: ClipSet,
    model: LMUFormerConfig,
    epochs: int,
    rate: float = 3e-3,
    keep: Literal["last", "mean"] = "last",
) -> Experiment:
    """Our recipe for small sets."""
    return Experiment(
        name,
        data,
        model,
        ClipLoss(spike_weight=1.0 if model.spiking else 0.0),
        replace(ONE_CYCLE, learning_rate=rate),
        Budget(epochs=epochs, batch_size=64, keep=keep),
    )


def arabic_experiment(name: str, data: ClipSet, model: LMUFormerConfig, epochs: int) -> Experiment:
    """The same with the mean of the weights over the last quarter."""
    return clip_experiment(name, data, model, epochs, 6e-3 if model.spiking else 3e-3, "mean")


def commands_experiment(name: str, model: LMUFormerConfig, published: float) -> Experiment:
    """The recipe of the paper's code on Speech Commands v2, 35 words, but for 40 bins in place of 128 and no
    look-ahead; the best epoch by the validation list."""
    return Experiment(
        name,
        COMMANDS,
        model,
        ClipLoss("binary"),
        PUBLISHED_OPTIMISER,
        Budget(epochs=200, batch_size=128),
        source=Source(PAPER, "README of its code, Speech Commands v2, 35 classes", {"accuracy": published}),
    )


def experiments() -> list[Experiment]:
    """All of them."""
    spiking = replace(BROAD, spiking=True)
    pixels = LMUFormerConfig(stem="1d", channels=64, kernels=(1,), stride=1, order=32, window=64, memories=4)
    return [
        arabic_experiment("arabic-lmuformer", ARABIC, BROAD, 60),
        arabic_experiment("arabic-spiking-lmuformer", ARABIC, spiking, 90),
        arabic_experiment("arabic-spotter", ARABIC_STREAM, BROAD, 40),
        arabic_experiment("arabic-spiking-spotter", ARABIC_STREAM, spiking, 60),
        clip_experiment("fsdd-lmuformer", DIGITS, SMALL, 10),
        clip_experiment("fsdd-alone-lmuformer", ALONE, SMALL, 10),
        *(
            clip_experiment(f"fsdd-{speaker}-lmuformer", replace(DIGITS, held_out=speaker), SMALL, 10)
            for speaker in SPEAKERS
        ),
        *(
            clip_experiment(f"fsdd-{speaker}-alone-lmuformer", replace(ALONE, held_out=speaker), SMALL, 10)
            for speaker in SPEAKERS
        ),
        commands_experiment("speech-commands-lmuformer", published(spiking=False, lookahead=0), 96.53),
        commands_experiment("speech-commands-spiking-lmuformer", published(spiking=True, lookahead=0), 96.12),
        Experiment(
            "pixel-digits-lmuformer",
            PixelDigits(),
            pixels,
            ClipLoss(),
            ONE_CYCLE,
            Budget(epochs=30, batch_size=64, keep="last"),
        ),
    ]
