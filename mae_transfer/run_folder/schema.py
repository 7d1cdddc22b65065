"""The public schema of the run record, as types that pydantic checks. docs/records.md describes it in words.

Version 3 describes itself: `title`, `reports`, `benchmark`, `controls`, `transfers` and `row` say what the task is, and
what was `protocol` is `settings`. `old_schemas.py` turns versions 1 and 2 into it. A key that is not named here is
allowed and kept: a later release may add some under the same version. Another meaning of a key makes a new version.
Imports neither torch nor tasks.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict  # of `typing` only from Python 3.12 on, for pydantic

SCHEMA = 3
"""The version that is written."""
READABLE = (1, 2, 3)

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
_SUMMARY = ConfigDict(strict=True, extra="ignore")
_WHOLE = ConfigDict(strict=True, extra="allow")


class BackboneSummary(TypedDict):
    """The encoder and its weights: what a table compares."""

    __pydantic_config__ = _SUMMARY  # type: ignore[misc]
    name: Name
    init: Name
    size: Name
    fingerprint: NotRequired[str | None]
    trained_as: NotRequired[str | None]


class DataSummary(TypedDict):
    """The data set."""

    __pydantic_config__ = _SUMMARY  # type: ignore[misc]
    name: Name
    fingerprint: Name
    train_images: NotRequired[Count]
    val_images: NotRequired[Count]
    classes: NotRequired[Count | None]
    draw: NotRequired[Count]
    blind: NotRequired[FiniteFloat | None]
    skipped_files: NotRequired[list[str]]
    whole_fingerprint: NotRequired[str]
    """Of the data that few labels are a part of: the fingerprint of a run on all training images."""
    robustness: NotRequired[dict[str, Name]]
    """Of the sets evaluated beside: the beginning of their metrics' keys -> fingerprint."""
    overlap: NotRequired[Count]
    """Val images that are training images too."""


@with_config(_SUMMARY)
class Report(TypedDict):
    """A metric: `key` in `metrics`, and how it is shown (`tasks/card.py` explains each)."""

    key: Name
    title: Name
    better: Literal["higher", "lower"]
    unit: str
    main: bool
    group: str
    per_image: NotRequired[str]


@with_config(_SUMMARY)
class Row(TypedDict):
    """The row of the task's tables that a run belongs to."""

    name: str
    """Protocol, or method of a pre-training; empty for a task without."""
    frozen: bool
    """Whether the encoder's weights stayed as they were."""
    rank: Count
    """Place among the rows of its task."""


class PerImage(TypedDict):
    """The results of each val image: a file beside the record, and what it must hash to."""

    __pydantic_config__ = _WHOLE  # type: ignore[misc]
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    images: Count


class Summary(TypedDict):
    """What tables need of a record: all of it but the history, the load report, versions and the like."""

    __pydantic_config__ = _SUMMARY  # type: ignore[misc]
    schema: Annotated[int, Field(ge=min(READABLE), le=max(READABLE))]
    run_id: Name
    task: Name
    backbone: BackboneSummary
    preset: Literal["full", "mini", "smoke"]
    seed: Count
    title: Name
    reports: list[Report]
    benchmark: str | None
    controls: list[str]
    transfers: bool
    row: Row
    settings: dict[str, Any]
    settings_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    metrics: dict[str, FiniteFloat | None]
    data: DataSummary
    kind: NotRequired[Name]
    images_per_second: NotRequired[Amount | None]
    """What the task is called where the data are not its benchmark."""
    parameters: NotRequired[Count]
    encoder_flops: NotRequired[Count | None]
    per_image: NotRequired[PerImage | None]
    wall_seconds: NotRequired[Amount | None]
    peak_memory_bytes: NotRequired[Count | None]
    device: NotRequired[str]
    world_size: NotRequired[Annotated[int, Field(ge=1)]]
    finished: NotRequired[str]
    folder: NotRequired[str]
    """Where `read_records` found it; not in the file."""


class WholeBackbone(BackboneSummary):
    __pydantic_config__ = _WHOLE  # type: ignore[misc]
    weights: NotRequired[str]
    checkpoint: NotRequired[str | None]
    load_report: NotRequired[list[str]]


class WholeData(DataSummary):
    __pydantic_config__ = _WHOLE  # type: ignore[misc]
    subset: NotRequired[int | None]
    parts: NotRequired[dict[str, str] | None]
    """Split -> identity of its files; None where only the fingerprint is known."""
    names_fingerprint: NotRequired[str]
    """The fingerprint of earlier versions, without the contents of images."""


class RunRecord(Summary):
    """A whole record."""

    __pydantic_config__ = _WHOLE  # type: ignore[misc]
    backbone: WholeBackbone  # type: ignore[misc]
    data: WholeData  # type: ignore[misc]
    recipe: NotRequired[str]
    engine: NotRequired[str]
    history: NotRequired[list[dict[str, Any]]]
    steps: NotRequired[Count]
    micro_batch: NotRequired[Count | None]
    micro_batch_auto: NotRequired[bool]
    commit: NotRequired[str | None]
    versions: NotRequired[dict[str, str]]
    command: NotRequired[list[str]]


WHOLE = TypeAdapter(RunRecord)
SUMMARY = TypeAdapter(Summary)
DESCRIPTION = ("title", "reports", "benchmark", "controls", "transfers", "row")
"""Keys by which a record describes its task."""
REQUIRED = (
    *("schema", "run_id", "task", "backbone", "preset", "seed", "settings", "settings_id", "metrics", "data"),
    *DESCRIPTION,
)
OLD_REQUIRED = ("schema", "run_id", "task", "backbone", "preset", "seed", "protocol", "protocol_id", "metrics", "data")
"""Of schemas 1 and 2."""
