"""Time the identity of a large image set (`mae_transfer/data/identity.py`): the first start, and a later one.

    python benchmarks/identity.py                      # ImageNet's 1,331,167 files in 1,000 folders, 1 KB each
    python benchmarks/identity.py --files 100000 --bytes 110000 --folder /data/scratch

The files are made in `--folder` and removed at the end. They are smaller than ImageNet's of 110 KB, 1.3 million of
which do not fit everywhere: the contents of a fixed number of files are read, 5,000.

Measured for 1,331,167 files on two cores under a load average of about nine: first start 11.7 s, later start 3.9 s.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from mae_transfer.data.identity import HASHED, identify
from mae_transfer.data.names import Names


def make(root: Path, files: int, size: int, folders: int = 1000) -> list[str]:
    content, names = os.urandom(size), []
    for i in range(files):
        name = f"n{i % folders:08d}/n{i % folders:08d}_{i:08d}.JPEG"
        if i < folders:
            (root / name).parent.mkdir()
        (root / name).write_bytes(content)
        names.append(name)
    return sorted(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_331_167)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--folder", help="where the files are made; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder, "images")
        root.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        names = Names(make(root, options.files, options.bytes))
        labels = np.arange(len(names)) % 1000
        time.sleep(3)  # files of this moment are not remembered
        found = set()
        print(f"{len(names)} files of {options.bytes} bytes, the contents of {min(HASHED, len(names))} are read")
        for title in ("first start", "later start"):
            started, cpu = time.perf_counter(), time.process_time()
            found.add(identify(root, names, labels))
            print(f"{title}: {time.perf_counter() - started:.2f} s, {time.process_time() - cpu:.2f} s of a core")
        assert len(found) == 1


if __name__ == "__main__":
    main()
