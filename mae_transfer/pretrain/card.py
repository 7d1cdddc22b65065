"""The built-in pre-training stage: a task whose model is an encoder to transfer."""

from mae_transfer.tasks.card import Protocol, TaskCard, metric

_CODE, _CONFIG = "mae_transfer.pretrain.methods", "mae_transfer.pretrain.config"

METHODS = (
    Protocol("mae", "mae", f"{_CODE}.mae:MaeMethod", config=f"{_CONFIG}:MaeConfig", about="masked autoencoder"),
    Protocol("beit", "beit", f"{_CODE}.beit:BeitMethod", config=f"{_CONFIG}:BeitConfig", about="BEiT-style tokens"),
    Protocol(
        "supervised",
        "supervised",
        f"{_CODE}.supervised:SupervisedMethod",
        config=f"{_CONFIG}:SupervisedConfig",
        about="labels of class folders",
    ),
    Protocol(
        "mocov3",
        "mocov3",
        f"{_CODE}.mocov3:MocoMethod",
        config=f"{_CONFIG}:MocoConfig",
        about="contrastive, of two views",
    ),
    Protocol("dvae", "dvae", f"{_CODE}.dvae:DvaeMethod", config=f"{_CONFIG}:DvaeConfig", about="a tokenizer for beit"),
)

CARDS = (
    TaskCard(
        name="pretrain",
        title="pre-training",
        about="MAE, BEiT-style, supervised and MoCo v3 pre-training",
        folder="pretrain",
        config=f"{_CONFIG}:PretrainConfig",
        task="mae_transfer.pretrain.task:PretrainTask",
        protocols=METHODS,
        option="method",
        metrics=(
            metric("knn_top1", "kNN top-1", main=True),
            metric("val_loss", "val loss", better="lower", unit="", main=True),
            metric("val_accuracy", "val accuracy of tokens"),
            metric("val_top1", "val top-1"),
            metric("val_top5", "val top-5"),
            metric("val_similarity", "val similarity of views", unit=""),
        ),
        synthetic=True,
        transfers=False,
    ),
)
