"""The loop over shards on one machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from ...errors import UsageError
from .explainer import Answered, BatchExplainer
from .shards import Ledger, Writing
from .sources import Item, Shard, Source

__all__ = ["part_of", "run_batch"]


def part_of(shards: Sequence[Shard], index: int, count: int) -> list[Shard]:
    """The shards of one of several machines.

    Raises:
        UsageError: there is no such machine.
    """
    if not 0 <= index < count:
        raise UsageError(f"of {count} parts the index goes from 0 to {count - 1}; {index} is not one of them")
    return [shard for shard in shards if shard.number % count == index]


def run_batch(
    source: Source, shards: Sequence[Shard], explainer: BatchExplainer, ledger: Ledger
) -> Generator[Answered, None, None]:
    """Do all shards that are not finished and that no other run has, and say what was done after every batch.

    When it ends early, the shard under way is given up; when the process is killed, the next run removes what is left
    of it.

    Raises:
        OutputError: the disk is full, or cannot be written.
    """
    while True:
        claimed = 0

        def items(opened: deque[Shard]) -> Iterator[Item]:
            nonlocal claimed
            for shard in shards:
                if ledger.claim(shard.number):
                    claimed += 1
                    opened.append(shard)
                    yield from source.items(shard)

        opened: deque[Shard] = deque()
        with Writing(ledger, explainer.schema) as writing:
            with closing(explainer.stream(items(opened), remote=source.remote)) as answers:
                for answered in answers:
                    while opened[0].number != answered.shard:
                        writing.finish(opened.popleft())
                    writing.add(opened[0], answered)
                    yield answered
            while opened:
                writing.finish(opened.popleft())
        if not claimed:  # another run may have given up what it had, so look until there is nothing
            return
