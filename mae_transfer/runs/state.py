"""What of a planned run is there already."""

from typing import Literal

from mae_transfer.run_folder.folder import check_begun, check_free, check_same_recipe
from mae_transfer.runs.plan import Run

State = Literal["new", "stopped", "done"]
Resume = bool | Literal["auto"]
"""True: go on with what is there. `auto`: also start where there is nothing, and pass over a run that is done, so that
one command serves for a start and for every restart."""


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
        return "new"
    check_same_recipe(run.path, run.config)
    return "done" if (run.path / "record.json").exists() and not eval_only else "stopped"
