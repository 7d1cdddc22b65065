"""The settings of a run: its configuration, without what tables compare and what cannot change a metric."""

from typing import Any

from mae_transfer.backbones.registry import Spec
from mae_transfer.config.overrides import flatten
from mae_transfer.config.roles import no_setting
from mae_transfer.config.sections import RunConfig
from mae_transfer.files import file_digest, user_path
from mae_transfer.run_folder.record import read_record

_YOUNGER: dict[str, object] = {
    **{"mask.patch_grid": 1, "model.class_tokens": 1, "model.positions": "sincos"},
    **{"eval.images": None, "eval.resize": "opencv", "model.layers": None},
    "probe.layers": None,
}
"""Settings younger than the ids of earlier runs, with the value that all of those had."""


def make_settings(
    config: RunConfig, *, data_fingerprint: str, norm_batch: int, spec: Spec | None = None
) -> dict[str, Any]:
    """The flat settings of a run.

    Args:
        norm_batch: images over which batch norm takes its statistics in training (micro-batch times devices).
        spec: the encoder. The rules by which its positions are resampled and its windows padded are settings where
            they are, and where they are not MAE's and timm's: records of earlier versions, which had those for all,
            have no such entry and stay apart.
    """
    left_out = no_setting(type(config))
    settings = {key: value for key, value in flatten(config.model_dump(mode="json")).items() if key not in left_out}
    if settings.get("tokenizer.kind") is not None:
        settings["tokenizer.kind"] = tokenizer_identity(settings["tokenizer.kind"])
    if settings.get("backbone.window_rope") == "window":
        del settings["backbone.window_rope"]  # younger than the settings ids of earlier runs, all of which had this
    for key, value in _YOUNGER.items():
        if key in settings and settings[key] == value:
            del settings[key]  # likewise
    if settings.get("protocol") != "logreg":
        settings.pop("probe.tolerance", None)  # younger too; logreg's own earlier ids are of scikit-learn's stop
    if settings.get("data.fraction") is None:  # younger too
        settings = {key: value for key, value in settings.items() if not key.startswith("data.fraction")}
    if spec is not None:
        native = {spec.img_size} if isinstance(spec.img_size, int) else {*spec.img_size}
        size = settings.get("data.image_size")
        if native != (set(size) if isinstance(size, list) else {size}):
            rules = {"pos_resampling": spec.pos_resampling, "window_padding": spec.window_padding}
            settings |= {key: rule for key, rule in rules.items() if rule not in ("bicubic", None)}
    return settings | {"data_fingerprint": data_fingerprint, "norm_batch": norm_batch}


def tokenizer_identity(kind: str) -> str:
    """The identity of a tokenizer, wherever it lies.

    A run folder is named by the settings id of the run that trained it, whose seeds may share a cell as those of other
    pre-trainings do; a file by its hash. Other names are themselves.
    """
    path = user_path(kind)
    if (path / "record.json").is_file():
        return f"run {read_record(path / 'record.json')['settings_id']}"
    return f"file {file_digest(path)[:12]}" if path.is_file() else kind
