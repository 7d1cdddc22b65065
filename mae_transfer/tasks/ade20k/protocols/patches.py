"""What knn, logreg and in_context share: stretched pairs, one pass of the frozen encoder, images to choose by.

Source: facebookresearch/capi, eval_segmentation.py. Images and masks are stretched to one size. The patches of training
and val images are computed once (`patch_features.py`). What there is to choose is chosen by mIoU on the images of
`data.holdout`, which are set aside from the training set; then all training images are taken. Standardising is fitted
to the training images that were not set aside. mIoU is that of the stretched masks, as there.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from typing_extensions import override

from mae_transfer.backbones.grid import Grid, grid_of, pair
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.data.images import choose_subset
from mae_transfer.engine.distributed import gather_objects
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.data import Batch, EvalSplit, Splits
from mae_transfer.tasks.ade20k.evaluate import count, score
from mae_transfer.tasks.ade20k.pairs import Pairs
from mae_transfer.tasks.ade20k.patch_data import PatchImages, joined
from mae_transfer.tasks.ade20k.patch_features import PatchSet, Standardise, store_patches
from mae_transfer.tasks.ade20k.patch_tokens import PatchTokens
from mae_transfer.tasks.ade20k.protocols.config import PatchesConfig
from mae_transfer.tasks.ade20k.protocols.protocol import Protocol

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder


class PatchClassifier(nn.Module):
    """Frozen encoder and what was fitted to the patches of the training images; evaluation only.

    A batch has `images` uint8 (B, 3, H, W) or `features` (B, h * w, C), and `sizes`, which are all (H, W). Gives the
    images' classes, int16 (H, W) each.
    """

    def __init__(self, encoder: "Encoder", num_classes: int, config: PatchesConfig) -> None:
        super().__init__()
        self.encoder, self.num_classes, self.config = encoder, num_classes, config
        self.tokens = PatchTokens(encoder, config.probe.layers)
        self.scale = Standardise(None)
        self.chosen: str | None = None
        self.candidates: dict[str, float] = {}

    def forward(self, batch: Batch) -> list[Tensor]:
        if "features" in batch:
            features: Tensor = batch["features"]
        else:
            features = self.maps(batch["images"]).flatten(2).transpose(1, 2)
        with torch.autocast(features.device.type, enabled=False):
            return self.segment(self.scale(features.float()), batch["sizes"][0])

    def maps(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> features float32 (B, C, h, w), not scaled."""
        return torch.cat(self.tokens(self.encoder.normalise(images)), dim=1)

    def segment(self, features: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Scaled features (B, h * w, C) -> int16 (H, W) for each image; by default the pixels of each patch in turn."""
        pixels = self.pixels(features.flatten(0, 1)).view(*features.shape[:2], -1)
        return list(joined(pixels, size, self.encoder.patch_size))

    def pixels(self, features: Tensor) -> Tensor:
        """Scaled features of patches (n, C) -> classes of their pixels int16 (n, p * p)."""
        raise NotImplementedError

    def fit(self, train: PatchSet, holdout: PatchSet | None, fabric: Fabric) -> None:
        """Choose on the images set aside, then fit all training images. Called on every rank."""
        raise NotImplementedError

    def mean_iou(self, holdout: PatchSet, fabric: Fabric) -> float:
        """Percent on the images set aside, shared among the ranks; the same on all of them."""
        matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        mine = range(fabric.global_rank, len(holdout), fabric.world_size)
        step = self.config.eval.batch_size
        for start in range(0, len(mine), step):
            batch = holdout.collate(list(mine[start : start + step]))
            predictions = self(fabric.to_device({key: batch[key] for key in ("features", "sizes")}))
            for label, prediction in zip(batch["labels"], predictions, strict=True):
                matrix += count(label, prediction.cpu(), self.num_classes)
        total = torch.stack(gather_objects(fabric, matrix)).sum(0)
        return score(total, [], per_class=False)["mIoU"]


class PatchesProtocol(Protocol[PatchesConfig, PatchClassifier]):
    trains = False
    reads: ClassVar[tuple[str, ...]] = ()

    @override
    def datasets(self, train: Pairs, val: Pairs) -> Splits:
        return Splits(PatchImages(train, self.config, few=True), PatchImages(val, self.config))

    @override
    def check_images(self, number: int) -> None:
        high, wide = self._grid(resolve(self.config.backbone.name).patch_size)
        self._check_patches(number - self._set_aside(number), high * wide)

    def _check_patches(self, images: int, patches: int) -> None:
        """UserError for settings that take more patches than these training images have, each so many."""

    def _set_aside(self, images: int) -> int:
        """How many training images are set aside; UserError if that leaves none to choose by, or none to fit."""
        share = self.config.data.holdout
        number = round(images * share)
        if share and not 0 < number < images:
            raise UserError(
                f"data.holdout={share:g} of {images} training images sets aside {number}; use more images, or another "
                "share"
            )
        return number

    def _grid(self, patch_size: int) -> Grid:
        return grid_of(self.config.data.image_size, patch_size, self.config.backbone.name, what="data.image_size=")

    @override
    def encoder_options(self, patch_size: int) -> dict[str, object]:
        self._grid(patch_size)
        return {"img_size": pair(self.config.data.image_size), "final_norm": self.config.probe.final_norm}

    @override
    def prepare(
        self, model: PatchClassifier, splits: Splits, fabric: Fabric, folder: "RunFolder | None", progress: bool
    ) -> EvalSplit:
        train, val = splits
        assert isinstance(train, PatchImages)
        assert isinstance(val, PatchImages)
        found = store_patches(model.tokens, self.config, {"train": train, "val": val}, fabric, folder, progress)
        fitted, held = found["train"], None
        if self.config.data.holdout:
            names = [train.file_name(place) for place in range(len(train))]
            aside = {names[i] for i in choose_subset(names, self._set_aside(len(names))).tolist()}
            fitted, held = fitted.of(aside, without=True), fitted.of(aside)
        model.scale = Standardise(fitted if self.config.probe.standardise else None)
        with torch.no_grad():
            model.fit(fitted, held, fabric)
        return found["val"]

    @override
    def selection(self, model: PatchClassifier) -> tuple[str | None, dict[str, float]]:
        return model.chosen, {f"holdout_mIoU/{name}": value for name, value in model.candidates.items()}
