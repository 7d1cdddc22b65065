"""Tables of MAE's ablations and the verdicts on its claims, from records of pre-trainings and their transfers.

Records are made from the documented settings of a pre-training; intervals are scipy's.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support.records import described

from mae_transfer.results.claims import read_claims
from mae_transfer.results.factors import FACTORS
from mae_transfer.results.published import read_published
from mae_transfer.results.tables.build import build_tables
from mae_transfer.results.tables.table import Table
from mae_transfer.run_folder.schema import SCHEMA, RunRecord

COUNT = itertools.count()
BASE = {
    "recipe": "pretrain_mae",
    "method": "mae",
    "schedule.steps": 250,
    "schedule.warmup_steps": 12,
    "data.crop": "random",
    "data.scale_min": 0.2,
    "data.flip": 0.5,
    "data.color_jitter": 0.0,
    "data.randaugment": None,
    "mask.kind": "random",
    "mask.ratio": 0.75,
    "model.target": "norm_pixel",
    "model.decoder_depth": 2,
    "model.decoder_width": 64,
    "model.decoder_heads": 4,
    "model.mask_token": "decoder",
    "tokenizer.kind": None,
}


def runs(
    top1: Sequence[float],
    speed: float = 100.0,
    protocol: str = "linear",
    fingerprints: bool = True,
    device: str = "cpu (1 threads)",
    **changed: Any,
) -> list[RunRecord]:
    """A pre-training and its transfer for each value, which are those of seeds 0, 1, ..."""
    settings = {**BASE, **{key.replace("__", "."): value for key, value in changed.items()}}
    init = {"beit": "BEiT-style (this project)"}.get(str(settings["method"]), "MAE (this project)")
    found = []
    for seed, value in enumerate(top1):
        common = {"schema": SCHEMA, "preset": "mini", "seed": seed, "data": {"name": "shapes", "fingerprint": "f0"}}
        pretrained = described("pretrain", settings)
        trained_as = pretrained["settings_id"]
        weights = f"{trained_as}-{seed if fingerprints else 0}"
        backbone = {"name": "vit_nano_p8", "size": "nano", "trained_as": trained_as, "fingerprint": weights}
        found.append(
            RunRecord(
                run_id=f"a{next(COUNT):04}",
                backbone={**backbone, "init": "random"},
                metrics={"val_loss": 1.0},
                images_per_second=speed * (1 + 0.01 * seed),
                wall_seconds=3600.0,
                device=device,
                **common,
                **pretrained,
            )
        )
        transfer = {"recipe": f"{protocol}_mae", "protocol": protocol}
        transfer |= {"model.blocks": 1} if protocol == "partial" else {}
        found.append(
            RunRecord(
                run_id=f"b{next(COUNT):04}",
                backbone={**backbone, "init": init},
                metrics={"top1": value},
                **common,
                **described("folder", transfer),
            )
        )
    return found


def tables(*of: list[RunRecord]) -> dict[str, Table]:
    return {table.title: table for table in build_tables(list(itertools.chain(*of)))}


def rows(table: Table) -> dict[str, list[str]]:
    return {label: [cell.text for cell in cells] for label, cells in table.rows}


def t(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """scipy's 95 % interval of a paired difference."""
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


BASE_TOP1, HALF, MORE = (20.0, 21.0, 22.5), (15.0, 16.5, 17.0), (20.5, 20.0, 23.5)


def test_a_factor_has_a_table_with_the_papers_numbers_beside() -> None:
    found = tables(runs(BASE_TOP1), runs(HALF, mask__ratio=0.5), runs(MORE, model__decoder_depth=1))
    titles = [title for title in found if title.startswith("Pre-training: ")]
    assert titles == [
        "Pre-training: mask ratio (MAE Figure 5), mini",
        "Pre-training: decoder depth (MAE Table 1a), mini",
    ]
    table = found[titles[0]]
    assert table.head[1:] == (
        *("top-1, linear: shapes", "− ratio 0.75", "hours"),
        *("top-1, finetune, published", "top-1, linear, published"),
    )
    low, high = t(HALF, BASE_TOP1)
    assert rows(table)["ratio 0.5"][0] == "16.2 ± 1.0 (n=3)"
    assert rows(table)["ratio 0.5"][1] == f"−5.0 [−{-low:.1f}, −{-high:.1f}]* (n=3)"
    assert rows(table)["ratio 0.5"][2:] == ["1.00", "84.9", "69.9"]
    assert rows(table)["ratio 0.75"][1:] == ["-", "1.00", "84.9", "73.5"]
    assert rows(table)["ratio 0.1"] == ["-", "-", "-", "83.2", "54.6"], "the paper's other rows stand in it too"
    assert list(rows(table)) == sorted(rows(table), key=lambda label: float(label.split()[1]))


def test_what_differs_in_two_settings_is_no_ablation() -> None:
    found = tables(runs(BASE_TOP1), runs(HALF, mask__ratio=0.5, model__decoder_depth=1))
    assert not [title for title in found if title.startswith("Pre-training: ")]


