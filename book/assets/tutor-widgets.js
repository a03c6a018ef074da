// Mounts the saved state of anywidget figures on a static page: no kernel, no other script, no outside request.
//
// A page built from an executed notebook holds the state of its widgets in script tags of type
// application/vnd.jupyter.widget-state+json and the place of each in tags of application/vnd.jupyter.widget-view+json.
// Each figure's code is one ES module, kept in its state as `_esm`; it is imported from a Blob address and sees the same
// model (get, set, on, off, save_changes, send) as in JupyterLab, with three extra entries: `_static` is true, `_assets`
// is the address of this script's folder (larger traces lie in its folder traces/), and nothing answers `send`.
(() => {
  "use strict";
  const STATE = "application/vnd.jupyter.widget-state+json", VIEW = "application/vnd.jupyter.widget-view+json";
  const assets = new URL(".", document.currentScript ? document.currentScript.src : document.baseURI).href;
  const models = new Map();       // model id -> Model, one for all its views
  const modules = new Map();      // text of a module -> promise of its export
  const styles = new Set();

  class Model {
    constructor(state) { this.state = state; this.heard = new Map(); }
    get(name) { return this.state[name]; }
    set(name, value) {
      if (typeof name === "object") { for (const [k, v] of Object.entries(name)) this.set(k, v); return; }
      if (this.state[name] === value) return;
      this.state[name] = value;
      this.fire(`change:${name}`, this, value);
      this.fire("change", this);
    }
    on(name, f) { if (!this.heard.has(name)) this.heard.set(name, new Set()); this.heard.get(name).add(f); }
    off(name, f) {
      if (name === undefined || name === null) this.heard.clear();
      else if (f) this.heard.get(name)?.delete(f);
      else this.heard.delete(name);
    }
    fire(name, ...values) { for (const f of [...(this.heard.get(name) || [])]) f(...values); }
    save_changes() {}
    send() {}
  }

  function bytes(base64) {
    const text = atob(base64), out = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
    return new DataView(out.buffer);
  }

  /** Puts the binary parts of a saved state back where they were. */
  function restore({ state, buffers = [] }) {
    const whole = structuredClone(state);
    for (const { path, encoding, data } of buffers) {
      if (encoding !== "base64") throw new Error(`saved buffer has encoding ${encoding}; only base64 is known`);
      let place = whole;
      for (const key of path.slice(0, -1)) place = place[key];
      place[path[path.length - 1]] = bytes(data);
    }
    return whole;
  }

  async function load(text) {
    if (!modules.has(text)) {
      const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      modules.set(text, import(address).then(
        async (found) => (typeof found.default === "function" ? found.default() : found.default)));
    }
    return modules.get(text);
  }

  function addStyle(text) {
    if (!text || styles.has(text)) return;
    styles.add(text);
    const style = document.createElement("style");
    style.textContent = text;
    document.head.append(style);
  }

  function note(el, text) {
    const line = document.createElement("p");
    line.className = "tutor-needs-kernel";
    line.textContent = text;
    el.append(line);
  }

  async function mount(saved, id, el) {
    const entry = saved[id];
    if (!entry) { note(el, "This figure was not saved with the page: run the notebook to see it."); return; }
    if (/^[HV]BoxModel$/.test(entry.model_name)) {
      for (const child of entry.state.children) {
        const place = document.createElement("div");
        el.append(place);
        await mount(saved, child.replace("IPY_MODEL_", ""), place);
      }
      return;
    }
    if (entry.model_module !== "anywidget") { note(el, "This control needs a running kernel: open the notebook to use it."); return; }
    const model = models.get(id);
    const widget = await load(model.get("_esm"));
    addStyle(model.get("_css"));
    if (!model.initialized) {
      model.initialized = true;
      await widget.initialize?.({ model });
    }
    await widget.render?.({ model, el });
  }

  /** ipywidgets' jslink and jsdlink between two figures. */
  function link(saved) {
    for (const { model_name, state } of Object.values(saved)) {
      if (model_name !== "LinkModel" && model_name !== "DirectionalLinkModel") continue;
      const [source, target] = [state.source, state.target].map(([id, name]) => [models.get(id.replace("IPY_MODEL_", "")), name]);
      if (!source[0] || !target[0]) continue;
      const follow = (from, to) => from[0].on(`change:${from[1]}`, () => to[0].set(to[1], from[0].get(from[1])));
      follow(source, target);
      if (model_name === "LinkModel") follow(target, source);
    }
  }

  async function start() {
    const saved = {};
    for (const tag of document.querySelectorAll(`script[type="${STATE}"]`)) Object.assign(saved, JSON.parse(tag.textContent).state);
    for (const [id, entry] of Object.entries(saved))
      if (entry.model_module === "anywidget") models.set(id, new Model({ ...restore(entry), _static: true, _assets: assets }));
    link(saved);
    for (const tag of document.querySelectorAll(`script[type="${VIEW}"]`)) {
      const el = document.createElement("div");
      el.className = "tutor-figure";
      tag.after(el);
      try {
        await mount(saved, JSON.parse(tag.textContent).model_id, el);
      } catch (error) {
        note(el, `This figure could not be drawn: ${error.message}`);
        console.error(error);
      }
    }
    document.documentElement.dataset.figures = "mounted";
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
