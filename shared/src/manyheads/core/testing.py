"""The battery that every layer passes: ``check_layer`` for one layer, :data:`POINTS` to run each point as a test.

A point is a function of a :class:`Case`; it raises :class:`AssertionError` that says what was violated. ``applies``
tells which points a configuration must pass, by its capabilities. Shapes are small and odd on purpose, weights are
large, so that mistakes show.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError, MaskError, StateError
from manyheads.core.layer import Layer
from manyheads.core.mask import Mask
from manyheads.core.registry import find_layer

Oracle = Callable[[Mapping[str, Tensor], Mapping[str, Any], Tensor, "Tensor | None", Mask], Tensor]


@dataclass(frozen=True)
class Case:
    """One layer in one configuration, with the inputs that the points use.

    ``oracle(parameters, config, x, context, mask) -> y`` is the slow reference: float64, differentiable, no state.
    """

    layer_class: type[Layer]
    config: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 6
    batch: int = 3
    grid: tuple[int, ...] = (7,)
    context_tokens: int = 5
    seed: int = 0
    oracle: Oracle | None = None

    def generator(self, offset: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + offset)

    def layer(self, dtype: torch.dtype = torch.float64) -> Layer:
        """Fresh, in eval mode, with large weights."""
        made = self.layer_class(self.dim, **self.config)
        generator = self.generator(1)
        with torch.no_grad():
            for parameter in made.parameters():
                fan = parameter.shape[-1] if parameter.dim() > 1 else 1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.7 / math.sqrt(fan))
        return made.to(dtype).eval()

    def x(self, *, batch: int | None = None, grid: tuple[int, ...] | None = None, offset: int = 2) -> Tensor:
        shape = (self.batch if batch is None else batch, *(self.grid if grid is None else grid), self.dim)
        return torch.randn(shape, generator=self.generator(offset), dtype=torch.float64)

    def context(self, *, batch: int | None = None) -> Tensor | None:
        width = self.config.get("context_dim")
        if width is None:
            return None
        shape = (self.batch if batch is None else batch, self.context_tokens, width)
        return torch.randn(shape, generator=self.generator(3), dtype=torch.float64)

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    def masks(self) -> dict[str, Mask]:
        """One mask for each restriction that the configuration honours, and all of padding and reset together."""
        layer = self.layer()
        reset = torch.rand(self.batch, self.tokens, generator=self.generator(4)) < 0.3
        padding = torch.rand(self.batch, self.tokens, generator=self.generator(5)) < 0.7
        padding[:, 0] = True
        padding[-1] = False
        blocks = torch.randint(0, 2, (self.batch, self.tokens), generator=self.generator(6))
        context = self.config.get("context_dim") is not None
        made = {"padding": Mask(padding=padding)}
        if context:
            kept = torch.rand(self.batch, self.context_tokens, generator=self.generator(7)) < 0.6
            kept[0] = False
            made["context_padding"] = Mask(context_padding=kept)
        else:
            made |= {"reset": Mask(reset=reset), "padding and reset": Mask(padding=padding, reset=reset)}
            if layer.state_kind == "none":
                made |= {"blocks": Mask(blocks=blocks), "window": Mask(window=3)}
        return {name: m for name, m in made.items() if set(m.names()) <= set(layer.info.masks)}


def _close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert not found.isnan().any(), f"{what}: NaN"
    if found.numel():
        error = (found - expected).abs().max().item()
        scale = max(1.0, expected.abs().max().item())
        assert error <= tolerance * scale, f"{what}: off by {error:.3g}, allowed {tolerance * scale:.3g}"


def _close_states(found: Any, expected: Any, what: str, tolerance: float = 1e-10) -> None:
    for a, b in zip(trees.leaves(found), trees.leaves(expected), strict=True):
        _close(a.to(torch.float64), b.to(torch.float64), f"{what}: state", tolerance)


def _splits(tokens: int) -> list[list[int]]:
    ragged = [2, 0, 1, tokens - 3] if tokens > 3 else [tokens]
    return [[1] * tokens, [tokens], ragged, [0, tokens - 1, 0, 1]]


def _stream(layer: Layer, x: Tensor, sizes: Iterable[int], mask: Mask | None = None, state: Any = None) -> tuple:
    outputs, at = [], 0
    for size in sizes:
        part = slice(at, at + size)
        cut = mask and Mask(
            padding=None if mask.padding is None else mask.padding[:, part],
            reset=None if mask.reset is None else mask.reset[:, part],
        )
        out = layer(x[:, part], state, mask=cut)
        outputs.append(out.y)
        state, at = out.state, at + size
    return torch.cat(outputs, 1), state


def shape_and_dtype_are_kept(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        layer = case.layer(dtype)
        for batch, grid in ((case.batch, case.grid), (1, case.grid), (case.batch, (1,) * len(case.grid))):
            x, context = case.x(batch=batch, grid=grid).to(dtype), case.context(batch=batch)
            y = layer(x, context=None if context is None else context.to(dtype)).y
            assert y.shape == x.shape, f"{tuple(x.shape)} became {tuple(y.shape)}"
            assert y.dtype == dtype, f"{dtype} became {y.dtype}"
            assert y.device == x.device, f"{x.device} became {y.device}"
            assert not y.isnan().any(), "NaN"


def non_contiguous_input_is_fine(case: Case) -> None:
    layer, x = case.layer(), case.x()
    strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    _close(layer(strided, context=case.context()).y, layer(x, context=case.context()).y, "strided input", 1e-12)


def oracle_and_layer_agree(case: Case) -> None:
    """Outputs and all gradients: 1e-10 in float64, 1e-5 (outputs) in float32; without a mask and with each."""
    for name, mask in {"no mask": Mask(), **case.masks()}.items():
        _compare_with_oracle(case, name, mask)


def _compare_with_oracle(case: Case, name: str, mask: Mask) -> None:
    assert case.oracle is not None
    layer, x, context = case.layer(), case.x().requires_grad_(), case.context()
    parameters = dict(layer.named_parameters())
    wanted = {"x": x, **({} if context is None else {"context": context.requires_grad_()}), **parameters}
    weights = torch.randn(x.shape, generator=case.generator(8), dtype=torch.float64)

    def with_gradients(y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        tensors = list(wanted.values())
        return y.detach(), torch.autograd.grad((y * weights).sum(), tensors, allow_unused=True, materialize_grads=True)

    y, grads = with_gradients(layer(x, context=context, mask=mask).y)
    expected, expected_grads = with_gradients(case.oracle(parameters, layer.config, x, context, mask))
    _close(y, expected, f"output ({name})")
    for label, found, reference in zip(wanted, grads, expected_grads, strict=True):
        _close(found, reference, f"gradient of {label} ({name})")
    narrow_context = None if context is None else context.detach().float()
    narrow = case.layer(torch.float32)(x.detach().float(), context=narrow_context, mask=mask).y
    _close(narrow.double(), expected, f"float32 output ({name})", 1e-5)


def bfloat16_is_close(case: Case) -> None:
    layer, x, context = case.layer(), case.x(), case.context()
    expected = layer(x, context=context).y
    half = case.layer(torch.bfloat16)
    y = half(x.bfloat16(), context=None if context is None else context.bfloat16()).y.double()
    error = ((y - expected).square().mean() / expected.square().mean()).sqrt().item()
    assert error < 3e-2, f"bfloat16: relative RMS {error:.3g}"


def gradcheck_passes(case: Case) -> None:
    small = Case(case.layer_class, case.config, case.dim, 2, tuple(min(g, 4) for g in case.grid), 3, case.seed)
    layer, context = small.layer(), small.context()
    inputs = (small.x().requires_grad_(),) + (() if context is None else (context.requires_grad_(),))
    passed = torch.autograd.gradcheck(lambda x, *c: layer(x, context=c[0] if c else None).y, inputs, fast_mode=False)
    assert passed, "gradcheck"


def batch_rows_are_independent(case: Case) -> None:
    layer, x, context = case.layer(), case.x(), case.context()
    y = layer(x, context=context).y
    for row in range(case.batch):
        alone = layer(x[row : row + 1], context=None if context is None else context[row : row + 1]).y
        _close(alone, y[row : row + 1], f"row {row} alone", 1e-12)


def permutation_is_respected(case: Case) -> None:
    """Content-only layers commute with a permutation of the tokens; positional ones must not."""
    layer, x, context = case.layer(), case.x(), case.context()
    order = torch.randperm(case.tokens, generator=case.generator(9))
    flat = x.flatten(1, -2)
    permuted = layer(flat[:, order].reshape(x.shape), context=context).y.flatten(1, -2)
    expected = layer(x, context=context).y.flatten(1, -2)[:, order]
    if layer.info.positional:
        assert (permuted - expected).abs().max() > 1e-6, "declared positional, but commutes with permutations"
    else:
        _close(permuted, expected, "permuted tokens")


def evaluation_is_deterministic(case: Case) -> None:
    layer, x, context = case.layer(), case.x(), case.context()
    assert torch.equal(layer(x, context=context).y, layer(x, context=context).y), "two runs differ"


def weights_and_configuration_round_trip(case: Case) -> None:
    layer, x, context = case.layer(), case.x(), case.context()
    expected = layer(x, context=context).y
    again = type(layer)(**layer.config).double().eval()
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x, context=context).y, expected), "rebuilt from config and state_dict"
    assert torch.equal(copy.deepcopy(layer)(x, context=context).y, expected), "deepcopy"


def bad_input_is_refused(case: Case) -> None:
    layer, x = case.layer(), case.x()
    _refuses(ArgumentError, lambda: layer(x[..., :-1]), str(case.dim - 1), "a wrong width")
    _refuses(ArgumentError, lambda: layer(x[..., 0]), "expected (B, *grid, D)", "a missing axis")
    every = {
        "padding": Mask(padding=torch.ones(case.batch, case.tokens, dtype=torch.bool)),
        "reset": Mask(reset=torch.zeros(case.batch, case.tokens, dtype=torch.bool)),
        "window": Mask(window=2),
        "blocks": Mask(blocks=torch.zeros(case.batch, case.tokens, dtype=torch.int64)),
    }
    for name, mask in every.items():
        if name not in layer.info.masks:
            _refuses(MaskError, lambda mask=mask: layer(x, mask=mask), name, f"mask.{name}, which is not honoured")
    if "padding" in layer.info.masks:
        short = Mask(padding=torch.ones(case.batch, case.tokens + 1, dtype=torch.bool))
        _refuses(MaskError, lambda: layer(x, context=case.context(), mask=short), "padding", "a mask of another shape")
    foreign = (torch.zeros(case.batch, 1),) * 9
    _refuses(StateError, lambda: layer(x, foreign, context=case.context()), "state", "the state of another layer")
    if layer.state_kind != "none":
        wrong = layer.init_state(case.batch + 1, dtype=x.dtype)
        _refuses(StateError, lambda: layer(x, wrong), str(case.batch + 1), "a state of another batch size")


def _refuses(kind: type[Exception], call: Callable[[], Any], part: str, what: str) -> None:
    message = None
    try:
        call()
    except kind as error:
        message = str(error)
    assert message is not None, f"{what} is accepted"
    assert part in message, f"{what} is refused, but the message does not name {part!r}: {message}"
    assert "\n" not in message, f"{what}: the message has more than one line"


def future_does_not_change_the_past(case: Case) -> None:
    layer = case.layer()
    jacobian = _influence(layer, case.x()[:1])
    reach = layer.info.lookahead
    for t in range(case.tokens):
        for s in range(case.tokens):
            if s > t + reach:
                assert jacobian[t, s] <= 1e-12, f"token {s} changes output {t}"
    if layer.info.full_context and not case.config.get("window"):
        for t in range(case.tokens):
            for s in range(t + 1):
                assert jacobian[t, s] > 1e-9, f"token {s} does not reach output {t}, full context is claimed"


def _influence(layer: Layer, x: Tensor) -> Tensor:
    """``(T, T)``: sum of the absolute derivatives of output ``t`` by input ``s``."""
    x = x.clone().requires_grad_()
    y = layer(x).y
    rows = []
    for t in range(x.shape[1]):
        total = torch.zeros(x.shape[1], dtype=x.dtype)
        for d in range(x.shape[2]):
            (grad,) = torch.autograd.grad(y[0, t, d], x, retain_graph=True)
            total += grad[0].abs().sum(-1)
        rows.append(total)
    return torch.stack(rows)


def padding_is_as_if_absent(case: Case) -> None:
    layer, x, context = case.layer(), case.x(), case.context()
    for row in range(case.batch):
        padding = case.masks()["padding"].padding
        assert padding is not None
        kept = padding[row]
        part = slice(row, row + 1)
        cut = None if context is None else context[part]
        y = layer(x[part], context=cut, mask=Mask(padding=padding[part])).y
        if kept.any():
            shortened = layer(x[part][:, kept], context=cut).y
            _close(y[:, kept], shortened, "valid tokens against the shortened sequence")
        assert torch.equal(y[:, ~kept], torch.zeros_like(y[:, ~kept])), "padded outputs are not 0"
        noise = x[part].clone()
        noise[:, ~kept] = 1e3
        again = layer(noise, context=cut, mask=Mask(padding=padding[part])).y
        _close(again[:, kept], y[:, kept], "content of the padding", 1e-12)


def fully_masked_rows_are_zero_with_finite_gradients(case: Case) -> None:
    layer, x = case.layer(), case.x().requires_grad_()
    nothing = Mask(padding=torch.zeros(case.batch, case.tokens, dtype=torch.bool))
    y = layer(x, context=case.context(), mask=nothing).y
    assert torch.equal(y, torch.zeros_like(y)), "a fully masked input does not give 0"
    (grad,) = torch.autograd.grad(y.sum(), x, allow_unused=True, materialize_grads=True)
    assert grad.isfinite().all(), "gradient of a fully masked input is not finite"


def reset_is_as_if_run_apart(case: Case) -> None:
    layer, x = case.layer(), case.x()
    for at in range(case.tokens):
        reset = torch.zeros(case.batch, case.tokens, dtype=torch.bool)
        reset[:, at] = True
        y = layer(x, mask=Mask(reset=reset)).y
        apart = torch.cat([layer(x[:, :at]).y, layer(x[:, at:]).y], 1)
        _close(y, apart, f"reset at {at}")


def chunks_give_the_whole(case: Case) -> None:
    layer, x = case.layer(), case.x()
    for name, mask in {"no mask": None, **case.masks()}.items():
        whole = layer(x, mask=mask)
        for sizes in _splits(case.tokens):
            y, state = _stream(layer, x, sizes, mask)
            _close(y, whole.y, f"chunks {sizes} ({name})")
            _close_states(state, whole.state, f"chunks {sizes} ({name})")


def step_is_forward_on_one_token(case: Case) -> None:
    layer, x = case.layer(), case.x()
    state = other = layer.init_state(case.batch, dtype=x.dtype)
    for t in range(case.tokens):
        y, state = layer.step(x[:, t], state)
        out = layer(x[:, t : t + 1], other)
        other = out.state
        _close(y, out.y[:, 0], f"step {t}", 1e-12)
        _close_states(state, other, f"step {t}", 1e-12)


def nothing_is_changed_in_place(case: Case) -> None:
    layer, x = case.layer(), case.x()
    _, state = _stream(layer, x, [3])
    before_x, before = x.clone(), trees.tree_map(torch.clone, state)
    buffers = {name: value.clone() for name, value in layer.state_dict().items()}
    first, second = layer(x, state), layer(x, state)
    assert torch.equal(x, before_x), "x was changed"
    _close_states(state, before, "the state that was given was changed", 0.0)
    assert torch.equal(first.y, second.y), "the second run differs: something is remembered outside the state"
    for name, value in layer.state_dict().items():
        assert torch.equal(value, buffers[name]), f"{name} was changed"


def rows_of_a_state_are_independent(case: Case) -> None:
    """Selecting rows commutes with streaming, also for rows at different times."""
    layer, x = case.layer(), case.x()
    states = [_stream(layer, x[i : i + 1], [i + 1])[1] for i in range(case.batch)]
    joined = trees.concat(states)
    out = layer(x, joined)
    for i, state in enumerate(states):
        alone = layer(x[i : i + 1], state)
        _close(out.y[i : i + 1], alone.y, f"row {i} at its own time")
    order = torch.arange(case.batch).flip(0)
    permuted = layer(x[order], trees.select(joined, order))
    _close(permuted.y, out.y[order], "selected rows", 1e-12)
    _close_states(permuted.state, trees.select(out.state, order), "selected rows", 1e-12)


def right_padding_leaves_the_state(case: Case) -> None:
    layer, x = case.layer(), case.x()
    for keep in range(case.tokens + 1):
        padding = torch.arange(case.tokens).expand(case.batch, -1) < keep
        padded = layer(x, mask=Mask(padding=padding)).state
        _close_states(padded, layer(x[:, :keep]).state, f"{keep} real tokens")


def gradient_flows_through_the_state(case: Case) -> None:
    layer, x = case.layer(), case.x().requires_grad_()
    weights = torch.randn(x.shape, generator=case.generator(8), dtype=torch.float64)
    tensors = [x, *layer.parameters()]
    whole = torch.autograd.grad((layer(x).y * weights).sum(), tensors)
    y, _ = _stream(layer, x, [3, 0, case.tokens - 3])
    for a, b in zip(torch.autograd.grad((y * weights).sum(), tensors), whole, strict=True):
        _close(a, b, "gradient of chunks with the state attached")
    head = layer(x[:, :3])
    tail = layer(x[:, 3:], trees.detach(head.state))
    (grad,) = torch.autograd.grad((tail.y * weights[:, 3:]).sum(), x)
    assert (grad[:, :3] == 0).all(), "a detached state lets a gradient through"


def state_does_not_grow(case: Case) -> None:
    layer = case.layer()
    sizes = set()
    state = layer.init_state(case.batch, dtype=torch.float64)
    for index in range(6):
        state = layer(case.x(grid=(2,), offset=20 + index), state).state
        sizes.add(trees.nbytes(state))
    assert len(sizes) == 1, f"the state has {sorted(sizes)} bytes over time"


def growing_state_overflows_with_an_error(case: Case) -> None:
    layer = case.layer()
    room = case.config["max_len"]
    full = layer(case.x(grid=(room,))).state
    _refuses(StateError, lambda: layer(case.x(grid=(1,)), full), str(room), "one token more than there is room for")


@dataclass(frozen=True)
class Point:
    """One property and the configurations that owe it."""

    check: Callable[[Case], None]
    applies: Callable[[Case, Layer], bool]

    @property
    def name(self) -> str:
        return getattr(self.check, "__name__", "point")


def _always(case: Case, layer: Layer) -> bool:
    return True


def _causal(case: Case, layer: Layer) -> bool:
    return layer.causal == "strict" and len(case.grid) == 1


def _streams(case: Case, layer: Layer) -> bool:
    return layer.state_kind != "none"


def _masked(name: str) -> Callable[[Case, Layer], bool]:
    return lambda case, layer: name in layer.info.masks and len(case.grid) == 1


def _resets(case: Case, layer: Layer) -> bool:
    return _masked("reset")(case, layer) and case.config.get("context_dim") is None


POINTS: Mapping[str, Point] = {
    point.name: point
    for point in (
        Point(shape_and_dtype_are_kept, _always),
        Point(non_contiguous_input_is_fine, _always),
        Point(oracle_and_layer_agree, lambda case, layer: case.oracle is not None),
        Point(bfloat16_is_close, _always),
        Point(gradcheck_passes, _always),
        Point(batch_rows_are_independent, _always),
        Point(permutation_is_respected, lambda case, layer: layer.causal == "no"),
        Point(evaluation_is_deterministic, _always),
        Point(weights_and_configuration_round_trip, _always),
        Point(bad_input_is_refused, _always),
        Point(future_does_not_change_the_past, _causal),
        Point(padding_is_as_if_absent, _masked("padding")),
        Point(fully_masked_rows_are_zero_with_finite_gradients, _masked("padding")),
        Point(reset_is_as_if_run_apart, _resets),
        Point(chunks_give_the_whole, _streams),
        Point(step_is_forward_on_one_token, _streams),
        Point(nothing_is_changed_in_place, _streams),
        Point(rows_of_a_state_are_independent, _streams),
        Point(
            right_padding_leaves_the_state, lambda case, layer: _streams(case, layer) and "padding" in layer.info.masks
        ),
        Point(gradient_flows_through_the_state, _streams),
        Point(state_does_not_grow, _streams),
        Point(growing_state_overflows_with_an_error, lambda case, layer: layer.state_kind == "growing"),
    )
}


def points_of(case: Case) -> list[str]:
    """The names of the points that this configuration owes."""
    layer = case.layer()
    return [name for name, point in POINTS.items() if point.applies(case, layer)]


def check_layer(layer: str | type[Layer], config: Mapping[str, Any] | None = None, **case: Any) -> list[str]:
    """Runs every point that applies; returns their names, raises :class:`AssertionError` at the first that fails.

    ``layer`` is a registered name (then, without ``config``, all its examples are checked) or a class; ``case`` are
    further fields of :class:`Case`, ``oracle`` among them.
    """
    if isinstance(layer, str):
        entry = find_layer(layer)
        configs = list(entry.examples.values()) if config is None else [config]
        layer = entry.layer
    else:
        configs = [config or {}]
    passed: list[str] = []
    for one in configs:
        made = Case(layer, one, **case)
        for name in points_of(made):
            try:
                POINTS[name].check(made)
            except AssertionError as error:
                raise AssertionError(f"{layer.info.name} {dict(one)}: {name}: {error}") from error
            passed.append(name)
    return passed
