"""A published model, evaluated here, against the number that its authors give for it."""

import hashlib
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mae_transfer.commands import process_rank
from mae_transfer.config.overrides import Overrides, parse_overrides
from mae_transfer.data.synthetic.folder import cache_folder
from mae_transfer.engine.progress import console
from mae_transfer.errors import UserError
from mae_transfer.files import atomic_write, user_path
from mae_transfer.results.part import LEAST, interval_of_whole, metric_of
from mae_transfer.results.published_models import PublishedModel
from mae_transfer.results.statistics import Interval, wilson_interval
from mae_transfer.run_folder.per_image import known_source, read_per_image, sources
from mae_transfer.run_folder.record import read_record, write_json
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.names import RUNS, check_output
from mae_transfer.runs.series import run_series
from mae_transfer.runs.tasks import task_card
from mae_transfer.runs.trained import PROTOCOL

_LOG = logging.getLogger(__name__)
TIMEOUT = 10.0
"""Seconds to wait for an answer of the authors' address."""
CHUNK = 1 << 20
CLASSIFIER = "model.classifier"
SHARES = ("top1", "top5")
"""Metrics that are a share of images: Wilson's interval. Those of others follow from the results of single images."""


@dataclass(frozen=True)
class Verdict:
    """A metric measured and expected, in percent.

    `part`: of so many images, where the number is of more. `interval`: what all of them may give; None for a metric
    of which a part does not tell.
    """

    metric: str
    measured: float
    expected: float
    tolerance: float
    part: int | None = None
    interval: Interval | None = None

    @property
    def tells(self) -> bool:
        return self.part is None or self.interval is not None

    @property
    def agrees(self) -> bool:
        """On the whole benchmark to the tolerance; on a part if the interval and the tolerance reach the number."""
        if not self.tells:
            return False
        low, high = (self.measured,) * 2 if self.interval is None else (self.interval.low, self.interval.high)
        return low - self.tolerance - 1e-9 <= self.expected <= high + self.tolerance + 1e-9

    @property
    def word(self) -> str:
        if not self.tells:
            return "NO VERDICT"
        return "agrees" if self.agrees else "DIFFERS"

    def line(self) -> str:
        verdict = self.word
        found = f"{self.metric}: measured {self.measured:.3f}, expected {self.expected:.3f}"
        found += f", difference {self.measured - self.expected:+.3f}"
        if not self.tells:
            return f"{found}: {verdict} on a part of {self.part} images; evaluate all of them"
        if self.interval is None:
            return f"{found}: {verdict} (tolerance {self.tolerance:g})"
        within = f"95 % interval of the whole {self.interval.low:.2f} to {self.interval.high:.2f}"
        return f"{found}, {within}: {verdict} (tolerance {self.tolerance:g})"


def reproduced(verdicts: Sequence[Verdict]) -> bool:
    """Whether the numbers agree: all of those that were found out, of which there is at least one."""
    telling = [verdict for verdict in verdicts if verdict.tells]
    return bool(telling) and all(verdict.agrees for verdict in telling)


def verify(
    name: str,
    model: PublishedModel,
    *,
    checkpoint: str | Path | None = None,
    data: str | Path | None = None,
    images: int | None = None,
    download: bool = False,
    output: str | Path | None = None,
    device: str | None = None,
    overrides: Overrides = (),
    progress: bool = False,
) -> tuple[RunRecord, list[Verdict]]:
    """Evaluate a published model and compare; the record says which model it is, and what was expected.

    Of several processes the first one compares, since the run folder may be on its disk alone; others have no verdicts.

    Args:
        checkpoint: the file, or a folder that has it; without it weights are fetched if `download` is set.
        data: as `--data`.
        images: evaluate only this many, always the same ones.
        overrides: win over the settings of the list; a difference is then the user's own.

    Raises:
        UserError: no weights, and all that an evaluation refuses.
    """
    check_output(output)
    if images is not None:
        _check_part(model, images)
    with console() if progress else nullcontext():
        path = _weights(name, model, checkpoint, download)
        same_file = None if path is None else _is_published(path, model)
        given = dict(parse_overrides(overrides))
        head = {} if CLASSIFIER in given else _classifier(model, path, download)
    settings = {**model.settings, **head, **given}
    part = "" if images is None else f"-{images}images"
    folder = RUNS / f"verify-{name}{part}" if output is None else user_path(output)
    (record,) = run_series(
        model.task,
        model.backbone,
        protocol=PROTOCOL,
        eval_only=True,
        checkpoint=path,
        data=data,
        subset=images,
        device=device,
        output=folder,
        overrides=settings,
        progress=progress,
    )
    if process_rank() > 0:
        return record, []
    verdicts = compare(model, record, folder)
    marked: dict[str, object] = {
        **record,
        "published_model": {
            "name": name,
            **model.model_dump(include={"metrics", "tolerance", "source", "file"}),
            **({} if model.classifier is None else {"classifier": model.classifier}),
            "published_file": same_file,
            "agrees": reproduced(verdicts),
        },
    }
    file = folder / "record.json"
    write_json(file, marked)
    return read_record(file), verdicts


