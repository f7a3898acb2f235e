"""The test battery of every layer: ``check_layer`` checks one layer, :data:`POINTS` gives each point as a test.

A point is a function of a :class:`Case`. It raises :class:`AssertionError` with the property that does not hold.
``applies`` selects the points that a configuration must pass, by its capabilities. Shapes are small and odd and weights
are large, so that errors show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from manyheads.core.layer import Layer
from manyheads.core.registry import find_layer
from manyheads.core.testing import streaming, whole
from manyheads.core.testing.case import Case, Oracle

__all__ = ["POINTS", "Case", "Oracle", "Point", "check_layer", "points_of"]


@dataclass(frozen=True)
class Point:
    """One property and the configurations that must have it."""

    check: Callable[[Case], None]
    applies: Callable[[Case, Layer], bool]

    @property
    def name(self) -> str:
        return getattr(self.check, "__name__", "point")


def _always(case: Case, layer: Layer) -> bool:
    return True


def _causal(case: Case, layer: Layer) -> bool:
    return layer.is_causal


def _streams(case: Case, layer: Layer) -> bool:
    return layer.state_kind != "none"


def _masked(name: str) -> Callable[[Case, Layer], bool]:
    return lambda case, layer: name in layer.masks


POINTS: Mapping[str, Point] = {
    point.name: point
    for point in (
        Point(whole.shape_and_dtype_are_kept, _always),
        Point(whole.non_contiguous_input_gives_the_same_output, _always),
        Point(whole.oracle_and_layer_agree, lambda case, layer: case.oracle is not None),
        Point(whole.bfloat16_is_close, _always),
        Point(whole.gradcheck_passes, lambda case, layer: not layer.info.surrogate),
        Point(whole.batch_rows_are_independent, _always),
        Point(whole.permutation_equivariance_is_as_declared, lambda case, layer: layer.causality == "no"),
        Point(whole.evaluation_is_deterministic, _always),
        Point(whole.weights_and_configuration_round_trip, _always),
        Point(whole.bad_input_is_refused, _always),
        Point(whole.mixing_matrix_gives_the_output, lambda case, layer: layer.linear_in_value),
        Point(whole.future_does_not_change_the_past, _causal),
        Point(whole.padded_tokens_equal_absent_tokens, _masked("padding")),
        Point(whole.fully_masked_rows_are_zero_with_finite_gradients, _masked("padding")),
        Point(whole.padding_is_never_read, lambda case, layer: bool({"padding", "context_padding"} & set(layer.masks))),
        Point(whole.empty_input_gives_empty_output, _always),
        Point(whole.reset_equals_separate_sequences, _masked("reset")),
        Point(streaming.layer_without_state_refuses_streaming, lambda case, layer: layer.state_kind == "none"),
        Point(streaming.chunks_equal_the_whole, _streams),
        Point(streaming.steps_equal_the_whole, _streams),
        Point(streaming.nothing_is_changed_in_place, _streams),
        Point(streaming.rows_of_a_state_are_independent, _streams),
        Point(
            streaming.right_padding_leaves_the_state,
            lambda case, layer: _streams(case, layer) and "padding" in layer.masks,
        ),
        Point(
            streaming.gradient_flows_through_the_state,
            lambda case, layer: _streams(case, layer) and layer.state_carries_gradient,
        ),
        Point(streaming.state_does_not_grow, _streams),
        Point(streaming.full_growing_state_raises_an_error, lambda case, layer: layer.state_kind == "growing"),
    )
}


def points_of(case: Case) -> list[str]:
    """Return the names of the points that this configuration must pass."""
    layer = case.layer()
    return [name for name, point in POINTS.items() if point.applies(case, layer)]


def check_layer(layer: str | type[Layer], config: Mapping[str, Any] | None = None, **case: Any) -> list[str]:
    """Run every point that applies and return the names of these points.

    Args:
        layer: a registered name or a class.
        config: arguments of the layer. Without it, a registered layer is checked in its example configurations and a
            class with its default arguments.
        case: further fields of :class:`Case`, such as ``oracle``.

    Raises:
        AssertionError: at the first point that fails.
    """
    if isinstance(layer, str):
        layer = find_layer(layer)
        configs = list(layer.info.at_length(7).values()) if config is None else [config]
    else:
        configs = [config or {}]
    passed: list[str] = []
    for one in configs:
        made = Case(layer, one, **case)
        for name in points_of(made):
            try:
                POINTS[name].check(made)
            except Exception as error:
                raise AssertionError(f"{layer.info.name} {dict(one)}: {name}: {error}") from error
            passed.append(name)
    return passed
