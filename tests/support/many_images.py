"""Results of single images of large val sets, drawn so that the classes are as rare as in the real ones.

Class frequencies: of ADE20K how many of the 2000 val images have each class, and its share of all pixels, by
`objectInfo150.txt` of CSAILVision/sceneparsing; of COCO the shape of val2017, from half of the images to a handful.
"""

import numpy as np

from mae_transfer.run_folder.per_image import Arrays

ADE20K_IMAGES = """
1172 612 796 917 641 643 408 199 460 225 294 310 526 190 796 411 160 441 217 318 306 75 315 106 162 69 57 224 128 44
98 184 138 61 73 43 302 37 99 153 37 162 77 298 46 36 30 122 23 38 43 12 64 102 12 11 18 109 18 52 26 29 22 60 75 49
138 113 27 66 31 56 36 9 29 33 27 20 6 8 25 49 269 39 18 56 61 239 5 53 12 5 17 104 12 50 6 31 114 13 35 9 55 4 5 4 31
9 38 3 49 4 75 9 3 72 30 7 44 25 24 31 12 83 43 139 23 36 5 22 13 30 21 27 108 122 65 57 100 44 8 18 59 22 19 14 28 57
96 56
"""
ADE20K_SHARES = """
1576 1072 878 621 480 450 398 231 198 183 181 166 160 151 118 110 109 104 104 103 98 74 67 65 61 60 53 52 46 44 44 44
33 31 30 27 26 24 24 23 23 22 22 20 19 19 18 18 18 18 18 18 18 17 17 17 17 17 15 15 15 15 14 14 14 14 14 13 13 13 12
12 12 12 11 10 9 9 9 9 9 8 8 8 8 8 7 7 7 7 7 7 7 6 6 6 6 6 6 6 6 6 6 6 5 5 5 5 5 5 5 5 5 5 5 5 5 5 5 5 5 4 4 4 4 4 4 4
4 4 4 4 4 4 3 3 3 3 3 3 3 3 3 3 3 3 3 2 2 2
"""
PIXELS = 200_000
DETECTION_COLUMNS = ("detection_image", "detection_label", "score", "box_matched", "box_ignored")


def sigmoid(value: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-value))
    return found


def segmented(rng: np.random.Generator, images: int) -> Arrays:
    """A segmentor of 150 classes: better and worse classes, easier and harder images; lost pixels go to another class
    of the image or to one that is seen in the same places."""
    in_images = np.array(ADE20K_IMAGES.split(), int)
    classes = len(in_images)
    share = np.minimum(np.array(ADE20K_SHARES.split(), int) * 1e-4 * 2000 / in_images, 0.6)
    quality, hardness = rng.normal(0.6, 1.0, classes), rng.normal(0, 0.7, images)
    places, taste = rng.normal(0, 1, (images, 3)), rng.normal(0, 1, (classes, 3))
    truth, predicted, hits = np.zeros((3, images, classes), np.int64)
    for k in range(classes):
        liking = places @ taste[k] + rng.gumbel(0, 1, images)
        has = np.argsort(-liking)[: round(in_images[k] * images / 2000)]
        truth[has, k] = np.maximum(PIXELS * share[k] * rng.lognormal(-0.4, 0.9, len(has)), 30)
    near = [np.argsort(((taste - taste[k]) ** 2).sum(1))[1:9] for k in range(classes)]
    for i in range(images):
        there = np.flatnonzero(truth[i])
        for k in there:
            ease = 1.5 * quality[k] + 0.35 * np.log10(share[k] / 0.01) + 0.5 - hardness[i]
            hits[i, k] += int(truth[i, k] * sigmoid(ease + rng.normal(0, 1.2)))
            lost = truth[i, k] - hits[i, k]
            for part in rng.dirichlet(np.ones(rng.integers(1, 3))):
                other = rng.choice(there) if rng.random() < 0.75 else rng.choice(near[k])
                predicted[i, other] += int(lost * part) if other != k else 0
    predicted += hits
    union = truth + predicted - hits
    image, label = np.nonzero(union)
    counts = {"intersection": hits[image, label], "union": union[image, label]}
    return {"ids": np.arange(images).astype("S"), "image": image, "label": label, **counts}


