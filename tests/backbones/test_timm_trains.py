"""Every model of timm that is taken trains: a step of COCO, ADE20K and fine-tuning, and back from a run's checkpoint.

Models are as timm's registry has them, but narrow and shallow. CI has one of each class; `pytest -m slow` has all.
"""

import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path

import pytest
import timm
import torch
from timm.models import is_model_in_modules
from torch import Tensor, nn

from mae_transfer.backbones import timm_stages, timm_vit
from mae_transfer.backbones.configured import encoder_of, in_run
from mae_transfer.backbones.timm_vit import spec_of
from mae_transfer.engine.optim import build_optimizer
from mae_transfer.engine.rng import seed_for_micro_batch
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import load_checkpoint, save_checkpoint
from mae_transfer.runs.record import make_origin
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.step_cost import first_batch
from mae_transfer.runs.tasks import make_task

PLAIN = {"embed_dim": 96, "num_heads": 4, "depth": 4}
WIDTHS, HEADS, DEPTHS = (16, 32, 64, 128), (1, 2, 4, 8), (1, 2, 1, 1)
SMALL: dict[str, dict[str, object]] = {
    "vision_transformer.VisionTransformer": PLAIN,
    "beit.Beit": PLAIN,
    "eva.Eva": PLAIN,
    "vision_transformer_sam.VisionTransformerSAM": PLAIN,
    "swin_transformer.SwinTransformer": {"embed_dim": 16, "num_heads": HEADS, "depths": DEPTHS},
    "swin_transformer_v2.SwinTransformerV2": {"embed_dim": 16, "num_heads": HEADS, "depths": DEPTHS},
    "swin_transformer_v2_cr.SwinTransformerV2Cr": {"embed_dim": 16, "num_heads": HEADS, "depths": DEPTHS},
    "hiera.Hiera": {"embed_dim": 16, "num_heads": 1, "stages": DEPTHS},
    "hieradet_sam2.HieraDet": {"embed_dim": 16, "num_heads": 1, "stages": DEPTHS, "global_att_blocks": (2,)},
    "convnext.ConvNeXt": {"dims": WIDTHS, "depths": DEPTHS},
    "pvt_v2.PyramidVisionTransformerV2": {"embed_dims": WIDTHS, "num_heads": HEADS, "depths": DEPTHS},
    "davit.DaVit": {"embed_dims": WIDTHS, "num_heads": HEADS, "depths": DEPTHS},
    "focalnet.FocalNet": {"embed_dim": 16, "depths": DEPTHS},
    "metaformer.MetaFormer": {"dims": WIDTHS, "depths": DEPTHS},
    "edgenext.EdgeNeXt": {"dims": WIDTHS, "depths": (1, 2, 2, 2), "heads": (4, 4, 4, 4)},
    "mambaout.MambaOut": {"dims": WIDTHS, "depths": DEPTHS},
}
ONE_OF_EACH = (
    *("vit_base_patch16_224", "beit_base_patch16_224", "vit_base_patch16_dinov3", "swin_tiny_patch4_window7_224"),
    *("swinv2_tiny_window8_256", "swinv2_cr_tiny_ns_224", "hiera_tiny_224", "sam2_hiera_tiny", "convnextv2_atto"),
    *("pvt_v2_b0", "davit_tiny", "focalnet_tiny_srf", "poolformer_s12", "edgenext_xx_small", "mambaout_femto"),
    *("vit_base_patch16_18x2_224", "vit_base_patch16_xp_224", "samvit_base_patch16"),
)
TASKS = {
    "coco": ("model.fpn_channels=16", "model.head_channels=16", "train.micro_batch=2"),
    "ade20k": ("model.head_channels=16", "model.aux_channels=8", "eval.stride=32"),
    "folder": (),
}
TABLE = Path(__file__).parents[2] / "docs" / "encoders.md"
SETTING = re.compile(r"([a-z_]+\.[a-z_]+=\w+)")


@pytest.fixture(scope="module", autouse=True)
def small_models() -> Iterator[None]:
    """timm builds its models at the sizes of SMALL, and those without values once."""
    with pytest.MonkeyPatch.context() as patch:
        for place, sizes in SMALL.items():
            file, _, name = place.partition(".")
            kind = getattr(importlib.import_module(f"timm.models.{file}"), name)

            def small(self, *args, _init=kind.__init__, _sizes=sizes, **kwargs):  # type: ignore[no-untyped-def]
                if isinstance(kwargs.get("num_kv_heads"), tuple):
                    kwargs["num_kv_heads"] = (4, 2, 4, 2)
                return _init(self, *args, **{**kwargs, **_sizes})

            patch.setattr(kind, "__init__", small)
        kept = cache(timm_stages.empty_model)
        for module in (timm_stages, timm_vit):
            patch.setattr(module, "empty_model", kept)
        yield


