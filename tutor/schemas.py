"""The trace schemas: one section per figure, with the arrays it draws and the sentence it speaks.

This file is the contract between the families (which record) and the widgets (which draw). A figure reads the arrays
named here and nothing else; a sentence is made from the state alone, so that caption, live region and exercise agree.
Tokens are stored in `subject["tokens"]` as a list of strings.
"""

from __future__ import annotations

import numpy as np

from tutor.trace import Schema, Trace, register_schema


def _token(trace: Trace, position: int) -> str:
    tokens = trace.subject.get("tokens", [])
    return f"{position} {tokens[position].strip() or tokens[position]!r}" if 0 <= position < len(tokens) else str(position)


def _percent(x: float) -> str:
    return f"{100 * x:.0f} %" if x >= 0.01 else f"{100 * x:.1f} %"


# ---------------------------------------------------------------------------------------------------- attention_grid
# A step is one query row. Probabilities are recomputed from int8 rows: p_ij = exp(q_scale_i k_scale_j q_i·k_j - lse_i),
# masked causally at key j <= first + i; display arithmetic only. Recorded once per head shown.
#   q         int8    (H, T, D)     queries, after RoPE          q_scale  float32 (H, T)    includes 1/sqrt(D)
#   k         int8    (Hk, S, D)    keys, after RoPE             k_scale  float32 (Hk, S)
#   kv_of     int32   (H,)          which row of k a head reads
#   lse       float32 (H, T)        exact log-sum-exp of the real logits
#   overview  uint8   (H, n, n)     255 * sqrt(mean probability in the cell / the largest of its row): zoomed out
#   indptr    int64   (H*T + 1,)    optional, with
#   indices   int32   (nnz,)        … the keys a method selected, ascending per row
# subject: tokens; heads = [{"layer": l, "head": h, "label": "…"}]; first = position of query row 0 (S - T)
def grid_row(trace: Trace, head: int, row: int) -> np.ndarray:
    """Attention probabilities of one query row over keys 0..first+row, from the recorded int8 rows (float64)."""
    a = trace.arrays
    end = trace.subject.get("first", 0) + row + 1
    kv = int(a["kv_of"][head])
    logits = (a["k"][kv, :end].astype(np.float64) @ a["q"][head, row].astype(np.float64))
    logits *= float(a["q_scale"][head, row]) * a["k_scale"][kv, :end].astype(np.float64)
    return np.exp(logits - float(a["lse"][head, row]))


def _describe_grid(trace: Trace, step: int) -> str:
    head = int(trace.subject.get("head", 0))
    p = grid_row(trace, head, step)
    best = np.argsort(-p, kind="stable")[:3]
    where = trace.subject["heads"][head]
    words = ", ".join(f"{_token(trace, int(j))} ({_percent(float(p[j]))})" for j in best)
    query = _token(trace, trace.subject.get("first", 0) + step)
    return f"Layer {where['layer']}, head {where['head']}: query {query} looks most at {words}."


register_schema(Schema("attention.grid/1", ("selected",), _describe_grid,
                       ("q", "q_scale", "k", "k_scale", "kv_of", "lse", "overview")))


# A step is one head, layer by layer: all heads of a model as small maps of n x n cells (head_browser).
#   maps  uint8 (L*H, n(n+1)/2)       lower triangle, row by row: 255 * sqrt(mean probability / the largest of the row)
#   kept  uint8 (M, L*H, bytes)       optional: bit of each such cell (first cell: highest bit), 1 if method m reads any pair
#   mass, load  float32 (M, L*H)      with it: attention kept, and share of the allowed pairs that are read
#   measures  float32 (K, L*H)        optional: shares in [0, 1]
# params: cells (n); subject: tokens, layers (L names), heads (H), methods (M names), measures (K names)
def _describe_heads(trace: Trace, step: int) -> str:
    about, a = trace.subject, trace.arrays
    told = [f"{name} {_percent(float(a['measures'][i, step]))}" for i, name in enumerate(about["measures"])]
    told += [f"{name} keeps {_percent(float(a['mass'][i, step]))} of its attention with {_percent(float(a['load'][i, step]))} "
             "of the pairs" for i, name in enumerate(about["methods"])]
    where = f"Layer {about['layers'][step // about['heads']]}, head {step % about['heads']}"
    return f"{where}: {'; '.join(told)}." if told else f"{where}."


