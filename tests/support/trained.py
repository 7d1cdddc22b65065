"""Small models with classifiers of timm and transformers, and files of them as their sources write them."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from timm.models import build_model_with_cfg
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mae_transfer.data.synthetic.classification import draw

DIM, DEPTH, HEADS, PATCH, SIZE, CLASSES = 64, 8, 4, 16, 64, 7
SHAPE = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
HF = {
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * DIM,
    "image_size": SIZE,
    "patch_size": PATCH,
    "num_labels": CLASSES,
}
PLAIN = "mae_vit_nano"


def write_val(root: Path, each: int) -> Path:
    """A data set of which only val/ is there: `each` JPEG images of every class."""
    for label in range(CLASSES):
        folder = root / "val" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(each):
            rng = np.random.default_rng((label, number))
            draw(label, 90 + 10 * number, 120, rng).save(folder / f"{number}.jpg", quality=95)
    return root


@dataclass
class Source:
    """A trained model: its file or folder, the name that its encoder is built by, and its own scores of normalised
    images (B, 3, H, W). `classifier` is a linear classifier in a file of its own."""

    path: Path
    backbone: str
    scores: Callable[[Tensor], Tensor]
    classifier: Path | None = None


def randomised(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.15 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def arch(name: str, kind: Any, **options: Any) -> Any:
    """A model of timm that is registered under a name, and an instance with a classifier and random weights."""
    config = {"architecture": name, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25), "input_size": (3, SIZE, SIZE)}
    config |= {"crop_pct": 0.9, "interpolation": "bicubic", "num_classes": CLASSES}

    def build(pretrained: bool = False, **given: Any) -> Any:
        for unused in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
            given.pop(unused, None)
        own = {**SHAPE, "num_classes": CLASSES, **options, **given}
        return build_model_with_cfg(kind, name, False, pretrained_cfg=config, **own)

    if not timm.is_model(name):
        build.__name__, build.__module__ = name, kind.__module__
        module = sys.modules[kind.__module__]
        setattr(module, name, build)
        timm.models.register_model(build)
    return randomised(build(num_classes=options.get("num_classes", CLASSES)))


def saved(model: nn.Module, path: Path, backbone: str, state: Any = None) -> Source:
    torch.save({"model": model.state_dict() if state is None else state}, path)
    return Source(path, backbone, model)


def of_timm(name: str, kind: Any = VisionTransformer, **options: Any) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        return saved(arch(name, kind, **options), folder / f"{name}.pth", f"timm:{name}")

    return make


def mae_finetuned(folder: Path) -> Source:
    """facebookresearch/mae models_vit.py with global_pool: fc_norm of the mean of the patch tokens."""
    model = randomised(VisionTransformer(**SHAPE, num_classes=CLASSES, global_pool="avg"))
    return saved(model, folder / "mae.pth", PLAIN)


def mae_linear_probe(folder: Path) -> Source:
    """facebookresearch/mae main_linprobe.py: model.head = Sequential(BatchNorm1d(affine=False, eps=1e-6), head)."""
    model = VisionTransformer(**SHAPE, num_classes=CLASSES)
    model.head = nn.Sequential(nn.BatchNorm1d(DIM, affine=False, eps=1e-6), model.head)
    return saved(randomised(model), folder / "probe.pth", PLAIN)


def deit(folder: Path) -> Source:
    return saved(randomised(VisionTransformer(**SHAPE, num_classes=CLASSES)), folder / "deit.pth", PLAIN)


def deit_distilled(folder: Path) -> Source:
    """facebookresearch/deit models.py, of which timm's class is a copy: in evaluation the mean of both classifiers."""
    model = randomised(VisionTransformerDistilled(**SHAPE, num_classes=CLASSES))
    return saved(model, folder / "distilled.pth", f"timm:{_named('deit_verify', VisionTransformerDistilled)}")


