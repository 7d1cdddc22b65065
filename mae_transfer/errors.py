"""The errors a user can cause or must know of; `cli.main` turns each into one line and an exit code."""

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 3


class UserError(Exception):
    """Bad input: the message is one line that says what is wrong, where, and what to do. Exit code 2."""


class StoppedBySignal(Exception):
    """The run saved a checkpoint after SIGTERM or SIGUSR1 and can be resumed. Exit code 3."""


class DivergedError(Exception):
    """A loss or gradient was not finite; the last good checkpoint is kept. Exit code 1."""