def test_companions_of_a_setting_go_with_it() -> None:
    found = tables(
        runs(BASE_TOP1),
        runs(HALF, model__decoder_width=32, model__decoder_heads=2),
        runs(MORE, mask__kind="block", mask__ratio=0.5),
        runs(HALF, schedule__steps=500, schedule__warmup_steps=24),
        runs(HALF, data__crop="center", data__flip=0.0),
    )
    factors = ("decoder width", "mask sampling", "length", "augmentation")
    of = {
        f.title: rows(found[f"Pre-training: {f.title} (MAE {f.source}), mini"]) for f in FACTORS if f.title in factors
    }
    assert {"32 wide", "64 wide"} <= of["decoder width"].keys()
    assert {"random, ratio 0.75", "block-wise, ratio 0.5"} <= of["mask sampling"].keys()
    assert {"250 steps", "500 steps", "1600 epochs"} <= of["length"].keys()
    assert {"crop of random size", "none"} <= of["augmentation"].keys()


@pytest.mark.parametrize("factor", FACTORS, ids=lambda factor: factor.title)
def test_names_of_values_are_those_of_the_published_rows(factor: Any) -> None:
    """So that each row of the paper's tables stands where a run of its settings does."""
    papers = {
        "mask ratio": [{"mask.ratio": 0.1}, {"mask.ratio": 0.75}],
        "decoder depth": [{"model.decoder_depth": depth} for depth in (1, 2, 4, 8, 12)],
        "decoder width": [{"model.decoder_width": width} for width in (128, 256, 512, 768, 1024)],
        "mask token": [{"model.mask_token": where} for where in ("encoder", "decoder")],
        "target": [
            *({"model.target": target} for target in ("pixel", "norm_pixel", "pca")),
            {"model.target": "token", "tokenizer.kind": "encoder.pkl"},
        ],
        "augmentation": [
            {"data.crop": "center", "data.flip": 0.0},
            *({"data.crop": crop} for crop in ("fixed", "random")),
            {"data.color_jitter": 0.4},
        ],
        "mask sampling": [
            {"mask.kind": kind, "mask.ratio": ratio}
            for kind, ratio in (("random", 0.75), ("block", 0.5), ("block", 0.75), ("grid", 0.75))
        ],
        "length": [{"schedule.steps": None, "schedule.epochs": epochs} for epochs in (100, 200, 400, 800, 1600)],
    }
    published = read_published(variants=True)
    published = published[published["source"].str.endswith(factor.source)]
    parts = {part for variant in published["variant"] for part in variant.split("; ")}
    names = {factor.name({**BASE, **changed}) for changed in papers[factor.title]}
    assert len(names) == len(papers[factor.title])
    assert names <= parts


def test_a_claim_is_found_opposite_or_not_seen() -> None:
    found = tables(
        runs(BASE_TOP1),
        runs(HALF, mask__ratio=0.5),
        runs(MORE, mask__ratio=0.9),
        runs(HALF, model__target="pixel"),
        runs([x + 3 + i / 10 for i, x in enumerate(BASE_TOP1)], mask__kind="grid"),
        runs(BASE_TOP1[:2], model__decoder_depth=1),
        runs(HALF, speed=50.0, model__mask_token="encoder"),
    )
    claims = rows(found["The paper's claims, mini"])
    low, high = t(BASE_TOP1, MORE)
    assert low < 0 < high, "the input of this test"
    assert {label: cells[-1] for label, cells in claims.items()} == {
        "a mask ratio of 0.75 beats one of 0.5 (Figure 5)": "found",
        "a mask ratio of 0.75 beats one of 0.9 (Figure 5)": "not found at this size",
        "a deeper decoder is better (Table 1a)": "not judged",
        "mask tokens do not belong into the encoder (Table 1c)": "found",
        "an encoder without mask tokens trains faster (Table 2)": "not judged",  # no spread at all says nothing
        "normalised pixels are the better target (Table 1d)": "found",
        "random masks beat a grid (Table 1f)": "opposite",
    }
    assert claims["a mask ratio of 0.75 beats one of 0.5 (Figure 5)"][:4] == [
        *("+3.6 (73.5 − 69.9)", "top-1, linear: shapes", "21.2 ± 1.3 (n=3)", "16.2 ± 1.0 (n=3)")
    ]


def test_the_most_and_the_least_of_a_setting_are_named() -> None:
    found = tables(runs(BASE_TOP1), runs(HALF, schedule__steps=125), runs(MORE, schedule__steps=500))
    (cells,) = rows(found["The paper's claims, mini"]).values()
    assert cells[1] == "top-1, linear: shapes, 500 steps against 125 steps"


def test_speeds_are_compared_by_their_logarithms() -> None:
    fast = runs(BASE_TOP1)
    slow = runs(HALF, model__mask_token="encoder")
    speeds = (40.0, 55.0, 45.0)
    for record, speed in zip(slow[::2], speeds, strict=True):
        record["images_per_second"] = speed
    (cells,) = (c for label, c in rows(tables(fast, slow)["The paper's claims, mini"]).items() if "faster" in label)
    logs = np.log([100 * (1 + 0.01 * seed) / speed for seed, speed in enumerate(speeds)])
    low, high = (math.exp(end) for end in stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs)))
    assert cells[-2] == f"{math.exp(logs.mean()):.2f}× [{low:.2f}, {high:.2f}]* (n=3)"
    assert cells[0] == "2.8×"
    assert cells[-1] == "found"


