"""A rank that fails alone ends the others, which say why."""

from pathlib import Path

import pytest
from support.engine_toy import BATCH, IMAGES, STEPS, make_config, outcome, run_ranks

from mae_transfer.engine.sampler import StreamSampler


@pytest.mark.process
@pytest.mark.parametrize("failing", [0, 1])
def test_the_others_end_with_its_line(failing: int, tmp_path: Path) -> None:
    """Its images are bad; the other rank waits for its gradients. The store is that of rank 0."""
    changes = {"train__micro_batch": 2}
    sampler = StreamSampler(
        num_images=IMAGES,
        global_batch=BATCH,
        micro_batch=2,
        seed=make_config().seed,
        rank=failing,
        world_size=2,
        start=0,
        total=STEPS,
    )
    keys = next(iter(sampler))
    bad = {index: "error" for _, index in keys}
    assert run_ranks(tmp_path / "run", 2, changes=changes, task={"bad": bad}, keep_errors=True) == [2, 2]
    told = (tmp_path / "run.rank0.err").read_text() + (tmp_path / "run.rank1.err").read_text()
    assert outcome(tmp_path / "run", failing)["error"] == "UserError"
    assert not (tmp_path / f"run.rank{1 - failing}.json").exists(), "it was ended from outside"
    assert told.count("error: rank 1: image") == failing, told
    assert "Traceback" not in told
