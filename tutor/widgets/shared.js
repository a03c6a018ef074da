// Shared by every figure of tutor. This text stands above each figure's own file (see base.py), so that the result is
// one plain ES module: no import, no build step, the same module in JupyterLab and on a static page.

// ------------------------------------------------------------------------------------------------------------- data
const ARRAY_TYPES = {
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  float16: Uint16Array, float32: Float32Array, float64: Float64Array,
};

/** Half-precision bits as numbers. */
export function halfToFloat(bits) {
  const out = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const sign = bits[i] & 0x8000 ? -1 : 1, exponent = (bits[i] >> 10) & 31, fraction = bits[i] & 1023;
    if (exponent === 31) out[i] = fraction ? NaN : sign * Infinity;
    else if (exponent === 0) out[i] = sign * fraction * 2 ** -24;
    else out[i] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return out;
}

/** One recorded array: a typed array with a `.shape`. */
export function readArray(buffer, { dtype, shape, offset }) {
  const type = ARRAY_TYPES[dtype];
  if (!type) throw new Error(`array type ${dtype} is unknown to this figure`);
  const count = shape.reduce((a, b) => a * b, 1);
  let data = new type(buffer, offset, count);
  if (dtype === "float16") data = halfToFloat(data);
  data.shape = shape;
  return data;
}

/** A trace from its header and the figure's buffer; `base` supplies the subject entries that a variant leaves out. */
export function readTrace(header, buffer, base = null) {
  const subject = { ...(base ? base.subject : {}), ...header.subject };
  const trace = { ...header, subject, arrays: {}, events: {} };
  for (const group of ["arrays", "events"])
    for (const [name, place] of Object.entries(header[group])) trace[group][name] = readArray(buffer, place);
  return trace;
}

/** Rows [first, last) of the event table that belong to a step (its column `step` ascends). */
export function eventRange(trace, step) {
  const column = trace.events.step;
  const bound = (value) => {
    let low = 0, high = column.length;
    while (low < high) { const middle = (low + high) >> 1; if (column[middle] < value) low = middle + 1; else high = middle; }
    return low;
  };
  return [bound(step), bound(step + 1)];
}

/** Indices of the k largest values; ties go to the lower index. */
export function topk(values, k) {
  if (k < 16) {                                          // a few: one pass, held in order
    const held = [];
    for (let i = 0; i < values.length; i++) {
      let at = held.length;
      while (at > 0 && values[i] > values[held[at - 1]]) at--;
      if (at < k) { held.splice(at, 0, i); if (held.length > k) held.pop(); }
    }
    return held;
  }
  const order = Array.from(values, (_, i) => i).sort((a, b) => values[b] - values[a] || a - b);
  return order.slice(0, Math.max(0, Math.min(k, order.length)));
}

/** 1 where the value is among the k largest, else 0; ties go to the lower index. */
export function topkMask(values, k) {
  const mask = new Uint8Array(values.length);
  for (const i of topk(values, k)) mask[i] = 1;
  return mask;
}

/** Share of the total that lies where mask is 1 (1 for an empty total). */
export function keptMass(values, mask) {
  let kept = 0, total = 0;
  for (let i = 0; i < values.length; i++) { total += values[i]; if (mask[i]) kept += values[i]; }
  return total > 0 ? kept / total : 1;
}

/** 0.874 as "87 %", 0.0042 as "0.4 %"; as the sentences of tutor/schemas.py write it. */
export const percent = (x) => `${(100 * x).toFixed(x >= 0.01 ? 0 : 1)} %`;

