// frontier: cost against quality. One line per method; a filled mark is a point that no other point beats.

/** 1 for the points that no other point beats (at most as dear, at least as good, and better in one). */
export function bestPoints(x, y, better = "high") {
  const gain = better === "low" ? Float64Array.from(y, (v) => -v) : y, out = new Uint8Array(x.length);
  for (let i = 0; i < x.length; i++) {
    out[i] = 1;
    for (let j = 0; j < x.length && out[i]; j++)
      if (x[j] <= x[i] && gain[j] >= gain[i] && (x[j] < x[i] || gain[j] > gain[i])) out[i] = 0;
  }
  return out;
}

/** Round numbers within [low, high], about `count` of them. */
export function linearTicks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), base = 10 ** Math.floor(Math.log10(raw || 1));
  const gap = base * ([1, 2, 5, 10].find((m) => m * base >= raw * 0.999) || 10), out = [];
  for (let i = Math.ceil(low / gap - 1e-9); i * gap <= high + gap * 1e-9; i++) out.push(Number((i * gap).toPrecision(12)));
  return out;
}

/** 1, 2, 5 times powers of ten within [low, high]; only the powers where there is no room for `count`. */
export function logTicks(low, high, count) {
  for (const steps of [[1, 2, 5], [1, 3], [1]]) {
    const out = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of steps) { const v = Number((m * 10 ** e).toPrecision(6)); if (v >= low * 0.999 && v <= high * 1.001) out.push(v); }
    if (out.length <= count + 1 || steps.length === 1) return out;
  }
  return [];
}

/** Places labels near their wishes, at least `gap` apart and inside [low, high]; order of equals is kept. */
export function spread(wishes, gap, low, high) {
  const order = wishes.map((_, i) => i).sort((a, b) => wishes[a] - wishes[b] || a - b), out = new Array(wishes.length);
  let last = low - gap;
  for (const i of order) last = out[i] = Math.max(wishes[i], last + gap);
  last = high + gap;
  for (const i of order.reverse()) last = out[i] = Math.min(out[i], last - gap);
  return out;
}

const MARKS = [
  (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`, (r) => `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  (r) => `M0 ${-1.25 * r}L${1.2 * r} ${r}H${-1.2 * r}z`, (r) => `M0 ${-1.35 * r}L${1.35 * r} 0L0 ${1.35 * r}L${-1.35 * r} 0z`,
  (r) => `M0 ${1.25 * r}L${1.2 * r} ${-r}H${-1.2 * r}z`, (r) => `M${-r} ${-r}L${r} 0L${-r} ${r}z`,
  (r) => `M${r} ${-r}L${-r} 0L${r} ${r}z`, (r) => `M0 ${-1.2 * r}L${1.15 * r} ${-0.35 * r}L${0.7 * r} ${r}H${-0.7 * r}L${-1.15 * r} ${-0.35 * r}z`,
];
const DASHES = ["", "6 3", "2 3"];
const COLOURS = 8;
const GAP = 27;                   // from one name beside the chart to the next
const number = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(1).replace("e+", "e") : String(Number(v.toPrecision(3))));
const markOf = (s, r) => MARKS[s % MARKS.length](r);
const dashOf = (s) => DASHES[Math.floor(s / COLOURS) % DASHES.length] || null;
const colourOf = (s) => `var(--tw-s${s % COLOURS})`;

