"""Make every figure that the README and the docs quote: ``python benchmarks/run.py [JOB …]`` from the root.

A job is one or more commands, run one after another on one thread. Its table goes to ``benchmarks/results/<job>.csv``.
CPU time, peak memory, machine and versions of each process go to ``benchmarks/results/processes.csv``, where the rows
of a job replace its earlier rows.
"""

from __future__ import annotations

import csv
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from manyheads.core.backbones.presets import BACKBONES
from manyheads.lab.data.files import write_csv

RESULTS = Path(__file__).parent / "results"
BENCH = "manyheads forecasting bench"
NAIVE = "repeat seasonal-naive drift window-mean"
FAMILY = "linear-cf nlinear-cf dlinear-cf rlinear-cf linear-i-cf nlinear-i-cf dlinear-i-cf rlinear-i-cf"
SEEDS = "1 2 3 4 5 6 7 8 9 10 2021"
RUNS = "benchmarks/runs"
NETWORKS = ("itransformer", "patchtst", "fedformer", "autoformer", "informer", "transformer")
RECOMMENDERS = ["deepfm", "dcnv2", "autoint+", "vanilla+", "heterogeneous+", "hiformer+"]
FRAPPE = ["lr", "fm", "dnn", "dnn-cat", "dlrm", "final-mlp", *RECOMMENDERS]
BASELINES = ["lr", "fm", "dnn", "dlrm", "autoint", "final-mlp", *RECOMMENDERS[:-1]]
SYNTHETIC = ["vanilla", "vanilla-positions", "heterogeneous", "hiformer"]
SYNTHETIC += [f"long-{name}" for name in (*SYNTHETIC, "hiformer-lowrank", "tables-vanilla")]
TUNE = "python benchmarks/recsys_tuning.py"
WORDS = (
    *("arabic-lmuformer", "arabic-spiking-lmuformer", "pixel-digits-lmuformer"),
    # the earlier recipe
    *(f"arabic-{kind}lmuformer model.stem=1d budget.keep=last" for kind in ("", "spiking-")),
)
INT8 = ("arabic-lmuformer", "arabic-spiking-lmuformer")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
MEMORY_TASKS = (
    *("tmaze10-gtrxl", "tmaze10-none", "tmaze50-gtrxl", "tmaze50-lstm", "repeat4-gtrxl"),
    *("cartpole-hidden-gtrxl", "cartpole-hidden-none"),
)

# the gate of the agent's memory, and the bias it begins with; no value where a gate has none
GATES = (
    ("residual", None),
    ("input", None),
    *((gate, bias) for gate in ("output", "highway", "sigmoid-tanh", "gru") for bias in (0.0, 2.0)),
)


def gate_runs() -> list[str]:
    """Train the short maze with each gate and bias."""
    return [
        f"manyheads rl train tmaze10-gtrxl model.gate={gate}"
        + ("" if bias is None else f" model.options=gate_bias,{bias}")
        + f" --root {RUNS}/rl_gates"
        for gate, bias in GATES
    ]


