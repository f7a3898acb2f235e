"""State helpers, error messages, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError, ManyheadsError, MaskError, StateError, UnknownNameError
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.mask import Mask
from manyheads.core.registry import create


class Leafy(NamedTuple):
    a: torch.Tensor
    b: tuple


def state():
    return Leafy(torch.arange(6.0).reshape(3, 2), (torch.arange(3), ()))


def test_helpers_keep_the_structure():
    made = trees.tree_map(lambda leaf: leaf + 1, state())
    assert type(made) is Leafy
    assert made.b[0].tolist() == [1, 2, 3]
    assert made.b[1] == ()


def test_select_where_and_concat_work_row_by_row():
    s = state()
    assert trees.select(s, torch.tensor([2, 0])).b[0].tolist() == [2, 0]
    other = trees.zeros_like(s)
    assert trees.where(torch.tensor([True, False, True]), s, other).a.tolist() == [[0, 1], [0, 0], [4, 5]]
    joined = trees.concat([s, other])
    assert joined.a.shape == (6, 2)
    assert trees.batch_size(joined) == 6
    assert trees.batch_size(()) is None


def test_bytes_casts_and_detaching():
    s = state()
    assert trees.nbytes(s) == 6 * 4 + 3 * 8
    cast = trees.to(s, dtype=torch.float64)
    assert cast.a.dtype == torch.float64
    assert cast.b[0].dtype == torch.int64
    live = Leafy(torch.ones(1, requires_grad=True) * 2, ())
    assert not trees.detach(live).a.requires_grad


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"heads": 4}, "heads"),
        ({"heads": 0}, "heads"),
        ({"heads": 2, "window": 3}, "window"),
        ({"heads": 2, "causal": True, "window": 0}, "window"),
        ({"heads": 2, "causal": True, "window": 3, "max_len": 3}, "max_len"),
        ({"heads": 2, "causal": True, "context_dim": 3}, "context_dim"),
    ],
)
def test_impossible_configurations_are_refused_by_argument(config, part):
    with pytest.raises(ArgumentError, match=part):
        create("softmax", dim=6, **config)


def test_contexts_and_their_masks_are_checked():
    cross, plain = create("softmax", dim=6, heads=2, context_dim=5), create("softmax", dim=6, heads=2)
    x = torch.randn(2, 3, 6)
    with pytest.raises(ArgumentError, match="context"):
        cross(x)
    with pytest.raises(ArgumentError, match="width 4, expected 5"):
        cross(x, context=torch.randn(2, 3, 4))
    with pytest.raises(ArgumentError, match="context"):
        plain(x, context=torch.randn(2, 3, 6))
    with pytest.raises(MaskError, match="context_padding"):
        plain(x, mask=Mask(context_padding=torch.ones(2, 3, dtype=torch.bool)))
    with pytest.raises(MaskError, match="window"):
        create("softmax", dim=6, heads=2, causal=True, window=2)(x, mask=Mask(window=1))


def test_a_layer_without_state_refuses_one_and_says_so():
    streaming = create("softmax", dim=6, heads=2, causal=True, window=3)
    state = streaming.init_state(2)
    with pytest.raises(StateError, match="keeps none"):
        create("softmax", dim=6, heads=2, causal=True)(torch.randn(2, 3, 6), state)
    with pytest.raises(StateError, match="expected KeyValueState"):
        streaming(torch.randn(2, 3, 6), ())


def test_unknown_names_get_the_nearest_or_all():
    assert "did you mean 'ETTh1'?" in str(UnknownNameError("set", "etth1", ["ETTh1", "weather"]))
    assert "known: a, b" in str(UnknownNameError("set", "zzzzzz", ["b", "a"]))
    assert issubclass(UnknownNameError, ManyheadsError)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_errors_import_without_torch_and_core_imports_nothing_but_torch():
    assert run_python("import sys, manyheads.core.errors; print('torch' in sys.modules)") == "False"
    heavy = ["pandas", "scipy", "matplotlib", "lightning_fabric", "rich", "tyro", "pooch", "safetensors", "jaxtyping"]
    code = "import sys, torch; before = set(sys.modules); import manyheads.core.registry, manyheads.core.testing; "
    code += "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    loaded = run_python(code)
    assert not [name for name in heavy if f"'{name}'" in loaded]


@pytest.mark.parametrize("rotary", [None, 1e4])
def test_a_growing_state_is_overwritten_only_by_permission_and_with_the_same_values(rotary):
    torch.manual_seed(0)
    layer = SoftmaxAttention(8, heads=2, causal=True, max_len=9, rotary=rotary).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    real = torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        _, aside, _ = layer(x[:, :3], mask=Mask(padding=real))
        copied, kept, _ = layer(x[:, 3:5], aside)
        assert kept.keys.data_ptr() != aside.keys.data_ptr()
        with trees.overwritten():
            found, state, _ = layer(x[:, 3:5], aside)
            assert state.keys.data_ptr() == aside.keys.data_ptr()
            step, state, _ = layer(x[:, 5:6], state)
        torch.testing.assert_close(found, copied, rtol=0, atol=0)
        torch.testing.assert_close(step, layer(x[:, 5:6], kept).y, rtol=1e-12, atol=1e-12)
        alone = layer(torch.cat([x[1:, :1], x[1:, 3:6]], 1)).y
        torch.testing.assert_close(step[1:], alone[:, -1:], rtol=1e-12, atol=1e-12)
    with trees.overwritten():
        _, state, _ = layer(x[:, 3:4], kept)
    assert state.keys.data_ptr() != kept.keys.data_ptr()
