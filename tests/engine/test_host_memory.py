"""Freed memory stays with the process: counted in page faults, in a process of its own, as the setting is for good."""

import subprocess
import sys

import pytest

from mae_transfer.engine.host_memory import keep_freed_memory

FAULTS = """
import resource, sys, torch
from mae_transfer.engine.host_memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
counts = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a = torch.ones(16, 2**20)
    b = a + 1
    del a, b
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts))
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("this C library cannot keep freed memory")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_step_reuses_the_pages_of_the_one_before() -> None:
    # 2 x 64 MiB a step; 64 is their number in huge pages
    assert faults("kept") < 64 <= faults("default")


def test_says_whether_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
