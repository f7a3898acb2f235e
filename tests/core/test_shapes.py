"""The shape annotations are checked under ``--shapes``: a wrong shape, dtype or result is refused."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from torch import Tensor

jaxtyping = pytest.importorskip("jaxtyping")
pytest.importorskip("beartype")

from jaxtyping import Bool, Float, TypeCheckError  # noqa: E402

from manyheads.core.errors import ArgumentError  # noqa: E402
from manyheads.core.functional import attention, fft_convolution, merge, segment_cumsum  # noqa: E402
from tests import shapes  # noqa: E402


@pytest.fixture
def installed(request):
    if not request.config.getoption("--shapes"):
        pytest.skip("runs with --shapes: nox -s shapes")


@shapes.checked
def masked_mean(x: Float[Tensor, "b t d"], real: Bool[Tensor, "b t"] | None = None, *, keep: bool = False):
    return x.mean(1, keepdim=keep)


@shapes.checked
def last(x: Float[Tensor, "b t d"], *, keep: bool = False) -> Float[Tensor, "b d"]:
    return x[:, -1:] if keep else x[:, -1]


@shapes.checked
def refusing(x: Float[Tensor, "b t"]) -> Float[Tensor, "b"]:
    if x.dim() != 2:
        raise ArgumentError(f"x: found {x.dim()} axes, expected 2")
    return x.sum(1)


def test_right_shapes_pass():
    x = torch.randn(2, 3, 4)
    assert torch.equal(masked_mean(x, torch.ones(2, 3, dtype=torch.bool)), x.mean(1))
    assert torch.equal(masked_mean(x), x.mean(1))
    assert torch.equal(last(x), x[:, -1])


@pytest.mark.parametrize(
    "real",
    [
        torch.ones(2, 4, dtype=torch.bool),
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, 3),
        "a word",
    ],
    ids=["another-size", "another-rank", "another-dtype", "no-tensor"],
)
def test_a_wrong_argument_is_refused(real):
    with pytest.raises(TypeCheckError, match=r"masked_mean: real: found x \(2, 3, 4\) float32, real"):
        masked_mean(torch.randn(2, 3, 4), real)


def test_a_wrong_result_is_refused():
    with pytest.raises(TypeCheckError, match=r"last: return: found return \(2, 1, 4\) float32"):
        last(torch.randn(2, 3, 4), keep=True)


def test_an_axis_keeps_its_size_within_a_call_only():
    for tokens in (3, 5):
        masked_mean(torch.randn(2, tokens, 4), torch.ones(2, tokens, dtype=torch.bool))


def test_the_refusal_of_the_function_itself_goes_first():
    with pytest.raises(ArgumentError, match="expected 2"):
        refusing(torch.randn(3))
    with pytest.raises(TypeCheckError):
        refusing(torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "call",
    [
        lambda: attention(torch.randn(1, 2, 3, 4), torch.randn(1, 1, 5, 4), torch.randn(1, 2, 5, 4)),
        lambda: segment_cumsum(torch.randn(2, 3), None, torch.randn(1)),
    ],
    ids=["heads-that-would-broadcast", "rows-that-would-broadcast"],
)
def test_the_core_refuses_what_would_broadcast(call):
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.usefixtures("installed")
def test_an_error_of_the_core_stays():
    with pytest.raises(ArgumentError, match="expected real input"):
        fft_convolution(torch.ones(3, dtype=torch.int64), torch.ones(3))


@pytest.mark.usefixtures("installed")
def test_every_covered_module_is_checked():
    unchecked = []
    for folder in ("functional", "blocks", "backbones", "methods"):
        package = importlib.import_module(f"manyheads.core.{folder}")
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            if not isinstance(module.__loader__, shapes._Loader):
                unchecked.append(found.name)
    assert unchecked == []
    assert attention.checks_shapes_of == ("q", "k", "v", "allowed", "return")
    assert not hasattr(merge, "checks_shapes_of")
