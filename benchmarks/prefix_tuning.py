"""Matrix or rows? A style is taught to the real model by training only a prefix: m rows of keys and values, or NTK's (Z, k).

    python benchmarks/prefix_tuning.py             # about ten minutes on a laptop; writes benchmarks/results/prefix-tuning.json
    python benchmarks/prefix_tuning.py --again     # forget what was measured before

Task: a sentence of the Python documentation, a line break, the same sentence as a telegram (no articles, no auxiliaries, no
commas, STOP at the end). The loss counts the telegram. 64 pairs to train on, 64 others to judge by. The model is frozen;
what is trained are the prefixes of its last layers, which is where gradients must pass; the layers below run once and
their output is kept. Both forms start from the same text: rows as the layers make them of other pairs, Z and k fitted to
64 such rows. Adam, the same steps and batches for all; each form has its own step width, the best of three on 32 more pairs.
Each run is written when it is done, so an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from tutor import texts
from tutor.attention.dense import attend
from tutor.attention.methods.ntk import Summary, fit, read
from tutor.attention.partial import Partial, merge

RESULTS = Path(__file__).resolve().parent / "results" / "prefix-tuning.json"
LAYERS = range(20, 30)
ROWS, FITTED = (1, 4, 16, 32, 64), 64                   # 32.5 rows hold as many numbers as Z and k of a head of width 64
TRAIN, JUDGE, TUNE = 64, 64, 32
STEPS, TRIAL, BATCH, SEEDS = 100, 60, 4, (0, 1)
WIDTHS = (0.003, 0.01, 0.03)
LEFT_OUT = {"a", "an", "the", "is", "are", "be", "been", "being", "was", "were", "will", "would", "has", "have", "had", "does",
            "do", "can", "may", "should", "must", "it", "this", "that", "these", "those", "there"}


def telegram(sentence: str) -> str:
    """The same in fewer words: "The list of names is sorted." becomes "list of names sorted STOP"."""
    words = [word for word in sentence.rstrip(".").replace(",", "").split() if word.lower() not in LEFT_OUT]
    return " ".join([words[0].lower(), *words[1:], "STOP"]) if words else "STOP"


def pairs(tokenizer, count: int) -> list[tuple[Tensor, int]]:
    """`count` examples, the same every time: ids of both sentences, and how many of them belong to the first."""
    plain = [s for s in texts.sentences() if 7 <= len(s.split()) <= 14 and re.fullmatch(r"[A-Z][a-z]+[A-Za-z ,]*\.", s)]
    random.Random(0).shuffle(plain)
    found = []
    for sentence in plain[:count]:
        start = tokenizer.encode(sentence + "\n")
        found.append((torch.tensor(start + tokenizer.encode(telegram(sentence) + "\n")), len(start)))
    return found


class Task:
    """Examples as the trained layers see them: the residual after the frozen ones, and which rows are judged."""

    def __init__(self, model, examples):
        self.model = model
        with torch.no_grad():
            self.examples = [(model.forward(ids[None], layers=range(LAYERS[0]), logits="none").hidden[0], ids, start)
                             for ids, start in examples]

    def __len__(self):
        return len(self.examples)

    def loss(self, which, far=None) -> tuple[Tensor, int]:
        """Sum of the surprise of all telegrams of a batch, in nats, and how many tokens that is."""
        chosen = [self.examples[i] for i in which]
        longest = max(len(ids) for _, ids, _ in chosen)                       # padding comes last, where nobody looks back at it
        x = torch.stack([F.pad(hidden, (0, 0, 0, longest - len(ids))) for hidden, ids, _ in chosen])

        def with_prefix(layer, q, view, *, pos_q, tree_mask=None, trace=None):
            own = attend(q, view[0].k, view[0].v, dtype=q.dtype)
            part = own if far is None else merge(own, far(layer, q))
            return Partial(part.o, part.lse)

        hidden = self.model.forward(embeds=x, layers=LAYERS, attend=with_prefix, logits="none").hidden
        rows = torch.cat([hidden[i, start - 1:len(ids) - 1] for i, (_, ids, start) in enumerate(chosen)])
        words = torch.cat([ids[start:] for _, ids, start in chosen])
        return F.cross_entropy(self.model.head(rows).float(), words, reduction="sum"), len(words)

    @torch.no_grad()
    def judge(self, far=None) -> float:
        """Mean surprise of a token of a telegram."""
        found = [self.loss(range(at, min(at + 8, len(self))), far) for at in range(0, len(self), 8)]
        return float(sum(loss for loss, _ in found)) / sum(words for _, words in found)


@torch.no_grad()
def start_rows(model, examples) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Per layer: q, k and v of a text of other pairs; the first rows are the prefix, the later ones ask for it."""
    ids = torch.cat([ids for ids, _ in examples])[:4 * FITTED]
    seen = model.forward(ids[None], collect=("q", "k", "v"), logits="none").collected
    return {layer: tuple(seen[name][layer].float() for name in "qkv") for layer in LAYERS}