JOBS: dict[str, list[str]] = {
    "block_transformer": ["python benchmarks/block_transformer.py --csv {csv}"],
    "fit": ["python benchmarks/fit.py --csv {csv}"],
    "forecasting_default": [f"{BENCH} --csv {{csv}}"],
    "forecasting_naive": [
        f"{BENCH} --models {NAIVE} --protocol both --csv {{csv}}",
    ],
    "forecasting_closed_form": [f"{BENCH} --models {NAIVE} {FAMILY} --csv {{csv}}"],
    "forecasting_nlinear": [f"{BENCH} --sets ETTh1 --horizons 96 --models nlinear-cf --csv {{csv}}"],
    "forecasting_auto": [f"{BENCH} --models closed-form-auto --csv {{csv}}"],
    "forecasting_auto_train": [f"{BENCH} --models closed-form-auto-train --csv {{csv}}"],
    "forecasting_intervals": ["python benchmarks/forecasting_intervals.py --csv {csv}"],
    "forecasting_channels": ["python benchmarks/forecasting_channels.py --csv {csv}"],
    "forecasting_sgd": [
        *(
            f"manyheads forecasting train etth1-96-{form} --seeds {SEEDS} --root {RUNS} --fresh"
            for form in ("linear", "nlinear", "dlinear", "rlinear")
        ),
        f"manyheads report --root {RUNS} --csv {{csv}}",
    ],
    **{
        f"forecasting_transformers_{set_name}": [
            *(
                f"manyheads forecasting train {set_name}-{horizon}-{network} --root {RUNS}/{set_name}"
                for horizon in horizons
                for network in NETWORKS
            ),
            f"manyheads report --root {RUNS}/{set_name} --csv {{csv}}",
        ]
        for set_name, horizons in (
            *((name, (96, 192)) for name in ("etth1", "etth2", "ettm2")),
            ("national_illness", (24, 60)),
        )
    },
    "layers": ["manyheads bench layers --lengths 256 512 1024 2048 4096 8192 16384 --csv {csv}"],
    "layers_grid": [
        "manyheads bench layers --names axial halo spectral-gate hyena-nd ffnified gpsa sg-attention subpixel "
        "--lengths 256 1024 4096 16384 --csv {csv}"
    ],
    "subpixel": ["python benchmarks/subpixel.py --csv {csv}"],
    "images_digits": [
        *(f"manyheads images train digits-{name}-nano --root {RUNS}/digits" for name in BACKBONES),
        f"manyheads report --root {RUNS}/digits --csv {{csv}}",
    ],
    "images_baselines": ["python benchmarks/images_baselines.py --csv {csv}"],
    "mesa": ["python benchmarks/mesa.py --csv {csv}"],
    "mesa_published": ["python benchmarks/mesa.py --published --steps 5 --seeds 1 --csv {csv}"],
    "iared2": ["python benchmarks/iared2.py --csv {csv}"],
    "attention_run": ["env OMP_WAIT_POLICY=passive manyheads bench attention-run --csv {csv}"],
    "kws_fsdd": [
        *(f"manyheads kws train fsdd-{speaker}-lmuformer --root {RUNS}/fsdd" for speaker in SPEAKERS),
        *(f"manyheads kws train fsdd-{kind}lmuformer --root {RUNS}/fsdd" for kind in ("", "alone-")),
        *(f"manyheads kws train fsdd-{speaker}-alone-lmuformer --root {RUNS}/fsdd" for speaker in SPEAKERS[:2]),
        f"manyheads report --root {RUNS}/fsdd --csv {{csv}}",
    ],
    "kws_words": [
        *(f"manyheads kws train {name} --root {RUNS}/words" for name in WORDS),
        f"manyheads report --root {RUNS}/words --csv {{csv}}",
    ],
    "fuzz": ["python -m tests.fuzz.run --csv {csv}"],
    "recsys_serving": ["python benchmarks/recsys_serving.py --csv {csv}"],
    "kws_ends": [
        f"manyheads kws train arabic-spotter --seeds 1 2 3 --root {RUNS}/ends",
        f"python benchmarks/kws_ends.py {RUNS}/ends --csv {{csv}}",
    ],
    "int8": [
        *(
            f"manyheads kws train {name} --seeds 1 --root {RUNS}/int8 --out {RUNS}/int8-{name}.safetensors"
            for name in INT8
        ),
        f"python benchmarks/int8.py {' '.join(f'{RUNS}/int8-{name}.safetensors' for name in INT8)} --csv {{csv}}",
    ],
    "kws_streams": [
        command
        for experiment in ("arabic-spotter", "arabic-lmuformer", "arabic-spiking-lmuformer")
        for seed in (1, 2, 3)
        for spotter in (f"{RUNS}/{experiment}-{seed}.safetensors",)
        for command in (
            f"manyheads kws train {experiment} --seeds {seed} --root {RUNS}/streams --out {spotter}",
            f"manyheads kws eval {spotter} --part validation --tune 60",
            f"manyheads kws eval {spotter} --snr 20 10 --csv {{csv}}",
        )
    ],
    "recsys_tuning": [
        f"{TUNE} frappe-x1r hiformer+ --csv {{csv}}",
        f"{TUNE} frappe-x1r vanilla+ --only 1 4 5 7 --csv {{csv}}",
        f"{TUNE} frappe-x1r heterogeneous+ --only 4 5 7 --csv {{csv}}",
        f"{TUNE} ml-100k-time {' '.join(BASELINES)} --only 1 2 --csv {{csv}}",
        f"{TUNE} ml-100k-time lr fm --only 7 8 9 10 --csv {{csv}}",
        f"{TUNE} ml-100k-time hiformer+ final-mlp --csv {{csv}}",
    ],
    "recsys_frappe": [
        *(f"manyheads recsys train frappe-x1r-{model} --root {RUNS}/frappe" for model in FRAPPE),
        f"manyheads report --root {RUNS}/frappe --csv {{csv}}",
    ],
    "recsys_frappe_control": [
        "manyheads recsys train frappe-x1r-dnn objective.l2=0.2 optimiser.schedule=constant budget.epochs=24 "
        f"budget.patience=None budget.keep=mean --root {RUNS}/frappe-control",
        f"manyheads report --root {RUNS}/frappe-control --csv {{csv}}",
    ],
    "recsys_calibration": [f"python benchmarks/recsys_calibration.py --root {RUNS}/frappe --csv {{csv}}"],
    "recsys_synthetic": [
        *(f"manyheads recsys train synthetic-{name} --root {RUNS}/synthetic" for name in SYNTHETIC),
        f"manyheads report --root {RUNS}/synthetic --csv {{csv}}",
    ],
    "recsys_maps": [f"python benchmarks/recsys_maps.py --root {RUNS}/synthetic --csv {{csv}}"],
    "recsys_ranks": [
        f"manyheads recsys train ml-100k-time-hiformer --model.dim 64 --seeds 2021 --root {RUNS}/ranks",
        f"python benchmarks/recsys_ranks.py --root {RUNS}/ranks --csv {{csv}} --picture docs/pictures/recsys-rank.png",
    ],
    "recsys_peers": ["python benchmarks/recsys_peers.py --csv {csv}"],
    "recsys_memory": ["python benchmarks/recsys_memory.py --csv {csv}"],
    "recsys_movielens": [
        *(f"manyheads recsys train ml-100k-time-{model} --root {RUNS}/ml" for model in (*BASELINES, "hiformer+")),
        f"manyheads report --root {RUNS}/ml --csv {{csv}}",
    ],
    "rl_tasks": [
        *(f"manyheads rl train {name} --root {RUNS}/rl_tasks" for name in MEMORY_TASKS),
        f"manyheads report --root {RUNS}/rl_tasks --csv {{csv}}",
    ],
    "rl_gates": [*gate_runs(), f"manyheads report --root {RUNS}/rl_gates --csv {{csv}}"],
    "rl_memory": [
        *(
            f"manyheads rl train tmaze10-gtrxl data.options.corridor=24 model.memory={memory} budget.steps=80000 "
            f"--root {RUNS}/rl_memory"
            for memory in (8, 16, 32, 64)
        ),
        f"manyheads report --root {RUNS}/rl_memory --csv {{csv}}",
    ],
    "rl_curves": ["python benchmarks/rl_curves.py --csv {csv}"],
    "rl_speed": ["python benchmarks/rl_speed.py --csv {csv}"],
    "rl_order": ["python benchmarks/rl_order.py --csv {csv}"],
    "rl_pretraining": [f"python benchmarks/rl_pretraining.py --root {RUNS}/rl-pretraining --csv {{csv}}"],
    "recsys_throughput": ["python benchmarks/recsys_speed.py deepfm dcnv2 vanilla+ hiformer+ --csv {csv}"],
}


