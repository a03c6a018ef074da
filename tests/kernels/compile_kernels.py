"""Compile kernels for a GPU that is not here, as their wrappers launch them: `python compile_kernels.py CAPABILITY [all]`.

Each wrapper below is called on a CPU; Triton is told that the GPU is there, and every launch stops once it is compiled. Run in
a process of its own, because Triton compiles or interprets for the whole life of a process. Prints a line for each launch:
wrapper, kernel, whether it uses matrix units, bytes of shared memory.
"""

from __future__ import annotations

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import Autotuner, JITFunction, driver  # noqa: E402

from tutor.attention.methods.hyper import Hyper  # noqa: E402
from tutor.attention.methods.ntk import summarise  # noqa: E402
from tutor.attention.methods.vertical_slash import VerticalSlash  # noqa: E402
from tutor.attention.selection import Selection  # noqa: E402
from tutor.kernels import (  # noqa: E402
    block_sparse,
    centroids,
    flash,
    flash_backward,
    hyper,
    lean_decode,
    lightning,
    monarch,
    paged_decode,
    prefix,
    rnn,
    split_decode,
    vertical_slash,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHARED = {80: 166_912, 90: 232_448}         # bytes of shared memory that one program may take


class Elsewhere:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def qkv(dtype: torch.dtype, d: int, t: int = 70, hq: int = 6, hkv: int = 2) -> list[torch.Tensor]:
    return [torch.zeros(1, h, n, d, dtype=dtype) for h, n in ((hq, t), (hkv, 70), (hkv, 70))]


def backward(dtype: torch.dtype, d: int, causal: bool, m: int, n: int) -> None:
    q, k, v = qkv(dtype, d)
    flash_backward.flash_backward(q, k, v, q, torch.zeros(q.shape[:3]), q, causal=causal, block_m=m, block_n=n)


def sparse(dtype: torch.dtype, d: int) -> None:
    q, k, v = qkv(dtype, d)
    sel = Selection.from_blocks(torch.ones(1, 6, 2, 2, dtype=torch.bool), q, k, bq=64, bk=64)
    block_sparse.block_sparse_attention(q, k, v, sel)


def look_up(dtype: torch.dtype, d: int) -> None:
    q, k, _ = qkv(dtype, d)
    for together in (False, True):
        centroids.centroid_select(q, k, torch.ones(k.shape[:3], dtype=torch.int64), 0.01, together=together)


def paged(dtype: torch.dtype, d: int) -> None:
    q, pool = qkv(dtype, d, 1)[0], torch.zeros(5, 16, 2, d, dtype=dtype)
    paged_decode.paged_decode(q, pool, pool, torch.arange(5, dtype=torch.int32)[None], torch.tensor([70], dtype=torch.int32))


def linear(dtype: torch.dtype, d: int) -> None:
    q, k, v = qkv(dtype, d)
    s = lightning.slopes(2)
    lightning.lightning(q, k, v, s)
    lightning.lightning_backward(q, q, k, v, s)
    lightning.recurrent_step(q[:, :, :1], k[:, :, :1], v[:, :, :1], s)


def convolve(dtype: torch.dtype, length: int, taps: int) -> None:
    u = torch.zeros(2, 1, length, dtype=dtype)
    monarch.fft_conv(u, torch.zeros(1, taps), pre=u, post=u, batch_tile=2)


def recur(cell: str, dtype: torch.dtype, width: int) -> None:
    kind = rnn.cell_of(cell)
    rnn.rnn(*(torch.zeros(size, dtype=dtype) for size in (
        (17, 2, len(kind.inputs), 1, width), (len(kind.recurrent), 1, width, width), (len(kind.bias), 1, width))), cell=cell)


def lines(dtype: torch.dtype, d: int, tile: int) -> None:
    q, k, v = qkv(dtype, d)
    vertical_slash.vertical_slash_attention(q, k, v, todo=VerticalSlash(7, 9, tile).plan(q, k))


def hashed(dtype: torch.dtype, d: int, block: int) -> None:
    q, k, v = qkv(dtype, d)
    method = Hyper(block=block, samples=12)
    planes, generator = method.start(q)
    order = method.sort(q, k, planes)
    hyper.hyper_step(q, k, v, order, method.draw(v, order, generator))


def prefixed(dtype: torch.dtype, d: int, m: int, n: int) -> None:
    q, k, v = qkv(dtype, d)
    prefix.prefix_attention(q, k, v, summarise(k, v), block_m=m, block_n=n)


def attend(dtype: torch.dtype, d: int, causal: bool, m: int, n: int) -> None:
    flash.flash_attention(*qkv(dtype, d), causal=causal, block_m=m, block_n=n)


def split(dtype: torch.dtype, d: int, heads: int = 6) -> None:
    split_decode.split_decode(*qkv(dtype, d, 1, heads))


def lean(dtype: torch.dtype, d: int, heads: int = 6) -> None:
    lean_decode.lean_decode(*qkv(dtype, d, 1, heads))


# What is compiled always, and what only by the slow test: arguments of the functions above.
ALWAYS = [(attend, BF16, 64, True, 64, 64), (sparse, BF16, 64), (look_up, BF16, 64), (split, BF16, 64), (lean, BF16, 64),
          (paged, BF16, 64), (linear, BF16, 64), (convolve, BF16, 512, 512), (recur, "lstm", BF16, 64), (lines, BF16, 64, 64),
          (backward, BF16, 64, True, 64, 64), (hashed, BF16, 64, 256), (prefixed, BF16, 64, 64, 32)]
SLOWLY = [(attend, FP16, 80, True, 64, 32), (attend, FP32, 64, True, 32, 32), (attend, BF16, 256, False, 64, 32),
          (backward, FP16, 128, False, 64, 64), (backward, FP32, 64, True, 32, 32), (sparse, FP16, 128), (look_up, FP16, 128),
          (split, FP16, 80, 16), (split, FP32, 256, 2), (split, BF16, 128, 8), (lean, FP16, 80, 16), (lean, FP32, 256, 2),
          (lean, BF16, 128, 8), (paged, FP16, 128), (linear, FP16, 128), (convolve, FP16, 2048, 2048),
          (convolve, BF16, 2048, 700), (convolve, FP32, 128, 128), (recur, "gru", FP16, 32), (recur, "slstm", BF16, 16),
          (lines, FP16, 80, 16), (lines, BF16, 128, 64), (lines, FP32, 64, 32), (hashed, FP16, 80, 64),
          (hashed, BF16, 128, 256), (hashed, FP32, 64, 32), (prefixed, FP16, 80, 64, 32), (prefixed, BF16, 128, 128, 64),
          (prefixed, FP32, 64, 32, 32), (prefixed, BF16, 256, 32, 32)]


def main() -> None:
    capability, everything = int(sys.argv[1]), sys.argv[2:] == ["all"]
    driver.set_active(Elsewhere(capability))
    run, called = JITFunction.run, ""

    def compile_only(self, *given, grid, warmup, **options):
        built = run(self, *given, grid=grid, warmup=True, **options)
        shared = built.metadata.shared
        assert shared <= SHARED[capability], f"{called} {self.__name__}: {shared} bytes of shared memory do not fit"
        print(called, self.__name__, "mma" in built.asm["ptx"], shared, flush=True)

    JITFunction.run = compile_only
    Autotuner.run = lambda self, *given, **options: self.fn.run(*given, **options | self.configs[0].all_kwargs())
    for call, *given in ALWAYS + (SLOWLY if everything else []):
        called = "-".join([call.__name__, *(str(x).removeprefix("torch.") for x in given)])
        call(*given)


if __name__ == "__main__":
    main()
