"""What all commands share: the parser's form, the folder of runs, and errors as exit codes.

Exit codes: 0 done, 2 bad input (one line says what, where and what to do), 3 stopped by a signal after saving, 1
anything else.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mae_transfer import __version__
from mae_transfer.commands import as_typed, command
from mae_transfer.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    DivergedError,
    StoppedBySignal,
    UserError,
)

if TYPE_CHECKING:
    from mae_transfer.run_folder.schema import RunRecord


def new_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of a command, with its examples in the form that the user typed."""
    parser = argparse.ArgumentParser(
        prog=command(name).removeprefix("python tools/"),
        description=description,
        epilog=as_typed(epilog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mae-transfer {__version__}")
    return parser


def add_runs_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=Path, default=Path("results/runs"), help="folder with runs; default: results/runs"
    )


def records_of(folder: Path, *, summary: bool = False) -> tuple[list["RunRecord"], list[str]]:
    """The records below the folder of --runs, and a line for each that is left out, which is printed as well.

    Raises:
        UserError: there is no such folder.
    """
    from mae_transfer.run_folder.record import find_records

    if not folder.is_dir():
        raise UserError(f"no folder {folder}; run {command('transfer')} first or name the folder with --runs")
    records, left_out = find_records(folder, summary=summary)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return records, left_out


def make_folder(folder: Path) -> None:
    """Make the folder of an output; UserError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; choose another --output") from error


def exit_code(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit code of the error that it ends with, which is printed in one line."""
    try:
        code = run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        line = " ".join(str(error).splitlines())
        print(f"error: {line}" if rank == "0" else f"[rank {rank}] error: {line}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except StoppedBySignal as stop:
        print(stop, file=sys.stderr)
        return EXIT_STOPPED
    except DivergedError as error:
        print(f"diverged: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; --resume goes on from the newest checkpoint, if there is one", file=sys.stderr)
        return EXIT_STOPPED
