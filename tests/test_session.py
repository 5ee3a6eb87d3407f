"""A run as a whole: it goes on with the bits of one that never stopped, loses nothing, and ends when it should."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.gate import Gate, GateSettings
from models.network import Architecture, NetworkOutput
from models.session import TrainingSession
from models.trainer import LOSS_KEYS, EpochTotals
from tests.test_training import SIZE, Batches, make_trainer
from util.checkpoint import load_checkpoint, save_checkpoint
from util.errors import UserError
from util.runlog import RunFolder


def session(tmp_path, epochs=4, thresholds=(0.0, 0.0, 2.0), save_seconds=0.0, **changes):
    trainer = make_trainer(niter=epochs, **changes)
    gate = Gate(GateSettings(thresholds, 1.0, (2, 2, 99), "force"))
    folder = RunFolder(tmp_path, "run")
    folder.check(resume=folder.state.exists(), overwrite=False)
    return TrainingSession(
        trainer, gate, folder, {"options": {}, "data": {}, "starts": {"tier1": "chance"}}, save_seconds=save_seconds
    )


def run(one, stop_after=None):
    for epoch in one.epochs():
        one.run_epoch(epoch, Batches(), Batches(seed=1))
        if stop_after is not None and epoch + 1 == stop_after:
            return
    one.finish(0.0)


def always_better(one):
    """Let every epoch be the best one so far."""
    real, loss = one.trainer.validate, iter(range(1000, 0, -1))

    def validate(batches):
        evaluation = real(batches)
        evaluation.auroc, evaluation.loss = (lambda head: 0.5), float(next(loss))
        return evaluation

    one.trainer.validate = validate
    return one


def best_of(one):
    return load_checkpoint(one.folder.weights("best"))["epoch"]


def test_a_resumed_run_takes_the_rates_it_is_now_given(tmp_path):
    run(session(tmp_path), stop_after=1)
    again = session(tmp_path, lr=3e-3, weight_decay=0.5)
    again.resume()
    again.trainer.set_learning_rate(1)
    assert [g["weight_decay"] for g in again.trainer.optimizer.param_groups] == [0.5, 0.0] * 4
    assert {g["lr"] for g in again.trainer.optimizer.param_groups} == {3e-3, 0.0}  # one tier is open


def test_a_verdict_that_is_not_finite_is_not_saved(tmp_path):
    one = session(tmp_path)
    run(one, stop_after=1)
    before = {path.name: path.read_bytes() for path in one.folder.folder.iterdir()}
    bad = Batches()
    bad.rgb[0] = math.nan
    with pytest.raises(UserError, match="(?s)diverged in epoch 2.*a verdict") as error:
        one.run_epoch(1, Batches(), bad)
    assert "--continue_train with a --lr below" in str(error.value)
    assert {path.name: path.read_bytes() for path in one.folder.folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["weights", "no gate", "no best", "infinite tier", "no ranks"])
def test_a_state_of_another_kind_is_refused(tmp_path, damage):
    one = session(tmp_path)
    run(one, stop_after=1)
    if damage == "weights":
        one.folder.state.write_bytes(one.folder.weights("latest").read_bytes())
    else:
        content = load_checkpoint(one.folder.state)
        if damage == "infinite tier":
            content["gate"]["tier"] = float("inf")
        elif damage == "no ranks":
            content["trainer"]["ranks"] = [{}]
        else:
            content.pop(damage.split()[1])
        save_checkpoint(one.folder.state, content)
    with pytest.raises(UserError, match="is no state to go on from"):
        session(tmp_path).resume()


def test_a_run_ends_when_all_gates_are_open_if_that_was_asked(tmp_path):
    one = session(tmp_path, epochs=9, thresholds=(0.0, 0.0, 0.0))
    one.stop_when_open = True
    run(one)
    assert one.done == 3 and one.gate.all_open
    assert one.folder.finished.exists()
    other = session(tmp_path / "other", epochs=5, thresholds=(0.0, 0.0, 0.0))
    run(other)
    assert other.done == 5


def test_numbered_weights_are_kept_when_asked(tmp_path):
    one = session(tmp_path)
    one.save_every = 2
    run(one)
    kept = sorted(path.name.split("_")[0] for path in one.folder.folder.glob("*_net_*"))
    assert kept == ["2", "4", "best", "latest"]


def test_continuing_a_finished_run_keeps_what_it_said(tmp_path, capsys):
    one = session(tmp_path)
    run(one)
    one.finish(seconds=1.0)
    assert "nothing was left to train" not in capsys.readouterr().out
    before = one.folder.finished.read_bytes()
    again = session(tmp_path)
    again.resume()
    assert list(again.epochs()) == []
    again.finish(seconds=9.0)
    assert one.folder.finished.read_bytes() == before
    assert "nothing was left to train: --niter and --niter_decay ask for 4 epochs" in capsys.readouterr().out


def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = session(tmp_path / "a")
    run(whole)
    run(session(tmp_path / "b"), stop_after=2)
    torch.manual_seed(12345)
    resumed = session(tmp_path / "b")
    resumed.resume()
    assert resumed.done == 2
    assert load_checkpoint(resumed.folder.state)["starts"] == {"tier1": "chance"}
    run(resumed)
    for key, value in whole.trainer.network.state_dict().items():
        assert torch.equal(value, resumed.trainer.network.state_dict()[key]), key
    for key, value in whole.trainer.discriminator.state_dict().items():
        assert torch.equal(value, resumed.trainer.discriminator.state_dict()[key]), key
    assert [r["train"] for r in whole.folder.history()] == [r["train"] for r in resumed.folder.history()]
    assert whole.folder.gate_rows() == resumed.folder.gate_rows()
    assert [row["decision"] for row in whole.folder.gate_rows()] == ["open", "open", "stay", "forced"]


def test_logs_of_an_epoch_that_was_not_saved_are_cut(tmp_path):
    one = session(tmp_path)
    run(one, stop_after=1)
    one.save_seconds = 3600.0
    run(one, stop_after=3)  # the first epoch was saved, the second and third not yet
    again = session(tmp_path)
    again.resume()
    assert again.done == 1
    assert [r["epoch"] for r in again.folder.history()] == [1]
    assert [r["epoch"] for r in again.folder.gate_rows()] == ["1"]


def test_a_run_that_its_gate_stopped_stays_stopped_unless_it_is_given_more_epochs(tmp_path):
    one = session(tmp_path, thresholds=(2.0, 2.0, 2.0))
    one.gate.settings = replace(one.gate.settings, on_budget="stop")
    run(one)
    assert one.done == 2
    again = session(tmp_path, thresholds=(2.0, 2.0, 2.0))
    again.gate.settings = replace(again.gate.settings, on_budget="stop")
    again.resume()
    assert again.stopped and list(again.epochs()) == []
    more = session(tmp_path, thresholds=(2.0, 2.0, 2.0))
    more.gate.settings = replace(more.gate.settings, on_budget="stop", budgets=(3, 3, 99))
    more.resume()
    assert next(more.epochs()) == 2


def test_best_weights_of_epochs_that_are_thrown_away_never_take_the_place_of_the_kept_ones(tmp_path, capsys):
    one = always_better(session(tmp_path))
    run(one, stop_after=1)
    kept = one.folder.weights("best").read_bytes()
    one.save_seconds = 3600.0
    run(one, stop_after=3)  # epochs 2 and 3 are better, and no state of them is saved
    assert one.best["epoch"] == 3 and one.folder.weights("best").read_bytes() == kept
    again = session(tmp_path)
    again.resume()
    assert again.best["epoch"] == 1 == best_of(again) and not capsys.readouterr().err
    one.best["epoch"], one.saved_at = 3, -math.inf
    one._save_state(None)
    assert best_of(one) == 3, "they come with the next state"


def test_the_best_weights_of_the_state_before_come_back_with_it(tmp_path, capsys):
    one = always_better(session(tmp_path))
    run(one, stop_after=3)
    kept = load_checkpoint(one.folder.best_before)
    assert (kept["epoch"], best_of(one)) == (2, 3)
    one.folder.state.write_bytes(b"damaged")
    again = session(tmp_path)
    again.resume()
    assert again.done == 2 == best_of(again) and "going on from" in capsys.readouterr().err


@pytest.mark.parametrize("call", range(1, 8))
def test_a_kill_while_state_and_best_are_saved_leaves_a_pair(tmp_path, monkeypatch, call):
    one = always_better(session(tmp_path))
    run(one, stop_after=2)
    import os

    real, calls = os.replace, iter(range(1, 1000))

    def replace_until(*names):
        if next(calls) >= call:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr("os.replace", replace_until)
    with pytest.raises(KeyboardInterrupt):
        run(one, stop_after=4)
    monkeypatch.undo()
    again = session(tmp_path)
    again.resume()
    assert again.best["epoch"] == best_of(again) == again.done
    assert not again.folder.best_next.exists()


def test_best_weights_that_no_state_knows_are_removed(tmp_path, capsys):
    one = session(tmp_path)
    one.save_start()
    one.folder.weights("best").write_bytes(b"of another time")
    session(tmp_path).resume()
    assert not one.folder.weights("best").exists() and not capsys.readouterr().err


def test_damaged_best_weights_are_told_and_stop_no_run(tmp_path, capsys):
    run(session(tmp_path), stop_after=1)
    again = session(tmp_path)
    again.folder.weights("best").write_bytes(b"damaged")
    again.resume()
    assert again.done == 1 and "best_net_3TDCFNet.safetensors cannot be read" in capsys.readouterr().err


def test_a_kill_while_logs_are_cut_loses_no_gate(tmp_path, monkeypatch):
    one = session(tmp_path)
    run(one, stop_after=2)
    rows = one.folder.gate_rows()
    monkeypatch.setattr(RunFolder, "log_gate", lambda *arguments: pytest.fail("rows are not written one by one"))
    one.folder.cut_logs(2)
    assert one.folder.gate_rows() == rows
    one.folder.cut_logs(0)
    assert one.folder.gate_rows() == []


def test_a_history_of_another_size_begins_anew(tmp_path):
    one = session(tmp_path, pool_size=2)
    run(one, stop_after=1)
    other = session(tmp_path, pool_size=32)
    other.resume()
    run(other, stop_after=2)
    assert len(other.trainer.history.pairs) == 32


def test_a_clock_that_is_set_back_changes_neither_saves_nor_seconds(tmp_path, monkeypatch):
    clock = iter(2e9 - 1e8 * step for step in range(100_000))
    monkeypatch.setattr("time.time", lambda: next(clock))
    one = session(tmp_path, epochs=2)
    run(one)
    assert load_checkpoint(one.folder.state)["epoch"] == 2
    assert all(0 <= record["seconds"] < 60 for record in one.folder.history())


def test_a_state_is_saved_in_the_middle_of_an_epoch_when_it_is_time(tmp_path, monkeypatch):
    one = session(tmp_path, save_seconds=10.0)
    now = [0.0]
    monkeypatch.setattr("models.session.time.monotonic", lambda: now[0])
    seen = []
    one.save_start()
    one.weights_at = 0.0

    def after(totals):
        now[0] += 6.0
        seen.append((totals.images, load_checkpoint(one.folder.state)["begun"]))

    one.run_epoch(0, Batches(batch=2), Batches(seed=1), after)
    saved = [begun and begun["totals"]["images"] for _, begun in seen]
    assert saved == [None, None, 4, 4]  # of 2, 4, 6 and 8 images: at 12 seconds, and again at 24, after the last step
    assert one.saved_at == 24.0 and load_checkpoint(one.folder.state)["begun"] is None and one.done == 1
    assert one.folder.weights("latest").is_file(), "the weights have a clock of their own"


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    one = session(tmp_path)
    run(one, stop_after=1)
    one.stop.note(15)

    def after(totals):
        one.trainer.discriminator.judge[0].weight.data[0] = math.nan

    with pytest.raises(UserError, match="diverged in epoch 2") as error:
        one.run_epoch(1, Batches(), Batches(seed=1), after)
    assert "a weight of PatchDiscriminator is not finite (4 images into the epoch)" in str(error.value)
    assert load_checkpoint(one.folder.state)["epoch"] == 1


def test_a_gate_that_stops_ends_the_run_and_says_so(tmp_path, capsys):
    one = session(tmp_path, thresholds=(2.0, 2.0, 2.0))
    one.gate.settings = replace(one.gate.settings, on_budget="stop")
    run(one)
    assert one.done == 2 and one.stopped
    assert "stopped after 2 epochs" in capsys.readouterr().out
    assert not one.folder.finished.exists() and one.folder.weights("latest").exists()


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.5, 1.0), (0.9, 1.0), (0.7, 0.1), (0.9, 1.0)], 2),
        ([(1.0, 0.9), (1.0, 0.5), (1.0, 0.6), (0.9, 0.1)], 2),  # equal AUROC: the lower loss
        ([(None, 0.9), (None, 0.5), (None, 0.4), (None, 0.6)], 3),  # one class only
        ([(None, math.nan)] * 4, 4),  # no label: the last
    ],
)
def test_best_is_the_epoch_of_the_best_validation(tmp_path, scores, best):
    one, given = session(tmp_path), iter(scores)
    real = one.trainer.validate

    def validate(batches):
        evaluation, (auroc, loss) = real(batches), next(given)
        evaluation.auroc, evaluation.loss = (lambda head: auroc), loss
        return evaluation

    one.trainer.validate = validate
    run(one)
    assert one.best["epoch"] == best
    assert load_checkpoint(one.folder.weights("best"))["epoch"] == best
    assert load_checkpoint(one.folder.weights("latest"))["epoch"] == 4


def test_resuming_another_architecture_is_refused(tmp_path):
    run(session(tmp_path), stop_after=1)
    other = session(tmp_path)
    other.trainer.network.architecture = Architecture("small", SIZE, 0.5)
    with pytest.raises(UserError, match="another architecture"):
        other.resume()


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tmp_path):
    one = session(tmp_path)
    run(one, stop_after=1)
    before = one.folder.state.read_bytes()
    bad = Batches()
    bad.rgb[:] = math.nan
    with pytest.raises(UserError, match="is not finite"):
        one.run_epoch(1, bad, Batches())
    assert one.folder.state.read_bytes() == before


def test_a_run_without_gates_asks_none_and_says_so(tmp_path, capsys):
    one = session(tmp_path, epochs=2, gates="off")
    one.gate = Gate.begin(replace(one.gate.settings, on=False))
    run(one)
    assert one.gate.summary() == {f"tier{t}": {"how": "not asked", "epoch": 0} for t in (1, 2, 3)}
    assert {row["decision"] for row in one.folder.gate_rows()} == {"stay"}
    assert "no gate is asked" in one.folder.gate_rows()[0]["reason"]


def test_the_average_is_what_is_judged_and_saved(tmp_path):
    one = session(tmp_path, epochs=1, ema=0.99)
    run(one)
    saved = load_checkpoint(one.folder.weights("latest"))["network"]
    key = "decoder.logit.weight"
    assert torch.equal(saved[key], one.trainer.average.network.state_dict()[key])
    assert not torch.equal(saved[key], one.trainer.network.state_dict()[key])
    batch = next(iter(Batches()))
    judged = one.trainer.evaluate([batch]).logits
    one.trainer.network.load_state_dict(make_trainer().network.state_dict())
    assert np.array_equal(judged, one.trainer.evaluate([batch]).logits)


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"earlier_lr": 0.5, "warmup": 2}, {"gates": "off"}])
def test_a_resumed_run_with_other_settings_ends_with_the_bits_of_the_uninterrupted_one(tmp_path, changes):
    whole = session(tmp_path / "whole", **changes)
    run(whole)
    run(session(tmp_path / "parts", **changes), stop_after=2)
    torch.manual_seed(99)
    again = session(tmp_path / "parts", **changes)
    again.resume()
    run(again)
    for key, value in whole.trainer.judge.state_dict().items():
        assert torch.equal(value, again.trainer.judge.state_dict()[key]), key


def test_patience_ends_the_run_once_all_tiers_are_open(tmp_path, capsys):
    one = session(tmp_path, epochs=20, thresholds=(0.0, 0.0, 0.0))
    one.patience = 3
    real = one.trainer.validate

    def never_better(batches):
        evaluation = real(batches)
        evaluation.auroc, evaluation.loss = (lambda head: 0.5), 1.0
        return evaluation

    one.trainer.validate = never_better
    run(one)
    assert one.best["epoch"] == 1 and one.opened_last == 2
    assert one.done == 5  # three epochs after the last tier opened, not after the best epoch
    assert "ended early" in capsys.readouterr().out


def test_the_gate_asks_what_the_tier_says_by_itself(tmp_path):
    """A tier that only repeats the one before has learned nothing, however right its verdict is."""
    totals = EpochTotals(torch.device("cpu"))
    batch = next(iter(Batches()))
    right = torch.where(batch.label > 0, 1.0, -1.0)
    voices = torch.stack([right, -right, torch.zeros(4), right], dim=1)
    verdicts = torch.stack([right] * 4, dim=1)
    nothing = [torch.zeros(())] * len(LOSS_KEYS)
    totals.add(nothing, NetworkOutput(verdicts, voices, torch.zeros_like(batch.mask), []), batch)
    report = totals.report(open_tiers=2)
    assert report["accuracy"] == {"tier1": 1.0, "tier2": 1.0, "global": 1.0}
    assert report["own_accuracy"] == {"tier1": 1.0, "tier2": 0.0}
    one = session(tmp_path, thresholds=(0.5, 0.5, 0.5))
    one.gate.tier = 2
    record = {"train": report, "val": {**report, "own_accuracy": {"tier1": 1.0, "tier2": 0.75}}}
    decision = one._ask_gate(3, record)
    assert (decision.train_accuracy, decision.val_accuracy, decision.decision) == (0.0, 0.75, "stay")


def test_the_session_is_built_with_the_options_and_the_classes_counted(tmp_path):
    from models.building import build_session
    from options import parse_options

    line = (
        "--dataroot x --preset small --fineSize 64 --loadSize 64 --class_weights balanced --ema 0.9 --binary_stream no"
    )
    options = parse_options("train", [*line.split(), "--pretrained", "none"], prog="train", description="")
    facts = {"samples": 8, "any_masks": True, "all_masks": True, "class_counts": (30, 10)}
    built = build_session(options, torch.device("cpu"), RunFolder(tmp_path, "run"), {}, **facts)
    assert built.trainer.class_weights.tolist() == pytest.approx([40 / 60, 2.0])
    assert built.trainer.average.decay == 0.9 and built.trainer.network.tiers[0].binary is None
    assert set(built.facts["starts"].values()) == {"random weights (--pretrained none)"}
