#!/usr/bin/env python3
"""Test a trained 3-TierDCFNet and write its report: results/NAME/test_WHICH/index.html.

Example:
    python 3TDCFNet_test.py --dataroot AneRBC-II --name SEG --gpu_ids 0 --display_id 0 --loadSize 300 --fineSize 300
    python 3TDCFNet_test.py --name SEG --compare OTHER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from options import describe, parse_options
from util.errors import run_door, visible


def compare_runs(options: Any) -> int:
    """Put what earlier tests have written side by side."""
    from util.compare_page import cautions, write_comparison
    from util.compare_runs import compare, comparison_folder, read_run, results_folder
    from util.console import differences_line
    from util.figures import counted

    results, others = Path(options.results_dir), [part for part in options.compare.split(",") if part]
    runs = [read_run(name, results_folder(results, name, options.which_epoch)) for name in (options.name, *others)]
    comparison = compare(runs, resamples=options.resamples, seed=options.seed)
    folder = results / options.name / comparison_folder(options.which_epoch, others)
    page = write_comparison(folder, comparison)
    print(
        f"{counted(len(comparison.images), 'labelled test images')} that all runs share;"
        " differences with 95% intervals by groups"
    )
    for run, found in zip(comparison.runs[1:], comparison.differences, strict=True):
        print(f"  Global of {visible(run.name)} less {visible(comparison.runs[0].name)}: {differences_line(found)}")
    for note in (*cautions(comparison), *comparison.notes):
        print(f"  mind: {visible(note)}")
    print(f"comparison: {page.resolve()}")
    return 0


def test_run(options: Any) -> int:
    """Load the network, judge every image of the split, write the report."""
    from data.runs import load_test_data
    from models.cell_stage import cell_stage
    from models.saved import load_network
    from models.testing import TestRun
    from util.console import headline_lines
    from util.device import choose_device, set_seed
    from util.lock import sole_writer
    from util.memory import keep_freed_memory, out_of_memory_told
    from util.replace_results import written_beside
    from util.report_gradcam import named_images
    from util.runlog import RunFolder

    device = choose_device(options.gpu_ids)
    set_seed(options.seed, deterministic=options.deterministic)
    folder = RunFolder(options.checkpoints_dir, options.name)
    saved = load_network(folder.weights_or_error(options.which_epoch))
    saved.check_sizes(options.loadSize, options.fineSize)
    results = Path(options.results_dir) / options.name / f"test_{options.which_epoch}"
    binary_sees = "gt" if options.binary_from == "gt" else saved.binary_sees
    data = load_test_data(
        options,
        folder.split,
        masks_from=saved.masks_from,
        binary_sees=binary_sees,
        split_digest=saved.facts["data"].get("split_digest"),
    )
    named_images(options.gradcam, [smear.name for smear in data.sides["test"].records])  # before anything is judged
    keep_freed_memory()
    remedy = "wait for it or stop it, or choose another --results_dir"
    with (
        sole_writer(results, remedy=remedy),
        out_of_memory_told(options.batchSize),
        written_beside(results) as unfinished,
    ):
        cells = cell_stage(options, device, unfinished, folder.folder, synthetic=data.facts["synthetic"])
        run = TestRun(saved, device, unfinished, options, folder, binary_sees=binary_sees, cells=cells)
        for side in options.splits:
            run.judge(side, data)
        page = run.write_report(data)
    print(*headline_lines(run.figures or {"splits": {}}), f"report: {(results / page.name).resolve()}", sep="\n")
    return 0


def main() -> int:
    """Parse, and test a run or compare what tests have written."""
    options = parse_options("test", sys.argv[1:], prog="3TDCFNet_test.py", description=__doc__)
    print(describe(options), flush=True)
    return compare_runs(options) if options.compare else test_run(options)


if __name__ == "__main__":
    run_door(main)
