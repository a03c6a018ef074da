// timeline: lanes and intervals. Who works when, what waits for whom, how full a memory is; below, the busy lanes or the
// words held against time. Intervals are painted pixel by pixel, so that many thousands of them pan and zoom.

// ------------------------------------------------------------------------------------------------------ display data
/** What an interval may be: [colour, pattern, counts as busy], as in tutor/schemas.py. */
export const INTERVALS = {
  work: ["kept", "fill", true], partial: ["candidate", "hatch", true], merge: ["accepted", "dots", true],
  wait: ["evicted", "hollow", false], held: ["kept", "fill", false], read: ["query", "back", true],
  write: ["approximate", "bars", true], draft: ["candidate", "back", true], verify: ["exact", "fill", true],
  wasted: ["rejected", "cross", true],
};
export const intervalTable = () => INTERVALS;
const WORDS = Object.keys(INTERVALS), BUSY = WORDS.map((word) => INTERVALS[word][2]);
const PATTERNS = ["fill", "hatch", "back", "dots", "bars", "cross", "hollow"];
const MOVES = { loaded: "load", stored: "store", made: "make", freed: "free" };
const COLOURS = 8;

/** `digits` decimals, exact halves to the even digit, as Python writes them. */
export function fixedEven(x, digits) {
  const scaled = x * 10 ** digits;
  const tie = scaled % 1 === 0.5 && (x * 2 ** (digits + 1)) % 1 === 0;
  return tie ? ((2 * Math.round(scaled / 2)) / 10 ** digits).toFixed(digits) : x.toFixed(digits);
}
/** 1234.5 as "1 234.5", as the sentences of tutor/schemas.py write it. */
export function amount(x) {
  const [whole, rest] = fixedEven(x, 2).split(".");
  return `${whole.replace(/\B(?=(\d{3})+$)/g, " ")}.${rest}`.replace(/0+$/, "").replace(/\.$/, "");
}
const share = (x) => `${fixedEven(100 * x, x >= 0.01 ? 0 : 1)} %`;

/** What is true of a whole trace, found once: kinds and groups that occur, busy time, end. */
const FACTS = new WeakMap();
function facts(trace) {
  if (!FACTS.has(trace)) {
    const { end, kind, group } = trace.arrays, kinds = new Set(kind);
    FACTS.set(trace, { end: end.reduce((a, b) => Math.max(a, b), 0), busy: busyTime(trace), used: WORDS.filter((_, i) => kinds.has(i)),
      groups: [...new Set(group)].filter((g) => g >= 0).sort((x, y) => x - y) });
  }
  return FACTS.get(trace);
}

/** When the last interval ends. */
export const lastEnd = (trace) => facts(trace).end;

/** Time spent on intervals that count as busy, until `upto`, all lanes together. */
export function busyTime(trace, upto = Infinity) {
  const { start, end, kind } = trace.arrays;
  let sum = 0;
  for (let i = 0; i < start.length; i++) if (BUSY[kind[i]]) sum += Math.max(0, Math.min(end[i], upto) - start[i]);
  return sum;
}

/** Lanes that are busy (or that wait) at a time. */
export function lanesAt(trace, time, waiting = false) {
  const { lane, start, end, kind } = trace.arrays, found = new Set(), wait = WORDS.indexOf("wait");
  for (let i = 0; i < lane.length; i++)
    if (start[i] <= time && time < end[i] && (waiting ? kind[i] === wait : BUSY[kind[i]])) found.add(lane[i]);
  return found.size;
}

/** Busy lanes over time: `at[j]` holds `count[j]` until `at[j + 1]`. */
export function busyProfile(trace) {
  const { start, end, kind } = trace.arrays, turns = new Map([[0, 0]]);
  for (let i = 0; i < start.length; i++) {
    if (!BUSY[kind[i]] || end[i] <= start[i]) continue;
    turns.set(start[i], (turns.get(start[i]) || 0) + 1);
    turns.set(end[i], (turns.get(end[i]) || 0) - 1);
  }
  const at = [...turns.keys()].sort((a, b) => a - b);
  let now = 0;
  return { at, count: at.map((time) => (now += turns.get(time))) };
}

