"""Links: what becomes of bytes between two hosts of a simulated network.

Whatever passes a link draws the same amount of numbers, from a sequence that belongs to one
direction of one connection. So neither the length of what is sent nor what other connections do
changes what happens to the next message. (Lengths of ciphertext must decide nothing: a signature is
a byte longer today than yesterday, and no seed can help it.) Only a limited bandwidth counts bytes,
in packets.

Nothing overtakes within a direction; between connections everything may.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

__all__ = ["Link", "Way"]

# Seconds after which a lost packet is sent again; twice as many for each further loss.
RETRANSMISSION = 0.2

# Bytes of a packet; a part of one takes as long as a whole one.
PACKET = 1460

# After how many bytes a message is cut in two: small numbers, where protocols have their limits.
CUTS: tuple[int | None, ...] = (*range(1, 17), 100, 1000, 1460, 10_000, *[None] * 20)


@dataclass
class Link:
    """How one host reaches another.

    Arguments:
        delay: the least and the most seconds that a packet is on its way.
        bandwidth: bytes per second in each direction; None: no limit.
        loss: the share of packets that have to be sent again, from 0 to 1.
    """

    delay: tuple[float, float] = (0.0005, 0.002)
    bandwidth: float | None = None
    loss: float = 0.0
    # When the line is free again, by the name of the host that sends.
    busy_until: dict[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        least, most = self.delay
        if not 0 <= least <= most:
            raise ValueError(f"delay is (least, most) in seconds, not {self.delay!r}")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise ValueError(f"bandwidth is bytes per second, not {self.bandwidth!r}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"loss is a share from 0 to 1, not {self.loss!r}")


class Way:
    """One direction of a connection.

    Arguments:
        seed: of its own sequence.
    """

    __slots__ = ("_draw", "_last")

    def __init__(self, seed: str) -> None:
        self._draw = Random(seed).random
        # When the last thing that was sent arrives.
        self._last = 0.0

    def cut(self) -> int | None:
        """Return after how many bytes the next message is cut in two, if it is long enough."""
        return CUTS[int(self._draw() * len(CUTS))]

    def arrival(self, link: Link, sender: str, now: float, size: int) -> float:
        """Return when what is sent now arrives, in seconds.

        Arguments:
            link: over which it goes.
            sender: the name of the host.
            now: the time.
            size: bytes.
        """
        least, most = link.delay
        delay = least + (most - least) * self._draw()
        chance = self._draw()
        if chance < link.loss:
            # Lost once, twice, ...: each further loss as likely as the first.
            losses = 1 + int(math.log(max(chance, 1e-9) / link.loss, link.loss))
            delay += RETRANSMISSION * (2 ** min(losses, 8) - 1)
        if link.bandwidth is not None and size:
            begin = max(now, link.busy_until.get(sender, 0.0))
            now = begin + math.ceil(size / PACKET) * PACKET / link.bandwidth
            link.busy_until[sender] = now
        self._last = max(self._last, now + delay)
        return self._last
