"""The size of the pieces of a prompt, by time: running rows wait for one piece between two of their tokens."""

from collections import deque
from statistics import median

STEPS = 2.0  # the time of a piece, in steps of the running rows: a token then comes after 3 steps at most
SECONDS = 0.25  # the same while no row runs: only new requests and disconnected clients wait
LEAST = 16  # tokens; a smaller piece takes nearly the time of a step, whatever it computes
USUAL = 256  # tokens: the smallest piece while no row runs
# oneDNN prepares its kernels for each number of rows of a product, so that few different sizes are used.
SIZES = (LEAST, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


class Pieces:
    """Measures pieces and steps, and says how many tokens the next piece has."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=9)  # seconds of the last steps of the running rows
        self._cost: dict[bool, float] = {}  # seconds for a token of a piece, beside running rows and without, smoothed

    def stepped(self, seconds: float) -> None:
        """The running rows took this long for a token, while no piece came between."""
        self._steps.append(seconds)

    def computed(self, tokens: int, seconds: float, beside_rows: bool) -> None:
        """A piece took this long."""
        self._cost[beside_rows] = smoothed(self._cost.get(beside_rows, 0.0), seconds / tokens)

    def tokens(self, beside_rows: bool) -> int:
        """The tokens of the next piece, of all its prompts together."""
        if not beside_rows:
            cost = self._cost.get(False)
            return USUAL if cost is None else max(USUAL, rounded(SECONDS / cost))
        # Small pieces are less efficient than the large ones that are computed alone.
        cost = self._cost.get(True) or 2 * self._cost.get(False, 0.0)
        return rounded(STEPS * median(self._steps) / cost) if cost and self._steps else LEAST


def rounded(tokens: float) -> int:
    """The largest of SIZES up to this number of tokens, or the smallest."""
    return max((size for size in SIZES if size <= tokens), default=LEAST)


def smoothed(before: float, now: float) -> float:
    """Half of what was, half of what is: a piece costs more than the last one as its text grows, but a little only."""
    return now if not before else 0.5 * before + 0.5 * now
