"""Points about one call on whole inputs: shapes, equality with the oracle, gradients, masks, causality."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError, MaskError, StateError
from manyheads.core.layer import Layer
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import influence, recover
from manyheads.core.testing.case import Case, close, refuses


def shape_and_dtype_are_kept(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        layer = case.layer(dtype)
        single = tuple(1 if free else size for size, free in zip(case.grid, case.free, strict=True))
        for batch, grid in ((case.batch, case.grid), (1, case.grid), (case.batch, single)):
            x, context = case.x(batch=batch, grid=grid).to(dtype), case.context(batch=batch)
            y = layer(x, context=None if context is None else context.to(dtype)).y
            assert y.shape == x.shape, f"{tuple(x.shape)} became {tuple(y.shape)}"
            assert y.dtype == dtype, f"{dtype} became {y.dtype}"
            assert y.device == x.device, f"{x.device} became {y.device}"
            assert not y.isnan().any(), "NaN"


def non_contiguous_input_gives_the_same_output(case: Case) -> None:
    layer, x = case.layer(), case.x()
    strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    close(layer(strided, context=case.context()).y, layer(x, context=case.context()).y, "strided input", 1e-12)


def oracle_and_layer_agree(case: Case) -> None:
    """Outputs and all gradients agree to 1e-10 in float64, outputs to 1e-5 in float32, without and with each mask."""
    for name, mask in {"no mask": Mask(), **case.masks()}.items():
        _compare_with_oracle(case, name, mask)


def _compare_with_oracle(case: Case, name: str, mask: Mask) -> None:
    assert case.oracle is not None
    layer, x, context = case.layer(), case.x().requires_grad_(), case.context()
    parameters = dict(layer.named_parameters())
    tensors = {**parameters, **dict(layer.named_buffers())}
    wanted = {"x": x, **({} if context is None else {"context": context.requires_grad_()}), **parameters}
    weights = torch.randn(x.shape, generator=case.generator(8), dtype=torch.float64)

    def with_gradients(y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        tensors = list(wanted.values())
        return y.detach(), torch.autograd.grad((y * weights).sum(), tensors, allow_unused=True, materialize_grads=True)

    y, grads = with_gradients(layer(x, context=context, mask=mask).y)
    expected, expected_grads = with_gradients(case.oracle(tensors, layer.config, x, context, mask))
    close(y, expected, f"output ({name})")
    for label, found, reference in zip(wanted, grads, expected_grads, strict=True):
        close(found, reference, f"gradient of {label} ({name})")
    narrow_context = None if context is None else context.detach().float()
    narrow = case.layer(torch.float32)(x.detach().float(), context=narrow_context, mask=mask).y
    close(narrow.double(), expected, f"float32 output ({name})", 1e-5)


def bfloat16_is_close(case: Case) -> None:
    layer, x, context = case.layer(), case.x(), case.context()
    expected = layer(x, context=context).y
    half = case.layer(torch.bfloat16)
    y = half(x.bfloat16(), context=None if context is None else context.bfloat16()).y.double()
    assert y.isfinite().all(), "bfloat16: not finite"
    if layer.info.discontinuous:
        # rounding may change the selection
        return
    error = ((y - expected).square().mean() / expected.square().mean()).sqrt().item()
    assert error < 3e-2, f"bfloat16: relative RMS {error:.3g}"


def gradcheck_passes(case: Case) -> None:
    grid = tuple(min(size, 4) if free else size for size, free in zip(case.grid, case.free, strict=True))
    small = Case(case.layer_class, case.config, case.dim, 2, grid, 3, case.seed)
    layer, context = small.layer(), small.context()
    inputs = (small.x().requires_grad_(),) + (() if context is None else (context.requires_grad_(),))
    try:
        gradcheck(lambda x, *c: layer(x, context=c[0] if c else None).y, inputs, fast_mode=False)
    except GradcheckError as error:
        raise AssertionError(str(error)) from error


def batch_rows_are_independent(case: Case) -> None:
    layer, x, context = case.layer(), case.x(), case.context()
    y = layer(x, context=context).y
    for row in range(case.batch):
        alone = layer(x[row : row + 1], context=None if context is None else context[row : row + 1]).y
        close(alone, y[row : row + 1], f"row {row} alone", 1e-12)


def permutation_equivariance_is_as_declared(case: Case) -> None:
    """A layer without positions is equivariant to permutations of the tokens; a positional layer is not."""
    layer, x, context = case.layer(), case.x(), case.context()
    order = torch.randperm(case.tokens, generator=case.generator(9))
    flat = x.flatten(1, -2)
    permuted = layer(flat[:, order].reshape(x.shape), context=context).y.flatten(1, -2)
    expected = layer(x, context=context).y.flatten(1, -2)[:, order]
    if layer.positional:
        assert (permuted - expected).abs().max() > 1e-6, "declared positional, but commutes with permutations"
    else:
        close(permuted, expected, "permuted tokens")


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
    refuses(ArgumentError, lambda: layer(x[..., :-1]), str(case.dim - 1), "a wrong width")
    if len(case.grid) == min(layer.grid_ranks):
        refuses(ArgumentError, lambda: layer(x[..., 0]), "expected (B, *grid, D)", "a missing axis")
    every = {
        "padding": Mask(padding=torch.ones(case.batch, case.tokens, dtype=torch.bool)),
        "reset": Mask(reset=torch.zeros(case.batch, case.tokens, dtype=torch.bool)),
        "window": Mask(window=2),
        "blocks": Mask(blocks=torch.zeros(case.batch, case.tokens, dtype=torch.int64)),
    }
    for name, mask in every.items():
        if name not in layer.masks:
            refuses(
                MaskError,
                lambda mask=mask: layer(x, context=case.context(), mask=mask),
                name,
                f"mask.{name}, which is not honoured",
            )
    if "window" in layer.masks and len(case.grid) > 1:
        refuses(MaskError, lambda: layer(x, mask=Mask(window=2)), "window", "a window on a grid of several axes")
    if "padding" in layer.masks:
        short = Mask(padding=torch.ones(case.batch, case.tokens + 1, dtype=torch.bool))
        refuses(MaskError, lambda: layer(x, context=case.context(), mask=short), "padding", "a mask of another shape")
    foreign = (torch.zeros(case.batch, 1),) * 9
    refuses(StateError, lambda: layer(x, foreign, context=case.context()), "state", "the state of another layer")
    for axis, size in enumerate(case.grid):
        if not case.free[axis]:
            other_x = case.x(grid=(*case.grid[:axis], size + 1, *case.grid[axis + 1 :]))
            refuses(ArgumentError, lambda x=other_x: layer(x), str(size), f"another size of grid axis {axis}")
    if layer.state_kind != "none":
        wrong = layer.init_state(case.batch + 1, dtype=x.dtype)
        refuses(StateError, lambda: layer(x, wrong), str(case.batch + 1), "a state of another batch size")


def future_does_not_change_the_past(case: Case) -> None:
    """Future tokens have no derivative and no effect: a selection can leak the future without a derivative."""
    layer, x = case.layer(), case.x()
    jacobian = influence(layer, x[:1])[0]
    reach = layer.info.lookahead
    for t in range(case.tokens):
        for s in range(case.tokens):
            if s > t + reach:
                assert jacobian[t, s] <= 1e-12, f"token {s} changes output {t}"
    y, past, future = layer(x).y.flatten(1, -2), x.flatten(1, -2), case.x(offset=10).flatten(1, -2)
    for t in range(case.tokens - reach - 1):
        changed = torch.cat([past[:, : t + reach + 1], future[:, t + reach + 1 :]], 1).view_as(x)
        found = layer(changed).y.flatten(1, -2)
        close(found[:, : t + 1], y[:, : t + 1], f"outputs up to {t} with another future", 1e-12)
    if layer.info.full_context and not case.config.get("window"):
        for t in range(case.tokens):
            for s in range(t + 1):
                assert jacobian[t, s] > 1e-9, f"token {s} does not reach output {t}, full context is claimed"


def mixing_matrix_gives_the_output(case: Case) -> None:
    """The recovered mixing matrix times the values is the input of the output projection."""
    layer, x, context = case.layer(), case.x(), case.context()
    for name, mask in {"no mask": Mask(), **case.masks()}.items():
        matrix, values, mixed = recover(layer, x, context=context, mask=mask)
        close(torch.einsum("bhts,bshe->bthe", matrix, values), mixed, f"matrix times values ({name})")


def padded_tokens_equal_absent_tokens(case: Case) -> None:
    """A padded sequence gives the outputs of its valid tokens alone; a padded image those of its unpadded part."""
    layer, x, context = case.layer(), case.x(), case.context()
    for axis in range(1, 1 + len(case.grid)):
        if case.free[axis - 1]:
            kept = torch.ones(x.shape[:-1], dtype=torch.bool)
            kept.narrow(axis, kept.shape[axis] - 1, 1).fill_(False)
            shorter = x.narrow(axis, 0, x.shape[axis] - 1)
            y = layer(x, context=context, mask=Mask(padding=kept.flatten(1))).y.narrow(axis, 0, shorter.shape[axis])
            close(y, layer(shorter, context=context).y, f"the end of grid axis {axis - 1} padded, against cut off")
    for row in range(case.batch):
        padding = case.masks()["padding"].padding
        assert padding is not None
        kept = padding[row]
        part = slice(row, row + 1)
        cut = None if context is None else context[part]
        y = layer(x[part], context=cut, mask=Mask(padding=padding[part])).y.flatten(1, -2)
        if kept.any() and case.free == (True,):
            shortened = layer(x[part][:, kept], context=cut).y
            close(y[:, kept], shortened, "valid tokens against the shortened sequence")
        assert torch.equal(y[:, ~kept], torch.zeros_like(y[:, ~kept])), "padded outputs are not 0"
        noise = torch.where(kept.view(1, *case.grid, 1), x[part], 1e3)
        again = layer(noise, context=cut, mask=Mask(padding=padding[part])).y.flatten(1, -2)
        close(again[:, kept], y[:, kept], "content of the padding", 1e-12)


def fully_masked_rows_are_zero_with_finite_gradients(case: Case) -> None:
    layer, x = case.layer(), case.x().requires_grad_()
    nothing = Mask(padding=torch.zeros(case.batch, case.tokens, dtype=torch.bool))
    y = layer(x, context=case.context(), mask=nothing).y
    assert torch.equal(y, torch.zeros_like(y)), "a fully masked input does not give 0"
    tensors = {"x": x, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(y.sum(), list(tensors.values()), allow_unused=True, materialize_grads=True)
    for name, grad in zip(tensors, grads, strict=True):
        assert grad.isfinite().all(), f"gradient of {name} is not finite for a fully masked input"


def reset_equals_separate_sequences(case: Case) -> None:
    layer, x = case.layer(), case.x()
    for at in range(case.steps):
        reset = torch.zeros(case.batch, case.tokens, dtype=torch.bool)
        reset[:, at * case.row] = True
        y = layer(x, mask=Mask(reset=reset)).y
        apart = torch.cat([layer(x[:, :at]).y, layer(x[:, at:]).y], 1)
        close(y, apart, f"reset at {at}")


FILLS = (float("nan"), float("inf"), float("-inf"), 1e30)


def padding_is_never_read(case: Case) -> None:
    """The content of padded tokens and their upstream gradient change no other output and no gradient by one bit."""
    for name, mask in case.masks().items():
        if mask.padding is None and mask.context_padding is None:
            continue
        for training in (False, True):
            expected = _with_padding(case, mask, 0.0, 0.0, training)
            for fill in FILLS:
                found = _with_padding(case, mask, fill, fill, training)
                for label, value in found.items():
                    what = f"{label} ({name}, {'training' if training else 'evaluation'}, {fill} in the padding)"
                    assert torch.equal(value, expected[label]), f"{what}: reads the padding"
                    assert value.isfinite().all(), f"{what}: not finite"


def _with_padding(case: Case, mask: Mask, fill: float, upstream: float, training: bool) -> dict[str, Tensor]:
    """Return outputs, statistics, state and gradients with ``fill`` as padding and ``upstream`` as its gradient."""
    layer, x, context = case.layer().train(training), case.x(), case.context()
    weights = torch.randn(x.shape, generator=case.generator(8), dtype=torch.float64)
    if mask.padding is not None:
        real = mask.padding.view(*x.shape[:-1], 1)
        x, weights = torch.where(real, x, fill), torch.where(real, weights, upstream)
    if context is not None and mask.context_padding is not None:
        context = torch.where(mask.context_padding.unsqueeze(2), context, fill)
    inputs = {"x": x.requires_grad_()} if context is None else {"x": x.requires_grad_(), "context": context}
    wanted = {name: value.requires_grad_() for name, value in inputs.items()} | dict(layer.named_parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        out = layer(x, context=context, mask=mask)
    found = {"output": out.y, **{f"aux {name}": value for name, value in out.aux.items()}}
    found |= {f"state {n}": leaf for n, leaf in enumerate(trees.leaves(out.state))}
    losses = [value.sum() for value in out.aux.values() if value.requires_grad]
    roots, gradients = [out.y, *losses], [weights, *(torch.ones_like(loss) for loss in losses)]
    grads = torch.autograd.grad(roots, list(wanted.values()), gradients, allow_unused=True, materialize_grads=True)
    found |= {f"gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)}
    return {name: value.detach() for name, value in found.items()}


def empty_input_gives_empty_output(case: Case) -> None:
    """Empty batches and empty grids give empty outputs; an empty context equals one that is all padding."""
    layer, context = case.layer(), case.context()
    shapes = [(0, case.grid)]
    if case.free[0]:
        shapes += [(case.batch, (0, *case.grid[1:])), (0, (0, *case.grid[1:]))]
    for training in (False, True):
        layer.train(training)
        for batch, grid in shapes:
            what = f"{batch} rows of {grid} tokens"
            x = case.x(batch=batch, grid=grid).requires_grad_()
            out = layer(x, context=None if context is None else context[:1].expand(batch, -1, -1))
            assert out.y.shape == x.shape, f"{what} became {tuple(out.y.shape)}"
            assert out.y.dtype == x.dtype, f"{what} became {out.y.dtype}"
            assert all(leaf.shape[0] == batch for leaf in trees.leaves(out.state)), f"{what}: the state has other rows"
            tensors = [x, *layer.parameters()]
            loss = out.y.sum() + sum(value.sum() for value in out.aux.values())
            assert loss.requires_grad, f"{what}: the output is detached"
            for grad in torch.autograd.grad(loss, tensors):
                assert torch.equal(grad, torch.zeros_like(grad)), f"{what}: the gradient is not 0"
    if context is not None:
        _empty_context(layer.eval(), case.x(), context)
    if layer.state_kind != "none":
        x = case.x(batch=0)
        y, state = layer.step(x[:, 0], layer.init_state(0, dtype=x.dtype))
        assert y.shape == x[:, 0].shape, f"step of no rows gave {tuple(y.shape)}"
        assert all(leaf.shape[0] == 0 for leaf in trees.leaves(state)), "step of no rows gave a state with rows"


def _empty_context(layer: Layer, x: Tensor, context: Tensor) -> None:
    nothing = torch.zeros(context.shape[:2], dtype=torch.bool)
    wanted = [x.requires_grad_(), *layer.parameters()]

    def run(**given: Tensor | Mask) -> list[Tensor]:
        y = layer(x, **given).y
        return [y, *torch.autograd.grad(y.sum(), wanted, allow_unused=True, materialize_grads=True)]

    found = run(context=context[:, :0])
    assert all(a.isfinite().all() for a in found), "a context of no tokens: not finite"
    if "context_padding" not in layer.masks:
        return
    expected = run(context=context, mask=Mask(context_padding=nothing))
    for a, b in zip(found, expected, strict=True):
        close(a, b, "a context of no tokens, against one that is all padding", 1e-12)
