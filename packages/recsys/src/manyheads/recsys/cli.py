"""The commands of ``manyheads recsys`` besides ``list`` and ``train``."""

from manyheads.lab.command import Outcome


def models() -> Outcome:
    """The models by name."""
    from manyheads.lab.terminal import table
    from manyheads.recsys.models import MODELS

    document = [{"name": m.name, "title": m.title, "paper": m.paper} for m in MODELS.values()]
    return Outcome(document, table(("model", "what", "paper"), [tuple(row.values()) for row in document]))


commands = {"models": models}
