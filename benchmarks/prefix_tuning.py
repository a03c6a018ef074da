"""Matrix or rows? A style is taught to the real model by training only a prefix: m rows of keys and values, or NTK's (Z, k).

    python benchmarks/prefix_tuning.py             # ten minutes on an idle laptop; writes benchmarks/results/prefix-tuning.json
    python benchmarks/prefix_tuning.py --again     # forget what was measured before

Task: a sentence of the Python documentation, a line break, the same sentence as a telegram (no articles, no auxiliaries, no
commas, STOP at the end). The loss counts the telegram. 64 pairs to train on, 64 others to judge by. The model is frozen;
what is trained are the prefixes of its last layers, which is where gradients must pass; the layers below run once and
their output is kept. Both forms start from the same text: rows as the layers make them of other pairs, Z and k fitted to
64 such rows. Adam, the same steps and batches for all; each form has its own step width, the best of three on 32 more pairs
(rows: tried with 16, 40 steps). One seed of the order of the batches. Weights are 4-bit quantised ones, dequantised, computed in
float32.
Each run is written when it is done, so an interrupted one goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm.auto import tqdm

from tutor.attention.prefix_tuning import LAYERS, Task, made, pairs, started, train

RESULTS = Path(__file__).resolve().parent / "results" / "prefix-tuning.json"
ROWS = (1, 4, 16, 32, 64)                          # 32.5 rows hold as many numbers as Z and k of a head of width 64
TRAIN, JUDGE, TUNE, START = 64, 64, 32, 32         # pairs to train on, to judge by, to choose the step width, to start from
STEPS, TRIAL, SEEDS = 100, 40, (0,)
WIDTHS = {"16 rows": (0.03, 0.1, 0.3), "matrix": (0.003, 0.01, 0.03)}


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
             "trial steps": TRIAL, "widths": {form: list(widths) for form, widths in WIDTHS.items()}}
    content = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() and not options.again else {}
    if any(content.get(name) != value for name, value in about.items()):                 # nothing, or another experiment
        content = about | {"trials": [], "runs": []}
    content |= {"date": datetime.now(UTC).date().isoformat(), "machine": f"{os.cpu_count()}-core laptop-class CPU",
                "torch": torch.__version__, "dtype": "float32"}
    model = tutor.load(dtype=torch.float32)
    examples = pairs(model.tokenizer, TRAIN + JUDGE + TUNE + START)
    places = (0, TRAIN), (TRAIN, JUDGE), (TRAIN + JUDGE, TUNE)
    train_task, judged, tuned = (Task(model, examples[at:at + count]) for at, count in places)
    begun = started(model, examples[-START:])
    content |= {"tokens judged": sum(len(ids) - start for _, ids, start in judged.examples), "no prefix": judged.judge(),
                "example": model.tokenizer.decode(examples[0][0].tolist())}

    for form, widths in tqdm(WIDTHS.items(), desc="step widths"):
        for width in widths:
            if any((row["form"], row["width"]) == (form, width) for row in content["trials"]):
                continue
            far = made(form, begun)
            train(train_task, far, width, TRIAL, 0, name=f"{form}, {width}")
            content["trials"].append({"form": form, "width": width, "nll": tuned.judge(far)})
            write(content)
    best = {form: min((row for row in content["trials"] if row["form"] == form), key=lambda row: row["nll"])["width"]
            for form in WIDTHS}

    for seed in SEEDS:
        for form in tqdm(["matrix", *(f"{m} rows" for m in ROWS)], desc=f"seed {seed}"):
            if any((row["form"], row["seed"]) == (form, seed) for row in content["runs"]):
                continue
            start, far = time.perf_counter(), made(form, begun)
            width, before = best.get(form, best["16 rows"]), judged.judge(far)
            losses = train(train_task, far, width, STEPS, seed, name=form)
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
