"""Stored files with digests: round trips, and every changed file is refused with one line."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from manyheads.core.errors import CheckpointError
from manyheads.lab.data.onnx_files import sealed, unsealed
from manyheads.lab.data.storage import (
    load_arrays,
    load_document,
    load_model,
    load_tensors,
    save_document,
    save_model,
    save_tensors,
)

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4, dtype=torch.float64),
}
HEADER = {"settings": {"a": [1, None, "ü"], "b": 0.1}}


def load(path):
    return load_tensors(path, kind="test", fix="write it again")


@pytest.fixture
def stored(tmp_path):
    save_tensors(tmp_path / "file", TENSORS, HEADER, kind="test")
    return tmp_path / "file"


def test_tensors_and_header_survive_a_round_trip(stored):
    tensors, header = load(stored)
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_file_is_readable_by_the_safetensors_library(stored):
    with safe_open(stored, framework="pt") as other:
        assert torch.equal(other.get_tensor("weight"), TENSORS["weight"])


def test_arrays_are_stored_and_read_without_torch(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from manyheads.lab.data.storage import load_arrays, save_tensors\n"
        f"save_tensors({str(tmp_path / 'a')!r}, {{'x': np.arange(4)[::2]}}, {{}}, kind='test')\n"
        f"assert load_arrays({str(tmp_path / 'a')!r}, kind='test', fix='')[0]['x'].tolist() == [0, 2]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_same_content_gives_the_same_bytes(tmp_path):
    """Safetensors itself writes several metadata entries in random order."""
    for n in range(20):
        save_tensors(tmp_path / str(n), dict(reversed(TENSORS.items())) if n % 2 else TENSORS, HEADER, kind="test")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_every_flipped_bit_is_refused(stored, tmp_path):
    content, draw = stored.read_bytes(), random.Random(0)
    for position in {*range(16), *(draw.randrange(len(content)) for _ in range(400))}:
        changed = bytearray(content)
        changed[position] ^= 1 << draw.randrange(8)
        (tmp_path / "changed").write_bytes(changed)
        try:
            tensors, header = load(tmp_path / "changed")
        except CheckpointError as error:
            message = str(error)
        else:
            # the bit belongs to the padding of the header, or gives another form of the same JSON
            assert header == HEADER
            assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
            continue
        assert message.endswith("write it again")
        assert "\n" not in message


def test_every_truncated_or_lengthened_file_is_refused(stored, tmp_path):
    content = stored.read_bytes()
    for changed in [*(content[:n] for n in range(0, len(content), 7)), content + b"\0", content * 2, b"\xff" * 64]:
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"damaged, or not a test .*: write it again"):
            load(tmp_path / "changed")


def relaid(content, change):
    """Return the file with a changed safetensors layout; everything else stays, the digest included."""
    (length,) = struct.unpack_from("<Q", content)
    layout = json.loads(content[8 : 8 + length])
    change(layout)
    text = json.dumps(layout).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


CHANGES = {
    "another type of the same size": lambda layout: layout["weight"].update(dtype="I32"),
    "another shape of the same size": lambda layout: layout["weight"].update(shape=[3, 2]),
    "another name": lambda layout: layout.update(heavier=layout.pop("weight")),
    "a tensor less": lambda layout: layout.pop("none"),
    "deep nesting": lambda layout: layout.update(__metadata__={"manyheads": "[" * 100_000}),
    "no metadata": lambda layout: layout.pop("__metadata__"),
    "metadata that are a list": lambda layout: layout.update(__metadata__=[1]),
    "metadata of another kind": lambda layout: layout.update(__metadata__={"manyheads": "3"}),
    "an offset that is text": lambda layout: layout["weight"].update(data_offsets=["0", "x"]),
    "an entry that is a number": lambda layout: layout.update(weight=5),
    "a digest that is a list": lambda layout: layout.update(
        __metadata__={"manyheads": '{"header": "{}", "digest": []}'}
    ),
    "a header that is a number": lambda layout: layout.update(
        __metadata__={"manyheads": '{"header": 5, "digest": "a"}'}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_safetensors_layout_is_refused(stored, change):
    stored.write_bytes(relaid(stored.read_bytes(), CHANGES[change]))
    with pytest.raises(CheckpointError, match="damaged, or not a test"):
        load(stored)


def test_swapped_tensors_are_refused(tmp_path):
    save_tensors(tmp_path / "file", {"a": torch.zeros(3), "b": torch.ones(3)}, {}, kind="test")

    def swapped(layout):
        layout["a"], layout["b"] = layout["b"], layout["a"]

    (tmp_path / "file").write_bytes(relaid((tmp_path / "file").read_bytes(), swapped))
    with pytest.raises(CheckpointError, match="its digest is not that of its content"):
        load(tmp_path / "file")


def test_foreign_files_and_files_of_another_kind_are_refused(tmp_path, stored):
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign", {"state": "{}"})
    with pytest.raises(CheckpointError, match="foreign: damaged, or not a test"):
        load(tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="found the file of a test, expected a forecaster: fit"):
        load_tensors(stored, kind="forecaster", fix="fit")
    with pytest.raises(CheckpointError, match="absent: no such file, expected a test"):
        load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="found a folder or a device"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="found a folder or a device"):
        load_arrays("/dev/zero", kind="test", fix="")


DOCUMENT = {"a": 1.5, "b": ["x", None], "c": {"d": True}}


def test_a_document_survives_a_round_trip(tmp_path):
    save_document(tmp_path / "document.json", DOCUMENT, kind="test")
    assert load_document(tmp_path / "document.json", kind="test", fix="") == DOCUMENT


def test_every_changed_value_of_a_document_is_refused(tmp_path):
    path = tmp_path / "document.json"
    save_document(path, DOCUMENT, kind="test")
    content, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            found = load_document(path, kind="test", fix="again")
        except CheckpointError:
            continue
        # the change was in white space
        assert found == DOCUMENT


def test_a_file_that_is_no_document_is_refused(tmp_path):
    path = tmp_path / "document.json"
    save_document(path, DOCUMENT, kind="test")
    content = path.read_bytes()
    for other in (b"", b"[]", b"3", b"{}", b"[" * 100_000, b"\xff", content.replace(b"1.5", b"NaN")):
        path.write_bytes(other)
        with pytest.raises(CheckpointError, match="damaged, or not a test"):
            load_document(path, kind="test", fix="again")


def test_a_model_beside_the_files_of_another_model_is_refused(tmp_path):
    for name in "ab":
        save_model(tmp_path / name, {"w": torch.ones(2)}, {"x": 1}, {"labels.json": name.encode()})
    _, header = load_model(tmp_path / "a", fix="")
    assert header == {"x": 1}
    (tmp_path / "a" / "labels.json").write_bytes(b"b")
    with pytest.raises(CheckpointError, match="the model was saved with another"):
        load_model(tmp_path / "a", fix="")
    (tmp_path / "a" / "labels.json").unlink()
    with pytest.raises(CheckpointError, match=r"labels\.json: no such file"):
        load_model(tmp_path / "a", fix="")


def test_tensors_with_shared_memory_or_strides_are_stored(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save_tensors(tmp_path / "file", {"a": base, "b": base[1:], "c": base.T}, {}, kind="test")
    tensors, _ = load(tmp_path / "file")
    assert torch.equal(tensors["b"], base[1:])
    assert torch.equal(tensors["c"], base.T)


def test_sealing_an_onnx_file_adds_one_metadata_entry(tmp_path):
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    put = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    content = onnx.helper.make_model(onnx.helper.make_graph([node], "g", put[:1], put[1:])).SerializeToString()
    made = onnx.load_from_string(sealed(content))
    assert [entry.key for entry in made.metadata_props] == ["manyheads.sha256"]
    del made.metadata_props[:]
    assert made.SerializeToString() == content
    assert unsealed(sealed(content)) == content
    assert unsealed(content) == content
    assert np.frombuffer(sealed(content), np.uint8).size == len(content) + len(sealed(b""))