register_schema(Schema("attention.heads/1", ("surveyed",), _describe_heads, ("maps",)))


# A step is one tile of a blocked attention (attention_grid draws the tiles over the scores).
# events: kind, step, i, j (query block, key block), masked (bool, of "ran"); "updated" rows of one head: row, top (largest
#   logit of the tile), lse (running, after the tile), rescale (what the older output was multiplied by)
#   plan  int8 (Tr, Tc)      0 skipped, 1 every pair, 2 only the allowed pairs          lse  float32 (T,)  final
# params: br, bc, order; subject: T, S, head, causal, tokens
def _describe_tiles(trace: Trace, step: int) -> str:
    now = trace.at(step)
    kinds = ("ran", "skipped", "updated")
    ran = int(np.flatnonzero(now["kind"] == kinds.index("ran"))[0])
    i, j = int(now["i"][ran]), int(now["j"][ran])
    br, bc, total = trace.params["br"], trace.params["bc"], int((trace.arrays["plan"] > 0).sum())
    rows = f"queries {i * br} to {min((i + 1) * br, trace.subject['T']) - 1}"
    keys = f"keys {j * bc} to {min((j + 1) * bc, trace.subject['S']) - 1}"
    shrink = now["rescale"][now["kind"] == kinds.index("updated")]
    scaled = f"what they had is scaled by {shrink.min():.2f} to {shrink.max():.2f}"
    told = scaled if shrink.any() else "this is their first tile"
    cut = ", cut by the causal mask" if now["masked"][ran] else ""
    return f"Tile {step + 1} of {total}: {rows} meet {keys}{cut}; {told}. {trace.arrays['plan'].size - total} tiles are skipped."


register_schema(Schema("attention.tiles/1", ("ran", "skipped", "updated"), _describe_tiles, ("plan", "lse")))


# A step is one round of a descent for one block of queries: stretches of keys are halved, the best halves stay.
# events: kind, step, start, end (keys [start, end)), score (what the half's representative scored; raw dot product)
#   score  float32 (S,)   largest dot product of each key with the block's queries, -inf where none may see it
# subject: tokens
def _describe_descent(trace: Trace, step: int) -> str:
    now = trace.at(step)
    kept = now["kind"] == ("kept", "dropped").index("kept")
    size = (now["end"] - now["start"])[kept]
    few, many = int(size.min()), int(size.max())
    best = int(np.argmax(trace.arrays["score"]))
    found = bool(((now["start"] <= best) & (best < now["end"]) & kept).any())
    return (f"Round {step + 1} of {trace.steps}: {int(kept.sum())} of {len(kept)} halves stay, of "
            f"{few if few == many else f'{few} to {many}'} keys each; key {_token(trace, best)}, the heaviest, is "
            f"{'among them' if found else 'lost'}.")


register_schema(Schema("attention.descent/1", ("kept", "dropped"), _describe_descent, ("score",)))


# -------------------------------------------------------------------------------------------------------- token_strip
# A step is one row of weights over the text.
#   weights float32 (R, S)  >= 0        kept  uint8 (R, S) optional: 1 kept, 0 dropped, 2 not yet seen
# subject: tokens; rows = list of R labels; quantity = what a weight is ("attention", "share of the mass", …)
def _describe_strip(trace: Trace, step: int) -> str:
    w = trace.arrays["weights"][step]
    best = np.argsort(-w, kind="stable")[:3]
    label = trace.subject.get("rows", [str(i) for i in range(trace.steps)])[step]
    words = ", ".join(f"{_token(trace, int(j))} ({w[j]:.2f})" for j in best)
    tail = ""
    if "kept" in trace.arrays:
        tail = f" {int((trace.arrays['kept'][step] == 1).sum())} tokens are kept."
    return f"{label}: most {trace.subject.get('quantity', 'weight')} on {words}.{tail}"


