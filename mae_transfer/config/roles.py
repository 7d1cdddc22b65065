"""Roles of configuration fields, written on the field: `workers: Annotated[int, Role.OPERATIONAL]`.

A field without a role is a setting of the recipe: it may change a metric, so a resume must not change it and runs that
differ in it never share a cell of a table.
"""

from enum import Enum
from functools import cache
from typing import Annotated, TypeAlias

from pydantic import BaseModel


class Role(Enum):
    """What a field is, where it is no setting of the recipe."""

    OPERATIONAL = "operational"
    """Cannot change a metric beyond rounding. A resume may change it."""
    PLACE = "place"
    """Path of data. What the data are is known by their fingerprint, so a resume may change it."""
    EVALUATION = "evaluation"
    """How the trained model is evaluated: a setting that a resume may change."""
    COMPARED = "compared"
    """What tables compare or average over, or what the settings hold under another name. No resume changes it."""


Place: TypeAlias = Annotated[str | None, Role.PLACE]


@cache
def keys(schema: type[BaseModel], *roles: Role) -> frozenset[str]:
    """Dotted names of the fields of a configuration class that have one of the roles."""
    found: set[str] = set()
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= {f"{name}.{key}" for key in keys(inner, *roles)}
        elif any(role in field.metadata for role in roles):
            found.add(name)
    return frozenset(found)


def resumable(schema: type[BaseModel]) -> frozenset[str]:
    """Fields that a resume may change."""
    return keys(schema, Role.OPERATIONAL, Role.PLACE, Role.EVALUATION)


def no_setting(schema: type[BaseModel]) -> frozenset[str]:
    """Fields that are no part of a run's settings."""
    return keys(schema, Role.OPERATIONAL, Role.PLACE, Role.COMPARED)
