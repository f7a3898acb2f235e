"""Training data for keyword spotting: clips as power spectra in memory, augmented batch by batch.

A data set is read once per run. If its spectra need more than :data:`SPECTRA_BYTES`, the samples are kept instead
(2 bytes each), and each batch computes its spectra. Changes made to clips are counted and reported on standard error.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError, DataError
from manyheads.kws.audio.augment import NONE, Augmentation, augmented, place, spec_augment, warped_filterbanks
from manyheads.kws.audio.clips import Clip, clips_of, hold_out, labels_of, only
from manyheads.kws.audio.features import Features, LogMel, RunningMean
from manyheads.kws.audio.reading import Sound, read_sound
from manyheads.kws.audio.split import parted, separation
from manyheads.lab.data.files import digest_of
from manyheads.lab.training.environment import first_process
from manyheads.lab.training.experiment import Splits

SPECTRA_BYTES = 1 << 30
PLAIN = Features()


class ClipBatch(NamedTuple):
    """A batch of clips: log-mel frames with the running mean subtracted, lengths and targets."""

    frames: Tensor  # (B, T, M)
    lengths: Tensor  # (B,) valid frames of each clip
    target: Tensor  # (B, C) probabilities of the labels


class Spectra:
    """Power spectra of all clips of a data set, indexed by clip."""

    def __init__(self, sounds: Sequence[Sound], features: Features, *, limit: int = SPECTRA_BYTES) -> None:
        self.front = LogMel(features)
        self.lengths = torch.tensor([features.frames(len(sound.samples)) for sound in sounds])
        total = int(self.lengths.sum()) * (features.fft_samples // 2 + 1) * 4
        self.cached = total <= limit
        if self.cached:
            parts = [self._power(torch.from_numpy(sound.samples)) for sound in sounds]
            self.sizes = self.lengths
        else:
            parts = [(torch.from_numpy(s.samples) * 32767).round().clamp(-32768, 32767).short() for s in sounds]
            self.sizes = torch.tensor([len(part) for part in parts])
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.content = torch.cat(parts)

    def _power(self, samples: Tensor) -> Tensor:
        features = self.front.features
        return self.front.power(samples.unfold(-1, features.window_samples, features.hop_samples))

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return power spectra ``(B, T, F)`` padded to the longest clip, and lengths ``(B,)``.

        The padding repeats the last frame of a clip, or is silence.
        """
        sizes, lengths = self.sizes[indices], self.lengths[indices]
        step = torch.arange(int(sizes.max()))
        rows = self.starts[indices].unsqueeze(1) + step.minimum(sizes.unsqueeze(1) - 1)
        gathered = self.content[rows]
        if self.cached:
            return gathered, lengths
        inside = step < sizes.unsqueeze(1)
        return self._power(gathered.float() / 32767 * inside), lengths


@dataclass(frozen=True)
class ClipPart:
    """Clips of one split. ``augmentation`` is None for evaluation: clips are not changed."""

    spectra: Spectra
    indices: Tensor  # into the spectra
    targets: Tensor  # (all clips of the spectra,) index of the label
    labels: tuple[str, ...]
    front: FrontEnd
    augmentation: Augmentation | None = None
    words: tuple[str, ...] = ()
    """Labels allowed as predictions; empty: all of them."""
    elsewhere: ClipPart | None = None
    """Clips of another data set, evaluated as well."""

    def __len__(self) -> int:
        return len(self.indices)

    def heard_frames(self) -> Tensor:
        """Return the number of frames of each clip ``(N,)``."""
        return self.spectra.lengths[self.indices]

    def batch(self, indices: Tensor) -> ClipBatch:
        chosen = self.indices[indices]
        power, lengths = self.spectra.batch(chosen)
        target = torch.nn.functional.one_hot(self.targets[chosen], len(self.labels)).float()
        return self.front(power, lengths, target, self.augmentation)


