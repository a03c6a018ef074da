// Draws the Plotly figures that the page carries as JSON. plotly.min.js is loaded from this site, and only where needed.
(() => {
  const base = new URL(".", document.currentScript.src);
  const dark = () => document.documentElement.dataset.theme === "dark";

  // The colours of our own figures, in an order that neighbours can be told apart in.
  const WAYS = {
    light: ["#0072b2", "#c4420b", "#007f5f", "#6a3fa0", "#b87700", "#b0528a", "#26344d", "#857c72"],
    dark: ["#56b4e9", "#ff8a5b", "#2fc79a", "#b79cff", "#f0b429", "#e59bc6", "#dfe4ee", "#958d84"],
  };

  // What follows the theme, in the form that Plotly.relayout takes: paper is the page's, everything else the figure's own.
  function colours(layout) {
    const ink = dark() ? "#d9dde3" : "#1f2933", line = dark() ? "#3a424d" : "#dfe3e8";
    const found = { "font.color": ink, colorway: layout.colorway ?? WAYS[dark() ? "dark" : "light"] };
    for (const axis of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))])) {
      for (const what of ["gridcolor", "zerolinecolor", "linecolor"]) found[`${axis}.${what}`] = line;
    }
    return found;
  }

  function themed(layout) {
    const own = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true };
    delete own.width;
    own.font = { ...(layout.font ?? {}), family: getComputedStyle(document.body).fontFamily };
    for (const [key, value] of Object.entries(colours(layout))) {
      const [part, what] = key.split(".");
      own[part] = what ? { ...(own[part] ?? {}), [what]: value } : value;
    }
    own.legend = { bgcolor: "rgba(0,0,0,0)", ...(layout.legend ?? {}) };
    own.template = { ...(layout.template ?? {}) };
    own.margin = { l: 56, r: 16, t: own.title?.text ? 56 : 24, b: 48, ...(layout.margin ?? {}) };
    own.annotations = layout.annotations?.map((note) => (note.font?.size === 16 ? { ...note, font: { ...note.font, size: 13 } } : note));
    return own;
  }

  // The title of a chart is text above it: it wraps with the page and is read aloud when it changes.
  const plain = (title) => (title ?? "").replace(/<[^>]+>/g, " ").replace(/\s+/g, " ").trim();

  function follow(box, caption) {
    const renew = () => {
      const text = plain(box._fullLayout.title?.text);
      if (text && caption.textContent !== text) caption.textContent = text;
    };
    for (const event of ["plotly_afterplot", "plotly_animatingframe", "plotly_animated"]) box.on(event, renew);
  }

  // Room above and below that nothing is drawn in, such as the title's, is given back; the plot itself keeps its size.
  const PARTS = ".legend, .annotation, .updatemenu-container, .slider-container, .colorbar, [class*='axislayer'], [class^='g-x'], [class^='g-y']";

  async function tighten(Plotly, box) {
    const { _size: size, margin, height } = box._fullLayout, above = box.getBoundingClientRect().top, kept = size.h;
    const places = [...box.querySelectorAll(PARTS)].map((part) => part.getBoundingClientRect()).filter((place) => place.width && place.height);
    const first = Math.min(size.t, ...places.map((place) => place.top - above));
    const last = Math.max(size.t + size.h, ...places.map((place) => place.bottom - above));
    const top = Math.max(0, Math.min(margin.t, Math.floor(first) - 6)), bottom = Math.max(0, Math.min(margin.b, Math.floor(height - last) - 10));
    if (top + bottom < 8) return;
    await Plotly.relayout(box, { "margin.t": margin.t - top, "margin.b": margin.b - bottom, height: height - top - bottom });
    const lost = Math.round(kept - box._fullLayout._size.h);               // a margin may hold what was not seen above
    if (lost) await Plotly.relayout(box, { height: height - top - bottom + lost });
    box.style.minHeight = `${box._fullLayout.height}px`;
  }

  function load() {
    return new Promise((resolve, reject) => {
      const tag = document.createElement("script");
      tag.src = new URL("vendor/plotly.min.js", base);
      tag.onload = () => resolve(window.Plotly);
      tag.onerror = () => reject(new Error("plotly.min.js did not load"));
      document.head.append(tag);
    });
  }

  async function draw() {
    const figures = [...document.querySelectorAll("figure.tutor-plotly")].map((figure) => ({
      box: figure.querySelector(".tutor-plotly-box"),
      caption: figure.querySelector("figcaption"),
      json: JSON.parse(figure.querySelector("script").textContent),
    }));
    if (!figures.length) return;
    const Plotly = await load();
    const config = { responsive: true, displaylogo: false, displayModeBar: false };
    for (const { box, caption, json } of figures) {
      await Plotly.newPlot(box, json.data, themed(json.layout), config);
      if (json.frames.length) await Plotly.addFrames(box, json.frames);
      await tighten(Plotly, box);
      if (caption) follow(box, caption);
      box.dataset.drawn = "true";
    }
    new MutationObserver(() => figures.forEach(({ box, json }) => Plotly.relayout(box, colours(json.layout))))
      .observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", draw);
  else draw();
})();
