"""Tar shards, damaged, and labels of odd values, through the index and the reading of every image."""

import io
import tarfile
from pathlib import Path
from random import Random

from campaign import Trial, Wrong
from mutate import ODD, dump, mutate_bytes
from PIL import Image

from mae_transfer.pretrain.shards import open_shards

Content = list[tuple[str, bytes, int]]


def tar(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Family:
    def __init__(self, folder: Path) -> None:
        picture = io.BytesIO()
        Image.new("RGB", (16, 16), (9, 99, 199)).save(picture, "JPEG")
        self.folder, self.number = folder, 0
        self.members = [
            (f"{i:04}.{kind}", content)
            for i in range(4)
            for kind, content in (("jpg", picture.getvalue() + bytes([i])), ("cls", b"%d" % (i % 2)))
        ]
        self.whole = tar(self.members)
        self.expected = self.read(self.write(self.whole))

    def write(self, content: bytes) -> Path:
        """A new name each time: the index in the cache goes by name, size and time."""
        for old in self.folder.glob("*.tar"):
            old.unlink()
        self.number += 1
        path = self.folder / f"{self.number:06}.tar"
        path.write_bytes(content)
        return path

    def read(self, path: Path) -> Content:
        shards = open_shards([path])
        labels = [-1] * len(shards) if shards.labels is None else shards.labels.tolist()
        names = [name.partition("/")[2] for name in shards.names]
        return [(name, shards.read(i).tobytes(), labels[i]) for i, name in enumerate(names)]

    def trial(self, rng: Random) -> Trial:
        if rng.random() < 0.75:
            what, content = mutate_bytes(self.whole, rng)
        else:
            members = list(self.members)
            at, kind = rng.randrange(len(members)), rng.choice(("label", "json", "name", "twice", "lost"))
            name, value = members[at]
            if kind == "label":
                at |= 1
                members[at] = (members[at][0], str(rng.choice(ODD)).encode("utf-8", "surrogatepass"))
            elif kind == "json":
                at |= 1
                tree = rng.choice((rng.choice(ODD), {"label": rng.choice(ODD)}))
                members[at] = (members[at][0].replace("cls", "json"), dump(tree))
            elif kind == "name":
                members[at] = (
                    rng.choice(("x.y.jpg", "../a.jpg", ".jpg", "a" * 300 + ".jpg", "/b.jpg", "ü.jpg", "a b.JPG")),
                    value,
                )
            elif kind == "twice":
                members.append((name, value))
            else:
                del members[at]
            what, content = f"{kind} {at}", tar(members)
        path = self.write(content)

        def judge(found: Content) -> str | None:
            if found == self.expected:
                return None
            said = independent(content)
            for name, image, _ in found:
                if said.get(name) != image:
                    raise Wrong(f"{name}: other bytes than tarfile reads")
            labelled = any(label >= 0 for *_, label in found)
            for name, _, label in found:
                text = said.get(name.rpartition(".")[0] + ".cls", b"")
                if labelled and text and int(text) != label:
                    raise Wrong(f"{name}: label {label} instead of {text!r}")
            lost = {name for name in said if name.lower().endswith(".jpg")} - {name for name, *_ in found}
            if lost:
                raise Wrong(f"left out without a word: {sorted(lost)}")
            if len(found) < len(self.expected) and what.split()[0] not in ("lost", "name"):
                return "a tar whose member names say other things"
            return "contents of a tar, which has checksums of headers only"

        return Trial(what, lambda: self.read(path), judge)


def independent(content: bytes) -> dict[str, bytes]:
    """Regular members by name, as the standard library reads them."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]
