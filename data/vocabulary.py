"""The words that folders and tables use for classes, severities and sides of a split, and what they mean here.

| meaning | words, in any case; space, hyphen and underscore are one |
|---|---|
| Healthy | healthy, healthy individuals, normal, non-anemic, non-anaemic, nonanemic, nonanaemic |
| Anemic | anemic, anaemic, anemic individuals, anaemic individuals, anemia, anaemia |
| Mild | mild; also mild anemia, mild anaemia, mild anemic, mild anaemic |
| Chronic (the published name; it means severe) | chronic, severe; also with anemia and so on, as Mild |
| train | train, training |
| val | val, valid, validation |
| test | test, testing |

"Moderate" is no word: the two published grades have no place for it, so it is refused rather than guessed.
"""

from __future__ import annotations

import re

from data.records import ANEMIC, HEALTHY

LABEL_OF_WORD = {
    "healthy": HEALTHY,
    "healthy_individuals": HEALTHY,
    "normal": HEALTHY,
    "non_anemic": HEALTHY,
    "non_anaemic": HEALTHY,
    "nonanemic": HEALTHY,
    "nonanaemic": HEALTHY,
    "anemic": ANEMIC,
    "anaemic": ANEMIC,
    "anemic_individuals": ANEMIC,
    "anaemic_individuals": ANEMIC,
    "anemia": ANEMIC,
    "anaemia": ANEMIC,
}
_SEVERITY_OF_ADJECTIVE = {"mild": "Mild", "chronic": "Chronic", "severe": "Chronic"}
SEVERITY_OF_WORD = {
    adjective + noun: severity
    for adjective, severity in _SEVERITY_OF_ADJECTIVE.items()
    for noun in ("", "_anemia", "_anaemia", "_anemic", "_anaemic")
}
SIDE_OF_WORD = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def word(text: str) -> str:
    """Bring a word to the spelling of the tables above.

    >>> word(" Non-Anemic ")
    'non_anemic'
    """
    return re.sub(r"[\s_-]+", "_", text.strip().casefold())
