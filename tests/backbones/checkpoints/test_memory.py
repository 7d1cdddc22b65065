"""Memory that loading an encoder takes, from the kernel's count of a process of its own."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from mae_transfer.backbones import registry
from mae_transfer.backbones.timm_vit import build

MEASURE = """
import sys
from mae_transfer.backbones.load import load_backbone

def kilobytes(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what))

load_backbone("random_vit_nano")  # imports and allocators are not what is measured
before = kilobytes("VmRSS")
encoder = load_backbone(sys.argv[1], checkpoint=sys.argv[2])
print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mae_vit_b", "pth"),
        pytest.param("mae_vit_b", "safetensors", marks=pytest.mark.slow),
        pytest.param("mae_vit_h", "pth", marks=pytest.mark.slow),
        pytest.param("mae_vit_h", "safetensors", marks=pytest.mark.slow),
    ],
)
def test_loading_takes_little_more_than_the_file(tmp_path, name, kind):
    path = tmp_path / f"weights.{kind}"
    spec = registry.find(name)
    state = {key: torch.ones(t.shape) for key, t in build(spec, img_size=224, device="meta").state_dict().items()}
    state |= {"norm.weight": torch.ones(spec.embed_dim), "norm.bias": torch.ones(spec.embed_dim)}
    torch.save({"model": state}, path) if kind == "pth" else save_file(state, path)
    del state
    size = path.stat().st_size
    run = subprocess.run([sys.executable, "-c", MEASURE, name, str(path)], capture_output=True, text=True, check=True)
    ratio = float(run.stdout) / size
    print(f"{name} {kind}: {size / 1e6:.0f} MB file, peak + {ratio:.2f} of it")
    assert 0.9 < ratio < 1.3
