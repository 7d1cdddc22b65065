"""The Python call that makes a suite, with the options of the command line."""

from collections.abc import Mapping
from pathlib import Path

from mae_transfer.config.overrides import Overrides, override_texts
from mae_transfer.errors import EXIT_FAILED, EXIT_STOPPED, RunsFailed, StoppedBySignal
from mae_transfer.files import user_path
from mae_transfer.run_folder.record import read_record
from mae_transfer.run_folder.schema import RunRecord
from mae_transfer.suites.launcher import Options, check_counts, gpus_of, launcher_card
from mae_transfer.suites.plan import check_runs, plan_suite
from mae_transfer.suites.runner import Runner
from mae_transfer.suites.state import FOLDER


def run_suite(
    suite: str | Path,
    *,
    data: Mapping[str, str | Path] | None = None,
    checkpoints: Mapping[str, str | Path] | None = None,
    output: str | Path | None = None,
    preset: str | None = None,
    overrides: Overrides = (),
    retry: bool = False,
    launcher: str = "local",
    jobs: int | None = None,
    gpus: int | None = None,
    nodes: int = 1,
    slurm_partition: str | None = None,
    slurm_minutes: int = 1440,
    slurm: Mapping[str, object] | None = None,
) -> list[RunRecord]:
    """Make all runs of a suite that are not done yet; the same as `mae-transfer suite` with the options of these names.

    Each run is a process of its own. Standard error says which run starts and how it ends. The same call goes on after
    a stop, and returns at once when all is done.

    Args:
        suite: the YAML file (docs/suites.md).
        data: name of a data set in the suite -> its folder.
        checkpoints: label of a backbone in the suite -> its weights file.
        output: folder of the runs, default results/runs/<name of the suite>.
        preset: full, mini or smoke, where an entry of the suite names none.
        overrides: of every run: `key=value` strings, or a mapping, nested or with dotted keys.
        retry: also make the runs again that failed before.
        launcher: `local` (this machine), `slurm`, or a registered one.
        jobs: runs at a time, default one for each GPU, 1 on a CPU, all on SLURM.
        gpus: GPUs of each run on each node, default 1, or 0 where there are none.
        nodes: nodes of each run, with SLURM.
        slurm_partition, slurm_minutes: of the jobs; the time limit is in minutes.
        slurm: any other option of submitit's `update_parameters`.

    Returns:
        The records of all runs, in the order of the suite, with the key `folder`.

    Raises:
        UserError: a bad suite or input; nothing was started.
        RunsFailed: some runs failed; the others are done, and `find_records` finds them.
        StoppedBySignal: the runs were stopped after saving.
    """
    check_counts(jobs=jobs, gpus=gpus, nodes=nodes, slurm_minutes=slurm_minutes)
    card, path = launcher_card(launcher), user_path(suite)
    folder, runs = plan_suite(
        path,
        output=None if output is None else user_path(output),
        data={name: str(place) for name, place in (data or {}).items()},
        checkpoints={label: str(file) for label, file in (checkpoints or {}).items()},
        preset=preset,
        overrides=override_texts(overrides),
    )
    gpus, visible = gpus_of(card, runs, gpus)
    check_runs([run for run in runs if not run.place.record.exists()], max(1, gpus) * nodes)
    options = Options(
        name=path.stem,
        folder=folder / FOLDER,
        jobs=jobs,
        gpus=gpus,
        nodes=nodes,
        minutes=slurm_minutes,
        partition=slurm_partition,
        visible=visible,
        slurm=slurm,
    )
    code = Runner(runs, card.make(options), retry=retry).run()
    if code == EXIT_FAILED:
        failed = [run for run in runs if run.place.state() == "failed"]
        raise RunsFailed("\n".join(f"{run.title}: {run.place.reason()} ({run.place.log})" for run in failed))
    if code == EXIT_STOPPED:
        raise StoppedBySignal("the suite was stopped; the same call goes on from the newest checkpoints")
    records = []
    for run in runs:
        record = read_record(run.place.record)
        record["folder"] = str(run.place.path)
        records.append(record)
    return records
