"""Loss and metrics of clip classification: the prediction is the label with the largest mean logit over time.

The mean includes the steps of a clip and of the quiet after it. Evaluation uses whole clips without augmentation, with
the quiet frames of the data set around them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.kws.training.data import ClipBatch, ClipPart
from manyheads.lab.training.environment import first_process
from manyheads.lab.training.experiment import Splits

if TYPE_CHECKING:
    from manyheads.kws.models import Network

BATCH = 100


def mean_logits(logits: Tensor, lengths: Tensor, stride: int) -> Tensor:
    """Average logits ``(B, T, C)`` over the steps of the first ``lengths`` frames, at least one step: ``(B, C)``."""
    steps = torch.div(lengths, stride, rounding_mode="floor").clamp(1, logits.shape[1])
    valid = torch.arange(logits.shape[1], device=logits.device) < steps.unsqueeze(1)
    return (logits * valid.unsqueeze(2)).sum(1) / steps.unsqueeze(1)


def clip_scores(model: Any, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return mean logits ``(B, C)`` and spike rates by site.

    Padding after the frames of a clip is not read. So logits, spike rates and batch norm statistics do not depend on
    the lengths of the other clips in the batch.
    """
    ahead = model.lookahead
    frames = functional.pad(batch.frames, (0, 0, 0, ahead)) if ahead else batch.frames
    alike = not ahead and bool((batch.lengths == frames.shape[1]).all())
    output = model(frames, ends=None if alike else batch.lengths.clamp_min(model.stride))
    return mean_logits(output.logits[:, ahead // model.stride :], batch.lengths, model.stride), output.aux


@dataclass(frozen=True)
class ClipLoss:
    """Classification loss with an optional penalty on high spike rates."""

    form: Literal["cross-entropy", "binary"] = "cross-entropy"
    """Cross-entropy over the labels, or binary cross-entropy per label, as in the code of LMUFormer."""
    label_smoothing: float = 0.05
    """Label smoothing; for cross-entropy only."""
    spike_weight: float = 0.0
    """Weight of the spike penalty: squared excess of the spike rate over ``spike_rate``, averaged over the sites."""
    spike_rate: float = 0.1
    """Spike rate from which on the penalty applies, per step and neuron."""

    def loss(self, model: nn.Module, batch: ClipBatch) -> Tensor:
        """Return the scalar loss of a batch."""
        scores, rates = clip_scores(model, batch)
        if self.form == "binary":
            loss = functional.binary_cross_entropy_with_logits(scores, batch.target)
        else:
            loss = functional.cross_entropy(scores, batch.target, label_smoothing=self.label_smoothing)
        if self.spike_weight and rates:
            above = torch.stack([rate.mean() for rate in rates.values()]) - self.spike_rate
            loss = loss + self.spike_weight * above.clamp_min(0).square().mean()
        return loss

    def metrics(self, model: nn.Module, part: ClipPart) -> dict[str, float]:
        """Return accuracy in percent and number of clips.

        For a spiking network also ``zeros``: the share of activations that are zero, in percent, over all neurons and
        steps. For a second test set the same figures, with the prefix ``elsewhere_``.
        """
        if len(part) == 0:
            return {}
        found = score(model, part)
        zeros = {} if found.silent is None else {"zeros": 100.0 * found.silent}
        metrics = {"accuracy": 100.0 * found.accuracy, "clips": float(len(part)), **zeros}
        other = getattr(part, "elsewhere", None)
        elsewhere = {} if other is None else self.metrics(model, other)
        return {**metrics, **{f"elsewhere_{name}": value for name, value in elsewhere.items()}}

    def after(self, model: nn.Module, splits: Splits, folder: Path) -> None:
        """Write ``spotter.safetensors`` to the run's folder, for ``manyheads kws stream``, ``eval`` and ``export``."""
        if "features" not in splits.facts:
            return
        from manyheads.kws.models import Network
        from manyheads.kws.streaming.spotter import KeywordSpotter
        from manyheads.kws.streaming.stream_state import Surround

        assert isinstance(model, Network)
        facts = splits.facts
        surround = Surround(facts["lead"], facts["trail"], facts["quiet"])
        path = folder / "spotter.safetensors"
        trained: dict[str, Any] = {"experiment": folder.parents[1].name, "seed": folder.name.removeprefix("seed-")}
        trained |= {name: facts[name] for name in ("set", "held_out", "notes")}
        network = only_labels(model, facts["words"])
        KeywordSpotter(network, facts["features"], tau=facts["tau"], surround=surround, trained=trained).save(path)
        if first_process():
            print(f"spotter: {path}", file=sys.stderr)


@dataclass(frozen=True)
class Scored:
    """Predictions of a network on the clips of a part, in their order."""

    predicted: Tensor  # (N,)
    truth: Tensor  # (N,)
    rates: dict[str, float]  # site -> spike rate, per step and neuron
    silent: float | None  # share of activations that are zero; None for a network without spikes

    @property
    def accuracy(self) -> float:
        return (self.predicted == self.truth).double().mean().item()


@torch.no_grad()
def score(model: Any, part: ClipPart) -> Scored:
    """Predict every clip of a part, in batches of similar length."""
    device = next(model.parameters()).device
    order = part.heard_frames().argsort(stable=True)
    predicted = torch.empty(len(part), dtype=torch.long)
    truth = torch.empty(len(part), dtype=torch.long)
    sums: dict[str, float] = defaultdict(float)
    words = getattr(part, "words", ()) or model.labels
    barred = torch.tensor([label not in words for label in model.labels], device=device)
    for indices in order.split(BATCH):
        batch = part.batch(indices)
        scores, rates = clip_scores(model, ClipBatch(*(tensor.to(device) for tensor in batch)))
        predicted[indices] = scores.masked_fill(barred, -torch.inf).argmax(1).cpu()
        truth[indices] = batch.target.argmax(1)
        for name, rate in rates.items():
            sums[name] += rate.mean().item() * len(indices)
    mean = {name: total / len(part) for name, total in sums.items()}
    return Scored(predicted, truth, mean, silent_share(model, mean))


def only_labels(network: Network, labels: Sequence[str]) -> Network:
    """Return the network with the outputs of these labels alone; itself if it has no others."""
    if tuple(labels) == network.labels:
        return network
    rows = [network.labels.index(label) for label in labels]
    weights = {
        name: tensor[rows] if name in ("head.weight", "head.bias") else tensor
        for name, tensor in network.state_dict().items()
    }
    smaller = network.config.make(network.bins, labels)
    smaller.load_state_dict(weights)
    return smaller.eval()


def silent_share(model: nn.Module, rates: dict[str, float]) -> float | None:
    """Return the share of zero activations, sites weighted by their neurons; None without spikes."""
    from manyheads.kws.models.sites import SpikeSite

    neurons = {site.name: site.neurons for site in model.modules() if isinstance(site, SpikeSite)}
    if not rates:
        return None
    return 1.0 - sum(rates[name] * neurons[name] for name in rates) / sum(neurons[name] for name in rates)
