"""Numbers inside a text, each with a short and a full reading, and where it comes from.

A text is made once; ``plain`` writes it with all digits, ``parts`` hands a page both readings and
the reference, from which its script writes the number anew when a value has changed.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Between control characters, which no text has (see clean).
_NUMBER = re.compile("\x05([^\x06]*)\x06([^\x07]*)\x07([^\x08]*)\x08")


def marked(short: str, full: str, reference: Any = None) -> str:
    """A number for a text: four digits, all digits, and its reference, of strings and lists.

    >>> plain("y = " + marked("0.3333", "0.3333333333333333"))
    'y = 0.3333333333333333'
    """
    return f"\x05{short}\x06{full}\x07{json.dumps(reference, ensure_ascii=False)}\x08"


def plain(text: str) -> str:
    """The text with all digits."""
    return _NUMBER.sub(lambda number: number[2], text)


def parts(text: str) -> list[Any]:
    """The text in parts: a string, or a number as [short, full, reference].

    >>> parts("y = " + marked("0.3333", "0.3333333333333333", "v:y") + " m")
    ['y = ', ['0.3333', '0.3333333333333333', 'v:y'], ' m']
    """
    pieces, at = list[Any](), 0
    for number in _NUMBER.finditer(text):
        pieces.append(text[at : number.start()])
        pieces.append([number[1], number[2], json.loads(number[3])])
        at = number.end()
    return [piece for piece in (*pieces, text[at:]) if piece]
