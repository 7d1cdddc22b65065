"""The encoder in detectron2's and mmsegmentation's own models, as their configuration files build them."""

import warnings
from typing import Any

import pytest
import torch
from support.ade20k_reference import CLASSES, make_model, our_name
from support.paths import ROOT

from mae_transfer.tasks.ade20k.protocols.upernet import import_heads

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def segmentor() -> Any:
    """The example's model, built by mmsegmentation's registry from the file, at a size for tests."""
    import_heads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmengine.config import Config
        from mmengine.registry import DefaultScope
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules

        config = Config.fromfile(EXAMPLES / "mmseg_upernet.py")  # imports what registers the backbone
        register_all_modules(init_default_scope=False)
        model = config.model
        model.backbone.update(name="random_vit_nano", img_size=64, taps=[2, 3, 4, 7], drop_path=0.0)
        model.neck.update(embed_dim=64, norm_cfg={"type": "BN"})
        model.decode_head.update(in_channels=[64] * 4, channels=64, num_classes=CLASSES, norm_cfg={"type": "BN"})
        model.auxiliary_head.update(in_channels=64, num_classes=CLASSES, norm_cfg={"type": "BN"})
        model.data_preprocessor.update(size=(64, 64))
        model.test_cfg.update(crop_size=(64, 64), stride=(42, 42))
        with DefaultScope.overwrite_default_scope("mmseg"):
            return MODELS.build(model)


def test_mmsegmentation_builds_trains_and_predicts(segmentor: Any) -> None:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    before = segmentor.backbone.encoder.vit.pos_embed.clone()
    segmentor.init_weights()
    assert torch.equal(segmentor.backbone.encoder.vit.pos_embed, before), "the weights are the backbone's own"
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8) for _ in range(2)]
    samples = []
    for _ in images:
        labels = torch.randint(CLASSES, (1, 64, 64), generator=generator)
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo={"img_shape": (64, 64)}))
    batch = segmentor.data_preprocessor({"inputs": images, "data_samples": samples}, training=True)
    losses = segmentor.train().loss(**batch)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(p.grad is not None for p in segmentor.backbone.parameters() if p.requires_grad)
    with torch.no_grad():
        segmentor.eval()
        predicted = segmentor.predict(segmentor.data_preprocessor({"inputs": images})["inputs"])
    assert predicted[0].pred_sem_seg.data.shape == (1, 64, 64)


def test_mmsegmentations_logits_are_those_of_the_task(segmentor: Any) -> None:
    ours = make_model(overrides=["model.head_channels=64"]).eval()
    state = ours.state_dict()
    theirs = segmentor.state_dict()
    renamed = {f"backbone.{k}": v for k, v in state.items() if k.startswith("encoder.")}
    renamed |= {name: state[our_name(name)] for name in theirs if not name.startswith("backbone.")}
    segmentor.load_state_dict(renamed)
    segmentor.eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = segmentor.encode_decode(images, [{"img_shape": (64, 64)}])
        torch.testing.assert_close(ours.logits(images), expected, atol=1e-5, rtol=0)


def test_detectron2_builds_trains_and_predicts() -> None:
    """The example as detectron2's training script takes it, at a size for tests."""
    config_of = pytest.importorskip("detectron2.config", reason="detectron2 is not installed")
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    config = config_of.LazyConfig.load(str(EXAMPLES / "detectron2_mask_rcnn.py"))
    encoder = config.model.backbone.bottom_up.encoder
    encoder.name, encoder.weights, encoder.img_size, encoder.window_size = "random_vit_nano", "random", 128, 3
    config.model.backbone.square_pad = 128
    config.model.backbone.norm = "BN"  # torch's SyncBN needs a GPU
    torch.manual_seed(0)
    model = config_of.instantiate(config.model).train()
    assert {"backbone.bottom_up.encoder.rel_pos_global"} <= dict(model.named_parameters()).keys()
    config.optimizer.params.model = model
    optimizer = config_of.instantiate(config.optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    bare = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {"pos_embed", "rel_pos_window", "rel_pos_global"} <= {name.rsplit(".", 1)[-1] for name in bare}
    multiplier = config_of.instantiate(config.lr_multiplier)
    assert [round(multiplier(where), 3) for where in (0, 0.0025, 0.5, 1)] == [0.001, 1, 0.5, 0]
    objects = Instances((100, 128))
    objects.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 70], [40, 20, 120, 90]]))
    objects.gt_classes = torch.tensor([3, 7])
    objects.gt_masks = BitMasks(torch.ones(2, 100, 128))
    image = torch.randint(256, (3, 100, 128), dtype=torch.uint8)
    with EventStorage():
        losses = model([{"image": image, "instances": objects}])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        found = model.eval()([{"image": image, "height": 200, "width": 256}])[0]["instances"]
    assert found.image_size == (200, 256)
