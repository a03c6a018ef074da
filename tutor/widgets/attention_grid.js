// attention_grid: queries down, keys across. Zoomed out it draws sums over blocks, zoomed in the exact cells, both from
// the recorded int8 rows, in tiles that are computed when they come into view and kept.

const TILE = 64;                  // a tile has TILE x TILE cells, each a block of 1, 2, 4 … queries and keys
const EXACT_BLOCK = 8;            // larger blocks are drawn from the recorded overview
const BUDGET = 5;                 // milliseconds of tile arithmetic in one frame
const MOST_TILES = 1600;
const HELD = 2.4e6;               // probabilities held in memory (8 bytes each)

const firstPosition = (trace) => trace.subject.first || 0;
export const headOf = (trace, settings = {}) => settings.head ?? trace.subject.head ?? 0;

/** Attention probabilities of keys from..to-1 (cut at the row's own position) for one query row. */
export function rowProbabilities(trace, head, row, from = 0, to = Infinity) {
  const { q, k, q_scale, k_scale, kv_of, lse } = trace.arrays;
  const T = q.shape[1], S = k.shape[1], D = q.shape[2], kv = kv_of[head];
  const end = Math.min(to, firstPosition(trace) + row + 1, S);
  const out = new Float64Array(Math.max(0, end - from));
  const queryAt = (head * T + row) * D, scale = q_scale[head * T + row], log = lse[head * T + row];
  for (let j = from, keyAt = (kv * S + from) * D; j < end; j++, keyAt += D) {
    let dot = 0;
    for (let d = 0; d < D; d++) dot += q[queryAt + d] * k[keyAt + d];
    out[j - from] = Math.exp(dot * (scale * k_scale[kv * S + j]) - log);
  }
  return out;
}

/** 1 for the keys that the dials keep: the `keep` most probable, the first `sinks`, the last `window`. `order`: see topk. */
export function keepMask(p, { keep = 0, sinks = 0, window: last = 0 }, order = null) {
  const mask = new Uint8Array(p.length), ranked = order || (keep ? topk(p, keep) : []);
  for (let i = 0; i < Math.min(keep, ranked.length); i++) mask[ranked[i]] = 1;
  mask.fill(1, 0, Math.min(sinks, p.length));
  if (last > 0) mask.fill(1, Math.max(0, p.length - last));
  return mask;
}

/** Share of a row's attention in each cell of the recorded overview of one head. */
export function overviewMass(trace, head) {
  const n = trace.arrays.overview.shape[1], cells = trace.arrays.overview.subarray(head * n * n, (head + 1) * n * n);
  const out = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let j = 0; j < n; j++) sum += out[i * n + j] = (cells[i * n + j] / 255) ** 2;
    for (let j = 0; j < n; j++) out[i * n + j] /= Math.max(sum, 1e-30);
  }
  return out;
}

/** The sentence of a step; equals Trace.describe in Python. */
export function describeGrid(trace, step, settings = {}) {
  const head = headOf(trace, settings), p = rowProbabilities(trace, head, step), where = trace.subject.heads[head];
  const words = topk(p, 3).map((j) => `${tokenName(trace, j)} (${percent(p[j])})`).join(", ");
  return `Layer ${where.layer}, head ${where.head}: query ${tokenName(trace, firstPosition(trace) + step)} looks most at ${words}.`;
}

