"""Our UperNet and mmsegmentation's own segmentor, small and with the same weights: the oracle of the ADE20K tests."""

import io
import json
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch

from mae_transfer.backbones.load import load_backbone
from mae_transfer.engine.distributed import make_fabric, shut_down
from mae_transfer.engine.noise import SampleNoise
from mae_transfer.runs.resolve import load_config
from mae_transfer.tasks.ade20k.data import Ade20kEval, Ade20kTrain
from mae_transfer.tasks.ade20k.evaluate import evaluate
from mae_transfer.tasks.ade20k.pairs import find_pairs
from mae_transfer.tasks.ade20k.protocols.upernet import build_upernet, import_heads

CLASSES = 7


def make_encoder(name="random_vit_nano", size=64, taps=(2, 3, 4, 7), drop_path=0.0, **options):
    torch.manual_seed(0)
    options = {"rel_pos": "per_block", "pos_embed": "resized", "layer_scale": 1.0} | options
    return load_backbone(name, img_size=size, taps=taps, drop_path=drop_path, **options)


def make_model(name="random_vit_nano", size=64, overrides=(), classes=CLASSES, **options):
    config = load_config(
        "ade20k", name, overrides=[f"data.image_size={size}", f"eval.stride={size * 2 // 3}", *overrides]
    )
    return build_upernet(make_encoder(name, size, **options), classes, config)


def make_mmseg(encoder, size, kind="MAE", classes=CLASSES):
    """mmsegmentation's EncoderDecoder as its published configs (MAE, BEiT) build it, silently."""
    import_heads()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from mmengine import ConfigDict
        from mmseg.models import EncoderDecoder, SegDataPreProcessor

        width, norm = encoder.embed_dim, {"type": "SyncBN", "requires_grad": True}
        head = {"num_classes": classes, "norm_cfg": norm, "align_corners": False, "dropout_ratio": 0.1}
        return EncoderDecoder(
            backbone={
                "type": kind,
                "img_size": (size, size),
                "patch_size": 16,
                "embed_dims": width,
                "num_layers": encoder.depth,
                "num_heads": encoder.num_heads,
                "mlp_ratio": 4,
                "init_values": 1.0,
                "drop_path_rate": 0.0,
                "norm_cfg": {"type": "LN", "eps": 1e-6},
                "out_indices": list(encoder.taps),
            },
            neck={"type": "Feature2Pyramid", "embed_dim": width, "rescales": [4, 2, 1, 0.5], "norm_cfg": norm},
            decode_head={
                "type": "UPerHead",
                "in_channels": [width] * 4,
                "in_index": [0, 1, 2, 3],
                "pool_scales": (1, 2, 3, 6),
                "channels": width,
                "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0},
                **head,
            },
            auxiliary_head={
                "type": "FCNHead",
                "in_channels": width,
                "in_index": 2,
                "channels": 256,
                "num_convs": 1,
                "concat_input": False,
                "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 0.4},
                **head,
            },
            data_preprocessor=SegDataPreProcessor(),
            test_cfg=ConfigDict(mode="slide", crop_size=(size, size), stride=(size * 2 // 3,) * 2),
        )


RENAMED = (
    ("backbone.patch_embed.projection.", "encoder.vit.patch_embed.proj."),
    ("backbone.layers.", "encoder.vit.blocks."),
    ("backbone.", "encoder.vit."),
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    (".gamma_1", ".ls1.gamma"),
    (".gamma_2", ".ls2.gamma"),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
    (".relative_position_bias_table", ".rel_pos_table"),
    ("neck.upsample_4x.", "pyramid.stages.0."),
    ("neck.upsample_2x.0.", "pyramid.stages.1."),
)


def our_name(theirs):
    for old, new in RENAMED:
        theirs = theirs.replace(old, new)
    return theirs


def shake(module, generator):
    """No weight or statistic stays at its initial value."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(value * (1 + 0.1 * noise) + 0.02 * noise if "running_var" not in key else 1 + noise.abs())


def same_weights(size, name="random_vit_nano", taps=(2, 3, 4, 7)):
    """Our model and theirs with the same weights, none of them at its initial value."""
    ours = make_model(name, size, taps=taps)
    theirs = make_mmseg(ours.encoder, size)
    generator = torch.Generator().manual_seed(1)
    shake(theirs, generator)
    state = {our_name(k): v for k, v in theirs.state_dict().items() if not k.endswith("relative_position_index")}
    ours.load_state_dict(state, strict=True)
    return ours, theirs


def step_and_evaluate(data):
    """Losses and squared gradients per parameter of a batch of four, and the metrics, cut over the ranks there are.

    With the recipe's dropout, and drop path.
    """
    fabric = make_fabric("cpu", "fp32")
    overrides = [f"data.root={data}", "data.short_side=64", "data.long_side=256", "data.workers=0"]
    config = load_config("ade20k", "random_vit_nano", overrides=["data.image_size=64", "eval.stride=42", *overrides])
    model = make_model(overrides=overrides, classes=150, drop_path=0.3)
    noise = SampleNoise(model)
    pairs = find_pairs(config.data, "val")
    train = Ade20kTrain(pairs, config.data, seed=0)
    mine = range(fabric.global_rank, 4, fabric.world_size)
    noise.draw(3, mine, fabric.device)
    losses = model.train()(train.collate([train[0, i] for i in mine]))
    sum(losses.values()).backward()
    gradients = [fabric.all_reduce(parameter.grad, reduce_op="mean") for parameter in model.parameters()]
    return {
        "losses": {name: fabric.all_reduce(loss.detach(), reduce_op="mean").item() for name, loss in losses.items()},
        "squares": [gradient.double().square().sum().item() for gradient in gradients],
        "metrics": evaluate(model, Ade20kEval(pairs, config), [str(i) for i in range(150)], config, fabric, False),
    }


if __name__ == "__main__":
    results, rank = step_and_evaluate(sys.argv[1]), torch.distributed.get_rank()
    shut_down()
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    results["threads"] = [name for name in names if "gloo" in name]
    if rank == 0:
        print(json.dumps(results))
