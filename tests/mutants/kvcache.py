"""Planted bugs of the KV cache: the ones that everybody writes, and the ones that would flatter a result."""

from tests.mutants.mutant import Mutant

RAGGED, ROWS, SELECT = "tutor/kvcache/ragged.py", "tutor/kvcache/rows.py", "tutor/kvcache/select.py"
T = "tests/kvcache/test_"

MUTANTS = [
    Mutant("kvcache-position-reset", RAGGED,
           "return max((store.seen for store", "return max((store.width for store",
           T + "positions.py::test_window_is_a_sliding_window_mask"),
    Mutant("kvcache-slot-off-by-one", RAGGED, "(n - 1 - slot).clamp_min", "(n - slot).clamp_min",
           T + "positions.py::test_rerotated_keys_stand_where_the_paper_puts_them"),
    Mutant("kvcache-mask-forgets-causality", ROWS, "allowed = (pos[:, :, None] <= pos_q[:, None]) & ", "allowed = ",
           T + "positions.py::test_mask_goes_by_position_and_not_by_slot"),
    Mutant("kvcache-padding-is-attended", RAGGED, "masked_fill(~real, -1)", "clone()",
           T + "ragged.py::test_a_ragged_head_computes_what_an_even_one_would"),
    Mutant("kvcache-rows-only-masked", RAGGED,
           "store.keep(keep.idx, counts, counts + self.interval, policy.merge(rows, keep))",
           "store.keep(keep.idx, counts, store.room, policy.merge(rows, keep))",
           T + "ragged.py::test_bytes_by_hand"),
    Mutant("kvcache-positions-cost-nothing", RAGGED, '{**store.columns, "pos": store.pos}', "store.columns",
           T + "ragged.py::test_nbytes_are_the_bytes_of_the_storage"),
    Mutant("kvcache-new-rows-weigh-nothing", RAGGED, '"w": k.new_ones(k.shape[:3])', '"w": k.new_zeros(k.shape[:3])',
           T + "ragged.py::test_merging_twins_is_lossless_exactly_when_their_number_is_carried"),
    Mutant("kvcache-ties-to-the-earlier", SELECT, "pos.argsort(dim=-1, descending=True)", "pos.argsort(dim=-1)",
           T + "select.py::test_of_equal_scores_the_later_position_stays"),
    Mutant("kvcache-kept-rows-unsorted", SELECT,
           "place, by_position = place.sort(dim=-1, stable=True)",
           "by_position = place.argsort(dim=-1, descending=True)",
           T + "select.py::test_highest_scores_stay_in_order_of_position"),
    Mutant("kvcache-h2o-sums-only-the-last-call", "tutor/kvcache/policies/h2o.py",
           'rows.state["acc"] + column_sums(observation)', "column_sums(observation)",
           T + "policies.py::test_h2o_sums_all_attention_since_the_start"),
    Mutant("kvcache-h2o-group-maximum", ROWS, "sums.append(total.mean(2))", "sums.append(total.amax(2))",
           T + "policies.py::test_h2o_sums_all_attention_since_the_start"),
    Mutant("kvcache-h2o-no-recent-rows", "tutor/kvcache/policies/h2o.py",
           "masked_fill(latest, float(\"inf\"))", "clone()",
           T + "policies.py::test_h2o_by_hand"),
    Mutant("kvcache-sinks-one-too-many", "tutor/kvcache/policies/sinks_window.py",
           "(rows.pos < self.n_sink)", "(rows.pos <= self.n_sink)",
           T + "policies.py::test_sinks_and_window_keeps_both_ends"),
    Mutant("kvcache-random-reshuffles", "tutor/kvcache/policies/random.py",
           "heads, rows.pos)", "heads, rows.pos - rows.pos.amax(-1, keepdim=True))",
           T + "policies.py::test_random_keeps_a_fair_sample_whenever_rows_arrive"),
    Mutant("kvcache-attach-never-lets-go", "tutor/hf.py", "model.cache_factory = before", "pass",
           T + "attach.py::test_attach_lasts_as_long_as_the_block"),
]
