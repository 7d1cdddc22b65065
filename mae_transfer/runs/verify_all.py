"""All published models whose files are in a folder, one after the other, and a table of what came out."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mae_transfer.config.overrides import Overrides
from mae_transfer.engine.progress import console
from mae_transfer.errors import UserError, nearest
from mae_transfer.files import user_path
from mae_transfer.results.published_models import PublishedModel
from mae_transfer.runs.verify import Verdict, digest_of, verify

_LOG = logging.getLogger(__name__)
_WEIGHTS = (".pth", ".pt", ".bin", ".pkl", ".ckpt", ".npz", ".safetensors")


@dataclass(frozen=True)
class Outcome:
    """What came out for a model: verdicts, or the line by which it was refused."""

    name: str
    verdicts: tuple[Verdict, ...] = ()
    refused: str | None = None


def find_files(folder: str | Path, models: Mapping[str, PublishedModel]) -> dict[str, Path]:
    """Name of a model -> its file below the folder, by the file's name or else by its hash.

    A head that is a file of its own has to lie beside it.

    Raises:
        UserError: there is no such folder, or none of the models is in it.
    """
    root = user_path(folder)
    if not root.is_dir():
        raise UserError(f"--checkpoint {root}: --all takes the folder that has the files of published models")
    files = [path for path in sorted(root.rglob("*")) if path.suffix in _WEIGHTS and path.is_file()]
    digest = cache(digest_of)
    named = {path.name: path for path in reversed(files)}
    taken = {model.file for model in models.values()}
    unknown = [path for path in files if path.name not in taken]
    found = {}
    for name, model in models.items():
        path = named.get(model.file or "")
        if model.classifier is not None and (path is None or not path.with_name(model.classifier).is_file()):
            continue
        if path is None and model.digest is not None:
            kind, wanted = model.digest.split()
            path = next((other for other in unknown if digest(other, kind).startswith(wanted)), None)
            if path is not None:
                _LOG.info("%s is %s, by its %s", path, name, kind)
        if path is not None:
            found[name] = path
    if not found:
        raise UserError(
            f"{root}: none of its {len(files)} weights files is a published model's, by name or hash; --list shows all"
        )
    return found


def data_of_tasks(data: list[str], tasks: set[str], known: set[str]) -> dict[str, str]:
    """`imagenet=/data/imagenet` for each task, or one folder for the one task that there is.

    Args:
        tasks: those that need a folder.
        known: those that may have one.

    Raises:
        UserError: a task has no folder, is named twice, or is not known; a folder has no task.
    """
    named = [text.partition("=") if "=" in text.split("/")[0] else ("", "", text) for text in data]
    if len(data) == 1 and len(tasks) == 1 and not named[0][0]:
        return {min(tasks): data[0]}
    found: dict[str, str] = {}
    for text, (task, _, folder) in zip(data, named, strict=True):
        if not task:
            raise UserError(f"--data {text}: --all takes TASK=FOLDER, with a task of {', '.join(sorted(known))}")
        if task not in known:
            raise UserError(
                f"--data {text}: no model of the list is of the task '{task}'{nearest(task, known)}; "
                f"the list has {', '.join(sorted(known))}"
            )
        if task in found:
            raise UserError(f"--data {text}: {task} has a folder already, {found[task]}; give one")
        found[task] = folder
    lacks = sorted(tasks - found.keys())
    if lacks:
        raise UserError(
            f"--all found models of {', '.join(sorted(tasks))}: give {' '.join(f'--data {t}=DIR' for t in lacks)}"
        )
    return found


def verify_all(
    models: Mapping[str, PublishedModel],
    checkpoints: str | Path,
    data: list[str],
    *,
    images: int | None = None,
    output: str | Path | None = None,
    device: str | None = None,
    overrides: Overrides = (),
    progress: bool = False,
) -> Iterator[Outcome]:
    """Evaluate each model whose file is in the folder `checkpoints`; a model that is refused stops none of the others.

    Args:
        data: of each task, as of `data_of_tasks`.
        output: a folder that has a run folder for each model.
        images, device, overrides: as of `verify`, of all models.

    Raises:
        UserError: no file is known, or the data of a task are not named or of no task; nothing was evaluated.
    """
    with console():
        found = find_files(checkpoints, models)
    known = {model.task for model in models.values()}
    folders = data_of_tasks(data, {models[name].task for name in found}, known)
    for name, path in found.items():
        place = None if output is None else user_path(output) / name
        options = {"images": images, "output": place, "device": device, "overrides": overrides, "progress": progress}
        try:
            _, verdicts = verify(name, models[name], checkpoint=path, data=folders[models[name].task], **options)  # type: ignore[arg-type]
        except UserError as error:
            yield Outcome(name, refused=str(error))
        else:
            yield Outcome(name, tuple(verdicts))


def table(outcomes: list[Outcome]) -> str:
    """A line for each metric of each model, in columns."""
    rows = [("model", "metric", "measured", "expected", "difference", "verdict")]
    for outcome in outcomes:
        for v in outcome.verdicts:
            numbers = (f"{v.measured:.3f}", f"{v.expected:.3f}", f"{v.measured - v.expected:+.3f}")
            rows.append((outcome.name, v.metric, *numbers, v.word))
        if outcome.refused is not None:
            rows.append((outcome.name, "", "", "", "", f"refused: {outcome.refused}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ("  ".join([*(f"{row[i]:<{widths[i]}}" for i in range(5)), row[5]]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
