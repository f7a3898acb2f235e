"""Loss and metrics; training learns words, resumes exactly, and writes a spotter."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.kws import KeywordSpotter
from manyheads.kws.audio.augment import LIGHT
from manyheads.kws.audio.features import Features
from manyheads.kws.models import LMUFormerConfig
from manyheads.kws.training.data import ClipBatch, ClipSet
from manyheads.kws.training.digit_sequences import PixelDigits
from manyheads.kws.training.experiments import SPEAKERS, experiments
from manyheads.kws.training.objective import ClipLoss, clip_scores, mean_logits, score
from manyheads.lab.training.experiment import Budget, Experiment, find_experiment
from manyheads.lab.training.loop import fit_supervised, train_model
from manyheads.lab.training.optimisers import Optimiser
from manyheads.lab.training.run import run

from .sounds import WORDS, speech_commands_folder, word_folder

SMALL = LMUFormerConfig(stem="1d", channels=12, kernels=(3, 3), order=4, window=20, memories=2, ratio=1)


@pytest.fixture
def words(tmp_path):
    data = ClipSet(
        str(word_folder(tmp_path / "words", speakers=30)),
        Features(sample_rate=8000, bins=20),
        replace(LIGHT, position=2),
        trail=6,
    )
    cycle = Optimiser("adamw", 1e-2, weight_decay=0.01, schedule="one-cycle")
    return Experiment("words", data, SMALL, ClipLoss(), cycle, Budget(epochs=8, batch_size=16, keep="last"), seeds=(1,))


class Fixed(nn.Module):
    """Returns fixed logits."""

    def __init__(self, logits, aux=None, lookahead=0, stride=1):
        super().__init__()
        self.logits, self.aux, self.lookahead, self.stride = logits, aux or {}, lookahead, stride

    def forward(self, frames, *, ends=None):
        return self


def test_mean_logits_use_the_valid_steps_of_a_clip():
    logits = torch.arange(12.0).view(2, 6, 1)
    assert mean_logits(logits, torch.tensor([6, 2]), 1).flatten().tolist() == [2.5, 6.5]
    assert mean_logits(logits, torch.tensor([12, 5]), 2).flatten().tolist() == [2.5, 6.5]


def test_clip_shorter_than_a_step_has_one_step():
    assert mean_logits(torch.arange(3.0).view(1, 3, 1), torch.tensor([1]), 2).item() == 0


def test_cross_entropy_with_smoothed_mixed_labels():
    logits = torch.tensor([[[1.0, -2.0, 0.5], [3.0, 0.0, 0.5]]])
    batch = ClipBatch(torch.zeros(1, 2, 4), torch.tensor([2]), torch.tensor([[0.75, 0.25, 0.0]]))
    mean, smooth = [2.0, -1.0, 0.5], 0.1
    log_sum = math.log(sum(map(math.exp, mean)))
    target = [(1 - smooth) * t + smooth / 3 for t in (0.75, 0.25, 0.0)]
    expected = -sum(t * (z - log_sum) for t, z in zip(target, mean, strict=True))
    assert ClipLoss(label_smoothing=smooth).loss(Fixed(logits), batch).item() == pytest.approx(expected)


def test_binary_loss_is_per_label():
    batch = ClipBatch(torch.zeros(1, 1, 4), torch.tensor([1]), torch.tensor([[1.0, 0.4]]))
    loss = ClipLoss("binary").loss(Fixed(torch.tensor([[[2.0, -1.0]]])), batch)
    a, b = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    expected = -(math.log(a) + 0.4 * math.log(b) + 0.6 * math.log(1 - b)) / 2
    assert loss.item() == pytest.approx(expected)


def test_spike_penalty_applies_above_the_rate_only():
    batch = ClipBatch(torch.zeros(1, 1, 4), torch.tensor([1]), torch.tensor([[1.0, 0.0]]))
    model = Fixed(torch.zeros(1, 1, 2), {"a": torch.tensor([0.05]), "b": torch.tensor([0.3])})
    plain = ClipLoss().loss(model, batch)
    charged = ClipLoss(spike_weight=2.0, spike_rate=0.1).loss(model, batch)
    assert (charged - plain).item() == pytest.approx(2 * (0 + 0.2**2) / 2, rel=1e-5)


def test_scores_skip_the_look_ahead():
    logits = torch.arange(6.0).view(1, 6, 1)  # the first four frames' worth is not meant for the clip
    batch = ClipBatch(torch.zeros(1, 8, 4), torch.tensor([8]), torch.ones(1, 1))
    assert clip_scores(Fixed(logits, lookahead=4, stride=2), batch)[0].item() == 3.5


def test_scores_do_not_depend_on_other_clips_in_the_batch(words):
    splits = words.data.open()
    torch.manual_seed(0)
    model = words.model.build(splits).eval()
    every = score(model, splits.test)
    for row in range(len(splits.test)):
        alone = splits.test.batch(torch.tensor([row]))
        assert clip_scores(model, alone)[0].argmax() == every.predicted[row]
        assert alone.target.argmax() == every.truth[row]


def test_training_learns_words_and_the_spotter_gives_the_same_predictions(words, tmp_path, capsys):
    model, result = train_model(words, 1, tmp_path / "run", progress=False)
    assert result.metrics["accuracy"] > 80  # chance is 33
    spotter = KeywordSpotter.load(tmp_path / "run" / "spotter.safetensors")
    assert "spotter.safetensors" in capsys.readouterr().err
    from manyheads.kws.audio.clips import clips_of
    from manyheads.kws.audio.reading import read_sound

    found = score(model, words.data.open().test)
    clips = [clip for clip in clips_of(words.data.set) if clip.split == "test"]
    said = [spotter.predict(read_sound(clip.path).samples).label for clip in clips]
    assert said == [spotter.labels[i] for i in found.predicted]
    right = np.mean([a == clip.label for a, clip in zip(said, clips, strict=True)])
    assert result.metrics == {"accuracy": pytest.approx(100 * right), "clips": len(clips)}
    assert spotter.trained["set"] == words.data.set


def test_spotter_file_has_no_auxiliary_labels(words, tmp_path):
    other = word_folder(tmp_path / "other", speakers=30)
    beside = replace(words, data=replace(words.data, beside=str(other)), budget=replace(words.budget, epochs=2))
    model, result = train_model(beside, 1, tmp_path / "run", progress=False)
    assert len(model.labels) == 6
    spotter = KeywordSpotter.load(tmp_path / "run" / "spotter.safetensors")
    assert spotter.labels == tuple(sorted(WORDS))
    part = beside.data.open().test
    batch = part.batch(torch.arange(len(part)))
    with torch.no_grad():
        kept = clip_scores(spotter.network, batch)[0]
        torch.testing.assert_close(kept, clip_scores(model, batch)[0][:, 3:])
    truth = torch.tensor([part.words.index(part.labels[i]) for i in batch.target.argmax(1)])
    assert result.metrics["accuracy"] == pytest.approx(100 * (kept.argmax(1) == truth).double().mean().item())


def test_resumed_run_gives_the_same_figures(words, tmp_path):
    """The augmentation also continues as in an uninterrupted run."""
    whole = replace(words, budget=replace(words.budget, epochs=3, checkpoint_every=2))
    expected, _ = train_model(whole, 1, tmp_path / "whole", progress=False)

    class Broken(ClipLoss):
        calls = 0

        def loss(self, model, batch):
            Broken.calls += 1
            if Broken.calls == 8:
                raise KeyboardInterrupt
            return super().loss(model, batch)

    broken = replace(whole, objective=Broken())
    with pytest.raises(KeyboardInterrupt):
        train_model(broken, 1, tmp_path / "broken", progress=False)
    assert list((tmp_path / "broken" / "checkpoints").iterdir())
    resumed, _ = train_model(broken, 1, tmp_path / "broken", progress=False)
    for a, b in zip(expected.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert a.equal(b)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert lines[0] == lines[1]


def test_spiking_networks_report_zero_activations(words):
    spiking = replace(words, model=replace(SMALL, spiking=True), budget=replace(words.budget, epochs=1))
    model, result = train_model(spiking, 1, None, progress=False)
    found = score(model, words.data.open().test)
    neurons = {"stem1": 12, "position": 12, "mixer": 12, "input": 2, "memory": 8, "hidden": 12, "ffn1": 12, "ffn2": 12}
    neurons["head"] = 12
    assert set(found.rates) == set(neurons)
    spikes = sum(rate * neurons[name] for name, rate in found.rates.items()) / sum(neurons.values())
    assert result.metrics["zeros"] == pytest.approx(100 * (1 - spikes))
    assert 0.005 < spikes < 0.9


def test_held_out_speakers_require_the_last_weights(words):
    held = replace(words, data=replace(words.data, held_out="s03"))
    assert fit_supervised(replace(held, budget=replace(held.budget, epochs=1)), 1, None, progress=False).epochs == 1
    with pytest.raises(ArgumentError, match="without a validation part, expected 'last'"):
        fit_supervised(replace(held, budget=replace(held.budget, keep="best")), 1, None, progress=False)


def test_experiment_names_and_hashes_are_unique():
    every = experiments()
    names = [e.name for e in every]
    assert len(set(names)) == len({e.hash for e in every}) == len(every)
    assert {f"fsdd-{speaker}-lmuformer" for speaker in SPEAKERS} <= set(names)
    assert {"arabic-lmuformer", "arabic-spiking-lmuformer", "fsdd-lmuformer", "speech-commands-lmuformer"} <= set(names)
    with pytest.raises(UnknownNameError, match="arabic-lmuformer"):
        find_experiment("arabic-lmuformr", every)


def test_folds_differ_only_in_the_speaker():
    every = experiments()
    folds = [find_experiment(f"fsdd-{speaker}-lmuformer", every) for speaker in SPEAKERS]
    assert [fold.data.held_out for fold in folds] == list(SPEAKERS)
    same = [replace(fold, name="", data=replace(fold.data, held_out="")) for fold in folds]
    assert all(fold == same[0] for fold in same)


def test_small_networks_have_under_100000_parameters_and_no_look_ahead():
    for name in ("fsdd-lmuformer", "fsdd-theo-lmuformer"):
        config = find_experiment(name, experiments()).model
        network = config.make(40, tuple(map(str, range(10))))
        assert network.parameter_count <= 100_000
        assert network.lookahead == 0


def test_full_recipes_have_published_figures():
    every = {e.name: e for e in experiments()}
    assert every["speech-commands-lmuformer"].source.reported == {"accuracy": 96.53}
    assert every["speech-commands-spiking-lmuformer"].source.reported == {"accuracy": 96.12}


@pytest.mark.parametrize("name", ["arabic-lmuformer", "arabic-spiking-lmuformer", "pixel-digits-lmuformer"])
def test_short_runs_give_figures(name, tmp_path):
    report = run(find_experiment(name, experiments()).smoke(), root=tmp_path, progress=False)
    assert 0 <= report.mean["accuracy"] <= 100
    assert report.cpu_seconds < 20
    stored = json.loads(next(tmp_path.glob("*/*/report.json")).read_text())
    assert stored["mean"] == dict(report.mean)


@pytest.mark.filterwarnings("ignore:lmuformer. order. found 256 with", "ignore:lmuformer. order. found 512 with")
@pytest.mark.parametrize("name", ["speech-commands-lmuformer", "speech-commands-spiking-lmuformer"])
def test_full_recipe_runs_on_a_folder_of_that_layout(name, tmp_path, monkeypatch):
    speech_commands_folder(tmp_path / "kws" / "speech_commands_v2")
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    experiment = find_experiment(name, experiments())
    short = replace(experiment, budget=replace(experiment.budget, batch_size=6)).smoke()
    assert short.optimiser == experiment.optimiser
    metrics = fit_supervised(short, 1, tmp_path / "run", progress=False).metrics
    assert metrics["clips"] == 3
    assert KeywordSpotter.load(tmp_path / "run" / "spotter.safetensors").labels == tuple(sorted(WORDS))


def test_permuted_digits_are_learnt():
    """A network without memory of the sequence stays at chance, 10 percent."""
    config = LMUFormerConfig(stem="1d", channels=24, kernels=(1,), stride=1, order=16, window=64, memories=2, ratio=2)
    budget = Budget(epochs=12, batch_size=64, keep="last")
    experiment = Experiment("pixels", PixelDigits(), config, ClipLoss(), Optimiser("adamw", 1e-2), budget)
    assert fit_supervised(experiment, 1, None, progress=False).metrics["accuracy"] > 60
