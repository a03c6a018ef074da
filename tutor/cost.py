"""Cost: what a method spent, counted and never timed.

Every method of every family returns one `Cost`. Its counters come from one registered vocabulary, so that a frontier
plot may put any two methods on one axis. Counters add: the cost of a run is the sum of the costs of its parts.
Seconds are not a counter: they belong to benchmarks, with the machine's name beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

COUNTERS: dict[str, tuple[str, str]] = {
    # attention: what it takes to choose keys, and to read the chosen ones
    "scored": ("dot products", "q·x products used to choose keys (centroids, representatives, graph nodes included)"),
    "loaded": ("rows", "(k, v) rows read by the final attention"),
    "pairs": ("pairs", "causal (query, key) pairs a dense attention would have scored"),
    "tiles": ("tiles", "key tiles a blocked kernel runs"),
    "flops": ("operations", "floating-point operations, a multiply-add counting two"),
    "words": ("words", "words moved between slow and fast memory"),
    "bytes_read": ("bytes", "bytes read from slow memory or storage"),
    "bytes_written": ("bytes", "bytes written to slow memory or storage"),
    "index_bytes": ("bytes", "size of an index built beforehand"),
    "build_dots": ("dot products", "dot products spent to build an index"),
    # KV cache
    "rows_kept": ("rows", "cache rows held after eviction"),
    "rows_evicted": ("rows", "cache rows given back"),
    "rows_merged": ("rows", "cache rows folded into another row"),
    "cache_bytes": ("bytes", "bytes of the storage that holds cache rows, measured"),
    "state_bytes": ("bytes", "bytes of a policy's own bookkeeping (accumulators, masks), measured"),
    # speculative decoding
    "target_forwards": ("forwards", "forward passes of the target model"),
    "target_rows": ("rows", "token rows those passes carried"),
    "draft_forwards": ("forwards", "forward passes of the draft model"),
    "drafted": ("tokens", "tokens proposed"),
    "accepted": ("tokens", "proposed tokens that were accepted"),
    "emitted": ("tokens", "tokens written to the output, bonus tokens included"),
    # vector search
    "ndist": ("distances", "full-precision distance evaluations"),
    "nquant": ("distances", "quantised or approximate distance evaluations"),
    "nhops": ("nodes", "graph nodes expanded"),
    "nlists": ("lists", "inverted lists opened"),
    "npages": ("pages", "4 KiB pages read"),
}


class Cost(Mapping[str, int]):
    """Additive counters; a counter that was never touched reads 0.

    >>> Cost(ndist=3) + Cost(ndist=4, nhops=1)
    Cost(ndist=7, nhops=1)

    Raises:
        ValueError: a counter is not in `COUNTERS`, or its value is negative or not a whole number.
    """

    __slots__ = ("_counts",)

    def __init__(self, **counts: int):
        for name, value in counts.items():
            if name not in COUNTERS:
                known = ", ".join(sorted(COUNTERS))
                raise ValueError(f"unknown cost counter {name!r}; use one of {known}, or register it in tutor/cost.py")
            if int(value) != value or value < 0:
                raise ValueError(f"counter {name} must be a whole number >= 0; got {value!r}")
        self._counts = {name: int(value) for name, value in counts.items()}

    def __getitem__(self, name: str) -> int:
        if name not in COUNTERS:
            raise KeyError(name)
        return self._counts.get(name, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        names = dict.fromkeys([*self._counts, *other._counts])
        return Cost(**{name: self[name] + other[name] for name in names})

    def __radd__(self, other: object) -> Cost:
        return self if other == 0 else NotImplemented   # so that sum(costs) works

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cost):
            return NotImplemented
        return all(self[name] == other[name] for name in {*self._counts, *other._counts})

    def __hash__(self) -> int:
        return hash(frozenset((name, value) for name, value in self._counts.items() if value))

    def __repr__(self) -> str:
        return "Cost(" + ", ".join(f"{name}={value}" for name, value in self._counts.items()) + ")"

    @staticmethod
    def unit(name: str) -> str:
        """The unit of a counter, for axis titles: `Cost.unit("ndist") == "distances"`."""
        return COUNTERS[name][0]
