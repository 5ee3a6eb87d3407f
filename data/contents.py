"""What images hold, beyond their files: a hash of the pixels, and a fingerprint that survives changes to them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from data.fingerprints import FINGERPRINT_BYTES, fingerprint
from data.images import content_digest, read_smear
from data.records import SmearRecord
from util.cores import usable_cores


def describe_contents(
    records: Sequence[SmearRecord], workers: int | None = None, progress: bool = True
) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """Hash and fingerprint every image in one pass over the files.

    Args:
        records: the images.
        workers: threads; decoding, hashing and most of the fingerprint run outside Python's lock.
        progress: whether a bar is drawn on stderr.

    Returns:
        One digest of the decoded pixels a record, in order; their fingerprints, uint8 (N, FINGERPRINT_BYTES).

    Raises:
        UserError: an image cannot be read.
    """
    from tqdm import tqdm

    fingerprints = np.empty((len(records), FINGERPRINT_BYTES), dtype=np.uint8)

    def describe(index: int) -> str:
        rgb = read_smear(records[index])
        fingerprints[index] = fingerprint(rgb)
        return content_digest(rgb)

    with ThreadPoolExecutor(workers or min(16, usable_cores())) as pool:
        digests = pool.map(describe, range(len(records)))
        bar = tqdm(digests, total=len(records), desc="hashing images", unit="image", disable=not progress)
        return list(bar), fingerprints
