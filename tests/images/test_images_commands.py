"""Training, prediction and the classifier file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from manyheads.core.backbones.presets import BACKBONES
from manyheads.core.errors import ArgumentError, CheckpointError, DataError
from manyheads.images import ImageClassifier
from manyheads.images.classifier import FILE, newest_classifier
from manyheads.images.training.experiments import BackboneModel, experiments
from manyheads.lab.cli.main import main
from tests.images.test_pictures import labelled


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    status = main(["images", *arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def test_every_backbone_has_a_nano_preset_on_digits():
    names = [e.name for e in experiments()]
    assert {f"digits-{name}-nano" for name in BACKBONES} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_nano_preset_trains_on_digits(here, capsys, name):
    status, report, _ = run(capsys, "train", f"digits-{name}-nano", "--smoke")
    assert status == 0
    assert report["mean"]["pictures"] == 450
    found = ImageClassifier.load(newest_classifier())
    assert found.labels == tuple("0123456789")
    assert found.model.info.name == name


def test_a_folder_is_trained_on_and_a_picture_is_predicted(here, capsys):
    labelled(here / "photos", count=12)
    status, _, _ = run(
        capsys,
        "train",
        "folder-vit-nano",
        "data.folder=photos",
        "budget.batch_size=4",
        "budget.epochs=1",
        "--seeds",
        "1",
    )
    assert status == 0
    Image.new("LA", (40, 30), (100, 50)).save(here / "photo.png")
    status, (found,), err = run(capsys, "predict", "photo.png", "--plot", "prediction.png")
    assert status == 0
    assert found["label"] in ("cat", "dog")
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert "transparent pixels laid on white" in err
    assert (here / "prediction.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "photo.png"), "found no classifier.safetensors"),
        (("predict",), "pictures"),
        (("train", "folder-vit-nano"), "data.folder: found none"),
        (("train", "digits-vit-nano", "model.layer=nothing"), "unknown layer 'nothing'"),
        (("train", "digits-vit-nan"), "did you mean 'digits-vit-nano'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(here, capsys, arguments, words):
    status, document, err = run(capsys, *arguments)
    assert (status, document) == (2, None)
    assert words in err
    assert "Traceback" not in err


def test_changed_pictures_are_trained_on_again(here, capsys):
    words = ["train", "folder-vit-nano", "data.folder=photos", "budget.batch_size=4", "budget.epochs=1", "--seeds", "1"]
    labelled(here / "photos", count=8)
    _, first, _ = run(capsys, *words)
    _, again, err = run(capsys, *words)
    assert again["hash"] == first["hash"]
    assert "finished before, read from" in err
    Image.new("RGB", (9, 7)).save(here / "photos" / "cat" / "new.png")
    _, changed, _ = run(capsys, *words)
    assert changed["hash"] != first["hash"]


def test_a_classifier_of_a_smoke_test_is_taken_only_alone(tmp_path):
    for name in ("digits-vit-nano", "digits-vit-nano-smoke"):
        place = tmp_path / name / "0" / "seed-1" / FILE
        place.parent.mkdir(parents=True)
        place.touch()
        assert newest_classifier(tmp_path).parts[-4] == "digits-vit-nano"
    (tmp_path / "digits-vit-nano" / "0" / "seed-1" / FILE).unlink()
    assert newest_classifier(tmp_path).parts[-4] == "digits-vit-nano-smoke"


def test_bytes_pillow_images_and_numbers_give_the_same_prediction():
    torch.manual_seed(0)
    model = BACKBONES["vit"](classes=2, channels=3, dim=8, depth=1, heads=2, image_size=8, patch=4)
    classifier = ImageClassifier(model, ["a", "b"], 8, [0.5] * 3, [0.25] * 3)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = classifier.predict([pixels, Image.fromarray(pixels), pixels / 255])
    assert found[0].probabilities == found[1].probabilities == found[2].probabilities
    for one in ("photo.png", pixels, Image.fromarray(pixels)):
        with pytest.raises(ArgumentError, match="expected a list of pictures"):
            classifier.predict(one)


def test_a_classifier_file_gives_the_same_predictions(tmp_path):
    torch.manual_seed(0)
    model = BACKBONES["vit"](classes=2, channels=1, dim=8, depth=1, heads=2, image_size=8, patch=4)
    classifier = ImageClassifier(model, ["a", "b"], 8, [0.5], [0.25])
    picture = np.random.default_rng(0).random((20, 30))
    classifier.save(tmp_path / "x.safetensors")
    again = ImageClassifier.load(tmp_path / "x.safetensors")
    assert again.predict([picture]) == classifier.predict([picture])
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="digest"):
        ImageClassifier.load(tmp_path / "x.safetensors")


def test_bad_arrays_raise_in_words():
    model = BACKBONES["vit"](classes=2, channels=1, dim=8, depth=1, heads=2, image_size=8, patch=4)
    classifier = ImageClassifier(model, ["a", "b"], 8, [0.5], [0.25])
    for wrong, words in (
        (np.full((4, 4), 7.0), "outside 0 to 1"),
        (np.zeros((4, 4, 3)), r"expected \(height, width, 1\)"),
    ):
        with pytest.raises(ArgumentError, match=words):
            classifier.predict([wrong])
    with pytest.raises(DataError, match="found no file"):
        classifier.predict(["absent.png"])


def test_a_layer_can_be_chosen_by_name():
    class Splits:
        facts = {"labels": ["a", "b"], "channels": 1, "image_size": 32}

    small = BackboneModel("vit-tiny", layer="hyena-nd").build(Splits())
    assert small.config["pool"] == "mean"
    built = BackboneModel("vit-nano", layer="axial").build(Splits())
    assert [one.config["axis"] for one in built.stack.layers] == [0, 1, 0]