register_schema(Schema("text.weights/1", ("weighted",), _describe_strip, ("weights",)))


# -------------------------------------------------------------------------------------------------------- cache_shelf
# A step is one forward pass: a prefill chunk or one decoded token.
# events: kind, step, layer, head, pos, score (the score the row was judged by; nan where the policy has none)
#   layers       int32 (L,)             model layers that were recorded
#   appended_at  int32 (S,)             step at which each token arrived
#   evicted_at   int32 (L, Hkv, S)      step after whose attention the row was given back; -1: still held
#   nbytes       int64 (steps,)         measured bytes of the whole cache after each step
#   nll          float32 (steps,)       optional: loss of the token predicted at this step
# subject: tokens; budget (rows per head); policy
def _describe_shelf(trace: Trace, step: int) -> str:
    now = trace.at(step)
    kinds = {kind: i for i, kind in enumerate(("appended", "evicted", "merged"))}
    gone = now["kind"] == kinds["evicted"]
    arrived = np.flatnonzero(trace.arrays["appended_at"] == step)
    text = f"Step {step}: "
    if len(arrived) == 1:
        text += f"token {_token(trace, int(arrived[0]))} arrives; "
    elif len(arrived):
        text += f"tokens {arrived[0]} to {arrived[-1]} arrive; "
    if gone.any():
        positions = np.unique(now["pos"][gone])
        what = f"token {_token(trace, int(positions[0]))}" if len(positions) == 1 else f"{len(positions)} different tokens"
        heads = len(set(zip(now["layer"][gone].tolist(), now["head"][gone].tolist())))
        text += f"{what} evicted, from {heads} of the recorded heads; "
    else:
        text += "nothing is evicted; "
    appended, evicted = trace.arrays["appended_at"][None, None], trace.arrays["evicted_at"]
    rows = ((appended <= step) & ((evicted < 0) | (evicted > step))).sum(-1)
    kilobytes = int(trace.arrays["nbytes"][step]) / 1024
    few, many = int(rows.min()), int(rows.max())
    return text + f"each head holds {few if few == many else f'{few} to {many}'} rows, the cache {kilobytes:.0f} kB."


register_schema(Schema("kvcache.evict/1", ("appended", "evicted", "merged"), _describe_shelf,
                       ("layers", "appended_at", "evicted_at", "nbytes"), {"nbytes": "bytes"}))


# --------------------------------------------------------------------------------------------------------- token_tree
# A step is one verification: one target forward over a token tree.
#   node_start  int32 (steps+1,)   rows of the flat node arrays that belong to each step
#   token       int32 (M,)         node 0 of a step is the pending token (root)
#   parent      int32 (M,)         index within the step; -1 for the root
#   q           float32 (M,)       probability the draft gave the node (nan: a deterministic proposal)
#   p           float32 (M,)       probability the target gives it after its parent (nan for the root)
#   state       int8 (M,)          0 root, 1 accepted, 2 tested and rejected, 3 never reached
#   next_token  int32 (steps,)     token emitted after the accepted path (bonus or correction)
#   draw        float32 (M,)       optional: the uniform number a test used
# subject: pieces = {"token id": "text"}; prompt; drafter; verifier; output (text)
STATES = ("root", "accepted", "rejected", "not reached")


def _describe_tree(trace: Trace, step: int) -> str:
    a, b = int(trace.arrays["node_start"][step]), int(trace.arrays["node_start"][step + 1])
    state, token = trace.arrays["state"][a:b], trace.arrays["token"][a:b]
    pieces = trace.subject.get("pieces", {})
    text = lambda ids: repr("".join(pieces.get(str(int(i)), f"<{int(i)}>") for i in ids))
    accepted = token[state == 1]
    follow = text([trace.arrays["next_token"][step]])
    if len(accepted) == 0:
        return f"Step {step}: {b - a - 1} tokens drafted, none accepted; the target writes {follow} itself."
    return (f"Step {step}: {b - a - 1} tokens drafted, {len(accepted)} accepted {text(accepted)}, "
            f"then {follow}: {len(accepted) + 1} tokens for one forward.")


