"""The errors of manyheads.

Every error that a user can cause is a :class:`ManyheadsError`. Its message is one line that names the file, row,
column, argument or key, what was found, what was expected, and how to mend it. The command line prints that line and
exits with status 2; ``--debug`` shows the traceback.

This module imports neither torch nor anything else that is heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ManyheadsError(Exception):
    """Something that the caller can mend; the message says how."""


class ManyheadsWarning(UserWarning):
    """A result that is right but not all that was asked for; the message is one line that says what was left out."""


class ArgumentError(ManyheadsError, ValueError):
    """An argument, a shape or a setting is not what the function takes."""


class UnknownNameError(ManyheadsError, LookupError):
    """A name that no registry holds; the message gives the nearest one that exists."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        known, text = sorted(known), name if isinstance(name, str) else ""
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.6)
        by_case = {k.lower(): k for k in known}
        nearest = by_case.get(text.lower()) or (near[0] if near else None)
        mend = f"did you mean {nearest!r}?" if nearest else f"known: {', '.join(known) or 'none'}"
        super().__init__(f"unknown {kind} {name!r}: {mend}")
        self.kind, self.name, self.nearest = kind, name, nearest


class MaskError(ManyheadsError, ValueError):
    """A mask that the layer cannot honour. A layer never ignores a mask."""


class DerivativeError(ManyheadsError, RuntimeError):
    """A second derivative of what has a first one only."""


class StateError(ManyheadsError, ValueError):
    """A state of another layer, another batch size, or one without room left."""


class DataError(ManyheadsError, ValueError):
    """A file or a table that cannot be used as it is: names file, row, column, and the mend."""


class MissingPackageError(ManyheadsError, ImportError):
    """An optional package is not installed; the message holds the pip line that brings it."""


class CheckpointError(ManyheadsError, RuntimeError):
    """A checkpoint that is absent, torn, or belongs to another experiment."""


class RankError(ManyheadsError, RuntimeError):
    """Another process of the group ended, failed, or did not answer in time."""
