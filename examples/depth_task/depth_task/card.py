"""The card: all that mae_transfer knows of the task before it runs. Imports no torch."""

from pathlib import Path

from mae_transfer.tasks.card import TaskCard, metric

CARD = TaskCard(
    name="depth",
    title="depth",
    about="per-pixel depth, a linear head on the frozen encoder (package depth_task)",
    folder=str(Path(__file__).parent),
    recipe="linear",
    config="depth_task.task:DepthConfig",
    task="depth_task.task:DepthTask",
    metrics=(
        metric("rmse", "RMSE", unit="m", better="lower", main=True),
        metric("delta1", "δ < 1.25"),
    ),
    synthetic=True,
)
