"""A trained model in Python: its file as a module, and the module's numbers on data."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mae_transfer.backbones.checkpoints import files
from mae_transfer.backbones.checkpoints.state_dict import unwrap
from mae_transfer.config.overrides import Overrides, parse_overrides
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import check_eval_precision, eval_precision, first_on_each_node, make_fabric
from mae_transfer.engine.loader import loader_failures
from mae_transfer.engine.progress import console
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.tasks import make_task, task_card
from mae_transfer.runs.trained import PROTOCOL, found_in
from mae_transfer.runs.unread import refuse_unread
from mae_transfer.tasks.card import load_object

_ORIGIN = "_mae_transfer_origin"
_PARTS = {
    "coco": ("roi_heads.", "rpn.", "proposal_generator."),
    "ade20k": ("decode_head.", "auxiliary_head."),
}
"""Task -> how names of its models' heads begin."""
_CLASSIFIERS = ("head.weight", "head.1.weight", "classifier.weight", "cls_classifier.weight")


@dataclass(frozen=True)
class Origin:
    """What `load_model` made a module of; the module keeps it, and so do copies of the module."""

    path: str
    task: str
    backbone: str
    overrides: tuple[tuple[str, object], ...]


def load_model(
    path: str | Path, *, task: str | None = None, backbone: str | None = None, overrides: Overrides = ()
) -> tuple[nn.Module, str]:
    """The model in a trained model's file, and the name of its task: encoder, heads and classes are those of the file.

    The layouts are those of docs/verify.md: classifiers, detectors and segmentation models. Nothing is trained and no
    data are read. `mt.evaluate` takes the model.

    Args:
        path: the file, or a model's folder as of transformers.
        task: default: by the names in the file `coco`, `ade20k`, or `imagenet` for 1000 classes and else `folder`.
        backbone: as `--backbone`; default: by the shapes in the file.
        overrides: of the configuration, as in `run_transfer`: `recipe=trained_vitdet_cascade`, `data.image_size=384`.

    Returns:
        The model on the CPU in eval mode, whose classes are the outputs in the order of the file, and the task's name.
        It takes a batch: `{"images": uint8 (B, 3, H, W)}` gives a classifier's scores (1, B, K). A detector also takes
        images of unlike sizes and their `file_names` and `sizes`; a segmentor `views` and `sizes`
        (`tasks/*/protocols/trained.py`).

    Raises:
        UserError: a file that no layout fits, a head that lacks a tensor or has another shape, an unknown task.
    """
    chosen = task or _task_of(path)
    origin = Origin(str(path), chosen, backbone or found_in(path), tuple(parse_overrides(overrides)))
    card = task_card(chosen)
    protocol = next((known for known in card.protocols if known.name == PROTOCOL), None)
    if protocol is None or not protocol.load:
        raise UserError(f"the task {chosen} evaluates no trained model's file; train one by mt.run_transfer")
    model: nn.Module = load_object(protocol.load)(_config(origin))
    object.__setattr__(model, _ORIGIN, origin)
    return model.eval(), chosen


def evaluate(
    model: nn.Module | str | Path,
    data: str | Path,
    *,
    task: str | None = None,
    backbone: str | None = None,
    subset: int | None = None,
    device: str | None = None,
    overrides: Overrides = (),
    progress: bool = False,
) -> dict[str, float]:
    """The numbers of a trained model on the val images of a data set; no run folder and no record are made.

    `mt.run_transfer(..., protocol="trained", checkpoint=path)` gives the same numbers and leaves a record.

    Args:
        model: of `mt.load_model`, evaluated with the weights that it has now (averaged, pruned or rounded ones too); or
            the path of a file, which is loaded.
        data: the root folder, as `--data`; only val images are read.
        task, backbone: of a path, as in `load_model`.
        subset: evaluate only this many images, always the same ones.
        device: auto, cpu or cuda; default auto.
        overrides: of the configuration, such as `{"eval.batch_size": 256}`, on top of the model's own.
        progress: show progress on standard error.

    Returns:
        A flat map of metric to number, in percent: `top1`, `box_AP`, `mIoU` and so on.

    Raises:
        UserError: a module that is not of `load_model` or has other weights' names or shapes, and all that an
            evaluation refuses (classes that do not match, no val images).
    """
    if isinstance(model, nn.Module):
        origin, more = getattr(model, _ORIGIN, None), {"task": task, "backbone": backbone}
        if not isinstance(origin, Origin):
            raise UserError("mt.evaluate takes a model of mt.load_model, or a path; mt.run_transfer takes encoders")
        given = next((name for name, value in more.items() if value is not None), None)
        if given is not None:
            raise UserError(f"{given}: is the model's own; give it to mt.load_model")
    else:
        chosen = task or _task_of(model)
        origin = Origin(str(model), chosen, backbone or found_in(model), ())
    config = _config(origin, parse_overrides(overrides), data=data, subset=subset, device=device)
    with console() if progress else nullcontext(), loader_failures():
        fabric = make_fabric(config.device, config.train.precision)
        check_eval_precision(fabric, config)
        job = make_task(config)
        found = job.build_model(first_on_each_node(fabric, job.build_encoder))
        if isinstance(model, nn.Module):
            _take_weights(found, model)
        fabric.to_device(found.eval())
        with eval_precision(fabric, config):
            return job.evaluate(found, fabric, progress).metrics


def _config(
    origin: Origin,
    overrides: Sequence[tuple[str, object]] = (),
    *,
    data: str | Path | None = None,
    subset: int | None = None,
    device: str | None = None,
) -> RunConfig:
    pairs = dict([*origin.overrides, *overrides])
    config = resolve_config(
        origin.task,
        origin.backbone,
        protocol=PROTOCOL,
        checkpoint=origin.path,
        data=data,
        subset=subset,
        device=device,
        overrides=pairs,
    )
    refuse_unread([(config, pairs)])
    return config


def _task_of(path: str | Path) -> str:
    file = files.find(path)
    state, _ = unwrap(files.read(file), str(file))
    for task, parts in _PARTS.items():
        if any(name.startswith(parts) for name in state):
            return task
    outputs = {len(state[name]) for name in _CLASSIFIERS if name in state and state[name].ndim}
    return "imagenet" if outputs == {1000} else "folder"


def _take_weights(found: nn.Module, model: nn.Module) -> None:
    try:
        found.load_state_dict(model.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the model has other weights than its file ({reason}); load it anew") from None
