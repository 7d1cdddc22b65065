"""Image classification: a card for each data set, with the same protocols and metrics."""

from mae_transfer.tasks.card import Benchmark, Protocol, TaskCard, metric

_CODE = "mae_transfer.tasks.classification.protocols"

PROTOCOLS = (
    Protocol("finetune", "finetune_mae", f"{_CODE}.finetune:Finetune", about="the whole encoder"),
    Protocol(
        "partial", "partial_mae", f"{_CODE}.partial:Partial", about="its last blocks (--blocks)", at_zero="linear"
    ),
    Protocol("linear", "linear_mae", f"{_CODE}.linear:Linear", frozen=True, about="a linear layer on frozen features"),
    Protocol("attentive", "attentive", f"{_CODE}.attentive:Attentive", frozen=True, about="attention pooling"),
    Protocol(
        *("logreg", "logreg", f"{_CODE}.logreg:LogisticRegression"),
        frozen=True,
        about="logistic regression",
        layers=True,
    ),
    Protocol("knn", "knn", f"{_CODE}.knn:NearestNeighbours", frozen=True, about="nearest neighbours", layers=True),
    Protocol(
        *("trained", "trained", f"{_CODE}.trained:Trained"),
        config="mae_transfer.tasks.classification.trained.config:TrainedConfig",
        stated="mae_transfer.tasks.classification.trained.stated:stated_evaluation",
        load=f"{_CODE}.trained:load",
        about="a classifier that was trained elsewhere, evaluated",
    ),
)
"""In the order of the tables."""

METRICS = (
    metric("top1", "top-1", main=True, per_image="correct"),
    metric("top5", "top-5"),
    metric("mean_per_class", "mean per class"),
    metric("imagenet_c_mCE", "IN-C mCE (lower is better)", better="lower", group="robustness"),
    metric("imagenet_a_top1", "IN-A top-1", group="robustness"),
    metric("imagenet_r_top1", "IN-R top-1", group="robustness"),
    metric("imagenet_sketch_top1", "IN-Sketch top-1", group="robustness"),
)

BENCHMARKS = {
    "imagenet": Benchmark("ImageNet-1K val", train_images=1281167, val_images=50000, classes=1000),
    "inat2017": Benchmark("iNaturalist 2017 val", train_images=579184, val_images=95986, classes=5089),
    "inat2018": Benchmark("iNaturalist 2018 val", train_images=437513, val_images=24426, classes=8142),
    "inat2019": Benchmark("iNaturalist 2019 val", train_images=265213, val_images=3030, classes=1010),
    "inat2021": Benchmark("iNaturalist 2021 val", train_images=2686843, val_images=100000, classes=10000),
    "places205": Benchmark("Places205 val", train_images=2448873, val_images=20500, classes=205),
    "places365": Benchmark("Places365 val", train_images=1803460, val_images=36500, classes=365),
}
"""Images and classes of the whole sets, as their makers count them."""


def _card(name: str, about: str) -> TaskCard:
    return TaskCard(
        name=name,
        title=name,
        kind="Classification" if name == "folder" else "",
        about=about,
        folder="classification",
        config="mae_transfer.tasks.classification.config:ClassificationConfig",
        task="mae_transfer.tasks.classification.task:ClassificationTask",
        metrics=METRICS,
        protocols=PROTOCOLS,
        benchmark=BENCHMARKS.get(name),
        # A supervised encoder of ImageNet has seen ImageNet's labels, so it is no control there.
        controls=("random",) if name == "imagenet" else ("sup", "random"),
        synthetic=True,
    )


CARDS = (
    _card("imagenet", "image classification"),
    _card("inat2017", "image classification"),
    _card("inat2018", "image classification"),
    _card("inat2019", "image classification"),
    _card("inat2021", "image classification"),
    _card("places205", "image classification"),
    _card("places365", "image classification"),
    _card("folder", "image classification, any set with one folder a class"),
)
