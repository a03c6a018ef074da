"""What happens past the trained length? The loss of the real model along a text half as long again as it was trained for.

    python benchmarks/beyond_length.py                      # every way of reading, some minutes each on a laptop
    python benchmarks/beyond_length.py --readings dense     # names that begin so
    python benchmarks/beyond_length.py --again              # forget what was measured before

The text is read in chunks of 256 tokens with a full cache. Dense attention sees every key where it stands. The other two
read the same number of keys, chosen for a chunk as a whole: the first ones and the most recent ones, or TokenSelect's vote
with the sizes of its paper for the ends and half of its elected keys. Each of them once with all keys where they stand, and
once renumbered 0, 1, 2, ...: what differs between those two is positions alone. Losses are means over blocks of 32 tokens,
the units of the bootstrap; a reading is written when it is done, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

import tutor
from tutor import texts
from tutor.attention import dense
from tutor.attention.methods.token_select import TokenSelect, renumbered
from tutor.attention.partial import Partial
from tutor.attention.patch import BLOCK
from tutor.model.llama import Model

RESULTS = Path(__file__).resolve().parent / "results" / "beyond-length.json"
TOKENS, CHUNK, INIT, TOP, LOCAL = 12_288, 256, 128, 1024, 512
KEYS = INIT + TOP + LOCAL
VOTE = TokenSelect(TOP, INIT, LOCAL, rope="clamped")


def ends(q: Tensor, k: Tensor, pos_q: Tensor) -> Tensor:
    """The first keys and the most recent ones of a chunk, `(K,)`."""
    n = int(pos_q[-1]) + 1
    return torch.arange(n) if n <= KEYS else torch.cat((torch.arange(INIT), torch.arange(n - KEYS + INIT, n)))


def elected(q: Tensor, k: Tensor, pos_q: Tensor) -> Tensor:
    """TokenSelect's keys of a chunk, `(K,)`."""
    return VOTE.elect(q, k, pos_q=pos_q)


Choice = Callable[[Tensor, Tensor, Tensor], Tensor]
# name -> who chooses the keys, and whether they are renumbered
READINGS: dict[str, tuple[Choice | None, bool]] = {
    "dense": (None, False), "sinks and window, renumbered": (ends, True), "TokenSelect, renumbered": (elected, True),
    "TokenSelect, true positions": (elected, False), "sinks and window, true positions": (ends, False)}


def seam(model: Model, choose: Choice | None, renumber: bool) -> Callable[..., Partial] | None:
    """The model's `attend`: chosen keys, where they stand or renumbered. None is the model's own dense attention."""
    if choose is None:
        return None

    def attend(layer: int, q: Tensor, view: list, *, pos_q: Tensor, tree_mask: Tensor | None = None, trace=None) -> Partial:
        k, v, pos = view[0].k, view[0].v, pos_q.long()
        keys = choose(q, k, pos)
        if renumber:
            part = renumbered(q, k, v, keys, pos_q=pos, base=model.rope.base)
        else:
            part = dense.attend(q, k[:, :, keys], v[:, :, keys], causal=False, mask=keys <= pos[:, None], dtype=torch.float32)
        return Partial(part.o.to(q.dtype), part.lse)

    return attend


@torch.no_grad()
def losses(model: Model, ids: Tensor, attend: Callable[..., Partial] | None) -> Tensor:
    """Surprise of every token but the first, in nats, `(T - 1,)`, reading chunk by chunk."""
    cache, found = model.new_cache(), []
    for start in tqdm(range(0, len(ids) - 1, CHUNK), desc="chunks", leave=False):
        stop = min(start + CHUNK, len(ids) - 1)
        hidden = model.forward(ids[start:stop], cache=cache, attend=attend, logits="none").hidden[0]
        found.append(F.cross_entropy(model.head(hidden).float(), ids[start + 1:stop + 1], reduction="none"))
    return torch.cat(found)


def write(model: Model, runs: dict[str, dict]) -> None:
    content = {"question": __doc__.splitlines()[0], "model": repr(model), "trained_tokens": model.config.max_positions,
               "text": f"Python language reference, {TOKENS} tokens", "tokens": TOKENS, "chunk": CHUNK, "block": BLOCK,
               "keys": {"first": INIT, "elected": TOP, "recent": LOCAL, "together": KEYS},
               "date": datetime.now(UTC).date().isoformat(), "machine": f"{os.cpu_count()}-core laptop-class CPU",
               "torch": torch.__version__, "dtype": str(model.dtype).removeprefix("torch."), "readings": runs}
    partial = RESULTS.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readings", nargs="*", default=[""], help="names of readings, or how they begin")
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    model = tutor.load()
    if model.rope.base != VOTE.base:
        raise ValueError(f"TokenSelect takes RoPE of base {VOTE.base} off again; this model turns by {model.rope.base}")
    ids = model.encode(texts.reference(TOKENS, model.tokenizer))[0, :TOKENS]
    runs = {} if options.again or not RESULTS.exists() else json.loads(RESULTS.read_text(encoding="utf-8"))["readings"]
    todo = [name for name in READINGS if name not in runs and name.startswith(tuple(options.readings))]
    for name in tqdm(todo, desc="readings"):
        start = time.perf_counter()
        found = losses(model, ids, seam(model, *READINGS[name]))
        runs[name] = {"blocks": [round(float(block.mean()), 4) for block in found.split(BLOCK)],
                      "seconds": round(time.perf_counter() - start, 1)}
        write(model, {name: runs[name] for name in READINGS if name in runs})
    for name, run in runs.items():
        blocks = torch.tensor(run["blocks"]).split(1024 // BLOCK)
        print(f"{name:<34}" + " ".join(f"{block.mean():5.2f}" for block in blocks) + f"  ({run['seconds']:.0f} s)")


if __name__ == "__main__":
    main()
