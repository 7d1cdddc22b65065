"""The list of trained models that others released, with their published numbers (`published_models.yaml`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mae_transfer.commands import command
from mae_transfer.config.yaml import read_yaml
from mae_transfer.errors import UserError, nearest

PUBLISHED_MODELS = Path(__file__).with_name("published_models.yaml")


class PublishedModel(BaseModel):
    """A released file, and the numbers that its authors give for it. The head of the list says what each is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    backbone: str
    metrics: Annotated[dict[str, float], Field(min_length=1)]
    tolerance: Annotated[float, Field(gt=0)]
    source: Annotated[str, Field(min_length=1)]
    licence: str | None = None
    file: str | None = None
    url: str | None = None
    classifier: str | None = None
    classifier_url: str | None = None
    digest: Annotated[str | None, Field(pattern="^(md5|sha256) [0-9a-f]{6,64}$")] = None
    images: Annotated[int | None, Field(gt=0)] = None
    settings: dict[str, str | float | int | bool] = {}


def read_published_models(path: Path = PUBLISHED_MODELS) -> Mapping[str, PublishedModel]:
    """Name -> model, in the order of the file; UserError for a list that is not of this form."""
    found = {}
    for name, entry in read_yaml(path, "list of published models").items():
        try:
            found[str(name)] = PublishedModel.model_validate(entry)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}: {name}: {where}: {first['msg']}") from None
    return found


def find_published_model(name: str, path: Path = PUBLISHED_MODELS) -> PublishedModel:
    """The model of a name; UserError with the nearest names if there is none."""
    models = read_published_models(path)
    if name not in models:
        raise UserError(f"no published model '{name}'{nearest(name, models)}; {command('verify')} --list shows all")
    return models[name]
