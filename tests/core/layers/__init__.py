"""What the tests know of each layer, found by folder: ``tests/core/layers/<module>/``.

``oracle.py`` names slow references in ``ORACLES``: layer -> ``oracle(parameters, config, x, context, mask) -> y``. They
are written from the equations in float64 and share no code with the layers. ``examples.py`` names the configurations
that the battery checks in ``EXAMPLES``: layer -> label -> configuration, and in ``CASES`` what else a case needs.
"""

import importlib
import pkgutil


def _found(file, table):
    folders = (folder.name for folder in pkgutil.iter_modules(__path__) if folder.ispkg)
    modules = (importlib.import_module(f"{__name__}.{folder}.{file}") for folder in folders)
    return {name: value for module in modules for name, value in getattr(module, table, {}).items()}


ORACLES = _found("oracle", "ORACLES")
EXAMPLES = _found("examples", "EXAMPLES")
CASES = {key: {} for key in EXAMPLES} | _found("examples", "CASES")
