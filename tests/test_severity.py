"""Severity: haemoglobin from records and reports, WHO's grades, and one source in a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.readers import read_dataroot
from data.records import ANEMIC, HEALTHY, SmearRecord
from data.severity import check_haemoglobin, haemoglobin_of, with_severities
from util.errors import UserError


def record(name="a.png", label=ANEMIC, **known) -> SmearRecord:
    return SmearRecord(name, Path("/nowhere") / name, label=label, **known)


def reported(tmp_path: Path, *lines: str) -> SmearRecord:
    path = tmp_path / "report.txt"
    path.write_text("\n".join(["Test,Result/Units", *lines, "MCHC,25.4 g/dL"]) + "\n", encoding="utf-8")
    return record(cbc=path)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("HGB,4.9 g/dL", 4.9),
        ("HGB,* 9.8 g/dL", 9.8),
        ("HGB,12 g/dL", 12.0),
        ("Hb: 98 g/L", 9.8),
        ("Haemoglobin\t9.8\tg/dl", 9.8),
        ("hemoglobin;L 7.5;g/dL;12-16", 7.5),
        ('"HGB","9.8 g/dL"', 9.8),
        ("HGB (Hb),H 17.5 gm/dL", 17.5),
        ("HGB,9.8", 9.8),
        ("HGB,", None),
        ("HGB,not measured", None),
        ("HbA1c,5.6 %", None),
        ("Haemoglobin A2,2.5 %", None),
        ("MCH,* 14.7 pg", None),
    ],
)
def test_haemoglobin_of_a_report_by_its_unit(tmp_path, line, value):
    assert haemoglobin_of(reported(tmp_path, line)) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["HGB,98 g/dL"], "probably g/L (9.8 g/dL)"),
        (["HGB,0.2 g/dL"], "0.2"),
        (["HGB,-9 g/dL"], "-9"),
        (["HGB,9,8 g/dL"], "9,8"),
        (["HGB,7.5 mmol/L"], "mmol/L"),
        (["HGB 9.8 12-16"], "12-16"),
        (["HGB,9.8 g/dL", "Hb,10 g/dL"], "9.8 g/dL and 10 g/dL"),
    ],
)
def test_report_that_cannot_be_true_or_understood_is_refused_by_name(tmp_path, lines, word):
    with pytest.raises(UserError) as caught:
        haemoglobin_of(reported(tmp_path, *lines))
    assert "report.txt" in caught.value.what and word in caught.value.found and caught.value.remedy


def test_equal_values_stated_twice_are_one(tmp_path):
    assert haemoglobin_of(reported(tmp_path, "HGB,9.8 g/dL", "Hb,98 g/L")) == pytest.approx(9.8)


def test_stated_haemoglobin_comes_before_the_report_and_missing_report_is_refused(tmp_path):
    path = reported(tmp_path, "HGB,9.8 g/dL").cbc
    assert haemoglobin_of(record(haemoglobin=7.1, cbc=path)) == 7.1
    assert haemoglobin_of(record()) is None
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        haemoglobin_of(record(cbc=tmp_path / "none.txt"))


@pytest.mark.parametrize("value", [0, -1, 30.1, 120, float("nan"), float("inf")])
def test_what_no_blood_has_is_refused(value):
    with pytest.raises(UserError):
        check_haemoglobin(value, "x")
    with pytest.raises(UserError):
        haemoglobin_of(record(haemoglobin=value))


STATED = [
    record("1", severity="Mild", severity_source="manifest", haemoglobin=7.0),
    record("2", severity="Chronic", severity_source="folder"),
    record("3", haemoglobin=7.9),
    record("4", haemoglobin=8.0),
    record("5", haemoglobin=12.0),
    record("6", HEALTHY, severity="Mild", severity_source="labels.csv", haemoglobin=10.0),
    record("7", HEALTHY, haemoglobin=14.0),
    record("8", None, haemoglobin=7.0),
]


@pytest.mark.parametrize("source", ["labels", "auto"])
def test_labels_alone_are_used_where_the_data_states_them(source):
    graded, report = with_severities(STATED, source)
    assert [each.severity for each in graded] == ["Mild", "Chronic"] + [None] * 6
    assert [each.severity_source for each in graded] == ["manifest", "folder"] + [""] * 6
    assert (report.source, report.mild, report.chronic, report.unknown, report.contradictory) == ("labels", 1, 1, 3, 1)
    assert "folder, manifest" in report.text and "1 Mild, 1 Chronic, 3 unknown, 1 contradictory" in report.text


def test_haemoglobin_alone_overrides_what_the_data_states():
    graded, report = with_severities(STATED, "haemoglobin")
    assert [each.severity for each in graded] == ["Chronic", None, "Chronic", "Mild"] + [None] * 4
    assert {each.severity_source for each in graded} == {"haemoglobin", ""}
    counts = (report.mild, report.chronic, report.unknown, report.contradictory, report.low_healthy)
    assert counts == (1, 2, 1, 1, 1) and "Chronic below 8 g/dL, normal from 12" in report.text
    assert "1 Healthy smears have low" in report.text


def test_cut_offs_are_parameters():
    graded, report = with_severities(STATED, "haemoglobin", chronic_below=7.5, normal_from=13.0)
    assert [each.severity for each in graded] == ["Chronic", None, "Mild", "Mild", "Mild"] + [None] * 3
    assert report.contradictory == 0


def test_auto_never_takes_haemoglobin_and_none_means_none():
    unstated = [record(haemoglobin=7.0)]
    assert with_severities(unstated)[1].source == "none"
    graded, report = with_severities(STATED, "none")
    assert all(each.severity is None and each.severity_source == "" for each in graded)
    assert report.text == "severity: none"


@pytest.mark.parametrize(
    ("records", "source", "limits", "word"),
    [
        ([record()], "labels", {}, "states none"),
        ([record()], "haemoglobin", {}, "has none"),
        (STATED, "who", {}, "unknown source"),
        (STATED, "haemoglobin", {"chronic_below": 80}, "cut-offs"),
        (STATED, "haemoglobin", {"chronic_below": float("nan")}, "cut-offs"),
        (STATED, "haemoglobin", {"normal_from": 130}, "cut-offs"),
    ],
)
def test_source_that_says_nothing_and_limits_that_are_none_are_refused(records, source, limits, word):
    with pytest.raises(UserError, match=word) as caught:
        with_severities(records, source, **limits)
    assert caught.value.expected and caught.value.found and caught.value.remedy


def test_real_haemoglobin_contradicts_a_quarter_of_the_anemic_and_half_of_the_healthy(shared_data):
    records = read_dataroot(shared_data / "anerbc_326x256")
    _, report = with_severities(records, "haemoglobin")
    assert (report.mild, report.chronic, report.unknown) == (203, 92, 0)
    assert (report.contradictory, report.low_healthy) == (110, 223)
    assert [each.name for each in records if haemoglobin_of(each) is None] == [
        "AneRBC-I/Healthy_individuals/Original_images/471_h.png"
    ]
