"""Hashes of the true masks that a run learns from, kept beside its split: a run that goes on must find the same."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
import torch

from data.loader import DECODING_VERSION, DecodedSmears, planes_of
from util.arrays import Arrays
from util.run_record import RecordFile

_DIGEST_BYTES = 16
_READ_AT_ONCE = 64  # masks


class MaskRecord(NamedTuple):
    """Hashes of decoded masks, in the order of the smears that a run has decoded.

    Attributes:
        digests: uint8 (N, 16); zeros where an image has no true mask.
        made_by: what else the hashes depend on, as text in bytes, uint8 (L,): the size and the decoder.
    """

    digests: npt.NDArray[np.uint8]
    made_by: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, smears: DecodedSmears) -> MaskRecord:
        """Hash the true masks of smears as they are decoded, so that no file is read once more."""
        digests = np.zeros((len(smears), _DIGEST_BYTES), np.uint8)
        for part in torch.split(torch.arange(len(smears)), _READ_AT_ONCE):
            masks = planes_of(smears.gather(part), smears.load_size)[1].numpy()
            for index, mask in zip(part.tolist(), masks, strict=True):
                if smears.has_mask[index]:
                    digest = hashlib.blake2b(mask.tobytes(), digest_size=_DIGEST_BYTES).digest()
                    digests[index] = np.frombuffer(digest, np.uint8)
        made_by = f"decoding {DECODING_VERSION} pillow {PIL.__version__} size {smears.load_size}"
        return cls(digests, np.frombuffer(made_by.encode(), np.uint8))

    def changed_since(self, before: MaskRecord) -> list[int] | None:
        """Which masks differ from those recorded before; None where the two cannot be compared (size, decoder)."""
        if self.made_by.tobytes() != before.made_by.tobytes() or self.digests.shape != before.digests.shape:
            return None
        return np.flatnonzero((self.digests != before.digests).any(axis=1)).tolist()


def _checked(stored: Arrays) -> MaskRecord:
    record = MaskRecord(*(stored[name].astype(np.uint8) for name in MaskRecord._fields))
    if record.digests.ndim != 2 or record.digests.shape[1] != _DIGEST_BYTES:
        raise ValueError(f"digests {record.digests.shape}")
    return record


MASKS = RecordFile(
    "mask_digests.npz",
    MaskRecord._fields,
    _checked,
    what="the hashes of the masks",
    without="a check that the masks are as they were",
)
