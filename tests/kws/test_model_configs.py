"""Network configs: JSON and refused values."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch

from manyheads.core.errors import ArgumentError, StateError, UnknownNameError
from manyheads.kws.models import LayerNetworkConfig, LMUFormerConfig, config_from_json
from tests.kws.networks import BINS, CONFIGS, LABELS, SMALL, awake, frames


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_config_survives_json(name: str) -> None:
    config = CONFIGS[name]
    assert config_from_json(json.loads(json.dumps(config.to_json()))) == config


def test_wrong_bins_are_refused() -> None:
    network, _ = awake("2d")
    with pytest.raises(ArgumentError, match=rf"frames: found shape \(1, 5, 7\), expected \(B, T, {BINS}\)"):
        network(torch.zeros(1, 5, 7, dtype=torch.float64))


def test_a_state_of_another_network_is_refused() -> None:
    network, _ = awake("2d")
    for other in ("1d", "residual-cnn", "2d-spiking"):
        with pytest.raises(StateError, match="of another network"):
            network(frames(1, 4), awake(other)[0].init_state(1, dtype=torch.float64))
    with pytest.raises(StateError, match="batch size 3, expected 1"):
        network(frames(1, 4), network.init_state(3, dtype=torch.float64))
    with pytest.raises(StateError, match="NetworkState"):
        network(frames(1, 4), (torch.zeros(1),))


def test_order_above_the_window_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match="order: found 64 with window 20"):
        LMUFormerConfig(**{**SMALL, "order": 64}).make(BINS, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LMUFormerConfig(**SMALL).make(BINS, LABELS)


def test_error_for_an_unknown_layer_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'softmax'"):
        LayerNetworkConfig(layer="sofmax").make(BINS, LABELS)
    with pytest.raises(UnknownNameError, match="did you mean 'lmuformer'"):
        config_from_json({"kind": "lmufomer"})


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LayerNetworkConfig(layer="softmax", options={"causal": False, "window": None}), "causality 'no'"),
        (LayerNetworkConfig(layer="softmax", options={"window": None, "max_len": 9}), "'growing'"),
        (LayerNetworkConfig(layer="lmu", options={"heads": 2}), "heads"),
        (LMUFormerConfig(lookahead=1), "lookahead: found 1 frames, expected 0 to 0 in multiples of the stride 2"),
        (LMUFormerConfig(stem="1d", stride=1, lookahead=9), "expected 0 to 6"),
        (LMUFormerConfig(stem="3d"), "'1d' or '2d'"),
        (LMUFormerConfig(stem="1d", kernels=(3,)), "stride"),
        (LMUFormerConfig(memories=0), "memories: found 0"),
    ],
)
def test_bad_network_configs_are_refused(config, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        config.make(BINS, LABELS)


def test_labels_that_repeat_are_refused() -> None:
    with pytest.raises(ArgumentError, match="labels"):
        LMUFormerConfig().make(BINS, ("yes", "yes"))


def test_unknown_config_field_is_refused() -> None:
    with pytest.raises(ArgumentError, match="depht"):
        config_from_json({"kind": "lmuformer", "depht": 2})


@pytest.mark.parametrize("name", ["softmax-ahead", "gtrxl"])
def test_names_of_release_0_1_are_those_of_the_residual_block_today(name):
    config = CONFIGS[name]
    now = config.make(BINS, LABELS).state_dict()
    before = {re.sub(r"^(blocks\.\d+)\.mixer\.(layer_(?=norm))?", r"\1.", name): t for name, t in now.items()}
    assert {"blocks.0.norm.running_mean", "blocks.0.ffn.widen.bias", "head.bias"} <= before.keys()
    assert any(name.startswith("blocks.0.layer.") for name in before)
    for stored in (before, now):
        found = config.renamed(stored)
        assert found.keys() == now.keys()
        assert all(found[name] is now[name] for name in now)