/** The step whose moment is nearest to a time. */
export function stepAt(trace, time) {
  const at = trace.arrays.time;
  let best = 0;
  for (let i = 1; i < at.length; i++) if (Math.abs(at[i] - time) <= Math.abs(at[best] - time)) best = i;
  return best;
}

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/** The same sentence as `Trace.describe`. */
export function describeTimeline(trace, step) {
  const { arrays: a, subject: s, events: e } = trace, [first, last] = eventRange(trace, step);
  if (a.level) {
    const done = [];
    for (let i = first; i < last; i++) {
      const word = MOVES[trace.kinds[e.kind[i]]], label = s.labels && e.interval[i] >= 0 && s.labels[e.interval[i]];
      if (word) done.push(`${word} ${label || s.lanes[e.lane[i]]}${e.words[i] ? ` (${amount(e.words[i])} words)` : ""}`);
    }
    const room = s.capacity ? ` of ${amount(s.capacity)}` : "", total = a.moved ? `, ${amount(a.moved[step])} ${s.moved_label || "words moved"}` : "";
    return `Step ${step + 1} of ${trace.steps}: ${done.join(", ") || "nothing moves"}; ${amount(a.level[step])}${room} ${s.level_label || "words in fast memory"}${total}.`;
  }
  const time = a.time[step], whole = lastEnd(trace), used = time ? busyTime(trace, time) / (s.lanes.length * time) : 0;
  let text = `At ${amount(time)} of ${amount(whole)} ${s.unit}: `;
  if (time >= whole) return `${text}all is done; the ${s.lane_word}s were busy ${share(used)} of the time.`;
  text += `${lanesAt(trace, time)} of ${s.lanes.length} ${s.lane_word}s busy`;
  const waiting = lanesAt(trace, time, true), ended = trace.kinds.indexOf("ended"), partial = WORDS.indexOf("partial");
  if (waiting) text += `, ${waiting} waiting`;
  let handed = 0;
  for (let i = first; i < last; i++) handed += e.kind[i] === ended && a.kind[e.interval[i]] === partial;
  if (handed) text += `; ${plural(handed, "partial")} left for others`;
  return text + (time ? `; busy ${share(used)} of the time so far.` : ".");
}

const groupName = ({ subject: s }, g) => (s.groups && s.groups[g]) || `${s.group_word || "group"} ${g}`;

/** One interval in words. */
export function intervalWords(trace, i) {
  const { arrays: a, subject: s } = trace, word = WORDS[a.kind[i]], label = s.labels && s.labels[i];
  const what = [label, a.group[i] >= 0 ? groupName(trace, a.group[i]) : "", word === "work" ? "" : word,
    a.marked && a.marked[i] ? s.mark : ""].filter(Boolean).join(", ");
  let text = `${s.lanes[a.lane[i]]}: ${what || word}; ${s.unit} ${amount(a.start[i])} to ${amount(a.end[i])}`;
  for (let j = 0; a.arrows && j < a.arrows.length; j += 2)
    if (a.arrows[j] === i) text += `; ${s.arrow || "hands its result to"} ${s.lanes[a.lane[a.arrows[j + 1]]]}`;
  return text;
}

/**
 * Paint intervals into RGBA pixels (W x H, as 32-bit words). `view` maps a time and a lane to pixels: x0 + t * sx, y0 + lane * sy;
 * `look[i]` is a row of `tones` (4 a row: strong, light, and both as they stand for what is still to come); beyond `now` the
 * faint pair is taken. `unit` is one CSS pixel.
 */
export function paintIntervals(pixels, W, H, arrays, view, look, patterns, tones, now, unit = 1) {
  const { lane, start, end } = arrays, { x0, y0, sx, sy } = view, cut = Math.round(x0 + now * sx);
  for (let i = 0; i < lane.length; i++) {
    let left = Math.round(x0 + start[i] * sx), right = Math.round(x0 + end[i] * sx);
    if (right < 0 || left >= W) continue;
    let top = Math.round(y0 + lane[i] * sy), bottom = Math.round(y0 + (lane[i] + 1) * sy);
    if (bottom <= 0 || top >= H) continue;
    if (right - left >= 4 * unit) right -= unit;                    // a gap, so that neighbours can be told apart
    else right = Math.max(right, left + 1);
    if (bottom - top >= 4 * unit) bottom -= unit;
    else bottom = Math.max(bottom, top + 1);
    const fine = right - left >= 5 * unit && bottom - top >= 5 * unit, pattern = fine ? patterns[i] : 0;
    const l = Math.max(0, left), r = Math.min(W, right), b = Math.min(H, bottom), row = 4 * look[i];
    for (let y = Math.max(0, top); y < b; y++) {
      if (!pattern) {
        const at = y * W, middle = Math.min(r, Math.max(l, cut));
        if (middle > l) pixels.fill(tones[row], at + l, at + middle);
        if (r > middle) pixels.fill(tones[row + 2], at + middle, at + r);
        continue;
      }
      const v = Math.floor((y - top) / unit);
      for (let x = l; x < r; x++) {
        const u = Math.floor((x - left) / unit);
        let strong = false;
        if (pattern === 1) strong = (u + v) % 6 < 3;
        else if (pattern === 2) strong = (u - v + 6000) % 6 < 3;
        else if (pattern === 3) strong = u % 5 >= 1 && u % 5 < 4 && v % 5 >= 1 && v % 5 < 4;
        else if (pattern === 4) strong = u % 5 < 3;
        else if (pattern === 5) strong = (u + v) % 7 < 2 || (u - v + 7000) % 7 < 2;
        else strong = x < left + unit || x >= right - unit || y < top + unit || y >= bottom - unit;
        pixels[y * W + x] = tones[row + (x < cut ? 0 : 2) + (strong ? 0 : 1)];
      }
    }
  }
  return pixels;
}

