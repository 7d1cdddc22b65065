"""Whether a run that goes on, or is evaluated again, has the weights that it began from."""

from pathlib import Path

from mae_transfer.backbones.checkpoints.own import facts_of_run
from mae_transfer.backbones.encoder import Encoder
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import list_checkpoints, read_origin
from mae_transfer.run_folder.record import read_record

ADVICE = "give it the file that it began from, or begin a run of this one in another --output"


def check_same_weights(encoder: Encoder, path: Path) -> None:
    """Compare the weights at hand with those that the run folder knows. Nothing is compared in a folder without a run.

    A training goes on from its own checkpoint: the first weights are gone from it, but mean, std and eps are still
    those of their file. A run without checkpoints is made anew by the very weights.

    Raises:
        UserError: they differ. The file was exchanged since, or another one is named.
    """
    spec, report = encoder.spec, encoder.load_report
    origin = read_origin(path / "checkpoints")
    if origin:
        facts, _ = facts_of_run({"origin": origin})
        for part, now in (("mean", spec.mean), ("std", spec.std), ("eps", spec.eps)):
            before = facts.get(part, now)
            if before != now:
                raise UserError(
                    f"{path} is a run of an encoder with {part} {before}, and {report.source} has {now}; {ADVICE}"
                )
    elif not list_checkpoints(path / "checkpoints") and (path / "record.json").is_file():
        known = read_record(path / "record.json")["backbone"].get("fingerprint")
        if known is not None and report.fingerprint is not None and known != report.fingerprint:
            raise UserError(
                f"{path} is a run of other weights: they had the sha256 {known:.16}, those of {report.source} have "
                f"{report.fingerprint:.16}; {ADVICE}"
            )
