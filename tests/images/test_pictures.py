"""Reading of picture files and of labelled folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from manyheads.core.errors import ArgumentError, DataError
from manyheads.images.pictures.labelled import digits, folder, split
from manyheads.images.training.data import ImageData, standardised
from manyheads.lab.data.pictures import read_picture, resized


def test_grey_and_colour_are_converted_and_said(tmp_path):
    Image.new("L", (3, 2), 51).save(tmp_path / "grey.png")
    Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / "red.png")
    grey = read_picture(tmp_path / "grey.png", 3)
    assert grey.pixels.shape == (2, 3, 3)
    assert grey.pixels == pytest.approx(0.2)
    assert "grey, repeated" in grey.notes[0]
    red = read_picture(tmp_path / "red.png", 1)
    # ITU-R 601: 0.299 of red
    assert red.pixels == pytest.approx(0.299, abs=2 / 255)
    assert "converted to grey" in red.notes[0]
    assert read_picture(tmp_path / "red.png", 3).notes == ()


@pytest.mark.parametrize("value", [0, 257, 32896, 65535])
def test_16_bits_are_scaled_to_the_same_brightness(tmp_path, value):
    Image.fromarray(np.full((2, 2), value, np.uint16)).save(tmp_path / "deep.png")
    picture = read_picture(tmp_path / "deep.png", 1)
    assert picture.pixels == pytest.approx(value / 65535, abs=1 / 255)
    assert "16 bits a channel, reduced to 8" in picture.notes[0]


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    picture = read_picture(tmp_path / "clear.png", 3)
    assert picture.pixels == pytest.approx(1)
    assert "laid on white" in picture.notes[0]


def test_a_photo_is_turned_as_its_exif_data_says(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg", 3).pixels.shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"not a picture", "found no picture"), (b"", "found no picture"), (None, "found no file")],
)
def test_a_file_that_is_no_picture_raises_in_words(tmp_path, content, words):
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_picture(path, 3)


def test_a_truncated_picture_raises_in_words(tmp_path):
    path = tmp_path / "x.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match="damaged picture"):
        read_picture(path, 1)


def test_resizing_keeps_the_mean_of_a_smooth_picture():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None].repeat(64, 0)
    assert resized(ramp, 8).mean() == pytest.approx(0.5, abs=1e-3)
    assert resized(ramp, 64) is ramp


def test_digits_have_1797_pictures_in_three_parts():
    found = digits(8, (0.1, 0.25))
    sizes = {part: len(chosen) for part, chosen in found.parts.items()}
    assert sum(sizes.values()) == 1797 == len(found.targets)
    assert len(set(np.concatenate(list(found.parts.values())).tolist())) == 1797
    assert np.bincount(found.targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # the UCI page


def test_a_split_has_every_label_in_every_part_and_does_not_change():
    targets = np.repeat(np.arange(3), [10, 20, 40])
    parts = split(targets, (0.1, 0.25))
    assert [np.bincount(targets[own]).tolist() for own in parts.values()] == [[7, 13, 26], [1, 2, 4], [2, 5, 10]]
    assert split(targets, (0.1, 0.25))["test"].tolist() == parts["test"].tolist()


def labelled(root, parts=("",), labels=("cat", "dog"), count=4):
    generator = np.random.default_rng(0)
    for part in parts:
        for label in labels:
            (root / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 255, (9, 7, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{index}.png")
    return root


def test_a_folder_of_labels_is_read_and_split(tmp_path):
    found = folder(labelled(tmp_path), 16, 3, (0.25, 0.25))
    assert found.labels == ("cat", "dog")
    assert found.pixels.shape == (8, 16, 16, 3)
    assert {part: len(own) for part, own in found.parts.items()} == {"train": 4, "validation": 2, "test": 2}


def test_conversions_in_a_folder_are_counted_in_one_note_each(tmp_path):
    labelled(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "0.png")
    Image.new("L", (4, 4)).save(tmp_path / "dog" / "1.png")
    assert folder(tmp_path, 8, 3, (0.1, 0.25)).notes == (
        f"{tmp_path}: 2 of 8 pictures: grey, repeated in three channels",
    )


def test_files_that_are_left_out_are_noted(tmp_path):
    labelled(tmp_path)
    (tmp_path / "cat" / "photo.heic").write_bytes(b"x")
    (tmp_path / "cat" / "old").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "old" / "0.png")
    found = folder(tmp_path, 8, 3, (0.1, 0.25))
    assert len(found.targets) == 8
    assert found.notes == (
        f"{tmp_path / 'cat' / 'photo.heic'}: left out: no picture by its name",
        f"{tmp_path / 'cat' / 'old' / '0.png'}: left out: not in the folder of a label: label/file",
    )


def test_a_label_without_test_pictures_and_a_missing_validation_part_are_noted(tmp_path):
    labelled(tmp_path, ("train",))
    labelled(tmp_path, ("test",), ("cat",))
    notes = folder(tmp_path, 8, 3, (0.1, 0.25)).notes
    assert f"{tmp_path / 'test'}: no picture of dog" in notes
    assert any("no folder validation" in note for note in notes)


def test_printing_colours_are_converted_and_said(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    picture = read_picture(tmp_path / "red.jpg", 3)
    assert "CMYK" in picture.notes[0]
    assert picture.pixels[0, 0].tolist() == pytest.approx([1, 0, 0], abs=0.05)


def test_the_digest_of_a_folder_follows_its_pictures(tmp_path):
    labelled(tmp_path)
    data = ImageData("folder", tmp_path)
    before = data.content()
    assert before == ImageData("folder", tmp_path).content() is not None
    (tmp_path / "cat" / "0.png").write_bytes((tmp_path / "dog" / "0.png").read_bytes())
    assert data.content() != before
    assert ImageData("digits").content() is None


def test_a_folder_that_is_split_already_stays_so(tmp_path):
    found = folder(labelled(tmp_path, ("train", "test")), 16, 1, (0.1, 0.25))
    assert {part: len(own) for part, own in found.parts.items()} == {"train": 8, "validation": 0, "test": 8}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": ("cat",)}, "found 1 label, expected two"),
        ({"count": 2}, "found 2 pictures, expected three"),
        ({"labels": ()}, "found 0 labels"),
    ],
)
def test_a_folder_that_cannot_be_split_raises_in_words(tmp_path, given, words):
    with pytest.raises(DataError, match=words):
        folder(labelled(tmp_path, **given), 16, 3, (0.1, 0.25))


def test_a_label_of_the_test_part_that_training_lacks_raises(tmp_path):
    labelled(tmp_path, ("train",))
    labelled(tmp_path, ("test",), ("cow",))
    with pytest.raises(DataError, match="cow: found a label that the train part lacks"):
        folder(tmp_path, 16, 3, (0.1, 0.25))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"set": "cats"}, "data.set: found 'cats'"),
        ({"set": "folder"}, "data.folder: found none"),
        ({"channels": 2}, "data.channels: found 2"),
        ({"test_share": 1.0}, "leave something for training"),
        ({"shift": -1}, "image_size 32 and shift -1"),
        ({"shift": 32}, "data.shift: found 32, expected less than the 32 pixels"),
    ],
)
def test_bad_settings_raise_in_words(given, words):
    with pytest.raises(ArgumentError, match=words):
        ImageData(**given).open()


def test_training_pictures_are_standardised_and_shifted():
    splits = ImageData(channels=1, image_size=8, shift=1).open()
    part = splits.train
    whole = standardised(part.pixels, part.mean, part.sd)
    assert whole.mean().item() == pytest.approx(0, abs=1e-4)
    assert whole.std().item() == pytest.approx(1, abs=1e-4)
    torch.manual_seed(0)
    shifted = part.batch(torch.zeros(50, dtype=torch.int64)).images
    # 3 x 3 places
    assert len({tuple(one.flatten().tolist()) for one in shifted}) == 9
    assert torch.equal(splits.test.batch(torch.tensor([3])).images, splits.test.batch(torch.tensor([3])).images)
