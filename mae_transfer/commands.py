"""The commands and their names, as the user typed them, and which of several processes of a command this is.

`mae-transfer transfer` and `python tools/run_transfer.py` are the same command. A message that names a command takes
its name from `command`, so that the user reads what works where they are.
"""

import os
import re
import sys
from pathlib import Path

TOOLS = {
    "demo": "run_demo.py",
    "transfer": "run_transfer.py",
    "pretrain": "run_pretrain.py",
    "plan": "plan_run.py",
    "suite": "run_suite.py",
    "recipe": "new_recipe.py",
    "tables": "make_tables.py",
    "report": "make_report.py",
    "plots": "make_plots.py",
    "inspect": "inspect_checkpoint.py",
    "convert": "convert_detector.py",
    "validate": "validate_results.py",
    "verify": "verify_model.py",
    "visualize": "visualize_mae.py",
}
"""Command -> its file in `tools/`."""


def typed_as_tool() -> bool:
    """Whether this process was started by a file of `tools/`."""
    return Path(sys.argv[0]).name in TOOLS.values()


def command(name: str) -> str:
    """ "mae-transfer transfer", or "python tools/run_transfer.py" where the user started such a file."""
    return f"python tools/{TOOLS[name]}" if typed_as_tool() else f"mae-transfer {name}"


def as_typed(text: str) -> str:
    """A text with "mae-transfer NAME" and "-m mae_transfer NAME" (after torchrun) in the form that the user typed."""
    if not typed_as_tool():
        return text
    text = re.sub(r"-m mae_transfer (\w+)", lambda match: f"tools/{TOOLS[match[1]]}", text)
    return re.sub(r"mae-transfer (\w+)", lambda match: command(match[1]), text)


def process_rank() -> int:
    """The number of this process among those that torchrun or srun started; 0 for one by itself."""
    of_srun = os.environ.get("SLURM_PROCID", "0") if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else "0"
    return int(os.environ.get("RANK", of_srun))