/** A text as Python's repr() writes it. */
export function pyRepr(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const short = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", [quote]: `\\${quote}` };
  const hex = (c) => {
    const code = c.codePointAt(0), [mark, digits] = code < 256 ? ["x", 2] : code < 65536 ? ["u", 4] : ["U", 8];
    return `\\${mark}${code.toString(16).padStart(digits, "0")}`;
  };
  return quote + text.replace(/[\\'"\p{C}\p{Z}]/gu, (c) => short[c] || (c === " " || c === "'" || c === '"' ? c : hex(c))) + quote;
}

/** A token with its position, as the sentences of tutor/schemas.py write it. */
export function tokenName(trace, position) {
  const token = (trace.subject.tokens || [])[position];
  return token === undefined ? String(position) : `${position} ${pyRepr(token.trim() || token)}`;
}

/** The recorded variant that fits the dials: an index into `variants`, or -1. */
export function pickVariant(variants, settings) {
  return variants.findIndex(({ when }) => Object.entries(when).every(([name, value]) => settings[name] === value));
}

// ------------------------------------------------------------------------------------------------- shades of attention
const LOW = -3.5;                 // log10 of the share of a row at which a cell begins to show

/** 0..1 for the share of a row's attention in a cell, on a log scale. */
export const shadeOf = (mass) => Math.max(0, Math.min(1, 1 - Math.log10(Math.max(mass, 1e-30)) / LOW));

const RAMPS = {
  light: ["#ffffff", "#e3eff8", "#b4d5ec", "#6fb0dc", "#2a7fbd", "#0c4f8c", "#06264a"],
  dark: ["#14171c", "#16293b", "#174366", "#1f6698", "#4694c8", "#96cbea", "#f4fbff"],
};
const GREYS = { light: ["#ffffff", "#f3f2f0", "#dcd8d4", "#b9b2aa", "#958c82"], dark: ["#14171c", "#24262a", "#41413f", "#6d6862", "#a39a90"] };

function ramp(stops) {
  const out = new Uint8ClampedArray(256 * 3), parts = stops.map((s) => [1, 3, 5].map((i) => parseInt(s.slice(i, i + 2), 16)));
  for (let v = 0; v < 256; v++) {
    const x = (v / 255) * (stops.length - 1), i = Math.min(stops.length - 2, Math.floor(x)), f = x - i;
    for (let c = 0; c < 3; c++) out[v * 3 + c] = (1 - f) * parts[i][c] + f * parts[i + 1][c];
  }
  return out;
}

// -------------------------------------------------------------------------------------------------------------- DOM
const SVG_NS = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style" && typeof value === "object") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== false) element.append(child);
  return element;
}

/** An HTML element: h("div", { class: "box", onclick: f }, "text", child). */
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
/** An SVG element, the same way. */
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG_NS, tag), attributes, children);

