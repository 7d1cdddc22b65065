"""Configuration, data, model and metric of the depth task."""

import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from mae_transfer.backbones.grid import grid_of
from mae_transfer.config.sections import DataSection, RunConfig
from mae_transfer.engine.distributed import all_reduce
from mae_transfer.engine.evaluation import evaluating, evaluation_batches
from mae_transfer.engine.task import BaseTask, Evaluation
from mae_transfer.run_folder.pictures import Picture

NEAR, FAR = 1.0, 10.0
"""Metres."""


class DepthData(DataSection):
    image_size: int = Field(ge=32)
    """Side in pixels."""
    train_images: int = Field(ge=1)
    val_images: int = Field(ge=1)


class DepthConfig(RunConfig):
    data: DepthData


class Scenes:
    """Boxes before a wall; what is nearer is larger and brighter. Scene i of a split is the same on every machine."""

    def __init__(self, split: str, count: int, side: int) -> None:
        self.split, self.count, self.side = split, count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key  # (epoch, index) in training
        rng = np.random.default_rng((self.split == "val", index))
        depth = np.full((self.side, self.side), FAR, dtype=np.float32)
        image = np.full((self.side, self.side, 3), 40.0) + rng.uniform(0, 15, 3)
        for metres in np.sort(rng.uniform(NEAR, FAR, 6))[::-1]:
            side = int(self.side * 0.6 / metres**0.5)
            top, left = rng.integers(0, self.side - side, 2)
            depth[top : top + side, left : left + side] = metres
            image[top : top + side, left : left + side] = rng.uniform(0.8, 1.0, 3) * 255 / metres**0.5
        pixels = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
        return {"name": f"{self.split}{index}", "image": torch.from_numpy(pixels), "depth": torch.from_numpy(depth)}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "names": [sample["name"] for sample in samples],
            "images": torch.stack([sample["image"] for sample in samples]).permute(0, 3, 1, 2),
            "depth": torch.stack([sample["depth"] for sample in samples]),
        }


class LinearDepth(nn.Module):
    """A linear layer on each patch of the frozen encoder's last map, resized to the image.

    A batch holds "images" uint8 (B, 3, H, W) and "depth" (B, H, W) in metres. In training mode a dict of losses, in
    eval mode the depth (B, H, W).
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        encoder.freeze(0)
        self.encoder = encoder
        self.head = nn.Sequential(nn.BatchNorm2d(encoder.embed_dim), nn.Conv2d(encoder.embed_dim, 1, 1))
        nn.init.zeros_(self.head[1].weight)
        nn.init.constant_(self.head[1].bias, (NEAR + FAR) / 2)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor] | Tensor:
        mean, std = (batch["images"].new_tensor(v, dtype=torch.float32) for v in (self.encoder.mean, self.encoder.std))
        images = (batch["images"] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        with torch.no_grad():
            features = self.encoder(images)[-1]
        depth = F.interpolate(self.head(features), size=images.shape[-2:], mode="bilinear")[:, 0]
        return {"loss_depth": (depth - batch["depth"]).abs().mean()} if self.training else depth.clamp(NEAR, FAR)


class DepthTask(BaseTask):
    config: DepthConfig

    def __init__(self, config: DepthConfig) -> None:
        super().__init__(config)
        data = config.data
        self.train_dataset = Scenes("train", data.train_images, data.image_size)
        self.val_dataset = Scenes("val", data.val_images, data.image_size)

    @property
    def data_summary(self) -> dict[str, Any]:
        data = self.config.data
        about = f"scenes {data.image_size} {data.train_images} {data.val_images}"
        return {
            "name": f"generated scenes ({data.train_images} train, {data.val_images} val images)",
            "fingerprint": hashlib.sha256(about.encode()).hexdigest()[:16],
            "train_images": data.train_images,
            "val_images": data.val_images,
            "skipped_files": [],
        }

    def encoder_options(self, patch_size: int) -> dict[str, Any]:
        side = self.config.data.image_size
        grid_of(side, patch_size, self.config.backbone.name, what="data.image_size=")
        return {"img_size": side}

    def build_model(self, encoder: Any) -> LinearDepth:
        return LinearDepth(encoder)

    def sample_names(self, batch: Any) -> list[str]:
        return list(batch["names"])

    def evaluate(self, model: nn.Module, fabric: Any, progress: bool) -> Evaluation:
        """RMSE in metres over all pixels, and the share of pixels within a factor of 1.25 in percent."""
        sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        options = {"batch_size": self.config.eval.batch_size, "workers": self.config.data.workers}
        with evaluating(model):
            for batch in evaluation_batches(self.val_dataset, fabric=fabric, progress=progress, **options):
                batch = fabric.to_device(batch)
                with fabric.autocast():
                    found = model(batch).double()
                true = batch["depth"].double()
                near = (torch.maximum(found / true, true / found) < 1.25).double()
                sums += torch.stack([(found - true).square().sum(), near.sum(), torch.ones_like(near).sum()])
        square, near, pixels = all_reduce(fabric, sums, "sum").tolist()
        return Evaluation({"rmse": (square / pixels) ** 0.5, "delta1": 100 * near / pixels})

    def draw_pictures(self, model: nn.Module, fabric: Any, evaluation: Evaluation) -> list[Picture]:
        count = min(self.config.eval.pictures, len(self.val_dataset))
        if not count:
            return []
        batch = fabric.to_device(self.val_dataset.collate([self.val_dataset[i] for i in range(count)]))
        with evaluating(model):
            found = model(batch)
        pictures = []
        for name, image, true, depth in zip(*(batch[key] for key in ("names", "images", "depth")), found, strict=True):
            maps = [((FAR - m) / (FAR - NEAR) * 255).byte().expand(3, -1, -1) for m in (true, depth)]
            row = torch.cat([image, *maps], dim=2).permute(1, 2, 0).cpu().numpy()
            pictures.append(Picture(Image.fromarray(row), name, "image, true depth, predicted depth (near is bright)"))
        return pictures
