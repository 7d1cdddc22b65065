"""Weights files: what is read, and that nothing bad is read, run or reported in more than a line."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from mae_transfer.backbones.checkpoints import files
from mae_transfer.errors import UserError
from mae_transfer.run_folder.checkpoints import load_checkpoint, save_checkpoint

STATE = {"a": torch.arange(600.0), "b": torch.ones(3, 4, dtype=torch.float16)}


def refusal(path):
    with pytest.raises(UserError) as error:
        files.read(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def save(folder, kind):
    path = folder / f"weights.{kind}"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("name", [None, "renamed.bin"])
def test_reads_each_container_whatever_its_name(tmp_path, kind, name):
    path = save(tmp_path, kind)
    if name:
        path = path.rename(tmp_path / name)
    read = files.read(path)
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[key], STATE[key]) and read[key].dtype == STATE[key].dtype for key in STATE)


def test_a_training_checkpoint_with_its_arguments_is_read(tmp_path):
    path = tmp_path / "checkpoint-99.pth"
    torch.save({"model": STATE, "epoch": 99, "args": argparse.Namespace(lr=1e-3, model="mae_vit_base_patch16")}, path)
    read = files.read(path)
    assert read["args"].lr == 1e-3
    assert torch.equal(read["model"]["a"], STATE["a"])
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


class Payload:
    """Unpickling this runs a shell command that creates a file."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_is_refused_and_not_run(tmp_path, kind):
    proof, path = tmp_path / "proof", tmp_path / "evil.pth"
    bomb = {"extra": Payload(f"touch {proof}"), "model": STATE}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(path)
    assert "Python code" in message
    assert "system" in message
    assert not proof.exists()
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert proof.exists()  # the payload works: it was the reader that stopped it


def test_a_pickled_model_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "Python code" in refusal(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, kind):
    path = save(tmp_path, kind)
    whole = path.read_bytes()
    for size in {0, 1, 8, 9, 40, *range(50, len(whole) - 1, len(whole) // 40), len(whole) - 1}:
        path.write_bytes(whole[:size])
        message = refusal(path)
        in_a_name = kind == "legacy" and "Python code (torch." in message  # torch.HalfStorage cut short
        assert in_a_name or "truncated or of another format" in message


@pytest.mark.parametrize("seed", range(40))
def test_noise(tmp_path, seed):
    path = tmp_path / "noise.pth"
    noise = (
        torch.randint(256, (400,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)).numpy().tobytes()
    )
    starts = [b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x02}q\x00(", b"not a checkpoint\n", b"\x10\0\0\0\0\0\0\0{"]
    path.write_bytes(starts[seed % len(starts)] + noise)
    refusal(path)


def test_what_is_not_a_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "missing.pth")
    assert "not a file" in refusal(tmp_path)
    save(tmp_path, "zip")
    assert f"is it {tmp_path}/weights.zip?" in refusal(f"{tmp_path}\\weights.zip")
    assert "with / for" in refusal(f"{tmp_path}\\absent.zip")
    (tmp_path / "._weights.zip").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    assert "pass weights.zip" in refusal(tmp_path / "._weights.zip")


def test_an_onnx_file_is_refused_by_its_name(tmp_path):
    """Protocol buffers: field 1, ir_version 8; field 2, the producer's name."""
    (tmp_path / "vit.onnx").write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(64))
    with pytest.raises(UserError, match=r"vit\.onnx: ONNX files are not read; pass the model's state_dict\(\)"):
        files.read(tmp_path / "vit.onnx")


def test_folders_of_other_tools_are_told_apart(tmp_path):
    folders = {
        "deepspeed": ("zero_to_fp32.py", "run its zero_to_fp32.py"),
        "run": ("global_step3/zero_pp_rank_0_mp_rank_00_model_states.pt", "run its zero_to_fp32.py"),
        "step": ("zero_pp_rank_0_mp_rank_00_model_states.pt", "run its zero_to_fp32.py"),
        "fsdp": ("__0_0.distcp", "format_utils dcp_to_torch"),
        "loose": ("last.ckpt", "has last.ckpt; pass one of its files"),
    }
    for folder, (name, message) in folders.items():
        (tmp_path / folder / name).parent.mkdir(parents=True)
        (tmp_path / folder / name).touch()
        with pytest.raises(UserError) as error:
            files.find(tmp_path / folder)
        assert message in str(error.value)
    save_file(STATE, tmp_path / "open_clip_model.safetensors")
    assert files.find(tmp_path).name == "open_clip_model.safetensors"


def flipped(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 0x40
    path.write_bytes(content)


def test_a_flipped_bit_is_found_by_the_checksum_of_its_member(tmp_path):
    path = save(tmp_path, "zip")
    whole = path.read_bytes()
    value = whole.index(STATE["a"].numpy().tobytes()) + 1000
    flipped(path, value)
    assert "damaged, weights/data/0 fails its checksum; fetch it again" in refusal(path)
    torch.serialization.set_crc32_options(False)  # such a file has no checksums: there is nothing to compare
    try:
        files.read(save(tmp_path, "zip"))
    finally:
        torch.serialization.set_crc32_options(True)


def test_a_run_checkpoint_is_read_only_with_the_tensors_that_were_saved(tmp_path):
    state = {
        "step": 3,
        "model": {"w": torch.arange(4.0), "empty": torch.ones(0)},
        "optimizer": {"state": [torch.ones(2)]},
    }
    path = save_checkpoint(tmp_path, 3, state, keep=1)
    assert torch.equal(files.read(path)["model"]["w"], state["model"]["w"])
    saved = torch.load(path, weights_only=True)
    saved["optimizer"]["state"][0][1] = 2  # whole archive, other values
    torch.save(saved, path)
    assert "its tensors are not those that were saved" in refusal(path)
    with pytest.raises(UserError, match="its tensors are not those that were saved"):
        load_checkpoint(path)
    del saved["sha256"]  # as earlier code wrote it
    torch.save(saved, path)
    assert load_checkpoint(path)["step"] == 3
    flipped(path, path.read_bytes().index(STATE["a"][:4].numpy().tobytes()) + 5)
    with pytest.raises(UserError, match=r"pt: damaged, step_00000003/data/0 fails its checksum; there is no older one"):
        load_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as refused:
        load_checkpoint(path)
    said = f"checkpoint {path}: truncated or damaged; there is no older one: start again in another folder"
    assert str(refused.value) == said
