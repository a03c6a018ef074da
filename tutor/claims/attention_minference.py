"""Claims about head shapes: which there are, whether they last, and what a shape for each head is worth."""

from __future__ import annotations

from functools import lru_cache

from tutor.claim import Claim, Expected, Measured, Number

MACHINE = "2-core laptop-class CPU"


@lru_cache(maxsize=1)
def _searched():
    """Output errors `(27, 5)` of the five candidates on 2 048 tokens of the recorded text, searched now."""
    import torch

    from tutor.attention.methods.minference import search
    from tutor.data import capture

    short = capture("reference_4096").first(2048)
    return torch.cat([search(short.q(layer), short.k(layer), short.v(layer)).error for layer in short.layers])


def _recorded(run: int):
    """Errors `(270, 5)` of a recorded run: 0 the same text at 2 048 tokens, 1 docstrings, 2 the same text at 4 096."""
    import torch

    from tutor.attention.methods.minference import shipped

    return torch.tensor(shipped()["runs"][run]["error"]).flatten(0, 1)


def _shape(error):
    """0 A-shape, 1 vertical-slash, 2 blocks: of the best candidate."""
    import torch

    return torch.tensor([0, 1, 1, 1, 2])[error.argmin(-1)]


@lru_cache(maxsize=1)
def _texts():
    """By text, manual first: every measure of `benchmarks/minference_transfer.py` as a tensor, 108 heads of 12 layers."""
    import torch

    from tutor.data import result

    rows, found = result("minference-transfer")["rows"], {}
    for text in dict.fromkeys(row["text"] for row in rows):
        mine = [row for row in rows if row["text"] == text]
        measures = [name for name in mine[0] if name not in ("text", "layer")]
        found[text] = {name: torch.tensor([row[name] for row in mine]).flatten() for name in measures}
        found[text]["error"] = torch.stack([x for name, x in found[text].items() if name.startswith("error_")], -1)
    return found


def head_classes() -> Measured:
    """Winners of all 270 heads, their agreement across texts and lengths, and three layers searched again now."""
    shapes = [_shape(_recorded(run)) for run in range(3)]
    first, text, length = shapes
    shares = [float((first == shape).double().mean()) for shape in range(3)]
    chance = sum(shares[c] * float((text == c).double().mean()) for c in range(3))
    rows = [9 * layer + head for layer in (2, 20, 25) for head in range(9)]
    home, *others = _texts().values()
    kept = [float((_shape(home["error"]) == _shape(text["error"])).double().mean()) for text in others]
    numbers = {"a_shape": shares[0], "vertical_slash": shares[1], "blocks": shares[2],
               "same_on_other_text": float((first == text).double().mean()), "chance": chance,
               "same_at_other_length": float((first == length).double().mean()),
               "same_on_four_kinds_least": min(kept), "same_on_four_kinds_most": max(kept),
               "found_again": float((_shape(_searched()) == first[rows]).double().mean())}
    holds = min(shares) > 0.05 and min(numbers["same_on_other_text"], numbers["same_at_other_length"], *kept) > 0.7
    return Measured(("in_part" if numbers["same_on_other_text"] < 0.95 else "holds") if holds else "not_here", numbers,
                    f"All three shapes win somewhere: A-shape {100 * shares[0]:.0f} %, vertical-slash {100 * shares[1]:.0f} %, "
                    f"blocks {100 * shares[2]:.0f} % of 270 heads. {100 * numbers['same_on_other_text']:.0f} % keep their "
                    f"shape on another text and {100 * numbers['same_at_other_length']:.0f} % at twice the length "
                    f"(chance: {100 * chance:.0f} %); on code, a list, sessions and a licence {100 * min(kept):.0f} to "
                    f"{100 * max(kept):.0f} %.")


def a_shape_for_each_head() -> Measured:
    """27 heads by the winner of another text, against one shape for all, at an eighth of the tiles."""
    error = _searched()
    rows = [9 * layer + head for layer in (2, 20, 25) for head in range(9)]
    borrowed = float(error.gather(-1, _recorded(1)[rows].argmin(-1)[:, None]).mean())
    mean = error.mean(0).tolist()
    numbers = {"shape_of_other_text": borrowed, "own_shape": float(error.min(-1).values.mean()), "all_a_shape": mean[0],
               "all_vertical_slash": min(mean[1:4]), "all_blocks": mean[4]}
    best = min(numbers["all_a_shape"], numbers["all_vertical_slash"])
    return Measured("holds" if borrowed < 0.9 * best else "in_part" if borrowed < best else "not_here", numbers,
                    f"At an eighth of the tiles, shapes borrowed from another text leave an output error of {borrowed:.2f}; one "
                    f"shape for all leaves {numbers['all_a_shape']:.2f} (A-shape), {numbers['all_vertical_slash']:.2f} "
                    f"(vertical-slash) or {numbers['all_blocks']:.2f} (blocks).")


