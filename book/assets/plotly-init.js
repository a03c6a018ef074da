// Draws the Plotly figures that the page carries as JSON. plotly.min.js is loaded from this site, and only where needed.
(() => {
  const base = new URL(".", document.currentScript.src);
  const dark = () => document.documentElement.dataset.theme === "dark";

  // A title says the finding: on a narrow page it begins at the left edge and its letters shrink until the longest line fits.
  function fitted(title, width) {
    const longest = Math.max(...title.text.replace(/<(?!br)[^>]*>/g, "").split(/<br ?\/?>/).map((line) => line.length));
    const size = title.font?.size ?? 15, room = Math.floor((width - 20) / (0.56 * longest));
    if (width >= 480 || room >= size) return title;
    return { ...title, x: 8 / width, xanchor: "left", xref: "container", font: { ...(title.font ?? {}), size: Math.max(9, room) } };
  }

  // What the page decides: paper, ink and lines follow the theme; everything else is the figure's own.
  function themed(layout, width) {
    const ink = dark() ? "#d9dde3" : "#1f2933", line = dark() ? "#3a424d" : "#dfe3e8";
    const own = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true };
    delete own.width;
    own.font = { ...(layout.font ?? {}), color: ink, family: getComputedStyle(document.body).fontFamily };
    for (const key of Object.keys(own)) {
      if (/^[xy]axis\d*$/.test(key)) own[key] = { ...own[key], gridcolor: line, zerolinecolor: line, linecolor: line };
    }
    for (const key of ["xaxis", "yaxis"]) own[key] ??= { gridcolor: line, zerolinecolor: line, linecolor: line };
    if (own.title?.text) own.title = fitted(own.title, width);
    own.legend = { bgcolor: "rgba(0,0,0,0)", ...(layout.legend ?? {}) };
    own.template = { ...(layout.template ?? {}) };
    own.margin = { l: 56, r: 16, t: own.title?.text ? 56 : 24, b: 48, ...(layout.margin ?? {}) };
    return own;
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
      json: JSON.parse(figure.querySelector("script").textContent),
    }));
    if (!figures.length) return;
    const Plotly = await load();
    const config = { responsive: true, displaylogo: false, displayModeBar: false };
    for (const { box, json } of figures) {
      await Plotly.newPlot(box, json.data, themed(json.layout, box.clientWidth), config);
      if (json.frames.length) await Plotly.addFrames(box, json.frames);
      box.dataset.drawn = "true";
    }
    new MutationObserver(() => figures.forEach(({ box, json }) => Plotly.relayout(box, themed(json.layout, box.clientWidth))))
      .observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", draw);
  else draw();
})();
