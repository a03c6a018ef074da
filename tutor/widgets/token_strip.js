// token_strip: the text as words; a darker word holds more weight; the line below says kept or dropped.

/** What the figure draws for one row: shade 0..1 (square root of the share of the largest), mask or null, mass kept. */
export function stripRow(weights, kept, keep) {
  let top = 0;
  for (const w of weights) if (w > top) top = w;
  const shade = Float64Array.from(weights, (w) => Math.sqrt(w / Math.max(top, 1e-30)));
  const mask = keep > 0 ? topkMask(weights, keep) : kept;
  let marked = 0;
  if (mask) for (const m of mask) if (m === 1) marked++;
  return { shade, mask, marked, mass: mask ? keptMass(weights, Uint8Array.from(mask, (m) => (m === 1 ? 1 : 0))) : null };
}

const rowOf = (array, step) => (array ? array.subarray(step * array.shape[1], (step + 1) * array.shape[1]) : null);
const stripState = ({ trace, step, settings }) =>
  stripRow(rowOf(trace.arrays.weights, step), rowOf(trace.arrays.kept, step), settings.keep || 0);
const rowLabel = ({ trace, step }) => (trace.subject.rows || [])[step] || `row ${step}`;

export default figure({
  name: "token_strip",
  mount(ctx) {
    const text = h("div", { class: "tw-text", tabindex: "0" });        // it scrolls, so keys must reach it
    ctx.stage.append(text);
    let spans = [], cursor = -1;

    const amount = (w) => (w >= 0.001 || w === 0 ? w.toFixed(3) : w.toExponential(1));
    function point(i) {
      if (cursor >= 0 && spans[cursor]) spans[cursor].classList.remove("tw-cursor");
      cursor = i;
      const { trace, step } = ctx.state();
      if (i < 0) { ctx.tip(null); return; }
      spans[i].classList.add("tw-cursor");
      const weights = rowOf(trace.arrays.weights, step), box = spans[i].getBoundingClientRect();
      const said = `${i} ${JSON.stringify(trace.subject.tokens[i])}\n${amount(weights[i])} ${trace.subject.quantity || "weight"}`;
      ctx.tip(said, box.left + box.width / 2, box.top);
      return said;
    }
    text.addEventListener("pointerover", (event) => {
      const span = event.target.closest(".tw-tok");
      if (span) point(Number(span.dataset.i));
    });
    text.addEventListener("pointerleave", () => point(-1));
    text.addEventListener("click", (event) => {
      const span = event.target.closest(".tw-tok");
      if (span) ctx.select({ token: Number(span.dataset.i) });
    });

    return {
      move(by) {
        if (!spans.length) return;
        const said = point(Math.max(0, Math.min(spans.length - 1, cursor < 0 ? 0 : cursor + by)));
        ctx.say(`Token ${said.replace("\n", ": ")}`);
      },
      draw(state, changed) {
        if (changed.has("trace")) {
          const { tokens } = state.trace.subject, inside = [];
          spans = tokens.map((token, i) => {
            const lead = token.trim() ? token.match(/^ */)[0] : "";       // the space before a word stays unshaded
            const span = h("span", { class: "tw-tok", "data-i": i }, token.slice(lead.length).replace(/\n/g, "↵\n"));
            inside.push(lead, span);
            return span;
          });
          text.replaceChildren(...inside);
          cursor = -1;
        }
        const { shade, mask } = stripState(state);
        spans.forEach((span, i) => {
          span.style.setProperty("--w", shade[i].toFixed(3));
          span.dataset.kept = mask ? ["dropped", "kept", "later"][mask[i]] : "";
          span.classList.toggle("tw-chosen", Boolean(state.selection && state.selection.token === i));
        });
      },
    };
  },
  keys(event, state, ctx, view) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return false;
    view.move(event.key === "ArrowDown" ? 1 : -1);
    return true;
  },
  readout(state) {
    const { marked, mass } = stripState(state);
    return mass === null ? rowLabel(state) : `${rowLabel(state)}: ${marked} tokens hold ${percent(mass)}`;
  },
  legend(state) {
    const ramp = h("span", { class: "tw-ramp", "aria-hidden": "true" });
    const keys = [{ node: ramp, label: `stronger: more ${state.trace.subject.quantity || "weight"} (square-root scale)` }];
    if (stripState(state).mask) keys.push({ mark: "kept", shape: "line", label: "kept" }, { mark: "evicted", shape: "dots", label: "dropped" });
    return keys;
  },
  stepLabel: (state) => `${state.step + 1} of ${state.trace.steps}`,
});