def shape_offline_lines_online() -> Measured:
    """108 heads on five kinds of text: do the shape and the lines of text 1 serve the other four? Text 1 is measured again."""
    import torch

    from tutor.attention.methods.minference import heaviest_lines, kept_by_lines
    from tutor.data import capture, result

    home, *others = _texts().values()
    best = home["error"].argmin(-1, keepdim=True)
    mean = lambda name: float(torch.cat([text[name] for text in others]).mean())
    numbers = {name: mean(name) for name in ("columns", "diagonals", "own", "borrowed", "blind")}
    numbers |= {"chance": 64 / (2 * 1916 - 64),                            # of 64 columns of 1 916, twice drawn
                "error_own_shape": sum(float(text["error"].amin(-1).mean()) for text in others) / len(others),
                "error_borrowed_shape": sum(float(text["error"].gather(-1, best).mean()) for text in others) / len(others)}
    short = capture("reference_4096").first(2048)
    now = torch.cat([kept_by_lines(short.q(n), short.k(n), heaviest_lines(short.q(n), short.k(n)))[0] for n in short.layers])
    rows = result("minference-transfer")["rows"]
    then = [row["own"] for row in rows if row["text"] == "manual" and row["layer"] in short.layers]
    numbers["text_1_again"] = float((now - torch.tensor(then).flatten()).abs().max())
    cheap = numbers["error_borrowed_shape"] < 1.1 * numbers["error_own_shape"]
    dear = numbers["borrowed"] < numbers["blind"] and numbers["columns"] < 0.2
    anew = numbers["diagonals"] < 0.2
    return Measured("not_here" if not (cheap and dear) else "holds" if anew else "in_part", numbers,
                    f"On four other kinds of text the shape of text 1 leaves an output error of "
                    f"{numbers['error_borrowed_shape']:.3f} (own shape: {numbers['error_own_shape']:.3f}). Its columns share "
                    f"{numbers['columns']:.0%} with the right ones, its diagonals {numbers['diagonals']:.0%}; its lines keep "
                    f"{numbers['borrowed']:.0%} of the attention, lines as many next to the start and to the query "
                    f"{numbers['blind']:.0%}, own lines {numbers['own']:.0%}.")


CLAIMS = (
    Claim("minference.head-classes", "attention", "minference",
          "Every head's attention follows one of three shapes - A-shape, vertical-slash, blocks - and keeps it whatever "
          "the prompt.", "Jiang et al. 2024, sections 2.2 and 3.2", head_classes,
          Expected("in_part", {
              "a_shape": Number(0.36, 0.38, "of the heads"),
              "vertical_slash": Number(0.52, 0.54, "of the heads"),
              "blocks": Number(0.09, 0.11, "of the heads"),
              "same_on_other_text": Number(0.79, 0.81, "of the heads"),
              "chance": Number(0.44, 0.46, "of the heads"),
              "same_at_other_length": Number(0.82, 0.85, "of the heads"),
              "same_on_four_kinds_least": Number(0.69, 0.73, "of 108 heads"),
              "same_on_four_kinds_most": Number(0.78, 0.82, "of 108 heads"),
              "found_again": Number(0.88, 1.0, "of 27 heads")}, "2026-11-23", machine=MACHINE),
          headline="same_on_other_text",
          stops="A fifth of the heads or more change shape from text to text: mostly between A-shape and vertical-slash, which "
                "differ little on them. Their published files hold vertical-slash only.", needs="capture"),
    Claim("minference.a-shape-for-each-head", "attention", "minference",
          "Giving each head its own shape, found offline on other text, keeps outputs nearer to dense attention than one "
          "shape for all at the same cost.", "Jiang et al. 2024, section 4, ablation", a_shape_for_each_head,
          Expected("in_part", {
              "shape_of_other_text": Number(0.2, 0.25, "of the output's length"),
              "own_shape": Number(0.19, 0.23, "of the output's length"),
              "all_a_shape": Number(0.23, 0.27, "of the output's length"),
              "all_vertical_slash": Number(0.22, 0.26, "of the output's length"),
              "all_blocks": Number(1.1, 1.25, "of the output's length")}, "2026-11-23", machine=MACHINE),
          stops="2 048 tokens, tiles of 16, three layers: the gain over vertical-slash for all is a few hundredths. What "
                "matters is to avoid the wrong shape: blocks on a head with sinks.", needs="capture"),
    Claim("minference.shape-offline-lines-online", "attention", "minference",
          "A head's shape can be fixed offline, but where its lines lie changes with the prompt and must be estimated online.",
          "Jiang et al. 2024, sections 2.2 and 3.2", shape_offline_lines_online,
          Expected("in_part", {
              "error_own_shape": Number(0.16, 0.17, "of the output's length"),
              "error_borrowed_shape": Number(0.17, 0.18, "of the output's length"),
              "columns": Number(0.07, 0.09, "Jaccard index"),
              "diagonals": Number(0.49, 0.53, "Jaccard index"),
              "chance": Number(0.0169, 0.0171, "Jaccard index"),
              "own": Number(0.82, 0.86, "of the attention"),
              "borrowed": Number(0.64, 0.67, "of the attention"),
              "blind": Number(0.7, 0.73, "of the attention"),
              "text_1_again": Number(0, 0.005, "largest difference")}, "2026-11-23", machine=MACHINE),
          headline="columns",
          stops="Of lines found elsewhere only the columns are wrong; half of the diagonals are right, because the nearest ones "
                "weigh most on every text. Lines of another text keep less than the nearest ones would, found without any text. "
                "(Own lines are judged by the very queries that chose them.)",
          needs="capture"),
)
