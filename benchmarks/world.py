"""How fast the world writes: MB of text per minute on one core."""

import statistics
import time

from lmcourse.world import documents


def rate(n=20_000):
    """MB per minute of processor time, for n documents."""
    start = time.process_time()
    size = sum(len(text.encode()) for text in documents(n))
    return size / 1e6 / (time.process_time() - start) * 60


if __name__ == "__main__":
    rates = [rate() for _ in range(5)]
    print(f"{statistics.median(rates):.0f} MB/min "
          f"(median of 5, from {min(rates):.0f} to {max(rates):.0f})")
