"""Planted bugs in the timeline: what is recorded, what is counted, what is painted."""

from tests.mutants.mutant import Mutant

JS, PY, TESTS = "tutor/widgets/timeline.js", "tutor/timeline.py", "tests/widgets/test_timeline.py -m 'not browser'"

MUTANTS = [
    Mutant("timeline-counts-waiting-as-work", JS, 'wait: ["evicted", "hollow", false]',
           'wait: ["evicted", "hollow", true]', TESTS),
    Mutant("timeline-is-busy-a-moment-too-long", JS, "if (start[i] <= time && time < end[i] && (waiting",
           "if (start[i] <= time && time <= end[i] && (waiting", TESTS),
    Mutant("timeline-rounds-halves-up", JS,
           "return tie ? ((2 * Math.round(scaled / 2)) / 10 ** digits).toFixed(digits) : x.toFixed(digits);",
           "return x.toFixed(digits);", TESTS),
    Mutant("timeline-counts-time-to-come", JS, "sum += Math.max(0, Math.min(end[i], upto) - start[i]);",
           "sum += Math.max(0, end[i] - start[i]);", TESTS),
    Mutant("timeline-paints-what-is-to-come-as-done", JS, "if (r > middle) pixels.fill(tones[row + 2], at + middle, at + r);",
           "if (r > middle) pixels.fill(tones[row], at + middle, at + r);", TESTS),
    Mutant("timeline-hatches-both-ways", JS, "else if (pattern === 2) strong = (u - v + 6000) % 6 < 3;",
           "else if (pattern === 2) strong = (u + v) % 6 < 3;", TESTS),
    Mutant("timeline-leaves-no-gap", JS, "if (right - left >= 4 * unit) right -= unit;", "if (false) right -= unit;", TESTS),
    Mutant("timeline-arrow-names-the-giver", JS, "s.lanes[a.lane[a.arrows[j + 1]]]", "s.lanes[a.lane[a.arrows[j]]]", TESTS),
    Mutant("timeline-frees-a-buffer-one-move-late", PY, "self._rows[self._open.pop(lane)][2] = now",
           "self._rows[self._open.pop(lane)][2] = now + 1", TESTS),
    Mutant("timeline-starts-before-it-ends", PY, '(("ended", end), ("started", start))',
           '(("ended", start), ("started", end))', TESTS),
    Mutant("timeline-still-hatches-outside-its-box", "tutor/widgets/timeline.py", "u0, u1 = max(0.0, c - h), min(w, c)",
           "u0, u1 = max(0.0, c - h), c", TESTS),
]
