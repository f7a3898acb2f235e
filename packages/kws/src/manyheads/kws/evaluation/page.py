"""HTML report of an evaluation: plots, tables, and the data behind them."""

from __future__ import annotations

from pathlib import Path

from manyheads.kws.evaluation import plots
from manyheads.kws.evaluation.confidence import rate_text, share_text
from manyheads.kws.evaluation.measures import Evaluation
from manyheads.kws.evaluation.spikes import ADD_PJ, MAC_PJ
from manyheads.lab.reporting.html import HtmlReport

# Length in seconds of the part of a stream that is drawn.
EXCERPT = 24.0


def write_report(found: Evaluation, path: Path) -> Path:
    """Write the HTML report and return its path."""
    spotter, clips = found.spotter, found.clips
    facts = ", ".join(f"{key} {value}" for key, value in spotter.trained.items() if value != "")
    page = HtmlReport(f"Keyword spotter on {found.name}", f"{len(spotter.labels)} labels. {facts}.")
    page.text(
        f"{clips.accuracy_text}; clips taken as independent. {spotter.network.parameter_count:,} parameters, "
        f"look-ahead {spotter.lookahead_seconds:g} s, an output every {1000 * spotter.step_seconds:g} ms."
    )
    page.section("Confusion")
    page.figure(plots.confusion(clips), "Rows: spoken word; columns: predicted word; per cent of the row.")
    page.section("Early decision")
    page.figure(
        plots.early_decision(clips),
        "Accuracy if each clip is decided after this many seconds of audio, by the mean of the logits known then.",
    )
    if found.streams:
        _streams(page, found)
    if found.spikes is not None:
        _spikes(page, found)
    page.section("Detection rule")
    rule = spotter.rule
    page.table(
        ("threshold", "smoothing, s", "refractory, s", "never reported"),
        [(f"{rule.threshold:g}", f"{rule.smoothing:g}", f"{rule.refractory:g}", ", ".join(rule.background) or "-")],
    )
    return page.write(path)


def _streams(page: HtmlReport, found: Evaluation) -> None:
    page.section("DET curve: misses against false alarms")
    page.figure(
        plots.det({f"{stream.snr:g} dB": stream.curve for stream in found.streams}),
        "The fewest misses with at most this many false alarms per hour; each point is a threshold. A count of zero is "
        "drawn at half of one event.",
    )
    header = (
        "stream",
        "keywords missed",
        "false alarms",
        "misses at 10 an hour",
        "latency, s",
    )
    rows = []
    for stream in found.streams:
        d = stream.document()
        at_ten = d["at_false_alarms_per_hour"]["10"]
        rows.append(
            (
                f"{stream.snr:g} dB",
                share_text(d["misses"], d["keywords"]),
                rate_text(d["false_alarms"], d["hours"]),
                "" if at_ten is None else f"{100 * at_ten['miss_rate']:.1f}%",
                f"{stream.latency.after_end[0]:.2f}",
            )
        )
    page.table(header, rows)
    page.text("Latency: median time from the end of a word to its detection, over the hits.", quiet=True)
    page.section("Part of the stream")
    stream = found.streams[0]
    count = round(EXCERPT * stream.tape.sample_rate)
    inside = stream.heard.times <= EXCERPT
    page.figure(
        plots.timeline(
            stream.tape.samples[:count],
            stream.tape.sample_rate,
            stream.heard.times[inside],
            stream.heard.scores[inside],
            found.spotter.labels,
            [d for d in stream.detections if d.time <= EXCERPT],
            threshold=found.spotter.rule.threshold,
            truth=[word for word in stream.tape.spoken if word.end <= EXCERPT],
        ),
        "Above: the waveform, spoken words (shaded; words that the spotter does not know in grey) and detections "
        "(lines). Below: the smoothed scores.",
    )


def _spikes(page: HtmlReport, found: Evaluation) -> None:
    count = found.spikes
    assert count is not None
    page.section("Spikes")
    page.figure(plots.spike_rates(count), "Left: spikes by site. Right: operations a step by matrix product.")
    page.table(
        ("product", "multiply-adds", "input", "operations"),
        [(p.name, p.macs, p.source or "real numbers: stays dense", round(p.operations)) for p in count.products],
    )
    page.text(
        f"{count.effective_acs:,.0f} additions and {count.effective_macs:,.0f} multiply-adds a step against "
        f"{count.dense:,} dense ones: {count.saving:.1f} times fewer. At 45 nm ({ADD_PJ} pJ an addition, {MAC_PJ:g} pJ "
        f"a multiply-add, 32 bit floats; Horowitz, ISSCC 2014) {count.energy_nj:.0f} nJ against "
        f"{count.dense_energy_nj:.0f} nJ. This estimates the arithmetic alone; moving data costs more than either."
    )