/** Rows of one head, kept once computed: probabilities, their order, and what the dials keep. */
export class GridRows {
  constructor(trace, head) {
    this.trace = trace; this.head = head;
    this.T = trace.arrays.q.shape[1]; this.S = trace.arrays.k.shape[1];
    this.most = Math.max(64, Math.floor(HELD / this.S));
    this.whole = this.T * this.S <= HELD;             // every row fits, so that blocks can be told kept from dropped
    this.rows = new Map();
    const { indptr } = trace.arrays;
    this.recorded = Boolean(indptr);
  }
  get(row) {
    let found = this.rows.get(row);
    if (found) return found;
    if (this.rows.size >= this.most) this.rows.delete(this.rows.keys().next().value);
    found = { p: rowProbabilities(this.trace, this.head, row), order: null, key: null, mask: null };
    this.rows.set(row, found);
    return found;
  }
  active(settings) { return Boolean(settings.keep || settings.sinks || settings.window) || this.recorded; }
  /** Mask of kept keys of a row, or null while nothing is dropped. */
  mask(row, settings) {
    if (!this.active(settings)) return null;
    const found = this.get(row), key = `${settings.keep || 0} ${settings.sinks || 0} ${settings.window || 0}`;
    if (found.key === key) return found.mask;
    if (key === "0 0 0") {
      const { indptr, indices } = this.trace.arrays, at = this.head * this.T + row;
      found.mask = new Uint8Array(found.p.length);
      for (let i = indptr[at]; i < indptr[at + 1]; i++) found.mask[indices[i]] = 1;
    } else {
      if (settings.keep && !found.order) found.order = Uint32Array.from(topk(found.p, found.p.length));
      found.mask = keepMask(found.p, settings, found.order);
    }
    found.key = key;
    return found.mask;
  }
  mass(row, settings) { const mask = this.mask(row, settings); return mask ? keptMass(this.get(row).p, mask) : 1; }
  /** Mean kept mass over all rows, or over `most` evenly spaced ones: [mean, rows used]. */
  meanMass(settings, most = this.S > 2048 ? 64 : 512) {
    const count = Math.min(this.T, Math.min(most, this.most));
    let sum = 0;
    for (let i = 0; i < count; i++) sum += this.mass(Math.floor((i * this.T) / count), settings);
    return [sum / count, count];
  }
}

/** Shares of the row's attention in the cells of one tile: cell = mean over its queries of the sum over its keys. */
export function tileMass(trace, head, tile, from = 0, to = TILE, out = new Float32Array(TILE * TILE)) {
  const { bx, by, tx, ty } = tile, T = trace.arrays.q.shape[1];
  for (let r = from; r < to; r++) {
    const top = (ty * TILE + r) * by, bottom = Math.min(T, top + by);
    for (let row = top; row < bottom; row++) {
      const left = tx * TILE * bx, p = rowProbabilities(trace, head, row, left, left + TILE * bx);
      for (let j = 0; j < p.length; j++) out[r * TILE + Math.floor(j / bx)] += p[j] / (bottom - top);
    }
  }
  return out;
}

/** Share of each cell's attention that lies on kept keys; cells without attention count as kept. */
export function tileKept(rows, tile, settings) {
  const { bx, by, tx, ty } = tile, kept = new Float32Array(TILE * TILE), total = new Float32Array(TILE * TILE);
  const top = ty * TILE * by, left = tx * TILE * bx;
  for (let row = top; row < Math.min(rows.T, top + TILE * by); row++) {
    const { p } = rows.get(row), mask = rows.mask(row, settings), line = Math.floor((row - top) / by) * TILE;
    for (let j = left; j < Math.min(p.length, left + TILE * bx); j++) {
      const at = line + Math.floor((j - left) / bx);
      total[at] += p[j];
      if (!mask || mask[j]) kept[at] += p[j];
    }
  }
  return kept.map((v, at) => (total[at] > 0 ? v / total[at] : 1));
}
/** The same from a trace, for tests. */
export const tileKeptOf = (trace, head, tile, settings) => tileKept(new GridRows(trace, head), tile, settings);

const block = (pixels) => { let b = 1; while (b * pixels < 1) b *= 2; return b; };
const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
const word = (trace, j) => { const t = (trace.subject.tokens || [])[j]; return t === undefined ? "" : t.trim() || t.replace(/\n/g, "↵").replace(/ /g, "␣"); };
const cut = (text, n) => (text.length > n ? `${text.slice(0, n - 1)}…` : text);

