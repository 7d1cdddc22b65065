"""The command `mae-transfer`: one module of this folder a command, imported when it is asked for."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from mae_transfer import __version__
from mae_transfer.cli.exit import exit_code
from mae_transfer.errors import EXIT_BAD_INPUT, EXIT_DONE

COMMANDS = {
    "demo": "a small study of generated images in minutes: pre-training, transfer, table, page",
    "transfer": "transfer an encoder to a task and record how well it does",
    "pretrain": "pre-train an encoder, as a checkpoint for transfer",
    "plan": "what a run will cost: memory, operations, hours, disk",
    "suite": "make all runs of a file of pre-trainings, encoders, tasks and seeds",
    "recipe": "copy a recipe into a file of your own",
    "tables": "tables of all runs, beside the published numbers",
    "report": "one HTML page of tables, plots, runs and pictures",
    "plots": "plots of all runs as PNG, SVG and CSV files",
    "inspect": "what a checkpoint is, whether it loads, and how to use it",
    "convert": "a trained detector to detectron2 and back",
    "validate": "check the records of all runs",
    "verify": "a published model, evaluated against its authors' number",
    "visualize": "pictures of what a masked autoencoder reconstructs",
}

USAGE = """\
usage: mae-transfer COMMAND ...

How well does this image encoder transfer?

commands:
{commands}

  mae-transfer COMMAND --help     the options of a command, with examples
  mae-transfer --version

a small study on a laptop in two to three minutes, nothing to download:
  mae-transfer demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {key:<10} {text}" for key, text in COMMANDS.items())), end="")
        return EXIT_DONE
    if name in ("-V", "--version"):
        print(f"mae-transfer {__version__}")
        return EXIT_DONE
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        print(f"error: no command '{name}'{hint}; commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    # also here, for a Ctrl-C while the module is imported
    return exit_code(lambda: int(importlib.import_module(f"mae_transfer.cli.{name}").main(arguments[1:])))


if __name__ == "__main__":
    sys.exit(main())
