"""`train.compile`: losses, gradient norm and evaluation are those of a run without it."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from support.whole_runs import CASES, run

from mae_transfer.engine.distributed import make_fabric

TRAINED = [name for name, case in CASES.items() if case.step is not None and name != "dvae"]  # which has no encoder
QUICK = ("coco", "ade20k, finetune_linear", "finetune", "mae", "supervised")
"""One of each task and kind of encoder; the others, and inductor, take minutes."""
RUNS = [
    pytest.param(name, backend, marks=() if backend == "aot_eager" and name in QUICK else pytest.mark.slow)
    for backend in ("aot_eager", "inductor")
    for name in TRAINED
]


@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_losses_are_those_of_eager(name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    fabric = make_fabric("cpu", "fp32")
    eager = run(CASES[name], fabric, tmp_path / "eager", "fp32", [])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with patch("torch.compile", partial(torch.compile, backend=backend)):
        compiled = run(CASES[name], fabric, tmp_path / "compiled", "fp32", [], "train.compile=true")
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-5)
    assert compiled.metrics == pytest.approx(eager.metrics, rel=1e-4, abs=1e-5, nan_ok=True)
    frozen = name in ("linear", "linear, cached", "linear, sweep", "attentive")
    assert frozen or torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
