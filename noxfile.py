"""The jobs of the repository, each in its own virtual environment: ``nox -l`` lists them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "tests"]

ROOT = Path(__file__).parent
DOMAINS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
PACKAGES = ["shared[lab]", *(f"packages/{name}" for name in DOMAINS)]

# uv does not read PIP_FIND_LINKS, the folder of wheels of pip.
if "PIP_FIND_LINKS" in os.environ:
    os.environ.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])


def install(session: nox.Session, *tools: str, packages: list[str] | None = None) -> None:
    """Install packages and tools in one command, as the core is on no index and must be resolved with the others."""
    editable = [part for package in packages or PACKAGES for part in ("-e", f"./{package}")]
    session.install("-c", "constraints.txt", *editable, *tools)


ONNX_TOOLS = ["onnx", "onnxruntime", "onnxscript"]


@nox.session
def demo(session: nox.Session) -> None:
    """Run forecasting, keyword spotting, recommendation and an agent with memory; write the results to reports/.

    Forecasting: a summary of the benchmark on the shipped sets, and a forecast with its intervals. Keywords: train a
    spotter and evaluate it on a stream. Recommenders: fit, explain, export and time one. Agents: train one in a maze,
    and draw what it reads from its memory.
    """
    install(session, *ONNX_TOOLS)
    for command in FORECASTER_DEMO + SPOTTER_DEMO + RANKER_DEMO + AGENT_DEMO:
        # the table of a forecast is written to a file as well
        quiet = "predict" in command
        # one thread, as two would wait for each other
        session.run("manyheads", *command.split(), silent=quiet, env={"OMP_NUM_THREADS": "1"})
    lines = [f"  reports/{name:<24} {what}" for name, what in DEMO_FILES.items() if (ROOT / "reports" / name).exists()]
    print("Written:", *lines, sep="\n", flush=True)


FORECASTER_DEMO = [
    "forecasting bench --summary --sets ETTh1 ETTh2 ETTm1 ETTm2 national_illness "
    "--models repeat seasonal-naive nlinear-cf closed-form-auto --report reports/forecasting.html",
    "data fetch ETTh1 --out reports",
    "forecasting fit reports/ETTh1.csv --horizon 96 --out reports/forecaster.safetensors",
    "forecasting predict reports/forecaster.safetensors --channel HUFL --plot reports/forecast.png "
    "--out reports/forecast.csv",
]

# A fifth of the epochs of the full recipe (docs/kws.md).
SPOTTER_DEMO = [
    "kws train arabic-spotter budget.epochs=8 --seeds 1 --out reports/spotter.safetensors",
    "kws compose --count 12 --seed 1 --out reports/stream.wav",
    "kws stream reports/stream.wav --spotter reports/spotter.safetensors --truth reports/stream.csv "
    "--plot reports/timeline.png",
]

# The shared fields are those of the person, without those of the job: equal for all candidates of a request.
RANKER_DEMO = [
    "data fetch adult --out reports",
    "recsys fit reports/adult.csv --label income --ignore fnlwgt --epochs 2 --out reports/recommender",
    "recsys explain reports/recommender --data reports/adult.csv --rows 500 --repeats 1 "
    "--out reports/interactions.html",
    "recsys export reports/recommender --out reports/served --shared age gender race native-country",
    "recsys bench reports/served --candidates 1 100 1000 --repeats 10",
]

# The last step of the maze has to know what the first one showed.
AGENT_DEMO = [
    "rl train tmaze10-gtrxl --seeds 1 --out reports/agent.safetensors",
    "rl play reports/agent.safetensors --attention reports/memory.png --gif reports/agent.gif --fps 4",
]

DEMO_FILES = {
    "forecasting.html": "all test errors of the benchmark, with plots",
    "forecast.png": "a forecast with its 80 % and 95 % intervals",
    "forecast.csv": "the same forecast, all channels",
    "forecaster.safetensors": "the fitted forecaster",
    "timeline.png": "the scores of the keyword spotter over time, with right and wrong detections",
    "stream.wav": "the audio stream",
    "stream.csv": "the words of the stream with their times",
    "spotter.safetensors": "the trained spotter",
    "interactions.html": "interactions of the fields in the recommender",
    "recommender": "the fitted recommender",
    "served": "the exported recommender, for manyheads recsys serve",
    "memory.png": "which earlier steps the agent reads from its memory at each step",
    "agent.gif": "an episode of the agent in the maze",
    "agent.safetensors": "the trained agent",
    "ETTh1.csv": "the table of the forecast (transformer temperature)",
    "adult.csv": "the table of the recommender (census income)",
}


SHAPE_TOOLS = ["jaxtyping", "beartype"]
TEST_TOOLS = ["pytest", "pytest-xdist", "hypothesis", "scikit-learn", "tensorboard", "pyarrow", "polars"]
SPOTTER_TOOLS = ["kaldi-native-fbank", *ONNX_TOOLS, "nir"]
RANKER_TOOLS = [*ONNX_TOOLS, "fastapi", "uvicorn", "httpx"]
AGENT_TOOLS = ["ale-py", "minigrid", "popgym", "stable-baselines3"]
ALL_TOOLS = [*TEST_TOOLS, *SPOTTER_TOOLS, *RANKER_TOOLS, *AGENT_TOOLS]


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff (format and lint), ty and import-linter."""
    tools = ["ruff", "ty", "import-linter", "nox", *SHAPE_TOOLS, *ALL_TOOLS]
    install(session, *tools)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("ty", "check", "shared/src", "packages")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests except the slow ones, on two processes."""
    install(session, *ALL_TOOLS)
    session.run("pytest", "-n", "2", "-m", "not slow", *session.posargs)


# Kernels of torch, threads, seed of the random order of the tests.
SETTINGS = [("default", "1", "11"), ("default", "2", "23"), ("avx2", "1", "37"), ("avx2", "2", "53")]
CAPABILITY = "import torch; print('torch computes with', torch.backends.cpu.get_cpu_capability())"


@nox.session
def portable(session: nox.Session) -> None:
    """Run the fast tests with the kernels of other processors, one and two threads, in different random orders."""
    install(session, *ALL_TOOLS, "pytest-randomly")
    for capability, threads, seed in SETTINGS:
        session.log(f"ATEN_CPU_CAPABILITY={capability}, {threads} threads, order {seed}")
        env = {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
        session.run("python", "-c", CAPABILITY, env=env)
        workers = "2" if threads == "1" else "1"
        session.run("pytest", "-n", workers, "-m", "not slow", f"--randomly-seed={seed}", *session.posargs, env=env)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Try 10,000 generated inputs and count the outcomes in benchmarks/results/fuzz.csv."""
    install(session, *ALL_TOOLS)
    words = session.posargs or ["--csv", "benchmarks/results/fuzz.csv"]
    session.run("python", "-m", "tests.fuzz.run", *words, env={"OMP_NUM_THREADS": "1"})


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: learning checks and other long ones."""
    install(session, *ALL_TOOLS)
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def core(session: nox.Session) -> None:
    """Run the tests of the core with nothing but torch installed."""
    install(session, "pytest", "pytest-xdist", "hypothesis", packages=["shared"])
    session.run("pytest", "-n", "2", "-m", "not slow", "tests/core", *session.posargs)


@nox.session
def shapes(session: nox.Session) -> None:
    """Run the tests of the core with its shape annotations checked in every call."""
    install(session, "pytest", "pytest-xdist", "hypothesis", *SHAPE_TOOLS, packages=["shared"])
    session.run("pytest", "-n", "2", "-m", "not slow", "--shapes", "tests/core", *session.posargs)


@nox.session
def forecasting(session: nox.Session) -> None:
    """Run the tests of the forecasting package."""
    install(session, *TEST_TOOLS, packages=["shared[lab]", "packages/forecasting"])
    session.run("pytest", "-n", "2", "tests/forecasting", *session.posargs)


@nox.session
def recsys(session: nox.Session) -> None:
    """Run the tests of the recommender package."""
    install(session, *TEST_TOOLS, *RANKER_TOOLS, packages=["shared[lab]", "packages/recsys"])
    session.run("pytest", "-n", "2", "-m", "not slow", "tests/recsys", *session.posargs)


@nox.session
def images(session: nox.Session) -> None:
    """Run the tests of the image package."""
    install(session, *TEST_TOOLS, packages=["shared[lab]", "packages/images"])
    session.run("pytest", "-n", "2", "-m", "not slow", "tests/images", *session.posargs)


@nox.session
def rl(session: nox.Session) -> None:
    """Run the tests of the reinforcement learning package."""
    install(session, *TEST_TOOLS, *AGENT_TOOLS, packages=["shared[lab]", "packages/rl"])
    session.run("pytest", "-n", "2", "-m", "not slow", "tests/rl", *session.posargs)


@nox.session
def kws(session: nox.Session) -> None:
    """Run the tests of the keyword package."""
    install(session, *TEST_TOOLS, *SPOTTER_TOOLS, packages=["shared[lab]", "packages/kws"])
    session.run("pytest", "-n", "2", "-m", "not slow", "tests/kws", *session.posargs)


# These run without a checkout, with the data of the wheels only.
SMOKE = [
    "manyheads --version",
    "manyheads list",
    "manyheads doctor",
    "manyheads data verify ETTh1 ETTh2 ETTm1 ETTm2 national_illness adult",
    "manyheads data fetch national_illness --out .",
    "manyheads bench layers --names softmax --lengths 64 128",
    "manyheads forecasting list",
    "manyheads forecasting models",
    "manyheads forecasting bench --sets national_illness --models repeat nlinear-cf --report b.html --csv b.csv",
    "manyheads forecasting train national_illness-24-nlinear --smoke",
    "manyheads forecasting fit national_illness.csv --horizon 24 --report fit.html",
    "manyheads forecasting predict forecaster.safetensors --plot forecast.png --out forecast.csv",
    "manyheads forecasting backtest national_illness.csv --horizon 24 --windows 3",
    "manyheads forecasting look-back --set national_illness --horizon 24 --look-backs 52 104 --plot look-back.svg",
    "manyheads kws list",
    "manyheads kws train arabic-lmuformer --smoke data.set=words --out spotter.safetensors",
    "manyheads kws compose --set words --part all --count 6 --out stream.wav",
    "manyheads kws stream stream.wav --spotter spotter.safetensors --truth stream.csv --plot timeline.png",
    "manyheads kws eval spotter.safetensors --negatives None --report kws.html",
    "manyheads kws export spotter.safetensors --part all",
    "manyheads images list",
    "manyheads images train digits-vit-nano --smoke",
    "manyheads rl list",
    "manyheads rl train tmaze10-gtrxl --smoke",
    "manyheads rl play --episodes 2",
    "manyheads list --backbones",
    "manyheads report --html leaderboard.html",
    "manyheads data fetch adult --out .",
    "manyheads recsys list",
    "manyheads recsys models",
    "manyheads recsys train adult-hiformer --smoke",
    "manyheads recsys spec adult.csv --label income --ignore fnlwgt",
    "manyheads recsys fit adult.csv --label income --spec spec.json --model lr --epochs 1",
    "manyheads recsys predict recommender --data adult.csv --out scored.csv",
    "manyheads recsys explain recommender --data adult.csv --rows 200 --repeats 1 --no-pairs --out explained.html",
    "manyheads recsys export recommender --out served",
    "manyheads recsys quantise served --data adult.csv --tolerance 1",
    "manyheads recsys bench served --candidates 1 10 --repeats 5",
    "python -m manyheads.forecasting models",
    "python -m manyheads.recsys models",
    "python -m manyheads.kws list",
    "python -m manyheads.images list",
    "python -m manyheads.rl list",
    "python -m manyheads.lab list",
]
# Two artificial words of 64 clips each, as no wheel contains a set of spoken words.
WORDS = """
import numpy, pathlib, soundfile
for label, pitch in (("high", 1400.0), ("low", 300.0)):
    pathlib.Path("words", label).mkdir(parents=True)
    for n in range(64):
        t = numpy.arange(8000) / 16000
        tone = numpy.sin(2 * numpy.pi * pitch * (1 + 0.01 * n) * t) * numpy.hanning(8000)
        noise = numpy.random.default_rng(n).standard_normal(8000)
        soundfile.write(f"words/{label}/{n}.wav", 0.3 * tone + 0.01 * noise, 16000)
