"""Check the installation: Python, packages, devices, data, and problems with their fixes."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from manyheads.lab.cli.command import Outcome
from manyheads.lab.data.registry import ENVIRONMENT, all_datasets
from manyheads.lab.install import CORE, install_command

_LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "lightning-fabric",
    "safetensors",
    "matplotlib",
    "tyro",
    "rich",
    "pooch",
)

_DOMAIN_LIBRARIES = ("pandas", "scipy")


def examine() -> Outcome:
    """Check Python, packages, devices and data; report each problem with its fix."""
    problems: list[str] = []
    libraries = {name: _version(name) for name in _LIBRARIES}
    absent = [name for name, number in libraries.items() if number is None and name not in _DOMAIN_LIBRARIES]
    if absent:
        problems.append(f"not installed: {', '.join(sorted(absent))}: {install_command(CORE)}")
    document: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {d.name: d.version for d in distributions() if (d.name or "").startswith("manyheads-")},
        "libraries": libraries,
        "devices": _devices(problems),
        "data": {},
        "problems": problems,
    }
    root = os.environ.get(ENVIRONMENT)
    document["data_folder"] = root
    if root and not Path(root).is_dir():
        problems.append(f"${ENVIRONMENT} is {root}, which is no folder: point it at your data or unset it")
    for dataset in all_datasets():
        result = dataset.verify()
        document["data"][dataset.name] = result if result in ("ok", "absent") else "damaged"
        if result not in ("ok", "absent"):
            problems.append(result)
    if importlib.util.find_spec("manyheads") and _has_package_file():
        problems.append("a file manyheads/__init__.py hides the other packages of the namespace: remove it")
    return Outcome(document, _as_text(document))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _has_package_file() -> bool:
    import manyheads

    return any((Path(folder) / "__init__.py").is_file() for folder in manyheads.__path__)


def _devices(problems: list[str]) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        problems.append(f"torch does not import ({error}): {install_command(CORE)}")
        return {}
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "cuda": cuda}


def _as_text(document: dict[str, Any]) -> str:
    lines = [f"Python {document['python']} on {document['platform']}"]
    lines += [f"{name} {number}" for name, number in document["packages"].items()]
    lines.append(", ".join(f"{name} {number or 'absent'}" for name, number in document["libraries"].items()))
    lines.append(f"devices: {document['devices']}")
    lines.append(f"${ENVIRONMENT}: {document['data_folder'] or 'not set'}")
    lines += [f"data {name}: {result}" for name, result in document["data"].items()]
    lines += [f"problem: {problem}" for problem in document["problems"]] or ["no problems found"]
    return "\n".join(lines)
