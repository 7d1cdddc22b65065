"""COCO: detection and instance segmentation."""

from mae_transfer.tasks.card import Benchmark, Protocol, TaskCard, metric

STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers of COCO's evaluation, in its order, for boxes and for masks."""

BENCHMARK = Benchmark("COCO val2017", train_images=118287, val_images=5000, classes=80)
CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""The ids of COCO's 80 classes, in the order of a detector's outputs."""
_CODE, _CONFIG = "mae_transfer.tasks.coco.protocols", "mae_transfer.tasks.coco.protocols.config"

PROTOCOLS = (
    Protocol("finetune", "mask_rcnn_li2021", f"{_CODE}.finetune:Finetune", about="the whole encoder", named=False),
    Protocol(
        "partial",
        "partial_li2021",
        f"{_CODE}.partial:Partial",
        config=f"{_CONFIG}:PartialConfig",
        about="its last blocks (--blocks)",
    ),
    Protocol(
        "frozen",
        "frozen_li2021",
        f"{_CODE}.frozen:Frozen",
        frozen=True,
        config=f"{_CONFIG}:FrozenConfig",
        about="pyramid and heads on a frozen encoder",
    ),
    Protocol(
        "trained",
        "trained_vitdet",
        f"{_CODE}.trained:Trained",
        config=f"{_CONFIG}:TrainedConfig",
        stated=f"{_CODE}.trained:stated_model",
        load=f"{_CODE}.trained:load",
        about="a detector that was trained elsewhere, evaluated",
    ),
)
"""In the order of the tables."""

CARDS = (
    TaskCard(
        name="coco",
        title="COCO",
        kind="Detection",
        about="detection and instance masks (Mask R-CNN), COCO or any set in its format",
        folder="coco",
        config="mae_transfer.tasks.coco.config:CocoConfig",
        task="mae_transfer.tasks.coco.task:CocoTask",
        protocols=PROTOCOLS,
        metrics=(
            metric("box_AP", "AP box", main=True, per_image="box"),
            metric("mask_AP", "AP mask", main=True, per_image="mask"),
            *(
                metric(f"{kind}_{name}", f"{name} {kind}", group="details")
                for kind in ("box", "mask")
                for name in STATISTICS[1:]
            ),
        ),
        benchmark=BENCHMARK,
        synthetic=True,
    ),
)
