// vector_map: a search for the nearest points. A map (or rings, where the radius is the true distance to the query), the
// candidates and the results held as two rows of bars with the line at which the search may stop, and what it cost.

// ------------------------------------------------------------------------------------------------------ display data
const codes = (trace) => Object.fromEntries(trace.kinds.map((kind, i) => [kind, i]));
const onBase = (events, i) => !events.level || events.level[i] === 0;

/** How many results a search holds: its beam, or k where it reads lists. */
export const capacity = (trace) => (trace.arrays.cell ? trace.subject.k : trace.subject.ef || trace.subject.k);

/** The candidates C and the results W after a step, nearest first, rebuilt from the events: rows {id, dist}. */
export function heapsAt(trace, step, most = capacity(trace)) {
  const kind = codes(trace),
    { events } = trace,
    waiting = new Map(),
    graph = events.kind.includes(kind.expanded);
  const nearer = (a, b) => a.dist - b.dist || a.id - b.id,
    held = [];
  for (let i = 0; i < events.kind.length && events.step[i] <= step; i++) {
    if (!onBase(events, i)) continue;
    const id = events.dst[i],
      dist = events.dist ? events.dist[i] : NaN;
    if (events.kind[i] === kind.expanded) waiting.delete(id);
    if (events.kind[i] !== kind.evaluated && events.kind[i] !== kind.entered) continue;
    if (!events.accepted[i]) continue;
    if (graph) waiting.set(id, { id, dist });
    held.push({ id, dist });
    held.sort(nearer);
    if (held.length > most) held.pop();
  }
  return { candidates: [...waiting.values()].sort(nearer), results: held };
}

/** What is known of every point after a step: 0 nothing, 1 measured, 2 waiting among the candidates, 3 expanded. */
export function pointStates(trace, step) {
  const kind = codes(trace),
    { events } = trace,
    states = new Uint8Array(trace.arrays.true_dist.length),
    lists = Boolean(trace.arrays.cell);
  for (let i = 0; i < events.kind.length && events.step[i] <= step; i++) {
    if (lists && !onBase(events, i)) continue; // the upper level of an inverted file are centres
    const id = events.dst[i];
    if ((events.kind[i] === kind.evaluated || events.kind[i] === kind.entered) && id >= 0) states[id] = Math.max(states[id], 1);
    if (events.kind[i] === kind.expanded) states[id] = 3;
  }
  for (const { id } of heapsAt(trace, step).candidates) states[id] = 2;
  return states;
}

/** Distances computed and true neighbours met up to each step. */
export function progress(trace) {
  const kind = codes(trace),
    { events } = trace,
    truth = new Set(trace.arrays.truth);
  const ndist = new Int32Array(trace.steps),
    found = new Int32Array(trace.steps),
    met = new Set();
  let count = 0,
    i = 0;
  for (let step = 0; step < trace.steps; step++) {
    for (; i < events.kind.length && events.step[i] <= step; i++) {
      count += events.kind[i] === kind.evaluated;
      const seen = events.kind[i] === kind.evaluated || events.kind[i] === kind.entered;
      if (seen && onBase(events, i) && truth.has(events.dst[i])) met.add(events.dst[i]);
    }
    ndist[step] = count;
    found[step] = met.size;
  }
  return { ndist, found };
}

/** A recorded distance as it is shown: l2 is recorded squared. */
export const shownDistance = (metric, d) => (metric === "l2" ? Math.sqrt(Math.max(0, d)) : d);
const DISTANCE_NAMES = { l2: "distance", cosine: "1 − cosine", ip: "− q·x" };

/** Lists of an inverted file by the distance of their centre: rows {id, dist, opened}; the order is that of opening. */
export function listsAt(trace, step) {
  const kind = codes(trace),
    { events } = trace,
    dist = new Map(),
    opened = new Set();
  for (let i = 0; i < events.kind.length; i++) {
    if (events.kind[i] === kind.opened_list) {
      dist.set(events.dst[i], events.dist ? events.dist[i] : NaN);
      if (events.step[i] <= step) opened.add(events.dst[i]);
    } else if (events.kind[i] === kind.evaluated && !onBase(events, i)) dist.set(events.dst[i], events.dist[i]);
  }
  return [...dist].map(([id, d]) => ({ id, dist: d, opened: opened.has(id) })).sort((a, b) => a.dist - b.dist || a.id - b.id);
}