def test_one_block_stands_against_the_probe_of_the_same_weights() -> None:
    found = tables(runs(BASE_TOP1), runs([x + 9 + x / 7 for x in BASE_TOP1], protocol="partial"))
    (label,) = rows(found["The paper's claims, mini"])
    assert label == "one fine-tuned block is far above the linear probe (Figure 9)"
    assert rows(found["The paper's claims, mini"])[label][-1] == "found"


def test_the_overview_names_pre_trainings_by_what_is_unlike() -> None:
    found = tables(runs(BASE_TOP1), runs(HALF, mask__ratio=0.5))
    assert list(rows(found["Overview, mini"])) == [
        *("MAE (this project), nano", "MAE (this project), nano: mask.ratio 0.75 -> 0.5")
    ]
    notes = [note for table in found.values() for note in table.footnotes]
    assert any("pre-training mask.ratio 0.75 -> 0.5" in note for note in notes)


def test_published_values_of_claims_are_those_of_the_list() -> None:
    """Table 1 and the figures stand in published.csv too; no second value may contradict it."""
    published = read_published(variants=True)
    checked = 0
    for claim in read_claims():
        of = published[published["source"].str.endswith(f" {claim.source}")]
        for protocol, numbers in claim.published.items():
            if claim.factor and isinstance(numbers, tuple):
                values = set(of[of["protocol"] == protocol]["value"])
                assert set(numbers) <= values, claim.says
                checked += 1
    assert checked > 15


def verdicts(*of: list[RunRecord]) -> dict[str, str]:
    found = tables(*of)
    return {label: cells[-1] for label, cells in rows(found["The paper's claims, mini"]).items()}


def test_seeds_of_a_probe_on_one_pre_training_judge_nothing() -> None:
    one = {"fingerprints": False}
    assert set(verdicts(runs(BASE_TOP1, **one), runs(HALF, mask__ratio=0.5, **one)).values()) == {"not judged"}


def test_methods_are_compared_by_the_standard_pre_training_whatever_ran_first() -> None:
    slow = runs(HALF, speed=30.0, model__mask_token="encoder")
    found = tables(slow, runs(BASE_TOP1), runs(HALF, mask__ratio=0.5), runs(HALF, speed=50.0, method="beit"))
    cells = rows(found["The paper's claims, mini"])["MAE pre-trains faster than BEiT (section 4.2)"]
    assert cells[2:4] == ["101 images/s", "50 images/s"]
    overview = list(rows(found["Overview, mini"]))
    assert "MAE (this project), nano: model.mask_token decoder -> encoder" in overview
    assert "MAE (this project), nano" in overview


def test_methods_that_saw_other_data_are_not_compared() -> None:
    found = tables(runs(BASE_TOP1), runs(HALF, method="beit", data_fingerprint="other"))
    assert "The paper's claims, mini" not in found


def test_speeds_of_two_machines_are_not_compared() -> None:
    found = verdicts(runs(BASE_TOP1, device="cuda"), runs(HALF, speed=1.0, model__mask_token="encoder"))
    assert found["an encoder without mask tokens trains faster (Table 2)"] == "not judged"
    assert found["mask tokens do not belong into the encoder (Table 1c)"] == "found"


def test_epochs_and_steps_are_two_lengths() -> None:
    found = tables(runs(BASE_TOP1, schedule__steps=None, schedule__epochs=100), runs(HALF, schedule__steps=125))
    assert not [title for title in found if "length" in title or "claims" in title]


def test_figure_5_is_of_random_masks() -> None:
    found = tables(runs(HALF, mask__kind="block"), runs(BASE_TOP1, mask__kind="block", mask__ratio=0.5))
    assert not [title for title in found if "mask ratio" in title or "claims" in title]


def test_what_is_beyond_the_papers_best_value_is_no_claim() -> None:
    found = tables(runs(BASE_TOP1, model__decoder_depth=8), runs(HALF, model__decoder_depth=12))
    assert "The paper's claims, mini" not in found
    assert "Pre-training: decoder depth (MAE Table 1a), mini" in found


def test_a_value_of_the_same_name_takes_no_other_with_it() -> None:
    """Crops from another least area, and another width of heads."""
    kept = [runs(BASE_TOP1), runs(HALF, data__crop="center", data__flip=0.0), runs(HALF, model__decoder_width=32)]
    more = [runs(MORE, data__scale_min=0.08), runs(MORE, model__decoder_heads=2)]
    found = verdicts(*kept, *more)
    assert found["random crops beat no augmentation (Table 1e)"] == "found"
    assert found["a wider decoder is better (Table 1b)"] == "found"


def test_one_block_of_random_weights_is_no_claim_of_mae() -> None:
    other = runs(HALF, method="beit")
    blocks = runs([x + 9 + x / 7 for x in HALF], protocol="partial", method="beit")
    assert "The paper's claims, mini" not in tables(other, blocks)
