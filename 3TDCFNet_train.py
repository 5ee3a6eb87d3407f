#!/usr/bin/env python3
"""Train 3-TierDCFNet on blood smears, with or without masks of their red blood cells.

Example:
    python 3TDCFNet_train.py --dataroot AneRBC-II --name SEG --gpu_ids 0 --display_id 0 --lambda_L1 60 --niter 100
        --niter_decay 150 --pool_size 32 --loadSize 300 --fineSize 300
"""

from __future__ import annotations

import sys
import time
from typing import Any

from options import Options, describe, parse_options, save_options
from util.errors import run_door


def prepare(options: Options) -> tuple[Any, Any]:
    """Read the data, build the session and settle the run's folder; returns both."""
    from data.runs import load_training_data
    from models.building import build_session
    from models.grading import check_cells
    from util.console import starts_line
    from util.device import choose_device, set_seed
    from util.runlog import RunFolder

    device = choose_device(options.gpu_ids)
    set_seed(options.seed, deterministic=options.deterministic)
    folder = RunFolder(options.checkpoints_dir, options.name)
    folder.check(resume=options.continue_train, overwrite=options.overwrite)
    check_cells(options, device)
    data = load_training_data(options, device, folder.split)
    session = build_session(
        options,
        device,
        folder,
        data.facts,
        samples=len(data.smears),
        any_masks=data.any_masks,
        all_masks=data.all_masks,
        class_counts=data.class_counts,
    )
    if options.continue_train:
        session.resume()
    else:
        session.warm_start(data.train, options.distil_epochs)
        folder.begin()
    data.record(folder.split)
    save_options(folder.options, options)
    print(starts_line(session.facts["starts"]), flush=True)
    return data, session


def open_view(options: Options, folder: Any) -> Any:
    """The live view in visdom; with --display_id 0 it shows nothing."""
    from util.visualizer import Visualizer

    view = Visualizer(
        options.display_id,
        server=options.display_server,
        port=options.display_port,
        env=options.display_env,
        name=options.name,
        log_path=folder.visdom_log if options.display_id else None,
    )
    view.restore(folder.history(), folder.gate_rows())
    return view


def main() -> int:
    """Parse, prepare, and run epoch after epoch."""
    options = parse_options("train", sys.argv[1:], prog="3TDCFNet_train.py", description=__doc__)
    print(describe(options), flush=True)
    data, session = prepare(options)

    from models.grading import learn_severity_of_run
    from util.console import epoch_line, gate_line, progress_bar

    view = open_view(options, session.folder)
    begun = time.perf_counter()
    for epoch in session.epochs():
        with progress_bar(f"epoch {epoch + 1}", len(data.train)) as after_step:
            record, decision = session.run_epoch(epoch, data.train, data.val, after_step)
        print(epoch_line(record, session.trainer.settings.epochs), gate_line(decision.as_row()), sep="\n", flush=True)
        if options.display_id:
            view.plot_epoch(record)
            view.mark_gate(decision.as_row())
            view.show_images(*session.examples(data.val))
    view.close()
    if not session.finish(time.perf_counter() - begun):
        return 3
    learn_severity_of_run(options, data, session.folder, session.trainer.device)
    return 0


if __name__ == "__main__":
    run_door(main)
