"""One file a protocol, each of which reads top to bottom. A protocol module has

    encoder_options(config) -> what `load_backbone` needs, such as img_size and taps
    build_model(encoder, num_classes, config) -> the model, with the encoder as its attribute `encoder`

and may have

    TRAINS = False: no training loop, `prepare` does it all
    prepare(task, model, fabric, folder, progress): before training; may replace the task's data sets by features

Its model takes a batch {"images": uint8 (B, 3, H, W), "labels": int64 (B,), ...} (frozen ones may take "features"):
in training mode it gives a dict of losses, means over the images; in eval mode scores float32 (heads, B, K), the heads
named by its attribute `head_names`.
"""

import importlib
from types import ModuleType

PROTOCOLS = ("finetune", "partial", "linear", "attentive", "knn", "logreg")


def find_protocol(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
