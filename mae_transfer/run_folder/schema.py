"""The public schema of the run record, as types that pydantic checks. docs/records.md describes it in words.

Version 2 added `encoder_flops` and `per_image`, and nothing else: a record of version 1 is read as one without them.
A key that is not named here is allowed and kept: a later release may add some under the same version; what changes the
meaning of a key makes a new version. Imports neither torch nor tasks.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter
from typing_extensions import NotRequired, TypedDict  # of `typing` only from Python 3.12 on, for pydantic

SCHEMA = 2
"""The version that is written."""
READABLE = (1, 2)

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
    protocol: dict[str, Any]
    protocol_id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    metrics: dict[str, FiniteFloat | None]
    data: DataSummary
    parameters: NotRequired[Count]
    encoder_flops: NotRequired[Count | None]
    per_image: NotRequired[PerImage | None]
    wall_seconds: NotRequired[Amount | None]
    peak_memory_bytes: NotRequired[Count | None]
    device: NotRequired[str]
    world_size: NotRequired[Annotated[int, Field(ge=1)]]
    finished: NotRequired[str]


class WholeBackbone(BackboneSummary):
    __pydantic_config__ = _WHOLE  # type: ignore[misc]
    weights: NotRequired[str]
    checkpoint: NotRequired[str | None]
    load_report: NotRequired[list[str]]


class WholeData(DataSummary):
    __pydantic_config__ = _WHOLE  # type: ignore[misc]
    subset: NotRequired[int | None]
    skipped_files: NotRequired[list[str]]


class RunRecord(Summary):
    """A whole record."""

    __pydantic_config__ = _WHOLE  # type: ignore[misc]
    backbone: WholeBackbone  # type: ignore[misc]
    data: WholeData  # type: ignore[misc]
    recipe: NotRequired[str]
    engine: NotRequired[str]
    history: NotRequired[list[dict[str, Any]]]
    steps: NotRequired[Count]
    images_per_second: NotRequired[Amount | None]
    commit: NotRequired[str | None]
    versions: NotRequired[dict[str, str]]
    command: NotRequired[list[str]]


WHOLE = TypeAdapter(RunRecord)
SUMMARY = TypeAdapter(Summary)
REQUIRED = ("schema", "run_id", "task", "backbone", "preset", "seed", "protocol", "protocol_id", "metrics", "data")
