"""Validated configurations: values to a typed object, the first problem as one line."""

from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from mae_transfer.config.overrides import leaf_keys
from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError, nearest

Config = TypeVar("Config", bound=RunConfig)


def validate(schema: type[Config], values: dict[str, Any]) -> Config:
    """Build the configuration; the first problem becomes a one-line UserError."""
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        got = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f", got {first['input']!r}"
        hint = nearest(key, leaf_keys(schema)) if first["type"] == "extra_forbidden" else ""
        where = f"config key '{key}': " if key else ""  # a check of several sections names its keys itself
        raise UserError(f"{where}{first['msg'].removeprefix('Value error, ')}{got}{hint}{more}") from None
    if (config.schedule.epochs is None) == (config.schedule.steps is None):
        raise UserError("give exactly one of schedule.epochs and schedule.steps (set the other to null)")
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
