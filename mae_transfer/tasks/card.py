"""The card of a task: the one place that says what the task is. Imports neither torch nor the task.

`--help`, the configuration, suites, records, tables, plots, searches and validation read cards. `runs/tasks.py` has the
list of them, with those of other packages.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mae_transfer.run_folder.schema import Report, Row


def metric(
    key: str,
    title: str,
    *,
    main: bool = False,
    better: Literal["higher", "lower"] = "higher",
    unit: str = "%",
    group: str = "",
    per_image: str = "",
) -> "Report":
    """One metric of a task, as its records describe it.

    Args:
        key: name in the record's `metrics`.
        title: head of its column.
        main: plots and searches judge a run by the first main metric.
        group: metrics of a group have a table of their own, named by the group; `details` have none.
        per_image: the array of `Evaluation.per_image` that the metric is the mean of, or `iou`, `box` or `mask`
            (`run_folder/per_image.py`): tables then have intervals over images, and validation compares the two.
    """
    report: Report = {"key": key, "title": title, "better": better, "unit": unit, "main": main, "group": group}
    return report | {"per_image": per_image} if per_image else report


@dataclass(frozen=True)
class Protocol:
    """A protocol of a task, or a method of pre-training."""

    name: str
    recipe: str
    """Its default recipe."""
    code: str
    """module:class that implements it."""
    frozen: bool = False
    """Whether the encoder's weights stay as they are."""
    config: str = ""
    """module:class of its configuration, where that is not the task's."""
    stated: str = ""
    """module:function, of a backbone's name and the dotted keys that were asked for (`backbone.checkpoint`) -> values
    that the source of the files states; the recipe's give way to them, and they to what was asked for."""
    load: str = ""
    """module:function, of a configuration -> the model of the trained model's file that it names, without data."""
    about: str = ""
    """One line for --help."""
    at_zero: str = ""
    """Of partial fine-tuning: the protocol that stands for 0 blocks; empty if it takes 0 itself."""
    layers: bool = False
    """Whether it reads the blocks of `probe.layers` alone, of which `--layers` makes a run each."""
    named: bool = True
    """False for the first protocol of a task that had none at first: its configurations and records do not name it."""


@dataclass(frozen=True)
class Benchmark:
    """The whole set that published numbers are of."""

    title: str
    train_images: int
    val_images: int
    classes: int


@dataclass(frozen=True)
class TaskCard:
    """What a task is.

    `folder` is the folder of its recipes: a name in `configs/`, or the path of a folder. A task with `protocols` has a
    recipe for each, the first of which is the default; another has one `recipe`.
    """

    name: str
    """As in `--task`."""
    title: str
    """In tables of its benchmark."""
    about: str
    """One line for --help."""
    folder: str
    config: str
    """module:class of its configuration."""
    task: str
    """module:class of the task itself."""
    metrics: "tuple[Report, ...]"
    kind: str = ""
    """In tables of any other set, such as "Detection"; the title if left out."""
    recipe: str = ""
    protocols: tuple[Protocol, ...] = ()
    option: Literal["protocol", "method"] = "protocol"
    """The name of a protocol's option on the command line and of its key in the configuration."""
    benchmark: Benchmark | None = None
    controls: tuple[str, ...] = ("sup", "random")
    """Initialisations that others are compared with in tables; the first that has runs is taken."""
    synthetic: bool = False
    """Whether `--data synthetic` makes a tiny data set; the preset smoke takes it where no data are named."""
    transfers: bool = True
    """False for pre-training, which makes encoders and has no rows in the tables of transfer."""

    def protocol(self, name: str | None) -> Protocol | None:
        """The protocol of that name; the default one for None; None for a task without protocols.

        Raises:
            KeyError: the task has no protocol of that name.
        """
        if not self.protocols:
            if name is not None:
                raise KeyError(name)
            return None
        if name is None:
            return self.protocols[0]
        return {protocol.name: protocol for protocol in self.protocols}[name]

    def row(self, protocol: str | None) -> "Row":
        """What a record says of the row that its run belongs to."""
        found = self.protocol(protocol)
        if found is None:
            return {"name": "", "frozen": False, "rank": 0}
        name = found.name if found.named else ""
        return {"name": name, "frozen": found.frozen, "rank": self.protocols.index(found)}

    def rows(self) -> "list[Row]":
        """The rows of all protocols."""
        return [self.row(protocol.name) for protocol in self.protocols]

    def describe(self) -> dict[str, object]:
        """What a record, or a table of published numbers alone, says of the task (`run_folder/schema.py`)."""
        return {
            "task": self.name,
            "title": self.title,
            "kind": self.kind or self.title,
            "reports": list(self.metrics),
            "benchmark": None if self.benchmark is None else self.benchmark.title,
            "controls": list(self.controls),
            "transfers": self.transfers,
        }


def load_object(path: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
