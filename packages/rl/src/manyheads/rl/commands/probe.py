"""``manyheads rl probe``."""

from __future__ import annotations

from pathlib import Path

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Outcome

PICTURES = (".png", ".svg", ".pdf")


def probe(
    encoders: tuple[Path, ...],
    /,
    *,
    recording: Path,
    held_out: float = 0.25,
    gap: int = 3,
    seed: int = 0,
    plot: Path | None = None,
) -> Outcome:
    """Probe frozen encoders on recorded play, beside random weights; intervals are over held-out episodes.

    Args:
        encoders: encoder files of pretraining.
        recording: file of manyheads rl collect.
        held_out: share of the frames in held-out episodes.
        gap: steps between the observations of a triple.
        seed: of the random weights.
        plot: picture file to write (.png, .svg or .pdf): where the last block of the first encoder looks.
    """
    from manyheads.lab.data.files import check_suffix, write_figure
    from manyheads.lab.reporting.tables import table
    from manyheads.rl.encoders.frames import FrameEncoder
    from manyheads.rl.pretraining.data import ProbePart
    from manyheads.rl.pretraining.evaluate import evaluate
    from manyheads.rl.pretraining.pictures import attention_over_frames
    from manyheads.rl.pretraining.recording import Recording

    check_suffix("--plot", plot, PICTURES)
    if not encoders:
        raise ArgumentError("encoders: found none, expected one or more encoder files")
    if gap < 1:
        raise ArgumentError(f"--gap: found {gap}, expected 1 or more")
    loaded = [FrameEncoder.load(path) for path in encoders]
    play = Recording.load(recording)
    for path, encoder in zip(encoders, loaded, strict=True):
        if encoder.size != play.frames.shape[1]:
            raise ArgumentError(
                f"{recording}: found frames of {play.frames.shape[1]} pixels, expected {encoder.size} for {path}: "
                f"collect with --size {encoder.size}"
            )
    part = ProbePart(play, *play.split(held_out), gap, loaded[0].stack)
    rows, document = [], []
    for path, encoder in zip(encoders, loaded, strict=True):
        found, random = evaluate(encoder, part), evaluate(encoder.with_random_weights(seed), part)
        for name, one in (("random weights", random), (str(path), found)):
            kinds = {kind: score.mean() for kind, score in one.state.items()}
            above = {kind: score.above(random.state[kind]) for kind, score in one.state.items()} if one is found else {}
            order, action = one.order.balanced(), one.action.balanced()
            document.append(
                {
                    "encoder": name,
                    "metrics": one.metrics(),
                    "intervals": {
                        **{f"r2_{kind}": value._asdict() for kind, value in kinds.items()},
                        **{f"r2_{kind}_above_random": value._asdict() for kind, value in above.items()},
                        "order_accuracy": order._asdict(),
                        "action_accuracy": action._asdict(),
                    },
                }
            )
            cells = [str(kinds[kind]) if kinds else "" for kind in ("pooled", "patches")]
            rows.append((name, *cells, str(order), str(action), f"{one.collapse.effective_rank:.1f}"))
    if plot is not None:
        write_figure(plot, attention_over_frames(loaded[0], play))
    header = ("encoder", "state R², pooled", "state R², patches", "order", "action", "effective rank")
    return Outcome(document, table(header, rows))
