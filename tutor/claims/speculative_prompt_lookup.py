"""Claims about prompt lookup."""

from __future__ import annotations

from tutor.claim import Claim, Expected, Measured, Number

DATE, MACHINE = "2026-11-23", "2-core laptop-class CPU"


def gains_where_text_repeats() -> Measured:
    """Greedy answers of 48 tokens to tasks that overlap with their prompt, and to chat and code tasks."""
    import tutor
    from tutor.speculative.bench import prompts
    from tutor.speculative.draft.prompt_lookup import PromptLookup
    from tutor.speculative.engine import generate
    from tutor.speculative.warp import GREEDY

    model, found = tutor.load(), {}
    for name, tasks in {"overlap": prompts(model, "overlap"),
                        "other": [prompts(model, "chat")[0], prompts(model, "code")[0]]}.items():
        runs = [generate(model, PromptLookup(), prompt, max_new=48, warp=GREEDY).stats for prompt in tasks]
        found[name] = sum(s.new_tokens for s in runs) / sum(s.steps for s in runs)
    ahead = found["overlap"] > 1.5 * found["other"]
    verdict = "holds" if ahead and found["overlap"] >= 2 else "in_part" if ahead else "not_here"
    return Measured(verdict, {"overlap": found["overlap"], "other": found["other"]},
                    f"{found['overlap']:.2f} tokens per step on tasks that overlap with their prompt, "
                    f"{found['other']:.2f} on the others.")


CLAIMS = (
    Claim("prompt_lookup.gains-where-text-repeats", "speculative", "prompt_lookup",
          "On tasks grounded in their prompt (summaries, edits, questions on a document) decoding is 2 to 4 times as "
          "fast.",
          "Saxena 2023, introduction of the note", gains_where_text_repeats,
          Expected("holds", {"overlap": Number(3.0, 4.6, "tokens per step"), "other": Number(1.1, 1.4, "tokens per step")},
                   DATE, machine=MACHINE),
          "Tokens per step are counted, not seconds; a step of 11 rows costs more than one of a single row."),
)
