"""Write the catalogue of layers and image backbones: ``python docs/catalogue.py [LAYER …] [--check]``.

It writes one page and one picture per layer in ``docs/layers``, one page per image backbone in ``docs/backbones``, the
tables of layers and backbones, their deviations in ``docs/deviations.md``, and the navigation of the site. It draws an
existing picture again only if its layer is named. ``--check`` writes nothing and fails if a page differs from the
registry.
"""

from __future__ import annotations

import csv
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from manyheads.core.backbones.image import BackboneInfo, ImageBackbone
from manyheads.core.backbones.presets import BACKBONES, create_backbone
from manyheads.core.fields import REQUIRED, Configured, documentation
from manyheads.core.layer import Layer, LayerInfo
from manyheads.core.registry import LAYERS
from manyheads.lab.data.files import write_atomically, write_figure
from manyheads.lab.reporting.layer_costs import grid_of
from manyheads.lab.reporting.mixing_picture import DIM, draw, view_layer

ROOT = Path(__file__).parents[1]
SOURCE = "https://github.com/manyheads/manyheads/blob/main"
# lengths of sequences, and grids with the same number of cells
RESULTS = [ROOT / "benchmarks" / "results" / f"{name}.csv" for name in ("layers", "layers_grid")]
# softmax is in both files: its row in the first one is used
BENCH = list(
    {
        (row["layer"], row["length"]): row
        for path in reversed(RESULTS)
        if path.is_file()
        for row in csv.DictReader(path.open())
    }.values()
)
# Tokens of an example and of a picture.
TOKENS = 32
PAGES = ROOT / "docs" / "layers"
PICTURES = PAGES / "pictures"
BACKBONE_PAGES = ROOT / "docs" / "backbones"
MARK = "<!-- written by docs/catalogue.py -->"
# Longest line of an example in characters.
WIDTH = 80

# For each layer: the networks in which it is the default, and the reason.
USED = {
    "auto-correlation": (
        "forecasting: `autoformer`",
        "finds the period of a series, which scores of token pairs cannot",
    ),
    "axial": ("core: `AxialTransformer`", "alternates rows and columns, for grids too large for full attention"),
    "ffnified": ("core: `ffnet`", "weights near pixels most, at linear cost"),
    "fourier-block": ("forecasting: `fedformer`", "represents a periodic series by a few frequencies"),
    "fourier-cross": ("forecasting: `fedformer`", "relates the frequencies of the past to those of the forecast"),
    "gpsa": ("core: `convit`", "starts as a convolution, so that small training sets suffice"),
    "halo": ("core: `halonet`", "attends to near pixels, with weights that depend on content"),
    "heterogeneous": (
        "recsys: `heterogeneous`",
        "has separate projections for each field, as fields differ in meaning",
    ),
    "hiformer": ("recsys: `hiformer`", "has a separate projection for each pair of fields"),
    "lif": ("kws: the spiking networks, as a function", "gives sparse spikes, so that a step costs few additions"),
    "lmu": ("kws: LMUFormer, as a block", "keeps a window of the past in a small state and trains in parallel"),
    "prob-sparse": ("forecasting: `informer`", "computes only the few queries whose attention is not uniform"),
    "sg-attention": ("core: `sg-former`", "uses few keys in uniform regions of an image, many in detailed regions"),
    "softmax": (
        "forecasting: `transformer`, `patchtst`, `itransformer`; recsys: `vanilla`; core: `vit`, `tnt`, `fit`",
        "is the baseline of every comparison",
    ),
    "spectral-gate": ("core: `spectformer`", "filters the whole image at N log N cost, for periodic texture"),
}


def uses() -> str:
    """Return the table of the networks in which each layer is the default."""
    rows = ["| layer | default in | reason, or use |", "|---|---|---|"]
    for name, kind in LAYERS.items():
        place, reason = USED.get(name, ("", ""))
        if not place:
            place, reason = "none", f"use: {kind.info.good_for}"
        rows.append(f"| [`{name}`]({name}.md) | {place} | {reason} |")
    return "\n".join(rows)


