"""Writes the catalogue of layers from the registry: ``python docs/catalogue.py [LAYER …] [--check]``.

One page and one picture a layer in ``docs/layers``, the table of all in ``docs/layers/index.md`` and in the README, and
the navigation of the site. A picture that exists is drawn anew only where its layer is named. ``--check`` changes
nothing and fails where a page is not what the registry says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manyheads.core.registry import LAYERS, Entry
from manyheads.lab.data.files import write_atomically, write_figure
from manyheads.lab.reporting.mixing_picture import DIM, draw, view_layer

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "layers"
PICTURES = PAGES / "pictures"
WIDTH = 80  # characters of an example that fit into its box


def page(name: str, entry: Entry) -> str:
    info = entry.layer.info
    view = "what each output is made of" if info.linear_in_value else "how strongly each output depends on each input"
    facts = {
        "paper": paper(info.title, info.arxiv),
        "grid axes": " or ".join(map(str, info.grid_ranks)),
        "causal": ", ".join(info.causal),
        "state": ", ".join(info.state),
        "look-ahead": f"{info.lookahead} steps",
        "masks": ", ".join(info.masks) or "none",
        "lengths": info.lengths,
        "cost": info.cost,
        "`torch.compile`, one graph": "yes" if info.compiles else "no",
        "`torch.export`, any batch size": "yes" if info.exports else "no",
        "`torch.func.vmap` of `grad`": "yes" if info.vmaps else "no",
        "second derivatives": "yes" if info.second_derivatives else "an error",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    deviations = "\n".join(f"- {line}" for line in info.deviations) or "None known."
    return f"""# {name}

<!-- written by docs/catalogue.py -->

{info.good_for}

| property | {name} |
|---|---|
{rows}

```python
{snippet(name, entry)}
```

![{name}: {view}](pictures/{name}.png)

*A fresh layer on tokens that repeat every eight: {view} (`manyheads show {name}`).*

## Differs from the paper

{deviations}

::: {entry.layer.__module__}
"""


def snippet(name: str, entry: Entry) -> str:
    """Runs as it stands: a whole input, a stream where the layer can, its mixing matrix where it has one."""
    info = entry.layer.info
    plain = (c for c in entry.examples.values() if c.get("context_dim") is None)
    config = next(plain, next(iter(entry.examples.values())))
    width = config.get("context_dim")
    dim = entry.case.get("dim", DIM)
    layer = entry.layer(dim, **config)
    grid = entry.case.get("grid", (32,)) if layer.grid is not None or info.grid_ranks[0] > 1 else (32,)
    shape = ", ".join(map(str, (2, *grid, dim)))
    lines = [
        "import torch",
        "from manyheads.core import create",
        "",
        creation("layer", name, dim, config),
        f"x = torch.randn({shape})",
        *([] if width is None else [f"context = torch.randn(2, 12, {width})"]),
        f"y, state, aux = layer(x{'' if width is None else ', context=context'})",
    ]
    streams = next((c for c in entry.examples.values() if entry.layer(dim, **c).state_kind != "none"), None)
    if streams is not None:
        other = "layer" if streams == config else "stream"
        what = "the same layer" if other == "layer" else "a configuration that streams"
        lines += ["", f"# {what}, one token at a time"]
        if other == "stream":
            lines.append(creation("stream", name, dim, streams))
        lines += [
            f"state = {other}.init_state(2)",
            "for x_t in x.unbind(1):",
            f"    y_t, state = {other}.step(x_t, state)",
        ]
    if info.linear_in_value:
        lines += ["", "from manyheads.core.methods.mixing_matrix import mixing_matrix", ""]
        lines += ["# (B, heads, outputs, inputs): what each output is made of", "matrix = mixing_matrix(layer, x)"]
    return "\n".join(lines)


def creation(variable: str, name: str, dim: int, config: Mapping[str, Any]) -> str:
    """One line, or a line an argument where it would be too long."""
    given = [f'"{name}"', f"dim={dim}", *(f"{key}={value!r}".replace("'", '"') for key, value in config.items())]
    line = f"{variable} = create({', '.join(given)})"
    if len(line) <= WIDTH:
        return line
    return f"{variable} = create(\n" + "".join(f"    {argument},\n" for argument in given) + ")"


def paper(title: str, arxiv: str) -> str:
    return f"{title} ([{arxiv}](https://arxiv.org/abs/{arxiv}))"


def table(folder: str, *, cost: bool) -> str:
    header = ("layer", "paper", "causal", "state", *(("cost",) if cost else ()))
    rows = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, entry in LAYERS.items():
        info = entry.layer.info
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
    """Every text that the catalogue owns, by path."""
    texts = {PAGES / f"{name}.md": page(name, entry) for name, entry in LAYERS.items()}
    for path, folder in ((PAGES / "index.md", ""), (ROOT / "README.md", "docs/layers/")):
        rows = table(folder, cost=folder == "")
        texts[path] = between(path.read_text(), "<!-- catalogue -->", "<!-- end of catalogue -->", rows)
    site = ROOT / "mkdocs.yml"
    nav = "\n".join(f"          - {name}: layers/{name}.md" for name in LAYERS)
    start, end = "          # catalogue", "          # end of catalogue"
    texts[site] = between(site.read_text(), start, end, nav)
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