def deit3_own_names(folder: Path) -> Source:
    """facebookresearch/deit models_v2.py: gamma_1, gamma_2; no position for the class token."""
    model = arch("vit_verify_deit3", VisionTransformer, init_values=0.1, no_embed_class=True)
    names = {key: key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2") for key in model.state_dict()}
    state = {names[key]: tensor for key, tensor in model.state_dict().items()}
    return saved(model, folder / "deit3.pth", "timm:vit_verify_deit3", state)


def _named(name: str, kind: Any, **options: Any) -> str:
    arch(name, kind, **options)
    return name


def beit_finetuned(folder: Path) -> Source:
    """microsoft/unilm beit/modeling_finetune.py with mean pooling; timm's class has the same names."""
    options: dict[str, Any] = {"init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": True}
    model = arch("beit_verify", Beit, global_pool="avg", **options)
    return saved(model, folder / "beit.pth", "timm:beit_verify")


def hugging_face(kind: str, *, backbone: str = PLAIN, config: str = "", **options: Any) -> Callable[[Path], Source]:
    def make(folder: Path) -> Source:
        described = getattr(transformers, config or kind.partition("For")[0] + "Config")(**{**HF, **options})
        model = randomised(getattr(transformers, kind)(described))
        model.save_pretrained(folder / kind)
        if backbone.startswith("timm:beit"):
            _named("beit_verify_hf", Beit, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True)
        if backbone.startswith("timm:vit"):
            _named("vit_verify_scaled", VisionTransformer, init_values=0.1)
        return Source(folder / kind, backbone, lambda images: model(images).logits)

    return make


def _cls_and_patches(model: Any, images: Tensor, blocks: int) -> list[Tensor]:
    """get_intermediate_layers of DINO and DINOv2: the tokens after each of the last blocks and the final norm."""
    caught: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *of: caught.append(of[2])) for block in model.blocks[-blocks:]]
    model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return [model.norm(tokens) for tokens in caught]


def dino_linear(blocks: int, avgpool: bool) -> Callable[[Path], Source]:
    """facebookresearch/dino eval_linear.py: backbone and linear classifier in two files."""

    def make(folder: Path) -> Source:
        model = randomised(VisionTransformer(**SHAPE, num_classes=0))
        linear = randomised(nn.Linear(DIM * (blocks + avgpool), CLASSES))
        torch.save(model.state_dict(), folder / "dino.pth")
        state = {f"module.linear.{key}": tensor for key, tensor in linear.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 100, "best_acc": 78.2}, folder / "linear.pth")

        def scores(images: Tensor) -> Tensor:
            layers = _cls_and_patches(model, images, blocks)
            output = torch.cat([x[:, 0] for x in layers], dim=-1)
            if avgpool:
                mean = layers[-1][:, 1:].mean(dim=1)
                output = torch.cat((output.unsqueeze(-1), mean.unsqueeze(-1)), dim=-1).reshape(len(images), -1)
            return linear(output)

        return Source(folder / "dino.pth", PLAIN, scores, folder / "linear.pth")

    return make


def dinov2_linear(blocks: int) -> Callable[[Path], Source]:
    """facebookresearch/dinov2 hubconf.py `_LinearClassifierWrapper`, of 1 or 4 layers."""

    def make(folder: Path) -> Source:
        model = randomised(VisionTransformer(**SHAPE, num_classes=0))
        linear = randomised(nn.Linear(DIM * (blocks + 1), CLASSES))
        torch.save(dict(model.state_dict()), folder / "dinov2.pth")
        torch.save(linear.state_dict(), folder / "head.pth")

        def scores(images: Tensor) -> Tensor:
            layers = _cls_and_patches(model, images, blocks)
            return linear(torch.cat([*(x[:, 0] for x in layers), layers[-1][:, 1:].mean(dim=1)], dim=1))

        return Source(folder / "dinov2.pth", PLAIN, scores, folder / "head.pth")

    return make


SOURCES: dict[str, Callable[[Path], Source]] = {
    "MAE fine-tuned": mae_finetuned,
    "MAE linear probe": mae_linear_probe,
    "DeiT": deit,
    "DeiT distilled": deit_distilled,
    "DeiT-III": deit3_own_names,
    "BEiT fine-tuned": beit_finetuned,
    "timm, class token": of_timm("vit_verify_token"),
    "timm, registers and a mean": of_timm("vit_verify_reg", reg_tokens=3, global_pool="avg", class_token=False),
    "timm, mean after the norm": of_timm("vit_verify_gap", global_pool="avg", fc_norm=False),
    "timm Eva": of_timm("eva_verify", Eva, global_pool="avg", use_rot_pos_emb=True, swiglu_mlp=False),
    "HF ViT": hugging_face("ViTForImageClassification"),
    "HF DeiT": hugging_face("DeiTForImageClassification"),
    "HF DeiT distilled": hugging_face("DeiTForImageClassificationWithTeacher", config="DeiTConfig"),
    "HF BEiT": hugging_face(
        "BeitForImageClassification", backbone="timm:beit_verify_hf", use_relative_position_bias=True
    ),
    "HF BEiT, class token": hugging_face(
        "BeitForImageClassification",
        backbone="timm:beit_verify_hf",
        use_relative_position_bias=True,
        use_mean_pooling=False,
    ),
    "HF Dinov2": hugging_face("Dinov2ForImageClassification", backbone="timm:vit_verify_scaled"),
    "DINO of four blocks": dino_linear(4, avgpool=False),
    "DINO of class token and mean": dino_linear(1, avgpool=True),
    "DINOv2 of one block": dinov2_linear(1),
    "DINOv2 of four blocks": dinov2_linear(4),
}