register_schema(Schema("speculative.run/1", ("drafted", "accepted", "rejected", "emitted"), _describe_tree,
                       ("node_start", "token", "parent", "q", "p", "state", "next_token")))


# --------------------------------------------------------------------------------------------------------- vector_map
# A step is one expanded node (graphs) or one opened list (inverted files).
# events: kind, step, level, src, dst, dist, accepted, frontier_size, best_k_worst, n_correct  (-1 / nan: does not apply)
#   xy        float32 (N, 2)   fixed layout (PCA)          query_xy  float32 (2,)
#   truth     int32 (k,)       exact neighbours            result    int32 (k,)   what was returned, -1 padded
#   true_dist float32 (N,)     distance of every point to the query (for the ring layout)
#   edges     int32 (E, 2)     optional, base level        cell      int32 (N,)   optional, list of each point
#   centroid_xy float32 (C, 2) optional
# subject: labels = list of N strings (optional); k; metric; ef or nprobe
ANN_KINDS = ("entered", "evaluated", "expanded", "skipped", "stopped", "opened_list", "read_page", "pruned", "reranked",
             "linked", "unlinked")


def _describe_search(trace: Trace, step: int) -> str:
    kinds = np.asarray([ANN_KINDS[code] for code in trace.events["kind"]])
    upto = trace.events["step"] <= step
    here = trace.events["step"] == step
    evaluated = int((upto & (kinds == "evaluated")).sum())
    k = len(trace.arrays["truth"])
    correct = trace.events.get("n_correct", np.full(len(kinds), -1))[upto]
    found = int(correct.max()) if len(correct) and correct.max() >= 0 else 0
    labels = trace.subject.get("labels")
    name = lambda i: f"{int(i)} {labels[int(i)]!r}" if labels else f"point {int(i)}"
    lists = here & (kinds == "opened_list")
    expanded = here & (kinds == "expanded")
    if lists.any():
        what = f"opens list {int(trace.events['dst'][lists][0])}"
    elif expanded.any():
        what = f"expands {name(trace.events['dst'][expanded][0])}"
    elif (here & (kinds == "stopped")).any():
        what = "stops: the nearest candidate is farther than the worst result held"
    else:
        what = "enters the index"
    return f"Step {step}: {what}; {evaluated} distances so far, {found} of the {k} true neighbours found."


register_schema(Schema("ann.search/1", ANN_KINDS, _describe_search, ("xy", "query_xy", "truth", "result", "true_dist")))


# ----------------------------------------------------------------------------------------------------------- frontier
# A step is one series (a method); its points are cost against quality.
#   series int32 (P,)   x float32 (P,)   y float32 (P,)   lo, hi float32 (P,)  (95 % interval of y; equal to y when unknown)
# subject: names = list of series names; x_label, y_label (with units); better = "high" | "low"; title
def _describe_frontier(trace: Trace, step: int) -> str:
    mine = trace.arrays["series"] == step
    x, y = trace.arrays["x"][mine], trace.arrays["y"][mine]
    s = trace.subject
    best = int(np.argmin(y) if s.get("better") == "low" else np.argmax(y))
    if len(x) == 1:
        return f"{s['names'][step]}: {s['y_label']} {y[0]:.3g} at {s['x_label']} {x[0]:.3g}."
    return (f"{s['names'][step]}: {s['x_label']} from {x.min():.3g} to {x.max():.3g}; best {s['y_label']} "
            f"{y[best]:.3g} at {x[best]:.3g}.")


register_schema(Schema("frontier/1", ("measured",), _describe_frontier, ("series", "x", "y", "lo", "hi")))


