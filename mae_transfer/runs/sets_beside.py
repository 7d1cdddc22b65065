"""Numbers of sets beside the val images, as ImageNet-A's, when a run is evaluated again without these sets."""

from mae_transfer.run_folder.schema import RunRecord


def keep_sets(record: RunRecord, before: RunRecord) -> list[str]:
    """Take the numbers of sets that were not evaluated now over from the record that is replaced, where they are of the
    same weights and settings; a line for each set says that they stay, or go."""
    earlier = {report["key"]: report["title"] for report in before["reports"] if report["group"] == "robustness"}
    left_out = [key for key in earlier if key in before["metrics"] and key not in record["metrics"]]
    if not left_out:
        return []
    sets, lines = before["data"].get("robustness", {}), []
    same = _evaluated_as(record) == _evaluated_as(before)
    for key in left_out:
        name = next((name for name in sets if key.startswith(f"{name}_")), None)
        if not same or name is None:
            why = "the evaluation is another one" if name is not None else "an earlier version made them"
            lines.append(f"{earlier[key]}: not evaluated now, and its numbers leave the record, since {why}")
            continue
        record["metrics"] |= {k: v for k, v in before["metrics"].items() if k.startswith(f"{name}_")}
        data = record["data"]
        data["robustness"] = data.get("robustness", {}) | {name: sets[name]}
        data["skipped_files"] = sorted({*data.get("skipped_files", []), *before["data"].get("skipped_files", [])})
        lines.append(f"{earlier[key]}: not evaluated now; the record keeps its numbers")
    return lines


def _evaluated_as(record: RunRecord) -> tuple[object, ...]:
    """Equal in two records of one model, evaluated in one way."""
    return record["settings_id"], record.get("seed"), record.get("steps"), record["backbone"].get("fingerprint")
