"""A state dict into a module whose own names it has: all of it, or a UserError that names what does not fit."""

from torch import Tensor, nn

from mae_transfer.backbones.checkpoints.audit import NAMED, refusal, shown
from mae_transfer.backbones.checkpoints.state_dict import unwrap


def load_exactly(module: nn.Module, state: dict[str, Tensor], source: str, what: str) -> None:
    """Load `state`, from which wrapper prefixes are off; `source` names the file and `what` the module in messages."""
    wanted = module.state_dict()
    names = dict(zip(unwrap(wanted, what)[0], wanted, strict=True))  # without the prefixes that unwrap takes
    problems = [f"missing {names[name]}" for name in names if name not in state]
    for name, x in state.items():
        if name not in names:
            problems.append(f"unexpected {shown(name)}")
        elif x.shape != wanted[names[name]].shape:
            problems.append(f"{names[name]} is {tuple(x.shape)}, not {tuple(wanted[names[name]].shape)}")
        elif x.is_floating_point() and not x.isfinite().all():
            problems.append(f"{names[name]} holds NaN or infinite values")
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise refusal(source, f"does not fit {what} ({', '.join(problems[:NAMED])}{more})")
    module.load_state_dict({names[name]: x for name, x in state.items()})


def part_of_run(state: dict[str, Tensor], part: str, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The encoder's part of a run's state dict, whose names start with `part`, and what was left out with the reason; a
    state dict that has no such names as it is."""
    if not any(name.startswith(part) for name in state):
        return state, {}
    ignored = {name: "another part of the task's model" for name in state if not name.startswith(part)}
    return unwrap({name.removeprefix(part): x for name, x in state.items() if name.startswith(part)}, source)[
        0
    ], ignored
