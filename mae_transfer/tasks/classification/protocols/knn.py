"""Weighted nearest neighbours of frozen features, as in DINO and DINOv2 (facebookresearch/dinov2 dinov2/eval/knn.py).

Features (class token after the final norm, or `probe.pooling`) are scaled to length one; each of the k training images
of the highest cosine similarity votes for its class with weight exp(similarity / temperature). Each k is a head. k is
chosen on the images set aside from the training set (`data.holdout`), not on the test set. They are neighbours too, but
not of themselves, so that the test sees every training image.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from mae_transfer.data.drawing import RIGHT, WRONG, side_by_side, to_image
from mae_transfer.engine.evaluation import drawing
from mae_transfer.errors import UserError
from mae_transfer.run_folder.pictures import Picture
from mae_transfer.tasks.classification.config import ClassificationConfig
from mae_transfer.tasks.classification.data import Batch
from mae_transfer.tasks.classification.features.frozen import FrozenFeatures
from mae_transfer.tasks.classification.features.store import FeatureSet, FeatureStore
from mae_transfer.tasks.classification.pictures import predict, thumbnail
from mae_transfer.tasks.classification.protocols.frozen import FrozenProtocol
from mae_transfer.tasks.classification.protocols.protocol import ProbeModel
from mae_transfer.tasks.classification.splits import ImageSplits, Splits
from mae_transfer.tasks.classification.transforms import EvalTransform

if TYPE_CHECKING:
    from mae_transfer.backbones.encoder import Encoder
    from mae_transfer.run_folder.folder import RunFolder

NEIGHBOURS = 5
"""In a picture."""
KEPT_BYTES = 2**33
"""Of a bank in host memory, ImageNet's by ViT-L takes 5e9. On a GPU it is half of what is free. Pieces of a larger bank
are read again for each batch."""
PIECE = 8192
"""Images of the bank whose features are read at once."""
_LOG = logging.getLogger(__name__)


class NeighboursModel(ProbeModel):
    """Frozen encoder and a bank: the features of the training images, which `remember` takes, in bounded memory.

    Evaluation only: scores float32 (number of ks, B, K), the share of the votes. Classes without votes come after those
    with some, in their own order, so that five classes always fill the top five. A batch with "in_bank" int64 (B,)
    holds images of the bank, at these rows; an image is no neighbour of itself. Similarities are float32 in any
    precision: MAE's lie closer together than half precision can tell apart.
    """

    bank: Tensor
    """The features (n, C); empty where they would take more than `KEPT_BYTES`."""
    labels: Tensor
    bank_sets: tuple[FeatureSet, ...] = ()
    """Where the bank's rows come from, in order."""

    def __init__(self, encoder: "Encoder", num_classes: int, config: ClassificationConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes, self.temperature = num_classes, config.probe.temperature
        self.pooling = config.probe.pooling[0]
        self.frozen = FrozenFeatures(encoder, 1, (self.pooling,), config.probe.layers)
        self.take(config.probe.k)
        self.register_buffer("bank", torch.empty(0), persistent=False)
        self.register_buffer("labels", torch.empty(0, dtype=torch.int64), persistent=False)

    def take(self, ks: Sequence[int]) -> None:
        """The numbers of neighbours, a head each."""
        self.ks = tuple(sorted(ks))
        self.head_names = tuple(f"k{k}" for k in self.ks)

    def remember(self, pieces: Callable[[], Iterable[Tensor]], labels: Tensor) -> None:
        """Make the bank of the training images' features, which are given some at a time (m, 1, parts, C), and of their
        labels (n,), on the encoder's device."""
        device = next(self.encoder.parameters()).device
        self.labels = labels.to(device)
        self._units = lambda: (self._unit(piece.to(device).float()) for piece in pieces())
        width = self.frozen.width(len(self.frozen.blocks), self.pooling)
        kept = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else KEPT_BYTES
        fits = len(labels) * width * self.bank.element_size() <= kept
        self.bank, first = torch.empty(len(labels) if fits else 0, width, device=device), 0
        for unit in self._units() if fits else ():
            self.bank[first : first + len(unit)] = unit
            first += len(unit)

    def _unit(self, features: Tensor) -> Tensor:
        return F.normalize(self.frozen.select(features, len(self.frozen.blocks), self.pooling), dim=1)

    def nearest(self, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
        """Of each image the k highest cosine similarities to the bank (B, k), all of a smaller bank, and their rows."""
        features = self.frozen(batch)
        with torch.autocast(features.device.type, enabled=False):
            query = self._unit(features)
            best, rows, first = query.new_empty(len(query), 0), self.labels.new_empty(len(query), 0), 0
            for unit in [self.bank] if len(self.bank) else self._units():
                similarity = query @ unit.T
                if "in_bank" in batch:
                    place = batch["in_bank"][:, None] - first
                    here = (place >= 0) & (place < len(unit))
                    own = torch.where(here, -torch.inf, similarity.gather(1, place.clamp(0, len(unit) - 1)))
                    similarity.scatter_(1, place.clamp(0, len(unit) - 1), own)
                top = similarity.topk(min(k, len(unit)), dim=1)
                best, rows = torch.cat([best, top.values], 1), torch.cat([rows, top.indices + first], 1)
                first += len(unit)
                top = best.topk(min(k, best.shape[1]), dim=1)
                best, rows = top.values, rows.gather(1, top.indices)
        return best, rows

    def forward(self, batch: Batch) -> Tensor:
        similarity, rows = self.nearest(batch, self.ks[-1])
        # less the highest, as in a softmax: the shares stay the same and nothing overflows
        weights = ((similarity - similarity[:, :1]) / self.temperature).exp()
        classes = self.labels[rows]
        none = torch.zeros(len(classes), self.num_classes, device=weights.device)
        votes = torch.stack([none.scatter_add(1, classes[:, :k], weights[:, :k]) for k in self.ks])
        last = -1 - torch.arange(self.num_classes, device=votes.device) / self.num_classes
        return torch.where(votes > 0, votes / votes.sum(-1, keepdim=True), last)


class NearestNeighbours(FrozenProtocol[NeighboursModel]):
    trains = False
    reads = (*FrozenProtocol.reads, "data.holdout", "probe.layers", "probe.pooling", "probe.k", "probe.temperature")

    @override
    def build_model(self, encoder: "Encoder", num_classes: int) -> NeighboursModel:
        probe = self.config.probe
        if len(probe.pooling) > 1:
            raise UserError(f"probe.pooling={list(probe.pooling)}: knn reads one kind of feature; name one")
        if len(probe.k) > 1 and not self.config.data.holdout:
            raise UserError("several k need images to choose by: set data.holdout, for example to 0.1, or probe.k=[20]")
        return NeighboursModel(encoder, num_classes, self.config)

    @override
    def check_images(self, number: int) -> None:
        self._possible(number)

    def _possible(self, images: int) -> tuple[tuple[int, ...], int]:
        """The ks, ascending, that so many training images allow, and the largest one possible; UserError for none."""
        most = images - bool(self.config.data.holdout)  # an image that was set aside is no neighbour of itself
        ks = tuple(k for k in sorted(self.config.probe.k) if k <= most)
        if not ks:
            raise UserError(
                f"probe.k={list(self.config.probe.k)}: there are {most} training images to be neighbours; set a "
                "smaller k"
            )
        return ks, most

    @override
    def prepare(
        self, model: NeighboursModel, images: ImageSplits, fabric: Fabric, folder: "RunFolder | None", progress: bool
    ) -> Splits:
        store = FeatureStore(model.frozen, self.config, fabric, folder, progress)
        train = store.features_of("train", images.train)
        holdout = store.features_of("holdout", images.holdout) if images.holdout else None
        model.bank_sets = (train,) if holdout is None else (train, holdout)
        labels = [part.images.labels[part.decoded] for part in model.bank_sets]
        sets = model.bank_sets
        model.remember(
            lambda: (piece for part in sets for piece in part.pieces(PIECE)), torch.from_numpy(np.concatenate(labels))
        )
        if holdout is not None:
            holdout.in_bank = len(labels[0])
        ks, most = self._possible(len(model.labels))
        if ks != model.ks:
            _LOG.warning("probe.k: only %s of %s; there are %d training images", list(ks), list(model.ks), most)
            model.take(ks)
        return Splits(train=train, val=store.of_val(images.val), holdout=holdout)

    @override
    def draw_pictures(
        self, model: NeighboursModel, head: int, images: ImageSplits, class_names: Sequence[str], fabric: Fabric
    ) -> list[Picture]:
        """A picture of each val image, with its nearest training images beside it."""
        pictures = []
        for query in predict(model, head, images.val, class_names, self.config.eval.pictures, fabric):
            with drawing(model), fabric.autocast():
                similar, rows = (values[0].tolist() for values in model.nearest(query.batch, NEIGHBOURS))
            row = [query.thumbnail]
            for similarity, place in zip(similar, rows, strict=True):
                image, label = self._bank_image(model, place)
                name = class_names[label]
                row.append(thumbnail(image, name, f"{similarity:.3f}", RIGHT if name == query.truth else WRONG))
            caption = (
                f"is {query.truth}, said {query.predicted}; then its nearest training images, by cosine similarity"
            )
            pictures.append(Picture(side_by_side(row), query.name, caption))
        return pictures

    def _bank_image(self, model: NeighboursModel, row: int) -> tuple[Image.Image, int]:
        """The training image at a row of the bank, and its label."""
        images, decoded = model.bank_sets[0].images, model.bank_sets[0].decoded
        if row >= len(decoded):  # after the images that are trained on come those that were set aside
            row -= len(decoded)
            images, decoded = model.bank_sets[1].images, model.bank_sets[1].decoded
        place = int(decoded[row])
        return to_image(EvalTransform(self.config)(images.read(place))), images.label(place)
