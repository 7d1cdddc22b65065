#!/usr/bin/env python
"""The start of a run on data of full size: CPU seconds and memory of a process, the first time and later.

    python benchmarks/full_size_data.py coco --folder /tmp/full       # 118,287 images, 860,001 objects: 0.5 GB of JSON
    python benchmarks/full_size_data.py coco --folder /tmp/full --images      # and the headers of the image files
    python benchmarks/full_size_data.py inat2021 --folder /tmp/full   # 2,686,843 and 100,000 file names: 1 GB of JSON
    python benchmarks/full_size_data.py imagenet --folder /tmp/full   # 1,281,167 and 50,000 files in 1000 folders each

Makes the files unless they are there, of the counts and the lengths of the real ones; `--part 0.1` makes a tenth.
COCO's images are hard links to few JPEGs and ImageNet's to empty files; iNaturalist's are left out, so that its layout
is read and its files are not looked for.
Each start is a process of its own with a cache of this script's; memory is what it takes beyond its imports.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

COCO = {"train": (118_287, 860_001, 10_000), "val": (5_000, 36_781, 446)}
"""Images, objects and crowds among them."""
INAT2021 = {"train": 2_686_843, "val": 100_000}
INAT_CLASSES = 10_000
IMAGENET = {"train": 1_281_167, "val": 50_000}
WIDTH, HEIGHT = 640, 480
LINKS = 60_000
"""Names of one file: ext4 allows 65,000."""


def make_coco(folder: Path, *, images: bool, part: float) -> None:
    """The files of COCO 2017: polygons of 26 points on average, in hundredths of a pixel, and crowds as counts."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, counts in COCO.items():
        num_images, num_objects, num_crowds = (round(count * part) for count in counts)
        path = folder / f"annotations/instances_{split}2017.json"
        if not path.is_file():
            with _whole(path) as temporary, temporary.open("w") as file:
                file.write('{"info": {}, "licenses": [], "images": [')
                file.writelines(_joined(_image(i) for i in range(1, num_images + 1)))
                file.write('], "annotations": [')
                file.writelines(_joined(_objects(num_images, num_objects, num_crowds)))
                categories = [{"supercategory": "x", "id": i, "name": f"class {i}"} for i in range(1, 81)]
                file.write(f'], "categories": {json.dumps(categories)}}}')
        place = folder / f"{split}2017"
        if images and not place.is_dir():
            with _whole(place) as temporary:
                temporary.mkdir()
                pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
                for i in range(1, num_images + 1):
                    name = temporary / f"{i:012d}.jpg"
                    if i % LINKS == 1:
                        first = name
                        Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(first)
                    else:
                        name.hardlink_to(first)


def _image(i: int) -> str:
    name = f"{i:012d}.jpg"
    url = f"http://farm9.staticflickr.com/8186/{name}"
    about = {"license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/train2017/{name}"}
    about |= {"height": HEIGHT, "width": WIDTH, "date_captured": "2013-11-14 11:18:45", "flickr_url": url, "id": i}
    return json.dumps(about)


