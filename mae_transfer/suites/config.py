"""The suite file: which pre-trainings and backbones are transferred to which tasks, with which seeds and overrides."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from mae_transfer.config.sections import Section
from mae_transfer.config.yaml import read_yaml
from mae_transfer.errors import UserError, nearest

Seeds = tuple[int, ...]
Overrides = tuple[str, ...]
Label = str


class PretrainEntry(Section):
    """A pre-training, a run for each seed; each is a row of `backbones` to transfer (but for `dvae`, a tokenizer)."""

    label: Label = Field(pattern=r"^[A-Za-z0-9._:-]+$")
    """What the other entries and the matrix call it."""
    method: str
    """mae, beit, supervised, mocov3 or dvae."""
    backbone: str
    data: str | None = None
    """Name of the data set in `data`, which --data gives a folder."""
    tokenizer: str | None = None
    """kmeans, a tokenizer's path, or the label of another pre-training, whose run of the same seed is taken."""
    preset: str | None = None
    seeds: Seeds | None = None
    overrides: Overrides = ()


class _Named(Section):
    """An entry that a plain text stands for: its first field."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {next(iter(cls.model_fields)): value} if isinstance(value, str) else value


class BackboneEntry(_Named):
    """An encoder that is there already. `mae_vit_b` is short for `{name: mae_vit_b}`."""

    name: str
    """A registered name such as mae_vit_b, or timm:<model>."""
    label: Label = ""
    """What the matrix calls it; the name if left out."""
    checkpoint: str | None = None
    """Path of its weights file; --checkpoint LABEL=PATH gives it on the command line."""
    weights: Literal["pretrained", "random"] | None = None
    seeds: Seeds | None = None
    overrides: Overrides = ()


class TaskEntry(_Named):
    """A task, with one or several protocols, that every backbone is transferred to. `coco` is `{task: coco}`."""

    task: str
    label: Label = ""
    """Its columns in the matrix; the data set's name if left out."""
    protocol: str | tuple[str, ...] | None = None
    blocks: str | None = None
    """As --blocks of run_transfer.py, for the protocol partial."""
    layers: str | None = None
    """As --layers of run_transfer.py, for the protocols knn, logreg and in_context."""
    shots: int | None = Field(None, ge=1)
    fraction: str | float | None = None
    """As --fraction of run_transfer.py: percent of the training images, several with commas."""
    draws: int | None = Field(None, ge=1)
    search: bool = False
    """A run for every combination of the recipe's section `search`."""
    data: str | None = None
    """Name of the data set in `data`; that of the task if left out."""
    preset: str | None = None
    subset: int | None = Field(None, ge=1)
    seeds: Seeds | None = None
    backbones: tuple[Label, ...] | None = None
    """Labels of the only rows that are transferred to it; None is all."""
    overrides: Overrides = ()

    @property
    def protocols(self) -> tuple[str, ...]:
        return (self.protocol,) if isinstance(self.protocol, str) else self.protocol or ()


class SuiteConfig(Section):
    """A whole suite. Entries without seeds or preset of their own have those given here."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Names the default output folder, results/runs/<name>."""
    preset: str = "full"
    seeds: Seeds = Field((0,), min_length=1)
    data: dict[str, str | None] = Field(default_factory=dict)
    """Folders of data sets by name; --data NAME=FOLDER gives them."""
    pretrain_overrides: Overrides = ()
    """key=value for every pre-training; the entry's own come after them and win."""
    overrides: Overrides = ()
    """key=value for every transfer; those of the backbone, then of the task come after them and win."""
    pretrain: tuple[PretrainEntry, ...] = ()
    backbones: tuple[BackboneEntry, ...] = ()
    tasks: tuple[TaskEntry, ...] = ()

    @model_validator(mode="after")
    def _is_a_suite(self) -> "SuiteConfig":
        if not self.pretrain and not (self.backbones and self.tasks):
            raise ValueError("a suite needs pre-trainings (pretrain), or backbones and tasks")
        labels = [entry.label for entry in self.pretrain] + [entry.label or entry.name for entry in self.backbones]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(
                f"'{twice}' is the label of two entries; give each backbone and pre-training its own label"
            )
        for entry in self.tasks:
            for label in entry.backbones or ():
                if label not in labels:
                    raise ValueError(f"tasks: {entry.task}: no backbone '{label}'{nearest(label, labels)}")
        own = [*(e.seeds for e in self.pretrain), *(e.seeds for e in self.backbones), *(e.seeds for e in self.tasks)]
        for seeds in (self.seeds, *own):
            if seeds is not None and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
                raise ValueError(f"seeds {list(seeds)}: give different whole numbers from 0 on")
        return self


def read_suite(path: Path) -> SuiteConfig:
    """The suite of a YAML file; UserError for the first thing wrong with it."""
    values = read_yaml(path, "suite")
    try:
        return SuiteConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        hint = nearest(str(first["loc"][-1]), _keys(first["loc"])) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"suite {path}: {f'{where}: ' if where else ''}{message}{hint}") from None


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed where an unknown one was found."""
    sections: dict[str, type[Section]] = {"pretrain": PretrainEntry, "backbones": BackboneEntry, "tasks": TaskEntry}
    return list((sections[str(place[0])] if len(place) > 1 else SuiteConfig).model_fields)
