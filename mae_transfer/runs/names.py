"""Names of runs: the default folder of one, and what tells the runs of a series apart."""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from mae_transfer.commands import process_rank
from mae_transfer.config.overrides import flatten
from mae_transfer.config.roles import Role, keys, resumable
from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError
from mae_transfer.files import user_path
from mae_transfer.run_folder.folder import changes, stored_config
from mae_transfer.run_folder.record import RUNS

_LOG = logging.getLogger(__name__)


def default_output(config: RunConfig, folder: Path = RUNS) -> Path:
    """A folder in `folder`, named by what is run: the same options give the same one, so --resume finds it.

    The name ends in a hash of the configuration, which a new field changes. A run that an earlier version made keeps
    its folder: the one beside it whose configuration is the same.
    """
    may_change, places = resumable(type(config)), data_places(config)
    chosen = {
        key: value
        for key, value in flatten(config.model_dump(mode="json")).items()
        if key not in may_change or key == "data.root" or places.get(key) is not None
    }
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
    name = config.backbone.name.replace(":", "-").replace("/", "-")
    what = "-".join(filter(None, (config.task, run_label(config))))
    stem = f"{what}-{name}-{config.preset}-seed{config.seed}"
    path = folder / f"{stem}-{digest}"
    if path.exists() or not folder.exists():
        return path
    for other in sorted(folder.glob(f"{glob.escape(stem)}-{'[0-9a-f]' * len(digest)}")):
        if _is_of(config, other):
            if process_rank() == 0:
                _LOG.warning("%s: made by an earlier version, taken as the folder of this run", other)
            return other
    return path


def _is_of(config: RunConfig, path: Path) -> bool:
    """Whether a resume takes the run in a folder as one of the configuration, and it names the same data."""
    try:
        stored = _stored(path, (path / "config.yaml").stat().st_mtime_ns)
    except (OSError, UserError):
        return False
    same_data = all(stored.get(key) == place for key, place in data_places(config).items())
    return same_data and not changes(stored, config)


def data_places(config: RunConfig) -> dict[str, object]:
    """The paths of the data: the root, and those of a set that is given file by file."""
    values = flatten(config.model_dump(mode="json"))
    return {key: values.get(key) for key in keys(type(config), Role.PLACE) if key.startswith("data.")}


@cache
def _stored(path: Path, changed_at: int) -> Mapping[str, object]:
    """Read once for all runs of a grid."""
    return stored_config(path)


def check_output(output: str | Path | None, config: RunConfig | None = None) -> None:
    """UserError for an empty name, which would be the current folder, for the root of the file system, for a file, or a
    place below one, and for the folder of the data that a configuration names."""
    if output is None:
        return
    if not str(output).strip():
        raise UserError("--output is empty; name a folder, or leave it out for one under results/runs/")
    place = user_path(output).resolve()
    if place == Path(place.anchor):
        raise UserError(f"--output {output} is the root of the file system; name a folder of the run's own")
    there = next(outer for outer in (place, *place.parents) if os.path.exists(outer))
    if not os.path.isdir(there):
        what = "is a file" if there == place else f"lies below {there}, which is a file"
        raise UserError(f"--output {output} {what}; give another folder")
    for key, data in ({} if config is None else data_places(config)).items():
        if data is not None and user_path(str(data)).resolve() == place:
            raise UserError(f"--output {output} is the folder of the data ({key}); name a folder of the run's own")


def run_label(config: RunConfig) -> str:
    """Label of a run among those of a series: protocol, blocks, layer, few labels, or the method of a pre-training.

    Empty for a task without protocols.
    """
    values = flatten(config.model_dump(mode="json"))
    blocks, shots, fraction = (values.get(key) for key in ("model.blocks", "data.shots", "data.fraction"))
    parts = [
        str(values.get("protocol") or values.get("method") or ""),
        f"{blocks:g}blocks" if blocks is not None else "",
        f"layer{values['probe.layers'][0]}" if values.get("probe.stored_layers") else "",
        f"{shots}shot-draw{values['data.draw']}" if shots is not None else "",
        f"{fraction:g}percent-draw{values['data.draw']}" if fraction is not None else "",
    ]
    return "-".join(filter(None, parts))