def shake(model: nn.Module) -> None:
    """Every parameter away from its initial value: behind a zero one others would have no gradient."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def prepared(kind: str, name: str) -> tuple[BaseTask, nn.Module, torch.optim.Optimizer]:
    """By the task's own recipe, and by what the lines of its refusals say to set for this encoder."""
    side = -(-64 // (patch := spec_of(f"timm:{name}").patch_size)) * patch
    options = [*TASKS[kind], f"data.image_size={side}", "backbone.weights=random"]
    while True:
        try:
            task = make_task(resolve_config(kind, f"timm:{name}", preset="smoke", device="cpu", overrides=options))
            model = task.build_model(task.build_encoder())
            return task, model, build_optimizer(model, task.config.optim)
        except UserError as error:
            told = [setting for setting in SETTING.findall(str(error)) if setting not in options]
            if not told:
                raise
            options += told


def losses_of(model: nn.Module, batch: object) -> Tensor:
    seed_for_micro_batch(0, 0)
    return torch.stack(list(model.train()(batch).values()))


def check(name: str, folder: Path, kinds: Iterable[str] = tuple(TASKS)) -> None:
    """Raises AssertionError if something of a step is not as it should be."""
    for kind in kinds:
        task, model, optimizer = prepared(kind, name)
        shake(model.encoder)
        batch = first_batch(task, 2)
        losses_of(model, batch).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, (kind, key)
            assert parameter.grad.isfinite().all(), (kind, key)
            # a bias of all logits of a softmax, of Swin v2 CR, has a gradient of zero but for rounding
            free = not key.startswith("encoder.") or key.endswith("meta_mlp.fc2.bias")
            assert parameter.grad.any() or free, (kind, key)
        optimizer.step()
        losses = losses_of(model, batch).detach()
        assert losses.isfinite().all(), kind
        state = {"step": 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"config": task.config.model_dump(mode="json")}
        file = save_checkpoint(folder, 1, state | {"origin": make_origin(task, model.encoder, 1)}, keep=1)
        asked = in_run(task.config.backbone).model_copy(update={"checkpoint": str(file)})
        again = task.build_model(encoder_of(asked, task.encoder_options))
        assert all(map(torch.equal, again.encoder.parameters(), model.encoder.parameters())), kind
        again.load_state_dict(load_checkpoint(file)["model"])
        torch.testing.assert_close(losses_of(again, batch), losses, rtol=0, atol=0)


def test_there_is_one_of_each_class() -> None:
    models = [timm.create_model(name) for name in ONE_OF_EACH]
    assert {f"{type(m).__module__.removeprefix('timm.models.')}.{type(m).__name__}" for m in models} == SMALL.keys()


@pytest.mark.parametrize(("name", "kind"), zip(ONE_OF_EACH, cycle(("ade20k", "coco", "folder"))))
def test_one_of_each_class_trains(name: str, kind: str, tmp_path: Path) -> None:
    """In one task each."""
    check(name, tmp_path, [kind])


def accepted() -> list[str]:
    """As docs/make_encoder_table.py finds them, of timm's modules that have any."""
    modules = [*timm_vit.MODULES, *(place.partition(".")[0] for place in SMALL)]
    names = []
    for name in timm.list_models():
        if is_model_in_modules(name, modules):
            with suppress(UserError):
                spec_of(f"timm:{name}")
                names.append(name)
    return names


def distinct(names: Iterable[str]) -> list[str]:
    """The first of those names that stand for one and the same small model: parts, shapes and spec are equal."""
    found: dict[str, str] = {}
    for name in names:
        model, spec = timm_stages.empty_model(name), spec_of(f"timm:{name}")
        alike = replace(spec, name="", init="", hub=None, timm_arch=None, mean=(), std=())
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        found.setdefault(f"{model} {alike} {shapes}", name)
    return list(found.values())


@pytest.mark.slow
def test_all_models_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, wrong = accepted(), {}
    assert f"takes {len(names)} of the" in TABLE.read_text()
    small = distinct(names)
    assert f"they are {len(small)} different models" in TABLE.read_text()
    for name in small:
        try:
            check(name, tmp_path)
        except (AssertionError, AttributeError, UserError, RuntimeError, TypeError, ValueError) as error:
            wrong[name] = f"{type(error).__name__}: {error}"[:300]
    with capsys.disabled():
        print(f"\n{len(names)} models, {len(small)} small ones, {len(wrong)} wrong")
    assert not wrong, wrong
