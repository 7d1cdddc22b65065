"""Files written whole or not at all, by processes that are killed and by processes that live."""

import subprocess
import sys
from pathlib import Path

from mae_transfer.files import atomic_write

WRITER = """
import sys
from pathlib import Path
from mae_transfer.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print(flush=True)
    sys.stdin.read()
    file.write(b" and half")
"""


def test_only_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "tables.md"
    command = [sys.executable, "-c", WRITER, str(path)]
    killed, living = (subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2))
    for writer in (killed, living):
        assert writer.stdout
        assert writer.stdout.readline() == b"\n"
    killed.kill()
    killed.communicate()
    (tmp_path / ".tables.md.old").write_bytes(b"of somebody else")
    assert len(list(tmp_path.glob(".tables.md.????????"))) == 2

    with atomic_write(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert len(list(tmp_path.glob(".tables.md.????????"))) == 1
    living.communicate(b"")
    assert living.returncode == 0
    assert path.read_bytes() == b"half and half"
    assert sorted(file.name for file in tmp_path.iterdir()) == [".tables.md.old", "tables.md"]
    assert path.stat().st_mode & 0o777 == 0o644
