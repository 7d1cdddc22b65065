"""`mae-transfer recipe`: a recipe of one's own, as a copy of one that is here."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mae_transfer import __version__
from mae_transfer.cli.exit import exit_code, make_folder, new_parser
from mae_transfer.commands import command
from mae_transfer.errors import EXIT_DONE, UserError
from mae_transfer.files import atomic_write, user_path

EXAMPLES = """\
examples:
  copy the task's recipe, change values in it, use it:
    mae-transfer recipe new my.yaml --task coco
    mae-transfer transfer --task coco --backbone mae_vit_b --data /data/coco recipe=my.yaml
  copy that of a protocol, or another one by its name:
    mae-transfer recipe new probe.yaml --task imagenet --protocol linear
    mae-transfer recipe new cascade.yaml --task coco --recipe vitdet_cascade
"""


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("recipe", "Copy a recipe into a file of your own, for recipe=FILE (docs/recipes.md).", EXAMPLES)
    parser.add_argument("action", choices=["new"], help="new: make the file")
    parser.add_argument("file", type=user_path, help="the .yaml file to make; its name is the recipe's in tables")
    parser.add_argument("--task", required=True, help="as of transfer, or pretrain")
    parser.add_argument("--protocol", help="whose recipe to copy, or method of a pre-training; default: the first")
    parser.add_argument("--recipe", help="the recipe to copy, by its name in configs/")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)))


def run(args: argparse.Namespace) -> int:
    from mae_transfer.config.recipe import read_recipe, recipe_folder
    from mae_transfer.config.yaml import dump_yaml
    from mae_transfer.runs.tasks import protocol_of, task_card

    file: Path = args.file
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file}: a recipe's file ends in .yaml; name it so")
    if file.exists():
        raise UserError(f"{file} is there already; name another file, or delete it")
    card = task_card(args.task)
    protocol = protocol_of(card, args.protocol)
    name = args.recipe or (protocol.recipe if protocol else card.recipe)
    read_recipe(card.folder, name)  # an unknown one is said, with the nearest
    source = user_path(name) if name.endswith((".yaml", ".yml")) else recipe_folder(card.folder) / f"{name}.yaml"
    head = f"# A copy of the recipe {name} of mae_transfer {__version__}, to be changed; docs/recipes.md says how.\n#\n"
    line = dump_yaml({"recipe": file.stem})
    text, count = re.subn(r"^recipe: .*\n", lambda _: line, source.read_text(encoding="utf-8"), flags=re.MULTILINE)
    make_folder(file.parent)
    with atomic_write(file) as out:
        out.write(f"{head}{text}{'' if count else line}".encode())
    option = f" --{card.option} {args.protocol}" if args.protocol else ""
    use = f"{command('transfer')} --task {card.name}" if card.transfers else command("pretrain")
    print(f"{file}, a copy of {source}; use it by: {use}{option} ... recipe={file}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
