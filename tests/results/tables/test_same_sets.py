"""Numbers on sets that only share their name."""

from typing import Any

from mae_transfer.results.tables.same_sets import same_sets


def record(run: str, sets: dict[str, str]) -> Any:
    metrics = {"top1": 50.0, "imagenet_a_top1": 10.0, "imagenet_c_mCE": 70.0}
    return {"run_id": run, "task": "imagenet", "data": {"fingerprint": "0", "robustness": sets}, "metrics": metrics}


def test_a_set_of_other_images_is_left_out_and_said() -> None:
    runs = [record("a", {"imagenet_a": "1", "imagenet_c": "3"}), record("b", {"imagenet_a": "2", "imagenet_c": "3"})]
    old = record("c", {})
    del old["data"]["robustness"]
    warnings: list[str] = []
    kept = same_sets([*runs, old], warnings)
    assert warnings == ["b: its imagenet_a has other images than that of a; left out"]
    assert [sorted(each["metrics"]) for each in kept] == [
        ["imagenet_a_top1", "imagenet_c_mCE", "top1"],
        ["imagenet_c_mCE", "top1"],
        ["imagenet_a_top1", "imagenet_c_mCE", "top1"],
    ]
    assert runs[1]["metrics"]["imagenet_a_top1"] == 10.0, "the record itself is as it was"


def test_the_set_of_most_runs_counts() -> None:
    """A first run on a folder that was corrected later does not put out the others; of two and two the earlier stay."""
    corrected = [record(run, {"imagenet_a": "2"}) for run in "bc"]
    warnings: list[str] = []
    kept = same_sets([record("a", {"imagenet_a": "1"}), *corrected], warnings)
    assert warnings == ["a: its imagenet_a has other images than that of b; left out"]
    assert ["imagenet_a_top1" in each["metrics"] for each in kept] == [False, True, True]
    kept = same_sets([*(record(run, {"imagenet_a": "1"}) for run in "ad"), *corrected], [])
    assert ["imagenet_a_top1" in each["metrics"] for each in kept] == [True, True, False, False]
