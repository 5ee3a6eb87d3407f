"""What tells the classes of synthetic smears apart: the blood and its counts, and nothing else."""

from __future__ import annotations

import re
from dataclasses import astuple

import numpy as np
import pytest
from scipy import ndimage, stats

from data.records import ANEMIC, HEALTHY
from data.synthetic import (
    artefacts_of,
    camera_of,
    film_of,
    label_and_severity,
    stain_of,
    stream,
    synthesize,
)
from data.synthetic_cells import Film, draw_red_cell
from data.synthetic_optics import draw_camera, draw_stain
from data.synthetic_populations import POPULATIONS, blood_count_report, draw_subject
from data.synthetic_render import central_pallors

# --- the classes ---------------------------------------------------------------------------------------------------


def _population_means(label: int, severity: str | None) -> tuple[float, float]:
    diameters, pallors = [], []
    for number in range(40):
        rng = np.random.default_rng([number, label, severity == "Chronic"])
        subject = draw_subject(label, severity, rng)
        if label == ANEMIC and "iron" not in subject.population.name:
            continue
        cells = [draw_red_cell(subject, Film(edge=0.25), rng) for _ in range(40)]
        diameters += [2 * cell.radius for cell in cells]
        pallors += central_pallors(cells).tolist()
    return float(np.mean(diameters)), float(np.mean(pallors))


def test_iron_deficient_cells_are_smaller_and_paler_the_more_so_the_worse():
    healthy, mild, severe = (_population_means(*group) for group in ((0, None), (1, "Mild"), (1, "Chronic")))
    assert healthy[0] - 0.5 > mild[0] > severe[0] + 0.5
    assert healthy[1] + 0.04 < mild[1] < severe[1] - 0.04


def test_measured_truth_of_pictures_differs_between_classes():
    pictures = [synthesize(index, seed=21, size=64) for index in range(60)]

    def means(label: int, field: str) -> list[float]:
        chosen = [s for s in pictures if s.label == label and (not label or "iron" in s.subject.population.name)]
        return [float(np.mean([getattr(cell, field) for cell in smear.cells])) for smear in chosen]

    assert (
        stats.ttest_ind(means(HEALTHY, "diameter_um"), means(ANEMIC, "diameter_um"), alternative="greater").pvalue
        < 1e-3
    )
    assert (
        stats.ttest_ind(means(HEALTHY, "central_pallor"), means(ANEMIC, "central_pallor"), alternative="less").pvalue
        < 1e-3
    )


def test_counts_of_cells_overlap_between_classes():
    ranges = [(population.cells_per_field.mean, population.cells_per_field.sd) for population in POPULATIONS]
    healthy = ranges[0]
    assert all(abs(mean - healthy[0]) < 1.3 * min(sd, healthy[1]) for mean, sd in ranges)


def test_stain_and_camera_do_not_depend_on_the_class():
    labels = np.array([label_and_severity(index, 2)[0] for index in range(600)])
    stains = [stain_of(index, 2) for index in range(600)]
    colours = np.array([np.concatenate([stain.red_cell, stain.background]) for stain in stains])
    for column in colours.T:
        assert stats.ks_2samp(column[labels == HEALTHY], column[labels == ANEMIC]).pvalue > 0.005
    assert colours[:, :3].std(axis=0).min() > 0.005, "stain varies from picture to picture"


def test_the_picture_is_made_with_the_stain_of_its_index():
    """The empty field shows the drawn light, whatever the class."""
    for index in range(16):
        smear = synthesize(index, seed=9, size=96)
        field = smear.rgb[~ndimage.binary_dilation(smear.mask, iterations=5)]
        expected = stain_of(index, 9).background
        seen = np.median(field, axis=0)
        assert seen == pytest.approx(expected, rel=0.09)
        assert seen[0] / seen[2] == pytest.approx(expected[0] / expected[2], rel=0.03)


def test_streams_of_one_picture_are_independent():
    first, second = (stream(1, 5, purpose).standard_normal(4000) for purpose in (2, 3))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert draw_stain(stream(1, 5, 2)).background.tolist() == draw_stain(stream(1, 5, 2)).background.tolist()
    assert draw_camera(stream(1, 5, 3)).electrons == draw_camera(stream(1, 5, 3)).electrons


def test_subjects_meet_the_limits_of_their_grade():
    rng = np.random.default_rng(5)
    for label, severity, low, high in ((HEALTHY, None, 12, 18), (ANEMIC, "Mild", 11, 13), (ANEMIC, "Chronic", 4, 8)):
        for _ in range(50):
            subject = draw_subject(label, severity, rng)
            assert low <= subject.haemoglobin < high
            assert subject.red_cells * subject.mch / 10 == pytest.approx(subject.haemoglobin)


