#!/usr/bin/env python3
"""Judge smears without labels: results/NAME/predict_WHICH/ with index.html, predictions.csv, masks/ and the cells.

Examples:
    python 3TDCFNet_predict.py --dataroot smears --name SEG --gpu_ids 0
    python 3TDCFNet_predict.py --dataroot 'smears/2024-*/*.tif' --name SEG --gpu_ids -1 --um_per_px 0.08
    python 3TDCFNet_predict.py --dataroot smear.png --name SEG --gpu_ids -1 --cells no

Images are PNG, JPEG, BMP or TIFF. Where the folder is a data root of a known layout its masks and labels are left
unread. Files that cannot be read are skipped and named at the end; the exit status is then 1, of a bad call 2.
"""

from __future__ import annotations

import sys
from pathlib import Path

from options import describe, parse_options
from util.errors import run_door

EXIT_SKIPPED = 1


def main() -> int:
    """Parse, find the images, load the network, judge them, write the page."""
    options = parse_options("predict", sys.argv[1:], prog="3TDCFNet_predict.py", description=__doc__)
    print(describe(options), flush=True)

    from data.unlabelled import SmearStream, smears_of
    from models.cell_stage import cell_stage
    from models.predicting import PredictRun, skipped_error
    from models.saved import load_network
    from util.device import choose_device, set_seed
    from util.files import make_folder
    from util.runlog import RunFolder

    device = choose_device(options.gpu_ids)
    set_seed(options.seed, deterministic=options.deterministic)
    folder = RunFolder(options.checkpoints_dir, options.name)
    saved = load_network(folder.weights_or_error(options.which_epoch))
    saved.check_sizes(options.loadSize, options.fineSize)
    results = Path(options.results_dir) / options.name / f"predict_{options.which_epoch}"
    found = smears_of(options, results)
    print(found.summary(), *found.notes, sep="\n", flush=True)
    make_folder(results)
    cells = cell_stage(options, device, results, folder.folder)
    run = PredictRun(saved, device, results, options, cells=cells)
    otsu = saved.masks_from == "otsu"
    smears = SmearStream(found, options.loadSize, options.batchSize, otsu=otsu, workers=options.num_workers or None)
    run.judge(smears)
    page = run.write_report(smears, found.facts())
    print(f"report: {page.resolve()}")
    error = skipped_error(smears.skipped, len(run.tally.rows))
    if error:
        print(f"error: {error}", file=sys.stderr)
    return EXIT_SKIPPED if error else 0


if __name__ == "__main__":
    run_door(main)