/** Round values for about `count` rings between low and high. */
export function niceTicks(low, high, count = 4) {
  const rough = (high - low) / count,
    power = 10 ** Math.floor(Math.log10(rough)),
    unit = [1, 2, 2.5, 5, 10].find((u) => u * power >= rough) * power;
  const ticks = [];
  for (let v = Math.ceil(low / unit) * unit; v <= high + 1e-9; v += unit) ticks.push(Number(v.toPrecision(6)));
  return ticks;
}

/** Angles in the same order round the circle, moved three quarters of the way to equal gaps; ties by index. */
export function spread(angles) {
  const order = Array.from(angles, (_, i) => i).sort((a, b) => angles[a] - angles[b] || a - b),
    out = new Float64Array(angles.length);
  order.forEach((i, rank) => {
    out[i] = 0.25 * angles[i] + 0.75 * (-Math.PI + (2 * Math.PI * (rank + 0.5)) / angles.length);
  });
  return out;
}

/** Positions in a w x h box: "map" keeps the recorded layout, "rings" sets radius = true distance, direction in the map's order. */
export function positions(trace, layout, w, h, pad = 16) {
  const { xy, query_xy: q, true_dist: dist, centroid_xy: centres } = trace.arrays,
    n = dist.length,
    out = new Float32Array(2 * n);
  const metric = trace.subject.metric,
    near = centres ? new Map(listsAt(trace, trace.steps).map((list) => [list.id, list.dist])) : new Map();
  const count = centres ? centres.length / 2 : 0,
    centre = new Float32Array(2 * count);
  if (layout !== "rings") {
    let [x0, x1, y0, y1] = [q[0], q[0], q[1], q[1]];
    for (let i = 0; i < n; i++) {
      x0 = Math.min(x0, xy[2 * i]);
      x1 = Math.max(x1, xy[2 * i]);
      y0 = Math.min(y0, xy[2 * i + 1]);
      y1 = Math.max(y1, xy[2 * i + 1]);
    }
    const fx = (w - 2 * pad) / Math.max(1e-9, x1 - x0),
      fy = (h - 2 * pad) / Math.max(1e-9, y1 - y0),
      f = Math.min(Math.max(fx, fy), 1.35 * Math.min(fx, fy));
    const sx = Math.min(f, fx),
      sy = Math.min(f, fy); // the axes may differ by a third, to fill the box
    const at = (x, y) => [w / 2 + (x - (x0 + x1) / 2) * sx, h / 2 - (y - (y0 + y1) / 2) * sy];
    for (let i = 0; i < n; i++) out.set(at(xy[2 * i], xy[2 * i + 1]), 2 * i);
    for (let i = 0; i < count; i++) centre.set(at(centres[2 * i], centres[2 * i + 1]), 2 * i);
    return { points: out, query: at(q[0], q[1]), centre, radius: null };
  }
  let low = Infinity,
    high = -Infinity;
  for (let i = 0; i < n; i++) {
    const d = shownDistance(metric, dist[i]);
    low = Math.min(low, d);
    high = Math.max(high, d);
  }
  low -= 0.12 * (high - low);
  if (metric !== "ip") low = Math.max(0, low);
  const reach = Math.min(w, h) / 2 - pad,
    radius = (d) => (reach * (d - low)) / Math.max(1e-9, high - low);
  const bare = Float64Array.from({ length: n }, (_, i) => Math.atan2(xy[2 * i + 1] - q[1], xy[2 * i] - q[0])),
    every = spread(bare);
  const between = (angle) => 0.25 * angle + 0.75 * (-Math.PI + (2 * Math.PI * bare.filter((a) => a < angle).length) / n);
  const place = (angle, d) => {
    const r = Math.max(0, Math.min(radius(shownDistance(metric, d)), reach));
    return [w / 2 + r * Math.cos(angle), h / 2 - r * Math.sin(angle)];
  };
  for (let i = 0; i < n; i++) out.set(place(every[i], dist[i]), 2 * i);
  for (let i = 0; i < count; i++)
    centre.set(
      place(between(Math.atan2(centres[2 * i + 1] - q[1], centres[2 * i] - q[0])), near.has(i) ? near.get(i) : Infinity),
      2 * i,
    );
  return { points: out, query: [w / 2, h / 2], centre, radius, low, high };
}

const nameOf = (trace, id) => (trace.subject.labels ? trace.subject.labels[id] : `point ${id}`);
const shortly = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const digits = (d) => (Math.abs(d) >= 100 ? d.toFixed(0) : Math.abs(d) >= 10 ? d.toFixed(1) : d.toFixed(2));

