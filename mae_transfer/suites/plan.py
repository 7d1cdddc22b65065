"""From a suite file to its runs, in the order in which they are made; all of them resolved and checked here."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_transfer.backbones import registry
from mae_transfer.config.overrides import flatten, parse_overrides
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.loop import check_plan, micro_batch_sizes
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import UserError, nearest
from mae_transfer.files import user_path
from mae_transfer.run_folder.folder import check_same_recipe
from mae_transfer.runs.names import RUNS, check_output, run_label
from mae_transfer.runs.plan import Pairs, Run, of_seed, plan_runs
from mae_transfer.runs.resolve import backbone_spec, names_data
from mae_transfer.runs.search import finished_record
from mae_transfer.runs.tasks import check_transfers, config_class, make_task, protocol_of, task_card
from mae_transfer.runs.unread import refuse_unread, why_unread
from mae_transfer.suites.config import PretrainEntry, SuiteConfig, TaskEntry, read_suite
from mae_transfer.suites.state import RunPlace

PRETRAINING = "pre-training"


@dataclass(frozen=True, eq=False)  # each is one key of a mapping
class SuiteRun:
    """A run of a suite. Its folder is named by its configuration, so two suites in one folder share what is alike."""

    row: str
    """Label of the backbone or pre-training."""
    column: str
    seed: int
    config: RunConfig
    place: RunPlace
    arguments: tuple[str, ...]
    """Of the task's command line, all but `--resume auto`."""
    needs: tuple[Path, ...] = ()
    """Folders of the runs that have to be done before."""
    point: Pairs = ()
    """Its values of a search."""

    @property
    def title(self) -> str:
        point = " ".join(f"{key}={value}" for key, value in self.point)
        return " ".join(filter(None, (self.row, self.column, f"seed {self.seed}", point)))

    def command(self, processes: int = 1) -> list[str]:
        """What starts it or goes on with it: `processes` on this machine, under torchrun if more than one."""
        launcher = ["-m"]
        if processes > 1:
            launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        name = "transfer" if task_card(self.config.task).transfers else "pretrain"
        return [sys.executable, *launcher, "mae_transfer", name, *self.arguments, "--resume", "auto"]


@dataclass(frozen=True)
class _Row:
    """A backbone as the transfers see it."""

    label: str
    name: str
    weights: str | None
    checkpoint: str | None
    overrides: tuple[str, ...]
    seeds: tuple[int, ...] | None = None
    pretrained: Mapping[int, Path] | None = None
    """Seed -> folder of the run that makes its checkpoint."""


