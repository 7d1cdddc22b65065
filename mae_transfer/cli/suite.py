"""`mae-transfer suite`: all runs of a suite file.

Exit codes: 0 all runs are done, 1 some failed (the matrix lists them with their logs), 2 bad suite or input (nothing is
started), 3 stopped by a signal after saving.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mae_transfer.cli.exit import exit_code, new_parser
from mae_transfer.config.overrides import parse_override
from mae_transfer.errors import EXIT_DONE, UserError
from mae_transfer.files import user_path
from mae_transfer.suites.launcher import LAUNCHERS, Launcher, Options, check_counts, gpus_of, launcher_card

EXAMPLES = """\
examples:
  what would be run, how long it takes, with which commands; then do it, two runs at a time:
    mae-transfer suite configs/suites/transfer_study.yaml --data tiny_imagenet=/data/tiny_imagenet \\
        persons=/data/persons camvid=/data/camvid flowers=/data/flowers --dry-run
    mae-transfer suite configs/suites/transfer_study.yaml --data ... --jobs 2
  how far is it; go on after a stop (the same command); make again what failed:
    mae-transfer suite configs/suites/transfer_study.yaml --data ... --status
    mae-transfer suite configs/suites/transfer_study.yaml --data ... --retry
  the paper's comparison, each run on 8 GPUs of this machine; or as job arrays of SLURM, 4 at a time:
    mae-transfer suite configs/suites/mae_vs_baselines.yaml --data imagenet=/data/imagenet ... --gpus 8
    mae-transfer suite configs/suites/mae_vs_baselines.yaml --data ... --launcher slurm --gpus 8 --jobs 4 \\
        --slurm-partition gpu --slurm-minutes 1440 --slurm cpus_per_task=10 slurm_account=me
  does all of it work, on generated images with random weights:
    mae-transfer suite configs/suites/mae_vs_baselines.yaml --preset smoke --output results/runs/try --dry-run
"""


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser(
        "suite",
        "Make all runs of a suite that are not done yet: pre-trainings, then transfers to every task.",
        EXAMPLES,
    )
    parser.add_argument("suite", type=user_path, help="YAML file; examples: configs/suites/, keys: docs/suites.md")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="folders of the suite's data sets")
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="LABEL=PATH", help="weights files of the suite's backbones"
    )
    parser.add_argument("--output", type=user_path, help="folder of the runs; default: results/runs/<suite's name>")
    parser.add_argument("--preset", help="full, mini or smoke, where an entry of the suite names none")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every run")
    parser.add_argument("--retry", action="store_true", help="also make the runs again that failed")
    parser.add_argument("--dry-run", action="store_true", help="check all, print the matrix and the commands, and exit")
    parser.add_argument("--status", action="store_true", help="print the matrix of what is there, and exit")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="make a few steps of each kind of run whose time is unknown, print the matrix, and exit",
    )
    parser.add_argument(
        "--launcher",
        choices=[card.name for card in LAUNCHERS],
        default=LAUNCHERS[0].name,
        help="; ".join(f"{card.name}: {card.about}" for card in LAUNCHERS),
    )
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one for each GPU, 1 on a CPU, all on SLURM")
    parser.add_argument(
        "--gpus", type=int, help="GPUs of each run, on each node; default: 1, or 0 where there are none"
    )
    parser.add_argument("--nodes", type=int, default=1, help="nodes of each run, with SLURM; default: 1")
    parser.add_argument("--slurm-partition", help="partition of the jobs")
    parser.add_argument("--slurm-minutes", type=int, default=1440, help="time limit of a job; default: 1440")
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="any other option of submitit's update_parameters"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(build_parser().parse_args(argv)), after_ctrl_c="the same command goes on")


def run(args: argparse.Namespace) -> int:
    check_counts(jobs=args.jobs, gpus=args.gpus, nodes=args.nodes, slurm_minutes=args.slurm_minutes)
    data, checkpoints = pairs(args.data, "--data"), pairs(args.checkpoint, "--checkpoint")
    slurm = dict(parse_override(f"{name}={value}") for name, value in pairs(args.slurm, "--slurm").items())
    from mae_transfer.runs.names import RUNS
    from mae_transfer.suites.estimate import Estimator
    from mae_transfer.suites.matrix import show_matrix
    from mae_transfer.suites.plan import check_runs, plan_suite
    from mae_transfer.suites.searches import search_tables

    output, runs = plan_suite(
        args.suite, output=args.output, data=data, checkpoints=checkpoints, preset=args.preset, overrides=args.set
    )
    estimator = Estimator(dict.fromkeys([output, RUNS]), runs)

    def matrix() -> str:
        states = {run: run.place.seen_state() for run in runs}
        left = [run for run in runs if states[run] != "done"]
        estimates = {run: estimator.estimate(run, steps.get(run.place.path)) for run in left}
        return "\n\n".join([show_matrix(runs, states, estimates), *search_tables(runs)])

    if args.status:
        steps = {run.place.path: run.config.schedule.steps for run in runs}
        print(matrix())
        return EXIT_DONE
    card = launcher_card(args.launcher)
    gpus, visible = gpus_of(card, runs, args.gpus)
    steps = check_runs([run for run in runs if not run.place.record.exists()], max(1, gpus) * args.nodes)
    if args.dry_run:
        import shlex

        print(matrix(), end="\n\n")
        for run in runs:
            if not run.place.record.exists():
                command = run.command(max(1, gpus) if card.here else 1)
                print(f"# {run.title}\n{shlex.join(command)}")
        return EXIT_DONE
    launcher = make_launcher(args, output, gpus, visible, slurm)
    if args.measure:
        from mae_transfer.suites.measure import measure

        code = measure(runs, launcher, estimator, steps)
        print(matrix())
        return code
    print(matrix(), end="\n\n", file=sys.stderr, flush=True)
    from mae_transfer.suites.runner import Runner

    code = Runner(runs, launcher, retry=args.retry).run()
    print(matrix())
    return code


def make_launcher(
    args: argparse.Namespace, output: Path, gpus: int, visible: Sequence[str], slurm: dict[str, object]
) -> Launcher:
    """The launcher that the options ask for; UserError if it cannot be had."""
    from mae_transfer.suites.state import FOLDER

    return launcher_card(args.launcher).make(
        Options(
            name=args.suite.stem,
            folder=output / FOLDER,
            jobs=args.jobs,
            gpus=gpus,
            nodes=args.nodes,
            minutes=args.slurm_minutes,
            partition=args.slurm_partition,
            visible=visible,
            slurm=slurm,
        )
    )


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """['a=b'] -> {'a': 'b'}."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise UserError(f"{option} {text}: write NAME=VALUE")
        found[name] = value
    return found
