"""ADE20K, or any set of images and label masks: semantic segmentation."""

from mae_transfer.tasks.card import Benchmark, TaskCard, metric

BENCHMARK = Benchmark("ADE20K val", train_images=20210, val_images=2000, classes=150)

CARDS = (
    TaskCard(
        name="ade20k",
        title="ADE20K",
        about="semantic segmentation (UperNet), ADE20K or any images and label masks",
        folder="ade20k",
        config="mae_transfer.tasks.ade20k.config:Ade20kConfig",
        task="mae_transfer.tasks.ade20k.task:Ade20kTask",
        recipe="upernet_mae",
        metrics=(
            metric("mIoU", "mIoU", main=True),
            metric("mAcc", "mAcc", group="details"),
            metric("aAcc", "aAcc", group="details"),
        ),
        benchmark=BENCHMARK,
        synthetic=True,
    ),
)
