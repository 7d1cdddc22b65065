"""The errors a user can cause or must know of; `cli/exit.py` turns each into one line and an exit code."""

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 3
EXIT_DIFFERS = 4


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, where, and what to do. Exit code 2."""


class StoppedBySignal(Exception):
    """The run saved a checkpoint after SIGTERM or SIGUSR1 and can be resumed. Exit code 3."""


class DivergedError(Exception):
    """A loss or gradient was not finite; the last good checkpoint is kept. Exit code 1."""


class RunsFailed(Exception):
    """Runs of a suite failed; the message has a line for each, with its log. Exit code 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean ...?' or an empty string. A wrong section is forgiven: `lr` finds `optim.lr`."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    found = [k for k in known if k.rpartition(".")[2] == word] or found
    return f", did you mean {' or '.join(found[:2])}?" if found else ""