/** One point in words. */
export function pointWords(trace, step, id) {
  const { truth, true_dist: dist, edges } = trace.arrays,
    rank = Array.from(truth).indexOf(id),
    state = pointStates(trace, step)[id],
    metric = trace.subject.metric;
  const held = heapsAt(trace, step).results.findIndex((r) => r.id === id);
  let text = `${nameOf(trace, id)}: ${DISTANCE_NAMES[metric] || "distance"} ${digits(shownDistance(metric, dist[id]))}`;
  if (rank >= 0) text += `, true neighbour ${rank + 1} of ${truth.length}`;
  text += state === 0 ? "; not measured" : state === 3 ? "; expanded" : state === 2 ? "; waiting" : "; measured";
  if (held >= 0) text += `, result ${held + 1}`;
  if (rank >= 0 && state === 0 && step === trace.steps - 1) {
    const links = [];
    if (edges)
      for (let e = 0; e < edges.length; e += 2) {
        if (edges[e] === id) links.push(edges[e + 1]);
        else if (edges[e + 1] === id) links.push(edges[e]);
      }
    const states = pointStates(trace, step);
    if (edges && !links.some((other) => states[other] === 3)) text += ": missed, no expanded point is linked to it";
    else if (trace.arrays.cell) text += `: missed, its list ${trace.arrays.cell[id]} was not opened`;
    else text += ": missed";
  }
  return `${text}.`;
}