def page(kind: type[Layer]) -> str:
    """Return the page of a layer: use, formula, arguments, properties, cost, example, picture, deviations."""
    info, name = kind.info, kind.info.name
    view = "mixing matrix" if info.linear_in_value else "influence of each input on each output"
    facts = {
        "paper": paper(info.title, info.arxiv),
        "proof": proof(kind),
        "cost": info.cost,
        "grid axes": " or ".join(map(str, info.grid_ranks)),
        "lengths": info.lengths,
        "causal": ", ".join(info.causal),
        "state": ", ".join(info.state),
        "look-ahead": f"{info.lookahead} steps",
        "masks": ", ".join(info.masks) or "none",
        "`torch.compile`, one graph": "yes" if info.compiles else "no",
        "`torch.export`, any batch size": "yes" if info.exports else "no",
        "`torch.func.vmap` of `grad`": "yes" if info.vmaps else "no",
        "second derivatives": "yes" if info.second_derivatives else "an error",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    deviations = "\n".join(f"- {line}" for line in info.deviations) or "None known."
    return f"""# {name}

<!-- written by docs/catalogue.py -->

**Use it for:** {info.good_for}

**Take another layer:** {info.not_for}

$$
{info.formula.strip()}
$$

{definition(kind)}

## Arguments

{arguments(kind)}

## Properties

| property | {name} |
|---|---|
{rows}

{measured(name)}

## Example

```python
{snippet(kind)}
```

![{name}: {view}](pictures/{name}.png)

*Random weights, input with period 8 tokens: {view} (`manyheads show {name}`).*

## Differs from the paper

{deviations}

{reference(kind)}
"""


def reference(kind: type[Layer]) -> str:
    """Return the mark of the reference of a layer's module, or a link to the page that has this mark."""
    first = next(name for name, other in LAYERS.items() if other.__module__ == kind.__module__)
    if first == kind.info.name:
        return f"<!-- reference: {kind.__module__} -->"
    return f"The reference of its module is on the page of [`{first}`]({first}.md)."


def proof(kind: type[Layer]) -> str:
    """Return links to the layer, its oracle and its tests."""
    module = kind.__module__.rpartition(".")[2]
    tests = f"tests/core/layers/{module}"
    links = {"source": f"shared/src/manyheads/core/layers/{module}.py", "oracle": f"{tests}/oracle.py", "tests": tests}
    texts = [f"[{text}]({SOURCE}/{path})" for text, path in links.items()]
    return f"{', '.join(texts)}: outputs and all gradients agree with the oracle to 1e-10 in float64"


def definition(kind: type[Configured]) -> str:
    """Return the docstring of the module as Markdown, without its title and its deviations."""
    text = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    parts = [part for part in text.split("\n\n")[1:] if not part.startswith("Differs from the paper")]
    blocks = [_code(part) if part.startswith("    ") else _prose(part) for part in parts]
    return "\n\n".join(blocks).replace("\n```\n\n```text\n", "\n\n")


def _code(part: str) -> str:
    return f"```text\n{textwrap.dedent(part)}\n```"


def _prose(part: str) -> str:
    """Return a paragraph of a docstring as Markdown; indented lines become code."""
    text = re.sub(r"``([^`]+)``", r"`\1`", re.sub(r":\w+:`~?([^`]+)`", r"`\1`", part))
    return re.sub(r"((?:\n {4}.*)+)", lambda found: f"\n\n{_code(found[1].strip(chr(10)))}\n", text)


def arguments(kind: type[Configured]) -> str:
    """Return the table of the arguments, from the fields of the class."""
    rows = ["| argument | default | meaning |", "|---|---|---|"]
    texts = documentation(kind)
    for one in kind.arguments:
        default = "computed" if one.factory else "required" if one.default is REQUIRED else f"`{one.default!r}`"
        meaning = " ".join(texts[one.name].replace("``", "`").split()).replace("|", "\\|")
        rows.append(f"| `{one.name}` | {default} | {meaning} |")
    return "\n".join(rows)


def measured(name: str) -> str:
    """Return the committed benchmark of a layer: time, memory and speed-up over softmax of the same causality."""
    found = [row for row in BENCH if row["layer"].split(" (")[0] == name and row["length"] in ("1024", "4096", "16384")]
    if not found:
        return "The benchmark does not measure this layer (`manyheads bench layers`)."
    rows = [
        "| measured | tokens | forward, ms | backward, ms | peak, MB | speed-up over softmax |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        times = [f"{1e3 * float(row[key]):.3g}" for key in ("forward_cpu_s", "backward_cpu_s")]
        speed = f"{float(row['speedup']):.2f}" if row["speedup"] else "-"
        cells = [row["layer"], row["length"], *times, f"{int(row['peak_bytes']) / 1e6:.3g}", speed]
        rows.append(f"| {' | '.join(cells)} |")
    rows += ["", "Batch size 1, width 128, one thread of a CPU ([method, and all layers](cost.md))."]
    return "\n".join(rows)


def snippet(kind: type[Layer]) -> str:
    """Return a script that runs: a whole input, then a stream and the mixing matrix if the layer has them."""
    info = kind.info
    examples = list(info.at_length(TOKENS).values())
    config = examples[0]
    layer = kind(DIM, **config)
    width = layer.context_dim
    sizes = grid_of(TOKENS, layer.grid_ranks[0])
    grid = sizes if layer.grid is None else tuple(size or usual for size, usual in zip(layer.grid, sizes, strict=True))
    shape = ", ".join(map(str, (2, *grid, DIM)))
    lines = [
        "import torch",
        "from manyheads.core import create",
        "",
        creation("layer", info.name, DIM, config),
        f"x = torch.randn({shape})",
        *([] if width is None else [f"context = torch.randn(2, 12, {width})"]),
        f"y, state, aux = layer(x{'' if width is None else ', context=context'})",
    ]
    streams = next((c for c in [*examples, *info.streams_with] if kind(DIM, **c).state_kind != "none"), None)
    if streams is not None:
        other = "layer" if streams == config else "stream"
        what = "the same layer" if other == "layer" else "a configuration that streams"
        lines += ["", f"# {what}, one token at a time"]
        if other == "stream":
            lines.append(creation("stream", info.name, DIM, streams))
        lines += [
            f"state = {other}.init_state(2)",
            "for x_t in x.unbind(1):",
            f"    y_t, state = {other}.step(x_t, state)",
        ]
    if info.linear_in_value:
        lines += ["", "from manyheads.core.methods.mixing_matrix import mixing_matrix", ""]
        given = "layer, x" if width is None else "layer, x, context=context"
        lines += ["# (B, heads, outputs, inputs)", f"matrix = mixing_matrix({given})"]
    return "\n".join(lines)


def creation(variable: str, name: str, dim: int, config: Mapping[str, Any]) -> str:
    """Return the call on one line, or with one argument per line if it would be too long."""
    given = [f'"{name}"', f"dim={dim}", *(f"{key}={value!r}".replace("'", '"') for key, value in config.items())]
    line = f"{variable} = create({', '.join(given)})"
    if len(line) <= WIDTH:
        return line
    return f"{variable} = create(\n" + "".join(f"    {argument},\n" for argument in given) + ")"


def paper(title: str, arxiv: str) -> str:
    return f"{title} ([{arxiv}](https://arxiv.org/abs/{arxiv}))"


def backbone_page(kind: type[ImageBackbone]) -> str:
    """Return the page of an image backbone: use, equation, presets, arguments, example, deviations."""
    info, name = kind.info, kind.info.name
    module = kind.__module__.rpartition(".")[2]
    source = f"{SOURCE}/shared/src/manyheads/core/backbones/{module}.py"
    facts = {
        "paper": paper(info.title, info.arxiv),
        "source": f"[{module}.py]({source})",
        "`torch.compile`, one graph": info.compiles or "yes",
        "`torch.export`, any batch size": info.exports or "yes",
        "ONNX": info.onnx or "yes",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    listed = "\n".join(f"- {line}" for line in info.deviations) or "None known."
    return f"""# {name}

{MARK}

**Use it for:** {info.good_for}

**Take another backbone:** {info.not_for}

{definition(kind)}

## Presets

{presets(kind)}

## Arguments

{arguments(kind)}

## Properties

| property | {name} |
|---|---|
{rows}

## Example

```python
import torch
from manyheads.core.backbones.presets import create_backbone

model = create_backbone("{name}-nano", classes=10, channels=1)
images = torch.randn(2, 1, {_side(kind)}, {_side(kind)})
logits = model(images)  # (B, 10)
for level, features in zip(model.levels, model.forward_features(images)):
    print(level.stride, features.shape)  # (B, H / stride, W / stride, width)
```

Train it on your own pictures: `manyheads images train folder-{name}-nano data.folder=photos` ([how](../images.md)).

## Differs from the paper

{listed}

<!-- reference: {kind.__module__} -->
"""


def _side(kind: type[ImageBackbone]) -> int:
    return kind.info.presets["nano"].get("image_size", 32)


def presets(kind: type[ImageBackbone]) -> str:
    """Return the table of the presets: parameters, published parameters, strides and widths of the features."""
    rows = ["| preset | parameters | published | strides | widths |", "|---|---|---|---|---|"]
    for preset in kind.info.presets:
        with torch.device("meta"):
            model = create_backbone(f"{kind.info.name}-{preset}")
        published = kind.info.parameters.get(preset, "")
        cells = (
            f"`{kind.info.name}-{preset}`",
            f"{sum(one.numel() for one in model.parameters()):,}",
            f"{published:,}" if isinstance(published, int) else published,
            ", ".join(str(level.stride) for level in model.levels),
            ", ".join(str(level.width) for level in model.levels),
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", "With 1,000 classes and 3 channels."])


def backbone_table() -> str:
    rows = ["| backbone | paper | presets | use it for |", "|---|---|---|---|"]
    for name, kind in BACKBONES.items():
        info = kind.info
        cells = (f"[`{name}`]({name}.md)", paper(info.title, info.arxiv), ", ".join(info.presets), info.good_for)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def deviations(infos: Iterable[LayerInfo | BackboneInfo], folder: str) -> str:
    """Return all deviations: one heading per paper, then each list below the links to the pages it applies to."""
    papers: dict[str, list[LayerInfo | BackboneInfo]] = {}
    for info in infos:
        papers.setdefault(info.arxiv, []).append(info)
    parts = []
    for infos in papers.values():
        # sentence -> layers, then layers -> sentences, as layers of one paper share some deviations
        holders: dict[str, list[str]] = {}
        for info in infos:
            for sentence in info.deviations or ("None known.",):
                holders.setdefault(sentence, []).append(info.name)
        lists: dict[tuple[str, ...], list[str]] = {}
        for sentence, names in holders.items():
            lists.setdefault(tuple(names), []).append(f"- {sentence}")
        parts.append(f"### {paper(infos[0].title, infos[0].arxiv)}")
        for names, sentences in lists.items():
            links = ", ".join(f"[`{name}`]({folder}/{name}.md)" for name in names)
            parts += [f"{links}:", "\n".join(sentences)]
    return "\n" + "\n\n".join(parts) + "\n"


def table(folder: str, *, cost: bool) -> str:
    header = ("layer", "paper", "causal", "state", *(("cost",) if cost else ()))
    rows = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, kind in LAYERS.items():
        info = kind.info
        link = f"[`{name}`]({folder}{name}.md)"
        cells = (
            link,
            paper(info.title, info.arxiv),
            ", ".join(info.causal),
            ", ".join(info.state),
            *((info.cost,) if cost else ()),
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def between(text: str, start: str, end: str, content: str) -> str:
    pattern = re.compile(f"({re.escape(start)}\n).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"no place marked {start} … {end}")
    return pattern.sub(lambda match: match[1] + content + "\n" + match[2], text)


def wanted() -> dict[Path, str]:
    """Return every text of the catalogue by path."""
    texts = {PAGES / f"{name}.md": page(kind) for name, kind in LAYERS.items()}
    for path, folder in ((PAGES / "index.md", ""), (ROOT / "README.md", "docs/layers/")):
        rows = table(folder, cost=folder == "")
        texts[path] = between(path.read_text(), "<!-- catalogue -->", "<!-- end of catalogue -->", rows)
    path = PAGES / "uses.md"
    texts[path] = between(path.read_text(), "<!-- catalogue -->", "<!-- end of catalogue -->", uses())
    path = ROOT / "docs" / "deviations.md"
    of_layers = deviations([kind.info for kind in LAYERS.values()], "layers")
    texts[path] = between(path.read_text(), "<!-- layers -->", "<!-- end of layers -->", of_layers)
    of_backbones = deviations([kind.info for kind in BACKBONES.values()], "backbones")
    texts[path] = between(texts[path], "<!-- backbones -->", "<!-- end of backbones -->", of_backbones)
    for name, kind in BACKBONES.items():
        own = BACKBONE_PAGES / f"{name}.md"
        # do not overwrite a page that was written by hand
        if not own.is_file() or MARK in own.read_text():
            texts[own] = backbone_page(kind)
    path = BACKBONE_PAGES / "index.md"
    texts[path] = between(path.read_text(), "<!-- catalogue -->", "<!-- end of catalogue -->", backbone_table())
    site = ROOT / "mkdocs.yml"
    texts[site] = site.read_text()
    for folder, names, mark in (("layers", LAYERS, "catalogue"), ("backbones", BACKBONES, "backbones")):
        nav = "\n".join(f"          - {name}: {folder}/{name}.md" for name in names)
        texts[site] = between(texts[site], f"          # {mark}", f"          # end of {mark}", nav)
    return texts


def main(arguments: list[str]) -> None:
    texts = wanted()
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    stale += [PICTURES / f"{name}.png" for name in LAYERS if not (PICTURES / f"{name}.png").is_file()]
    if "--check" in arguments:
        if stale:
            raise SystemExit(f"{stale[0].relative_to(ROOT)} is not what the registry says: python docs/catalogue.py")
        return
    for path in stale:
        if path.suffix != ".png":
            write_atomically(path, texts[path].encode())
    for name in LAYERS:
        if PICTURES / f"{name}.png" in stale or name in arguments:
            write_figure(PICTURES / f"{name}.png", draw(view_layer(name)))


if __name__ == "__main__":
    main(sys.argv[1:])
