"""A mutation campaign: damaged and odd inputs through the public readers and commands, each outcome classified.

    python tests/fuzz/campaign.py                       # the whole campaign, `make fuzz`
    python tests/fuzz/campaign.py --families coco --share 0.1
    python tests/fuzz/campaign.py --one coco 17         # input 17 of a family again, with its traceback

Input i of a family is a function of its name and i alone. Inputs run in child processes: one that dies is a death, one
that says nothing for 60 seconds a hang; the campaign then goes on behind the input.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

FAMILIES = {
    "checkpoints": 900,
    "coco": 800,
    "coco_meaning": 400,
    "images": 1200,
    "odd_images": 400,
    "masks": 400,
    "configs": 700,
    "suites": 300,
    "records": 400,
    "shards": 400,
    "lists": 500,
    "tokenizers": 300,
    "results": 300,
    "folders": 200,
    "containers": 200,
    "forms": 200,
}
"""Family, a module beside this one -> inputs of the whole campaign."""
OUTCOMES = ("right", "refused", "unseen", "traceback", "death", "hang", "wrong")
FAULTS = OUTCOMES[3:]
SILENCE = 60.0
"""Seconds without a word that are a hang."""
BROKEN = 70
"""Exit code of a child whose family could not make an input."""
MEMORY = 6 << 30
"""Bytes of address space beyond those at the start that an input may take."""


class Wrong(Exception):
    """The value that was read is wrong, and the file says so."""


class Trial(NamedTuple):
    """One mutated input."""

    what: str
    read: Callable[[], Any]
    """Through the public reader; UserError is a refusal."""
    judge: Callable[[Any], str | None]
    """None if what was read is right, the name of a kind that no reader can see, or raises Wrong."""


class Outcome(NamedTuple):
    number: int
    kind: str
    """One of OUTCOMES."""
    what: str
    detail: str


def command(main: Callable[[list[str]], int], arguments: list[str]) -> tuple[str, str]:
    """Output and errors of a command that ends with 0. UserError with its error line if it ends with 2."""
    import io

    from mae_transfer.errors import UserError

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:  # argparse
            code = stop.code
            err.write("error: ")
    if code == 2:
        lines = [line for line in err.getvalue().splitlines() if "error: " in line]
        raise UserError(lines[-1] if lines else out.getvalue().splitlines()[0])
    if code != 0:
        raise RuntimeError(f"exit code {code}: {err.getvalue()[-300:]}")
    return out.getvalue(), err.getvalue()


def attempt(trial: Trial, number: int) -> Outcome:
    """Run one input in this process."""
    from mae_transfer.errors import UserError

    try:
        unseen = trial.judge(trial.read())
        return Outcome(number, "unseen" if unseen else "right", trial.what, unseen or "")
    except UserError as error:
        message = str(error)
        if not message.strip() or "\n" in message.strip():
            return Outcome(number, "traceback", trial.what, f"not one line: {message[:300]!r}")
        return Outcome(number, "refused", trial.what, message[:300])
    except Wrong as error:
        return Outcome(number, "wrong", trial.what, str(error)[:300])
    except BaseException as error:  # noqa: BLE001 whatever a reader raises is the finding
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "mae_transfer/" in f.filename]
        place = f"{frames[-1].filename.rpartition('mae_transfer/')[2]}:{frames[-1].lineno}" if frames else "?"
        return Outcome(number, "traceback", trial.what, f"{place}: {type(error).__name__}: {str(error)[:200]}")


def child(name: str, start: int, stop: int, pipe: int) -> None:
    """Write the number of each input, then its outcome, a JSON line each, to the pipe."""
    report, errors, silent = os.fdopen(pipe, "w"), os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
            (Path(folder) / "work").mkdir()
            family = importlib.import_module(name).Family(Path(folder) / "work")
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            for number in range(start, stop):
                print(number, file=report, flush=True)
                trial = family.trial(random.Random(f"{name} {number}"))
                print(json.dumps(attempt(trial, number)), file=report, flush=True)
        except Exception:  # noqa: BLE001 a fault of the campaign, not of a reader
            os.write(errors, traceback.format_exc().encode())
            os._exit(BROKEN)


@dataclass
class Batch:
    """A child process that takes the inputs `start` to `stop` of a family."""

    name: str
    start: int
    stop: int
    pid: int = 0
    pipe: int = 0
    left: bytes = b""
    begun: int | None = None
    """The input that it is at."""
    done: bool = False
    hangs: bool = False
    heard: float = field(default_factory=time.monotonic)

    def fork(self) -> None:
        self.pipe, writer = os.pipe()
        self.heard = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.pipe)
                child(self.name, self.start, self.stop, writer)
            finally:
                os._exit(0)
        os.close(writer)

    def hear(self) -> tuple[list[Outcome], bool]:
        """New outcomes, and whether the child has ended."""
        piece = os.read(self.pipe, 1 << 16)
        self.heard = time.monotonic()
        *lines, self.left = (self.left + piece).split(b"\n")
        outcomes = []
        for line in lines:
            if line.startswith(b"["):
                outcomes.append(Outcome(*json.loads(line)))
                self.done = outcomes[-1].number == self.stop - 1
            else:
                self.begun = int(line)
        return outcomes, not piece

    def end(self) -> Outcome | None:
        """The outcome that a child left out; None if it did all its inputs."""
        os.close(self.pipe)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if status == BROKEN or (self.begun is None and not self.done):
            raise RuntimeError(f"family {self.name} fails by itself, at input {self.begun}")
        if self.done:
            return None
        assert self.begun is not None
        return Outcome(self.begun, "hang" if self.hangs else "death", f"input {self.begun}", f"exit code {status}")


def run(families: dict[str, int], jobs: int, piece: int = 200) -> dict[str, list[Outcome]]:
    """Outcomes by family, in the order of their inputs. Children are forked from this process, which has all code."""
    import torch

    torch.set_num_threads(1)
    for name in families:
        importlib.import_module(name)
    waiting = [
        Batch(name, at, min(at + piece, count)) for name, count in families.items() for at in range(0, count, piece)
    ]
    running: dict[int, Batch] = {}
    found: dict[str, list[Outcome]] = {name: [] for name in families}
    while waiting or running:
        while waiting and len(running) < jobs:
            batch = waiting.pop(0)
            batch.fork()
            running[batch.pipe] = batch
        for pipe in select.select(list(running), [], [], 1.0)[0]:
            batch = running[pipe]
            outcomes, ended = batch.hear()
            found[batch.name] += outcomes
            if ended:
                del running[pipe]
                last = batch.end()
                if last is not None:
                    found[batch.name].append(last)
                    waiting += [Batch(batch.name, last.number + 1, batch.stop)] if last.number + 1 < batch.stop else []
        for batch in running.values():
            if time.monotonic() - batch.heard > SILENCE and not batch.hangs:
                batch.hangs = True
                os.kill(batch.pid, signal.SIGKILL)
    return {name: sorted(outcomes) for name, outcomes in found.items()}


def table(found: dict[str, list[Outcome]]) -> str:
    """Markdown: counts by family and outcome, then what no reader can see."""
    lines = [f"| family | inputs | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * (len(OUTCOMES) + 1)]
    totals: Counter[str] = Counter()
    for name, outcomes in found.items():
        counts = Counter(outcome.kind for outcome in outcomes)
        totals += counts
        lines.append(f"| {name} | {len(outcomes)} | {' | '.join(str(counts[kind]) for kind in OUTCOMES)} |")
    lines.append(f"| all | {totals.total()} | {' | '.join(str(totals[kind]) for kind in OUTCOMES)} |")
    lines += ["", "| what no reader can see | inputs |", "|---|---:|"]
    unseen = Counter(o.detail for outcomes in found.values() for o in outcomes if o.kind == "unseen")
    lines += [f"| {name} | {count} |" for name, count in sorted(unseen.items(), key=lambda item: (-item[1], item[0]))]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The mutation campaign; exit code 1 if it finds a fault.")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--share", type=float, default=1.0, help="of the inputs of each family")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="child processes at a time")
    parser.add_argument("--log", type=Path, help="write every outcome here, a JSON line each")
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "NUMBER"), help="one input again, its traceback shown")
    args = parser.parse_args(argv)
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
            (Path(folder) / "work").mkdir()
            family = importlib.import_module(args.one[0]).Family(Path(folder) / "work")
            trial = family.trial(random.Random(" ".join(args.one)))
            print(trial.what)
            print(trial.judge(trial.read()))
        return 0
    began = time.monotonic()
    found = run({name: max(1, round(FAMILIES[name] * args.share)) for name in args.families}, args.jobs)
    if args.log:
        args.log.write_text("".join(json.dumps([k, *o]) + "\n" for k, outcomes in found.items() for o in outcomes))
    faults = [(name, o) for name, outcomes in found.items() for o in outcomes if o.kind in FAULTS]
    for name, outcome in faults:
        print(f"{outcome.kind}: {name} {outcome.number}, {outcome.what}: {outcome.detail}")
    print(table(found))
    print(
        f"\n{time.monotonic() - began:.0f} s, {args.jobs} processes, Python {platform.python_version()}",
        file=sys.stderr,
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(importlib.import_module("campaign").main())  # the module that the families import
