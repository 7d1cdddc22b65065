"""What of a planned run is there already."""

from typing import Literal

from mae_transfer.config.overrides import flatten
from mae_transfer.config.roles import Role, keys
from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError
from mae_transfer.run_folder.folder import check_begun, check_free, check_same_recipe, default_of, is_free
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.runs.plan import Run

State = Literal["new", "stopped", "done"]
Resume = bool | Literal["auto"]
"""True: go on with what is there. `auto`: also start where there is nothing, and pass over a run that is done, so that
one command serves for a start and for every restart."""


def check_one_of(resume: Resume, eval_only: bool) -> None:
    """UserError for both: an evaluation begins anew whenever it is asked for, so there is nothing to go on with."""
    if resume and eval_only:
        raise UserError(
            "--resume and --eval-only: give one of them; --resume goes on with a training, --eval-only evaluates again "
            "what it left, from the start"
        )


def state_of(run: Run, *, resume: Resume, eval_only: bool = False) -> State:
    """The state of a run; UserError if its folder does not allow what is asked.

    Args:
        resume: go on with what is there; without it the folder has to be free.
        eval_only: evaluate again what has been trained.
    """
    if not resume and not eval_only:
        check_free(run.path)
        return "new"
    if eval_only:
        check_begun(run.path)
    if not (run.path / "config.yaml").exists():
        if not is_free(run.path):
            raise UserError(
                f"{run.path} has parts of a run but no config.yaml; restore that file, or give another --output"
            )
        return "new"
    if resume == "auto" and is_free(run.path):  # it was refused, or stopped before its first step
        return "new"
    check_same_recipe(run.path, run.config)
    return "done" if (run.path / "record.json").exists() and not eval_only else "stopped"


def evaluated_otherwise(config: RunConfig, record: RunRecord) -> str:
    """'eval.images 100 -> None, ...': how the evaluation of a finished run differs from what is asked for; empty if it
    does not."""
    before, now = record["settings"], flatten(config.model_dump(mode="json"))
    pairs = [
        (key, before[key] if key in before else default_of(type(config), key), now[key])
        for key in sorted(keys(type(config), Role.EVALUATION))
    ]
    return ", ".join(f"{key} {old} -> {new}" for key, old, new in pairs if old != new)