def _check_part(model: PublishedModel, images: int) -> None:
    """UserError unless so many images tell something of the model's numbers."""
    follow = sources(task_card(model.task).metrics)
    of_images = [metric for metric in model.metrics if metric in follow and metric not in SHARES]
    others = [metric for metric in model.metrics if metric not in follow and metric not in SHARES]
    if len(others) == len(model.metrics):
        raise UserError(f"--images {images}: a part of the images has no interval for {others[0]}; leave it out")
    if of_images and images < LEAST:
        raise UserError(f"--images {images}: an interval for {of_images[0]} takes {LEAST} images or more")


def compare(model: PublishedModel, record: RunRecord, folder: Path) -> list[Verdict]:
    """The verdicts on a record, a metric each; on a part of the images that the numbers are of with its interval.

    Args:
        folder: the run's, with its results of single images.
    """
    benchmark, data = task_card(model.task).benchmark, record["data"]
    images = data.get("val_images", 0) - len(data.get("skipped_files") or ())
    of = model.images or (images if benchmark is None else benchmark.val_images)
    if images > of:
        raise UserError(f"{data['name']} has {images} val images, and the published number is of {of}: another set")
    part = None if images == of else images
    found = []
    for metric, expected in model.metrics.items():
        measured = record["metrics"].get(metric)
        if measured is None:
            raise UserError(f"{model.task} measures no {metric}, which the list expects; correct the list")
        interval = None
        if part is not None and metric in SHARES:
            share = wilson_interval(measured / 100, part, of)
            interval = Interval(100 * share.low, 100 * share.high)
        elif part is not None:
            interval = _interval(metric, record, folder, of)
        found.append(Verdict(metric, measured, expected, model.tolerance, part, interval))
    return found


def _interval(metric: str, record: RunRecord, folder: Path, of: int) -> Interval | None:
    """Of a metric of `of` images, by the results of the single images of a part.

    None without these, of too few, and of those that `eval.images` chooses: it leaves out images without objects.
    """
    source, kept = sources(record["reports"]).get(metric), record.get("per_image")
    chosen = record["settings"].get("eval.images") is not None
    if source is None or kept is None or kept["images"] < LEAST or chosen:
        return None
    arrays = read_per_image(folder, kept)
    known = known_source(arrays, source)
    return None if known is None else interval_of_whole(metric_of(arrays, known), len(arrays["ids"]), of)


def _weights(name: str, model: PublishedModel, checkpoint: str | Path | None, download: bool) -> Path | None:
    """The path of the weights; None for those of timm's hub, on request."""
    if checkpoint is not None:
        path = Path(checkpoint)
        if model.file is not None and (path / model.file).is_file():
            path = path / model.file
        return path
    if not download:
        where = f"--checkpoint {model.file} ({model.url})" if model.file else "--checkpoint with its file or folder"
        raise UserError(f"{name}: pass {where}, or --download; nothing is fetched unasked")
    if model.url is None or model.file is None:
        return None
    path = cache_folder("published_models") / model.file
    if not path.is_file():
        _fetch(model.url, path)
    return path


def _classifier(model: PublishedModel, encoder: Path | None, download: bool) -> dict[str, str]:
    """The override that names the head of a model whose head is a file of its own, beside the encoder's."""
    if model.classifier is None:
        return {}
    folder = Path() if encoder is None else encoder if encoder.is_dir() else encoder.parent
    path = folder / model.classifier
    if not path.is_file():
        if not download or model.classifier_url is None:
            where = f" ({model.classifier_url})" if model.classifier_url else ""
            raise UserError(
                f"{path}: the head is not beside its encoder; put it there, or pass {CLASSIFIER}=FILE{where}"
            )
        path = cache_folder("published_models") / model.classifier
        if not path.is_file():
            _fetch(model.classifier_url, path)
    return {CLASSIFIER: str(path)}


def _is_published(path: Path, model: PublishedModel) -> bool | None:
    """Whether a file has the hash of the list; None where the authors give none. Another file is said."""
    if model.digest is None or not path.is_file():
        return None
    kind, wanted = model.digest.split()
    digest = digest_of(path, kind)
    same = digest.startswith(wanted)
    if not same:
        _LOG.warning(
            "%s is not the published file: its %s is %s, the published one begins with %s",
            *(path, kind, digest, wanted),
        )
    return same


def digest_of(path: Path, kind: str) -> str:
    """The hexadecimal hash of a file, by `md5` or `sha256`."""
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(url: str, path: Path) -> None:
    """UserError after `TIMEOUT` seconds without an answer; a file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic_write(path) as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"{url} cannot be fetched ({reason}); fetch it elsewhere and pass --checkpoint") from error


def listed(models: Mapping[str, PublishedModel]) -> str:
    """A few lines for each model of a list: its numbers, its source, the command."""
    lines = []
    for name, model in models.items():
        numbers = ", ".join(f"{metric} {value:g}" for metric, value in model.metrics.items())
        file = " and ".join(filter(None, (model.file or "weights of timm's hub", model.classifier)))
        weights = f"--checkpoint {model.file}" if model.file else "--download"
        if model.classifier is not None:
            weights = "--checkpoint FOLDER"
        lines += [
            f"{name}: {numbers} ± {model.tolerance:g} ({model.task}, {model.backbone})",
            f"  {file}; {model.source}",
            f"  mae-transfer verify {name} {weights} --data /data/{model.task}",
        ]
    return "\n".join(lines)
