"""The settings of a pre-training that the MAE paper ablates, and its names of their values.

Source: MAE (arXiv 2111.06377), Table 1, Figures 5 and 7. A value's name is that of `published.csv`'s column `variant`,
so that a run stands beside the paper's number.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mae_transfer.results.comparable_runs import Settings
from mae_transfer.run_folder.settings import settings_id


@dataclass(frozen=True)
class Factor:
    title: str
    source: str
    """Where the paper's numbers are, as the end of `published.csv`'s column `source`."""
    keys: tuple[str, ...]
    """Settings of the pre-training that go with it: pre-trainings that agree in all others differ in this factor. A
    pre-training without the first has no such factor."""
    name: Callable[[Settings], str]
    """The value's name."""
    kind: Callable[[Settings], str | None] = lambda settings: ""
    """Pre-trainings of unlike kinds are not compared in this factor; None: the factor is not of this one."""

    def rest(self, settings: Settings, keys: Sequence[str] | None = None) -> str | None:
        """Id of all that pre-trainings have to agree in to differ in the factor alone; None without the factor.

        keys: what they may differ in, by default all that goes with the factor.
        """
        kind = self.kind(settings) if self.keys[0] in settings else None
        own = self.keys if keys is None else keys
        rest = {key: value for key, value in settings.items() if key not in own}
        return None if kind is None else settings_id(rest | {"kind": kind})


def _blocks(settings: Settings) -> str:
    count = settings["model.decoder_depth"]
    return f"decoder: {count} block{'' if count == 1 else 's'}"


def _tokens(settings: Settings) -> str:
    return f"encoder: {'with' if settings['model.mask_token'] == 'encoder' else 'without'} mask tokens"


def _target(settings: Settings) -> str:
    names = {"pixel": "pixels", "norm_pixel": "normalised pixels", "pca": "PCA of pixels", "mean_color": "mean colour"}
    kind = settings["model.target"]
    tokens = "k-means tokens" if settings.get("tokenizer.kind") == "kmeans" else "dVAE tokens"
    components = settings.get("model.pca_coefficients", 96)
    more = f", {components} components" if kind == "pca" and components != 96 else ""
    return f"target: {names.get(kind, tokens)}{more}"


def _augmentation(settings: Settings) -> str:
    """The paper's names are of a least area of 0.2 and a jitter of 0.4."""
    crop, flip, jitter = settings["data.crop"], settings["data.flip"], settings["data.color_jitter"]
    area = settings.get("data.scale_min", 0.2)
    more = [f"area from {area:g}"] if crop == "random" and area != 0.2 else []
    more += [f"jitter {jitter:g}"] if jitter not in (0, 0.4) else []
    more += [f"RandAugment {settings['data.randaugment']}"] if settings.get("data.randaugment") else []
    if crop == "center":
        names = ["none"] if not flip else ["flip"]
    else:
        names = ["crop and colour jitter" if jitter else f"crop of {crop} size"] + ([] if flip else ["no flip"])
    return f"augmentation: {', '.join(names + more)}"


def _masks(settings: Settings) -> str:
    kind = {"block": "block-wise"}.get(settings["mask.kind"], settings["mask.kind"])
    return f"masks: {kind}, ratio {settings['mask.ratio']:g}"


def _length(settings: Settings) -> str:
    epochs, steps = settings.get("schedule.epochs"), settings.get("schedule.steps")
    return f"pre-training: {epochs:g} epochs" if steps is None else f"pre-training: {steps} steps"


FACTORS = (
    Factor(
        *("mask ratio", "Figure 5", ("mask.ratio",), lambda of: f"masks: ratio {of['mask.ratio']:g}"),
        kind=lambda of: "random" if of.get("mask.kind", "random") == "random" else None,
    ),
    Factor("decoder depth", "Table 1a", ("model.decoder_depth",), _blocks),
    Factor(
        *("decoder width", "Table 1b", ("model.decoder_width", "model.decoder_heads")),
        lambda of: f"decoder: {of['model.decoder_width']} wide",
    ),
    Factor("mask token", "Table 1c", ("model.mask_token",), _tokens),
    Factor("target", "Table 1d", ("model.target", "model.pca_coefficients", "tokenizer.kind"), _target),
    Factor(
        *("augmentation", "Table 1e", ("data.crop", "data.scale_min", "data.flip", "data.color_jitter")),
        _augmentation,
    ),
    Factor("mask sampling", "Table 1f", ("mask.kind", "mask.ratio"), _masks),
    Factor(
        *("length", "Figure 7", tuple(f"schedule.{k}" for k in ("steps", "epochs", "warmup_epochs", "warmup_steps"))),
        _length,
        kind=lambda of: "epochs" if of.get("schedule.steps") is None else "steps",
    ),
)


def amount(name: str) -> float | None:
    """The number in a value's name, by which values are put in order; None of a name without one."""
    found = re.search(r"\d+(\.\d+)?", name)
    return float(found[0]) if found else None
