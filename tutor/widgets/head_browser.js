// head_browser: every head of a model as a thumbnail, layers across, heads down; the chosen one large beside them, as
// scores, as the keys that a method reads, or as the tiles that a kernel would run for it.

const WHOLE = 600;                // below this width the layers wrap into two bands

/** Side of the maps, from the number of cells in a lower triangle. */
const sideOf = (trace) => Math.round((Math.sqrt(8 * trace.arrays.maps.shape[1] + 1) - 1) / 2);
/** Where cell (i, j), j <= i, is in a lower triangle. */
const place = (i, j) => (i * (i + 1)) / 2 + j;

/** Share of a row's attention in each cell of one head's map, (n, n); rows of the recorded cells sum to 1. */
export function headCells(trace, head) {
  const n = sideOf(trace), size = trace.arrays.maps.shape[1], out = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let j = 0; j <= i; j++) sum += out[i * n + j] = (trace.arrays.maps[head * size + place(i, j)] / 255) ** 2;
    for (let j = 0; j <= i; j++) out[i * n + j] /= Math.max(sum, 1e-30);
  }
  return out;
}

/** 1 for the cells of one head in which method `m` reads any pair, (n, n). */
export function keptCells(trace, m, head) {
  const n = sideOf(trace), { kept } = trace.arrays, bytes = kept.shape[2], at = (m * kept.shape[1] + head) * bytes;
  const out = new Uint8Array(n * n);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) { const bit = place(i, j); out[i * n + j] = (kept[at + (bit >> 3)] >> (7 - (bit & 7))) & 1; }
  return out;
}

/** The same map with cells of c x c old ones: mean over the queries of the sum over the keys, so that rows still sum to 1. */
export function pooledCells(cells, n, c) {
  const m = Math.floor(n / c), out = new Float64Array(m * m);
  for (let i = 0; i < m * c; i++)
    for (let j = 0; j < m * c; j++) out[Math.floor(i / c) * m + Math.floor(j / c)] += cells[i * n + j] / c;
  return out;
}

/** Tiles of side x side cells: 1 where any cell is kept, and how many of the tiles below the diagonal that is. */
export function tilesRun(cells, n, side) {
  const across = Math.ceil(n / side), run = new Uint8Array(across * across);
  for (let i = 0; i < n; i++)
    for (let j = 0; j <= i; j++) if (cells[i * n + j]) run[Math.floor(i / side) * across + Math.floor(j / side)] = 1;
  return { across, run, count: run.reduce((a, b) => a + b, 0), all: (across * (across + 1)) / 2 };
}

const nameOf = ({ subject }, step) => `layer ${subject.layers[Math.floor(step / subject.heads)]}, head ${step % subject.heads}`;