def _objects(num_images: int, count: int, crowds: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    owners, classes = rng.integers(1, num_images + 1, count), rng.integers(1, 81, count)
    for i in range(count):
        about = f'"image_id": {owners[i]}, "category_id": {classes[i]}, "id": {i + 1}'
        if i >= count - crowds:
            runs = np.sort(rng.choice(np.arange(WIDTH * 50, WIDTH * 70), 200, replace=False))
            counts = np.diff([0, *runs, WIDTH * HEIGHT])
            columns = runs // HEIGHT
            box = f"{columns[0]}, 0, {columns[-1] - columns[0] + 1}, {HEIGHT}"
            mask = f'{{"counts": {counts.tolist()}, "size": [{HEIGHT}, {WIDTH}]}}'
            yield f'{{"segmentation": {mask}, "area": {counts[1::2].sum()}, "iscrowd": 1, {about}, "bbox": [{box}]}}'
            continue
        points = int(rng.integers(6, 47))
        angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
        radius = rng.uniform(8, 100) * rng.uniform(0.7, 1, points)
        x = np.round(rng.uniform(100, WIDTH - 100) + radius * np.cos(angles), 2)
        y = np.round(rng.uniform(100, HEIGHT - 100) + radius * np.sin(angles), 2)
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2
        outline = ", ".join(map(repr, np.stack([x, y], axis=1).reshape(-1).tolist()))
        box = f"{x.min():.2f}, {y.min():.2f}, {np.ptp(x):.2f}, {np.ptp(y):.2f}"
        yield f'{{"segmentation": [[{outline}]], "area": {area:.4f}, "iscrowd": 0, {about}, "bbox": [{box}]}}'


def make_imagenet(folder: Path, part: float) -> None:
    """Class folders of files without content: their layout is read."""
    for split, count in IMAGENET.items():
        if (folder / split).is_dir():
            continue
        with _whole(folder / split) as temporary:
            for i in range(round(count * part)):
                name = temporary / f"n{i % 1000:08d}" / f"n{i % 1000:08d}_{i}.JPEG"
                if i < 1000:
                    name.parent.mkdir(parents=True)
                if i % LINKS == 0:
                    first = name
                    first.touch()
                else:
                    name.hardlink_to(first)


def make_inat2021(folder: Path, part: float) -> None:
    """train.json and val.json with what an entry of the real ones holds."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in INAT2021.items():
        path = folder / f"{split}.json"
        if path.is_file():
            continue
        count = round(count * part)
        classes = np.sort(np.random.default_rng(0).permutation(count) % INAT_CLASSES).tolist()
        with _whole(path) as temporary, temporary.open("w") as file:
            file.write('{"info": {}, "images": [')
            file.writelines(_joined(_picture(split, i, classes[i]) for i in range(count)))
            file.write('], "categories": [')
            file.writelines(_joined(_species(i) for i in range(INAT_CLASSES)))
            file.write('], "annotations": [')
            file.writelines(
                _joined(f'{{"id": {i}, "image_id": {i}, "category_id": {classes[i]}}}' for i in range(count))
            )
            file.write('], "licenses": []}')


def _picture(split: str, i: int, label: int) -> str:
    name = f"{split}/{label:05d}_Animalia_Arthropoda_Insecta_Coleoptera_{label}/{i:036x}.jpg"
    return (
        f'{{"id": {i}, "width": 500, "height": 375, "file_name": "{name}", "license": 0, "rights_holder": "user {i}", '
        '"date": "2019-08-08 14:21:00+00:00", "latitude": 43.83486, "longitude": -71.22231, '
        '"location_uncertainty": 77}'
    )


def _species(i: int) -> str:
    about = {"id": i, "name": f"Genus species{i}", "common_name": f"name {i}", "supercategory": "Insects"}
    about |= {"kingdom": "Animalia", "phylum": "Arthropoda", "class": "Insecta", "order": "Coleoptera"}
    return json.dumps(about | {"image_dir_name": f"{i:05d}_Animalia_Arthropoda_Insecta_Coleoptera_{i}"})


def _joined(rows: Iterator[str]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f", {row}" if number else row


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path beside `path` that becomes it once it is written."""
    temporary = path.with_name(f"{path.name}.part")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    yield temporary
    temporary.rename(path)


def start(what: str, folder: Path, images: bool) -> dict[str, float]:
    """Seconds and memory of what each process of a run does before its first step, data alone."""
    if what == "coco":
        from mae_transfer.tasks.coco.annotations import CocoAnnotations
        from mae_transfer.tasks.coco.files import check_files
    elif what == "inat2021":
        from mae_transfer.tasks.classification.layouts.inat import from_inat
    else:
        from mae_transfer.tasks.classification.layouts.folders import from_folders
    before, there, started, wall = _kept(), _kept("VmRSS"), time.process_time(), time.perf_counter()
    if what == "inat2021":
        found: object = from_inat(folder, "inat2021")
    elif what == "imagenet":
        found = from_folders(folder, "imagenet")
    else:
        found = annotations = {
            split: CocoAnnotations(folder / f"annotations/instances_{split}2017.json", scored=split == "val")
            for split in ("val", "train")
        }
        for split, each in annotations.items() if images else ():
            check_files(each, folder / f"{split}2017", "error")
    read = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "cpu_s": read,
        "wall_s": time.perf_counter() - wall,
        "peak_gb": (peak - there) / 1e9,
        "kept_gb": (_kept() - before) / 1e9,
    }
    del found
    return result


def _kept(what: str = "RssAnon") -> int:
    """Bytes of this process, of those that are no pages of files unless told otherwise."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("coco", "inat2021", "imagenet"))
    parser.add_argument("--folder", type=Path, required=True, help="where the files are made and left")
    parser.add_argument("--images", action="store_true", help="COCO: make the image files too, and read their headers")
    parser.add_argument("--part", type=float, default=1.0, help="of the counts of the real set, such as 0.1")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="one start, in this process and with the user's cache")
    args = parser.parse_args()
    folder = args.folder / (args.what if args.part == 1 else f"{args.what}-{args.part:g}")
    if args.one:
        print(json.dumps(start(args.what, folder, args.images)))
        return
    if args.what == "coco":
        make_coco(folder, images=args.images, part=args.part)
    else:
        (make_imagenet if args.what == "imagenet" else make_inat2021)(folder, args.part)
    time.sleep(3)  # the index of a file that was made a moment ago is not kept
    print("| start | CPU s | wall s | peak GB | kept GB |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=args.folder) as cache:
        for number in range(1, args.starts + 1):
            command = [sys.executable, __file__, args.what, "--folder", str(args.folder), "--one"]
            command += ["--part", str(args.part), *["--images"] * args.images]
            done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": cache}, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            row = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {number} | {row['cpu_s']:.1f} | {row['wall_s']:.1f} | {row['peak_gb']:.2f} | {row['kept_gb']:.2f} |"
            )


if __name__ == "__main__":
    main()
