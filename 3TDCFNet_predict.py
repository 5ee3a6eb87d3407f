#!/usr/bin/env python3
"""Judge smears without labels: results/NAME/predict_WHICH/ with index.html, predictions.csv, masks/ and the cells.

Examples:
    python 3TDCFNet_predict.py --dataroot smears --name SEG --gpu_ids 0
    python 3TDCFNet_predict.py --dataroot 'smears/2024-*/*.tif' --name SEG --gpu_ids -1 --um_per_px 0.08
    python 3TDCFNet_predict.py --dataroot smears --name SEG --gpu_ids -1 --continue_predict
    python 3TDCFNet_predict.py --dataroot smear.png --name SEG --gpu_ids -1 --cells no
    python 3TDCFNet_predict.py --serve --name SEG --gpu_ids -1

Images are PNG, JPEG, BMP or TIFF; every page of a TIFF file is an image. Where the folder is a data root of a known
layout its masks and labels are left unread. Files that cannot be read are skipped and named at the end; the exit status
is then 1, of a bad call 2. --serve takes no --dataroot: it opens a page on this machine into which smears are dropped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options import describe, parse_options
from util.errors import run_door, visible

if TYPE_CHECKING:
    from data.unlabelled import Unlabelled
    from models.judges import Panel

EXIT_SKIPPED = 1


def main() -> int:
    """Parse, find the images, load the networks, and judge: those of a folder, or those that a page is given."""
    options = parse_options("predict", sys.argv[1:], prog="3TDCFNet_predict.py", description=__doc__)
    print(describe(options), flush=True)

    from data.unlabelled import smears_of
    from models.judges import load_panel
    from util.device import choose_device, set_seed
    from util.memory import keep_freed_memory, out_of_memory_told
    from util.runlog import RunFolder

    keep_freed_memory()
    device = choose_device(options.gpu_ids)
    set_seed(options.seed, deterministic=options.deterministic)
    together = "_ensemble" if options.ensemble else ""
    results = Path(options.results_dir) / options.name / f"predict_{options.which_epoch}{together}"
    found = None if options.serve else smears_of(options, results)  # a wrong path is told before the network is loaded
    folders = [RunFolder(options.checkpoints_dir, name) for name in (options.name, *options.ensemble)]
    panel = load_panel(folders, options, device)
    with out_of_memory_told(options.batchSize):
        return predict(options, panel, device, found, results) if found else serve(options, panel, device)


def predict(options: Any, panel: Panel, device: Any, found: Unlabelled, results: Path) -> int:
    """Judge the images, write the page."""
    from data.unlabelled import SmearStream
    from models.cell_stage import cell_stage
    from models.predicting import PredictRun, skipped_error
    from util.files import make_folder
    from util.lock import sole_writer

    print(found.summary(), *found.notes, sep="\n", flush=True)
    with sole_writer(results, remedy="wait until it is done, or write elsewhere (--results_dir)"):
        make_folder(results)
        run_folder = Path(options.checkpoints_dir) / options.name
        cells = cell_stage(options, device, results, run_folder, synthetic=found.synthetic)
        run = PredictRun(panel, device, results, options, cells=cells)
        workers = options.num_workers or None
        masks = {"otsu": panel.by_otsu, "masks": panel.sees_otsu}
        smears = SmearStream(found, panel.load_sizes, options.batchSize, **masks, workers=workers)
        run.judge(smears, str(found.root))
        page = run.write_report(smears, found.facts())
    print(run.summary(smears), f"report: {page.resolve()}", sep="\n")
    error = skipped_error(smears.skipped, len(run.tally.rows))
    if error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
    return EXIT_SKIPPED if error else 0


def serve(options: Any, panel: Panel, device: Any) -> int:
    """Open the page and judge what it is given until interrupted."""
    from data.images import decode_rgb, otsu_mask
    from data.unlabelled import batches_of
    from models.serving import Desk
    from util.serve import MOST_PIXELS, serve_page

    desk = Desk(
        panel,
        options,
        device,
        decode=lambda content: decode_rgb(content, "the file", most_pixels=MOST_PIXELS),
        batches=lambda rgb: batches_of(rgb, panel.load_sizes, device, masks=panel.sees_otsu),
        otsu=otsu_mask,
    )
    serve_page(desk.judge, desk.facts(), port=options.port)
    return 0


if __name__ == "__main__":
    run_door(main)