// ----------------------------------------------------------------------------------------------------------- drawing
export default figure({
  name: "vector_map",
  mount(ctx) {
    const canvas = h("canvas", { class: "tw-vm-map", "aria-hidden": "true" }),
      legendBox = h("div", { class: "tw-vm-where" });
    const side = h("div", { class: "tw-vm-side" }),
      counters = h("div", { class: "tw-vm-block" }),
      heaps = h("div", { class: "tw-vm-block" }),
      list = h("div", { class: "tw-vm-block" });
    side.append(counters, heaps, list);
    ctx.stage.append(h("div", { class: "tw-vm-left" }, canvas, legendBox), side);
    let box = { w: 0, h: 0 },
      target = null,
      shownAt = null,
      moving = 0,
      hover = -1,
      memo = {};

    const layoutOf = (state) => state.settings.layout || "rings";
    const chosen = (state) =>
      state.selection && Number.isInteger(state.selection.point) && state.selection.point < state.trace.arrays.true_dist.length
        ? state.selection.point
        : -1;

    function glide(from, to) {
      const begin = performance.now();
      cancelAnimationFrame(moving);
      const tick = (now) => {
        const t = Math.min(1, Math.max(0, (now - begin) / 450)),
          ease = t * t * (3 - 2 * t),
          mix = (a, b) => a + (b - a) * ease;
        shownAt = {
          ...to,
          points: to.points.map((v, i) => mix(from.points[i], v)),
          centre: to.centre.map((v, i) => mix(from.centre[i], v)),
          query: to.query.map((v, i) => mix(from.query[i], v)),
          fade: ease,
        };
        drawMap(ctx.state());
        if (t < 1) moving = requestAnimationFrame(tick);
      };
      tick(begin);
    }

    function drawMap(state) {
      const { trace, step } = state,
        pen = fitCanvas(canvas, box.w, box.h),
        at = shownAt,
        { points, centre } = at,
        kind = codes(trace),
        { events } = trace;
      const c = (name) => ctx.colour(name),
        n = trace.arrays.true_dist.length,
        truth = trace.arrays.truth,
        states = memo.states,
        held = memo.heaps.results;
      const [from, to] = eventRange(trace, step),
        last = step === trace.steps - 1,
        inResults = new Set(held.map((r) => r.id)),
        k = truth.length,
        lists = Boolean(trace.arrays.cell);
      const dot = (i, r) => {
        pen.beginPath();
        pen.arc(points[2 * i], points[2 * i + 1], r, 0, 7);
      };
      const diamond = (x, y, r) => {
        pen.beginPath();
        pen.moveTo(x, y - r);
        pen.lineTo(x + r, y);
        pen.lineTo(x, y + r);
        pen.lineTo(x - r, y);
        pen.closePath();
      };
      pen.clearRect(0, 0, box.w, box.h);
      pen.lineCap = "round";
      pen.font = '11.5px system-ui, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif';

      if (at.radius) {
        // rings of equal distance, and the line of the worst result held
        pen.globalAlpha = at.fade ?? 1;
        for (const tick of niceTicks(at.low, at.high)) {
          const r = at.radius(tick);
          if (r < 14) continue;
          pen.strokeStyle = c("line");
          pen.lineWidth = 1;
          pen.beginPath();
          pen.arc(at.query[0], at.query[1], r, 0, 7);
          pen.stroke();
          pen.fillStyle = c("muted");
          pen.textAlign = "center";
          pen.fillText(String(tick), at.query[0], at.query[1] - r - 3 < 9 ? at.query[1] - r + 12 : at.query[1] - r - 3);
        }
        const full = held.length >= capacity(trace);
        if (full && held.length) {
          pen.strokeStyle = c("kept");
          pen.setLineDash([5, 4]);
          pen.lineWidth = 1.4;
          pen.beginPath();
          pen.arc(
            at.query[0],
            at.query[1],
            Math.max(2, at.radius(shownDistance(trace.subject.metric, held[held.length - 1].dist))),
            0,
            7,
          );
          pen.stroke();
          pen.setLineDash([]);
        }
        pen.globalAlpha = 1;
      } else if (trace.arrays.edges && trace.arrays.edges.length < 12000) {
        const { edges } = trace.arrays;
        pen.strokeStyle = c("line");
        pen.globalAlpha = 0.5 * (at.fade ?? 1);
        pen.lineWidth = 0.5;
        pen.beginPath();
        for (let e = 0; e < edges.length; e += 2) {
          pen.moveTo(points[2 * edges[e]], points[2 * edges[e] + 1]);
          pen.lineTo(points[2 * edges[e + 1]], points[2 * edges[e + 1] + 1]);
        }
        pen.stroke();
        pen.globalAlpha = 1;
      }

      pen.fillStyle = c("muted"); // points nobody looked at
      pen.globalAlpha = n > 2000 ? 0.3 : 0.45;
      for (let i = 0; i < n; i++)
        if (!states[i]) {
          dot(i, n > 2000 ? 1.1 : 1.6);
          pen.fill();
        }
      pen.globalAlpha = 1;

      if (lists) {
        // spokes from the centre of each opened list
        for (const { id, opened } of memo.lists) {
          if (!opened) continue;
          const now = events.kind.subarray(from, to).some((e, j) => e === kind.opened_list && events.dst[from + j] === id);
          pen.strokeStyle = c("candidate");
          pen.globalAlpha = now ? 0.55 : 0.2;
          pen.lineWidth = 0.8;
          pen.beginPath();
          for (let i = 0; i < n; i++)
            if (trace.arrays.cell[i] === id) {
              pen.moveTo(centre[2 * id], centre[2 * id + 1]);
              pen.lineTo(points[2 * i], points[2 * i + 1]);
            }
          pen.stroke();
        }
        pen.globalAlpha = 1;
      } else {
        // edges that were walked; those of this step strong
        for (let i = 0; i < to; i++) {
          if (events.kind[i] !== kind.evaluated || !(events.src[i] >= 0) || events.src[i] === events.dst[i]) continue;
          const now = i >= from;
          pen.strokeStyle = c("candidate");
          pen.globalAlpha = now ? 0.95 : to > 150 ? 0.2 : 0.3;
          pen.lineWidth = now ? 1.4 : 0.8;
          pen.setLineDash(onBase(events, i) ? [] : [3, 3]);
          pen.beginPath();
          pen.moveTo(points[2 * events.src[i]], points[2 * events.src[i] + 1]);
          pen.lineTo(points[2 * events.dst[i]], points[2 * events.dst[i] + 1]);
          pen.stroke();
        }
        pen.setLineDash([]);
        pen.globalAlpha = 1;
      }

      for (let i = 0; i < n; i++) {
        const x = points[2 * i],
          y = points[2 * i + 1];
        if (states[i] === 1) {
          pen.fillStyle = inResults.has(i) ? c("kept") : c("exact");
          dot(i, inResults.has(i) ? 3.2 : 2.3);
          pen.fill();
        }
        if (states[i] === 2) {
          diamond(x, y, 4.4);
          pen.fillStyle = c("paper");
          pen.fill();
          pen.strokeStyle = c("candidate");
          pen.lineWidth = 1.6;
          pen.stroke();
        }
        if (states[i] === 3) {
          diamond(x, y, 4.4);
          pen.fillStyle = c("candidate");
          pen.fill();
        }
      }
      for (let i = 0; i < centre.length / 2; i++) {
        const open = memo.lists.some((one) => one.id === i && one.opened),
          x = centre[2 * i],
          y = centre[2 * i + 1];
        pen.lineWidth = 1.6;
        pen.strokeStyle = c("candidate");
        pen.fillStyle = open ? c("candidate") : c("paper");
        pen.beginPath();
        pen.rect(x - 4.5, y - 4.5, 9, 9);
        pen.fill();
        pen.stroke();
      }
      for (let j = 0; j < k; j++) {
        // the true neighbours: a ring, filled once found
        const i = truth[j],
          found = states[i] > 0,
          lost = last && !found;
        pen.lineWidth = 1.8;
        pen.strokeStyle = c(lost ? "rejected" : "accepted");
        dot(i, 7);
        pen.stroke();
        if (found) {
          pen.fillStyle = c("accepted");
          dot(i, 4);
          pen.fill();
        }
        if (lost) {
          const x = points[2 * i],
            y = points[2 * i + 1];
          pen.beginPath();
          pen.moveTo(x - 3, y - 3);
          pen.lineTo(x + 3, y + 3);
          pen.moveTo(x + 3, y - 3);
          pen.lineTo(x - 3, y + 3);
          pen.stroke();
        }
      }

      const [qx, qy] = at.query; // the query: a cross
      for (const [colour, wide, r] of [
        ["paper", 6, 7],
        ["query", 2.6, 7],
      ]) {
        pen.strokeStyle = c(colour);
        pen.lineWidth = wide;
        pen.beginPath();
        pen.moveTo(qx - r, qy);
        pen.lineTo(qx + r, qy);
        pen.moveTo(qx, qy - r);
        pen.lineTo(qx, qy + r);
        pen.stroke();
      }

      const say = (i, text, colour) => {
        const x = points[2 * i],
          y = points[2 * i + 1],
          wide = pen.measureText(text).width,
          right = x + 12 + wide < box.w;
        pen.textAlign = right ? "left" : "right";
        pen.lineJoin = "round";
        pen.strokeStyle = c("paper");
        pen.lineWidth = 4;
        pen.strokeText(text, x + (right ? 11 : -11), y + 4);
        pen.fillStyle = c(colour);
        pen.fillText(text, x + (right ? 11 : -11), y + 4);
      };
      for (let i = from; i < to; i++)
        if (events.kind[i] === kind.expanded) {
          // where the search stands
          const id = events.dst[i];
          pen.strokeStyle = c("ink");
          pen.lineWidth = 1.6;
          diamond(points[2 * id], points[2 * id + 1], 8);
          pen.stroke();
          if (trace.subject.labels) say(id, shortly(nameOf(trace, id), 28), "ink");
        }
      const one = hover >= 0 ? hover : chosen(state);
      if (one >= 0) {
        pen.strokeStyle = c("query");
        pen.lineWidth = 2;
        dot(one, 10);
        pen.stroke();
        if (hover < 0) say(one, shortly(nameOf(trace, one), 28), "query");
      }
    }

    function drawCounters(state) {
      const { trace, step } = state,
        { ndist, found } = memo.progress,
        n = trace.arrays.true_dist.length,
        k = trace.arrays.truth.length,
        w = box.side,
        tall = 58;
      const reach = Math.max(n, ndist[trace.steps - 1]),
        x = (v) => 4 + (v / reach) * (w - 8),
        y = (v) => tall - 4 - (v / k) * (tall - 12);
      let d = `M${x(0)} ${y(0)}`;
      for (let s = 0; s < trace.steps; s++) d += `H${x(ndist[s]).toFixed(1)}V${y(found[s]).toFixed(1)}`;
      counters.replaceChildren(
        h(
          "div",
          { class: "tw-vm-line" },
          h("span", {}, h("b", {}, String(ndist[step])), ` of ${n} distances`),
          h("span", {}, h("b", {}, String(found[step])), ` of ${k} found`),
        ),
        svg(
          "svg",
          { width: w, height: tall, viewBox: `0 0 ${w} ${tall}`, "aria-hidden": "true" },
          svg("line", { x1: 4, x2: w - 4, y1: tall - 4, y2: tall - 4, stroke: "var(--tw-line)" }),
          svg("line", { x1: 4, x2: w - 4, y1: y(k), y2: y(k), stroke: "var(--tw-line)", "stroke-dasharray": "2 3" }),
          svg("path", { d, fill: "none", stroke: "var(--tw-accepted)", "stroke-width": 1.6, opacity: 0.35 }),
          svg("path", {
            d: d
              .split("H")
              .slice(0, step + 2)
              .join("H"),
            fill: "none",
            stroke: "var(--tw-accepted)",
            "stroke-width": 2,
          }),
          svg("circle", {
            cx: x(ndist[step]),
            cy: y(found[step]),
            r: 4,
            fill: "var(--tw-accepted)",
            stroke: "var(--tw-paper)",
            "stroke-width": 1.5,
          }),
          svg("rect", { x: x(n) - 2.5, y: y(k) - 2.5, width: 5, height: 5, fill: "var(--tw-exact)" }),
        ),
        h("div", { class: "tw-vm-quiet" }, h("span", {}, "true neighbours found, by cost"), h("span", {}, "■ exact")),
      );
    }

    function drawHeaps(state) {
      const { trace, step } = state,
        w = box.side,
        tall = 92,
        metric = trace.subject.metric,
        { candidates, results } = memo.heaps,
        lists = Boolean(trace.arrays.cell);
      const left = lists ? memo.lists : candidates,
        truth = new Set(trace.arrays.truth),
        half = (w - 16) / 2,
        most = capacity(trace),
        show = (r) => shownDistance(metric, r.dist);
      const full = results.length >= most,
        kind = codes(trace),
        [from, to] = eventRange(trace, step),
        stopped = trace.events.kind.subarray(from, to).includes(kind.stopped);
      const fit = Math.floor(half / 3),
        some = left.slice(0, fit),
        every = [...some, ...results].map(show).filter(Number.isFinite);
      if (!every.length) {
        heaps.replaceChildren(
          h(
            "div",
            { class: "tw-vm-quiet" },
            h(
              "span",
              {},
              trace.events.kind.includes(kind.expanded)
                ? "The walk has not reached the lowest level yet."
                : "No list is open yet.",
            ),
          ),
        );
        return;
      }
      const low = Math.min(...every),
        high = Math.max(...every),
        base = low - 0.25 * Math.max(1e-9, high - low),
        y = (d) => tall - 2 - ((d - base) / Math.max(1e-9, high - base)) * (tall - 12);
      const bars = (rows, x0, draw) => {
        const pitch = Math.min(13, half / Math.max(1, rows.length));
        return rows.map((r, j) => draw(r, x0 + j * pitch + 0.5, Math.max(1, pitch - (pitch > 4 ? 2 : 0.8))));
      };
      const drawing = svg(
        "svg",
        { width: w, height: tall, viewBox: `0 0 ${w} ${tall}`, "aria-hidden": "true" },
        svg("line", { x1: 0, x2: half, y1: tall - 2, y2: tall - 2, stroke: "var(--tw-line)" }),
        svg("line", { x1: half + 16, x2: w, y1: tall - 2, y2: tall - 2, stroke: "var(--tw-line)" }),
        bars(some, 0, (r, x, wide) =>
          svg("rect", {
            x,
            y: y(show(r)),
            width: wide,
            height: Math.max(1, tall - 2 - y(show(r))),
            fill: r.opened ? "var(--tw-candidate)" : "var(--tw-paper)",
            stroke: "var(--tw-candidate)",
            "stroke-width": wide > 3 ? 1.3 : 0.7,
            "data-id": r.id,
          }),
        ),
        bars(results, half + 16, (r, x, wide) =>
          svg(
            "g",
            {},
            svg("rect", {
              x,
              y: y(show(r)),
              width: wide,
              height: Math.max(1, tall - 2 - y(show(r))),
              fill: truth.has(r.id) ? "var(--tw-accepted)" : "var(--tw-kept)",
              "data-id": r.id,
            }),
            truth.has(r.id) && wide > 4
              ? svg("circle", { cx: x + wide / 2, cy: y(show(r)) - 4, r: 2, fill: "none", stroke: "var(--tw-accepted)" })
              : null,
          ),
        ),
      );
      if (full && !lists && results.length) {
        const line = y(show(results[results.length - 1]));
        drawing.append(
          svg("line", {
            x1: 0,
            x2: w,
            y1: line,
            y2: line,
            stroke: "var(--tw-kept)",
            "stroke-width": 1.4,
            "stroke-dasharray": "5 4",
          }),
        );
      }
      const said = lists
        ? "A list is read whole; only the best k are held."
        : stopped
          ? "The nearest candidate lies above the line: stop."
          : full
            ? "Goes on while a candidate lies below the line."
            : `No line yet: fewer than ${most} results are held.`;
      heaps.replaceChildren(
        h(
          "div",
          { class: "tw-vm-line" },
          h(
            "span",
            {},
            lists
              ? h(
                  "span",
                  {},
                  h("b", {}, String(left.filter((l) => l.opened).length)),
                  ` of ${trace.arrays.centroid_xy ? trace.arrays.centroid_xy.length / 2 : left.length} lists open`,
                )
              : [h("b", {}, String(candidates.length)), " candidates"],
          ),
          h("span", { class: "tw-vm-half" }, h("b", {}, String(results.length)), ` of ${most} results`),
        ),
        drawing,
        h("div", { class: "tw-vm-quiet" }, h("span", {}, said)),
      );
    }

    function drawList(state) {
      const { trace } = state,
        truth = new Set(trace.arrays.truth),
        k = trace.arrays.truth.length,
        rows = memo.heaps.results.slice(0, Math.min(k, 8)),
        one = chosen(state);
      list.hidden = !trace.subject.labels;
      if (list.hidden) return;
      list.replaceChildren(
        h(
          "div",
          { class: "tw-vm-line" },
          h("span", {}, "nearest so far"),
          h("span", {}, DISTANCE_NAMES[trace.subject.metric] || "distance"),
        ),
        ...Array.from({ length: Math.min(k, 8) }, (_, j) => {
          const r = rows[j];
          return h(
            "div",
            { class: `tw-vm-row${r && r.id === one ? " tw-vm-here" : ""}`, onclick: () => r && ctx.select({ point: r.id }) },
            h("span", { class: "tw-vm-sign" }, r ? (truth.has(r.id) ? "◉" : "·") : ""),
            h("span", { class: "tw-vm-name" }, r ? nameOf(trace, r.id) : "–"),
            h("span", { class: "tw-vm-amount" }, r ? digits(shownDistance(trace.subject.metric, r.dist)) : ""),
          );
        }),
      );
    }

    const nearestPoint = (event) => {
      const frame = canvas.getBoundingClientRect(),
        x = event.clientX - frame.left,
        y = event.clientY - frame.top;
      let best = -1,
        least = 14 * 14;
      for (let i = 0; i < shownAt.points.length / 2; i++) {
        const d = (shownAt.points[2 * i] - x) ** 2 + (shownAt.points[2 * i + 1] - y) ** 2 - (memo.states[i] ? 30 : 0);
        if (d < least) {
          least = d;
          best = i;
        }
      }
      return best;
    };
    canvas.addEventListener("pointermove", (event) => {
      const i = nearestPoint(event);
      if (i !== hover) {
        hover = i;
        ctx.refresh("selection");
      }
      const frame = canvas.getBoundingClientRect();
      if (i >= 0)
        ctx.tip(
          pointWords(ctx.state().trace, ctx.state().step, i),
          frame.left + shownAt.points[2 * i],
          frame.top + shownAt.points[2 * i + 1],
        );
      else ctx.tip(null);
    });
    canvas.addEventListener("pointerleave", () => {
      hover = -1;
      ctx.refresh("selection");
    });
    canvas.addEventListener("click", (event) => {
      const i = nearestPoint(event);
      ctx.select(i >= 0 ? { point: i } : null);
    });

    return {
      move(by) {
        const state = ctx.state(),
          rows = [...memo.heaps.results, ...memo.heaps.candidates]
            .map((r) => r.id)
            .filter((id, i, all) => all.indexOf(id) === i);
        if (!rows.length) return;
        const at = rows.indexOf(chosen(state)),
          next = rows[at < 0 ? 0 : Math.max(0, Math.min(rows.length - 1, at + by))];
        ctx.select({ point: next });
        ctx.say(pointWords(state.trace, state.step, next));
      },
      draw(state, changed) {
        const { trace, step, width } = state,
          roomy = width >= 700;
        ctx.stage.classList.toggle("tw-vm-roomy", roomy);
        // a search that was seen to its end stays at the end when a dial picks another one
        if (changed.has("trace") && memo.atEnd && step < trace.steps - 1) ctx.setStep(trace.steps - 1);
        memo.atEnd = step === trace.steps - 1 || (changed.has("trace") && memo.atEnd);
        if (changed.has("trace")) memo.progress = progress(trace);
        if (changed.has("trace") || changed.has("step")) {
          memo.heaps = heapsAt(trace, step);
          memo.states = pointStates(trace, step);
          memo.lists = trace.arrays.cell ? listsAt(trace, step) : [];
        }
        if (["trace", "size", "settings"].some((name) => changed.has(name))) {
          const w = roomy ? width - 292 : width;
          box = { w, h: Math.round(Math.min(w * (roomy ? 0.86 : 0.95), 490)), side: roomy ? 264 : width };
          const next = positions(trace, layoutOf(state), box.w, box.h),
            same = target && target.layout === layoutOf(state);
          const glideFrom =
            target &&
            !same &&
            !ctx.reduced() &&
            shownAt &&
            shownAt.points.length === next.points.length &&
            shownAt.centre.length === next.centre.length
              ? shownAt
              : null;
          target = { layout: layoutOf(state) };
          legendBox.textContent =
            target.layout === "rings"
              ? `Distance from the cross is the true ${DISTANCE_NAMES[trace.subject.metric] || "distance"} to the query; around it, the order of the map.`
              : "First two principal components; distances on this map are not the true ones.";
          if (glideFrom) glide(glideFrom, next);
          else {
            cancelAnimationFrame(moving);
            shownAt = next;
          }
        }
        drawMap(state);
        if (["trace", "step", "size", "settings"].some((name) => changed.has(name))) {
          drawCounters(state);
          drawHeaps(state);
        }
        drawList(state);
      },
      destroy() {
        cancelAnimationFrame(moving);
      },
    };
  },
  keys(event, state, ctx, view) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return false;
    view.move(event.key === "ArrowDown" ? 1 : -1);
    return true;
  },
  readout(state) {
    const { trace, step } = state,
      { ndist, found } = progress(trace),
      k = trace.arrays.truth.length;
    const effort = ["ef", "nprobe"].filter((name) => name in trace.subject).map((name) => `${name} ${trace.subject[name]}`);
    return `${[trace.method, ...effort].join(", ")}: ${found[step]} of ${k} found with ${percent(ndist[step] / trace.arrays.true_dist.length)} of the distances`;
  },
  legend(state) {
    const lists = Boolean(state.trace.arrays.cell);
    return [
      { mark: "query", node: mark("M8 1v10M3 6h10", "query", true), label: "query" },
      { mark: "accepted", shape: "ring", label: "true neighbour" },
      { node: found(), label: "found" },
      ...(lists
        ? [
            { node: mark("M3.5 1.5h9v9h-9z", "candidate"), label: "centre of a list" },
            { node: mark("M3.5 1.5h9v9h-9z", "candidate", false, true), label: "opened" },
          ]
        : [
            { node: mark("M8 1.2L12.8 6 8 10.8 3.2 6z", "candidate"), label: "candidate" },
            { node: mark("M8 1.2L12.8 6 8 10.8 3.2 6z", "candidate", false, true), label: "expanded" },
          ]),
      {
        node: svg(
          "svg",
          { viewBox: "0 0 16 12", width: 16, height: 12, "aria-hidden": "true" },
          svg("circle", { cx: 8, cy: 6, r: 3.6, fill: "var(--tw-kept)" }),
        ),
        label: "held as a result",
      },
      {
        node: svg(
          "svg",
          { viewBox: "0 0 16 12", width: 16, height: 12, "aria-hidden": "true" },
          svg("circle", { cx: 8, cy: 6, r: 2.6, fill: "var(--tw-exact)" }),
        ),
        label: "measured",
      },
      ...(lists && state.settings.layout === "map" ? [] : [{ mark: "kept", shape: "dash", label: "worst result held" }]),
      ...(state.step === state.trace.steps - 1 && progress(state.trace).found[state.step] < state.trace.arrays.truth.length
        ? [{ mark: "rejected", shape: "cross", label: "missed" }]
        : []),
    ];
  },
  stepLabel: (state) => `step ${state.step} of ${state.trace.steps - 1}`,
});

function mark(d, colour, thick = false, filled = false) {
  return svg(
    "svg",
    { viewBox: "0 0 16 12", width: 16, height: 12, "aria-hidden": "true" },
    svg("path", {
      d,
      fill: filled ? `var(--tw-${colour})` : "none",
      stroke: `var(--tw-${colour})`,
      "stroke-width": thick ? 2.4 : 1.6,
    }),
  );
}

function found() {
  return svg(
    "svg",
    { viewBox: "0 0 16 12", width: 16, height: 12, "aria-hidden": "true" },
    svg("circle", { cx: 8, cy: 6, r: 5, fill: "none", stroke: "var(--tw-accepted)", "stroke-width": 1.6 }),
    svg("circle", { cx: 8, cy: 6, r: 2.7, fill: "var(--tw-accepted)" }),
  );
}
