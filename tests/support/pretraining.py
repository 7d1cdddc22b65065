"""Configurations of pre-trainings for tests."""

from typing import Any

from mae_transfer.runs.resolve import resolve_config


def resolve_pretrain(method: str, backbone: str, **options: Any) -> Any:
    """The configuration of a method; options as those of `resolve_config`."""
    return resolve_config("pretrain", backbone, protocol=method, **options)
