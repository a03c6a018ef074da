"""Claims about FlashAttention that need no clock: it is exact, holds no matrix, and loop order decides the traffic."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


def _largest_tensor(run, *inputs, **options) -> int:
    """Numbers in the largest tensor that is made while `run(*inputs)` runs."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(out) if hasattr(x, "numel")]
            self.largest = max([self.largest, *sizes])
            return out

    with Watch() as watch:
        run(*inputs, **options)
    return watch.largest


def exact_with_no_matrix() -> Measured:
    """One KV group of a recorded layer at 1 024 and 2 048 tokens: error, tiles run, largest tensor of both ways."""
    import torch

    from tutor.attention.dense import attend
    from tutor.attention.methods.flash import Flash
    from tutor.data import capture

    recorded = capture("reference_4096")
    layer, flash, largest = recorded.layers[1], Flash(64, 64), {}
    for n in (1024, 2048):
        q, k, v = (x[:, :heads, :n].clone() for x, heads in (
            (recorded.q(layer), 3), (recorded.k(layer), 1), (recorded.v(layer), 1)))
        largest[n] = _largest_tensor(flash.attend, q, k, v), _largest_tensor(attend, q, k, v, dtype=torch.float32)
    part, truth = flash.attend(q.double(), k.double(), v.double()), attend(q, k, v)
    tiles = flash.cost(q, k, v)["tiles"] / flash.cost(q, k, v, causal=False)["tiles"]
    numbers = {"error": float((part.o - truth.o).abs().max()), "tiles_run": tiles,
               "growth_flash": largest[2048][0] / largest[1024][0], "growth_dense": largest[2048][1] / largest[1024][1],
               "dense_over_flash": largest[2048][1] / largest[2048][0]}
    holds = numbers["error"] < 1e-12 and tiles < 0.55 and numbers["growth_flash"] <= 2 < numbers["growth_dense"]
    return Measured("holds" if holds else "not_here", numbers,
                    f"Tiled attention equals the dense one to {numbers['error']:.0e}, runs {100 * tiles:.0f} % of the "
                    f"tiles, and its largest tensor grows {numbers['growth_flash']:.0f}-fold when the text doubles, "
                    f"the dense one's {numbers['growth_dense']:.0f}-fold: at 2048 tokens it is "
                    f"{numbers['dense_over_flash']:.0f} times smaller.")


def swapping_the_loops_saves_traffic() -> Measured:
    """Words moved at equal tiles by the loop orders of the two versions, and by an attention that writes the matrix."""
    import torch

    from tutor.attention.methods.flash import Flash

    n, d = 4096, 64
    x = torch.empty(1, 1, n, d)
    one, two = (Flash(64, 64, order).cost(x, x, x, causal=False)["words"] for order in (1, 2))
    matrix = 4 * n * d + 4 * n * n           # q, k, v, o once; scores and weights written once and read once
    numbers = {"order_1_over_2": one / two, "matrix_over_order_2": matrix / two}
    return Measured("holds" if one > 1.3 * two else "not_here", numbers,
                    f"With tiles of 64 x 64 the first version's loop order moves {one / two:.2f} times the words of "
                    f"the second's; writing the 4096 x 4096 matrix out would move {matrix / two:.1f} times as many.")


def gradients_need_no_matrix() -> Measured:
    """One KV group of a recorded layer at 512 and 1 024 tokens: gradients against autograd, largest tensor, products."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tutor.attention.dense import attend
    from tutor.attention.methods.flash import Flash, flash_backward
    from tutor.data import capture

    def by_autograd(q, k, v, do):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad((attend(*inputs).o * do).sum(), inputs)

    recorded, largest = capture("reference_4096"), {}
    layer = recorded.layers[1]
    for n in (512, 1024):
        q, k, v = (x[:, :heads, :n].double().clone() for x, heads in (
            (recorded.q(layer), 3), (recorded.k(layer), 1), (recorded.v(layer), 1)))
        do = torch.randn(q.shape, generator=torch.Generator().manual_seed(0), dtype=q.dtype)
        with FlopCounterMode(display=False) as forward:
            part = Flash(64, 64).attend(q, k, v)
        largest[n] = (_largest_tensor(flash_backward, q, k, v, part.o, part.lse, do), _largest_tensor(by_autograd, q, k, v, do))
    with FlopCounterMode(display=False) as backward:
        found = flash_backward(q, k, v, part.o, part.lse, do)
    truth = by_autograd(q, k, v, do)
    numbers = {"error": max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, truth)),
               "products_over_forward": backward.get_total_flops() / forward.get_total_flops(),
               "growth_by_hand": largest[1024][0] / largest[512][0], "growth_autograd": largest[1024][1] / largest[512][1],
               "autograd_over_by_hand": largest[1024][1] / largest[1024][0]}
    holds = numbers["error"] < 1e-12 and numbers["growth_by_hand"] <= 2 < numbers["growth_autograd"]
    return Measured("holds" if holds else "not_here", numbers,
                    f"Gradients made again tile by tile equal autograd's to {numbers['error']:.0e}; the largest tensor grows "
                    f"{numbers['growth_by_hand']:.0f}-fold when the text doubles, autograd's "
                    f"{numbers['growth_autograd']:.0f}-fold, and the price is {numbers['products_over_forward']:.1f} times "
                    "the products of the forward pass.")


CLAIMS = (
    Claim("flash.exact-with-no-matrix", "attention", "flash",
          "The output is that of standard attention, and the extra memory grows linearly with the length, not with "
          "its square.",
          "Dao et al. 2022, theorem 1 (section 3.1)", exact_with_no_matrix,
          Expected("holds", {
              "error": Number(0, 1e-12, "absolute"),
              "tiles_run": Number(0.515, 0.516, "of the tiles"),
              "growth_flash": Number(1.9, 2.0, "fold"),
              "growth_dense": Number(4, 4, "fold"),
              "dense_over_flash": Number(32, 32, "times")}, "2026-11-23", machine=MACHINE),
          stops="The operations stay quadratic: only the memory does not. In low precision the order of sums differs.",
          needs="capture"),
    Claim("flash.swapping-the-loops-saves-traffic", "attention", "flash",
          "With queries in the outer loop a block's output stays on the chip until it is done, so its state is not "
          "read and written again for every key block.",
          "Dao 2024 (FlashAttention-2), section 3.1", swapping_the_loops_saves_traffic,
          Expected("holds", {
              "order_1_over_2": Number(1.52, 1.53, "times"),
              "matrix_over_order_2": Number(1.99, 2.01, "times")}, "2026-11-23", machine=MACHINE),
            stops="Counted words, not seconds; with few query blocks the first order reads keys once, no worse.",
          needs=""),
    Claim("flash.gradients-need-no-matrix", "attention", "flash",
          "The backward pass needs no stored matrix: from the output and one statistic per row the weights are made again, "
          "with more operations and less memory.",
          "Dao et al. 2022, section 3.1 and appendix B", gradients_need_no_matrix,
          Expected("holds", {
              "error": Number(0, 1e-12, "of the largest gradient"),
              "products_over_forward": Number(3.5, 3.5, "times"),
              "growth_by_hand": Number(1.9, 2.0, "fold"),
              "growth_autograd": Number(4, 4, "fold"),
              "autograd_over_by_hand": Number(16, 16, "times")}, "2026-11-23", machine=MACHINE),
          stops="Our two passes make scores twice, 3.5 times the products of forward; one pass that adds dQ up in slow "
                "memory needs 2.5 times, and its sums come in no fixed order on a GPU.",
          needs="capture"),
)
