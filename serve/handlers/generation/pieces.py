"""The size of the pieces of a prompt, by time: running rows wait for one piece between two of their tokens."""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median

STEPS = 2.0  # the time of a piece, in steps of the running rows: a token then comes after 3 steps at most
SECONDS = 0.25  # the same while no running row streams: new requests and disconnected clients wait for it
LEAST = 16  # tokens; a smaller piece takes nearly the time of a step, whatever it computes
USUAL = 256  # tokens: the smallest piece while no row runs
# oneDNN prepares its kernels for each number of rows of a product, so that few different sizes are used.
SIZES = (LEAST, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request whose rows wait for the next piece."""

    streams: bool
    tokens: int  # the most that each of its texts may have
    waited: float  # seconds for pieces so far
    left: float  # seconds until its deadline, less a step


class Pieces:
    """Measures pieces and steps, and says how many tokens the next piece has."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=9)  # seconds of the last steps of the running rows
        self._cost: dict[bool, float] = {}  # seconds for a token of a piece, of the longest pieces or not, smoothed

    def stepped(self, seconds: float) -> None:
        """The running rows took this long for a token, while no piece came between."""
        self._steps.append(seconds)

    def computed(self, tokens: int, seconds: float, allowed: float) -> None:
        """A piece that was allowed so many seconds took this long."""
        longest = allowed >= SECONDS
        self._cost[longest] = smoothed(self._cost.get(longest, 0.0), seconds / tokens)

    def allowed(self, waiting: Collection[Waiting]) -> float:
        """The seconds of the next piece.

        Each token of a stream comes after STEPS + 1 steps at most. Of the other requests only the end is seen: all
        their tokens together take at most that many times as long, if each text is as long as it may be.
        """
        least = STEPS * median(self._steps) if self._steps else 0.0
        own = (0.0 if each.streams else min(least * each.tokens - each.waited, each.left) for each in waiting)
        # A step of BART-large with 4 beams takes 0.15 s on two slow cores: two of them are longer than SECONDS.
        return max(least, min([SECONDS, *own])) if waiting else SECONDS

    def tokens(self, allowed: float, beside_rows: bool) -> int:
        """The tokens of the next piece, of all its prompts together."""
        longest = allowed >= SECONDS
        cost = self._cost.get(longest)
        if longest and not beside_rows:
            return USUAL if cost is None else max(USUAL, rounded(SECONDS / cost))
        if cost is None and not longest:  # small pieces are less efficient than the longest
            cost = 2 * self._cost.get(True, 0.0)
        return rounded(allowed / cost) if cost else LEAST


def rounded(tokens: float) -> int:
    """The largest of SIZES up to this number of tokens, or the smallest."""
    return max((size for size in SIZES if size <= tokens), default=LEAST)


def smoothed(before: float, now: float) -> float:
    """Half of what was, half of what is: a piece costs more than the last one as its text grows, but a little only."""
    return now if not before else 0.5 * before + 0.5 * now