export default figure({
  name: "attention_grid",
  describe: describeGrid,

  mount(ctx) {
    const map = h("canvas", { class: "tw-grid-map", "aria-hidden": "true" });
    const profile = h("canvas", { class: "tw-grid-profile", "aria-hidden": "true" });
    const zoomButton = (label, text, f) => h("button", { type: "button", class: "tw-button tw-zoom", "aria-label": label, title: label, onclick: f }, text);
    const zooms = h("div", { class: "tw-zooms" }, zoomButton("Zoom in", "+", () => zoomBy(2)), zoomButton("Zoom out", "−", () => zoomBy(0.5)), zoomButton("Show all", "⤢", () => { look.z = 1; show(); }));
    const context = h("p", { class: "tw-grid-context" });
    const list = h("ol", { class: "tw-grid-words" });
    const side = h("div", { class: "tw-grid-side" }, context, list);
    ctx.stage.append(h("div", { class: "tw-grid" }, h("div", { class: "tw-grid-main" }, map, profile, zooms), side));

    const look = { z: 1, x: 0, y: 0 };             // zoom; query and key at the top left corner
    const size = { left: 52, w: 0, h: 0, bars: 52, foot: 44 };
    let rows = null, head = -1, T = 1, S = 1, first = 0, tiles = new Map(), jobs = [], over = null, luts = null, pump = 0;
    let mean = { key: null, value: [1, 0] };

    const state = () => ctx.state();
    const scaleX = () => (look.z * size.w) / S, scaleY = () => (look.z * size.h) / T;
    const most = () => Math.max(1, 44 / Math.min(size.w / S, size.h / T));
    function hold() {
      look.z = clamp(look.z, 1, most());
      look.x = clamp(look.x, 0, S - size.w / scaleX());
      look.y = clamp(look.y, 0, T - size.h / scaleY());
    }
    function show() { hold(); ctx.refresh("look"); }
    function zoomBy(factor, px = null, py = null) {          // about a point, or about the chosen query's own place
      if (px === null) px = clamp((first + state().step + 0.5 - look.x) * scaleX(), 0, size.w);
      if (py === null) py = clamp((state().step + 0.5 - look.y) * scaleY(), 0, size.h);
      const kx = look.x + px / scaleX(), ky = look.y + py / scaleY();
      look.z = clamp(look.z * factor, 1, most());
      look.x = kx - px / scaleX(); look.y = ky - py / scaleY();
      show();
    }
    function follow(step) {                          // keep the chosen row in sight
      const tall = size.h / scaleY();
      if (step < look.y || step + 1 > look.y + tall) look.y = step + 0.5 - tall / 2;
      hold();
    }

    // tiles
    const maskKey = (settings) => (rows.active(settings) ? `${settings.keep || 0} ${settings.sinks || 0} ${settings.window || 0}` : "");
    function tileAt(bx, by, tx, ty) {
      const key = `${bx} ${by} ${tx} ${ty}`;
      let tile = tiles.get(key);
      if (!tile) {
        if (tiles.size >= MOST_TILES) tiles.delete(tiles.keys().next().value);
        tile = { bx, by, tx, ty, mass: new Float32Array(TILE * TILE), next: 0, canvas: null, look: null };
        tiles.set(key, tile);
      }
      return tile;
    }
    const done = (tile) => tile.next >= TILE;
    function work() {
      pump = 0;
      const until = performance.now() + BUDGET;
      while (jobs.length && performance.now() < until) {
        const tile = jobs[jobs.length - 1];
        tileMass(state().trace, head, tile, tile.next, tile.next + 1, tile.mass);
        tile.next++;
        if (done(tile)) jobs.pop();
      }
      ctx.refresh("look");
    }
    function paintTile(tile, settings, theme) {
      const masked = rows.whole || (tile.bx === 1 && tile.by === 1) ? maskKey(settings) : "", want = `${theme} ${masked}`;
      if (tile.look === want) return tile.canvas;
      tile.canvas = tile.canvas || Object.assign(document.createElement("canvas"), { width: TILE, height: TILE });
      const context = tile.canvas.getContext("2d"), image = context.createImageData(TILE, TILE);
      const kept = masked ? tileKept(rows, tile, settings) : null;
      for (let r = 0; r < TILE; r++) {
        const row = tile.ty * TILE + r;
        for (let c = 0; c < TILE; c++) {
          const j = tile.tx * TILE + c, at = r * TILE + c, v = Math.round(255 * shadeOf(tile.mass[at]));
          const future = j * tile.bx > first + Math.min(T - 1, row * tile.by + tile.by - 1);
          const f = kept ? kept[at] : 1;
          for (let i = 0; i < 3; i++) image.data[4 * at + i] = f * luts.blue[3 * v + i] + (1 - f) * luts.grey[3 * v + i];
          image.data[4 * at + 3] = future ? 0 : 255;
        }
      }
      context.putImageData(image, 0, 0);
      tile.look = want;
      return tile.canvas;
    }
    function paintOverview(theme) {
      const n = state().trace.arrays.overview.shape[1];
      if (over && over.theme === theme) return over.canvas;
      const mass = over ? over.mass : overviewMass(state().trace, head);
      const canvas = Object.assign(document.createElement("canvas"), { width: n, height: n });
      const context = canvas.getContext("2d"), image = context.createImageData(n, n);
      for (let at = 0; at < n * n; at++) {
        const v = Math.round(255 * shadeOf(mass[at]));
        const future = ((at % n) * S) / n > first + ((Math.floor(at / n) + 1) * T) / n - 1;
        for (let i = 0; i < 3; i++) image.data[4 * at + i] = luts.blue[3 * v + i];
        image.data[4 * at + 3] = future ? 0 : 255;
      }
      context.putImageData(image, 0, 0);
      over = { canvas, mass, theme };
      return canvas;
    }

    function drawMap({ step, settings, theme }) {
      const context = fitCanvas(map, size.left + size.w + 1, size.h + 1), sx = scaleX(), sy = scaleY();
      context.clearRect(0, 0, size.left + size.w + 1, size.h + 1);
      context.save();
      context.beginPath(); context.rect(size.left, 0, size.w, size.h); context.clip();
      context.translate(size.left, 0);
      context.fillStyle = ctx.colour("soft");
      context.fillRect(0, 0, size.w, size.h);
      const X = (key) => (key - look.x) * sx, Y = (row) => (row - look.y) * sy;
      const bx = block(sx), by = block(sy), x1 = look.x + size.w / sx, y1 = Math.min(T, look.y + size.h / sy);
      jobs = [];
      context.imageSmoothingEnabled = false;
      const waiting = [];
      if (sx >= 6 && sy >= 6) drawCells(context, settings, X, Y, sx, sy, x1, y1);
      else {
        const fromOverview = bx > EXACT_BLOCK || by > EXACT_BLOCK;
        const spare = [];
        if (!fromOverview)
          for (let ty = Math.floor(look.y / (TILE * by)); ty * TILE * by < y1; ty++)
            for (let tx = Math.floor(look.x / (TILE * bx)); tx * TILE * bx < Math.min(x1, first + (ty + 1) * TILE * by); tx++) {
              const tile = tileAt(bx, by, tx, ty);
              if (done(tile)) spare.push(tile); else waiting.push(tile);
            }
        if (fromOverview || waiting.length) context.drawImage(paintOverview(theme), X(0), Y(0), S * sx, T * sy);
        for (const tile of spare) {
          const x = X(tile.tx * TILE * bx), y = Y(tile.ty * TILE * by), side = [TILE * bx * sx, TILE * by * sy];
          if (waiting.length) { context.fillStyle = ctx.colour("soft"); context.fillRect(x, y, ...side); }
          context.drawImage(paintTile(tile, settings, theme), x, y, ...side);
        }
        jobs = waiting.reverse();
        drawPattern(context, settings, X, Y, sx, sy);
      }
      // the causal edge and the chosen row
      context.strokeStyle = ctx.colour("line"); context.lineWidth = 1;
      context.beginPath(); context.moveTo(X(first), Y(0)); context.lineTo(X(first + T), Y(T)); context.stroke();
      context.strokeStyle = ctx.colour("query"); context.lineWidth = 1.5;
      if (sy >= 4) context.strokeRect(-2, Y(step), size.w + 4, sy);
      else { context.beginPath(); context.moveTo(0, Y(step) + sy / 2); context.lineTo(size.w, Y(step) + sy / 2); context.stroke(); }
      context.restore();
      context.strokeStyle = ctx.colour("line"); context.lineWidth = 1;
      context.strokeRect(size.left - 0.5, -0.5, size.w + 1, size.h + 1);          // around the cells, never over the first key
      drawLabels(context, step, Y, sy);
      ctx.root.dataset.pending = String(jobs.length > 0);
      if (jobs.length && !pump) pump = setTimeout(work, 0);
    }

    /** Zoomed in: each cell by itself; a dropped key is a small grey square, a kept one fills its cell. */
    function drawCells(context, settings, X, Y, sx, sy, x1, y1) {
      const { trace } = state(), gap = sx > 11 ? 1 : 0;
      for (let row = Math.max(0, Math.floor(look.y)); row < y1; row++) {
        const from = Math.max(0, Math.floor(look.x)), to = Math.min(S, Math.ceil(x1));
        const mask = rows.mask(row, settings), p = mask ? rows.get(row).p.subarray(from, to) : rowProbabilities(trace, head, row, from, to);
        for (let i = 0; i < p.length; i++) {
          const v = Math.round(255 * shadeOf(p[i])), dropped = mask && !mask[from + i], lut = dropped ? luts.grey : luts.blue;
          const x = X(from + i), y = Y(row);
          context.fillStyle = ctx.colour("paper");
          context.fillRect(x, y, sx - gap, sy - gap);
          context.fillStyle = `rgb(${lut[3 * v]},${lut[3 * v + 1]},${lut[3 * v + 2]})`;
          const inset = dropped ? 0.28 : 0;
          context.fillRect(x + inset * sx, y + inset * sy, (1 - 2 * inset) * sx - gap, (1 - 2 * inset) * sy - gap);
        }
      }
    }

    /** Zoomed out: the borders of sinks and window. */
    function drawPattern(context, { sinks = 0, window: last = 0 }, X, Y) {
      context.strokeStyle = ctx.colour("kept"); context.lineWidth = 1.25;
      if (sinks) { context.beginPath(); context.moveTo(X(sinks), Y(0)); context.lineTo(X(sinks), Y(T)); context.stroke(); }
      if (last) { context.beginPath(); context.moveTo(X(first - last + 1), Y(0)); context.lineTo(X(first - last + 1 + T), Y(T)); context.stroke(); }
    }

    function ticks(low, high, room, each) {
      const wanted = Math.max(2, room / each), raw = (high - low) / wanted, base = 10 ** Math.floor(Math.log10(Math.max(raw, 1)));
      const gap = [1, 2, 5, 10].map((m) => m * base).find((g) => g >= raw) || base * 10, out = [];
      for (let t = Math.ceil(low / gap) * gap; t < high; t += gap) out.push(t);
      return out;
    }
    /** A word, shortened until it is at most `room` pixels wide. */
    function fit(context, text, room) {
      if (context.measureText(text).width <= room) return text;
      let n = text.length - 1;
      while (n > 1 && context.measureText(`${text.slice(0, n)}…`).width > room) n--;
      return `${text.slice(0, n)}…`;
    }
    const family = getComputedStyle(ctx.root).fontFamily;
    const face = (context, px) => { context.font = `${px}px ${family}`; };

    function drawLabels(context, step, Y, sy) {
      const { trace } = state();
      face(context, 11.5);
      context.textAlign = "right"; context.textBaseline = "middle";
      const own = clamp(Y(step) + sy / 2, 7, size.h - 7);
      context.fillStyle = ctx.colour("muted");
      if (sy >= 13) {
        for (let row = Math.max(0, Math.floor(look.y)); row < Math.min(T, look.y + size.h / sy); row++)
          if (row !== step && Math.abs(Y(row) + sy / 2 - size.h / 2) < size.h / 2 - 6)
            context.fillText(fit(context, word(trace, first + row), size.left - 8), size.left - 7, Y(row) + sy / 2);
      } else
        for (const t of ticks(look.y + first, Math.min(T, look.y + size.h / sy) + first, size.h, 72))
          if (Math.abs(Y(t - first) - own) > 14 && Y(t - first) > 6) context.fillText(String(t), size.left - 7, Y(t - first) + sy / 2);
      context.fillStyle = ctx.colour("query");
      face(context, 12);
      context.fillText(sy >= 13 ? fit(context, word(trace, first + step), size.left - 8) : String(first + step), size.left - 7, own);
    }

    function drawProfile({ step, settings }) {
      const { trace } = state(), tall = size.bars + size.foot, context = fitCanvas(profile, size.left + size.w + 1, tall);
      const sx = scaleX(), { p } = rows.get(step), mask = rows.mask(step, settings);
      context.clearRect(0, 0, size.left + size.w, tall);
      const columns = Math.ceil(size.w), kept = new Float64Array(columns), dropped = new Float64Array(columns);
      const from = Math.max(0, Math.floor(look.x)), to = Math.min(p.length, Math.ceil(look.x + size.w / sx));
      let top = 1e-9;
      if (sx < 2) {
        for (let j = from; j < to; j++) {
          const c = clamp(Math.floor((j - look.x) * sx), 0, columns - 1);
          if (!mask || mask[j]) kept[c] += p[j]; else dropped[c] += p[j];
        }
        for (let c = 0; c < columns; c++) top = Math.max(top, kept[c] + dropped[c]);
      } else for (let j = from; j < to; j++) top = Math.max(top, p[j]);
      const bar = (x, width, value, base, colour) => {
        const tallness = (value / top) * (size.bars - 8);
        context.fillStyle = ctx.colour(colour);
        context.fillRect(size.left + x, size.bars - (base / top) * (size.bars - 8) - tallness, width, Math.max(value > 0 ? 0.5 : 0, tallness));
      };
      context.save();
      context.beginPath(); context.rect(size.left, 0, size.w, size.bars); context.clip();
      if (sx < 2) for (let c = 0; c < columns; c++) { bar(c, 1, kept[c], 0, "kept"); bar(c, 1, dropped[c], kept[c], "evicted"); }
      else for (let j = from; j < to; j++) bar((j - look.x) * sx + 0.5, Math.max(1, sx - 1), p[j], 0, mask && !mask[j] ? "evicted" : "kept");
      context.restore();
      context.strokeStyle = ctx.colour("line"); context.lineWidth = 1;
      context.beginPath(); context.moveTo(size.left, size.bars + 0.5); context.lineTo(size.left + size.w, size.bars + 0.5); context.stroke();
      face(context, 11.5);
      context.fillStyle = ctx.colour("muted");
      context.textAlign = "right"; context.textBaseline = "middle";
      context.fillText(percent(top), size.left - 7, 10);
      if (sx >= 13) {
        context.textAlign = "right";
        for (let j = Math.max(0, Math.floor(look.x)); j < Math.min(S, look.x + size.w / sx); j++) {
          const x = size.left + (j - look.x + 0.5) * sx;
          if (x < size.left || x > size.left + size.w) continue;
          context.save();
          context.translate(x, size.bars + 5); context.rotate(-Math.PI / 2);
          context.fillText(fit(context, word(trace, j), size.foot - 6), 0, 0);
          context.restore();
        }
      } else {
        context.textAlign = "center"; context.textBaseline = "top";
        for (const t of ticks(look.x, Math.min(S, look.x + size.w / sx), size.w, 84))
          context.fillText(String(t), clamp(size.left + (t - look.x) * sx, size.left + 4, size.left + size.w - 12), size.bars + 6);
        context.textAlign = "right";
        context.fillText("keys →", size.left + size.w, size.bars + 22);
      }
    }

    function drawWords({ step, settings }) {
      const { trace } = state(), { p } = rows.get(step), mask = rows.mask(step, settings), own = first + step;
      const tokens = trace.subject.tokens || [], a = Math.max(0, own - 14), b = Math.min(tokens.length, own + 5);
      const text = (from, to) => tokens.slice(from, to).join("").replace(/\s+/g, " ");
      context.replaceChildren(a > 0 ? "… " : "", text(a, own), h("mark", {}, (tokens[own] || String(own)).replace(/\s+/g, " ")),
        h("span", { class: "tw-later" }, text(own + 1, b), b < tokens.length ? " …" : ""));
      const best = topk(p, 8), widest = Math.max(p[best[0]] || 1e-9, 1e-9);
      list.replaceChildren(...best.map((j) => h("li", { class: mask && !mask[j] ? "tw-dropped" : "" },
        h("span", { class: "tw-grid-word" }, cut(word(trace, j) || "·", 14), h("small", {}, String(j))),
        h("span", { class: "tw-grid-share" }, p[j] < 0.0005 ? "< 0.1 %" : `${(100 * p[j]).toFixed(1)} %`),
        h("span", { class: "tw-grid-bar", style: { "--share": (p[j] / widest).toFixed(4) } }))));
    }

    // pointers: hover reads, click chooses the row, drag pans, wheel zooms once the figure has focus, two fingers pinch
    const fingers = new Map();
    let moved = 0, gap = 0;
    const spot = (event) => {
      const box = map.getBoundingClientRect(), px = event.clientX - box.left - size.left, py = event.clientY - box.top;
      return { px, py, key: Math.floor(look.x + px / scaleX()), row: Math.floor(look.y + py / scaleY()), inside: px >= 0 && px < size.w && py >= 0 && py < size.h };
    };
    map.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      moved = 0; gap = 0;
      if (look.z > 1 || event.pointerType === "mouse") map.setPointerCapture(event.pointerId);
    });
    map.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (before) {
        const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
        moved += Math.abs(dx) + Math.abs(dy);
        fingers.set(event.pointerId, event);
        const [one, two] = [...fingers.values()];
        if (two) {
          const now = Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY), box = map.getBoundingClientRect();
          if (gap) zoomBy(now / gap, (one.clientX + two.clientX) / 2 - box.left - size.left, (one.clientY + two.clientY) / 2 - box.top);
          gap = now;
        } else if (look.z > 1 && moved > 4) { look.x -= dx / scaleX(); look.y -= dy / scaleY(); show(); ctx.tip(null); }
        return;
      }
      const { key, row, inside } = spot(event), { trace } = state();
      if (!inside || row >= T || key > first + row) { ctx.tip(null); return; }
      const p = rowProbabilities(trace, head, row, key, key + 1)[0];
      ctx.tip(`query ${tokenName(trace, first + row)}\nkey ${tokenName(trace, key)}: ${(100 * p).toPrecision(2)} %`, event.clientX, event.clientY);
    });
    const lift = (event) => {
      const { row, inside } = spot(event);
      if (event.type === "pointerup" && moved <= 4 && inside) ctx.setStep(row);
      fingers.delete(event.pointerId);
      gap = 0;
    };
    map.addEventListener("pointerup", lift);
    map.addEventListener("pointercancel", lift);
    map.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !ctx.root.contains(document.activeElement)) return;   // a passing scroll stays a scroll
      event.preventDefault();
      const { px, py } = spot(event);
      zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0022)), px, py);
    }, { passive: false });
    map.addEventListener("dblclick", (event) => { const { px, py } = spot(event); zoomBy(event.shiftKey ? 0.5 : 2, px, py); });

    return {
      zoomBy,
      pan(dx, dy) { look.x += (dx * size.w) / 8 / scaleX(); look.y += (dy * size.h) / 8 / scaleY(); show(); },
      all() { look.z = 1; show(); },
      look, jump(x, y, z) { look.z = z; look.x = x; look.y = y; show(); },
      means(settings) {
        const key = maskKey(settings) + head;
        if (mean.key !== key || mean.rows !== rows) mean = { key, rows, value: rows.meanMass(settings) };
        return mean.value;
      },
      rowMass: (step, settings) => (rows && rows.active(settings) ? rows.mass(step, settings) : null),
      draw(now, changed) {
        const { trace, settings, step } = now;
        if (changed.has("trace") || headOf(trace, settings) !== head) {
          head = headOf(trace, settings);
          T = trace.arrays.q.shape[1]; S = trace.arrays.k.shape[1]; first = firstPosition(trace);
          rows = new GridRows(trace, head);
          tiles = new Map(); over = null;
        }
        if (changed.has("theme") || !luts) { luts = { blue: ramp(RAMPS[now.theme]), grey: ramp(GREYS[now.theme]) }; }
        if (changed.has("size") || changed.has("trace")) {
          const wide = now.width >= 620, whole = wide ? Math.min(now.width * 0.6, 540) : now.width;
          ctx.stage.classList.toggle("tw-wide", wide);
          size.w = Math.floor(whole - size.left - 1);
          size.h = Math.floor(clamp((size.w * T) / S, Math.min(200, size.w), size.w));
          hold();
        }
        if (changed.has("step")) follow(step);
        map.style.touchAction = look.z > 1 ? "none" : "pan-y";
        drawMap(now);
        drawProfile(now);
        if (changed.size > 1 || !changed.has("look")) drawWords(now);
      },
      destroy() { clearTimeout(pump); },
    };
  },

  keys(event, state, ctx, view) {
    const act = {
      "+": () => view.zoomBy(2), "=": () => view.zoomBy(2), "-": () => view.zoomBy(0.5), "_": () => view.zoomBy(0.5), 0: () => view.all(),
      ArrowUp: () => (event.shiftKey ? view.pan(0, -1) : ctx.setStep(state.step - 1)),
      ArrowDown: () => (event.shiftKey ? view.pan(0, 1) : ctx.setStep(state.step + 1)),
      PageUp: () => ctx.setStep(state.step - 16), PageDown: () => ctx.setStep(state.step + 16),
    }[event.key] || (event.shiftKey && { ArrowLeft: () => view.pan(-1, 0), ArrowRight: () => view.pan(1, 0) }[event.key]);
    if (!act) return false;
    act();
    return true;
  },
  readout(state, view) {
    const row = view.rowMass(state.step, state.settings);
    if (row === null) return "";
    const [mean, used] = view.means(state.settings);
    return `kept mass ${percent(row)} of this row, ${percent(mean)} on average${used < state.trace.steps ? ` (${used} rows)` : ""}`;
  },
  legend(state, view) {
    const ticks = h("span", { class: "tw-grid-ramp", "aria-hidden": "true" });
    const keys = [{ node: ticks, label: "share of the query's attention: 0.03 % to 100 %, log scale" }, { mark: "query", shape: "line", label: "chosen query" }];
    if (view.rowMass(state.step, state.settings) !== null) keys.push({ mark: "kept", shape: "fill", label: "kept key" }, { mark: "evicted", shape: "fill", label: "dropped key (grey; small when zoomed in)" });
    return keys;
  },
  stepLabel: (state) => `query ${firstPosition(state.trace) + state.step} of ${firstPosition(state.trace) + state.trace.steps - 1}`,
});
