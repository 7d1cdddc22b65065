"""The Python calls that make one run, with the options of the command line."""

from contextlib import nullcontext
from pathlib import Path

from torch import nn

from mae_transfer.backbones.plugins import register_module
from mae_transfer.config.overrides import Overrides, parse_overrides
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.distributed import on_rank_zero, shut_down
from mae_transfer.engine.progress import console
from mae_transfer.files import user_path
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.names import check_output, default_output
from mae_transfer.runs.plan import Run
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.series import fabric_key, make_fabrics, make_runs
from mae_transfer.runs.state import Resume, State, check_one_of, state_of
from mae_transfer.runs.tasks import check_transfers
from mae_transfer.runs.unread import refuse_unread


def run_transfer(
    task: str,
    backbone: str | nn.Module,
    *,
    protocol: str | None = None,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    data: str | Path | None = None,
    preset: str = "full",
    subset: int | None = None,
    seed: int | None = None,
    output: str | Path | None = None,
    resume: Resume = False,
    eval_only: bool = False,
    engine: str | None = None,
    device: str | None = None,
    allow_unread: bool = False,
    overrides: Overrides = (),
    progress: bool = False,
) -> RunRecord:
    """Train and evaluate one backbone on one task; the same as `mae-transfer transfer` with the options of these names.

    Args:
        backbone: a name, or a module of one's own (docs/extending/encoder.md), of which the run trains a copy.
        resume: True goes on with the run in `output`; "auto" also starts it, or reads its record if it is done.
        allow_unread: take overrides without effect too, such as `probe.k=5` in fine-tuning.
        overrides: for any field of the configuration: `key=value` strings, or a mapping such as
            {"optim.lr": 4e-5} or {"optim": {"lr": 4e-5}}.
        progress: show progress on standard error.

    Returns:
        The run record, which is also written to `<output>/record.json`; `record["metrics"]` is a flat map.

    Raises:
        UserError: bad input, with one line that says what, where and what to do.
        StoppedBySignal: after SIGTERM or SIGUSR1, with a checkpoint saved.
        DivergedError: a loss or gradient was not finite.
    """
    check_transfers(task)
    config = resolve_config(
        task,
        backbone if isinstance(backbone, str) else register_module(backbone),
        protocol=protocol,
        checkpoint=checkpoint,
        weights=weights,
        data=data,
        preset=preset,
        subset=subset,
        seed=seed,
        engine=engine,
        device=device,
        overrides=overrides,
    )
    if not allow_unread:
        refuse_unread([(config, [key for key, _ in parse_overrides(overrides)])])
    return _run(config, output, resume=resume, eval_only=eval_only, progress=progress)


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
    resume: Resume = False,
    eval_only: bool = False,
    device: str | None = None,
    allow_unread: bool = False,
    overrides: Overrides = (),
    progress: bool = False,
) -> RunRecord:
    """Pre-train one encoder; the same as `mae-transfer pretrain` with the options of these names.

    Args:
        method: mae, beit, supervised, mocov3, or dvae (which trains a tokenizer).
        backbone: vit_ti, vit_s, vit_b, vit_l or vit_h, with `_p8` and the like for another patch.
        tokenizer: kmeans, or a tokenizer's file or run folder, for a method that predicts tokens.
        resume: as of `run_transfer`.
        allow_unread: take overrides without effect too.
        overrides: for any field of the configuration: `key=value` strings, or a mapping.

    Returns:
        The run record, which is also written to `<output>/record.json`. The run folder is what transfer takes as
        checkpoint.

    Raises:
        UserError, StoppedBySignal, DivergedError: as `run_transfer`.
    """
    config = resolve_config(
        "pretrain",
        backbone,
        protocol=method,
        data=data,
        tokenizer=tokenizer,
        preset=preset,
        subset=subset,
        seed=seed,
        device=device,
        overrides=overrides,
    )
    if not allow_unread:
        refuse_unread([(config, [key for key, _ in parse_overrides(overrides)])])
    return _run(config, output, resume=resume, eval_only=eval_only, progress=progress)


def _run(config: RunConfig, output: str | Path | None, *, resume: Resume, eval_only: bool, progress: bool) -> RunRecord:
    check_one_of(resume, eval_only)
    check_output(output, config)
    run = Run(config, user_path(output) if output is not None else default_output(config))
    fabrics = make_fabrics([run])
    with console() if progress else nullcontext():
        state: State = "stopped" if resume else "new"
        if resume == "auto":
            state = on_rank_zero(fabrics[fabric_key(config)], lambda: state_of(run, resume=resume, eval_only=eval_only))
        (record,) = make_runs([run], [state], fabrics, eval_only=eval_only, progress=progress)
    assert record is not None, "a run that diverges raises"
    shut_down()
    return record
