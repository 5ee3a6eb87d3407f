"""How small and how large the square may be that an image is brought to, pixels of its side."""

from __future__ import annotations

INPUT = range(64, 4097)  # of a network's input (--fineSize)
LOADED = range(64, 8193)  # of a whole image that is covered by such inputs (--loadSize)