def detected(rng: np.random.Generator, images: int) -> Arrays:
    """A detector of 80 classes: better and worse classes, easier and harder images; doubles, and false alarms that are
    more frequent in hard images."""
    classes = 80
    often = np.concatenate([[0.53], 0.14 * np.arange(1, classes) ** -0.42])
    often[-5:] = 0.008, 0.006, 0.003, 0.0018, 0.0016
    quality, hardness = rng.normal(0.8, 1.0, classes), rng.normal(0, 0.8, images)
    alarms = often**0.7 / (often**0.7).sum()
    found: list[tuple[int, int, float, int]] = []
    objects: list[tuple[int, int]] = []
    for i in range(images):
        for k in np.flatnonzero(rng.random(classes) < often / 1.28 * np.exp(rng.normal(0, 0.7))):
            for _ in range(rng.geometric(0.45)):
                objects.append((i, k))
                ease = quality[k] - hardness[i] + rng.normal(0, 1.2)
                if ease < -0.7:
                    continue
                overlap = sigmoid(1.2 + 0.5 * ease + rng.normal(0, 0.8))
                bits = sum(1 << bit for bit in range(10) if overlap >= 0.5 + 0.05 * bit)
                found.append((i, k, sigmoid(ease + rng.normal(0, 0.7)), bits))
                if rng.random() < 0.4:
                    found.append((i, k, sigmoid(ease - 1.5 + rng.normal(0, 0.7)), 0))
        for k in rng.choice(classes, rng.poisson(6 * np.exp(0.4 * hardness[i])), p=alarms):
            found.append((i, k, sigmoid(rng.normal(-1.5, 1.2)), 0))
    columns = [np.array(column) for column in zip(*found, strict=True)]
    columns.append(np.zeros(len(found), np.uint16))
    truths = np.array(objects).T
    arrays = dict(zip(DETECTION_COLUMNS, columns, strict=True))
    return {"ids": np.arange(images).astype("S"), "object_image": truths[0], "object_label": truths[1], **arrays}


def detected_by_two(
    rng: np.random.Generator, images: int, gain: float = 0.25, shared: float = 0.7
) -> tuple[Arrays, Arrays]:
    """Two detectors on the same images, drawn as that of `detected`; the second is better by `gain`, in some classes
    more and in some less.

    shared: how much of the variance of an object's ease is the same for both.
    """
    classes = 80
    often = np.concatenate([[0.53], 0.14 * np.arange(1, classes) ** -0.42])
    often[-5:] = 0.008, 0.006, 0.003, 0.0018, 0.0016
    quality, hardness = rng.normal(0.8, 1.0, classes), rng.normal(0, 0.8, images)
    crowded = np.exp(rng.normal(0, 0.7, (images, 1)))
    image, label = np.nonzero(rng.random((images, classes)) < often / 1.28 * crowded)
    times = rng.geometric(0.45, len(image))
    image, label = np.repeat(image, times), np.repeat(label, times)
    common = np.sqrt(shared) * rng.normal(0, 1.2, len(image))
    gains = gain + rng.normal(0, 0.3, classes)
    first, second = (
        _detections(rng, image, label, (quality + more)[label] + common, 1.2 * np.sqrt(1 - shared), hardness, often)
        for more in (0, gains)
    )
    truth = {"ids": np.arange(images).astype("S"), "object_image": image, "object_label": label}
    return truth | first, truth | second


def _detections(
    rng: np.random.Generator,
    image: np.ndarray,
    label: np.ndarray,
    ease: np.ndarray,
    own: float,
    hardness: np.ndarray,
    often: np.ndarray,
) -> dict[str, np.ndarray]:
    """Of objects (m,) in images (n,); `own` is the standard deviation of what one detector alone finds easy."""
    ease = ease - hardness[image] + rng.normal(0, own, len(image))
    overlap = sigmoid(1.2 + 0.5 * ease + rng.normal(0, 0.8, len(image)))
    bits = ((overlap[:, None] >= 0.5 + 0.05 * np.arange(10)) << np.arange(10)).sum(1)
    found = ease >= -0.7
    double = found & (rng.random(len(image)) < 0.4)
    alarm_image = np.repeat(np.arange(len(hardness)), rng.poisson(6 * np.exp(0.4 * hardness)))
    alarm_label = rng.choice(len(often), len(alarm_image), p=often**0.7 / (often**0.7).sum())
    logits = (ease[found], ease[double] - 1.5, rng.normal(-1.5, 0.98, len(alarm_image)))
    scores = np.concatenate(logits)
    scores += rng.normal(0, 0.7, len(scores))
    matched = np.zeros(len(scores), np.uint16)
    matched[: found.sum()] = bits[found]
    columns = (
        np.concatenate([image[found], image[double], alarm_image]),
        np.concatenate([label[found], label[double], alarm_label]),
        sigmoid(scores),
        matched,
        np.zeros(len(scores), np.uint16),
    )
    order = np.argsort(columns[0], kind="stable")
    return {name: column[order] for name, column in zip(DETECTION_COLUMNS, columns, strict=True)}


def part_of(arrays: Arrays, chosen: np.ndarray) -> Arrays:
    """The arrays of these images alone."""
    place = np.full(len(arrays["ids"]), -1)
    place[chosen] = np.arange(len(chosen))
    found = {"ids": arrays["ids"][chosen]}
    columns = (
        ("image", ("label", "intersection", "union")),
        ("object_image", ("object_label",)),
        ("detection_image", DETECTION_COLUMNS[1:]),
    )
    for image, others in columns:
        if image in arrays:
            kept = place[arrays[image]] >= 0
            found |= {image: place[arrays[image]][kept]} | {name: arrays[name][kept] for name in others}
    return found