export default figure({
  name: "head_browser",

  mount(ctx) {
    const atlas = h("canvas", { class: "tw-heads-atlas", "aria-hidden": "true" });
    const map = h("canvas", { class: "tw-heads-map", "aria-hidden": "true" });
    const name = h("p", { class: "tw-heads-name" }), list = h("dl", { class: "tw-heads-list" });
    ctx.stage.append(atlas, h("div", { class: "tw-heads-one" }, map, h("div", { class: "tw-heads-side" }, name, list)));
    const family = getComputedStyle(ctx.root).fontFamily;
    const size = { left: 46, top: 18, thumb: 20, gap: 3, bar: 4, bands: 1, band: 0, per: 1, map: 300 };
    let lut = null, grey = null, n = 1, tiny = null;

    const state = () => ctx.state();
    const count = () => state().trace.subject.layers.length * state().trace.subject.heads;
    const column = (step) => Math.floor(step / state().trace.subject.heads);
    function corner(step) {
      const layer = column(step), head = step % state().trace.subject.heads, band = Math.floor(layer / size.per);
      return [size.left + (layer % size.per) * (size.thumb + size.gap), size.top + band * size.band + head * (size.thumb + size.gap + size.bar)];
    }
    function stepAt(event) {
      const box = atlas.getBoundingClientRect(), x = event.clientX - box.left - size.left, y = event.clientY - box.top;
      const band = Math.floor(y / size.band), across = Math.floor(x / (size.thumb + size.gap));
      const head = Math.floor((y - band * size.band - size.top) / (size.thumb + size.gap + size.bar)), layer = band * size.per + across;
      const { layers, heads } = state().trace.subject;
      return x >= 0 && across < size.per && head >= 0 && head < heads && layer < layers.length ? layer * heads + head : -1;
    }

    /** One head as a picture of m x m pixels; cells beyond the diagonal stay clear. */
    function paint(cells, m, kept = null) {
      const canvas = Object.assign(document.createElement("canvas"), { width: m, height: m });
      const context = canvas.getContext("2d"), image = context.createImageData(m, m);
      for (let i = 0; i < m; i++)
        for (let j = 0; j <= i; j++) {
          const at = i * m + j, v = 3 * Math.round(255 * shadeOf(cells[at])), from = kept && !kept[at] ? grey : lut;
          for (let c = 0; c < 3; c++) image.data[4 * at + c] = from[v + c];
          image.data[4 * at + 3] = 255;
        }
      context.putImageData(image, 0, 0);
      return canvas;
    }

    function paintAtlas() {                        // all thumbnails once; choosing another head repaints only its frame
      const { trace } = state(), ratio = Math.min(globalThis.devicePixelRatio || 1, 2);
      tiny = Object.assign(document.createElement("canvas"), { width: atlas.width, height: atlas.height });
      const context = tiny.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.imageSmoothingQuality = "high";
      let c = 1;
      while (n % (2 * c) === 0 && n / (2 * c) >= size.thumb) c *= 2;
      for (let step = 0; step < count(); step++) {
        const [x, y] = corner(step);
        context.fillStyle = ctx.colour("soft");
        context.fillRect(x, y, size.thumb, size.thumb);
        context.drawImage(paint(pooledCells(headCells(trace, step), n, c), Math.floor(n / c)), x, y, size.thumb, size.thumb);
      }
    }

    function drawAtlas({ trace, step, settings, width }) {
      const { layers, heads, measures } = trace.subject, tall = size.bands * size.band + 2;
      const context = fitCanvas(atlas, width, tall);
      context.clearRect(0, 0, width, tall);
      if (!tiny) paintAtlas();
      context.save(); context.setTransform(1, 0, 0, 1, 0, 0); context.drawImage(tiny, 0, 0); context.restore();
      const shown = measures.indexOf(settings.measure);
      if (shown >= 0)
        for (let at = 0; at < count(); at++) {
          const [x, y] = corner(at), value = trace.arrays.measures[shown * count() + at];
          context.fillStyle = ctx.colour("line");
          context.fillRect(x, y + size.thumb + 1, size.thumb, size.bar - 1);
          context.fillStyle = ctx.colour("candidate");
          context.fillRect(x, y + size.thumb + 1, size.thumb * value, size.bar - 1);
        }
      context.fillStyle = ctx.colour("muted");
      context.font = `11px ${family}`;
      context.textBaseline = "middle"; context.textAlign = "right";
      for (let band = 0; band < size.bands; band++)
        for (let head = 0; head < heads; head++) {
          const [, y] = corner(Math.min(band * size.per, layers.length - 1) * heads + head);
          context.fillText(head === 0 ? "head 0" : String(head), size.left - 6, y + size.thumb / 2);
        }
      context.textAlign = "center";
      layers.forEach((layer, i) => {
        const [x, y] = corner(i * heads);
        if (size.thumb >= 22 || (i % size.per) % 5 === 0) context.fillText(String(layer), x + size.thumb / 2, y - 10);
        if (i % size.per === 0) { context.textAlign = "right"; context.fillText("layer", size.left - 6, y - 10); context.textAlign = "center"; }
      });
      const [x, y] = corner(step);
      context.strokeStyle = ctx.colour("query"); context.lineWidth = 2.5;
      context.strokeRect(x - 1.5, y - 1.5, size.thumb + 3, size.thumb + 3);
    }

    function drawMap({ trace, step, settings }) {
      const context = fitCanvas(map, size.map + 1, size.map + 1), m = trace.subject.methods.indexOf(settings.method);
      const view = m < 0 ? "scores" : settings.view || "scores", kept = view === "scores" ? null : keptCells(trace, m, step);
      const cells = headCells(trace, step), sx = size.map / n;
      context.clearRect(0, 0, size.map + 1, size.map + 1);
      context.fillStyle = ctx.colour("soft");
      context.fillRect(0, 0, size.map, size.map);
      context.imageSmoothingEnabled = false;
      context.drawImage(paint(cells, n, kept), 0, 0, size.map, size.map);
      if (view === "tiles") {
        const side = Number(settings.tile || 4), { across, run } = tilesRun(kept, n, side), w = side * sx;
        for (let i = 0; i < across; i++)
          for (let j = 0; j <= i; j++) {
            if (run[i * across + j]) { context.strokeStyle = ctx.colour("kept"); context.lineWidth = 1; context.strokeRect(j * w + 0.5, i * w + 0.5, w - 1, w - 1); continue; }
            context.fillStyle = ctx.colour("paper"); context.globalAlpha = 0.82; context.fillRect(j * w, i * w, w, w); context.globalAlpha = 1;
            context.strokeStyle = ctx.colour("evicted"); context.lineWidth = 0.75;
            context.beginPath(); context.moveTo(j * w + 0.3 * w, i * w + 0.7 * w); context.lineTo(j * w + 0.7 * w, i * w + 0.3 * w); context.stroke();
          }
      }
      context.strokeStyle = ctx.colour("line"); context.lineWidth = 1;
      context.beginPath(); context.moveTo(0, 0); context.lineTo(size.map, size.map); context.stroke();
      context.strokeRect(0.5, 0.5, size.map, size.map);
    }

    function drawWords({ trace, step, settings }) {
      const { measures, methods } = trace.subject, all = count(), rows = [];
      measures.forEach((label, i) => rows.push([label, percent(trace.arrays.measures[i * all + step])]));
      methods.forEach((label, i) => rows.push([`${label}: attention kept`, percent(trace.arrays.mass[i * all + step])], [`${label}: pairs read`, percent(trace.arrays.load[i * all + step])]));
      const m = methods.indexOf(settings.method);
      if (m >= 0 && settings.view === "tiles") {
        const { count: run, all: tiles } = tilesRun(keptCells(trace, m, step), n, Number(settings.tile || 4));
        rows.push([`${methods[m]}: tiles run`, `${run} of ${tiles}`]);
      }
      name.textContent = nameOf(trace, step).replace("layer", "Layer");
      list.replaceChildren(...rows.flatMap(([label, value]) => [h("dt", {}, label), h("dd", {}, value)]));
    }

    atlas.addEventListener("pointermove", (event) => {
      const step = stepAt(event);
      ctx.tip(step < 0 ? null : nameOf(state().trace, step), event.clientX, event.clientY);
    });
    atlas.addEventListener("click", (event) => { const step = stepAt(event); if (step >= 0) ctx.setStep(step); });
    map.addEventListener("pointermove", (event) => {
      const box = map.getBoundingClientRect(), j = Math.floor(((event.clientX - box.left) / size.map) * n), i = Math.floor(((event.clientY - box.top) / size.map) * n);
      if (i < 0 || j < 0 || i >= n || j > i) { ctx.tip(null); return; }
      const { trace, step } = state(), c = trace.subject.tokens.length / n, words = (a) => trace.subject.tokens.slice(a * c, a * c + c).join("").trim() || "␣";
      ctx.tip(`queries ${i * c} to ${i * c + c - 1} “${words(i)}”\nkeys ${j * c} to ${j * c + c - 1} “${words(j)}”: ${(100 * headCells(trace, step)[i * n + j]).toPrecision(2)} %`, event.clientX, event.clientY);
    });

    return {
      draw(now, changed) {
        const { trace, width } = now, { layers, heads } = trace.subject;
        if (changed.has("trace")) n = sideOf(trace);
        if (changed.has("theme") || !lut) { lut = ramp(RAMPS[now.theme]); grey = ramp(GREYS[now.theme]); }
        if (changed.has("trace") || changed.has("size") || changed.has("theme")) {
          size.bands = width < WHOLE && layers.length > 12 ? 2 : 1;
          size.per = Math.ceil(layers.length / size.bands);
          size.thumb = Math.max(8, Math.min(56, Math.floor((width - size.left - 4) / size.per) - size.gap));
          size.band = size.top + heads * (size.thumb + size.gap + size.bar) + 6;
          size.map = Math.floor(width >= WHOLE ? Math.min(width * 0.48, 400) : Math.min(width - 2, 360));
          ctx.stage.classList.toggle("tw-wide", width >= WHOLE);
          fitCanvas(atlas, width, size.bands * size.band + 2);
          tiny = null;
        }
        drawAtlas(now);
        drawMap(now);
        drawWords(now);
      },
    };
  },

  keys(event, state, ctx) {
    const heads = state.trace.subject.heads;
    const move = { ArrowUp: -1, ArrowDown: 1, PageUp: -heads, PageDown: heads, ...(event.shiftKey ? { ArrowLeft: -heads, ArrowRight: heads } : {}) }[event.key];
    if (!move) return false;
    ctx.setStep(state.step + move);
    return true;
  },
  readout: (state) => nameOf(state.trace, state.step),
  stepLabel: (state) => nameOf(state.trace, state.step),
  legend(state) {
    const view = state.trace.subject.methods.includes(state.settings.method) ? state.settings.view || "scores" : "scores";
    const keys = [{ node: h("span", { class: "tw-heads-ramp", "aria-hidden": "true" }), label: "share of a query's attention: 0.03 % to 100 %, log scale" }, { mark: "query", shape: "square", label: "chosen head" }];
    if (view !== "scores") keys.push({ mark: "kept", shape: "fill", label: "read" }, { mark: "evicted", shape: "fill", label: "not read (grey)" });
    if (view === "tiles") keys.push({ mark: "kept", shape: "square", label: "tile run" }, { mark: "evicted", shape: "line", label: "tile skipped (stroke)" });
    if (state.trace.subject.measures.includes(state.settings.measure)) keys.push({ mark: "candidate", shape: "fill", label: `bar below a head: ${state.settings.measure}` });
    return keys;
  },
});