# ---------------------------------------------------------------------------------------------------------- timeline
# A step is one moment, `time[step]`: something starts or ends, or one load or store of a memory machine.
#   lane   int32 (N,)      row of each interval           start, end  float32 (N,)  in subject["unit"], end >= start
#   kind   int16 (N,)      index into INTERVALS           group  int32 (N,)  what it belongs to (head, request), -1: nothing
#   time   float32 (steps,)  ascending                    marked uint8 (N,)  optional: outlined, subject["mark"] says why
#   arrows int32 (E, 2)    optional: interval i hands its result to interval j
#   level  float32 (steps,) optional: what is held after a step, under the line subject["capacity"]
#   moved  float32 (steps,) optional: running total
# events: kind, step, lane, interval (-1: none), words (of a transfer; 0 else)
# subject: lanes = list of names; lane_word ("worker"), unit ("tiles"); optional: groups = list of names, group_word;
#   labels = list of N short texts; colour = "group" | "kind"; mark, arrow (what they mean); capacity, level_label,
#   moved_label. tutor.timeline.Timeline records all of it.
#             word       colour         pattern   counts as busy
INTERVALS = {"work": ("kept", "fill", True), "partial": ("candidate", "hatch", True), "merge": ("accepted", "dots", True),
             "wait": ("evicted", "hollow", False), "held": ("kept", "fill", False), "read": ("query", "back", True),
             "write": ("approximate", "bars", True), "draft": ("candidate", "back", True),
             "verify": ("exact", "fill", True), "wasted": ("rejected", "cross", True)}
_MOVES = {"loaded": "load", "stored": "store", "made": "make", "freed": "free"}
_BUSY = np.array([busy for _, _, busy in INTERVALS.values()])


def _amount(x: float) -> str:
    whole, _, rest = f"{x:,.2f}".replace(",", " ").partition(".")
    return f"{whole}.{rest}".rstrip("0").rstrip(".")


def timeline_busy(trace: Trace, upto: float | None = None) -> float:
    """Time that the lanes spent on intervals that count as busy, until `upto` (the end unless given), all lanes together."""
    a = trace.arrays
    end = a["end"].astype(np.float64) if upto is None else np.minimum(a["end"].astype(np.float64), upto)
    return float((np.maximum(end - a["start"], 0) * _BUSY[a["kind"]]).sum())


def _describe_timeline(trace: Trace, step: int) -> str:
    a, s, now = trace.arrays, trace.subject, trace.at(step)
    lanes, word, unit = s["lanes"], s["lane_word"], s["unit"]
    kinds = ("started", "ended", "loaded", "stored", "made", "freed")
    if "level" in a:
        done = []
        for kind, lane, interval, words in zip(now["kind"], now["lane"], now["interval"], now["words"]):
            labels = s.get("labels")
            name = labels[interval] if labels and interval >= 0 and labels[interval] else lanes[lane]
            if kinds[kind] in _MOVES:
                done.append(f"{_MOVES[kinds[kind]]} {name}" + (f" ({_amount(words)} words)" if words else ""))
        room = f" of {_amount(s['capacity'])}" if s.get("capacity") else ""
        text = f"Step {step + 1} of {trace.steps}: {', '.join(done) or 'nothing moves'}; {_amount(a['level'][step])}{room} "
        text += s.get("level_label", "words in fast memory")
        return text + (f", {_amount(a['moved'][step])} {s.get('moved_label', 'words moved')}." if "moved" in a else ".")
    time, last = float(a["time"][step]), float(a["end"].max())
    text = f"At {_amount(time)} of {_amount(last)} {unit}: "
    share = timeline_busy(trace, time) / (len(lanes) * time) if time else 0.0
    if time >= last:
        return text + f"all is done; the {word}s were busy {_percent(share)} of the time."
    running = (a["start"] <= time) & (time < a["end"])
    busy = len(np.unique(a["lane"][running & _BUSY[a["kind"]]]))
    waiting = len(np.unique(a["lane"][running & (a["kind"] == list(INTERVALS).index("wait"))]))
    text += f"{busy} of {len(lanes)} {word}s busy"
    if waiting:
        text += f", {waiting} waiting"
    handed = int((a["kind"][now["interval"][now["kind"] == 1]] == list(INTERVALS).index("partial")).sum())
    if handed:
        text += f"; {handed} partial{'s' if handed > 1 else ''} left for others"
    return text + (f"; busy {_percent(share)} of the time so far." if time else ".")


register_schema(Schema("timeline/1", ("started", "ended", "loaded", "stored", "made", "freed"), _describe_timeline,
                       ("lane", "start", "end", "kind", "group", "time")))
