"""Speculative decoding: guess several tokens, verify them in one pass, keep the law of the text.

    from tutor.speculative import GREEDY, generate
    from tutor.speculative.draft.prompt_lookup import PromptLookup
    generate(tutor.load(), PromptLookup(), prompt, max_new=64, warp=GREEDY).stats.tokens_per_step

A drafter (`draft/`) proposes a `TokenTree` and never accepts; a verifier (`verify/`) accepts and never proposes; the
engine joins any of the one with any of the other.
"""

from tutor.speculative.engine import Generation, generate
from tutor.speculative.tree import TokenTree
from tutor.speculative.warp import GREEDY, Warp

__all__ = ["GREEDY", "Generation", "TokenTree", "Warp", "generate"]