"""
TYPED = """
from importlib.resources import files
import manyheads
for name in {names!r}:
    assert files(f"manyheads.{name}").joinpath("py.typed").is_file(), name
assert not hasattr(manyheads, "__file__") or manyheads.__file__ is None, "manyheads must stay a namespace"
"""


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every wheel, install them without the checkout, and run each command."""
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("-c", "constraints.txt", "build")
    for package in PACKAGES:
        session.run("python", "-m", "build", "--wheel", "--outdir", str(dist), package.split("[")[0], silent=True)
    built = sorted(dist.glob("*.whl"))
    extras = {"core": "[lab]", "kws": "[onnx]", "recsys": "[onnx,serve]"}
    wanted = [f"{w}{next((e for n, e in extras.items() if f'manyheads_{n}-' in w.name), '')}" for w in built]
    session.install("-c", "constraints.txt", *wanted)
    with tempfile.TemporaryDirectory() as elsewhere:
        session.chdir(elsewhere)
        session.run("python", "-c", TYPED.format(names=["core", "lab", *DOMAINS]))
        session.run("python", "-c", WORDS)
        for command in SMOKE:
            session.run(*command.split(), env={"MANYHEADS_DATA": None}, silent=True)
        session.log(f"{len(SMOKE)} commands ran from {', '.join(w.name for w in built)}")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into ./site; a broken link is an error."""
    install(session, "mkdocs-material", "mkdocstrings[python]", "latex2mathml")
    session.run("mkdocs", "build", "--strict", *session.posargs)


PEERS = [
    "routing-transformer",
    "axial-attention",
    "x-transformers",
    "spikingjelly",
    "halonet-pytorch",
    "vit-pytorch",
]


@nox.session
def peers(session: nox.Session) -> None:
    """Compare the speed of our layers with public implementations: benchmarks/results/peers.csv."""
    install(session, *PEERS, packages=["shared[lab]"])
    session.run("python", "benchmarks/peers.py", *session.posargs)


@nox.session
def rl_speed(session: nox.Session) -> None:
    """Compare the speed of our agents with Stable-Baselines3: benchmarks/results/rl_speed.csv."""
    install(session, *AGENT_TOOLS, "sb3-contrib", "opencv-python-headless", packages=["shared[lab]", "packages/rl"])
    session.run("python", "benchmarks/rl_speed.py", *session.posargs)


@nox.session
def neurobench(session: nox.Session) -> None:
    """Run the test that compares our count of spike operations with NeuroBench."""
    install(session, "pytest", "hypothesis", "neurobench", packages=["shared[lab]", "packages/kws"])
    session.run("pytest", "tests/kws/test_spikes.py", "-k", "neurobench", *session.posargs)


@nox.session
def torchrec(session: nox.Session) -> None:
    """Run the tests that need TorchRec: embedding tables sharded over two processes equal one process."""
    install(session, "pytest", "pytest-xdist", "hypothesis", packages=["shared[lab]", "packages/recsys"])
    session.install("--no-deps", "-r", "packages/recsys/torchrec-requirements.txt")
    session.run("pytest", "tests/recsys/test_sharded.py", *session.posargs)


@nox.session
def rllib(session: nox.Session) -> None:
    """Run the tests that need RLlib, and its example with two local workers, which takes a minute."""
    install(session, "pytest", "hypothesis", packages=["shared[lab]", "packages/rl[rllib]"])
    session.run("pytest", "tests/rl/test_rllib.py", *session.posargs, env={"RAY_USAGE_STATS_ENABLED": "0"})


@nox.session
def bench(session: nox.Session) -> None:
    """Make the figures of benchmarks/results again: nox -s bench -- JOB …"""
    install(session)
    session.run("python", "benchmarks/run.py", *session.posargs)
