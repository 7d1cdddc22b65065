"""A detector that was trained elsewhere, evaluated as it is: ViTDet's released ones, detectron2's, and those made here.

The file is a whole detector under the names of detectron2 (`.pkl`, `.pth`) or of this project. The recipe says which
model it is, or, where none is named, the configuration in a checkpoint of this project. Every tensor has to fit:
another depth of a head, a cascade, another pyramid or width is an error. Nothing is trained and no training image is
read.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor, nn
from typing_extensions import override

from mae_transfer.backbones.checkpoints import files, own
from mae_transfer.backbones.checkpoints.audit import refusal
from mae_transfer.backbones.checkpoints.exact import load_exactly
from mae_transfer.backbones.checkpoints.report import fingerprint
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.backbones.configured import encoder_of, in_run
from mae_transfer.config.sections import BackboneConfig
from mae_transfer.errors import UserError
from mae_transfer.tasks.coco.card import BENCHMARK
from mae_transfer.tasks.coco.detectron2.convert import NOT_WEIGHTS, translate
from mae_transfer.tasks.coco.detectron2.names import options_of
from mae_transfer.tasks.coco.protocols.config import TrainedConfig
from mae_transfer.tasks.coco.protocols.finetune import Finetune

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder

_OF_RUN = (
    *("model.", "backbone.window_", "backbone.num_global_blocks", "backbone.rel_pos", "data.image_size"),
    *("eval.score_threshold", "eval.nms_threshold", "eval.max_detections"),
)
"""What a run's configuration says of its detector, by how keys begin."""
_SCORES = re.compile(r"roi_heads\.box_predictor\.(0\.)?cls_score\.bias")


def stated_model(backbone: str, asked: Mapping[str, object]) -> dict[str, object]:
    """Dotted keys -> values of the run that a checkpoint of this project is of; empty for other files.

    A recipe that is named says which model it is.
    """
    checkpoint = asked.get("backbone.checkpoint")
    if checkpoint is None or "recipe" in asked:
        return {}
    content = files.read(files.find(str(checkpoint)))
    found = own.settings_of_run(content, ("coco",), TrainedConfig, _OF_RUN)
    found.pop("model.implementation", None)  # either code evaluates the other's weights
    return found


class Trained(Finetune[TrainedConfig]):
    trains = False
    needs_training_images = False
    reads: ClassVar[tuple[str, ...]] = ()

    @override
    def backbone(self) -> BackboneConfig:
        """Built without weights: the file of the detector brings those of the encoder too. A run's file builds it as
        the run had it: its positions, statistics and eps."""
        if _read(self.config).of_run:
            return in_run(self.config.backbone)
        return self.config.backbone.model_copy(update={"checkpoint": None, "weights": "random"})

    @override
    def build_model(self, encoder: "Encoder", num_classes: int, *, masks: bool) -> nn.Module:
        return self._build(_read(self.config), encoder, num_classes, masks=masks)

    def _build(self, file: "_File", encoder: "Encoder", num_classes: int, *, masks: bool) -> nn.Module:
        model = super().build_model(encoder, num_classes, masks=masks)
        state, source = file.state, file.source
        cascade = options_of(state)["stages"] > 0
        if cascade != self.config.model.cascade:
            kind = "a cascade" if cascade else "no cascade"
            other = "trained_vitdet_cascade" if cascade else "trained_vitdet"
            raise UserError(f"checkpoint {source}: is {kind}, unlike the recipe {self.config.recipe}: recipe={other}")
        for part, value in (("mean", encoder.mean), ("std", encoder.std)):
            if file.facts.get(part, value) != value:
                told = f"its run normalised images by the {part} {file.facts[part]}, {encoder.name} has {value}"
                raise refusal(source, f"{told}; evaluate the checkpoint of the run itself.")
        load_exactly(model, state, source, f"the detector of recipe {self.config.recipe} of {num_classes} classes")
        report = encoder.load_report
        report.source, report.layout = source, file.layout
        report.loaded, report.ignored, report.new = sorted(state), file.ignored, {}
        report.resized = {}
        report.fingerprint = fingerprint(state)
        return model


class _File(NamedTuple):
    """A detector's file under this project's names. `ignored`: what else it holds, with the reason. `of_run`: it is a
    checkpoint of a run of this project, on a plain ViT. `facts`: what the run says of its encoder, also in a file that
    was converted to detectron2's names."""

    state: dict[str, Tensor]
    source: str
    layout: str
    ignored: dict[str, str]
    of_run: bool
    facts: Mapping[str, object]


def _read(config: TrainedConfig) -> _File:
    checkpoint = config.backbone.checkpoint
    if checkpoint is None:
        raise UserError("the protocol trained evaluates a detector's file; pass it as --checkpoint")
    path = files.find(checkpoint)
    source, raw = str(path), files.read(path)
    state, ignored = unwrap(raw, source, config.backbone.checkpoint_key)
    constants = {name: "constant that is no weight" for name in state if NOT_WEIGHTS.fullmatch(name)}
    state = {name: tensor for name, tensor in state.items() if name not in constants}
    if own.protocol_of_run(raw, "coco") == "frozen":
        raise refusal(
            source,
            "is of a run of the protocol frozen, whose pyramid may read other maps; evaluate its run folder: "
            "--eval-only --protocol frozen --output <run>.",
        )
    theirs = any(name.startswith("backbone.") for name in state)
    if theirs:
        state = translate(state, "mae_transfer", source)
    layout = "detectron2 detector" if theirs else "mae_transfer detector"
    of_run = "origin" in raw and any(name.startswith("encoder.vit.") for name in state)
    facts, _ = own.facts_of_run(raw)
    return _File(state, source, layout, ignored | constants, of_run, facts)


def load(config: TrainedConfig) -> nn.Module:
    """The model of the file that the configuration names, without data: as many classes, and masks, as the file has."""
    protocol, file = Trained(config), _read(config)
    scores = [tensor for name, tensor in file.state.items() if _SCORES.fullmatch(name)]
    classes = len(scores[0]) - 1 if scores else BENCHMARK.classes
    masks = any(name.startswith("roi_heads.mask_head.") for name in file.state)
    encoder = encoder_of(protocol.backbone(), protocol.encoder_options)
    return protocol._build(file, encoder, classes, masks=masks)
