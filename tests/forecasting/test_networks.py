"""Transformers as forecasters: equations, any layer inside them, training, storage."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from manyheads.core.backbones.stack import layer_for_grid
from manyheads.core.blocks.decomposition import SeriesDecomposition
from manyheads.core.errors import ArgumentError, CheckpointError, UnknownNameError
from manyheads.core.registry import LAYERS
from manyheads.forecasting import Forecaster, Panel
from manyheads.forecasting.models import find_model, fit_model
from manyheads.forecasting.models.network_forecast import NetworkForecast
from manyheads.forecasting.models.networks import NETWORKS, network_config
from manyheads.forecasting.series.panels import History
from manyheads.lab.data.storage import load_arrays, save_tensors

pytestmark = pytest.mark.filterwarnings("ignore::manyheads.forecasting.series.panels.FitWarning")
NO_SEQUENCE = ["fourier-cross", *(name for name, layer in LAYERS.items() if 1 not in layer.info.grid_ranks)]
SEQUENCE = [name for name in LAYERS if name not in NO_SEQUENCE]


def module_of(name, *, look_back=24, horizon=8, channels=3, **changes):
    torch.manual_seed(0)
    return network_config(name, **changes).make(look_back, horizon, channels).double().eval()


def panel(rows=160, channels=2):
    rng = np.random.default_rng(0)
    t = np.arange(rows)[:, None]
    values = np.sin(2 * np.pi * t / 12 + np.arange(channels)) + 0.1 * rng.normal(size=(rows, channels))
    names = tuple(f"c{index}" for index in range(channels))
    return Panel(values, names, pd.date_range("2024-01-01", periods=rows, freq="h"), 12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("look_back", "horizon", "channels"), [(24, 8, 3), (7, 13, 1), (16, 1, 2)])
def test_every_network_has_the_right_shape_and_a_gradient_in_every_parameter(name, look_back, horizon, channels):
    module = module_of(name, look_back=look_back, horizon=horizon, channels=channels).train()
    y = module(torch.randn(5, look_back, channels, dtype=torch.float64))
    assert y.shape == (5, horizon, channels)
    (y**2).sum().backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_the_windows_of_a_batch_do_not_change_each_other(name):
    module = module_of(name)
    x = torch.randn(4, 24, 3, dtype=torch.float64)
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["patchtst", "itransformer"])
def test_a_shift_and_scale_of_the_window_shifts_and_scales_the_forecast_with_instance_norm(name):
    module = module_of(name)
    x = 30 * torch.randn(2, 24, 3, dtype=torch.float64)  # large beside the floor of the deviation
    scale, shift = torch.tensor([2.0, 0.5, 7.0]), torch.tensor([-3.0, 10.0, 0.0])
    torch.testing.assert_close(module(x * scale + shift), module(x) * scale + shift, rtol=1e-5, atol=1e-4)


def test_patchtst_is_channel_independent_and_itransformer_mixes_channels():
    x = torch.randn(2, 24, 3, dtype=torch.float64)
    other = x.clone()
    other[:, :, 1] += torch.randn(2, 24, dtype=torch.float64)
    alone, together = module_of("patchtst"), module_of("itransformer")
    torch.testing.assert_close(alone(x)[:, :, [0, 2]], alone(other)[:, :, [0, 2]])
    assert (together(x) - together(other))[:, :, [0, 2]].abs().max() > 1e-3
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(together(x)[:, :, order], together(x[:, :, order]), rtol=1e-9, atol=1e-9)


def test_autoformer_with_zero_weights_forecasts_the_mean_of_the_look_back():
    """Zero weights remove the seasonal part and the learnt trends; the initial trend, the mean, remains."""
    module = module_of("autoformer")
    for parameter in (*module.trends.parameters(), *module.head.parameters()):
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 24, 3, dtype=torch.float64)
    torch.testing.assert_close(module(x), x.mean(1, keepdim=True).expand(-1, 8, -1))


def test_later_steps_do_not_change_earlier_steps_of_the_transformer_decoder():
    """A horizon of 3 gives the first steps of 8, except the last one: its embedding wraps around (circular padding)."""
    long, short = module_of("transformer", horizon=8), module_of("transformer", horizon=3)
    short.load_state_dict(long.state_dict())
    x = torch.randn(2, 24, 3, dtype=torch.float64)
    torch.testing.assert_close(long(x)[:, :2], short(x)[:, :2], rtol=1e-9, atol=1e-9)


def test_the_transformer_equals_its_equations():
    module = module_of("transformer", depth=1, dropout=0.0)
    x = torch.randn(2, 24, 3, dtype=torch.float64)

    def norm(z, layer):
        return torch.nn.functional.layer_norm(z, (z.shape[-1],), layer.weight, layer.bias)

    positions = module.positions(torch.zeros(1, 24, 32, dtype=torch.float64))
    block = module.encoder[0]
    h = module.encoder_embedding(x) + positions
    h = norm(h + block.layer(h).y, block.layer_norm)
    encoded = norm(norm(h + block.feed_forward(h), block.feed_forward_norm), module.encoder_norm)
    asked = torch.cat([x[:, 12:], torch.zeros(2, 8, 3, dtype=torch.float64)], 1)
    block = module.decoder[0]
    assert block.layer.is_causal
    d = module.decoder_embedding(asked) + module.positions(torch.zeros(1, 20, 32, dtype=torch.float64))
    d = norm(d + block.layer(d).y, block.layer_norm)
    d = norm(d + block.cross(d, context=encoded).y, block.cross_norm)
    d = norm(d + block.feed_forward(d), block.feed_forward_norm)
    expected = norm(d, module.decoder_norm)[:, -8:] @ module.head.weight.T + module.head.bias
    torch.testing.assert_close(module(x), expected, rtol=1e-9, atol=1e-9)


def test_fedformer_equals_its_equations():
    module = module_of("fedformer", depth=1, dropout=0.0)
    x = torch.randn(2, 24, 3, dtype=torch.float64)
    split = SeriesDecomposition(24)
    seasonal, trend = split(x)
    encoded, _ = module.encoder[0](module.encoder_embedding(x))
    zeros, mean = torch.zeros(2, 8, 3, dtype=torch.float64), x.mean(1, keepdim=True).expand(-1, 8, -1)
    decoded = module.decoder_embedding(torch.cat([seasonal[:, 12:], zeros], 1))
    decoded, removed = module.decoder[0](decoded, module.encoder_norm(encoded))
    around = torch.cat([removed[:, -1:], removed, removed[:, :1]], 1)  # circular padding
    weight = module.trends[0].weight  # (C, D, 3)
    learned = sum(around[:, j : j + 20] @ weight[:, :, j].T for j in range(3))
    expected = module.head(module.decoder_norm(decoded)) + torch.cat([trend[:, 12:], mean], 1) + learned
    torch.testing.assert_close(module(x), expected[:, -8:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layer", SEQUENCE)
@pytest.mark.parametrize("name", ["transformer", "autoformer", "patchtst", "itransformer"])
def test_every_sequence_layer_works_in_every_network(name, layer):
    module = module_of(name, layer=layer, look_back=20, horizon=4)
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    assert module(x).shape == (2, 4, 3)
    assert module(x).isfinite().all()


@pytest.mark.parametrize("layer", NO_SEQUENCE)
def test_a_layer_that_is_not_for_sequences_raises(layer):
    with pytest.raises(ArgumentError, match="expected one that takes a sequence alone"):
        layer_for_grid(layer, 8, (12,), heads=2)


def test_a_network_around_a_layer_is_found_by_both_names():
    assert find_model("transformer:routing").options["layer"] == "routing"
    with pytest.raises(UnknownNameError, match="did you mean 'routing'"):
        find_model("transformer:rooting")
    with pytest.raises(ArgumentError, match="found the layer 'routing' with 'nlinear'"):
        find_model("nlinear:routing")
    with pytest.raises(UnknownNameError, match="did you mean 'informer'"):
        find_model("infomer")
    with pytest.raises(ArgumentError, match="informer: size: found a setting"):
        network_config("informer", size=3)


def test_published_configs_have_the_sizes_of_the_papers():
    for name in ("transformer", "informer", "autoformer", "fedformer"):
        config = network_config(name, published=True)
        assert (config.width, config.heads, config.depth, config.decoder_depth) == (512, 8, 2, 1)
        assert config.width * config.expansion == 2048


@pytest.mark.parametrize("name", ["transformer:lmu", "itransformer", "fedformer"])
def test_a_loaded_network_gives_the_same_forecast(name, tmp_path):
    forecaster = Forecaster(4, model=name, look_back=16, levels=(0.8,)).fit(panel())
    forecaster.save(tmp_path / "f.safetensors")
    loaded = Forecaster.load(tmp_path / "f.safetensors")
    pd.testing.assert_frame_equal(loaded.predict(), forecaster.predict())
    assert {"lo-80", "hi-80"} <= set(loaded.predict())


def test_a_constant_channel_beside_a_network_survives_saving(tmp_path):
    values = np.column_stack([panel().values[:, 0], np.full(160, 5.0), panel().values[:, 1]])
    mixed = Panel(values, ("a", "still", "b"), panel().stamps, 12)
    forecaster = Forecaster(4, model="itransformer", look_back=16, levels=()).fit(mixed)
    forecaster.save(tmp_path / "f.safetensors")
    found = Forecaster.load(tmp_path / "f.safetensors").predict()
    pd.testing.assert_frame_equal(found, forecaster.predict())
    assert (found.loc[found["unique_id"] == "still", "y_hat"] == 5.0).all()


def test_the_seed_determines_the_network():
    values = panel().values
    history = History(values, 128, 12)
    first, again, other = (fit_model("itransformer", history, [4], look_back=16, seed=s)[4] for s in (1, 1, 2))
    windows = values[None, -16:]
    np.testing.assert_array_equal(first.forecast(windows), again.forecast(windows))
    assert np.abs(first.forecast(windows) - other.forecast(windows)).max() > 1e-6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(network="no"), "unknown network 'no'"),
        (lambda d: d["settings"].update(width=1 << 20), "settings of another size"),
        (lambda d: d["settings"].update(width=64), "shape"),
        (lambda d: d["settings"].update(layer=3), "layer"),
        (lambda d: d.update(look_back=0), "look_back: found 0"),
        (lambda d: d.update(look_back=1 << 40), "look_back: found 1099511627776"),
        (lambda d: d.update(look_back=17), "shape"),
        (lambda d: d.pop("settings"), "settings"),
        (lambda d: d.update(kind="pickle"), "kind: found 'pickle'"),
    ],
)
def test_a_damaged_description_of_a_network_raises_one_line(tmp_path, change, said):
    path = tmp_path / "f.safetensors"
    Forecaster(4, model="itransformer", look_back=16, levels=()).fit(panel()).save(path)
    arrays, header = load_arrays(path, kind="forecaster", fix="")
    change(header["panels"][0]["model"])
    save_tensors(path, arrays, {k: v for k, v in header.items() if k != "kind"}, kind="forecaster")
    with pytest.raises(CheckpointError, match=said) as raised:
        Forecaster.load(path)
    assert "\n" not in str(raised.value)


def test_a_linear_map_is_stored_in_the_format_of_the_first_release(tmp_path):
    path = tmp_path / "f.safetensors"
    Forecaster(4, model="nlinear-cf", look_back=16, levels=()).fit(panel()).save(path)
    arrays, header = load_arrays(path, kind="forecaster", fix="")
    assert {"0.weight", "0.bias"} <= set(arrays)
    assert "model" not in header["panels"][0]
    assert json.dumps(header["format"]) == "1"


def test_a_fitted_network_forecasts_with_its_module():
    history = History(panel().values, 128, 12)
    fitted = fit_model("patchtst", history, [4], look_back=24)[4]
    assert isinstance(fitted, NetworkForecast)
    windows = np.random.default_rng(1).normal(size=(3, 24, 2))
    with torch.no_grad():
        expected = fitted.module(torch.from_numpy(windows).float()).numpy()
    np.testing.assert_allclose(fitted.forecast(windows), expected, rtol=1e-5, atol=1e-6)
