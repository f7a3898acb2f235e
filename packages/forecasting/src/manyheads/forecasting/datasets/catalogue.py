"""The nine benchmark sets of the paper: source, licence, citation and sha256 of each."""

from __future__ import annotations

from manyheads.lab.data.registry import Dataset, Origin

_GITHUB = "https://raw.githubusercontent.com"
_ETT = (
    "H. Zhou et al., Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting, AAAI 2021; "
    "github.com/zhouhaoyi/ETDataset"
)


def _ett(name: str, size: int, sha256: str) -> Dataset:
    every = "hourly" if "h" in name else "15-minute"
    return Dataset(
        name=name,
        domain="forecasting",
        title=f"Electricity transformer temperature, {every}, station {name[-1]}",
        licence="CC BY-ND 4.0",
        citation=_ETT,
        bytes=size,
        sha256=sha256,
        local=f"ltsf/{name}.csv.xz",
        origins=(
            Origin("shipped", f"manyheads.forecasting:datasets/{name}.csv.xz"),
            Origin("url", f"{_GITHUB}/zhouhaoyi/ETDataset/main/ETT-small/{name}.csv"),
        ),
        aliases=(name.lower(),),
    )


def _by_hand(name: str, title: str, rows: int, channels: int) -> Dataset:
    hint = (
        f"put {name}.csv ({rows:,} rows, a date column and {channels} channels, as in the Autoformer collection) "
        f"at $MANYHEADS_DATA/ltsf/{name}.csv"
    )
    return Dataset(
        name=name,
        domain="forecasting",
        title=title,
        licence="see the source",
        citation="Autoformer collection (2106.13008)",
        bytes=0,
        sha256=None,
        local=f"ltsf/{name}.csv",
        origins=(Origin("manual", hint),),
    )


datasets: tuple[Dataset, ...] = (
    _ett("ETTh1", 2589657, "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    _ett("ETTh2", 2417960, "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"),
    _ett("ETTm1", 10360719, "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
    _ett("ETTm2", 9677236, "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd"),
    Dataset(
        name="weather",
        domain="forecasting",
        title="Weather at Jena, 21 measurements every ten minutes of 2020",
        licence="not stated (origin: Max Planck Institute for Biogeochemistry, Jena)",
        citation="Max Planck Institute for Biogeochemistry, Jena, 2020",
        bytes=7235425,
        sha256="34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
        local="ltsf/weather.csv.xz",
        origins=(
            Origin(
                "manual",
                "it may not be shipped; put weather.csv of the Autoformer collection at "
                "$MANYHEADS_DATA/ltsf/weather.csv",
            ),
        ),
    ),
    Dataset(
        name="exchange_rate",
        domain="forecasting",
        title="Daily exchange rates of eight countries",
        licence="not stated",
        citation="G. Lai et al., Modeling Long- and Short-Term Temporal Patterns with Deep Neural Networks, SIGIR 2018",
        bytes=630212,
        sha256="d55e7aa2641009814a18ba3279431b13f6d413b0eab195b9ff21988d8cf94e97",
        local="ltsf/exchange_rate.csv.xz",
        origins=(
            Origin(
                "url",
                f"{_GITHUB}/junwoopark92/Self-Supervised-Contrastive-Forecsating/main/dataset/exchange_rate/"
                "exchange_rate.csv",
            ),
        ),
        aliases=("exchange",),
    ),
    Dataset(
        name="national_illness",
        domain="forecasting",
        title="Weekly influenza-like illness in the United States, 2002-2020",
        licence="US federal data (CDC ILINet)",
        citation="US Centers for Disease Control and Prevention, ILINet",
        bytes=66653,
        sha256="8594cecb98c6f2f9dc014eca11c4d5d1e38ad5ce6ed0592d4abe65b146fce395",
        local="ltsf/national_illness.csv.xz",
        origins=(Origin("shipped", "manyheads.forecasting:datasets/national_illness.csv.xz"),),
        aliases=("illness", "ili", "ILI"),
    ),
    _by_hand("electricity", "Hourly electricity use of 321 clients", 26304, 321),
    _by_hand("traffic", "Hourly road occupancy at 862 sensors", 17544, 862),
)
