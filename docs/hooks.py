"""mkdocs hooks: formulas as MathML, and the reference of a layer's module below its page.

GitHub draws ``$$ … $$`` itself. The site needs no script for it: browsers draw MathML.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

DISPLAY = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.DOTALL | re.MULTILINE)
REFERENCE = re.compile(r"<!-- reference: ([\w.]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its formulas as MathML and its references expanded."""
    # the converter knows no "aligned"
    with_formulas = DISPLAY.sub(
        lambda found: convert(found[1].replace("{aligned}", "{split}"), display="block"), markdown
    )
    return REFERENCE.sub(lambda found: f"::: {found[1]}", with_formulas)