/** Round times for a ruler: about `count` of them in [low, high]. */
export function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), base = 10 ** Math.floor(Math.log10(raw || 1)), out = [];
  const gap = base * ([1, 2, 5, 10].find((m) => m * base >= raw * 0.999) || 10);
  for (let i = Math.ceil(low / gap - 1e-9); i * gap <= high + gap * 1e-9; i++) out.push(Number((i * gap).toPrecision(12)));
  return out;
}

// ----------------------------------------------------------------------------------------------------------- drawing
const RULER = 24, PANEL = 62, RIGHT = 16;
const bytes = (colour) => { const n = parseInt(colour.slice(1), 16); return [n >> 16, (n >> 8) & 255, n & 255]; };
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));

/** A sample of a pattern for the legend; `colour` is the name of a CSS variable, so that it follows the theme. */
function sample(colour, pattern) {
  const c = `var(--tw-${colour})`, id = `tw-tl${Math.random().toString(36).slice(2)}`, lines = (d, width) => svg("path", { d, stroke: c, "stroke-width": width, fill: "none" });
  const slanted = (way) => Array.from({ length: 8 }, (_, i) => `M${-8 + 6 * i} ${way > 0 ? 12 : -1}l13 ${-13 * way}`).join("");
  const over = {
    fill: () => svg("rect", { width: 24, height: 12, fill: c }), hatch: () => lines(slanted(1), 2.2), back: () => lines(slanted(-1), 2.2),
    cross: () => lines(slanted(1) + slanted(-1), 1.3), bars: () => lines("M3 0v12M8 0v12M13 0v12M18 0v12M23 0v12", 2.6),
    dots: () => lines("M3 3h.1M8 3h.1M13 3h.1M18 3h.1M3 8h.1M8 8h.1M13 8h.1M18 8h.1", 3), hollow: () => svg("rect", { x: 0.75, y: 0.75, width: 20.5, height: 9.5, fill: "none", stroke: c, "stroke-width": 1.5 }),
  };
  const mark = over[pattern]();
  if (pattern === "dots") mark.setAttribute("stroke-linecap", "round");
  return svg("svg", { viewBox: "0 0 22 11", width: 22, height: 11, "aria-hidden": "true" },
    svg("clipPath", { id }, svg("rect", { width: 22, height: 11 })), svg("rect", { width: 22, height: 11, fill: c, opacity: pattern === "hollow" ? 0 : 0.3 }),
    svg("g", { "clip-path": `url(#${id})` }, mark));
}

