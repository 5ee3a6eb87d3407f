"""Every option of every command, once: put together from the modules of the groups, in the order of ``--help``.

To add one, put an ``Option`` into the tuple of its group, and run ``python scripts/write_options.py``.
"""

from __future__ import annotations

from options.data_options import DATA
from options.judgement_options import CELLS, JUDGEMENT
from options.network_options import LOSSES, NETWORK
from options.option import Option
from options.run_options import DISPLAY, RUN
from options.schedule_options import GATE, SAVING, SCHEDULE

__all__ = ["OPTIONS", "Option", "options_of"]

OPTIONS: tuple[Option, ...] = (
    *RUN,
    *DATA,
    *NETWORK,
    *LOSSES,
    *SCHEDULE,
    *GATE,
    *SAVING,
    *JUDGEMENT,
    *CELLS,
    *DISPLAY,
)


def options_of(command: str) -> tuple[Option, ...]:
    """The options that ``command`` ("train", "test" or "predict") takes, in the order of ``--help``."""
    return tuple(option for option in OPTIONS if command in option.commands)
