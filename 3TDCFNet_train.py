#!/usr/bin/env python3
"""Train 3-TierDCFNet on blood smears, with or without masks of their red blood cells.

Example:
    python 3TDCFNet_train.py --dataroot AneRBC-II --name SEG --gpu_ids 0 --display_id 0 --lambda_L1 60 --niter 100
        --niter_decay 150 --pool_size 32 --loadSize 300 --fineSize 300
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import Any

from options import Options, describe, parse_options, save_options
from util.errors import run_door


def prepare(options: Options, device: Any, ranks: Any) -> tuple[Any, Any]:
    """Read the data, build the session and settle the run's folder; returns both."""
    from data.runs import load_training_data
    from models.building import batch_chooser, build_session
    from models.grading import check_cells
    from util.console import starts_line
    from util.live_tensorboard import require_tensorboard
    from util.provenance import start_facts
    from util.runlog import RunFolder

    if options.tensorboard:
        require_tensorboard()
    folder = RunFolder(options.checkpoints_dir, options.name)
    if ranks.first:
        folder.check(resume=options.continue_train, overwrite=options.overwrite)
    check_cells(options, device)
    with ranks.first_before_others():
        data = load_training_data(options, device, folder.split, ranks, batch_chooser(options, device, ranks))
    session = build_session(
        options,
        device,
        folder,
        data.facts,
        samples=len(data.smears),
        any_masks=data.any_masks,
        all_masks=data.all_masks,
        class_counts=data.class_counts,
        ranks=ranks,
    )
    if options.continue_train:
        session.resume()
    else:
        session.warm_start(data.train, options.distil_epochs)
    if ranks.first:
        folder.begin(resume=options.continue_train)
        folder.log_start({**start_facts(device), "processes": ranks.world, "after_epochs": session.done})
        data.record(folder.split)
        save_options(folder.options, options)
    if not options.continue_train:
        session.save_start()
    print(starts_line(session.facts["starts"]), flush=True)
    return data, session


def open_view(options: Options, session: Any) -> Any:
    """The live view in visdom and TensorBoard, as asked for; its log is always written, by the first process."""
    from util.visualizer import Visualizer

    folder, first = session.folder, session.ranks.first
    view = Visualizer(
        options.display_id if first else 0,
        server=options.display_server,
        port=options.display_port,
        env=options.display_env,
        name=options.name,
        log_path=folder.visdom_log if first else None,
        tensorboard=folder.folder / "tensorboard" if first and options.tensorboard else None,
    )
    view.restore(folder.history(), folder.gate_rows())
    return view


def run_epochs(options: Options, data: Any, session: Any, view: Any) -> None:
    """Run epoch after epoch, and show each."""
    from util.console import epoch_line, gate_line, progress_bar

    for epoch in session.epochs():
        with progress_bar(f"epoch {epoch + 1}", *session.steps_of(data.train)) as after_step:
            record, decision = session.run_epoch(epoch, data.train, data.val, after_step)
        print(epoch_line(record, session.trainer.settings.epochs), gate_line(decision.as_row()), sep="\n", flush=True)
        view.plot_epoch(record)
        view.mark_gate(decision.as_row())
        view.show_examples(session.examples)


def learn_from_the_end(options: Options, data: Any, session: Any, device: Any) -> None:
    """After the last epoch: severity by cells, what the training images are like, the line that tests compare with."""
    from models.frozen import learn_line
    from models.grading import learn_severity_of_run
    from models.novelty import learn
    from util.runlog import BEST, LATEST

    try:
        learn_severity_of_run(options, data, session.folder, device)
        for weights in map(session.folder.weights, (LATEST, BEST)):
            if weights.is_file():
                batches, groups = data.whole(device)
                learn(weights, batches, groups, device)
        batches, _ = data.whole(device)
        learn_line(session.folder.folder, batches, options.fineSize, device, count=len(batches))
    except KeyboardInterrupt:
        print(
            f"the weights are saved; what is learned after the last epoch is had by\n    {session.command_to_go_on()}"
        )
        raise


def train(options: Options, device: Any, ranks: Any) -> int:
    """Prepare, train to the end or until asked to stop, and learn what the end allows; returns the exit status."""
    from util.interrupts import StopAsked, stop_requests
    from util.memory import out_of_memory_told

    data, session = prepare(options, device, ranks)
    view, begun = open_view(options, session), time.perf_counter()
    ways = {"kept": "go on with --continue_train", "smaller": "--preset small or a smaller --fineSize in a new run"}
    with stop_requests() as session.stop, out_of_memory_told(options.batchSize, **ways):
        try:
            run_epochs(options, data, session, view)
        except StopAsked:
            print(session.how_to_go_on(), flush=True)
            return int(session.stop.exit_status)
        finally:
            view.close()
    if not session.finish(time.perf_counter() - begun):
        return 3
    if ranks.first:
        with out_of_memory_told(options.batchSize, **ways):
            learn_from_the_end(options, data, session, device)
    return 0


def main() -> int:
    """Parse, find the device and the other processes, and train as the only one who writes the run's folder."""
    options = parse_options("train", sys.argv[1:], prog="3TDCFNet_train.py", description=__doc__)
    from pathlib import Path

    from util.device import choose_device, set_seed
    from util.distributed import join_ranks
    from util.lock import sole_writer
    from util.memory import keep_freed_memory

    keep_freed_memory()
    device = choose_device(options.gpu_ids)
    with join_ranks(device) as ranks, ranks.only_first_speaks():
        print(describe(options), flush=True)
        set_seed(options.seed, deterministic=options.deterministic)
        remedy = "wait for it or stop it, or choose another --name"
        folder = Path(options.checkpoints_dir) / options.name
        with sole_writer(folder, remedy=remedy) if ranks.first else nullcontext():
            return train(options, device, ranks)


if __name__ == "__main__":
    run_door(main)
