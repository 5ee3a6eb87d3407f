#!/usr/bin/env python3
"""Test a trained 3-TierDCFNet and write its report: results/NAME/test_WHICH/index.html.

Example:
    python 3TDCFNet_test.py --dataroot AneRBC-II --name SEG --gpu_ids 0 --display_id 0 --loadSize 300 --fineSize 300
"""

from __future__ import annotations

import sys
from pathlib import Path

from options import describe, parse_options
from util.errors import run_door


def main() -> int:
    """Parse, load the network, judge every image of the split, write the report."""
    options = parse_options("test", sys.argv[1:], prog="3TDCFNet_test.py", description=__doc__)
    print(describe(options), flush=True)

    from data.runs import load_test_data
    from models.cell_stage import cell_stage
    from models.saved import load_network
    from models.testing import TestRun
    from util.device import choose_device, set_seed
    from util.files import make_folder
    from util.runlog import RunFolder

    device = choose_device(options.gpu_ids)
    set_seed(options.seed, deterministic=options.deterministic)
    folder = RunFolder(options.checkpoints_dir, options.name)
    saved = load_network(folder.weights_or_error(options.which_epoch))
    saved.check_sizes(options.loadSize, options.fineSize)
    results = make_folder(Path(options.results_dir) / options.name / f"test_{options.which_epoch}")
    binary_sees = "gt" if options.binary_from == "gt" else saved.binary_sees
    data = load_test_data(
        options,
        folder.split,
        masks_from=saved.masks_from,
        binary_sees=binary_sees,
        split_digest=saved.facts["data"].get("split_digest"),
    )
    cells = cell_stage(options, device, results, folder.folder)
    run = TestRun(saved, device, results, options, folder, binary_sees=binary_sees, cells=cells)
    for side in options.splits:
        run.judge(side, data)
    page = run.write_report(data)
    print(f"report: {page.resolve()}")
    return 0


if __name__ == "__main__":
    run_door(main)
