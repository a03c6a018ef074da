"""Planted bugs in the figures; each must turn a test red."""

from tests.mutants.mutant import Mutant

WAITING = "tests/widgets/test_waiting.py"
BASE, FIGURES, PAGES = "tests/widgets/test_base.py", "tests/widgets/test_figures.py", "tests/widgets/test_pages.py"

MUTANTS = [
    Mutant("widgets: a tie in top-k goes to the higher index", "tutor/widgets/shared.js",
           "while (at > 0 && values[i] > values[held[at - 1]]) at--;",
           "while (at > 0 && values[i] >= values[held[at - 1]]) at--;",
           f"{BASE}::test_topk_ties_go_to_the_lower_index"),
    Mutant("widgets: arrays are packed without alignment", "tutor/widgets/pack.py",
           'padded = raw + b"\\0" * (-len(raw) % 8)', "padded = raw",
           f"{BASE}::test_arrays_come_back_as_they_were {FIGURES}"),
    Mutant("widgets: a live dial keeps the old sentences", "tutor/widgets/base.py",
           "            self.sentences = self._sentences(trace)\n", "            self.sentences = self.sentences or "
           "self._sentences(trace)\n", f"{BASE}::test_a_live_dial_brings_a_new_trace"),
    Mutant("widgets: an impossible live setting leaves the figure busy for ever", "tutor/widgets/base.py",
           "        finally:\n            self.busy = False\n", "        finally:\n            pass\n",
           f"{BASE}::test_a_live_dial_brings_a_new_trace"),
    Mutant("widgets: missing combinations of dials are not noticed", "tutor/widgets/base.py",
           "if recorded and not any(", "if recorded and not all(",
           f"{BASE}::test_variants_follow_the_dials {BASE}::test_each_combination_of_static_dials_must_be_recorded"),
    Mutant("widgets: the grid sees one key too few", "tutor/widgets/attention_grid.js",
           "const end = Math.min(to, firstPosition(trace) + row + 1, S);",
           "const end = Math.min(to, firstPosition(trace) + row, S);", FIGURES),
    Mutant("widgets: a head reads its neighbour's keys", "tutor/widgets/attention_grid.js",
           "kv = kv_of[head];", "kv = 0;", FIGURES),
    Mutant("widgets: the window is one key too long", "tutor/widgets/attention_grid.js",
           "mask.fill(1, Math.max(0, p.length - last));", "mask.fill(1, Math.max(0, p.length - last - 1));", FIGURES),
    Mutant("widgets: a tile adds its queries instead of averaging them", "tutor/widgets/attention_grid.js",
           "+= p[j] / (bottom - top);", "+= p[j];", FIGURES),
    Mutant("widgets: lower is taken for better", "tutor/widgets/frontier.js",
           'const gain = better === "low"', 'const gain = better !== "low"', FIGURES),
    Mutant("widgets: equal points beat one another", "tutor/widgets/frontier.py",
           "& ((x[None] < x[:, None]) | (gain[None] > gain[:, None]))).any(1)", ").any(1)", FIGURES),
    Mutant("widgets: the page forgets to tell listeners", "book/assets/tutor-widgets.js",
           "      this.fire(`change:${name}`, this, value);\n", "",
           f"{PAGES}::test_two_views_of_one_figure_move_together"),
    Mutant("widgets: the live region is one step behind", "tutor/widgets/shared.js",
           'return currentTrace()[1][state.step] || "";',
           'return currentTrace()[1][Math.max(0, state.step - 1)] || "";',
           f"{PAGES}::test_play_walks_to_the_end_and_stops"),
    Mutant("widgets: dark text on a dark ground", "tutor/widgets/shared.css",
           "--tw-ink: #e7e9ed; --tw-muted: #a2a9b5;", "--tw-ink: #e7e9ed; --tw-muted: #5b6370;",
           f"{BASE}::test_colours_can_be_told_from_the_ground"),
    Mutant("widgets: a lost question to the kernel is not asked again", "tutor/widgets/shared.js",
           "{ late(); ask(2 * wait); }", "late()", f"{WAITING}::test_a_lost_question_is_asked_again"),
    Mutant("widgets: a closed figure goes on asking", "tutor/widgets/shared.js",
           'signal.addEventListener("abort", end);', "", f"{WAITING}::test_a_closed_figure_asks_no_more"),
]
