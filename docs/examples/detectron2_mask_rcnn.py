"""A backbone of mae_transfer in detectron2: Mask R-CNN of Li et al. 2021 as a LazyConfig of its own training script.

    python tools/lazyconfig_train_net.py --config-file detectron2_mask_rcnn.py --num-gpus 8

with detectron2's script and this file. The values are those of configs/coco/mask_rcnn_li2021.yaml, where each has its
source, but for what detectron2's script does not have: its AMP is fp16, and a batch is not accumulated.
"""

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mae_transfer import load_backbone
from mae_transfer.adapters.detectron2 import ViTBackbone

IMAGE_SIZE = 1024


def sync_batch_norm(channels: int) -> torch.nn.Module:
    """Also of empty inputs, which torch's SyncBatchNorm does not take."""
    return NaiveSyncBatchNorm(channels, stats_mode="N")


model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up = L(ViTBackbone)(
    encoder=L(load_backbone)(
        name="mae_vit_b",
        checkpoint=None,  # a weights file; None takes the published ones
        weights="pretrained",
        img_size=IMAGE_SIZE,
        window_size=14,
        num_global_blocks=4,
        rel_pos=True,
        drop_path=0.1,
    )
)
model.backbone.in_features = ViTBackbone.maps
model.backbone.square_pad = IMAGE_SIZE
model.backbone.norm = "SyncBN"
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = sync_batch_norm
model.pixel_mean = [123.675, 116.28, 103.53]  # of the weights; load_backbone(...).mean says which, in 0..1
model.pixel_std = [58.395, 57.12, 57.375]
model.input_format = "RGB"

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = dataloader.test.mapper.image_format = "RGB"
dataloader.train.mapper.recompute_boxes = True
dataloader.train.mapper.augmentations = [
    L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=IMAGE_SIZE, target_width=IMAGE_SIZE),
    L(T.FixedSizeCrop)(crop_size=(IMAGE_SIZE, IMAGE_SIZE)),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=IMAGE_SIZE, max_size=IMAGE_SIZE)]
dataloader.train.total_batch_size = 64

train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = ""  # load_backbone has loaded the encoder; or a file of tools/convert_detector.py
train.amp.enabled = True
train.max_iter = 184375  # 100 epochs of 118,000 images

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 8e-5
optimizer.weight_decay = 0.1
optimizer.params.overrides = {name: {"weight_decay": 0.0} for name in ("pos_embed", "rel_pos_window", "rel_pos_global")}
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=0.25 / 100,
    warmup_factor=0.001,
)
