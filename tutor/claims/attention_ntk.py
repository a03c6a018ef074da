"""Claims about NTK-Attention: a size that no prefix changes, and how well a matrix stands for a real prefix."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"
PREFIX = 512


def one_size() -> Measured:
    """Floats per KV head and multiply-adds per query for prefixes of 64 to 65 536 rows; merge against formula in float64."""
    import torch

    from tutor.attention.dense import logits
    from tutor.attention.methods.ntk import log_elu, ntk_attend, summarise
    from tutor.data import capture

    recorded = capture("reference_4096")
    q, k, v = (x[:, :, :1024].double() for x in (recorded.q(20), recorded.k(20), recorded.v(20)))
    floats = [summarise(k[:, :, :m], v[:, :, :m]).floats for m in (64, 1024)]
    kp, vp, late = k[:, :, :PREFIX], v[:, :, :PREFIX], slice(PREFIX, None)
    found = ntk_attend(q[:, :, late], k[:, :, late], v[:, :, late], summarise(kp, vp))
    weights = torch.exp(logits(q[:, :, late], k[:, :, late]))
    fq, fk = (log_elu(x / 64**0.25).exp() for x in (q[:, :, late], kp))
    far = fq @ fk.repeat_interleave(3, 1).transpose(-1, -2)
    values = [x.repeat_interleave(3, 1) for x in (v[:, :, late], vp)]
    o = (weights @ values[0] + far @ values[1]) / (weights.sum(-1) + far.sum(-1))[..., None]
    numbers = {"floats_64_rows": floats[0], "floats_1024_rows": floats[1],
               "rows_of_equal_size": floats[0] / (2 * 64), "merge_error": float((found.o - o).abs().max() / o.abs().max())}
    same = floats[0] == floats[1] and numbers["merge_error"] < 1e-12
    return Measured("holds" if same else "not_here", numbers,
                    f"A prefix of 64 or of 1 024 rows becomes {floats[0]} numbers a head, as many as "
                    f"{numbers['rows_of_equal_size']:.1f} rows of keys and values. The merge differs from the published "
                    f"formula by {numbers['merge_error']:.0e}.")


def real_prefix() -> Measured:
    """Median relative output error 1 000 to 1 500 tokens after a real prefix of 512, per layer: six ways to replace it."""
    import torch

    from tutor.attention.dense import attend, probs
    from tutor.attention.methods.ntk import NTK, fit, read, summarise
    from tutor.attention.partial import merge
    from tutor.attention.selection import output_error
    from tutor.data import capture

    recorded, numbers = capture("reference_4096"), {}
    learn, judge, end = torch.arange(PREFIX, 1536, 3), torch.arange(1536, 2048, 7), 2048
    phi = NTK(features=64).phi(64)
    for layer in recorded.layers:
        q, k, v = (x[:, :, :end].double() for x in (recorded.q(layer), recorded.k(layer), recorded.v(layer)))
        kp, vp, asked = k[:, :, :PREFIX], v[:, :, :PREFIX], q[:, :, judge]
        rest = lambda rows: attend(q[:, :, rows], k[:, :, PREFIX:], v[:, :, PREFIX:], pos_q=rows - PREFIX)
        own, truth = rest(judge), attend(asked, k, v, pos_q=judge)
        heavy = probs(asked, k, pos_q=judge)[..., :PREFIX].sum(2).unflatten(1, (3, 3)).sum(2).topk(32, -1).indices  # (1, 3, 32)
        kept = [x.gather(2, heavy[..., None].expand(*heavy.shape, 64)) for x in (kp, vp)]
        ways = {"dropped": None, "sum": read(asked, summarise(kp, vp)), "random": read(asked, summarise(kp, vp, phi), phi),
                "fit": read(asked, fit(q[:, :, learn], kp, vp, own=rest(learn))),
                "rows_4": attend(asked, kp[:, :, :4], vp[:, :, :4], causal=False), "rows_32": attend(asked, *kept, causal=False)}
        for way, part in ways.items():
            o = own.o if part is None else merge(own, part).o
            numbers[f"{way}_layer_{layer}"] = float(output_error(o, truth.o).median(-1).values.median())
    error = lambda way: {layer: numbers[f"{way}_layer_{layer}"] for layer in recorded.layers}
    late, last = recorded.layers[1:], recorded.layers[-1]
    learned = all(error("fit")[layer] < error("dropped")[layer] / 2 for layer in late)
    as_good = all(error("fit")[layer] < error("rows_32")[layer] for layer in recorded.layers)
    return Measured("holds" if learned and as_good else "in_part" if learned else "not_here", numbers,
                    f"Layer {last}: dropped, the prefix costs an error of {error('dropped')[last]:.2f}; summed with elu + 1, "
                    f"{error('sum')[last]:.2f}; fitted, {error('fit')[last]:.2f}; its first 4 rows alone, an eighth of the "
                    f"floats, {error('rows_4')[last]:.3f}.")


def loss_with_prefix_replaced() -> Measured:
    """Loss of the real model on tokens 640 to 768 with the first 512 rows replaced in all layers; fitted on rows 512 to 640."""
    import torch

    from tutor import load
    from tutor.attention.dense import attend
    from tutor.attention.methods.ntk import fit, read, summarise
    from tutor.attention.partial import Partial, merge
    from tutor.data import capture

    model, ids = load(), torch.as_tensor(capture("reference_4096").ids[:768])[None]
    with torch.no_grad():
        seen = model.forward(ids[:, :640], collect=("q", "k", "v"), logits="none").collected
    summaries = {}
    for layer in range(model.config.n_layers):
        q, k, v = (seen[name][layer].float() for name in "qkv")
        own = attend(q[:, :, PREFIX:], k[:, :, PREFIX:], v[:, :, PREFIX:], dtype=torch.float32)
        prefix = k[:, :, :PREFIX], v[:, :, :PREFIX]
        summaries[layer] = {"sum": summarise(*prefix), "fit": fit(q[:, :, PREFIX:], *prefix, own=own)}

    def loss(way):
        def attend_layer(layer, q, view, *, pos_q, tree_mask=None, trace=None):
            k, v, q_ = view[0].k.float(), view[0].v.float(), q.float()
            late = q_[:, :, PREFIX:]                                       # the rows of the prefix itself stay exact
            first = attend(q_[:, :, :PREFIX], k[:, :, :PREFIX], v[:, :, :PREFIX], dtype=torch.float32)
            own = attend(late, k[:, :, PREFIX:], v[:, :, PREFIX:], dtype=torch.float32)
            if way in ("sum", "fit"):
                own = merge(own, read(late, summaries[layer][way]))
            elif way:
                own = merge(own, attend(late, k[:, :, :way], v[:, :, :way], causal=False, dtype=torch.float32))
            return Partial(torch.cat([first.o, own.o], 2).to(q.dtype), torch.cat([first.lse, own.lse], 2))

        return float(model.nll(ids, attend=attend_layer)[0, 640:].double().mean())

    exact = loss(PREFIX)
    numbers = {name: loss(way) - exact for name, way in (("dropped", 0), ("sum", "sum"), ("fit", "fit"), ("rows_4", 4),
                                                         ("rows_32", 32))}
    good, better = numbers["fit"] < 0.1, numbers["fit"] < min(numbers["dropped"], numbers["sum"]) / 2
    return Measured("holds" if good else "in_part" if better else "not_here", numbers,
                    f"Against the exact prefix the loss rises by {numbers['dropped']:.2f} nats a token when it is dropped, "
                    f"{numbers['sum']:.2f} when it is summed with elu + 1, {numbers['fit']:.2f} when the sums are fitted; by "
                    f"{numbers['rows_4']:.2f} when its first 4 rows are kept.")


def trained_with_a_task() -> Measured:
    """Loss of 24 unseen telegrams after 30 steps on 64 others, the prefix of the last 10 layers as Z and k or as 32 rows."""
    import torch

    from tutor import load
    from tutor.attention.prefix_tuning import Task, made, pairs, started, train

    model = load(dtype=torch.float32)
    examples = pairs(model.tokenizer, 112)
    learn, judged, begun = Task(model, examples[:64]), Task(model, examples[64:88]), started(model, examples[88:])
    numbers = {"no_prefix": judged.judge()}
    for name, form, width in (("matrix", "matrix", 0.01), ("rows_32", "32 rows", 0.1)):
        far = made(form, begun)
        numbers[f"{name}_untrained"] = judged.judge(far)
        train(learn, far, width, 30, 0, name=form)
        numbers[name] = judged.judge(far)
    taught = numbers["matrix"] < numbers["no_prefix"] / 2
    as_good = numbers["matrix"] < numbers["rows_32"] + 0.02
    return Measured("holds" if taught and as_good else "in_part" if taught else "not_here", numbers,
                    f"A token of an unseen telegram costs {numbers['no_prefix']:.2f} nats without a prefix. After 30 steps of "
                    f"training: {numbers['matrix']:.2f} with Z and k, "
                    f"{numbers['rows_32']:.2f} with 32 rows, as many numbers.")


CLAIMS = (
    Claim("ntk.one-size-for-any-prefix", "attention", "ntk",
          "A prefix of any length is replaced by d^2 + d numbers a head, and the cost no longer depends on its length.",
          "Liang et al. 2024, abstract and section 3 (section number unverified)", one_size,
          Expected("holds", {"floats_64_rows": Number(4160, 4160, "numbers"), "floats_1024_rows": Number(4160, 4160, "numbers"),
                             "rows_of_equal_size": Number(32.5, 32.5, "rows"),
                             "merge_error": Number(0, 1e-12, "of the largest output")}, "2026-11-23", machine=MACHINE),
          headline="rows_of_equal_size",
          stops="A prefix of fewer rows than 33 takes less room as it is. And size says nothing about likeness.",
          needs="capture"),
    Claim("ntk.stands-for-a-prefix", "attention", "ntk",
          "The matrix and the vector approximate attention to a long prefix.",
          "Liang et al. 2024, section 3 (error bound with polynomial features; section number unverified)", real_prefix,
          Expected("in_part", {"dropped_layer_2": Number(0.076, 0.097, "of the output"),
                               "sum_layer_2": Number(0.57, 0.73, "of the output"),
                               "random_layer_2": Number(0.076, 0.097, "of the output"),
                               "fit_layer_2": Number(0.055, 0.07, "of the output"),
                               "rows_4_layer_2": Number(0.07, 0.09, "of the output"),
                               "rows_32_layer_2": Number(0.015, 0.02, "of the output"),
                               "dropped_layer_20": Number(0.75, 0.96, "of the output"),
                               "sum_layer_20": Number(0.86, 1.1, "of the output"),
                               "random_layer_20": Number(0.75, 0.96, "of the output"),
                               "fit_layer_20": Number(0.22, 0.28, "of the output"),
                               "rows_4_layer_20": Number(0.023, 0.029, "of the output"),
                               "rows_32_layer_20": Number(0.017, 0.022, "of the output"),
                               "dropped_layer_25": Number(1.7, 2.2, "of the output"),
                               "sum_layer_25": Number(1.5, 1.9, "of the output"),
                               "random_layer_25": Number(1.6, 2.1, "of the output"),
                               "fit_layer_25": Number(0.18, 0.24, "of the output"),
                               "rows_4_layer_25": Number(0.0023, 0.003, "of the output"),
                               "rows_32_layer_25": Number(0.0019, 0.0025, "of the output")},
                   "2026-11-23", machine=MACHINE),
          headline="fit_layer_20",
          stops="Sums of elu + 1 give the prefix nearly all the mass and are no better than dropping it; random features need "
                "far more than 64 directions for vectors this long. Fitted to real queries the error falls several times in the "
                "late layers, but keeping real rows does better: the 4 sinks there, 32 chosen rows everywhere. (The 32 were "
                "chosen by the very queries that judge them.)",
          needs="capture"),
    Claim("ntk.loss-with-a-prefix-replaced", "attention", "ntk",
          "NTK-Attention with few parameters reaches the quality of long trained prefixes.",
          "Liang et al. 2024, experiments (figures unverified); there Z and k are trained with the task, here fitted to a text",
          loss_with_prefix_replaced,
          Expected("not_here", {"dropped": Number(0.05, 0.14, "nats a token"), "sum": Number(3.5, 5.6, "nats a token"),
                                "fit": Number(0.15, 0.32, "nats a token"), "rows_4": Number(0.06, 0.16, "nats a token"),
                                "rows_32": Number(0.05, 0.15, "nats a token")}, "2026-11-23", machine=MACHINE),
          headline="fit",
          stops="Fitted layer by layer to 128 rows of the exact model, not trained through it: the errors of 30 layers add up, "
                "and the fit costs more than no prefix at all, which this text hardly misses. One text, 127 tokens: read it as "
                "an order, not as figures.",
          needs="model"),
    Claim("ntk.trained-with-a-task", "attention", "ntk",
          "Trained with a task, Z and k do as well as prefix tuning with more rows, and as fine-tuning with more parameters.",
          "Liang et al. 2024, experiments (P-Tuning v2, LoRA and full fine-tuning on SuperGLUE-like and vision tasks; figures "
          "unverified)", trained_with_a_task,
          Expected("in_part", {"no_prefix": Number(4.2, 4.5, "nats a token"),
                               "matrix_untrained": Number(3.6, 4.1, "nats a token"),
                               "matrix": Number(0.95, 1.3, "nats a token"),
                               "rows_32_untrained": Number(4.0, 4.5, "nats a token"),
                               "rows_32": Number(0.75, 1.15, "nats a token")}, "2026-11-23", machine=MACHINE),
          headline="matrix",
          stops="One toy style, 64 pairs, prefixes in the last 10 of 30 layers, 30 steps with each form's own step width: the "
                "matrix learns the style, rows of equal size learn it better. After 100 steps a single row in each layer, a 32nd "
                "of the numbers, does as well on unseen pairs (benchmarks/prefix_tuning.py). Other ways of tuning were not run.",
          needs="model"),
)
