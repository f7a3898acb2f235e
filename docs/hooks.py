"""mkdocs hooks: convert formulas to MathML, and add the reference of a module to the page of its layer.

GitHub renders ``$$ … $$``. Browsers render MathML without a script.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

DISPLAY = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.DOTALL | re.MULTILINE)
REFERENCE = re.compile(r"<!-- reference: ([\w.]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its formulas as MathML and its references expanded."""
    # latex2mathml does not support the environment "aligned"
    with_formulas = DISPLAY.sub(
        lambda found: convert(found[1].replace("{aligned}", "{split}"), display="block"), markdown
    )
    return REFERENCE.sub(lambda found: f"::: {found[1]}", with_formulas)