export default figure({
  name: "frontier",
  mount(ctx) {
    const chart = svg("svg", { class: "tw-chart", "aria-hidden": "true" });
    const names = h("div", { class: "tw-series", role: "group", "aria-label": "Methods" });
    const box = h("div", { class: "tw-plot" }, chart, names);
    ctx.stage.append(box);
    let geometry = null, over = null;

    const series = ({ trace }, s) => {
      const found = [];
      trace.arrays.series.forEach((v, i) => { if (v === s) found.push(i); });
      return found.sort((a, b) => trace.arrays.x[a] - trace.arrays.x[b] || a - b);
    };
    const tell = (state, i) => {
      const { x, y, lo, hi, series: of } = state.trace.arrays, { names: all, x_label, y_label } = state.trace.subject;
      const bar = hi[i] > lo[i] ? `\n95 %: ${number(lo[i])} to ${number(hi[i])}` : "";
      return `${all[of[i]]}\n${y_label} ${number(y[i])}${bar}\n${x_label} ${number(x[i])}`;
    };
    function choose(state, i) {
      const { x, y, series: of } = state.trace.arrays;
      ctx.setStep(of[i]);
      ctx.select({ series: of[i], name: state.trace.subject.names[of[i]], point: i, x: x[i], y: y[i] });
    }
    function nearest(event) {
      const frame = chart.getBoundingClientRect(), px = event.clientX - frame.left, py = event.clientY - frame.top;
      let best = -1, near = 28 ** 2;
      geometry.points.forEach(([x, y], i) => { const d = (x - px) ** 2 + (y - py) ** 2; if (d < near) { near = d; best = i; } });
      return best;
    }
    chart.addEventListener("pointermove", (event) => {
      const state = ctx.state(), i = nearest(event), s = i < 0 ? null : state.trace.arrays.series[i];
      if (i < 0) ctx.tip(null);
      else { const frame = chart.getBoundingClientRect(); ctx.tip(tell(state, i), frame.left + geometry.points[i][0], frame.top + geometry.points[i][1]); }
      if (s !== over) { over = s; ctx.refresh("hover"); }
    });
    chart.addEventListener("pointerleave", () => { if (over !== null) { over = null; ctx.refresh("hover"); } });
    chart.addEventListener("click", (event) => { const i = nearest(event); if (i >= 0) choose(ctx.state(), i); });

    function axis(values, log, start, end, room, pad = 0.04) {
      const f = log ? Math.log10 : (v) => v, seen = Array.from(values).filter((v) => Number.isFinite(v) && (!log || v > 0));
      let low = f(Math.min(...seen)), high = f(Math.max(...seen));
      if (low === high) { low -= log ? 0.3 : Math.abs(low) * 0.1 || 1; high += log ? 0.3 : Math.abs(high) * 0.1 || 1; }
      const more = (high - low) * pad;
      const from = !log && low >= 0 && low - more < 0 ? 0 : low - more, to = high + more;
      const at = (v) => start + ((f(log ? Math.max(v, 10 ** from) : v) - from) / (to - from)) * (end - start);
      return { at, ticks: log ? logTicks(10 ** from, 10 ** to, room) : linearTicks(from, to, room) };
    }

    return {
      point(by) {
        const state = ctx.state(), mine = series(state, state.step), now = mine.indexOf(state.selection ? state.selection.point : -1);
        const i = mine[Math.max(0, Math.min(mine.length - 1, now < 0 ? 0 : now + by))];
        if (i === undefined) return;
        over = null;
        choose(state, i);
        const frame = chart.getBoundingClientRect(), text = tell(state, i);
        ctx.tip(text, frame.left + geometry.points[i][0], frame.top + geometry.points[i][1]);
        requestAnimationFrame(() => requestAnimationFrame(() => ctx.say(text.replace(/\n/g, "; "))));
      },
      draw(state) {
        const { trace, settings, step, width } = state, { x, y, lo, hi } = trace.arrays, { names: all, x_label, y_label, better = "high", bounds = [] } = trace.subject;
        const wide = width >= 600, right = wide ? Math.min(220, 56 + 7.4 * Math.max(...all.map((n) => n.length))) : 14;
        const w = width, room = wide ? 30 + GAP * all.length : 0;                       // names beside the chart need their height
        const tall = Math.round(Math.max(250, room, Math.min(400, (w - right) * 0.6)));
        const inner = { left: 46, right: w - right, top: 30, bottom: tall - 46 };
        const ax = axis(x, settings.log_x, inner.left + 6, inner.right - 6, Math.max(2, (inner.right - inner.left) / 90));
        const ay = axis([...lo, ...hi, ...y], settings.log_y, inner.bottom, inner.top, Math.max(3, (inner.bottom - inner.top) / 56));
        const shown = over ?? step, best = bestPoints(x, y, better);
        geometry = { points: Array.from(x, (v, i) => [ax.at(v), ay.at(y[i])]) };
        const parts = [];
        for (const t of ay.ticks) {
          parts.push(svg("line", { x1: inner.left, x2: inner.right, y1: ay.at(t), y2: ay.at(t), class: "tw-rule" }),
            svg("text", { x: inner.left - 8, y: ay.at(t) + 4, "text-anchor": "end", class: "tw-quiet" }, number(t)));
        }
        for (const t of ax.ticks) parts.push(svg("text", { x: ax.at(t), y: inner.bottom + 18, "text-anchor": "middle", class: "tw-quiet" }, number(t)));
        parts.push(svg("line", { x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom, class: "tw-base" }),
          svg("text", { x: 0, y: 12, class: "tw-quiet" }, `${y_label} (${better === "low" ? "lower ↓" : "higher ↑"} is better)`),
          svg("text", { x: inner.right, y: inner.bottom + 38, "text-anchor": "end", class: "tw-quiet" }, `${x_label} →`));
        const order = all.map((_, s) => s).sort((a, b) => (a === shown) - (b === shown) || a - b);      // the shown one lies on top
        for (const s of order) {
          const mine = series(state, s), line = mine.map((i) => geometry.points[i]);
          if (!mine.length) continue;
          const group = svg("g", { class: `tw-line${s === shown ? " tw-shown" : ""}`, style: { "--c": colourOf(s) } },
            svg("path", { class: "tw-stroke", d: `M${line.map((p) => p.map((v) => v.toFixed(1)).join(" ")).join("L")}`, "stroke-dasharray": bounds.includes(all[s]) ? "1.5 3" : dashOf(s) }));
          for (const i of mine) {
            const [px, py] = geometry.points[i];
            if (hi[i] > lo[i]) group.append(svg("path", { class: "tw-bar", d: `M${px} ${ay.at(lo[i])}V${ay.at(hi[i])}M${px - 3} ${ay.at(lo[i])}h6M${px - 3} ${ay.at(hi[i])}h6` }));
            group.append(svg("path", { class: best[i] ? "tw-mark tw-best" : "tw-mark", transform: `translate(${px} ${py})`, d: markOf(s, s === shown ? 4.6 : 3.6) }));
            if (state.selection && state.selection.point === i) group.append(svg("circle", { class: "tw-picked", cx: px, cy: py, r: 10 }));
          }
          parts.push(group);
        }
        chart.setAttribute("viewBox", `0 0 ${w} ${tall}`);
        chart.setAttribute("width", w);
        chart.setAttribute("height", tall);
        chart.replaceChildren(...parts);
        this.label(state, wide, right, inner, ay, shown, series);
      },
      label(state, wide, right, inner, ay, shown, of) {
        const { trace } = state, all = trace.subject.names;
        if (names.childElementCount !== all.length || names.dataset.of !== all.join("\n")) {
          names.dataset.of = all.join("\n");
          names.replaceChildren(...all.map((name, s) => {
            const button = h("button", { type: "button", style: { "--c": colourOf(s) } },
              svg("svg", { viewBox: "-10 -6 20 12", width: 20, height: 12, "aria-hidden": "true" },
                svg("line", { x1: -10, x2: 10, y1: 0, y2: 0, "stroke-dasharray": dashOf(s) }), svg("path", { d: markOf(s, 3.6) })), h("span", {}, name));
            for (const [event, value] of [["pointerenter", s], ["pointerleave", null], ["focus", s], ["blur", null]])
              button.addEventListener(event, () => { over = value; ctx.refresh("hover"); });
            button.addEventListener("click", () => ctx.setStep(s));
            return button;
          }));
        }
        box.classList.toggle("tw-wide", wide);
        const wishes = all.map((_, s) => { const mine = of(state, s); const mean = mine.reduce((sum, i) => sum + ay.at(trace.arrays.y[i]), 0) / Math.max(1, mine.length);
          return mine.length ? ay.at(trace.arrays.y[mine[mine.length - 1]]) + 0.001 * mean : inner.bottom; });     // equal ends: by height
        const tops = spread(wishes, GAP, inner.top - 8, Math.max(inner.bottom, inner.top - 8 + GAP * (all.length - 1)));
        [...names.children].forEach((button, s) => {
          button.classList.toggle("tw-shown", s === shown);
          button.setAttribute("aria-pressed", String(s === state.step));
          button.style.top = wide ? `${tops[s] - 16}px` : "";
          button.style.left = wide ? `${inner.right + 6}px` : "";
          button.style.maxWidth = wide ? `${right - 8}px` : "";
        });
      },
    };
  },
  keys(event, state, ctx, view) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return false;
    view.point(event.key === "ArrowUp" ? 1 : -1);
    return true;
  },
  legend: () => [{ mark: "ink", shape: "dot", label: "filled: no other point is both cheaper and better" },
    { mark: "ink", shape: "ring", label: "hollow: beaten" }],
  stepLabel: (state) => `method ${state.step + 1} of ${state.trace.steps}`,
});