class _Planner:
    def __init__(
        self,
        suite: SuiteConfig,
        output: Path,
        data: Mapping[str, str],
        checkpoints: Mapping[str, str],
        overrides: Sequence[str],
        weights: bool,
    ) -> None:
        self.suite, self.output, self.weights = suite, output, weights
        self.data = {**suite.data, **data}
        self.checkpoints, self.overrides = checkpoints, tuple(overrides)
        self.runs: dict[str, SuiteRun] = {}
        self.pretrained: dict[str, dict[int, Path]] = {}
        self.given: list[tuple[RunConfig, Sequence[str]]] = []
        """Configuration and overridden keys of each run. Overrides of a whole suite may be for some runs only."""

    def plan(self) -> list[SuiteRun]:
        for entry in self._in_order(self.suite.pretrain):
            self._pretrain(entry)
        rows = [
            _Row(entry.label, entry.backbone, None, None, (), pretrained=self.pretrained[entry.label])
            for entry in self.suite.pretrain
            if entry.method != "dvae"
        ] + [
            _Row(
                entry.label or entry.name,
                entry.name,
                entry.weights,
                self.checkpoints.get(entry.label or entry.name, entry.checkpoint),
                entry.overrides,
                entry.seeds,
            )
            for entry in self.suite.backbones
        ]
        for task in self.suite.tasks:
            with named_in_errors("tasks"):
                check_transfers(task.task)
            for row in rows:
                if task.backbones is None or row.label in task.backbones:
                    self._transfer(row, task)
        refuse_unread(self.given)
        return list(self.runs.values())

    def _in_order(self, entries: Sequence[PretrainEntry]) -> list[PretrainEntry]:
        """Tokenizers before the pre-trainings that take them."""
        labels = {entry.label: entry for entry in entries}
        for entry in entries:
            if entry.tokenizer in labels and labels[entry.tokenizer].tokenizer in labels:
                raise UserError(f"pre-training {entry.label}: its tokenizer {entry.tokenizer} has to need none itself")
        return sorted(entries, key=lambda entry: entry.tokenizer in labels)

    def _folder(
        self, name: str, task: str, protocol: str | None, preset: str, overrides: Sequence[str], title: str
    ) -> str | None:
        """The --data of a run, None if it needs none."""
        folder = self.data.get(name)
        if folder is not None:
            return folder
        card = task_card(task)
        if preset == "smoke" or names_data(config_class(card, protocol_of(card, protocol)), overrides):
            return None
        raise UserError(f"{title}: no folder for the data set '{name}'; give --data {name}=FOLDER")

    def _pretrain(self, entry: PretrainEntry) -> None:
        preset = entry.preset or self.suite.preset
        overrides = (*self.suite.pretrain_overrides, *entry.overrides, *self.overrides)
        for seed in entry.seeds or self.suite.seeds:
            title = f"{entry.label} {PRETRAINING} seed {seed}"
            tokenizer: str | None = entry.tokenizer
            needs: tuple[Path, ...] = ()
            if tokenizer in self.pretrained:
                folder = self._of_seed(tokenizer, seed, title)
                tokenizer, needs = str(folder), (folder,)
            arguments = ["--method", entry.method, "--backbone", entry.backbone, "--preset", preset]
            data = self._folder(entry.data or PRETRAINING, "pretrain", entry.method, preset, overrides, title)
            arguments += [*_option("--data", data), *_option("--tokenizer", tokenizer), "--seed", str(seed)]
            with named_in_errors(title):
                (planned,) = plan_runs(
                    "pretrain",
                    entry.backbone,
                    protocol=entry.method,
                    data=data,
                    tokenizer=tokenizer,
                    preset=preset,
                    seed=seed,
                    folder=self.output,
                    allow_unread=True,
                    overrides=overrides,
                )
            path = self._add(planned, arguments, overrides, entry.label, PRETRAINING, seed, needs)
            self.pretrained.setdefault(entry.label, {})[seed] = path

    def _transfer(self, row: _Row, task: TaskEntry) -> None:
        preset = task.preset or self.suite.preset
        overrides = (*self.suite.overrides, *row.overrides, *task.overrides, *self.overrides)
        alike = row.pretrained is None and "seed" not in dict(parse_overrides(overrides))
        runs: list[Run] = []
        for seed in task.seeds or row.seeds or (tuple(row.pretrained) if row.pretrained else self.suite.seeds):
            title = f"{row.label} {task.label or task.data or task.task} seed {seed}"
            checkpoint = row.checkpoint
            needs: tuple[Path, ...] = ()
            if row.pretrained is not None:
                folder = self._of_seed(row.label, seed, title)
                checkpoint, needs = str(folder), (folder,)
            first = task.protocols[0] if task.protocols else None
            data = self._folder(task.data or task.task, task.task, first, preset, overrides, title)
            arguments = ["--task", task.task, "--backbone", row.name, "--preset", preset, *_option("--data", data)]
            arguments += [*_option("--checkpoint", checkpoint), *_option("--weights", row.weights)]
            arguments += [*_option("--subset", task.subset), "--seed", str(seed)]
            options: dict[str, Any] = {
                "checkpoint": checkpoint,
                "weights": row.weights,
                "data": data,
                "preset": preset,
                "subset": task.subset,
                "seed": seed,
            }
            with named_in_errors(title):
                if runs and alike:  # resolving takes 20 ms
                    runs = [of_seed(run, seed, self.output) for run in runs]
                else:
                    runs = plan_runs(
                        task.task,
                        row.name,
                        protocol=",".join(task.protocols) or None,
                        blocks=task.blocks,
                        layers=task.layers,
                        shots=task.shots,
                        fraction=None if task.fraction is None else str(task.fraction),
                        draws=task.draws,
                        search=task.search,
                        folder=self.output,
                        allow_unread=True,
                        overrides=overrides,
                        **options,
                    )
                for run in runs:
                    if row.pretrained is None and self.weights:
                        _check_weights(run.config, row.label)
                    column = " ".join(filter(None, (task.label or task.data or task.task, run_label(run.config))))
                    column += " search" if task.search else ""
                    own = [*_own_arguments(run.config), *(f"{key}={json.dumps(value)}" for key, value in run.point)]
                    self._add(run, [*arguments, *own], overrides, row.label, column, seed, needs)

    def _of_seed(self, label: str, seed: int, title: str) -> Path:
        made = self.pretrained[label]
        if seed not in made:
            raise UserError(f"{title}: the pre-training {label} has the seeds {', '.join(map(str, made))} only")
        return made[seed]

    def _add(
        self,
        planned: Run,
        arguments: Sequence[str],
        overrides: Sequence[str],
        row: str,
        column: str,
        seed: int,
        needs: tuple[Path, ...],
    ) -> Path:
        path, searched = planned.path, dict(planned.point)
        given = [(key, text) for text in overrides for key, _ in parse_overrides([text]) if key not in searched]
        keys = [key for key, _ in given]
        self.given.append((planned.config, keys))
        unread = any(why_unread(planned.config, key) for key in keys)
        run = SuiteRun(
            row,
            column,
            seed,
            planned.config,
            RunPlace(path),
            (*arguments, "--output", str(path), *(["--allow-unread"] if unread else []), *(text for _, text in given)),
            needs,
            planned.point,
        )
        if path.name in self.runs:
            raise UserError(
                f"{run.title} is the same run as {self.runs[path.name].title}; leave out one of them in the suite"
            )
        self.runs[path.name] = run
        return path