def run(job: str) -> list[dict[str, object]]:
    """Run the commands of one job; return one row per process."""
    rows = []
    for template in JOBS[job]:
        command = template.format(csv=RESULTS / f"{job}.csv")
        print(f"$ {command}", file=sys.stderr, flush=True)
        process = subprocess.Popen(
            shlex.split(command), stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{command}: exit status {os.waitstatus_to_exitcode(status)}")
        rows.append(
            {
                "job": job,
                "command": template.format(csv=f"benchmarks/results/{job}.csv"),
                "cpu_s": f"{usage.ru_utime + usage.ru_stime:.1f}",
                "peak_mb": f"{usage.ru_maxrss / (1 << 20 if sys.platform == 'darwin' else 1 << 10):.0f}",
                "machine": machine(),
                "versions": " ".join(f"{name}={version(name)}" for name in ("numpy", "scipy", "torch")),
                "python": platform.python_version(),
                "date": date.today().isoformat(),
            }
        )
    return rows


def machine() -> str:
    """Return the name of the processor, as the system gives it, and the number of threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, 1 thread"


def main(names: list[str]) -> None:
    """Run the named jobs, or all."""
    unknown = [name for name in names if name not in JOBS]
    if unknown:
        raise SystemExit(f"unknown job {unknown[0]!r}, expected some of: {', '.join(JOBS)}")
    log = RESULTS / "processes.csv"
    for job in names or JOBS:
        rows = run(job)
        before = list(csv.DictReader(log.open())) if log.is_file() else []
        write_csv(log, sorted([row for row in before if row["job"] != job] + rows, key=lambda row: str(row["job"])))


if __name__ == "__main__":
    main(sys.argv[1:])