/** Sizes a canvas in CSS pixels at the screen's own resolution and returns its 2d context. */
function fitCanvas(canvas, width, height) {
  const ratio = Math.min(globalThis.devicePixelRatio || 1, 2);
  const w = Math.max(1, Math.round(width * ratio)), tall = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== w || canvas.height !== tall) {
    canvas.width = w; canvas.height = tall;
    canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

const ICONS = {
  reset: "M4 3.5v9M12 3.5L7 8l5 4.5", back: "M10.5 3.5v9L4.5 8z", forward: "M5.5 3.5v9L11.5 8z",
  play: "M4.5 3v10l8-5z", pause: "M5 3v10M11 3v10",
};
const icon = (name) => svg("svg", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true", class: `tw-icon tw-icon-${name}` },
  svg("path", { d: ICONS[name] }));

/** "light" or "dark", as the page that holds the element says: JupyterLab, the book, VS Code, Colab, else the system. */
function themeOf(root) {
  const body = document.body, html = document.documentElement;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false" ? "dark" : "light";
  const said = html.dataset.theme || html.getAttribute("theme") || (body.dataset.vscodeThemeKind || "").replace("vscode-", "");
  if (said === "dark" || said === "light") return said;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** A small sample of a mark for legends: fill, hatch, dots, line, dash, ring, cross, square. */
function swatch(mark, shape = "fill") {
  const colour = `var(--tw-${mark})`, id = `tw-h${Math.random().toString(36).slice(2)}`;
  const shapes = {
    fill: () => [svg("rect", { x: 1, y: 1, width: 14, height: 10, rx: 2, fill: colour })],
    square: () => [svg("rect", { x: 1.75, y: 1.75, width: 12.5, height: 8.5, rx: 2, fill: "none", stroke: colour, "stroke-width": 1.5 })],
    hatch: () => [
      svg("pattern", { id, width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 1.6, height: 4, fill: colour })),
      svg("rect", { x: 1, y: 1, width: 14, height: 10, rx: 2, fill: `url(#${id})`, stroke: colour, "stroke-width": 0.75 })],
    line: () => [svg("line", { x1: 0, x2: 16, y1: 6, y2: 6, stroke: colour, "stroke-width": 2.5 })],
    dash: () => [svg("line", { x1: 0, x2: 16, y1: 6, y2: 6, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": "4 2" })],
    dots: () => [svg("line", { x1: 1.5, x2: 16, y1: 6, y2: 6, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": "0.1 4.2", "stroke-linecap": "round" })],
    dot: () => [svg("circle", { cx: 8, cy: 6, r: 4.5, fill: colour })],
    ring: () => [svg("circle", { cx: 8, cy: 6, r: 4.5, fill: "none", stroke: colour, "stroke-width": 2 })],
    cross: () => [svg("path", { d: "M4 2l8 8M12 2l-8 8", stroke: colour, "stroke-width": 2, fill: "none" })],
  };
  return svg("svg", { viewBox: "0 0 16 12", width: 16, height: 12, "aria-hidden": "true" }, shapes[shape]());
}

// ------------------------------------------------------------------------------------------------------------ bytes
/** The figure's data: inline, from the kernel, or from a file beside the page. Copied, since views may be unaligned.
 *  A question to a kernel can be lost (it was just starting) or wait behind a long cell, so it is asked again, ever more
 *  seldom; `late()` is called then, and `signal` ends the asking. */
function loadBuffer(model, { signal, late }) {
  const inline = model.get("buffer"), file = model.get("file");
  if (!file) return Promise.resolve(copyBytes(inline));
  if (model.get("_static")) {
    const address = new URL(`traces/${file}`, model.get("_assets")).href;
    return fetch(address).then((answer) => {
      if (!answer.ok) throw new Error(`the recorded trace ${file} is missing on this site (${answer.status})`);
      return answer.arrayBuffer();
    });
  }
  return new Promise((done) => {
    let again = 0;
    const end = () => { clearTimeout(again); model.off("msg:custom", hear); };
    const hear = (content, buffers) => {
      if (!content || content.is !== "buffer") return;
      end();
      done(copyBytes(buffers[0]));
    };
    const ask = (wait) => {
      model.send({ want: "buffer" });
      again = setTimeout(() => { late(); ask(2 * wait); }, wait);
    };
    model.on("msg:custom", hear);
    signal.addEventListener("abort", end);
    ask(2000);
  });
}

function copyBytes(view) {
  if (!view) return new ArrayBuffer(0);
  if (view instanceof ArrayBuffer) return view.slice(0);
  return view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
}

// ----------------------------------------------------------------------------------------------------------- figure
let figures = 0;

/** The chrome around a figure: see the docstring of base.py for what `spec` holds. */
function figure(spec) {
  return { render({ model, el }) { return mountFigure(spec, model, el); } };
}

function mountFigure(spec, model, el) {
  const id = `tw${++figures}-${Math.random().toString(36).slice(2, 7)}`;
  const isStatic = Boolean(model.get("_static"));
  const aborter = new AbortController();
  const listen = (target, name, f, options = {}) => target.addEventListener(name, f, { signal: aborter.signal, ...options });
  const hears = [];
  const hear = (name, f) => { model.on(name, f); hears.push([name, f]); };

  // the frame
  const title = h("div", { class: "tw-title", id: `${id}-title` });
  const readout = h("output", { class: "tw-readout" });
  const stage = h("div", { class: "tw-stage", tabindex: 0, role: "group", "aria-roledescription": "figure", "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-live` });
  const legend = h("div", { class: "tw-legend" });
  const live = h("p", { class: "tw-live", id: `${id}-live`, "aria-live": "polite" });
  const notice = h("p", { class: "tw-notice", role: "status" });
  const caption = h("figcaption", { class: "tw-caption" });
  const tip = h("div", { class: "tw-tip", "aria-hidden": "true", hidden: true });
  const controls = h("div", { class: "tw-controls", role: "toolbar", "aria-label": "Steps" });
  const dialBox = h("div", { class: "tw-dials" });
  const root = h("figure", { class: `tw tw-${spec.name}`, "data-lm-suppress-shortcuts": "true" },
    h("div", { class: "tw-head" }, title, readout), stage, legend, live, notice, controls, dialBox, caption, tip);
  el.append(root);

  // the state
  let buffer = null, base = null, view = null, frame = 0, timer = 0, saver = 0;
  const traces = new Map();
  const state = {
    trace: null, step: model.get("step") || 0, settings: { ...(model.get("settings") || {}) },
    selection: model.get("selection") || null, width: 0, theme: "light",
  };
  const changed = new Set();

  const steps = () => Math.max(1, state.trace ? state.trace.steps : 1);
  const reduced = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  function currentTrace() {
    const variants = model.get("variants") || [];
    const found = pickVariant(variants, state.settings);
    if (!traces.has(found)) traces.set(found, found < 0 ? base : readTrace(variants[found].header, buffer, base));
    return [traces.get(found), (found >= 0 && variants[found].sentences) || model.get("sentences") || []];
  }

  function sentence() {
    if (!state.trace) return "";
    if (spec.describe) return spec.describe(state.trace, state.step, state.settings);
    return currentTrace()[1][state.step] || "";
  }

  function refresh(...names) {
    for (const name of names) changed.add(name);
    if (frame || !view) return;
    frame = requestAnimationFrame(paint);
  }

  function paint() {
    frame = 0;
    if (!view) return;
    const now = new Set(changed);
    changed.clear();
    view.draw(state, now);
    if (["trace", "step", "settings", "selection"].some((name) => now.has(name))) paintWords();   // not while panning
  }

  function paintWords() {
    live.textContent = sentence();
    readout.textContent = spec.readout ? spec.readout(state, view) : "";
    slider.max = steps() - 1;
    slider.value = state.step;
    const label = spec.stepLabel ? spec.stepLabel(state, view) : `${state.step + 1} of ${steps()}`;
    slider.setAttribute("aria-valuetext", label);
    place.textContent = label;
    controls.hidden = steps() < 2;
    if (typeof spec.legend === "function" || !legend.childElementCount) drawLegend();
  }

  function drawLegend() {
    const items = typeof spec.legend === "function" ? spec.legend(state, view) : spec.legend || [];
    legend.replaceChildren(...items.map(({ mark, shape, label, node }) =>
      h("span", { class: "tw-key" }, node || swatch(mark, shape), label)));
    legend.hidden = !items.length;
  }

  function save() {
    clearTimeout(saver);
    saver = setTimeout(() => model.save_changes(), 120);
  }

  // the ways to change it
  function setStep(i, { from = "here" } = {}) {
    const next = Math.max(0, Math.min(steps() - 1, Math.round(i)));
    if (next === state.step) return;
    state.step = next;
    if (from === "here") { model.set("step", next); save(); }
    refresh("step");
  }

  function setSetting(name, value) {
    if (state.settings[name] === value) return;
    state.settings = { ...state.settings, [name]: value };
    model.set("settings", state.settings);
    save();
    retrace("settings");
  }

  function select(selection) {
    state.selection = selection;
    model.set("selection", selection);
    save();
    refresh("selection");
  }

  function retrace(...names) {
    const [found] = currentTrace();
    if (found !== state.trace) {
      state.trace = found;
      names.push("trace");
      if (state.step >= steps()) state.step = steps() - 1;
    }
    refresh(...names);
  }

  // play
  const playing = () => timer !== 0;
  function stop() { clearTimeout(timer); timer = 0; live.setAttribute("aria-live", "polite"); drawPlay(); }
  function tick() {
    if (state.step >= steps() - 1) { stop(); return; }
    setStep(state.step + 1);
    timer = setTimeout(tick, 900 / Number(speed.value));
  }
  function play() {
    if (playing()) { stop(); return; }
    if (state.step >= steps() - 1) setStep(0);
    live.setAttribute("aria-live", "off");            // a voice cannot follow a film; it speaks again on pause
    timer = setTimeout(tick, 350 / Number(speed.value));
    drawPlay();
  }
  const button = (name, label, f) => h("button", { type: "button", class: "tw-button", "aria-label": label, title: label, onclick: f }, icon(name));
  const playButton = button("play", "Play", play);
  function drawPlay() {
    playButton.replaceChildren(icon(playing() ? "pause" : "play"));
    playButton.setAttribute("aria-label", playing() ? "Pause" : "Play");
    playButton.title = playing() ? "Pause (space)" : "Play (space)";
  }
  const walk = (i) => { stop(); setStep(i); };
  const slider = h("input", { type: "range", class: "tw-range tw-steps", min: 0, max: 0, step: 1, "aria-label": "Step" });
  const place = h("span", { class: "tw-place" });
  const speed = h("select", { class: "tw-select tw-speed", "aria-label": "Speed" },
    [["0.5", "½×"], ["1", "1×"], ["2", "2×"], ["4", "4×"], ["16", "16×"]].map(([value, text]) => h("option", { value, selected: value === "1" }, text)));
  controls.append(
    h("div", { class: "tw-buttons" },
      button("reset", "First step", () => walk(0)), button("back", "Step back", () => walk(state.step - 1)),
      playButton, button("forward", "Step forward", () => walk(state.step + 1))),
    slider, place, speed);
  drawPlay();
  listen(slider, "input", () => walk(Number(slider.value)));

  // dials
  function drawDials() {
    const made = [], notes = [];
    for (const d of model.get("dials") || []) {
      if (isStatic && d.mode === "live") { notes.push(d.note || `A running notebook lets you change “${d.label}”.`); continue; }
      made.push(makeDial(d));
    }
    dialBox.replaceChildren(...made, ...[...new Set(notes)].map((text) => h("p", { class: "tw-note" }, text)));
    dialBox.hidden = !dialBox.childElementCount;
  }

  function makeDial(d) {
    const key = `${id}-${d.name}`, value = () => state.settings[d.name];
    const show = (v) => d.labels ? d.labels[d.values.indexOf(v)] : (typeof v === "number" ? v.toLocaleString("en-US").replace(/,/g, " ") : String(v)) + (d.unit ? ` ${d.unit}` : "");
    if (d.kind === "toggle") {
      const box = h("input", { type: "checkbox", id: key, class: "tw-check", "data-dial": d.name });
      box.checked = Boolean(value());
      listen(box, "change", () => setSetting(d.name, box.checked));
      return h("label", { class: "tw-dial tw-toggle", for: key }, box, h("span", {}, d.label));
    }
    if (d.kind === "segments") {
      const items = d.values.map((v, i) => {
        const radio = h("input", { type: "radio", name: key, value: i, "data-dial": d.name });
        radio.checked = v === value();
        listen(radio, "change", () => setSetting(d.name, v));
        return h("label", {}, radio, h("span", {}, show(v)));
      });
      return h("fieldset", { class: "tw-dial" }, h("legend", {}, d.label), h("div", { class: "tw-segments" }, items));
    }
    if (d.kind === "select") {
      const box = h("select", { id: key, class: "tw-select", "data-dial": d.name },
        d.values.map((v, i) => h("option", { value: i, selected: v === value() }, show(v))));
      listen(box, "change", () => setSetting(d.name, d.values[Number(box.value)]));
      return h("div", { class: "tw-dial" }, h("label", { for: key }, d.label), box);
    }
    const output = h("output", { for: key }, show(value()));
    const range = h("input", { type: "range", id: key, class: "tw-range", "data-dial": d.name,
      min: d.values ? 0 : d.min, max: d.values ? d.values.length - 1 : d.max, step: d.values ? 1 : d.step });
    range.value = d.values ? d.values.indexOf(value()) : value();
    const read = () => (d.values ? d.values[Number(range.value)] : Number(range.value));
    const speak = () => { output.textContent = show(read()); range.setAttribute("aria-valuetext", show(read())); };
    speak();
    listen(range, "input", () => { speak(); if (d.mode !== "live") setSetting(d.name, read()); });
    listen(range, "change", () => setSetting(d.name, read()));      // a live dial asks Python once, when let go
    return h("div", { class: "tw-dial" }, h("label", { for: key }, d.label, " ", output), range);
  }

  // keys: on the figure, but never in place of what a control does itself
  listen(root, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const control = event.target.closest("input, select, textarea, button");
    event.stopPropagation();                              // a notebook has shortcuts of its own
    if (control) { if (event.key === " " && control === slider) { event.preventDefault(); play(); } return; }
    if (spec.keys && spec.keys(event, state, ctx, view)) { event.preventDefault(); return; }
    const act = { ArrowRight: () => walk(state.step + 1), ArrowLeft: () => walk(state.step - 1), Home: () => walk(0),
      End: () => walk(steps() - 1), " ": play }[event.key];
    if (act) { event.preventDefault(); act(); }
  });

  // what a figure may use
  let palette = {};
  const ctx = {
    root, stage, model, isStatic, setStep: (i) => { stop(); setStep(i); }, setSetting, select, reduced,
    state: () => state,
    refresh,
    say: (text) => { live.textContent = text; },
    colour: (name) => (palette[name] ??= getComputedStyle(root).getPropertyValue(`--tw-${name}`).trim()),
    tip(text, x, y) {
      tip.hidden = !text;
      if (!text) return;
      tip.textContent = text;
      const box = root.getBoundingClientRect(), w = tip.offsetWidth, tall = tip.offsetHeight;
      tip.style.left = `${Math.max(4, Math.min(box.width - w - 4, x - box.left - w / 2))}px`;
      tip.style.top = `${y - box.top - tall - 12 > 0 ? y - box.top - tall - 12 : y - box.top + 18}px`;
    },
  };
  listen(stage, "pointerleave", () => ctx.tip(null));

  function retheme() {
    const theme = themeOf(root);
    if (root.dataset.theme === theme) return;
    root.dataset.theme = state.theme = theme;
    palette = {};
    refresh("theme");
  }
  const watcher = new MutationObserver(retheme);
  watcher.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme", "theme", "class"] });
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind", "class"] });
  listen(matchMedia("(prefers-color-scheme: dark)"), "change", retheme);
  retheme();

  const sizer = new ResizeObserver(() => {
    const width = Math.floor(stage.clientWidth);
    if (width && width !== state.width) { state.width = width; refresh("size"); }
  });

  // texts that Python may change
  const words = () => {
    title.textContent = model.get("title") || "";
    caption.textContent = model.get("caption") || "";
    caption.hidden = !caption.textContent;
    notice.textContent = model.get("busy") ? "computing…" : model.get("notice") || "";
    notice.hidden = !notice.textContent;
    root.classList.toggle("tw-busy", Boolean(model.get("busy")));
  };
  for (const name of ["title", "caption", "busy", "notice"]) hear(`change:${name}`, words);
  hear("change:step", () => setStep(model.get("step"), { from: "model" }));
  hear("change:selection", () => { state.selection = model.get("selection") || null; refresh("selection"); });
  hear("change:settings", () => {
    const next = model.get("settings") || {};
    if (JSON.stringify(next) === JSON.stringify(state.settings)) return;
    state.settings = { ...next };
    drawDials();
    retrace("settings");
  });
  hear("change:dials", drawDials);
  // A new trace is several traits; they arrive one by one, so wait for all of them.
  let waiting = 0;
  const renew = () => { clearTimeout(waiting); waiting = setTimeout(open, 0); };
  for (const name of ["header", "buffer", "variants", "sentences", "file"]) hear(`change:${name}`, renew);

  let opening = 0;
  function open() {
    const mine = ++opening;
    const late = () => { const wait = stage.querySelector(".tw-wait"); if (wait) wait.textContent = "waiting for the kernel, which may be busy with another cell…"; };
    return loadBuffer(model, { signal: aborter.signal, late }).then((bytes) => {
      if (mine !== opening || aborter.signal.aborted) return;
      buffer = bytes;
      traces.clear();
      base = readTrace(model.get("header"), buffer);
      state.step = Math.max(0, model.get("step") || 0);
      if (!view) {
        state.width = Math.floor(stage.clientWidth) || 640;
        stage.replaceChildren();
        [state.trace] = currentTrace();
        view = spec.mount(ctx, state);
        sizer.observe(stage);
      }
      state.trace = null;
      cancelAnimationFrame(frame); frame = 0;
      retrace("trace", "step", "settings", "selection", "size", "theme");
      cancelAnimationFrame(frame); paint();
      root.dataset.ready = "true";
    }).catch((error) => {
      notice.hidden = false;
      notice.textContent = `This figure could not be drawn: ${error.message}.`;
      root.dataset.ready = "failed";
      console.error(error);
    });
  }

  words();
  drawDials();
  if (model.get("file")) {                              // a large trace is fetched when its figure comes near
    stage.append(h("p", { class: "tw-wait" }, "loading the recorded trace…"));
    const near = new IntersectionObserver((seen) => { if (seen.some((e) => e.isIntersecting)) { near.disconnect(); open(); } }, { rootMargin: "600px" });
    near.observe(root);
    aborter.signal.addEventListener("abort", () => near.disconnect());
  } else open();

  return () => {
    stop();
    aborter.abort();
    watcher.disconnect();
    sizer.disconnect();
    cancelAnimationFrame(frame);
    clearTimeout(saver);
    for (const [name, f] of hears) model.off(name, f);
    if (view && view.destroy) view.destroy();
    root.remove();
  };
}
