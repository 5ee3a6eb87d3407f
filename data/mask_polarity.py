"""Whether masks are drawn the other way round: cells dark on white where light on black is meant, or the reverse."""

from __future__ import annotations

from collections.abc import Sequence

from data.doctor_facts import examine_mask
from data.doctor_masks import mask_fault
from data.images import read_smear
from data.records import SmearRecord
from util.errors import UserError

LOOKED_AT = 8  # masks, evenly taken: all of a data set are drawn alike, and each takes a tenth of a second


def polarity_warning(records: Sequence[SmearRecord]) -> str | None:
    """Compare some masks with Otsu's threshold of their images.

    Args:
        records: of the smears to be used; those without a mask count for nothing.

    Returns:
        a sentence where most of them mark the background as cells, else None. A file that cannot be read is left to
        who needs it.
    """
    masked = [record for record in records if record.mask is not None]
    chosen = masked[:: max(1, len(masked) // LOOKED_AT)][:LOOKED_AT]
    looked_at = inverted = 0
    for record in chosen:
        try:
            facts = examine_mask(record, read_smear(record))[0]
        except UserError:
            continue
        if facts is not None:
            looked_at += 1
            inverted += mask_fault(facts) == "mask_inverted"
    if 2 * inverted <= looked_at:
        return None
    return (
        f"{inverted} of {looked_at} masks looked at mark the background as cells, by comparison with Otsu's threshold: "
        "state mask_dark in a manifest (docs/data.md), or invert them; `3TDCFNet_data.py doctor` shows them"
    )