/** Strong, light, and both faint, over a ground, as 32-bit pixels. */
function tonesOf(colour, ground) {
  const over = bytes(ground);
  return Uint32Array.from([1, 0.3, 0.22, 0.1], (share) => {
    const [r, g, b] = bytes(colour).map((c, i) => Math.round(share * c + (1 - share) * over[i]));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}

export default figure({
  name: "timeline",
  mount(ctx) {
    const canvas = h("canvas", { class: "tw-tl-canvas", "aria-hidden": "true" });
    const zoomButton = (label, text, f) => h("button", { type: "button", class: "tw-button tw-tl-zoom", "aria-label": label, title: label, onclick: f }, text);
    const zooms = h("div", { class: "tw-tl-zooms" }, zoomButton("Zoom in", "+", () => zoomBy(2)), zoomButton("Zoom out", "−", () => zoomBy(0.5)), zoomButton("Show all", "⤢", () => { look.z = 1; show(); }));
    const words = h("p", { class: "tw-tl-words" });
    ctx.stage.append(canvas, zooms, words);
    const look = { z: 1, x: 0, y: 0 };                       // zoom; time at the left, lane at the top
    let size = {}, styles = null, profile = null, over = -1, T = 1, image = null, atEnd = false;

    const state = () => ctx.state(), show = () => { hold(); ctx.refresh("look"); };
    const sx = () => (size.w / T) * look.z, sy = () => size.base * clamp(look.z, 1, Math.max(1, 22 / size.base));
    const chosen = () => { const s = state().selection; return s && Number.isInteger(s.interval) && s.interval < state().trace.arrays.lane.length ? s.interval : -1; };
    function hold() {
      look.z = clamp(look.z, 1, Math.max(1, T / 2));
      look.x = clamp(look.x, 0, Math.max(0, T - size.w / sx()));
      look.y = clamp(look.y, 0, Math.max(0, size.lanes - size.h / sy()));
    }
    function zoomBy(factor, px = null, py = null) {
      const one = chosen(), a = state().trace.arrays, now = a.time[state().step];
      px ??= clamp(((one < 0 ? now : (a.start[one] + a.end[one]) / 2) - look.x) * sx(), 0, size.w);
      py ??= one < 0 ? 0 : clamp((a.lane[one] + 0.5 - look.y) * sy(), 0, size.h);
      const t = look.x + px / sx(), lane = look.y + py / sy();
      look.z = clamp(look.z * factor, 1, Math.max(1, T / 2));
      look.x = t - px / sx();
      look.y = lane - py / sy();
      show();
    }

    function layout({ trace, width }) {
      const small = width < 520, pen = canvas.getContext("2d");
      pen.font = "12px system-ui, sans-serif";
      const names = trace.subject.lanes, widest = Math.max(...names.map((n) => pen.measureText(n).width));
      size = { lanes: names.length, g: Math.ceil(Math.min(widest + 10, small ? 76 : 132)), w: 0, panels: trace.arrays.moved ? 2 : 1 };
      size.w = Math.max(80, width - size.g - RIGHT);
      size.max = trace.arrays.level ? (small ? 220 : 260) : small ? 300 : 420;
      size.base = clamp(size.max / size.lanes, 1, size.lanes > 12 ? 20 : 28);
      size.h = Math.round(Math.min(size.max, size.base * size.lanes));
      size.tall = RULER + size.h + size.panels * PANEL + 4;
      T = Math.max(lastEnd(trace), trace.arrays.time[trace.steps - 1] + (trace.arrays.level ? 1 : 0)) || 1;
    }

    /** Colours, patterns and which of them each interval takes: once per trace, theme and chosen group. */
    function dress({ trace }) {
      const { arrays: a, subject: s } = trace, n = a.lane.length, one = chosen(), alone = one < 0 ? -1 : a.group[one];
      const byGroup = (s.colour || (a.group.some((g) => g >= 0) ? "group" : "kind")) === "group";
      const names = byGroup ? [...Array.from({ length: COLOURS }, (_, i) => `s${i}`), "muted"] : WORDS.map((word) => INTERVALS[word][0]);
      const tones = new Uint32Array(8 * names.length);
      names.forEach((name, i) => {
        const four = tonesOf(ctx.colour(name), ctx.colour("soft"));
        tones.set(four, 8 * i);
        tones.set([four[2], four[3], four[2], four[3]], 8 * i + 4);          // pushed back: another group is chosen
      });
      const rows = new Uint16Array(n), patterns = new Uint8Array(n), of = WORDS.map((word) => PATTERNS.indexOf(INTERVALS[word][1]));
      for (let i = 0; i < n; i++) {
        const tone = byGroup ? (a.group[i] < 0 ? COLOURS : a.group[i] % COLOURS) : a.kind[i];
        rows[i] = 2 * tone + (alone >= 0 && a.group[i] !== alone);
        patterns[i] = of[a.kind[i]];
      }
      styles = { rows, patterns, tones, names, byGroup };
    }

    function drawRuler(pen, low, high) {
      pen.textAlign = "center";
      pen.textBaseline = "alphabetic";
      for (const t of ticks(low, high, size.w / 80)) {
        const x = size.g + (t - look.x) * sx();
        pen.fillStyle = ctx.colour("line");
        pen.fillRect(x, RULER - 4, 1, 4);
        pen.fillStyle = ctx.colour("muted");
        const text = amount(t), half = pen.measureText(text).width / 2;
        pen.fillText(text, clamp(x, size.g + half, size.g + size.w + RIGHT - half), RULER - 9);
      }
    }

    function drawNames(pen, names) {
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      const every = Math.ceil(14 / sy());
      for (let i = Math.floor(look.y); i < Math.min(names.length, look.y + size.h / sy()); i++) {
        const y = RULER + (i + 0.5 - look.y) * sy();
        if (i % every || y < RULER + 5 || y > RULER + size.h - 3) continue;
        pen.fillStyle = ctx.colour("muted");
        let name = names[i];
        while (name.length > 2 && pen.measureText(name).width > size.g - 8) name = `${name.slice(0, -2)}…`;
        pen.fillText(name, size.g - 7, y);
      }
    }

    /** Outlines, words inside, the chosen one: only where there is room for them. */
    function drawDetails(pen, trace, now) {
      const { lane, start, end, group, marked, kind } = trace.arrays, labels = trace.subject.labels, tall = sy(), one = chosen();
      const paper = ctx.colour("paper"), ink = ctx.colour("ink"), left = look.x, right = look.x + size.w / sx(), bottom = look.y + size.h / tall;
      pen.textAlign = "left";
      pen.textBaseline = "middle";
      pen.font = `${clamp(tall - 5, 9, 12)}px system-ui, sans-serif`;
      const detailed = tall >= 12;
      for (let i = 0; i < lane.length; i++) {
        if (end[i] < left || start[i] > right || lane[i] + 1 < look.y || lane[i] > bottom) continue;
        const x = size.g + (start[i] - look.x) * sx(), w = (end[i] - start[i]) * sx(), y = RULER + (lane[i] - look.y) * tall;
        if (marked && marked[i] && w >= 5 && tall >= 5) {
          pen.strokeStyle = ink;
          pen.globalAlpha = start[i] < now ? 1 : 0.3;
          pen.lineWidth = 1.5;
          pen.strokeRect(x + 0.75, y + 0.75, w - 2.5, tall - 2.5);
          pen.globalAlpha = 1;
        }
        if (i === one || i === over) {
          pen.strokeStyle = i === one ? ctx.colour("query") : ink;
          pen.lineWidth = 2;
          pen.strokeRect(x, y, Math.max(w - 1, 2), Math.max(tall - 1, 2));
        }
        if (!detailed || w < 14) continue;
        const seen = clamp(x, size.g, size.g + size.w), room = Math.min(x + w, size.g + size.w) - seen - 7;
        const named = styles.byGroup && group[i] >= 0 && !styles.patterns[i], number = named && !trace.arrays.level;
        const texts = [labels && labels[i], named && groupName(trace, group[i]), number && String(group[i])];
        const text = texts.find((t) => t && pen.measureText(t).width <= room);
        if (!text) continue;
        const wide = pen.measureText(text).width;
        const cut = size.g + (now - look.x) * sx(), split = cut > seen + 4 && cut < seen + 4 + wide, middle = y + (tall - 1) / 2 + 0.5;
        const plain = INTERVALS[WORDS[kind[i]]][1] === "fill" && !split;
        if (!plain) {                                                // a patch of paper, so that the words stand still
          pen.fillStyle = paper;
          pen.globalAlpha = 0.86;
          pen.fillRect(seen + 2, y + 2, wide + 4, tall - 5);
          pen.globalAlpha = 1;
        }
        pen.fillStyle = plain && cut > seen && styles.rows[i] % 2 === 0 ? paper : ink;
        pen.fillText(text, seen + 4, middle);
      }
      pen.font = "12px system-ui, sans-serif";
    }

    function drawArrows(pen, trace, now) {
      const { arrows, lane, start, end, group } = trace.arrays, one = chosen();
      if (!arrows) return;
      const many = arrows.length > 240, colour = ctx.colour("ink");
      for (let j = 0; j < arrows.length; j += 2) {
        const from = arrows[j], to = arrows[j + 1], mine = one >= 0 && group[from] === group[one];
        if (!mine && (one >= 0 || (many && sy() < 8))) continue;
        const tx = start[to] >= end[from] - 1e-6 ? start[to] : Math.max(end[to], end[from]);
        const x1 = size.g + (end[from] - look.x) * sx(), x2 = size.g + (tx - look.x) * sx();
        const y1 = RULER + (lane[from] + 0.5 - look.y) * sy(), y2 = RULER + (lane[to] + 0.5 - look.y) * sy();
        if (Math.max(x1, x2) < size.g - 20 || Math.min(x1, x2) > size.g + size.w + 20) continue;
        pen.strokeStyle = pen.fillStyle = colour;
        pen.globalAlpha = (end[from] <= now ? 1 : 0.25) * (mine ? 1 : many ? 0.45 : 0.8);
        pen.lineWidth = mine ? 1.8 : 1.1;
        const bend = x2 - x1 > 16 ? 0 : 9;
        pen.beginPath();
        pen.moveTo(x1 - 1, y1);
        const reach = clamp(sy() / 4, 2.5, 4.5), back = bend ? 1 : -1, neck = x2 + 1.6 * reach * back;   // the head points into the target
        if (bend) pen.bezierCurveTo(x1 + bend, y1, neck + bend, y2, neck, y2);
        else pen.bezierCurveTo((x1 + x2) / 2, y1, (x1 + x2) / 2, y2, neck, y2);
        pen.stroke();
        pen.beginPath();
        pen.moveTo(x2, y2);
        pen.lineTo(neck, y2 - reach);
        pen.lineTo(neck, y2 + reach);
        pen.fill();
        pen.globalAlpha = 1;
      }
    }

    /** A stepped line over the times `at`, filled, with the line it may not cross. */
    function drawPanel(pen, top, { at, values, most, limit, label, now, head, colour, dashed }) {
      const floor = top + PANEL - 8, room = PANEL - 30, high = Math.max(most, limit || 0) || 1;
      const y = (v) => floor - (v / high) * room, x = (t) => size.g + (t - look.x) * sx(), right = size.g + size.w;
      pen.textBaseline = "alphabetic";
      pen.textAlign = "left";
      pen.fillStyle = ctx.colour("muted");
      pen.fillText(label, size.g, top + 13);
      let i = 0;
      for (let j = 0; j < at.length && at[j] <= now + 1e-9; j++) i = j;
      pen.textAlign = "right";
      pen.fillStyle = ctx.colour("ink");
      pen.fillText(amount(values[i]) + (limit ? ` of ${amount(limit)}` : ""), right, top + 13);
      const trail = new Path2D();
      let start = -1, last = -1, peak = -Infinity, px = -1;
      for (let j = 0; j < at.length; j++) {
        const until = j + 1 < at.length ? at[j + 1] : T;
        if (until < look.x || at[j] > look.x + size.w / sx()) continue;
        const x1 = clamp(x(at[j]), size.g, right), x2 = clamp(x(until), size.g, right);
        if (start < 0) { start = x1; trail.moveTo(x1, y(values[j])); }
        peak = Math.max(peak, values[j]);
        if (x2 - px < 0.75 && j + 1 < at.length) continue;                    // many steps in one pixel: the highest
        trail.lineTo(x1, y(peak));
        trail.lineTo(x2, y(peak));
        peak = -Infinity;
        last = px = x2;
      }
      if (start >= 0) {
        const area = new Path2D(trail), cut = clamp(x(head), size.g, right);
        area.lineTo(last, floor);
        area.lineTo(start, floor);
        for (const [from, to, alpha] of [[size.g, cut, 1], [cut, right, 0.3]]) {
          pen.save();
          pen.beginPath();
          pen.rect(from, top + 16, to - from, PANEL - 20);
          pen.clip();
          pen.fillStyle = pen.strokeStyle = ctx.colour(colour);
          pen.globalAlpha = 0.16 * alpha;
          pen.fill(area);
          pen.globalAlpha = alpha;
          pen.lineWidth = 1.6;
          pen.setLineDash(dashed ? [5, 2] : []);
          pen.stroke(trail);
          pen.restore();
        }
      }
      pen.fillStyle = ctx.colour("line");
      pen.fillRect(size.g, floor, size.w, 1);
      if (limit) {
        pen.strokeStyle = ctx.colour("rejected");
        pen.setLineDash([4, 3]);
        pen.lineWidth = 1.2;
        pen.beginPath();
        pen.moveTo(size.g, y(limit));
        pen.lineTo(right, y(limit));
        pen.stroke();
        pen.setLineDash([]);
      }
      if (head >= look.x - 1e-9 && head <= look.x + size.w / sx() + 1e-9) {
        pen.fillStyle = ctx.colour("ink");
        pen.beginPath();
        pen.arc(x(head), y(values[i]), 3.2, 0, 7);
        pen.fill();
      }
    }

    // pointers: hover reads, a click chooses, a drag scrubs (on the lanes: pans once zoomed in), wheel and fingers zoom
    const fingers = new Map();
    let moved = 0, gap = 0, scrubbing = false;
    const spot = (event) => {
      const box = canvas.getBoundingClientRect(), px = event.clientX - box.left - size.g, py = event.clientY - box.top - RULER;
      return { px, py, time: look.x + px / sx(), lane: Math.floor(look.y + py / sy()), inLanes: py >= 0 && py < size.h };
    };
    function hit({ px, time, lane, inLanes }) {
      if (!inLanes || px < 0) return -1;
      const { lane: lanes, start, end } = state().trace.arrays, slack = 2 / sx();
      let near = -1;
      for (let i = 0; i < lanes.length; i++) {
        if (lanes[i] !== lane) continue;
        if (start[i] <= time && time < end[i]) return i;
        if (start[i] - slack <= time && time < end[i] + slack) near = i;
      }
      return near;
    }
    const scrub = (event) => ctx.setStep(stepAt(state().trace, clamp(spot(event).time, 0, T)));
    canvas.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      moved = gap = 0;
      scrubbing = !spot(event).inLanes || look.z === 1;
      canvas.setPointerCapture(event.pointerId);
      if (!spot(event).inLanes) scrub(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (before) {
        const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
        moved += Math.abs(dx) + Math.abs(dy);
        fingers.set(event.pointerId, event);
        const [one, two] = [...fingers.values()];
        if (two) {
          const now = Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY), box = canvas.getBoundingClientRect();
          if (gap) zoomBy(now / gap, (one.clientX + two.clientX) / 2 - box.left - size.g, (one.clientY + two.clientY) / 2 - box.top - RULER);
          gap = now;
        } else if (moved > 4) {
          ctx.tip(null);
          if (scrubbing) scrub(event);
          else { look.x -= dx / sx(); look.y -= dy / sy(); show(); }
        }
        return;
      }
      const i = hit(spot(event));
      if (i >= 0) ctx.tip(intervalWords(state().trace, i), event.clientX, event.clientY);
      else ctx.tip(null);
      if (i !== over) { over = i; ctx.refresh("hover"); }
    });
    const lift = (event) => {
      const at = spot(event);
      if (event.type === "pointerup" && moved <= 4 && at.inLanes) { const i = hit(at); choose(i === chosen() ? -1 : i); }
      fingers.delete(event.pointerId);
      gap = 0;
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointerleave", () => { if (over >= 0) { over = -1; ctx.refresh("hover"); } });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !ctx.root.contains(document.activeElement)) return;   // a passing scroll stays a scroll
      event.preventDefault();
      const { px, py } = spot(event);
      zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0022)), px, py);
    }, { passive: false });

    function choose(i) {
      ctx.select(i < 0 ? null : { interval: i, group: state().trace.arrays.group[i], lane: state().trace.arrays.lane[i] });
    }

    return {
      zoomBy, choose,
      all() { look.z = 1; show(); },
      pan(dx, dy) { look.x += (dx * size.w) / 8 / sx(); look.y += (dy * size.h) / 8 / sy(); show(); },
      /** The next interval in order of time: chosen, brought to the playhead, told. */
      walk(by) {
        const { start, lane, end } = state().trace.arrays, order = Array.from(start, (_, i) => i).sort((a, b) => start[a] - start[b] || lane[a] - lane[b]);
        const now = order.indexOf(chosen()), next = order[clamp(now < 0 ? (by > 0 ? 0 : order.length - 1) : now + by, 0, order.length - 1)];
        choose(next);
        if (end[next] < look.x || start[next] > look.x + size.w / sx()) look.x = start[next];
        hold();
        const text = intervalWords(state().trace, next);
        requestAnimationFrame(() => requestAnimationFrame(() => ctx.say(`${text}.`)));
      },
      draw(now, changed) {
        const { trace, width } = now;
        if (changed.has("trace") && atEnd && now.step < trace.steps - 1) ctx.setStep(trace.steps - 1);   // all done: stay there
        const step = now.step;
        atEnd = step === trace.steps - 1;
        if (changed.has("trace")) { look.z = 1; over = -1; const { at, count } = busyProfile(trace); profile = { at, values: count }; }
        if (changed.has("trace") || changed.has("size")) { layout(now); hold(); }
        if (changed.has("trace") || changed.has("theme") || changed.has("selection") || !styles) dress(now);
        const { arrays: a, subject: s } = trace, time = a.time[step], pen = fitCanvas(canvas, width, size.tall), ratio = canvas.width / width;
        // the playhead of a memory stands behind the move that was just made
        const head = a.level ? time + 1 : time;
        pen.clearRect(0, 0, width, size.tall);
        pen.font = "12px system-ui, sans-serif";
        const W = Math.round((size.w + 1) * ratio), H = Math.round(size.h * ratio);
        if (!image || image.width !== W || image.height !== H) image = pen.createImageData(W, H);
        const pixels = new Uint32Array(image.data.buffer), [r, g, b] = bytes(ctx.colour("soft"));
        pixels.fill(((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
        paintIntervals(pixels, W, H, a, { x0: -look.x * sx() * ratio, y0: -look.y * sy() * ratio, sx: sx() * ratio, sy: sy() * ratio },
          styles.rows, styles.patterns, styles.tones, head, ratio);
        pen.putImageData(image, Math.round(size.g * ratio), Math.round(RULER * ratio));
        drawRuler(pen, look.x, look.x + size.w / sx());
        drawNames(pen, s.lanes);
        pen.save();
        pen.beginPath();
        pen.rect(size.g - 1, RULER - 2, size.w + RIGHT + 1, size.h + 4);
        pen.clip();
        drawArrows(pen, trace, head);
        drawDetails(pen, trace, head);
        pen.restore();
        const level = a.level
          ? { at: a.time, values: a.level, most: Math.max(...peaks(a.level)), limit: s.capacity, label: s.level_label || "words in fast memory", now: time }
          : { ...profile, most: s.lanes.length, limit: s.lanes.length, label: `busy ${s.lane_word}s`, now: time };
        drawPanel(pen, RULER + size.h, { ...level, head, colour: "kept" });
        if (a.moved) drawPanel(pen, RULER + size.h + PANEL, { at: a.time, values: a.moved, most: a.moved[trace.steps - 1], label: s.moved_label || "words moved", now: time, head, colour: "exact", dashed: true });
        const x = size.g + (head - look.x) * sx();
        if (x >= size.g - 1 && x <= size.g + size.w + 1) {
          pen.fillStyle = ctx.colour("ink");
          pen.fillRect(x - 0.75, RULER - 6, 1.5, size.tall - RULER + 2);
          pen.beginPath();
          pen.moveTo(x - 5, RULER - 8);
          pen.lineTo(x + 5, RULER - 8);
          pen.lineTo(x, RULER - 1);
          pen.fill();
        }
        const one = chosen();
        words.textContent = one >= 0 ? `${intervalWords(trace, one)}.` : "";
        words.hidden = one < 0;
        canvas.style.touchAction = look.z > 1 ? "none" : "pan-y";
        zooms.hidden = T < 3 && a.lane.length < 40;
      },
    };
  },
  describe: describeTimeline,
  keys(event, state, ctx, view) {
    const act = {
      "+": () => view.zoomBy(2), "=": () => view.zoomBy(2), "-": () => view.zoomBy(0.5), "_": () => view.zoomBy(0.5), 0: () => view.all(),
      ArrowUp: () => (event.shiftKey ? view.pan(0, -1) : view.walk(-1)), ArrowDown: () => (event.shiftKey ? view.pan(0, 1) : view.walk(1)),
      Escape: () => view.choose(-1),
    }[event.key] || (event.shiftKey && { ArrowLeft: () => view.pan(-1, 0), ArrowRight: () => view.pan(1, 0) }[event.key]);
    if (!act) return false;
    act();
    return true;
  },
  readout({ trace, step }) {
    const { arrays: a, subject: s } = trace;
    if (a.level) return `${amount(a.level[step])}${s.capacity ? ` of ${amount(s.capacity)}` : ""} held${a.moved ? `, ${amount(a.moved[step])} moved` : ""}`;
    const whole = lastEnd(trace);
    return `${amount(whole)} ${s.unit} long, ${s.lane_word}s ${share(facts(trace).busy / (s.lanes.length * whole || 1))} busy`;
  },
  legend({ trace }) {
    const { arrays: a, subject: s } = trace, { used, groups } = facts(trace), keys = [];
    const byGroup = (s.colour || (groups.length ? "group" : "kind")) === "group";
    if (byGroup && groups.length <= 6) for (const g of groups) keys.push({ node: sample(`s${g % COLOURS}`, "fill"), label: groupName(trace, g) });
    else if (byGroup) keys.push({ node: sample("s0", "fill"), label: `colour: ${s.group_word || "group"}` });
    if (!byGroup || used.length > 1) for (const word of used) keys.push({ node: sample(byGroup ? "muted" : INTERVALS[word][0], INTERVALS[word][1]), label: word });
    if (a.marked && s.mark) keys.push({ mark: "ink", shape: "square", label: s.mark });
    if (a.arrows) keys.push({ mark: "ink", shape: "line", label: `arrow: ${s.arrow || "hands its result to"} …` });
    if (a.level && s.capacity) keys.push({ mark: "rejected", shape: "dash", label: `room: ${amount(s.capacity)}` });
    return keys;
  },
  stepLabel: ({ trace, step }) => (trace.arrays.level ? `${step + 1} of ${trace.steps}` : `${amount(trace.arrays.time[step])} of ${amount(lastEnd(trace))}`),
});

/** Chunk-wise maxima: Math.max takes only so many arguments. */
function peaks(values) {
  const out = [];
  for (let i = 0; i < values.length; i += 4096) out.push(Math.max(...values.subarray(i, i + 4096)));
  return out;
}
