"""The accuracy benchmark: what it trains, that it goes on where it stopped, and tables that say what its rows say."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from models.frozen import fit_head
from models.session import TrainingSession
from scripts.accuracy_tables import TOGETHER, Benchmark, read_runs, summary, with_mean_of_lone, write_tables
from scripts.bench_accuracy import main
from util.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


def bench(out, *more):
    """Two folds of 40 synthetic smears, one epoch at 64 pixels; in this process, which has PyTorch loaded already."""
    command = ["--dataroot", "synthetic", "--synthetic_count", "40", "--out", str(out), "--splits", "group"]
    command += ["--seeds", "0", "--bench_folds", "2", "--views", "1", "--preset", "small", "--gpu_ids", "-1"]
    command += ["--loadSize", "64", "--fineSize", "64", "--niter", "1", "--niter_decay", "0", *more]
    said, found = io.StringIO(), ""
    with contextlib.chdir(REPOSITORY), contextlib.redirect_stdout(said), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench_accuracy.py", *command])
        try:
            code = main()
        except UserError as error:
            code, found = 2, str(error)
    return SimpleNamespace(returncode=code, stdout=said.getvalue(), stderr=found)


def test_it_trains_what_is_missing_tests_every_image_once_and_writes_tables(tmp_path):
    first = bench(tmp_path, "--variants", "ours,colour", "--only_folds", "1")
    assert first.returncode == 0, first.stderr
    second = bench(tmp_path, "--variants", "ours,ShuffleNet,colour")
    assert second.returncode == 0, second.stderr
    assert "1/4 " in second.stdout  # the two rows of the first fold are there already
    rows = read_runs(tmp_path / "runs.jsonl")
    assert {(row["fold"], row["variant"]) for row in rows} == {
        (fold, variant) for fold in (1, 2) for variant in ("ours", "ShuffleNet", "colour")
    }
    for variant in ("ours", "ShuffleNet", "colour"):
        tested = [name for row in rows if row["variant"] == variant for name in row["images"]]
        assert len(tested) == len(set(tested)) == 40
    ours = next(row for row in rows if row["variant"] == "ours")
    assert set(ours["logits"]) == {"as_is", "grey", "stain_normalised"}
    assert np.array(ours["logits"]["grey"]).shape == (len(ours["images"]), 4)
    assert ours["starts"]["tier1"].startswith("random weights")
    weights = np.array(ours["weights"])
    for voices, verdicts in ((ours["voices"], ours["logits"]["as_is"]), (ours["val_voices"], ours["val_logits"])):
        np.testing.assert_allclose(np.array(voices) @ weights.T, verdicts, atol=1e-3)
    assert not np.allclose(ours["voices"], ours["logits"]["as_is"])
    learned = np.array(ours["train_voices"])
    assert learned.shape == (len(ours["train_labels"]), 4)
    assert learned[:, 0].any() and not learned[:, 1:3].any()  # closed tiers are silent; their verdicts would not be
    assert len(ours["train_labels"]) + len(ours["val_labels"]) + len(ours["labels"]) == 40
    assert len(ours["val_groups"]) == len(ours["val_labels"])
    assert "ours | Tier-II" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "accuracy.svg").read_text().startswith("<?xml")


def test_by_blocks_the_groups_of_validation_and_test_are_blocks(tmp_path):
    done = bench(tmp_path, "--variants", "colour", "--splits", "blocks", "--block_size", "5", "--only_folds", "1")
    assert done.returncode == 0, done.stderr
    (row,) = read_runs(tmp_path / "runs.jsonl")
    tested, validated = set(row["groups"]), set(row["val_groups"])
    assert 1 < len(tested) < len(row["groups"]) and len(validated) < len(row["val_groups"])  # 40 images of 40 groups
    assert not tested & validated


def test_frozen_features_are_judged_as_the_networks_are(tmp_path, monkeypatch):
    looks = []

    def counted(network, epochs, device):
        epochs = [list(batches) for batches in epochs]
        looks.append([torch.cat([batch.rgb.flatten(1).mean(1) for batch in batches]).sort()[0] for batches in epochs])
        return fit_head(network, epochs, device)

    monkeypatch.setattr("scripts.bench_accuracy.fit_head", counted)
    done = bench(tmp_path, "--variants", "frozen,colour", "--only_folds", "1")
    assert done.returncode == 0, done.stderr
    row = next(row for row in read_runs(tmp_path / "runs.jsonl") if row["variant"] == "frozen")
    assert set(row["logits"]) == {"as_is", "grey", "stain_normalised"} and "ImageNet" in row["starts"]["tier2"]
    assert np.array(row["val_logits"]).shape == (len(row["val_labels"]), 4)
    (means,) = looks
    assert len(means) == 5  # as they are, then varied, each time otherwise
    assert all(len(each) == len(means[0]) for each in means)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(means, 2))
    table = (tmp_path / "tables.md").read_text()
    assert "| frozen | its own | without colour |" in table
    plain = bench(tmp_path / "plain", "--variants", "frozen", "--only_folds", "1", "--no_augment")
    assert plain.returncode == 0 and len(looks[1]) == 1 and torch.equal(looks[1][0], means[0])


def test_an_unknown_variant_is_named(tmp_path):
    done = bench(tmp_path, "--variants", "ours,resnet")
    assert done.returncode == 2 and "resnet" in done.stderr and "Traceback" not in done.stderr


def test_our_network_is_distilled_as_the_training_command_does(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(TrainingSession, "warm_start", lambda session, train, epochs: asked.append(epochs))
    assert bench(tmp_path, "--variants", "ours", "--only_folds", "1", "--distil_epochs", "3").returncode == 0
    assert asked == [3]


def test_runs_of_another_setting_are_not_mixed_in(tmp_path):
    assert bench(tmp_path, "--variants", "colour", "--only_folds", "1").returncode == 0
    other = bench(tmp_path, "--variants", "colour", "--lr", "0.1")
    assert other.returncode == 2 and "lr 0.0005 then, 0.1 now" in other.stderr
    more_folds = bench(tmp_path, "--variants", "colour", "--bench_folds", "3")
    assert more_folds.returncode == 2 and "bench_folds 2 then, 3 now" in more_folds.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--seeds", "a"), "--seeds a"),
        (("--init_from", "SEG"), "--init_from"),
        (("--patience", "3"), "--patience"),
        (("--seed", "3"), "--seed"),
    ],
)
def test_what_a_benchmark_cannot_take_is_named(tmp_path, given, named):
    done = bench(tmp_path, "--variants", "colour", *given)
    assert done.returncode == 2 and named in done.stderr and "Traceback" not in done.stderr


def made(variant, seed, skill, fold, heads=4):
    rng = np.random.default_rng([seed, fold, len(variant)])
    label = np.arange(30) % 2
    logits = (label - 0.5)[:, None] * skill + rng.normal(0, 1, (30, heads))
    return {
        "split_by": "group",
        "variant": variant,
        "seed": seed,
        "fold": fold,
        "seconds": 1.0,
        "labels": label.tolist(),
        "groups": [f"{fold}-{index}" for index in range(30)],
        "images": [f"{fold}-{index}.png" for index in range(30)],
        "val_labels": label.tolist(),
        "val_logits": (logits + 1).tolist(),
        "logits": {"as_is": logits.tolist()},
    }


def test_the_tables_hold_the_means_over_folds_and_seeds(tmp_path):
    rows = [
        made(v, seed, skill, fold) for v, skill in (("ours", 3), ("colour", 1)) for seed in (0, 1) for fold in (1, 2)
    ]
    write_tables(rows, tmp_path)
    text = (tmp_path / "tables.md").read_text()

    def mean(variant):
        chosen = [row for row in rows if row["variant"] == variant]
        return np.mean([roc_auc_score(r["labels"], np.array(r["logits"]["as_is"])[:, 3]) for r in chosen])

    assert f"| ours | Global | as they are | 2, 2 | {mean('ours'):.3f} [" in text
    assert f"| colour | its own | as they are | 2, 2 | {mean('colour'):.3f} [" in text
    assert f"| ours, Global, less colour | 2, 2 | {mean('ours') - mean('colour'):.3f} [" in text


def test_lone_networks_are_also_held_against_frozen_features(tmp_path):
    names = ("EfficientNet", "frozen", "colour")
    rows = [made(name, 0, skill, fold) for name, skill in zip(names, (3, 1, 2), strict=True) for fold in (1, 2)]
    write_tables(rows, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    auroc = {
        name: np.mean(
            [
                roc_auc_score(row["labels"], np.array(row["logits"]["as_is"])[:, 3])
                for row in rows
                if row["variant"] == name
            ]
        )
        for name in names
    }
    assert f"| EfficientNet less frozen | 2, 1 | {auroc['EfficientNet'] - auroc['frozen']:.3f} [" in text
    assert text.count(" less ") == 1


def test_two_groups_have_no_interval(tmp_path):
    rows = [made(name, 0, skill, 1) for name, skill in (("ours", 3), ("frozen", 1))]
    for row in rows:
        row["groups"] = [f"block {index // 15}" for index in range(30)]
    write_tables(rows, tmp_path)
    lines = [line for line in (tmp_path / "tables.md").read_text().splitlines() if "1, 1 |" in line]
    assert len(lines) == 6 and all(line.count("[no interval]") == 2 for line in lines)
    drawn = (tmp_path / "accuracy.svg").read_text()
    for row in rows:
        row["groups"] = [f"block {index // 2}" for index in range(30)]
    write_tables(rows, tmp_path)
    assert "[no interval]" not in (tmp_path / "tables.md").read_text()
    assert drawn != (tmp_path / "accuracy.svg").read_text()  # whose marks now reach as far as the intervals


def test_too_few_groups_of_one_class_have_no_interval(tmp_path):
    row = made("ours", 0, 3, 1)
    row["groups"] = ["one" if label else f"{index}" for index, label in enumerate(row["labels"])]
    write_tables([row], tmp_path)
    (line,) = [text for text in (tmp_path / "tables.md").read_text().splitlines() if "| Global | as they are" in text]
    auroc, accuracy = line.split("|")[5:7]
    assert "[no interval]" in auroc and "[no interval]" not in accuracy


def test_a_seed_that_lacks_a_fold_is_left_out(tmp_path):
    rows = [made("ours", 0, 2, 1), made("ours", 0, 2, 2), made("ours", 1, 2, 1), made("colour", 1, 2, 3)]
    bench = Benchmark(rows)
    folds = bench.folds("group", "ours")
    assert folds == {1, 2} and set(bench.by_seed("group", "ours", "global", "as_is", folds)) == {0}
    write_tables(rows, tmp_path)  # ours and colour have no seed and fold in common
    assert "| ours | Global | as they are | 1, 2 |" in (tmp_path / "tables.md").read_text()
    assert " less colour" not in (tmp_path / "tables.md").read_text()


def test_figures_of_different_images_are_not_paired(tmp_path):
    ours, other = made("ours", 0, 2, 1), made("colour", 0, 2, 1)
    other["images"] = other["images"][::-1]
    write_tables([ours, other], tmp_path)
    assert " less colour" not in (tmp_path / "tables.md").read_text()


def test_the_lone_networks_are_also_judged_together():
    rows = [made(name, 0, skill, 1) for name, skill in (("DenseNet", 1), ("EfficientNet", 2), ("ShuffleNet", 3))]
    together = with_mean_of_lone(rows)[-1]
    assert together["variant"] == TOGETHER
    assert np.allclose(together["logits"]["as_is"], np.mean([row["logits"]["as_is"] for row in rows], axis=0))
    assert len(with_mean_of_lone(rows[:2])) == 2


def test_the_choice_among_variants_has_a_table_of_validation_figures(tmp_path):
    row = made("ours", 0, 2, 1)
    write_tables([row], tmp_path)
    logit = np.array(row["val_logits"])[:, 3]
    auroc, accuracy = roc_auc_score(row["val_labels"], logit), np.mean((logit > 0) == np.array(row["val_labels"]))
    assert f"| ours | 1 | {auroc:.3f} | {accuracy:.3f} |" in (tmp_path / "tables.md").read_text()


def test_a_torn_last_row_is_left_out_and_another_is_an_error(tmp_path):
    path = tmp_path / "runs.jsonl"
    good = json.dumps(made("ours", 0, 2, 1))
    path.write_text(f"{good}\n{good[:50]}")
    assert len(read_runs(path)) == 1
    assert path.read_text() == f"{good}\n"  # so that the next row begins a line of its own
    path.write_text(f"{good}\n{good}")  # torn before its end: the next row would be written behind it
    assert len(read_runs(path)) == 1 and path.read_text() == f"{good}\n"
    path.write_text(f"{good[:50]}\n{good}\n")
    with pytest.raises(UserError, match="line 1"):
        read_runs(path)


def test_one_line_on_a_row():
    assert summary(made("ours", 0, 50, 3)) == "ours by group, fold 3, seed 0: AUROC 1.000, accuracy 1.000, 1 s"
