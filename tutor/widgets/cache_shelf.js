// cache_shelf: what each KV head still holds. The text as the layer remembers it, one shelf per head (tokens left to
// right at this step) and under it the head's whole history (time downwards), then bytes and loss over the steps.

// ------------------------------------------------------------------------------------------------------ display data
/** One head at one step: 0 not yet arrived, 1 held, 2 held and new, 3 evicted before, 4 evicted in this step. */
export function shelfRow(appendedAt, evictedAt, step) {
  return Uint8Array.from(appendedAt, (arrived, i) => {
    if (arrived > step) return 0;
    if (evictedAt[i] >= 0 && evictedAt[i] <= step) return evictedAt[i] === step ? 4 : 3;
    return arrived === step ? 2 : 1;
  });
}

/** The [first, last) tokens that share column c of n. */
export const columnSpan = (tokens, n, c) => [Math.floor((c * tokens) / n), Math.floor(((c + 1) * tokens) / n)];

/** Time against position: the share of (token, step) pairs of each of n x rows cells in which `from <= step < to`. */
export function lifeMap(from, to, steps, n, rows) {
  const map = new Float32Array(n * rows),
    tokens = from.length;
  for (let c = 0; c < n; c++) {
    const [first, last] = columnSpan(tokens, n, c);
    for (let i = first; i < last; i++) {
      const top = (from[i] * rows) / steps,
        bottom = (to[i] * rows) / steps;
      for (let r = Math.floor(top); r < Math.min(rows, Math.ceil(bottom)); r++)
        map[r * n + c] += Math.max(0, Math.min(bottom, r + 1) - Math.max(top, r)) / (last - first);
    }
  }
  return map;
}

/** Runs of at least `least` tokens that no head holds (code 0), as [first, last) pairs: what the text may fold away. */
export function foldRuns(heads, arrived, least = 5) {
  const runs = [];
  let start = -1;
  for (let i = 0; i <= arrived; i++) {
    if (i < arrived && heads[i] === 0) {
      if (start < 0) start = i;
      continue;
    }
    if (start >= 0 && i - start >= least) runs.push([start, i]);
    start = -1;
  }
  return runs;
}

/** Mean of everything so far, by step; values that are not finite are left out. */
export function runningMean(values) {
  let sum = 0,
    count = 0;
  return Float64Array.from(values, (v) => {
    if (Number.isFinite(v)) {
      sum += v;
      count++;
    }
    return count ? sum / count : NaN;
  });
}

/** Round half to even, as Python does. */
const roundEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** The same sentence as `Trace.describe`, made from `appended_at`, `evicted_at` and `nbytes` alone. */
export function describeShelf(trace, step) {
  const { appended_at: appended, evicted_at: evicted, nbytes } = trace.arrays;
  const S = appended.length,
    lanes = evicted.length / S;
  let first = -1,
    last = -1,
    arrived = 0,
    least = Infinity,
    most = 0;
  const positions = new Set(),
    losing = new Set(); // (layer, head) lanes that give rows back
  for (let i = 0; i < S; i++)
    if (appended[i] === step) {
      if (first < 0) first = i;
      last = i;
      arrived++;
    }
  for (let lane = 0; lane < lanes; lane++) {
    let rows = 0;
    for (let i = 0; i < S; i++) {
      const end = evicted[lane * S + i];
      if (end === step) {
        losing.add(lane);
        positions.add(i);
      }
      if (appended[i] <= step && (end < 0 || end > step)) rows++;
    }
    least = Math.min(least, rows);
    most = Math.max(most, rows);
  }
  let text = `Step ${step}: `;
  if (arrived === 1) text += `token ${tokenName(trace, first)} arrives; `;
  else if (arrived) text += `tokens ${first} to ${last} arrive; `;
  if (losing.size) {
    const what =
      positions.size === 1 ? `token ${tokenName(trace, Math.min(...positions))}` : `${positions.size} different tokens`;
    text += `${what} evicted, from ${losing.size} of the recorded heads; `;
  } else text += "nothing is evicted; ";
  const rows = least === most ? least : `${least} to ${most}`;
  return `${text}each head holds ${rows} rows, the cache ${roundEven(nbytes[step] / 1024)} kB.`;
}

