"""Results of single images: files that agree with their record's hash and hold something else."""

import contextlib
import hashlib
import io

import numpy as np
import pytest

from mae_transfer.errors import UserError
from mae_transfer.run_folder.per_image import FILE, read_per_image

IDS = np.array([b"a", b"b", b"c"])
COUNTS = {
    "ids": IDS,
    "image": np.array([0, 1, 2], np.int32),
    "label": np.array([0, 1, 1], np.int32),
    "intersection": np.array([1, 2, 3]),
    "union": np.array([4, 5, 6]),
}


def written(folder, arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return entry(folder, buffer.getvalue())


def entry(folder, content):
    (folder / FILE).write_bytes(content)
    return {"file": FILE, "sha256": hashlib.sha256(content).hexdigest(), "images": 3}


@pytest.mark.parametrize("arrays", [{"ids": IDS, "correct": np.ones(3, bool)}, COUNTS])
def test_right_arrays_are_read(tmp_path, arrays):
    found = read_per_image(tmp_path, written(tmp_path, arrays))
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


ODD = {
    "nothing": {},
    "no ids": {"correct": np.ones(3, bool)},
    "one id": {"ids": np.array(b"a"), "correct": np.ones(3, bool)},
    "ids that are numbers": {"ids": np.arange(3), "correct": np.ones(3, bool)},
    "fewer ids": {"ids": IDS[:2], "correct": np.ones(3, bool)},
    "text": {"ids": IDS, "correct": np.array(["x", "y", "z"])},
    "floats": {"ids": IDS, "correct": np.ones(3)},
    "a table": {"ids": IDS, "correct": np.ones((3, 3), bool)},
    "one truth": {"ids": IDS, "correct": np.array(True)},
    "no unions": {name: array for name, array in COUNTS.items() if name != "union"},
    "counts of another length": COUNTS | {"union": np.array([4, 5])},
    "counts below 0": COUNTS | {"intersection": np.array([-1, 2, 3])},
    "counts above their union": COUNTS | {"intersection": np.array([9, 2, 3])},
    "a row beyond the images": COUNTS | {"image": np.array([0, 1, 3])},
    "a label that no mask has": COUNTS | {"label": np.array([0, 1, 2**40])},
    "fractions": COUNTS | {"union": np.array([4.5, 5, 6])},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_arrays_are_one_line(tmp_path, name):
    with pytest.raises(UserError, match=r"per_image\.npz is no file of per-image results") as caught:
        read_per_image(tmp_path, written(tmp_path, ODD[name]))
    assert "\n" not in str(caught.value)


def test_damaged_content_is_one_line(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, ids=np.repeat(IDS, 100), correct=np.random.default_rng(0).random(300) < 0.5)
    whole = buffer.getvalue()
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        with contextlib.suppress(UserError):
            read_per_image(tmp_path, entry(tmp_path, bytes(damaged)))
