"""ADE20K, or any set of images and label masks: semantic segmentation."""

from mae_transfer.tasks.card import Benchmark, Protocol, TaskCard, metric

BENCHMARK = Benchmark("ADE20K val", train_images=20210, val_images=2000, classes=150)
_CODE, _CONFIG = "mae_transfer.tasks.ade20k.protocols", "mae_transfer.tasks.ade20k.protocols.config"


def _of_patches(name: str, code: str, about: str) -> Protocol:
    config = f"{_CONFIG}:PatchesConfig"
    return Protocol(name, name, f"{_CODE}.{code}", frozen=True, config=config, about=about, layers=True)


PROTOCOLS = (
    Protocol("upernet", "upernet_mae", f"{_CODE}.upernet:Upernet", about="UperNet, end to end", named=False),
    Protocol(
        "linear",
        "linear_dinov2",
        f"{_CODE}.linear:Linear",
        frozen=True,
        config=f"{_CONFIG}:LinearConfig",
        about="BatchNorm and a linear layer on frozen patch tokens",
    ),
    _of_patches("knn", "knn:Knn", "nearest neighbours of frozen patches"),
    _of_patches("logreg", "logreg:Logreg", "logistic regression on frozen patches"),
    _of_patches("in_context", "in_context:InContext", "attention of frozen patches to those of the training images"),
    Protocol(
        "partial",
        "partial_upernet",
        f"{_CODE}.partial:Partial",
        config=f"{_CONFIG}:PartialConfig",
        about="UperNet on its last blocks (--blocks)",
    ),
    Protocol(
        "finetune_linear",
        "finetune_linear",
        f"{_CODE}.finetune_linear:FinetuneLinear",
        config=f"{_CONFIG}:FinetuneLinearConfig",
        about="a linear layer on patch tokens, end to end",
    ),
    Protocol(
        "trained",
        "trained_upernet",
        f"{_CODE}.trained:Trained",
        config=f"{_CONFIG}:TrainedConfig",
        stated="mae_transfer.tasks.ade20k.trained.stated:stated_evaluation",
        load=f"{_CODE}.trained:load",
        about="a UperNet that was trained elsewhere, evaluated",
    ),
)
"""In the order of the tables. New ones come last: records hold their places."""

CARDS = (
    TaskCard(
        name="ade20k",
        title="ADE20K",
        kind="Segmentation",
        about="semantic segmentation, ADE20K or any images and label masks",
        folder="ade20k",
        config="mae_transfer.tasks.ade20k.config:Ade20kConfig",
        task="mae_transfer.tasks.ade20k.task:Ade20kTask",
        protocols=PROTOCOLS,
        metrics=(
            metric("mIoU", "mIoU", main=True, per_image="iou"),
            metric("mAcc", "mAcc", group="details"),
            metric("aAcc", "aAcc", group="details"),
        ),
        benchmark=BENCHMARK,
        synthetic=True,
    ),
)