/** Which recorded layer the dial shows, and one head's row of `evicted_at`. */
const layerIndex = ({ trace, settings }) => Math.max(0, Array.from(trace.arrays.layers).indexOf(settings.layer));
function headRow(trace, layer, head) {
  const [, heads, S] = trace.arrays.evicted_at.shape,
    start = (layer * heads + head) * S;
  return trace.arrays.evicted_at.subarray(start, start + S);
}

/** The life of one token in words: when it arrived, and how long each head kept it. */
export function lifeWords(trace, layer, pos, step) {
  const heads = trace.arrays.evicted_at.shape[1],
    arrived = trace.arrays.appended_at[pos];
  const name = `${pos} “${(trace.subject.tokens || [])[pos]?.trim() || "␣"}”`;
  if (arrived > step) return `${name} arrives at step ${arrived}.`;
  const kept = [],
    lost = [];
  for (let head = 0; head < heads; head++) {
    const end = headRow(trace, layer, head)[pos];
    if (end >= 0 && end <= step) lost.push(`head ${head} let it go at step ${end}`);
    else kept.push(head);
  }
  const still =
    kept.length === heads
      ? "every head still holds it"
      : kept.length
        ? `head${kept.length > 1 ? "s" : ""} ${kept.join(" and ")} still hold${kept.length > 1 ? "" : "s"} it`
        : "";
  return `${name}, read at step ${arrived}: ${[still, ...lost].filter(Boolean).join("; ")}.`;
}

/** Rows of the layer held at a step, per head. */
export function rowsHeld(trace, layer, step) {
  return Array.from({ length: trace.arrays.evicted_at.shape[1] }, (_, head) =>
    shelfRow(trace.arrays.appended_at, headRow(trace, layer, head), step).reduce((n, s) => n + (s === 1 || s === 2), 0),
  );
}

const kilobytes = (n) => (n < 1024 * 1000 ? `${Math.round(n / 1024)} kB` : `${(n / 1048576).toFixed(1)} MB`);

// ----------------------------------------------------------------------------------------------------------- drawing
const LANE = 16,
  TOP = 7,
  GAP = 5;

function rgb(colour) {
  const n = parseInt(colour.slice(1), 16);
  return [n >> 16, (n >> 8) & 255, n & 255];
}