class Rows:
    """A prefix of m rows of keys and values in every layer."""

    def __init__(self, started, m: int):
        leaf = lambda x: x[:, :, :m].clone().requires_grad_()
        self.rows = {layer: (leaf(k), leaf(v)) for layer, (_, k, v) in started.items()}

    def parameters(self) -> list[Tensor]:
        return [x for pair in self.rows.values() for x in pair]

    def __call__(self, layer: int, q: Tensor) -> Partial:
        k, v = (x.expand(q.shape[0], -1, -1, -1) for x in self.rows[layer])
        return attend(q, k, v, causal=False, dtype=q.dtype)


class Matrix:
    """Z and k of NTK-Attention in every layer; k is made positive by |k|, as in the published code."""

    def __init__(self, started):
        self.parts = {}
        for layer, (q, k, v) in started.items():
            fitted = fit(q[:, :, FITTED:], k[:, :, :FITTED], v[:, :, :FITTED],
                         own=attend(q[:, :, FITTED:], k[:, :, FITTED:], v[:, :, FITTED:]))
            size = fitted.k.amax(-1)                                          # shift so that the largest weight is 1
            z, weight = fitted.z / size[..., None, None], fitted.k / size[..., None]
            self.parts[layer] = z.requires_grad_(), weight.requires_grad_(), fitted.shift + size.log()

    def parameters(self) -> list[Tensor]:
        return [x for z, weight, _ in self.parts.values() for x in (z, weight)]

    def __call__(self, layer: int, q: Tensor) -> Partial:
        z, weight, shift = self.parts[layer]
        whole = Summary(z, weight.abs(), shift)
        return read(q, Summary(*(x.expand(q.shape[0], *x.shape[1:]) for x in (whole.z, whole.k, whole.shift))))


def made(form: str, started) -> Rows | Matrix:
    """A prefix to be trained: "matrix", or so many "16 rows"."""
    return Matrix(started) if form == "matrix" else Rows(started, int(form.split()[0]))


def train(task: Task, far, width: float, steps: int, seed: int, name: str) -> list[float]:
    """Adam on the prefix, its step width falling to nothing; losses of the batches."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(far.parameters(), lr=width)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for _ in tqdm(range(steps), desc=name, leave=False):
        loss, words = task.loss(torch.randperm(len(task), generator=order)[:BATCH].tolist(), far)
        optimizer.zero_grad()
        (loss / words).backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()) / words)
    return losses


def write(content: dict) -> None:
    """A half-written file is never visible."""
    partial = RESULTS.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="forget earlier results")
    options = parser.parse_args()
    import tutor

    about = {"question": __doc__.splitlines()[0], "layers": list(LAYERS), "train": TRAIN, "judged": JUDGE, "steps": STEPS,
             "batch": BATCH, "widths": list(WIDTHS)}
    content = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() and not options.again else {}
    if any(content.get(name) != value for name, value in about.items()):                 # nothing, or another experiment
        content = about | {"trials": [], "runs": []}
    content |= {"date": datetime.now(UTC).date().isoformat(), "machine": f"{os.cpu_count()}-core laptop-class CPU",
                "torch": torch.__version__, "dtype": "float32"}
    model = tutor.load(dtype=torch.float32)
    examples = pairs(model.tokenizer, TRAIN + JUDGE + TUNE + 32)
    places = (0, TRAIN), (TRAIN, JUDGE), (TRAIN + JUDGE, TUNE)
    train_task, judged, tuned = (Task(model, examples[at:at + count]) for at, count in places)
    started = start_rows(model, examples[-32:])
    content |= {"tokens judged": sum(len(ids) - start for _, ids, start in judged.examples), "no prefix": judged.judge(),
                "example": model.tokenizer.decode(examples[0][0].tolist())}

    for form in tqdm(("16 rows", "matrix"), desc="step widths"):
        for width in WIDTHS:
            if any((row["form"], row["width"]) == (form, width) for row in content["trials"]):
                continue
            far = made(form, started)
            train(train_task, far, width, TRIAL, 0, f"{form}, {width}")
            content["trials"].append({"form": form, "width": width, "nll": tuned.judge(far)})
            write(content)
    best = {form: min((row for row in content["trials"] if row["form"] == form), key=lambda row: row["nll"])["width"]
            for form in ("16 rows", "matrix")}

    for seed in SEEDS:
        for form in tqdm([f"{m} rows" for m in ROWS] + ["matrix"], desc=f"seed {seed}"):
            if any((row["form"], row["seed"]) == (form, seed) for row in content["runs"]):
                continue
            start, far = time.perf_counter(), made(form, started)
            width, before = best.get(form, best["16 rows"]), judged.judge(far)
            losses = train(train_task, far, width, STEPS, seed, form)
            content["runs"].append({"form": form, "seed": seed, "floats": sum(x.numel() for x in far.parameters()),
                                    "width": width, "before": before, "nll": judged.judge(far), "train": sum(losses[-16:]) / 16,
                                    "seconds": round(time.perf_counter() - start, 1)})
            write(content)
    write(content)
    print(f"no prefix: {content['no prefix']:.3f} nats a token")
    for row in sorted(content["runs"], key=lambda row: (row["floats"], row["seed"])):
        print(f"{row['form']:<8} seed {row['seed']} {row['floats']:>8} floats: {row['before']:.3f} before training, "
              f"{row['nll']:.3f} after (on the training pairs {row['train']:.3f})")


if __name__ == "__main__":
    main()
