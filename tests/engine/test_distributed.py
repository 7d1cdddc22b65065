"""What ranks have to agree on."""

from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from mae_transfer.engine.distributed import from_rank_zero
from mae_transfer.errors import UserError


def test_one_rank_of_two_does_the_work(tmp_path: Path) -> None:
    """As the fingerprint of millions of files: the others get what it found, or its error."""
    mp.start_processes(_one_of_two, args=(tmp_path,), nprocs=2, start_method="fork")
    assert [path.name for path in tmp_path.glob("worked-*")] == ["worked-0"]
    assert from_rank_zero(lambda: "alone") == "alone"


def _one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def work() -> int:
        (folder / f"worked-{rank}").touch()
        return rank

    def fail() -> int:
        raise UserError(f"of rank {rank}")

    assert from_rank_zero(work) == 0
    with pytest.raises(UserError, match="of rank 0"):
        from_rank_zero(fail)
    dist.destroy_process_group()
