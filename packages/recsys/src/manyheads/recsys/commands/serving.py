"""``manyheads recsys export``, ``compress``, ``quantise``, ``bench``, ``serve`` and ``load-test``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Outcome


def export(model: Path, /, *, out: Path, shared: tuple[str, ...] = ()) -> Outcome:
    """Export a fitted model to ONNX, with encoder, labels and calibration; serving needs no torch.

    Args:
        model: the folder that 'fit' saved, or runs/NAME/HASH/seed-N of 'train'.
        out: the folder to write.
        shared: columns with the same value for all candidates of a request, such as user and context; their part of
            the network is computed once per request.
    """
    from rich.console import Group

    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.serving.export import export as write
    from manyheads.recsys.training.recommender import Recommender

    done = write(Recommender.load(model), out, shared=shared)
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    document = {"folder": str(out), "parity": done.parity, "shared_graphs": done.shared_graphs, "files": files}
    shown = table(("file", "bytes"), [(name, f"{size:,}") for name, size in files.items()])
    closing = [f"largest difference from torch: {done.parity:.1e}"]
    if shared and not done.shared_graphs:
        closing.append("shared: this model computes nothing of these columns apart; they are encoded once and repeated")
    return Outcome(document, Group(shown, *closing, f"next: manyheads recsys serve {out}"))


def compress(
    model: Path,
    /,
    *,
    data: Path,
    out: Path,
    budget: str | None = None,
    rank: int | None = None,
    candidates: int = 100,
    repeats: int = 30,
    plot: Path | None = None,
) -> Outcome:
    """Compress the projections of a Hiformer to a low rank: a given one, or the best within a latency budget.

    Args:
        model: the folder that 'fit' saved, or runs/NAME/HASH/seed-N of 'train'.
        data: labelled rows that were not trained on; the rank with the best AUC on them within the budget is chosen.
        out: the folder to save the compressed model in.
        budget: CPU time of one batch with ONNX Runtime on one thread, such as 5ms, or 50% of the time before.
        rank: this rank, instead of a budget.
        candidates: rows of the batch.
        repeats: measurements of each rank.
        plot: picture of AUC over latency: .png, .svg or .pdf.
    """
    from dataclasses import asdict

    from rich.console import Group

    from manyheads.lab.data.files import check_suffix
    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.features.tables import read_table
    from manyheads.recsys.serving.compress import RANKS, parse_budget, save_search, search_rank
    from manyheads.recsys.training.recommender import Recommender

    check_suffix("plot", plot, (".png", ".svg", ".pdf"))
    if (budget is None) == (rank is None):
        raise ArgumentError("budget: expected --budget such as 5ms, or --rank, one of them")
    found = search_rank(
        Recommender.load(model),
        read_table(data),
        **({} if budget is None else parse_budget(budget)),
        candidates=candidates,
        ranks=RANKS if rank is None else (rank,),
        repeats=repeats,
    )
    save_search(found, out, plot)
    whole = found.tried[0]
    document = {
        "model": str(out),
        "candidates": candidates,
        "budget_ms": found.budget_ms,
        "chosen": asdict(found.chosen),
        "tried": [asdict(one) for one in found.tried],
    }
    rows = [
        (
            one.name,
            f"{one.parameters:,}",
            f"{one.cpu_ms:.3f}",
            f"{one.auc:.5f}",
            f"{one.auc - whole.auc:+.5f}",
            f"{one.error:.3g}",
        )
        for one in found.tried
    ]
    header = ("projections", "parameters", f"CPU ms, {candidates} rows", "AUC", "against trained", "sigma cut")
    closing = [f"chosen: {found.chosen.name}; saved: {out}", *([] if plot is None else [f"drawn: {plot}"])]
    return Outcome(
        document, Group(table(header, rows), *closing, f"next: manyheads recsys export {out} --out {out}-served")
    )


def quantise(folder: Path, /, *, data: Path, tolerance: float = 0.001) -> Outcome:
    """Quantise an exported model to int8 weights; refused if the AUC on the given rows falls too much.

    Args:
        folder: the folder that 'export' wrote.
        data: labelled rows that were not trained on.
        tolerance: largest loss of AUC that is accepted.
    """
    from dataclasses import asdict

    from rich.console import Group

    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.features.tables import read_table
    from manyheads.recsys.serving.quantise import quantise as admit

    gate = admit(folder, read_table(data), tolerance=tolerance)
    rows = [(name, f"{gate.auc[name]:.5f}", f"{gate.auc_int8[name]:.5f}") for name in gate.auc]
    closing = (
        f"{gate.rows:,} rows; {gate.bytes:,} bytes in float32, {gate.bytes_int8:,} in int8, which is used from now on"
    )
    shown = Group(table(("label", "AUC float32", "AUC int8"), rows), closing)
    return Outcome({"folder": str(folder), **asdict(gate), "fall": gate.fall}, shown)


def bench(
    folder: Path,
    /,
    *,
    model: Path | None = None,
    candidates: tuple[int, ...] = (1, 10, 100, 1000),
    repeats: int = 100,
    csv: Path | None = None,
) -> Outcome:
    """Measure the latency of an exported model on one thread: torch, ONNX Runtime, shared fields, int8.

    Args:
        folder: the folder that 'export' wrote.
        model: the folder of the model before export; torch is measured too.
        candidates: rows of a request; several sizes.
        repeats: measurements of each; a fifth of them from 1,000 rows on.
        csv: file for the table.
    """
    from dataclasses import asdict

    from rich.console import Group

    from manyheads.lab.data.files import check_suffix, write_csv
    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.serving.ranker import read_about
    from manyheads.recsys.serving.timing import bench as measure
    from manyheads.recsys.training.recommender import Recommender

    check_suffix("csv", csv, (".csv",))
    about = read_about(folder)
    loaded = None if model is None else Recommender.load(model)
    found = measure(folder, loaded, sizes=candidates, repeats=repeats)
    rows = [
        (one.way, one.candidates, f"{one.p50_ms:.3f}", f"{one.p99_ms:.3f}", f"{one.cpu_ms:.3f}", f"{one.error:.1e}")
        for one in found
    ]
    if csv is not None:
        write_csv(csv, [asdict(one) for one in found])
    header = ("way", "candidates", "p50 ms", "p99 ms", "CPU ms", "largest difference")
    closing = f"parity with torch at export: {about['parity']:.1e}; reading raw rows is not in the times"
    document = {"folder": str(folder), "parity": about["parity"], "rows": [asdict(one) for one in found]}
    return Outcome(document, Group(table(header, rows), closing))


def serve(
    folder: Path,
    /,
    *,
    port: int = 8000,
    max_rows: int = 10_000,
    max_bytes: int = 8 << 20,
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]"),
    seconds: float = 10.0,
) -> Outcome:
    """Serve an exported model over HTTP on 127.0.0.1 until Ctrl-C: POST /score, GET /health, GET /model.

    Args:
        folder: the folder that 'export' wrote.
        port: the port; 0 takes a free one.
        max_rows: maximum rows of a request; more are refused (422).
        max_bytes: maximum size of a body; larger ones are refused (413).
        hosts: accepted names in the Host header, without port; others are refused (400).
        seconds: time limit for a client to send the head of a request, and to send its body (408).
    """
    from manyheads.lab.cli.command import say
    from manyheads.recsys.serving.app import serve as run
    from manyheads.recsys.serving.ranker import Ranker

    ranker = Ranker(folder)
    run(
        ranker,
        port,
        lambda url: say(f"serving {folder} on {url}; Ctrl-C ends"),
        max_rows=max_rows,
        max_bytes=max_bytes,
        hosts=hosts,
        seconds=seconds,
    )
    return Outcome({"folder": str(folder)}, "stopped")


def load_test(
    url: str, /, *, data: Path, candidates: int = 100, requests: int = 500, connections: int = 4, seed: int = 0
) -> Outcome:
    """Send requests to a server on this machine over several connections; measure latency and throughput.

    Args:
        url: address that 'serve' printed, such as http://127.0.0.1:8000.
        data: the table to sample rows from.
        candidates: rows of a request.
        requests: total number of requests.
        connections: number of connections at the same time.
        seed: seed of the sampled rows.
    """
    from dataclasses import asdict

    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.features.tables import read_table
    from manyheads.recsys.serving.load import load_test as run

    found = run(url, read_table(data), candidates=candidates, requests=requests, connections=connections, seed=seed)
    answers = ", ".join(f"{count} of status {status}" for status, count in found.statuses.items())
    cells = (
        found.connections,
        found.candidates,
        answers,
        f"{found.p50_ms:.2f}",
        f"{found.p99_ms:.2f}",
        f"{found.answers_per_second:.0f}",
        f"{found.rows_per_second:.0f}",
    )
    header = ("connections", "candidates", "answers", "p50 ms", "p99 ms", "answers a second", "rows a second")
    return Outcome(asdict(found), table(header, [cells]))


commands: dict[str, Callable[..., Outcome]] = {
    "export": export,
    "compress": compress,
    "quantise": quantise,
    "bench": bench,
    "serve": serve,
    "load-test": load_test,
}