class FrontEnd:
    """From power spectra to network input: quiet around the clip, augmentation, log-mel bins, running mean."""

    def __init__(
        self, features: Features, tau: float, lead: int, trail: int, quiet: float, widest: float, longest: int
    ) -> None:
        self.lead, self.trail, self.quiet, self.longest = lead, trail, quiet, longest
        self.log_mel, self.mean = LogMel(features), RunningMean(tau)
        self.filterbanks = warped_filterbanks(features, widest)

    def __call__(self, power: Tensor, lengths: Tensor, target: Tensor, change: Augmentation | None) -> ClipBatch:
        if change is None:
            batch = len(power)
            onset, level = torch.full((batch,), self.lead), torch.full((batch,), self.quiet)
            placed = place(power, lengths, torch.ones(batch), onset, self.trail, level)
            frames, _ = self.mean(self.log_mel.log_mel(placed.power))
            return ClipBatch(frames, placed.lengths, target)
        made = augmented(
            power,
            lengths,
            target,
            change,
            self.filterbanks,
            lead=self.lead,
            trail=self.trail,
            quiet=self.quiet,
            longest=self.longest,
        )
        frames, _ = self.mean(made.frames)
        return ClipBatch(spec_augment(frames, made.lengths, change), made.lengths, made.target)


