"""Names that users add: in a process, by entry points, and names that are taken."""

import dataclasses
import subprocess
import sys

import pytest
from support.own_encoder import TinyEncoder, WithTokens

from mae_transfer import load_backbone, register_backbone
from mae_transfer.backbones import plugins, registry
from mae_transfer.backbones.timm_vit import resolve
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import backbone_spec


@pytest.fixture(autouse=True)
def _names_of_the_test(monkeypatch):
    monkeypatch.setattr(plugins, "_registered", {})


def install(folder, package, **entries):
    """A package as pip leaves it: metadata with entry points, and no code."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("[mae_transfer.backbones]\n" + "\n".join(lines) + "\n")


def test_looking_up_needs_neither_torch_nor_the_packages(tmp_path):
    install(tmp_path, "one", mine="no_such_module:make")
    code = (
        "import sys; from mae_transfer.backbones import plugins as p\n"
        "assert p.plugin_names() == ['mine'], p.plugin_names()\n"
        "assert p.find_plugin('mine').origin == 'the package one (no_such_module:make)'\n"
        "assert p.find_plugin('mae_vit_b') is None\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{code}"], check=True)


def test_entry_points(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "one", tiny="support.own_encoder:TinyEncoder", gone="support.own_encoder:Nothing")
    encoder = load_backbone("tiny")
    assert encoder.load_report.source == "the package one (support.own_encoder:TinyEncoder)"
    assert backbone_spec("tiny") == encoder.spec
    with pytest.raises(UserError, match=r"'gone' of the package one: support.own_encoder:Nothing cannot be imported"):
        resolve("gone")
    with pytest.raises(UserError, match=r"backbone 'tinny': unknown; did you mean tiny"):
        resolve("tinny")

    install(tmp_path, "two", tiny="support.own_encoder:WithTokens", mae_vit_b="support.own_encoder:TinyEncoder")
    with pytest.raises(UserError, match=r"'tiny' is named by the package \w+ \(.*\) and by the package \w+ \("):
        load_backbone("tiny")
    with pytest.raises(UserError, match=r"'mae_vit_b' is named by mae_transfer itself and by the package two"):
        backbone_spec("mae_vit_b")
    assert backbone_spec("mae_vit_l").init == "mae"


def test_names_of_a_process():
    register_backbone("mine", TinyEncoder)
    assert resolve("mine").embed_dim == 32
    with pytest.raises(UserError, match=r"'mine' is named by support.own_encoder.TinyEncoder and by support.own_en"):
        register_backbone("mine", WithTokens)
    for name in ("mae_vit_b", "vit_b_p8"):
        with pytest.raises(UserError, match=f"'{name}' is named by mae_transfer itself and by support.own_encoder.Ti"):
            register_backbone(name, TinyEncoder)
    for name in ("", "a b", "timm:mine", "../mine"):
        with pytest.raises(UserError, match="use letters, digits"):
            register_backbone(name, TinyEncoder)


def test_a_notebook_may_define_its_class_again():
    """The same name of the same place replaces what it was; the new one is what is loaded."""
    for width in (32, 48):
        again = type("TinyEncoder", (TinyEncoder,), {"embed_dim": width, "__module__": "notebook"})
        register_backbone("mine", again)
        assert load_backbone("mine").embed_dim == resolve("mine").embed_dim == width


def test_a_factory_may_give_a_spec():
    register_backbone("plain", lambda: dataclasses.replace(registry.find("vit_nano"), patch_size=8, init="mine"))
    encoder = load_backbone("plain", weights="random", img_size=32, window_size=2, rel_pos=True)
    assert (encoder.name, encoder.spec.init, encoder.patch_size) == ("plain", "mine", 8)
