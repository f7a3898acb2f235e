"""Experiments of keyword spotting: ``manyheads kws train NAME``.

- ``arabic-…`` and ``pixel-digits-…``: the data come with a clone.
- ``fsdd-…``: needs the Free Spoken Digit Dataset (FSDD). ``fsdd-<speaker>-…`` leaves this speaker out of training. The
  Arabic set is auxiliary training data: more speakers, of other words; ``…-alone-…`` does without it. All digit
  networks are also tested on the ten digits of the Google sample, which is not used for training.
- ``speech-commands-…``: needs Speech Commands v2; the recipe of the code of LMUFormer.

The recipes were chosen on the validation part of the Arabic set and on two of the six speakers of FSDD, george and
jackson. Training has a fixed number of epochs, and keeps the last weights or their average over the last quarter (SWA).
So nothing is chosen on a part whose result is then reported.
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
    # Shift, quiet and noise: the clips of FSDD are cut to the word, those of other sets are not.
    replace(LIGHT, shift=12, floor=2.0, noise=0.5, snr=(10.0, 50.0)),
    lead=12,
    trail=24,
    quiet=5e-6,
    longest=104,
    elsewhere="gsc_v001_sample",
)
# The Arabic set adds thirty speakers of other words.
DIGITS = replace(ALONE, beside="arabic_sc_10w")
ARABIC = ClipSet(
    "arabic", Features(), replace(LIGHT, tempo=1.2, warp=1.2, equaliser=0.5, noise=0.4, shift=4), epoch_clips=512
)
# For streams: keywords after noise of varying length, distractor words and distractor sounds.
ARABIC_STREAM = SpottingSet(
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

# As in the code of LMUFormer: masks of at most 48 of 128 bins and 48 of 98 frames; here the same shares. Its noise and
# mixup work on samples, here they work on power spectra.
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
    """Recipe for small data sets: cross-entropy, AdamW with one-cycle learning rate."""
    return Experiment(
        name,
        data,
        model,
        ClipLoss(spike_weight=1.0 if model.spiking else 0.0),
        replace(ONE_CYCLE, learning_rate=rate),
        Budget(epochs=epochs, batch_size=64, keep=keep),
    )


def arabic_experiment(name: str, data: ClipSet, model: LMUFormerConfig, epochs: int) -> Experiment:
    """Recipe for small data sets with weights averaged over the last quarter of training (SWA)."""
    return clip_experiment(name, data, model, epochs, 6e-3 if model.spiking else 3e-3, "mean")


def commands_experiment(name: str, model: LMUFormerConfig, published: float) -> Experiment:
    """Recipe of the code of LMUFormer on Speech Commands v2 with 35 words; keeps the best epoch on the validation list.

    Differs in 40 mel bins instead of 128, and in no look-ahead.
    """
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
    """Return all experiments of keyword spotting."""
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
