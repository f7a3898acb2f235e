"""Wrong calls of every layer raise a ManyheadsError of one line, and the defaults fit any width and length."""

from __future__ import annotations

import warnings

import pytest
import torch

from manyheads.core.errors import ArgumentError, ManyheadsError, UnknownNameError
from manyheads.core.registry import LAYERS, create, find_layer, list_layers
from tests.fuzz.layers import wrong_constructor_calls, wrong_forward_calls


def complaints(calls):
    found = []
    for what, call in calls:
        try:
            call()
        except ManyheadsError as error:
            if "\n" in str(error) or not str(error):
                found.append(f"{what}: {str(error)!r}")
        except Exception as error:
            found.append(f"{what}: {type(error).__name__}: {error}")
        else:
            found.append(f"{what}: accepted")
    return found


@pytest.mark.parametrize("seed", range(4))
def test_wrong_constructor_calls_are_refused_in_one_line(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert complaints(wrong_constructor_calls(seed, 300)) == []


@pytest.mark.parametrize("seed", range(4))
def test_wrong_forward_calls_are_refused_in_one_line(seed):
    assert complaints(wrong_forward_calls(seed, 100)) == []


REQUIRED = {
    "fourier-block": lambda tokens: {"length": tokens},
    "fourier-cross": lambda tokens: {"length": tokens, "context_dim": 3},
    "spectral-gate": lambda tokens: {"height": tokens, "width": tokens},
}
FIELDS = {"heterogeneous", "hiformer"}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 6, 7, 12, 20])
def test_defaults_fit_any_width_and_length(name, dim):
    for tokens in (1, 2, 5, 9):
        required = {"fields": tokens} if name in FIELDS else REQUIRED.get(name, lambda tokens: {})(tokens)
        if (name == "lama" and dim % 2) or (name == "routing" and dim == 1):
            with pytest.raises(ArgumentError, match="dim"):
                create(name, dim, **required)
            continue
        context = torch.randn(2, 4, 3) if "context_dim" in required else None
        layer = create(name, dim, **required).eval()
        rank = min(layer.grid_ranks)
        y = layer(torch.randn(2, *[tokens] * rank, dim), context=context).y
        assert y.shape == (2, *[tokens] * rank, dim)
        assert y.isfinite().all()


@pytest.mark.parametrize("name", [3, None, 2.5, b"softmax", ["softmax"], ""])
def test_a_layer_of_a_name_that_is_no_text_is_refused(name):
    for call in (lambda: create(name, 8), lambda: find_layer(name)):
        with pytest.raises(ManyheadsError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert "unknown layer 3" in str(UnknownNameError("layer", 3, LAYERS))


@pytest.mark.parametrize(
    "wrong",
    [{"causal": "yes"}, {"causal": True}, {"streaming": "yes"}, {"grid_rank": 0}, {"grid_rank": "2"}, {"rank": 2}],
)
def test_wrong_filters_are_refused(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        list_layers(**wrong)


def test_local_heads_follow_heads_and_modes_follow_length():
    assert [create("routing", 12, heads=heads).config["local_heads"] for heads in (1, 2, 3, 6)] == [0, 1, 1, 3]
    modes = [create("fourier-block", 8, length=length).config["modes"] for length in (1, 2, 12, 125, 126, 500)]
    assert modes == [1, 2, 7, 63, 64, 64]
