"""Validated configurations: values to a typed object, the first problem as one line."""

from collections.abc import Collection
from typing import TypeVar

from pydantic import ValidationError

from mae_transfer.config.overrides import leaf_keys
from mae_transfer.config.sections import RunConfig
from mae_transfer.config.yaml import dump_yaml
from mae_transfer.errors import UserError, nearest

Config = TypeVar("Config", bound=RunConfig)


def validate(
    schema: type[Config], values: dict[str, object], *, recipe: str = "", given: Collection[str] = ()
) -> Config:
    """Build the configuration; the first problem becomes a one-line UserError.

    The recipe is named with a key of its own, not with one of those that were given beside it.
    """
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = next((known for known in leaf_keys(schema) if key.startswith(f"{known}.")), None)
        if known is not None:  # beyond it come places in a list, and the kinds of value that were tried
            key = ".".join([known, *(str(part) for part in first["loc"] if isinstance(part, int))])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        got = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f", got {first['input']!r}"
        hint = nearest(key, leaf_keys(schema)) if first["type"] == "extra_forbidden" else ""
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("tuple_type", "list_type"):
            said = f"give a list, such as [{first['input']}]"
        where = f"config key '{key}': " if key else ""  # a check of several sections names its keys itself
        if recipe and key and not any(f"{key}.".startswith(f"{name}.") for name in given):
            where = f"recipe {recipe}: {where}"
        raise UserError(f"{where}{said}{got}{hint}{more}") from None
    if (config.schedule.epochs is None) == (config.schedule.steps is None):
        raise UserError("give exactly one of schedule.epochs and schedule.steps (set the other to null)")
    return config


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, in the order of the schema."""
    return dump_yaml(config.model_dump(mode="json"))
