"""The command ``manyheads``: its own commands, and the dispatch to the domains."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from manyheads.core.errors import ArgumentError, ManyheadsError
from manyheads.lab.cli.command import Commands, Outcome, run_commands
from manyheads.lab.domain import KNOWN_DOMAINS, find_domain, installed_domains
from manyheads.lab.install import CORE, missing

DESCRIPTION = "Attention and token-mixing layers that can be trusted, and applications that use them on real data."


def list_layers(
    *,
    causal: Literal["strict", "weak", "no"] | None = None,
    streaming: bool = False,
    grid_rank: int | None = None,
    backbones: bool = False,
) -> Outcome:
    """List the layers of the core: paper, causality, state, cost; or the image backbones.

    Args:
        causal: only layers with this kind of causality.
        streaming: only layers that carry a state, so that they can run on a stream.
        grid_rank: only layers for this many grid axes (1 for a sequence, 2 for an image).
        backbones: the presets of the image backbones instead: parameters, strides and widths of their features.
    """
    if backbones:
        if causal is not None or streaming or grid_rank is not None:
            raise ArgumentError("list: found --backbones beside a choice of layers, expected one of them")
        return _list_backbones()
    from manyheads.core.registry import list_layers
    from manyheads.lab.reporting.tables import table

    infos = list_layers(causal=causal, streaming=True if streaming else None, grid_rank=grid_rank)
    document = [
        {
            "name": info.name,
            "title": info.title,
            "arxiv": info.arxiv,
            "causal": list(info.causal),
            "state": list(info.state),
            "lookahead": info.lookahead,
            "grid_ranks": list(info.grid_ranks),
            "cost": info.cost,
            "deviations": list(info.deviations),
            "package": "manyheads-core",
        }
        for info in infos
    ]
    rows = [(i.name, i.arxiv, ", ".join(i.causal), ", ".join(i.state), i.cost, i.title) for i in infos]
    return Outcome(document, table(("name", "arXiv", "causal", "state", "cost", "paper"), rows))


def _list_backbones() -> Outcome:
    """The presets of the image backbones, built without memory for their weights."""
    import torch
    from rich.console import Group

    from manyheads.core.backbones.presets import BACKBONES, create_backbone
    from manyheads.lab.reporting.tables import table

    document, rows = [], []
    for name, kind in BACKBONES.items():
        info = kind.info
        for preset in info.presets:
            with torch.device("meta"):
                model = create_backbone(f"{name}-{preset}")
            parameters = sum(one.numel() for one in model.parameters())
            strides, widths = (list(column) for column in zip(*model.levels, strict=True))
            document.append(
                {
                    "name": f"{name}-{preset}",
                    "title": info.title,
                    "arxiv": info.arxiv,
                    "parameters": parameters,
                    "published": info.parameters.get(preset),
                    "strides": strides,
                    "widths": widths,
                    "compiles": info.compiles or True,
                    "exports": info.exports or True,
                    "onnx": info.onnx or True,
                    "deviations": list(info.deviations),
                    "package": "manyheads-core",
                }
            )
            cells = (", ".join(map(str, strides)), ", ".join(map(str, widths)))
            rows.append((f"{name}-{preset}", info.arxiv, f"{parameters:,}", *cells))
    header = ("name", "arXiv", "parameters", "strides", "widths")
    return Outcome(document, Group(table(header, rows), "parameters with 1,000 classes and 3 channels"))


def show(
    layer: str,
    /,
    *,
    example: str | None = None,
    tokens: int | None = None,
    image: Path | None = None,
    query: tuple[float, float] | None = None,
    seed: int = 0,
    plot: Path | None = None,
) -> Outcome:
    """Draw which tokens each token attends to in a layer with random weights.

    The input repeats every eight tokens, or is a picture: then the cells that one cell of the picture depends on are
    drawn.

    Args:
        layer: name of the layer (manyheads list shows all).
        example: name of one of its registered configurations; the first by default.
        tokens: number of tokens, 32 by default; of a picture, cells along its longer side, 24 by default.
        image: picture file; its cells are the tokens, with their colour, place and texture.
        query: with --image: the place of the one cell, from the top and from the left, 0 to 1; the middle by default.
        seed: random seed of weights and tokens.
        plot: picture file to write (.png, .svg or .pdf).
    """
    from manyheads.lab.data.files import check_suffix, write_figure
    from manyheads.lab.reporting.mixing_picture import draw, shade, view_layer

    check_suffix("--plot", plot, (".png", ".svg", ".pdf"))
    if image is not None:
        place = (0.5, 0.5) if query is None else query
        return _show_image(layer, image, place, example, 24 if tokens is None else tokens, seed, plot)
    if query is not None:
        raise ArgumentError("query: found a place without a picture, expected --image photo.png beside it")
    view = view_layer(layer, example=example, tokens=tokens, seed=seed)
    if plot is not None:
        write_figure(plot, draw(view))
    sums = view.matrix.sum(-1)
    document = {
        "name": view.layer.info.name,
        "example": view.example,
        "config": view.layer.config,
        "kind": view.kind,
        "shape": list(view.matrix.shape),
        "row_sum_least": sums.min().item(),
        "row_sum_most": sums.max().item(),
        "plot": None if plot is None else str(plot),
        "matrix": view.matrix,
    }
    return Outcome(document, shade(view) if plot is None else str(plot))


def _show_image(
    layer: str,
    image: Path,
    query: tuple[float, float],
    example: str | None,
    cells: int,
    seed: int,
    plot: Path | None,
) -> Outcome:
    from manyheads.lab.data.files import write_figure
    from manyheads.lab.reporting.image_picture import draw, look_from, shade

    look = look_from(layer, image, query, example=example, cells=cells, seed=seed)
    for note in look.notes:
        print(f"note: {image}: {note}", file=sys.stderr)
    if plot is not None:
        write_figure(plot, draw(look))
    document = {
        "name": look.layer.info.name,
        "example": look.example,
        "config": look.layer.config,
        "kind": look.kind,
        "query": list(look.query),
        "shape": list(look.shares.shape),
        "plot": None if plot is None else str(plot),
        "matrix": look.shares,
    }
    return Outcome(document, shade(look) if plot is None else str(plot))


def doctor() -> Outcome:
    """Check the installation and report each problem with its fix."""
    from manyheads.lab.cli.doctor import examine

    return examine()


def report(*, root: Path = Path("runs"), html: Path | None = None, csv: Path | None = None) -> Outcome:
    """Show the leaderboard of all runs below a folder, beside the published figures.

    Args:
        root: folder of the runs.
        html: HTML page to write as well.
        csv: CSV file to write as well.
    """
    from manyheads.lab.cli.leaderboard import leaderboard

    return leaderboard(root, html, csv)


def data_list() -> Outcome:
    """List the data sets of all installed domains and whether each is on this machine."""
    from manyheads.lab.data.registry import all_datasets
    from manyheads.lab.reporting.tables import table

    document = [
        {
            "name": d.name,
            "domain": d.domain,
            "title": d.title,
            "licence": d.licence,
            "citation": d.citation,
            "bytes": d.bytes,
            "sha256": d.sha256,
            "available": d.where() is not None,
            "where": d.where(),
            "sources": [f"$MANYHEADS_DATA/{d.local}", *(f"{o.kind}: {o.location}" for o in d.origins)],
        }
        for d in all_datasets()
    ]
    rows = [(d["name"], d["domain"], "yes" if d["available"] else "no", d["licence"], d["title"]) for d in document]
    return Outcome(document, table(("name", "domain", "available", "licence", "title"), rows))


def data_fetch(names: tuple[str, ...], /, *, out: Path | None = None) -> Outcome:
    """Download data sets that are not shipped (into the user's cache folder) and check the hash of each.

    Args:
        names: names of data sets.
        out: folder for a decompressed copy of each.
    """
    from manyheads.lab.data.registry import all_datasets, find
    from manyheads.lab.progress import progress

    if not names:
        raise ArgumentError("names: found none, expected data sets by name (manyheads data list shows them)")
    sets, document = [find(name, all_datasets()) for name in names], []
    with progress("fetch", len(sets)) as advance:
        for dataset in sets:
            advance(dataset.name)
            document.append({"name": dataset.name, "where": dataset.fetch(out)})
    return Outcome(document, "\n".join(f"{d['name']}: {d['where']}" for d in document))


def data_verify(names: tuple[str, ...] = (), /) -> Outcome:
    """Check the hash of every data set on this machine; exit status 2 if one is wrong.

    Args:
        names: names of data sets; all by default.
    """
    from manyheads.core.errors import DataError
    from manyheads.lab.data.registry import all_datasets, find

    known = all_datasets()
    results = {d.name: d.verify() for d in ([find(name, known) for name in names] or known)}
    wrong = [f"{name}: {result}" for name, result in results.items() if result not in ("ok", "absent")]
    if wrong:
        raise DataError("; ".join(wrong))
    return Outcome(results, "\n".join(f"{name}: {result}" for name, result in results.items()))


def bench_layers(
    *,
    names: tuple[str, ...] = (),
    lengths: tuple[int, ...] = (256, 512, 1024, 2048),
    device: str = "cpu",
    csv: Path | None = None,
) -> Outcome:
    """Measure time, memory and FLOPs of layers by length, relative to softmax attention and to the machine's peak.

    Args:
        names: names of layers; all by default. Softmax attention always runs, as the reference.
        lengths: sequence lengths in tokens.
        device: cpu (CPU time of one thread) or cuda (wall time after synchronising).
        csv: CSV file to write as well.
    """
    from manyheads.lab.data.files import write_csv
    from manyheads.lab.progress import progress
    from manyheads.lab.reporting.layer_costs import bench_layers as run
    from manyheads.lab.reporting.tables import table

    with progress("bench", None) as advance:
        rows = run(names, lengths, device=device, advance=advance)
    if csv is not None:
        write_csv(csv, rows)
    header = tuple(rows[0]) if rows else ()
    cells = [tuple(f"{v:.4g}" if isinstance(v, float) else v for v in row.values()) for row in rows]
    return Outcome(rows, table(header, cells))


def bench_attention_run(
    *, lengths: tuple[int, ...] = (1024, 2048, 4096), turns: int = 1000, threads: int = 2, csv: Path | None = None
) -> Outcome:
    """Measure three ways to run attention: tile schedules, decoding over a cache, a sequence over two processes.

    Args:
        lengths: sequence lengths in tokens, multiples of 4.
        turns: repetitions of each decoding method; the shortest time counts.
        threads: threads for decoding.
        csv: CSV file to write as well.
    """
    from manyheads.lab.data.files import write_csv
    from manyheads.lab.progress import progress
    from manyheads.lab.reporting.attention_costs import bench_attention_run as run
    from manyheads.lab.reporting.tables import table

    if any(length < 4 or length % 4 for length in lengths):
        raise ArgumentError(f"bench attention-run: lengths: found {list(lengths)}, expected multiples of 4")
    if turns < 1 or threads < 1:
        raise ArgumentError(f"bench attention-run: turns, threads: found {turns}, {threads}, expected 1 or more")
    with progress("bench", None) as advance:
        rows = run(lengths, turns=turns, threads=threads, advance=advance)
    if csv is not None:
        write_csv(csv, rows)
    header = ("part", "case", "values")
    cells = [
        (
            row["part"],
            row["case"],
            ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in row.items()
                if name not in ("part", "case") and value is not None
            ),
        )
        for row in rows
    ]
    return Outcome(rows, table(header, cells))


COMMANDS: Commands = {"list": list_layers, "show": show, "doctor": doctor, "report": report}
GROUPS: Mapping[str, tuple[str, Commands]] = {
    "data": (
        "Find, download and verify data sets.",
        {"list": data_list, "fetch": data_fetch, "verify": data_verify},
    ),
    "bench": (
        "Measure the cost of layers and of attention.",
        {"layers": bench_layers, "attention-run": bench_attention_run},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = next((a for a in arguments if not a.startswith("--")), None)
    if "--version" in arguments and first is None:
        from importlib.metadata import version

        print(version("manyheads-core"))
        return 0
    try:
        if first is not None and first in GROUPS:
            arguments.remove(first)
            description, commands = GROUPS[first]
            return run_commands(f"manyheads {first}", description, commands, arguments)
        if first is not None and (first in KNOWN_DOMAINS or first in installed_domains()):
            arguments.remove(first)
            return _run_domain(first, arguments)
        return run_commands("manyheads", DESCRIPTION, _everything(), arguments)
    except ManyheadsError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("manyheads"):
            raise
        print(f"error: {missing(error.name or str(error), CORE)}", file=sys.stderr)
        return 2


def _run_domain(name: str, arguments: list[str]) -> int:
    domain = find_domain(name)
    commands = dict(domain.load_commands())
    if domain.experiments:
        from manyheads.lab.cli.experiments import experiment_commands, overrides_first

        arguments = overrides_first(arguments)
        commands = {**experiment_commands(domain), **commands}
    return run_commands(f"manyheads {name}", domain.summary, commands, arguments)


def _everything() -> Commands:
    """Return all first words of a command line, for the help page and for suggestions."""

    def described(text: str):
        def command() -> Outcome:
            raise AssertionError("groups and domains are dispatched before")

        command.__doc__ = text
        return command

    groups = {name: described(f"{text} ({', '.join(commands)})") for name, (text, commands) in GROUPS.items()}
    domains = {name: described(domain.summary) for name, domain in installed_domains().items()}
    return {**COMMANDS, **groups, **domains}


if __name__ == "__main__":
    sys.exit(main())
