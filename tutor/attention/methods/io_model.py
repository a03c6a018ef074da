"""The I/O model: how many words attention must move, with a fast memory of M words.

Idea        Attention is bound by traffic. Four ways to compute the same output are run on a machine that counts each
            word it moves, and each has a closed form that the machine confirms. Which way is best depends on M alone:
            above about d^2 words tiles of FlashAttention, below it the matrix written out in square tiles.
Rule        One head, N queries and keys, d wide, no mask; what is used is loaded, what must last is stored.
            standard: S = QK' in t x t tiles, written; P = softmax(S), read and written;
                O = PV in tiles of t x min(t, d).
            small: the same without the softmax pass; P is made from S on the fly, each time a tile of S is read.
            flash1: keys outside; O, m, l of every query block are read and written once per key block.
            flash2: queries outside; O, m, l stay until the block is done, keys and values stream by.
            causal (flash1 and flash2 alone): tiles beyond the diagonal are skipped, a tile on it is loaded whole.
Cost        words moved; t is the largest number with 3t^2 + 2t <= M.
            standard  2N^2 d/t + N^2 + 2N^2 + N^2 d/min(t, d) + N^2 d/t + Nd;     small: less 2N^2
            flash1    2Nd + ceil(N/Bc) (3Nd + 4N), about 12 N^2 d^2 / M with the paper's blocks
            flash2    2Nd + N + ceil(N/Br) 2Nd, about 4 N^2 d^2 / M: the swap of the loops saves a factor of three
            causal    flash1: 2Nd + (3d + 4) times the rows that are visited, for each key block from its first key's on
                      flash2: 2Nd + N + 2d times the keys up to the last row of each query block
Paper       Saha and Ye 2024, abstract: the lower bound, min(N^2 d^2 / M, N^2 d / sqrt(M)) up to constants. Optimality
            below d^2 is read cautiously (among combinatorial algorithms), its exact rate there is unverified. Blocks
            of `flash1`: Dao et al. 2022, algorithm 1.
Differs     The closed forms are derived here, not in the paper, which gives them up to constants. `small` is a plain
            witness of N^2 d / sqrt(M), not the paper's algorithm. `standard` gathers the row statistics while S is
            made, else rows longer than M would be read once more. The paper's blocks forget S, m and l:
            blocks="paper" runs unlimited (see `Run.peak`), "strict" is what fits. Block sizes round down.
See also    tutor.attention.machine, tutor.attention.methods.flash; tests/attention/test_io_model.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from tutor.attention.dense import check_qkv
from tutor.attention.machine import Machine
from tutor.attention.partial import Partial
from tutor.catalog import method
from tutor.cost import Cost
from tutor.timeline import Timeline
from tutor.trace import Trace

ALGORITHMS = ("standard", "flash1", "flash2", "small")
BLOCKS = ("paper", "strict")
SRAM = {"A100": 192 * 1024, "H100": 228 * 1024}               # bytes of fast memory of one processor (data sheets)


# ---------------------------------------------------------------------------------------------------- closed forms

def square_tile(N: int, d: int, M: int) -> int:
    """Side t of the square tiles of `standard` and `small`: three tiles and two numbers per row fit in M words."""
    _need(M, 5, "standard and small", "three tiles of one word and two statistics")
    return min(N, (math.isqrt(1 + 3 * M) - 1) // 3)


def flash_tiles(algorithm: str, N: int, d: int, M: int, *, blocks: str = "paper") -> tuple[int, int]:
    """Rows and keys `(Br, Bc)` of a tile: those that move fewest words, or for `flash1` those of the paper."""
    if algorithm == "flash1" and blocks == "paper":
        _need(M, 4 * d, "flash1 with the paper's blocks", f"4d words for one key, d = {d}")
        return min(N, d, M // (4 * d)), min(N, M // (4 * d))
    _need(M, 4 * d + 3, algorithm, f"4d + 3 words for a tile of one query and one key, d = {d}")
    if algorithm == "flash1":
        return 1, min(N, (M - 2 * d - 2) // (2 * d + 1))       # only Bc counts: one row leaves the most room
    br = min(N, (M - 2 * d) // (2 * d + 3))                    # only Br counts: one key leaves the most room
    return br, min(N, (M - br * (2 * d + 2)) // (br + 2 * d))  # what is left over goes to keys


def flash_words(br: int, bc: int, d: int) -> int:
    """Words of fast memory that a tile holds: Q and O, m and l, S, K and V."""
    return br * (2 * d + bc + 2) + 2 * bc * d


def count(algorithm: str, N: int, d: int, M: int, *, blocks: str = "paper", edges: bool = False,
          causal: bool = False) -> int | float:
    """Words moved for one head, in closed form.

    Args:
        blocks: "paper" or "strict", for `flash1` alone.
        causal: query i sees keys 0 to i; for `flash1` and `flash2` alone.
        edges: count the cut tiles at the rim as the machine meets them. Without it the square tiles of `standard` and
            `small` are taken to divide N and d, which gives a smooth curve; where they do divide, both agree.

    Raises:
        ValueError: M is too small for one tile (the minimum is told), or an argument is unknown.
    """
    _check(algorithm, N, d, blocks, causal)
    if algorithm in ("flash1", "flash2"):
        br, bc = flash_tiles(algorithm, N, d, M, blocks=blocks)
        if causal and algorithm == "flash1":                   # row blocks from the one that holds the first key's own row on
            return 2 * N * d + (3 * d + 4) * sum(N - first // br * br for first in range(0, N, bc))
        if causal:                                             # key blocks up to the one that holds the last row's own key
            return 2 * N * d + N + 2 * d * sum(min(N, math.ceil(min(N, row + br) / bc) * bc) for row in range(0, N, br))
        if algorithm == "flash1":
            return 2 * N * d + math.ceil(N / bc) * (3 * N * d + 4 * N)
        return 2 * N * d + N + math.ceil(N / br) * 2 * N * d
    t = square_tile(N, d, M)
    strips, columns = Fraction(N, t), Fraction(d, min(t, d))
    if edges:
        strips, columns = math.ceil(strips), math.ceil(columns)
    scores = 2 * strips * N * d + N * N                        # read Q and K for each tile of S, write S
    softmax = 2 * N * N if algorithm == "standard" else 0      # read S, write P
    values = columns * N * N + strips * N * d + N * d          # read P and V, write O
    words = Fraction(scores + softmax + values)
    return words.numerator if words.denominator == 1 else float(words)


def lower_bound(N: int, d: int, M: int) -> float:
    """Nd + min(N^2 d^2 / M, N^2 d / sqrt(M)): the shape only; constants are not claimed."""
    _check("standard", N, d, "paper")
    _need(M, 1, "the bound", "one word")
    return N * d + min(N * N * d * d / M, N * N * d / math.sqrt(M))


# --------------------------------------------------------------------------------------------------- on the machine

@dataclass(frozen=True)
class Run:
    """What came of a run: output `o (N, d)`, log-sum-exp `(N,)`, words moved, the most words held at once."""

    o: Tensor
    lse: Tensor
    words: int
    peak: int


def run(algorithm: str, q: Tensor, k: Tensor, v: Tensor, M: int, *, blocks: str = "paper", scale: float | None = None,
        causal: bool = False, watch: Timeline | None = None) -> Run:
    """Compute one head's attention on `Machine(M)`: q, k, v `(N, d)`, all in float64.

    The log-sum-exp is noted for the caller; only `flash2` writes it to slow memory, and only there is it counted.
    """
    if q.ndim != 2 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError("q, k and v must have one shape (N, d); got "
                         f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}: the closed forms are for those")
    N, d = q.shape
    _check(algorithm, N, d, blocks, causal)
    q, k, v = (x.double() for x in (q, k, v))
    scale = 1 / math.sqrt(d) if scale is None else scale
    machine = Machine(M, enforce=algorithm != "flash1" or blocks == "strict", watch=watch)
    o, lse = torch.zeros(N, d, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)   # slow memory
    if algorithm in ("flash1", "flash2"):
        loops = _keys_outside if algorithm == "flash1" else _queries_outside
        loops(machine, q, k, v, o, lse, scale, *flash_tiles(algorithm, N, d, M, blocks=blocks), causal)
    else:
        _matrix(machine, q, k, v, o, lse, scale, square_tile(N, d, M), softmax=algorithm == "standard")
    return Run(o, lse, machine.words, machine.peak)


def trace(algorithm: str, q: Tensor, k: Tensor, v: Tensor, M: int, *, blocks: str = "paper") -> Trace:
    """Run once and tell every move of the machine: schema "timeline/1", a lane for each buffer, `level` words held."""
    lanes = ["q", "k", "v", "s", "p", "o", "m", "l"]
    watch = Timeline("io_model", lanes if algorithm in ("standard", "small") else [x for x in lanes if x != "p"],
                     unit="moves", lane_word="buffer", params={"M": M, "algorithm": algorithm, "blocks": blocks}, capacity=M)
    run(algorithm, *(x.clone() for x in (q, k, v)), M, blocks=blocks, watch=watch)
    return watch.finish()


def _matrix(machine: Machine, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, t: int, *,
            softmax: bool) -> None:
    """`standard` (with the softmax pass) and `small` (without), one strip of t rows after the other."""
    N, d = q.shape
    matrix = torch.zeros(N, N, dtype=torch.float64)                                # S, then P; in slow memory
    for rows in _cuts(N, t):
        m = machine.make("m", torch.full((len(q[rows]),), float("-inf"), dtype=torch.float64))
        l = machine.make("l", torch.zeros_like(m))
        for keys in _cuts(N, t):                                                   # S, and the statistics of its rows
            s = machine.make("s", torch.zeros(len(m), len(k[keys]), dtype=torch.float64))
            for part in _cuts(d, t):
                s += machine.load("q", q[rows, part]) @ machine.load("k", k[keys, part]).T * scale
                machine.free("q", "k")
            top = torch.maximum(m, s.amax(1))
            l.mul_(torch.exp(m - top)).add_(torch.exp(s - top[:, None]).sum(1))
            m.copy_(top)
            machine.store("s", matrix[rows, keys])
            machine.free("s")
        if softmax:
            for keys in _cuts(N, t):
                machine.load("s", matrix[rows, keys]).sub_(m[:, None]).exp_().div_(l[:, None])
                machine.store("s", matrix[rows, keys])
                machine.free("s")
        for part in _cuts(d, min(t, d)):                                           # O = P V
            acc = machine.make("o", torch.zeros(len(m), len(v[0, part]), dtype=torch.float64))
            for keys in _cuts(N, t):
                p = machine.load("p", matrix[rows, keys])
                if not softmax:
                    p.sub_(m[:, None]).exp_().div_(l[:, None])
                acc += p @ machine.load("v", v[keys, part])
                machine.free("p", "v")
            machine.store("o", o[rows, part])
            machine.free("o")
        lse[rows] = m + torch.log(l)
        machine.free("m", "l")


def _keys_outside(machine: Machine, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, br: int,
                  bc: int, causal: bool) -> None:
    """`flash1`: the output is normalised after every tile; it and its statistics travel each time."""
    slow_m, slow_l = torch.full_like(lse, float("-inf")), torch.zeros_like(lse)
    for keys in _cuts(len(k), bc):
        kb, vb = machine.load("k", k[keys]), machine.load("v", v[keys])
        for rows in _cuts(len(q), br):
            if causal and rows.stop <= keys.start:                                     # no row sees any key
                continue
            qb, acc = machine.load("q", q[rows]), machine.load("o", o[rows])
            m, l = machine.load("m", slow_m[rows]), machine.load("l", slow_l[rows])
            s = _scores(machine, qb, kb, rows, keys, scale, causal)
            top = torch.maximum(m, s.amax(1))
            s.sub_(top[:, None]).exp_()                                            # the weights, in place of S
            before = l * torch.exp(m - top)                                        # what the old sum is worth now
            l.copy_(before + s.sum(1))
            acc.mul_(before[:, None]).add_(s @ vb).div_(l[:, None])
            m.copy_(top)
            for name, place in (("o", o), ("m", slow_m), ("l", slow_l)):
                machine.store(name, place[rows])
            machine.free("q", "o", "m", "l", "s")
        machine.free("k", "v")
    lse.copy_(slow_m + torch.log(slow_l))


def _queries_outside(machine: Machine, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, scale: float, br: int,
                     bc: int, causal: bool) -> None:
    """`flash2`: the output stays in fast memory, unnormalised, until its last key has come by."""
    for rows in _cuts(len(q), br):
        qb = machine.load("q", q[rows])
        acc = machine.make("o", torch.zeros_like(qb))
        m = machine.make("m", torch.full((len(qb),), float("-inf"), dtype=torch.float64))
        l = machine.make("l", torch.zeros_like(m))
        for keys in _cuts(len(k), bc):
            if causal and rows.stop <= keys.start:
                break
            kb, vb = machine.load("k", k[keys]), machine.load("v", v[keys])
            s = _scores(machine, qb, kb, rows, keys, scale, causal)
            top = torch.maximum(m, s.amax(1))
            s.sub_(top[:, None]).exp_()
            shrink = torch.exp(m - top)
            l.mul_(shrink).add_(s.sum(1))
            acc.mul_(shrink[:, None]).add_(s @ vb)
            m.copy_(top)
            machine.free("k", "v", "s")
        acc.div_(l[:, None])
        m.add_(torch.log(l))                                                       # now the log-sum-exp
        machine.store("o", o[rows])
        machine.store("m", lse[rows])
        machine.free("q", "o", "m", "l")


def _scores(machine: Machine, qb: Tensor, kb: Tensor, rows: slice, keys: slice, scale: float, causal: bool) -> Tensor:
    """S of one tile `(Br, Bc)`. Causal rows have met key 0 by then: a row that may see no key of the tile adds zeros."""
    s = machine.make("s", qb @ kb.T * scale)
    if causal:
        own = torch.arange(rows.start, rows.start + len(qb))
        s.masked_fill_(torch.arange(keys.start, keys.start + len(kb)) > own[:, None], float("-inf"))
    return s


def _cuts(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


# ------------------------------------------------------------------------------------------------------ in the catalog

@method("io_model", "attention", "The I/O model of attention", paper="saha2024io", flags=("analysis",),
        grid=({"M": 65536}, {"M": 4096}, {"M": 1024}))
@dataclass(frozen=True)
class IOModel:
    """Attention by one algorithm with a fast memory of M words; every head is run alone.

    Attributes:
        M: words of fast memory.
        algorithm: "standard", "flash1", "flash2" or "small".
        blocks: of `flash1`: "paper" (the paper's, run without a limit) or "strict" (what fits in M words).
    """

    M: int = 4096
    algorithm: str = "flash2"
    blocks: str = "paper"

    def __post_init__(self):
        _check(self.algorithm, 1, 1, self.blocks)
        _need(self.M, 5, "every algorithm", "the least that any of them runs in")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None) -> Partial:
        """Exact attention in float64; q, k, v `(B, H, N, D)`, query heads grouped as everywhere."""
        self._check(q, k, v)
        group = q.shape[1] // k.shape[1]
        runs = [run(self.algorithm, q[b, h], k[b, h // group], v[b, h // group], self.M, blocks=self.blocks,
                    scale=scale, causal=causal) for b in range(q.shape[0]) for h in range(q.shape[1])]
        return Partial(torch.stack([r.o for r in runs]).reshape(q.shape),
                       torch.stack([r.lse for r in runs]).reshape(q.shape[:3]))

    def cost(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Cost:
        """Words and operations of all heads: what the machine counts, by the closed form."""
        self._check(q, k, v)
        (b, h, n, d) = q.shape
        return Cost(words=b * h * count(self.algorithm, n, d, self.M, blocks=self.blocks, edges=True, causal=causal),
                    flops=4 * b * h * n * n * d)

    def _check(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        check_qkv(q, k, v)
        if q.shape[2:] != k.shape[2:] or q.shape[2:] != v.shape[2:]:
            raise ValueError("q, k and v must share length and width; got "
                             f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}: the closed forms are for those")


def _check(algorithm: str, N: int, d: int, blocks: str, causal: bool = False) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {ALGORITHMS}; got {algorithm!r}")
    if blocks not in BLOCKS:
        raise ValueError(f"blocks must be one of {BLOCKS}; got {blocks!r}")
    if causal and algorithm not in ("flash1", "flash2"):
        raise ValueError(f"causal must be False for {algorithm}, whose matrix is counted whole; take flash1 or flash2")
    for name, value in (("N", N), ("d", d)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1; got {value}")


def _need(M: int, least: int, who: str, why: str) -> None:
    if least > M:
        raise ValueError(f"M must be >= {least} for {who} ({why}); got {M}: give the machine more words")