def test_spans_and_shares_are_possible():
    for population in POPULATIONS:
        assert sum(population.kinds) < 0.5
        for span in (
            *population.haemoglobin,
            population.mcv,
            population.mchc,
            population.rdw,
            population.cells_per_field,
        ):
            assert span.low <= span.mean <= span.high and span.sd > 0


# --- nothing but the blood tells the class -------------------------------------------------------------------------


def _numbers(index: int, seed: int) -> list[float]:
    """All that was drawn for the picture's preparation, light, camera and artefacts, as numbers."""
    stain, camera, film, artefacts = (source(index, seed) for source in (stain_of, camera_of, film_of, artefacts_of))
    numbers = np.concatenate([np.ravel(value) for value in (*vars(stain).values(), *vars(camera).values())]).tolist()
    numbers += [float(value) for value in astuple(film)]
    return [
        *numbers,
        float(artefacts.pointer is not None),
        float(len(artefacts.dirt)),
        float(artefacts.jpeg_quality or 0),
    ]


@pytest.mark.parametrize("wanted", ["label", "grade"])
def test_a_classifier_of_preparation_and_camera_is_at_chance(wanted):
    ensemble = pytest.importorskip("sklearn.ensemble")
    selection = pytest.importorskip("sklearn.model_selection")
    truth = [label_and_severity(index, 6) for index in range(500)]
    kept = [index for index, (label, _) in enumerate(truth) if wanted == "label" or label == ANEMIC]
    target = np.array([truth[i][0] if wanted == "label" else truth[i][1] == "Mild" for i in kept], int)
    features = np.array([_numbers(index, 6) for index in kept])
    forest = ensemble.RandomForestClassifier(100, random_state=0)
    accuracy = selection.cross_val_score(forest, features, target, cv=5).mean()
    assert abs(accuracy - 0.5) < 3.3 * np.sqrt(0.25 / len(kept))
    leak = np.column_stack([features, target + np.random.default_rng(0).normal(0, 0.5, len(kept))])
    assert selection.cross_val_score(forest, leak, target, cv=5).mean() > 0.7, "a leak would be seen"


def test_a_classifier_of_the_empty_field_is_at_chance():
    """The picture's own background: its colour, its evenness, its noise."""
    ensemble = pytest.importorskip("sklearn.ensemble")
    selection = pytest.importorskip("sklearn.model_selection")
    features, labels = [], []
    for index in range(160):
        smear = synthesize(index, seed=17, size=64)
        field = smear.rgb[ndimage.distance_transform_edt(~smear.mask) > 6].astype(float)
        if len(field) < 40:
            continue
        features.append([*np.median(field, axis=0), *field.std(axis=0)])
        labels.append(smear.label)
    forest = ensemble.RandomForestClassifier(200, random_state=0)
    score = selection.cross_val_score(forest, np.array(features), labels, cv=5).mean()
    assert abs(score - 0.5) < 3.3 * np.sqrt(0.25 / len(labels))


# --- blood counts --------------------------------------------------------------------------------------------------


def test_report_reads_like_the_real_ones_and_adds_up():
    subject = draw_subject(ANEMIC, "Chronic", np.random.default_rng(0))
    lines = blood_count_report(subject).splitlines()
    assert lines[0] == "Test,Result/Units"
    matches = [re.fullmatch(r"([A-Z-]+),(\* )?([\d.]+) (\S+)", line) for line in lines[1:]]
    assert all(matches)
    values = {match[1]: float(match[3]) for match in matches if match}
    assert list(values) == ["WBC", "RBC", "HGB", "HCT", "MCV", "MCH", "MCHC", "RDW-CV", "PLT"]
    assert values["HGB"] / values["HCT"] * 100 == pytest.approx(values["MCHC"], rel=0.02)
    assert values["HCT"] / values["RBC"] * 10 == pytest.approx(values["MCV"], rel=0.02)
    assert next(line for line in lines if line.startswith("HGB")).startswith("HGB,* ")


def test_equal_reports_do_not_recur():
    rng = np.random.default_rng(8)
    groups = ((HEALTHY, None), (ANEMIC, "Mild"), (ANEMIC, "Chronic"))
    reports = [blood_count_report(draw_subject(*groups[number % 3], rng)) for number in range(3000)]
    assert len(set(reports)) == len(reports)
