"""MiniBench: a few prompts of each kind, and one run that compares drafters with plain decoding.

Speculation lives on predictable text, so a mean over all kinds of text would hide what matters: each kind is reported
by itself. *Overlap* asks for text that its prompt contains (editing, quoting, listing), *chat* and *code* do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tqdm.auto import tqdm

from tutor.speculative.draft.base import Drafter
from tutor.speculative.engine import generate
from tutor.speculative.warp import GREEDY

PASSAGE = """\
The lighthouse at Brannock Point was built in 1871 from grey granite. It stands forty metres above the sea and its \
lamp could be seen from thirty kilometres away. For ninety years a keeper lived in the small house beside the tower. \
The last keeper, Ellen Marsh, wrote down the weather every morning and every evening, and her notebooks are now kept \
in the town museum. In 1961 the lamp was made automatic, and the house stood empty until a group of volunteers \
repaired the roof. Today visitors can climb the two hundred and twelve steps to the gallery, where a brass plate \
names the ships that were saved."""

LIST = """- Ellen Marsh, keeper, 1938 to 1961
- Thomas Reid, keeper, 1921 to 1938
- Agnes Doyle, assistant, 1925 to 1947
- Samuel Orr, engineer, 1959 to 1961"""

FUNCTION = """def mean_temperature(readings):
    total = 0
    count = 0
    for reading in readings:
        if reading is not None:
            total = total + reading
            count = count + 1
    if count == 0:
        return None
    return total / count"""

TASKS: dict[str, tuple[str, ...]] = {
    "overlap": (
        f"Repeat the following text word for word.\n\n{PASSAGE}",
        f"Copy this list, then say which person was the engineer.\n\n{LIST}",
        f"Rewrite this Python function with the name average_temperature. Change nothing else.\n\n{FUNCTION}",
    ),
    "chat": (
        "Explain in simple words how a refrigerator keeps food cold.",
        "Give me three tips for staying focused while studying.",
        "What is the difference between weather and climate?",
    ),
    "code": (
        "Write a Python function that returns the n-th Fibonacci number, with a docstring.",
        "Write a Python class for a bank account with deposit and withdraw methods.",
        "Write a SQL query that lists the ten customers with the largest total order value.",
    ),
}

COLUMNS = ("texts", "tokens", "steps", "drafted", "accepted", "rows", "differing", "seconds", "plain_seconds",
           "cpu_seconds", "plain_cpu_seconds", "draft_s", "verify_s", "host_s")

# Layers kept when the model drafts for itself, by greedy removal (`skip_layers`) on two of its own answers.
SELF_DRAFT = {"SmolLM2-135M-Instruct": tuple(i for i in range(30) if i not in (5, 14, 17, 26))}


def prompts(model: Any, kind: str) -> list[list[int]]:
    """Token ids of the tasks of a kind, in the model's chat format."""
    if kind not in TASKS:
        raise ValueError(f"kind must be one of {tuple(TASKS)}; got {kind!r}")
    ask = lambda text: model.tokenizer.chat([{"role": "user", "content": text}])
    return [list(model.tokenizer.encode(ask(text))) for text in TASKS[kind]]


def skip_layers(model: Any, texts: Sequence[Sequence[int]], keep: int) -> list[tuple[list[int], float]]:
    """Leave out one layer after the other, each time the one whose absence costs least; stop at `keep` layers.

    Returns the kept layers after each removal with their acceptance: the mean over the texts' positions of
    sum min(p, q), where p is the model and q the model with these layers only. Ties leave out the lower layer.
    """
    import torch

    if not 1 <= keep <= model.config.n_layers:
        raise ValueError(f"keep must be in [1, {model.config.n_layers}]; got {keep}")
    ids = [torch.tensor([list(text)]) for text in texts]
    law = lambda text, layers=None: torch.softmax(model.forward(text, layers=layers).logits[0].float(), -1)   # (T, V)
    with torch.inference_mode():
        target = [law(text) for text in ids]

        def acceptance(layers: list[int]) -> float:
            overlap = [torch.minimum(p, law(text, layers)).sum(-1) for p, text in zip(target, ids)]
            return float(torch.cat(overlap).mean())

        kept, found = list(range(model.config.n_layers)), []
        for _ in tqdm(range(model.config.n_layers - keep), desc="leaving out layers", leave=False):
            tried = [(acceptance([k for k in kept if k != layer]), layer) for layer in kept]
            best = max(tried, key=lambda pair: pair[0])
            kept = [k for k in kept if k != best[1]]
            found.append((kept, best[0]))
    return found


def compare(model: Any, drafters: dict[str, Callable[[], Drafter]], *, kinds: Iterable[str] = tuple(TASKS),
            max_new: int = 96, repeats: int = 1) -> list[dict[str, Any]]:
    """Greedy decoding of every task, plain and by each drafter in turn, in one run; one row per drafter and kind.

    Times are of whole generations, prefill included: wall seconds, and CPU seconds, which other programs on the machine
    disturb less. `ratio` and `cpu_ratio` are plain time / drafter time over the same number of tokens. `differing`
    counts texts that differ from plain decoding (in low precision, row counts round differently).
    """
    rows: dict[tuple[str, str], dict[str, float]] = {}
    work = [(kind, prompt) for kind in kinds for prompt in prompts(model, kind) for _ in range(repeats)]
    for kind, prompt in tqdm(work, desc="MiniBench", leave=False):
        plain, wall, cpu = _timed(model.generate, prompt, max_new=max_new)
        for name, make in drafters.items():
            out, seconds, cpu_seconds = _timed(generate, model, make(), prompt, max_new=max_new, warp=GREEDY)
            s, share = out.stats, out.stats.new_tokens / len(plain.tokens)
            row = rows.setdefault((kind, name), dict.fromkeys(COLUMNS, 0))
            seen = (1, s.new_tokens, s.steps, s.cost["drafted"], s.cost["accepted"], s.rows_verified,
                    out.tokens != plain.tokens, seconds, wall * share, cpu_seconds, cpu * share,
                    s.draft_time, s.verify_time, s.host_time)
            for column, value in zip(COLUMNS, seen):
                row[column] += value
    return [{"kind": kind, "drafter": name, "tokens_per_step": row["tokens"] / row["steps"],
             "ratio": row["plain_seconds"] / row["seconds"],
             "cpu_ratio": row["plain_cpu_seconds"] / row["cpu_seconds"], **row} for (kind, name), row in rows.items()]


def _timed(run: Callable, *args: Any, **how: Any) -> tuple[Any, float, float]:
    """Result, wall seconds, CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run(*args, **how)
    return result, time.perf_counter() - wall, time.process_time() - cpu