/** A canvas of n x rows pixels, one colour, the share as opacity. */
function shade(map, n, rows, colour) {
  const canvas = h("canvas", { width: n, height: rows }),
    context = canvas.getContext("2d"),
    image = context.createImageData(n, rows);
  const [r, g, b] = rgb(colour);
  for (let i = 0; i < map.length; i++) image.data.set([r, g, b, Math.round(255 * map[i])], 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}

function hatch(context, colour, gap = 5) {
  const tile = h("canvas", { width: 2 * gap, height: 2 * gap }),
    pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1;
  for (const at of [-2 * gap, 0, 2 * gap]) {
    pen.beginPath();
    pen.moveTo(at, 2 * gap);
    pen.lineTo(at + 2 * gap, 0);
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}

/** The maps of one head, drawn once per trace, layer, width and theme. */
function historyOf(trace, layer, head, width, tall, ctx) {
  const { appended_at: from } = trace.arrays,
    row = headRow(trace, layer, head),
    { steps } = trace,
    S = from.length;
  const n = Math.min(S, Math.floor(width)),
    rows = Math.min(steps, 2 * tall);
  const end = Float32Array.from(row, (e) => (e < 0 ? steps : e));
  const held = shade(lifeMap(from, end, steps, n, rows), n, rows, ctx.colour("kept"));
  const gone = h("canvas", { width: Math.round(2 * width), height: 2 * tall }),
    pen = gone.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(
    shade(lifeMap(end, new Float32Array(S).fill(steps), steps, n, rows), n, rows, "#000000"),
    0,
    0,
    gone.width,
    gone.height,
  );
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = hatch(pen, ctx.colour("evicted"), 6);
  pen.fillRect(0, 0, gone.width, gone.height);
  return { held, gone };
}

function drawLane(pen, states, width, ctx) {
  const S = states.length,
    n = Math.min(S, Math.floor(width)),
    cell = width / n,
    gap = cell >= 4 ? 1 : 0,
    marks = [];
  pen.fillStyle = ctx.colour("line");
  pen.fillRect(0, TOP + LANE - 1, width, 1);
  for (let c = 0; c < n; c++) {
    const [first, last] = columnSpan(S, n, c),
      x = Math.round(c * cell * 2) / 2,
      w = Math.round((c + 1) * cell * 2) / 2 - x - gap;
    let held = 0,
      lost = 0,
      fresh = 0,
      left = 0;
    for (let i = first; i < last; i++) {
      held += states[i] === 1 || states[i] === 2;
      lost += states[i] === 3 || states[i] === 4;
      fresh += states[i] === 2;
      left += states[i] === 4;
    }
    if (held) {
      const tall = Math.max(3, (LANE * held) / (last - first));
      pen.fillStyle = ctx.colour("kept");
      pen.fillRect(x, TOP + LANE - tall, w, tall);
    } else if (lost) {
      // a hollow stub: it stood here
      pen.strokeStyle = ctx.colour("evicted");
      pen.lineWidth = 1;
      if (w >= 3) pen.strokeRect(x + 0.5, TOP + LANE - 3.5, w - 1, 3);
      else {
        pen.fillStyle = ctx.colour("evicted");
        pen.globalAlpha = 0.6;
        pen.fillRect(x, TOP + LANE - 3, w, 3);
        pen.globalAlpha = 1;
      }
    }
    if (left) marks.push(["left", x + w / 2]);
    if (fresh) marks.push(["new", x, w]);
  }
  for (const [kind, x, w] of marks) {
    pen.lineWidth = 1.5;
    if (kind === "new") {
      pen.strokeStyle = ctx.colour("ink");
      pen.strokeRect(x - 0.75, TOP - 0.75, w + 1.5, LANE + 1.5);
    } else {
      const y = TOP + LANE / 2,
        r = 3.5;
      pen.lineCap = "round";
      for (const [colour, wide] of [
        ["paper", 5],
        ["rejected", 2],
      ]) {
        pen.strokeStyle = ctx.colour(colour);
        pen.lineWidth = wide;
        pen.beginPath();
        pen.moveTo(x - r, y - r);
        pen.lineTo(x + r, y + r);
        pen.moveTo(x + r, y - r);
        pen.lineTo(x - r, y + r);
        pen.stroke();
      }
    }
  }
}

function sparkline(values, steps, width, tall, attributes) {
  let top = 1e-9;
  for (const v of values) if (v > top) top = v;
  const x = (i) => (steps > 1 ? (i * (width - 8)) / (steps - 1) + 4 : width / 2),
    y = (v) => tall - 3 - (v / top) * (tall - 8);
  let d = "";
  values.forEach((v, i) => {
    if (Number.isFinite(v)) d += `${d ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
  });
  return {
    x,
    y,
    top,
    path: svg("path", { d, fill: "none", ...attributes }),
    area: `${d}L${x(steps - 1).toFixed(1)} ${tall - 3}L${x(0).toFixed(1)} ${tall - 3}Z`,
  };
}

export default figure({
  name: "cache_shelf",
  mount(ctx) {
    const text = h("div", { class: "tw-cs-text", tabindex: 0, role: "region", "aria-label": "The text read so far" }),
      life = h("p", { class: "tw-cs-life" });
    const shelves = h("div", { class: "tw-cs-shelves" }),
      meters = h("div", { class: "tw-cs-meters" });
    ctx.stage.append(text, life, shelves, meters);
    const chips = new Map(); // by the token where a folded run begins
    let spans = [],
      drawn = null, // per word: what is on the screen
      tokens = null,
      lanes = [],
      means = null,
      hover = -1;

    const tokenAt = (canvas, event) => {
      const box = canvas.getBoundingClientRect(),
        S = ctx.state().trace.arrays.appended_at.length;
      return Math.max(0, Math.min(S - 1, Math.floor(((event.clientX - box.left) / box.width) * S)));
    };
    const chosen = () =>
      ctx.state().selection && Number.isInteger(ctx.state().selection.token) ? ctx.state().selection.token : -1;
    function point(i, x, y) {
      const { trace, step } = ctx.state();
      if (i !== hover) {
        hover = i;
        ctx.refresh("selection");
      }
      if (i >= 0) ctx.tip(lifeWords(trace, layerIndex(ctx.state()), i, step), x, y);
      else ctx.tip(null);
    }
    text.addEventListener("pointerover", (event) => {
      const span = event.target.closest("[data-i]");
      if (!span) return;
      const box = span.getBoundingClientRect();
      point(Number(span.dataset.i), box.left + box.width / 2, box.top);
    });
    text.addEventListener("pointerleave", () => point(-1));
    text.addEventListener("click", (event) => {
      const span = event.target.closest("[data-i]");
      if (span) ctx.select({ token: Number(span.dataset.i) });
    });

    function makeLanes(state) {
      const heads = state.trace.arrays.evicted_at.shape[1],
        tall = heads > 4 ? 36 : state.width < 520 ? 56 : 76;
      lanes = Array.from({ length: heads }, (_, head) => {
        const canvas = h("canvas", { class: "tw-cs-lane", "aria-hidden": "true" }),
          count = h("span", { class: "tw-cs-count" });
        const scrub = (event) => {
          const box = canvas.getBoundingClientRect(),
            y = event.clientY - box.top - TOP - LANE - GAP;
          if (y >= 0) ctx.setStep(Math.floor((y / tall) * state.trace.steps));
        };
        canvas.addEventListener("pointerdown", (event) => {
          const y = event.clientY - canvas.getBoundingClientRect().top;
          if (y < TOP + LANE + GAP / 2) {
            ctx.select({ token: tokenAt(canvas, event) });
            return;
          }
          canvas.setPointerCapture(event.pointerId);
          scrub(event);
        });
        canvas.addEventListener("pointermove", (event) => {
          if (canvas.hasPointerCapture(event.pointerId)) {
            ctx.tip(null);
            scrub(event);
            return;
          }
          const box = canvas.getBoundingClientRect();
          point(tokenAt(canvas, event), event.clientX, box.top + TOP);
        });
        canvas.addEventListener("pointerleave", () => point(-1));
        const label = h("div", { class: "tw-cs-label" }, h("span", {}, `head ${head}`), count);
        return { canvas, count, tall, node: h("div", { class: "tw-cs-head" }, label, canvas), history: null };
      });
      text.style.setProperty("--staff", `${pitchOf(heads) * heads + 1}px`);
      text.style.setProperty("--lines", Array(heads).fill("linear-gradient(var(--tw-kept) 0 0)").join(","));
      text.style.setProperty("--thick", `${pitchOf(heads) - 1}px`);
      shelves.replaceChildren(
        ...lanes.map((lane) => lane.node),
        h(
          "div",
          { class: "tw-cs-axis", "aria-hidden": "true" },
          h("span", {}, "↓ time"),
          h("span", {}, "position in the text →"),
        ),
      );
    }

    const HIDDEN = -1;
    const pitchOf = (heads) => (heads > 4 ? 2 : 3); // one thin line per head under each word, head 0 on top
    function makeText(state) {
      tokens = state.trace.subject.tokens;
      spans = tokens.map((token, i) =>
        h("span", { class: "tw-cs-token", "data-i": i, hidden: true }, token.replace(/\n/g, "↵\n")),
      );
      drawn = new Int32Array(spans.length).fill(HIDDEN);
      chips.clear();
      text.replaceChildren(...spans);
    }

    /** Touches only the words whose heads changed: bit h of a word's code says that head h holds it. */
    function drawText(state, layer) {
      const { trace, step } = state,
        { appended_at: appended } = trace.arrays,
        heads = lanes.length,
        S = appended.length;
      const codes = new Int32Array(S).fill(HIDDEN);
      let arrived = 0;
      while (arrived < S && appended[arrived] <= step) codes[arrived++] = 0;
      for (let head = 0; head < heads; head++) {
        const row = shelfRow(appended, headRow(trace, layer, head), step);
        for (let i = 0; i < arrived; i++) if (row[i] === 1 || row[i] === 2) codes[i] |= 1 << head;
      }
      const folds = state.settings.fold === false ? [] : foldRuns(codes, arrived);
      for (const [first, last] of folds) codes.fill(HIDDEN, first, last);

      const all = 2 ** heads - 1,
        pitch = pitchOf(heads);
      for (let i = 0; i < S; i++) {
        if (codes[i] === drawn[i]) continue;
        const span = spans[i];
        drawn[i] = codes[i];
        span.hidden = codes[i] === HIDDEN;
        if (span.hidden) continue;
        span.dataset.held = codes[i] === 0 ? "none" : codes[i] === all ? "all" : "some";
        span.style.backgroundPosition = lanes
          .map((_, head) => `${(codes[i] >> head) & 1 ? 0 : -9999}px calc(100% - ${pitch * (heads - 1 - head)}px)`)
          .join(",");
      }

      const starts = new Map(folds);
      for (const [first, chip] of chips) if (!starts.has(first)) chip.hidden = true;
      for (const [first, last] of folds) {
        if (!chips.has(first)) {
          chips.set(first, h("span", { class: "tw-cs-fold" }));
          text.insertBefore(chips.get(first), spans[first]);
        }
        const chip = chips.get(first);
        chip.hidden = false;
        chip.textContent = ` ⋯ ${last - first} gone ⋯ `;
      }
      for (const span of text.querySelectorAll(".tw-cs-new")) span.classList.remove("tw-cs-new");
      for (let i = arrived - 1; i >= 0 && appended[i] === step; i--) spans[i].classList.add("tw-cs-new");
      text.scrollTop = text.scrollHeight;
    }

    function mark() {
      for (const [name, i] of [
        ["tw-cs-chosen", chosen()],
        ["tw-cs-hover", hover],
      ]) {
        for (const span of text.querySelectorAll(`.${name}`)) if (span !== spans[i]) span.classList.remove(name);
        if (spans[i]) spans[i].classList.add(name);
      }
    }

    function drawShelves(state, layer, anew) {
      const { trace, step, width } = state,
        S = trace.arrays.appended_at.length,
        one = hover >= 0 ? hover : chosen();
      lanes.forEach((lane, head) => {
        const { tall } = lane,
          floor = TOP + LANE + GAP,
          pen = fitCanvas(lane.canvas, width, floor + tall + 1);
        if (anew || !lane.history) lane.history = historyOf(trace, layer, head, width, tall, ctx);
        const states = shelfRow(trace.arrays.appended_at, headRow(trace, layer, head), step);
        pen.clearRect(0, 0, width, floor + tall + 1);
        drawLane(pen, states, width, ctx);
        const cut = ((step + 1) / trace.steps) * tall;
        for (const [from, to, alpha] of [
          [0, cut, 1],
          [cut, tall, 0.18],
        ]) {
          pen.save();
          pen.beginPath();
          pen.rect(0, floor + from, width, to - from);
          pen.clip();
          pen.globalAlpha = alpha * 0.55;
          pen.drawImage(lane.history.gone, 0, floor, width, tall);
          pen.globalAlpha = alpha;
          pen.imageSmoothingEnabled = false;
          pen.drawImage(lane.history.held, 0, floor, width, tall);
          pen.restore();
        }
        pen.fillStyle = ctx.colour("ink");
        pen.fillRect(0, floor + cut - 0.5, width, 1);
        if (one >= 0) {
          pen.strokeStyle = ctx.colour("query");
          pen.lineWidth = 1.5;
          pen.beginPath();
          pen.moveTo(((one + 0.5) * width) / S, 1);
          pen.lineTo(((one + 0.5) * width) / S, floor + tall);
          pen.stroke();
        }
        const held = states.reduce((n, s) => n + (s === 1 || s === 2), 0),
          seen = states.reduce((n, s) => n + (s > 0), 0);
        lane.count.textContent = `holds ${held} of ${seen}`;
      });
    }

    function drawMeters(state) {
      const { trace, step, width } = state,
        { nbytes, nll } = trace.arrays,
        tall = 34,
        box = [];
      const line = (name, values, said, colour, extra) => {
        const spark = sparkline(values, trace.steps, width, tall, {
          stroke: `var(--tw-${colour})`,
          "stroke-width": 1.5,
          ...extra,
        });
        const at = values[step];
        box.push(
          h("div", { class: "tw-cs-label" }, h("span", {}, name), h("span", { class: "tw-cs-count" }, said)),
          svg(
            "svg",
            { width, height: tall, viewBox: `0 0 ${width} ${tall}`, "aria-hidden": "true" },
            svg("line", { x1: 4, x2: width - 4, y1: tall - 3, y2: tall - 3, stroke: "var(--tw-line)" }),
            colour === "kept" ? svg("path", { d: spark.area, fill: "var(--tw-kept)", opacity: 0.12 }) : null,
            spark.path,
            svg("line", {
              x1: spark.x(step),
              x2: spark.x(step),
              y1: 2,
              y2: tall - 3,
              stroke: "var(--tw-ink)",
              "stroke-width": 1,
            }),
            Number.isFinite(at)
              ? svg("circle", {
                  cx: spark.x(step),
                  cy: spark.y(at),
                  r: 3.5,
                  fill: `var(--tw-${colour})`,
                  stroke: "var(--tw-paper)",
                })
              : null,
          ),
        );
      };
      line("cache, measured", nbytes, kilobytes(nbytes[step]), "kept", {});
      if (nll) {
        means ??= runningMean(nll);
        const now = Number.isFinite(nll[step]) ? ` (${nll[step].toFixed(2)} here)` : "";
        line("loss, mean so far", means, `${means[step].toFixed(2)} nats${now}`, "exact", { "stroke-dasharray": "5 2" });
      }
      meters.replaceChildren(...box);
    }

    return {
      move(by) {
        const { trace, step } = ctx.state(),
          at = chosen(),
          S = trace.arrays.appended_at.length;
        let last = S - 1;
        while (last > 0 && trace.arrays.appended_at[last] > step) last--;
        const next = at < 0 ? last : Math.max(0, Math.min(last, at + by));
        ctx.select({ token: next });
        ctx.say(lifeWords(trace, layerIndex(ctx.state()), next, step));
      },
      draw(state, changed) {
        const layer = layerIndex(state),
          anew = ["trace", "size", "theme", "settings"].some((name) => changed.has(name));
        if (changed.has("trace")) {
          means = null;
          if (state.trace.subject.tokens !== tokens) makeText(state);
        }
        if (changed.has("trace") || changed.has("size")) makeLanes(state);
        if (changed.has("size")) text.style.minHeight = "";
        if (anew || changed.has("step")) {
          drawText(state, layer);
          drawMeters(state);
          text.style.minHeight = `${text.offsetHeight}px`; // grow, never shrink: the controls stay put
        }
        drawShelves(state, layer, anew);
        mark();
        const one = chosen();
        life.textContent = one >= 0 ? lifeWords(state.trace, layer, one, state.step) : "";
        life.hidden = one < 0;
      },
    };
  },
  describe: describeShelf,
  keys(event, state, ctx, view) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return false;
    view.move(event.key === "ArrowDown" ? 1 : -1);
    return true;
  },
  readout(state) {
    const rows = rowsHeld(state.trace, layerIndex(state), state.step);
    const seen = state.trace.arrays.appended_at.reduce((n, at) => n + (at <= state.step), 0);
    const held = Math.min(...rows) === Math.max(...rows) ? `${rows[0]}` : `${Math.min(...rows)}–${Math.max(...rows)}`;
    return `layer ${state.trace.arrays.layers[layerIndex(state)]}: ${held} of ${seen} rows per head, ${kilobytes(state.trace.arrays.nbytes[state.step])} in all`;
  },
  legend: [
    { mark: "kept", shape: "fill", label: "held" },
    { mark: "ink", shape: "square", label: "just arrived" },
    { mark: "rejected", shape: "cross", label: "evicted now" },
    { mark: "evicted", shape: "hatch", label: "evicted before" },
    { mark: "kept", shape: "line", label: "under a word, one line per head: held" },
  ],
  stepLabel: (state) => `step ${state.step} of ${state.trace.steps - 1}`,
});
