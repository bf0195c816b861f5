"""Was a passage trained on? Exact search in the training text, with an index that answers most questions."""

CHUNK = 16


class SeenText:
    """A text that is asked many times whether it holds a passage.

    Args:
        text: all training text, 8 MB for the shipped sample.
    """

    def __init__(self, text: str) -> None:
        self._text = text.encode()
        self._chunks = {self._text[i : i + CHUNK] for i in range(0, len(self._text), CHUNK)}

    def __contains__(self, passage: str) -> bool:
        wanted = passage.encode()
        # wherever a passage of 2 CHUNK - 1 bytes stands, one whole chunk lies within its first 2 CHUNK - 1
        long = len(wanted) >= 2 * CHUNK - 1
        if long and not any(wanted[i : i + CHUNK] in self._chunks for i in range(CHUNK)):
            return False
        return wanted in self._text