@dataclass(frozen=True)
class ClipSet:
    """Data set of keyword clips."""

    set: str
    """Name of a data set, or a folder of label/*.wav."""
    features: Features = PLAIN
    """Log-mel features."""
    augmentation: Augmentation = NONE
    """Augmentation of training clips."""
    held_out: str = ""
    """Speaker to leave out: all clips of this speaker are the test part, all others are for training. There is then no
    validation part."""
    labels: tuple[str, ...] = ()
    """Words to use. Default: all."""
    tau: float = 50.0
    """Time constant of the running mean in frames."""
    lead: int = 0
    """Quiet frames before each clip."""
    trail: int = 0
    """Quiet frames after each clip."""
    quiet: float = 1e-6
    """Power of each spectral line in the quiet frames."""
    longest: int = 0
    """Largest number of frames of a training clip; 0 for no limit. Evaluation always uses whole clips."""
    beside: str = ""
    """Auxiliary data set, used for training only: more speakers for the same sounds. Each of its words gets its own
    label that begins with an underscore. A clip is never classified as one of these labels, and the spotter file does
    not contain them."""
    elsewhere: str = ""
    """Second test set: all its clips of these words are evaluated as well, and not used for anything else."""
    epoch_clips: int = 0
    """Smallest number of training clips in an epoch. The clips of a smaller set are repeated, each time with a new
    augmentation."""

    def content(self) -> str | None:
        """Return the digest of own folders; None if all sets are known by name."""
        return digest_of(*(name or None for name in (self.set, self.beside, self.elsewhere)))

    def clips(self) -> list[Clip]:
        """Return the clips of the set, split. Report on standard error which parts share speakers.

        Raises :class:`ArgumentError` for labels that the set does not have.
        """
        clips = parted(clips_of(self.set))
        if self.labels:
            absent = sorted(set(self.labels) - set(labels_of(clips)))
            if absent:
                raise ArgumentError(f"labels: found {absent[0]!r}, expected some of {', '.join(labels_of(clips))}")
            clips = only(clips, self.labels)
        clips = hold_out(clips, self.held_out) if self.held_out else clips
        if first_process():
            print(f"{self.set}: {separation(clips)}", file=sys.stderr)
        return clips

    def repeats(self, clips: Sequence[Clip]) -> int:
        """Return how often each training clip is used in an epoch."""
        count = sum(clip.split == "train" for clip in clips)
        return max(1, -(-self.epoch_clips // max(1, count)))

    def open(self) -> Splits:
        """Read all clips and return the splits. Raises :class:`DataError` with the path of a clip that is unusable."""
        clips = self.clips()
        words, times = labels_of(clips), dict.fromkeys(labels_of(clips), self.repeats(clips))
        if self.beside:
            clips += [replace(clip, label=f"_{clip.label}", split="train") for clip in clips_of(self.beside)]
        splits = splits_of(clips, self, words=words, times=times)
        if not self.elsewhere:
            return splits
        other = [replace(clip, split="test") for clip in only(clips_of(self.elsewhere), words)]
        absent = sorted(set(words) - set(labels_of(other)))
        if absent:
            raise DataError(f"{self.elsewhere}: found no clip of {', '.join(absent)}, expected all words of {self.set}")
        scored = splits_of(other, replace(self, set=self.elsewhere), splits.facts["labels"], words).test
        assert isinstance(splits.test, ClipPart)
        assert isinstance(scored, ClipPart)
        return replace(splits, test=replace(splits.test, elsewhere=scored))


def splits_of(
    clips: Sequence[Clip],
    config: ClipSet,
    labels: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    *,
    times: Mapping[str, int] | None = None,
    made: Sequence[tuple[str, Sound]] = (),
) -> Splits:
    """Read clips and return train, validation and test parts.

    Args:
        clips: clips with their split.
        config: features, augmentation and quiet around the clips.
        labels: labels of the network. Default: those of ``clips`` and ``made``.
        words: labels allowed as predictions. Default: all.
        times: how often the training clips of a label are used in an epoch. Default: once.
        made: synthetic sounds with their labels. Each is used once in an epoch, for training only.
    """
    sounds = read_clips(clips, config.features)
    notes = notes_of(sounds)
    for note in notes:
        print(f"{config.set}: {note}", file=sys.stderr)
    found = [*((clip.label, clip.split) for clip in clips), *((label, "train") for label, _ in made)]
    sounds += [sound for _, sound in made]
    labels = labels or tuple(sorted({label for label, _ in found}))
    targets = torch.tensor([labels.index(label) for label, _ in found])
    often = torch.tensor([*((times or {}).get(clip.label, 1) for clip in clips), *(1 for _ in made)])
    spectra = Spectra(sounds, config.features)
    front = FrontEnd(
        config.features, config.tau, config.lead, config.trail, config.quiet, config.augmentation.warp, config.longest
    )

    def part(split: str, augmentation: Augmentation | None) -> ClipPart:
        chosen = torch.tensor([i for i, (_, name) in enumerate(found) if name == split], dtype=torch.long)
        chosen = chosen.repeat_interleave(often[chosen]) if split == "train" else chosen
        return ClipPart(spectra, chosen, targets, labels, front, augmentation, words or labels)

    facts = {
        "labels": labels,
        "words": words or labels,
        "bins": config.features.bins,
        "features": config.features,
        "tau": config.tau,
        "lead": config.lead,
        "trail": config.trail,
        "quiet": config.quiet,
        "set": config.set,
        "held_out": config.held_out,
        "notes": notes,
    }
    return Splits(part("train", config.augmentation), part("validation", None), part("test", None), facts)


def read_clips(clips: Sequence[Clip], features: Features) -> list[Sound]:
    """Read all clips at the sample rate of the features. Raises :class:`DataError` for a clip shorter than a frame."""
    sounds = []
    for clip in clips:
        sound = read_sound(clip.path, features.sample_rate)
        if features.frames(len(sound.samples)) < 1:
            raise DataError(
                f"{clip.path}: found {len(sound.samples)} samples at {features.sample_rate} Hz, expected at least "
                f"{features.window_samples}: one window; remove the clip or lengthen it"
            )
        sounds.append(sound)
    return sounds


def notes_of(sounds: Sequence[Sound]) -> tuple[str, ...]:
    """Return changes made to clips and warnings about them, each with the number of clips."""
    counts = Counter(note.split(":")[0] for sound in sounds for note in sound.notes)
    return tuple(f"{count} of {len(sounds)} clips: {note}" for note, count in sorted(counts.items()))
