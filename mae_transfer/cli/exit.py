"""What all commands share: the parser's form, the folder of runs, and errors as exit codes.

Exit codes: 0 done, 2 bad input (one line says what, where and what to do), 3 stopped by a signal after saving, 4 a
published number is not reproduced, 1 anything else.
"""

import argparse
import errno
import gc
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from mae_transfer import __version__
from mae_transfer.commands import as_typed, command, process_rank
from mae_transfer.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_STOPPED,
    DivergedError,
    StoppedBySignal,
    UserError,
)
from mae_transfer.files import user_path

RESUME = "--resume goes on from the newest checkpoint, if there is one"

if TYPE_CHECKING:
    from mae_transfer.run_folder.schema import RunRecord


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        left = message.removeprefix("unrecognized arguments: ").split()[0]
        if message.startswith("unrecognized arguments: -"):
            near = get_close_matches(left.partition("=")[0], self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help shows them all"
            message = f"unknown option {left}, {hint}"
        self.exit(EXIT_BAD_INPUT, f"error: {message}\n")


def new_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of a command, with its examples in the form that the user typed."""
    parser = Parser(
        prog=command(name).removeprefix("python tools/"),
        description=description,
        epilog=as_typed(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mae-transfer {__version__}")
    return parser


def add_resume_option(parser: argparse.ArgumentParser) -> None:
    """`--resume` and, of words that went through `resume_auto`, `--resume auto`."""
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint in the output folder; --resume auto also starts a run that is not there "
        "and leaves one that is done: one command for a start and for restarts by torchrun, SLURM or cron",
    )
    parser.add_argument("--resume-auto", dest="resume", action="store_const", const="auto", help=argparse.SUPPRESS)


def resume_auto(argv: Sequence[str] | None) -> list[str]:
    """The words with `--resume auto` as one: as an option with a value, plain `--resume` would take the next word."""
    words: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if word == "auto" and words[-1:] == ["--resume"]:
            words[-1] = "--resume-auto"
        else:
            words.append("--resume-auto" if word == "--resume=auto" else word)
    return words


def add_runs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=user_path, default=Path("results/runs"), help="folder with runs; default: results/runs"
    )


def records_of(folder: Path, *, summary: bool = False) -> tuple[list["RunRecord"], list[str]]:
    """The records below the folder of --runs, and a line for each that is left out, which is printed as well.

    Raises:
        UserError: there is no such folder.
    """
    from mae_transfer.run_folder.record import read_records

    if not folder.is_dir():
        raise UserError(f"no folder {folder}; run {command('transfer')} first or name the folder with --runs")
    records, left_out = read_records(folder, summary=summary)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return records, left_out


def make_folder(folder: Path) -> None:
    """Make the folder of an output; UserError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; choose another --output") from error


class _Outlives:
    """A text stream that drops what is written once its reader has gone, as that of `| head` has.

    Raises:
        UserError: it cannot be written for another reason, such as a full disk. What follows is dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropped():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropped():
            self._stream.flush()

    @contextmanager
    def _dropped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            descriptor = self._stream.fileno()
            gone = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(descriptor).st_mode)  # a terminal, not a disk
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), descriptor)
            if error.errno != errno.EPIPE and not gone:
                raise UserError(
                    f"cannot print: {error.strerror}; make room, or redirect the output elsewhere"
                ) from None


@contextmanager
def output_may_close() -> Iterator[None]:
    """While in the context, what is printed to a closed output is dropped: the command goes on and does its work."""
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        streams = [
            _Outlives(stream or stack.enter_context(open(os.devnull, "w", encoding="utf-8")))  # None by `>&-`
            for stream in before
        ]
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
        try:
            yield
        finally:
            try:
                for stream in streams:
                    stream.flush()
            finally:
                sys.stdout, sys.stderr = before


class _CtrlC(KeyboardInterrupt):
    """After a plain KeyboardInterrupt has passed through `exec`, as in the import of a named tuple, `python -m` ends by
    SIGINT whatever the exit code."""


@contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _CtrlC

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def exit_code(run: Callable[[], int], *, after_ctrl_c: str = "") -> int:
    """What `run` returns, or the exit code of the error that it ends with, which is printed in one line.

    A command whose output is closed is not stopped by it: its exit code tells whether it did its work.

    Args:
        after_ctrl_c: how to go on after one that came before there was anything to save.
    """
    gc.set_threshold(10_000)  # of 700: imports leave 600,000 objects, and to look at them over and over takes a second

    def whole() -> int:
        with output_may_close():
            return _exit_code(run, after_ctrl_c)

    return _exit_code(whole, after_ctrl_c)  # of the error of the last flush


def _exit_code(run: Callable[[], int], after_ctrl_c: str) -> int:
    try:
        with _ctrl_c_raises():
            return run()
    except UserError as error:
        rank = process_rank()
        line = " ".join(str(error).splitlines())
        print(f"error: {line}" if rank == 0 else f"[rank {rank}] error: {line}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except PermissionError as error:
        print(f"error: {error.filename}: {error.strerror}; change its permissions", file=sys.stderr)
        return EXIT_BAD_INPUT
    except StoppedBySignal as stop:
        print(stop, file=sys.stderr)
        return EXIT_STOPPED
    except DivergedError as error:
        print(f"diverged: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("; ".join(filter(None, ("stopped by Ctrl-C", after_ctrl_c))), file=sys.stderr)
        return EXIT_STOPPED
