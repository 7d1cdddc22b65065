"""Sets evaluated beside the val images, as ImageNet-A: numbers of unlike images under one name are not averaged."""

from collections.abc import Iterable

from mae_transfer.run_folder.schema import RunRecord


def same_sets(records: Iterable[RunRecord], warnings: list[str]) -> list[RunRecord]:
    """The records, without the metrics on a set that is another one than in the first record of the same data.

    warnings: gets a line for each such set of a record. Records of earlier versions do not say which sets they had.
    """
    first: dict[tuple[str, str, str], tuple[str, str]] = {}
    kept = []
    for record in records:
        data = record["data"]
        for name, fingerprint in data.get("robustness", {}).items():
            known, run = first.setdefault((record["task"], data["fingerprint"], name), (fingerprint, record["run_id"]))
            if known == fingerprint:
                continue
            warnings.append(f"{record['run_id']}: its {name} has other images than that of {run}; left out")
            metrics = {key: value for key, value in record["metrics"].items() if not key.startswith(f"{name}_")}
            record = record | {"metrics": metrics}
        kept.append(record)
    return kept
