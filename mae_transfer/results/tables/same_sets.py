"""Sets evaluated beside the val images, as ImageNet-A: numbers of unlike images under one name are not averaged."""

from collections import defaultdict
from collections.abc import Iterable

from mae_transfer.run_folder.schema import RunRecord


def same_sets(records: Iterable[RunRecord], warnings: list[str]) -> list[RunRecord]:
    """The records, without the metrics on a set that is another one than in most records of the same data; of as many
    records, the earlier counts.

    warnings: gets a line for each such set of a record. Records of earlier versions do not say which sets they had.
    """
    records, kept = list(records), []
    runs: defaultdict[tuple[str, str, str], defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for name, fingerprint in record["data"].get("robustness", {}).items():
            runs[record["task"], record["data"]["fingerprint"], name][fingerprint].append(record["run_id"])
    for record in records:
        data = record["data"]
        for name in data.get("robustness", {}):
            common = max(runs[record["task"], data["fingerprint"], name].values(), key=len)
            if record["run_id"] in common:
                continue
            warnings.append(f"{record['run_id']}: its {name} has other images than that of {common[0]}; left out")
            metrics = {key: value for key, value in record["metrics"].items() if not key.startswith(f"{name}_")}
            record = record | {"metrics": metrics}
        kept.append(record)
    return kept
