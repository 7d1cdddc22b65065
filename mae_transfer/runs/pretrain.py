"""One pre-training, from options to a run record and checkpoints that transfer: a run of `transfer.py` whose task makes
its own encoder."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mae_transfer.config.load import load_config
from mae_transfer.engine.distributed import make_fabric, shut_down
from mae_transfer.engine.progress import console
from mae_transfer.pretrain.config import PretrainConfig
from mae_transfer.pretrain.task import PretrainTask
from mae_transfer.runs.run import default_output, run_task


def run_pretrain(
    method: str,
    backbone: str,
    *,
    data: str | Path | None = None,
    tokenizer: str | Path | None = None,
    preset: str = "full",
    subset: int | None = None,
    seed: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    eval_only: bool = False,
    device: str | None = None,
    overrides: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Pre-train one encoder; the same as `tools/run_pretrain.py` with the options of these names.

    Args:
        method: mae, beit, supervised, or dvae (which trains a tokenizer).
        backbone: vit_ti, vit_s, vit_b, vit_l or vit_h, with `_p8` and the like for another patch.
        tokenizer: kmeans, or a tokenizer's file or run folder, for a method that predicts tokens.
        overrides: `key=value` strings for any field of the configuration.

    Returns:
        The run record, which is also written to `<output>/record.json`. The run folder is what transfer takes as
        checkpoint.

    Raises:
        UserError, StoppedBySignal, DivergedError: as `run_transfer`.
    """
    config = resolve_pretrain(
        method,
        backbone,
        data=data,
        tokenizer=tokenizer,
        preset=preset,
        subset=subset,
        seed=seed,
        device=device,
        overrides=overrides,
    )
    path = Path(output) if output is not None else default_output(config)
    fabric = make_fabric(config.device, config.train.precision)
    with console() if progress else nullcontext():
        record = run_task(
            fabric,
            PretrainTask(config),
            path,
            resume=resume,
            eval_only=eval_only,
            progress=progress,
            make_encoder=lambda _, task: task.build_encoder(),  # type: ignore[attr-defined]
        )
    shut_down()
    return record


def resolve_pretrain(
    method: str,
    backbone: str,
    *,
    data: str | Path | None = None,
    tokenizer: str | Path | None = None,
    preset: str = "full",
    subset: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> PretrainConfig:
    """The configuration that `run_pretrain` resolves from the same options."""
    if data is None and preset == "smoke" and not any(text.startswith("data.root=") for text in overrides):
        data = "synthetic"
    options = {
        "data.root": None if data is None else str(data),
        "tokenizer.kind": None if tokenizer is None else str(tokenizer),
        "subset": subset,
        "seed": seed,
        "device": device,
    }
    config = load_config("pretrain", backbone, protocol=method, preset=preset, options=options, overrides=overrides)
    assert isinstance(config, PretrainConfig)
    return config