def plan_suite(
    path: Path,
    *,
    output: Path | None = None,
    data: Mapping[str, str] | None = None,
    checkpoints: Mapping[str, str] | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    weights: bool = True,
) -> tuple[Path, list[SuiteRun]]:
    """The output folder of a suite, and its runs in the order in which they are made.

    Args:
        data: data set -> folder, over those of the file.
        checkpoints: label of a backbone -> weights file.
        preset: instead of the suite's own, where an entry names none.
        overrides: `key=value` for every run, over those of the file.
        weights: whether those of the backbones have to be there.

    Raises:
        UserError: anything wrong with the file, an option or a resolved configuration, or a run that is there twice or
            with another recipe.
    """
    check_output(output)
    suite = read_suite(path)
    if preset is not None:
        suite = suite.model_copy(update={"preset": preset})
    data, checkpoints = data or {}, checkpoints or {}
    sets = {entry.data or entry.task for entry in suite.tasks} | {e.data or PRETRAINING for e in suite.pretrain}
    _check_names("--data", data, {*sets, *suite.data})
    _check_names("--checkpoint", checkpoints, {entry.label or entry.name for entry in suite.backbones})
    folder = output or RUNS / suite.name
    runs = _Planner(suite, folder, data, checkpoints, overrides, weights).plan()
    for run in runs:
        if run.place.record.exists():
            check_same_recipe(run.place.path, run.config)
            finished_record(run.config, run.place.path)
    return folder, runs


def check_runs(runs: Sequence[SuiteRun], world_size: int) -> dict[Path, int | None]:
    """Read the data of the runs, each set once, and check batches and schedules on so many devices; the steps of each
    run by its folder, None if it takes none. UserError for the first that cannot be."""
    sizes: dict[tuple[Any, ...], BaseTask] = {}
    steps: dict[Path, int | None] = {}
    like: dict[str, BaseTask] = {}
    for run in runs:
        config: Any = run.config
        patch = backbone_spec(config.backbone.name).patch_size
        settings = (str(getattr(config, section, "")) for section in ("data", "eval", "probe"))
        key = (config.task, run_label(config), patch, config.subset, *settings)
        with named_in_errors(run.title):
            if key not in sizes:
                sizes[key] = make_task(config, like.get(config.task))
                like[config.task] = sizes[key]
                sizes[key].check_images()
            task = sizes[key]
            if not task.trains:
                steps[run.place.path] = None
                continue
            steps[run.place.path] = check_plan(config, len(task.train_dataset), world_size).total
            if config.train.micro_batch != "auto":
                task.check_batches(micro_batch_sizes(config, world_size))
    return steps


@contextmanager
def named_in_errors(title: str) -> Iterator[None]:
    """Put which run it is before the message of a UserError."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(title):
            raise
        raise UserError(f"{title}: {error}") from error


def _own_arguments(config: RunConfig) -> list[str]:
    """The arguments that tell a run of a series from its others."""
    values = flatten(config.model_dump(mode="json"))
    arguments = _option("--protocol", values.get("protocol"))
    if values.get("protocol") == "partial":
        arguments += _option("--blocks", values["model.blocks"])
    if values.get("probe.stored_layers"):
        arguments += [f"{key}={json.dumps(values[key])}" for key in ("probe.layers", "probe.stored_layers")]
    few = [key for key in ("data.shots", "data.fraction") if values.get(key) is not None]
    arguments += [f"{key}={values[key]}" for key in (*few, "data.draw") if few]
    return arguments


def _option(name: str, value: object) -> list[str]:
    return [] if value is None else [name, f"{value:g}" if isinstance(value, float) else str(value)]


def _check_weights(config: RunConfig, label: str) -> None:
    """UserError for a weights file that is not there; whether it fits is found when it is loaded."""
    name, checkpoint = config.backbone.name, config.backbone.checkpoint
    if checkpoint is not None and not user_path(checkpoint).exists():
        raise UserError(f"no weights file {checkpoint}; give another by --checkpoint {label}=PATH")
    if config.backbone.weights == "random" or checkpoint is not None or name.startswith(registry.TIMM_PREFIX):
        return
    spec = backbone_spec(name)
    if spec.origin is None and spec.hub is None:
        raise UserError(f"backbone '{name}' has no published weights; give them by --checkpoint {label}=PATH")


def _check_names(option: str, given: Mapping[str, str], known: set[str]) -> None:
    for name in given:
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise UserError(f"{option} {name}=: the suite has no '{name}'{nearest(name, known)}; it has {names}")
