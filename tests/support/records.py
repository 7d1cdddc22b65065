"""What a record says of its task and settings, for records that tests make by hand."""

from collections.abc import Mapping
from typing import Any

from mae_transfer.run_folder.settings import settings_id
from mae_transfer.runs.tasks import task_card


def described(task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a record that describe its task, its row and its settings."""
    card = task_card(task)
    protocol = settings.get("protocol") or settings.get("method")
    return {
        **card.describe(),
        "row": card.row(protocol if card.protocols else None),
        "settings": dict(settings),
        "settings_id": settings_id(settings),
    }
