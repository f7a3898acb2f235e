"""Slow references, written from the equations in float64. They share no code with the layers.

Each module names its oracles in ``ORACLES``: layer name -> ``oracle(parameters, config, x, context, mask) -> y``.
"""

import importlib
import pkgutil

_MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
ORACLES = {name: oracle for module in _MODULES for name, oracle in module.ORACLES.items()}
