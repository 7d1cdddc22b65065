"""Names of runs: the default folder of one, and what tells the runs of a series apart."""

import hashlib
import json
from pathlib import Path

from mae_transfer.config.roles import resumable
from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError
from mae_transfer.run_folder.settings import flatten

RUNS = Path("results/runs")


def default_output(config: RunConfig) -> Path:
    """A folder under results/runs/ named by what is run: the same options give the same one, so --resume finds it."""
    may_change = resumable(type(config)) - {"data.root"}
    chosen = {key: value for key, value in flatten(config.model_dump(mode="json")).items() if key not in may_change}
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
    name = config.backbone.name.replace(":", "-").replace("/", "-")
    what = "-".join(filter(None, (config.task, run_label(config))))
    return RUNS / f"{what}-{name}-{config.preset}-seed{config.seed}-{digest}"


def check_output(output: str | Path | None) -> None:
    """UserError for an empty name, which would be the current folder."""
    if output is not None and not str(output).strip():
        raise UserError("--output is empty; name a folder, or leave it out for one under results/runs/")


def run_label(config: RunConfig) -> str:
    """Label of a run among those of a series: protocol, blocks, shots and draw, or the method of a pre-training.

    Empty for a task without protocols.
    """
    values = flatten(config.model_dump(mode="json"))
    blocks, shots = values.get("model.blocks"), values.get("data.shots")
    return (
        str(values.get("protocol") or values.get("method") or "")
        + (f"-{blocks:g}blocks" if blocks is not None else "")
        + (f"-{shots}shot-draw{values['data.draw']}" if shots is not None else "")
    )
