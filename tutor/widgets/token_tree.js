// token_tree: one verification of a drafted tree. The words written so far, what each forward bought, the tree with the
// walk of the verifier, the candidates at the node in focus (draft against target), and who may attend whom.

// ------------------------------------------------------------------------------------------------------ display data
/** Row i attends column j: 1 where j is i or one of its ancestors; flat, parent.length squared. */
export function ancestorMask(parent) {
  const n = parent.length,
    mask = new Uint8Array(n * n);
  for (let i = 0; i < n; i++) for (let j = i; j >= 0; j = parent[j]) mask[i * n + j] = 1;
  return mask;
}

/** Column (depth) and row of every node: a first child continues its parent's row, the next ones open rows below. */
export function treeLayout(parent) {
  const n = parent.length,
    children = Array.from({ length: n }, () => []),
    depth = new Int32Array(n),
    row = new Int32Array(n);
  for (let i = 1; i < n; i++) {
    children[parent[i]].push(i);
    depth[i] = depth[parent[i]] + 1;
  }
  const order = [];
  let rows = n ? 1 : 0;
  const visit = (i) => {
    order.push(i);
    children[i].forEach((child, rank) => {
      row[child] = rank === 0 ? row[i] : rows++;
      visit(child);
    });
  };
  if (n) visit(0);
  return { depth, row, rows, order, children };
}

/** Nodes in the order in which the verifier looked at them: the children of each accepted node, until one is accepted. */
export function walkOrder(parent, state) {
  const order = [];
  let at = 0;
  for (let i = 1; i < parent.length; i++)
    if (parent[i] === at && (state[i] === 1 || state[i] === 2)) {
      order.push(i);
      if (state[i] === 1) at = i; // its children come later
    }
  return order;
}

/** The rows of one step: plain arrays of its nodes and the token that followed. */
export function nodesOf(trace, step) {
  const a = trace.arrays,
    first = a.node_start[step],
    last = a.node_start[step + 1];
  const part = (name) => (a[name] ? Array.from(a[name].subarray(first, last)) : null);
  return {
    token: part("token"),
    parent: part("parent"),
    q: part("q"),
    p: part("p"),
    state: part("state"),
    draw: part("draw"),
    next: a.next_token[step],
  };
}

/** Per step: drafted, accepted and written tokens (the accepted ones and, if there is one, the target's own). */
export function tally(trace) {
  const a = trace.arrays;
  return Array.from({ length: trace.steps }, (_, step) => {
    let accepted = 0;
    for (let i = a.node_start[step]; i < a.node_start[step + 1]; i++) accepted += a.state[i] === 1;
    return {
      drafted: a.node_start[step + 1] - a.node_start[step] - 1,
      accepted,
      written: accepted + (a.next_token[step] >= 0),
    };
  });
}

/** Mean tokens per forward over steps 0..step. */
export function perForward(trace, step) {
  const counts = tally(trace).slice(0, step + 1);
  return counts.reduce((sum, c) => sum + c.written, 0) / counts.length;
}

/** The tokens written by steps 0..step: {step, token, own}, where own marks the target's own token. */
export function written(trace, step) {
  const out = [];
  for (let s = 0; s <= step; s++) {
    const { token, state, next } = nodesOf(trace, s);
    token.forEach((id, i) => {
      if (state[i] === 1) out.push({ step: s, token: id, own: false });
    });
    if (next >= 0) out.push({ step: s, token: next, own: true });
  }
  return out;
}

/** The node in focus when nobody chose one: the last accepted one that won over a rejected one, else the first rejected
 * one, else the last accepted one. */
export function defaultFocus(parent, state) {
  let won = -1;
  state.forEach((s, i) => {
    if (s === 1 && parent.some((up, j) => up === parent[i] && state[j] === 2)) won = i;
  });
  if (won >= 0) return won;
  return Math.max(0, state.indexOf(2) >= 0 ? state.indexOf(2) : state.lastIndexOf(1));
}

const piece = (trace, id) => (trace.subject.pieces || {})[String(id)] ?? `⟨${id}⟩`;
const STATE_WORDS = ["root", "accepted", "tested and rejected", "never reached"];
const shown = (text) => text.replace(/\n/g, "↵").trim() || "␣";
const short = (text, most = 16) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** One node in words. */
export function nodeWords(trace, step, i) {
  const { token, q, p, state, draw } = nodesOf(trace, step);
  if (i === 0) return `“${shown(piece(trace, token[0]))}”: the pending token, root of the tree.`;
  const says = [Number.isFinite(q[i]) ? `draft ${percent(q[i])}` : "proposed without a probability"];
  if (Number.isFinite(p[i])) says.push(`target ${percent(p[i])}`);
  if (draw && Number.isFinite(draw[i])) says.push(`number drawn ${draw[i].toFixed(2)}`);
  return `“${shown(piece(trace, token[i]))}”: ${says.join(", ")}; ${STATE_WORDS[state[i]]}.`;
}

// ----------------------------------------------------------------------------------------------------------- drawing
const STATE_NAMES = ["root", "accepted", "rejected", "unreached", "own"];
const SIGNS = ["", "✓ ", "✕ ", "", ""];
const measure = (() => {
  let pen;
  return (text) => {
    pen ??= document.createElement("canvas").getContext("2d");
    pen.font = '500 13.5px system-ui, "Segoe UI", "Noto Sans", "Liberation Sans", sans-serif';
    return pen.measureText(text).width;
  };
})();
const PILL = 23;

function edgePath(a, b) {
  const x1 = a.x + a.w,
    y1 = a.y,
    x2 = b.x,
    y2 = b.y,
    bend = Math.min(28, (x2 - x1) * 0.6);
  return y1 === y2 ? `M${x1} ${y1}H${x2}` : `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
}

/** Places of all pills, the target's own token included as a last node; `outline` when the columns do not fit. */
function place(trace, nodes, width) {
  const { token, parent, state, next } = nodes,
    all = parent.slice(),
    kinds = state.slice(),
    ids = token.slice();
  if (next >= 0) {
    all.push(Math.max(0, state.lastIndexOf(1)));
    kinds.push(4);
    ids.push(next);
  }
  const { depth, row, rows, order } = treeLayout(all),
    columns = Math.max(...depth) + 1;
  let words, wide, columnWidth, gap;
  // Where the columns do not fit, long words are cut; where that is not enough, every node gets a line of its own.
  let outline = false;
  for (const [most, least] of [
    [16, 18],
    [8, 10],
    [16, -Infinity],
  ]) {
    outline = least < 0;
    words = ids.map((id, i) => SIGNS[kinds[i]] + short(shown(piece(trace, id)), most));
    wide = words.map((text) => Math.ceil(measure(text)) + 20);
    columnWidth = new Array(columns).fill(0);
    wide.forEach((w, i) => {
      columnWidth[depth[i]] = Math.max(columnWidth[depth[i]], w);
    });
    const total = columnWidth.reduce((sum, w) => sum + w, 0);
    gap = columns > 1 ? Math.min(56, (width - total - 4) / (columns - 1)) : 56;
    if (gap >= least) break;
  }
  const indent = Math.max(8, Math.min(26, (width - Math.max(...wide) - 4) / Math.max(1, columns - 1)));
  const left = columnWidth.map((_, c) =>
    outline ? 2 + c * indent : 2 + columnWidth.slice(0, c).reduce((sum, w) => sum + w + gap, 0),
  );
  const line = new Int32Array(all.length); // in outline every node has a line of its own
  order.forEach((i, at) => {
    line[i] = outline ? at : row[i];
  });
  const lines = outline ? order.length : rows,
    small = new Uint8Array(lines).fill(lines > 14 ? 1 : 0);
  line.forEach((at, i) => {
    if (kinds[i] !== 3) small[at] = 0;
  }); // in a large tree, lines never reached are set small
  const middle = [];
  let tall = 2;
  for (const s of small) {
    middle.push(tall + (s ? 9 : 14));
    tall += s ? 18 : outline ? 27 : 30;
  }
  const places = kinds.map((kind, i) => {
    const tiny = small[line[i]] === 1,
      room = width - 4 - left[depth[i]];
    return {
      x: left[depth[i]],
      y: middle[line[i]],
      w: Math.min(tiny ? Math.ceil(0.8 * wide[i]) : wide[i], room),
      h: tiny ? 16 : PILL,
      tiny,
      kind,
      word: words[i],
    };
  });
  return { places, parent: all, outline, tall: tall + 2, order };
}

export default figure({
  name: "token_tree",
  mount(ctx) {
    const text = h("div", { class: "tw-tt-text", tabindex: 0, role: "region", "aria-label": "The text written so far" }),
      skyline = h("div", { class: "tw-tt-sky" });
    const tree = h("div", { class: "tw-tt-tree" }),
      panel = h("div", { class: "tw-tt-panel" }),
      maskBox = h("div", { class: "tw-tt-maskbox" });
    const side = h("div", { class: "tw-tt-side" }, panel, maskBox);
    ctx.stage.append(text, skyline, tree, side);
    let drawn = false,
      order = [];

    const focusOf = (state) => {
      const { parent, state: states } = nodesOf(state.trace, state.step),
        picked = state.selection;
      return picked && picked.step === state.step && picked.node < parent.length ? picked.node : defaultFocus(parent, states);
    };

    function drawText(state) {
      const { trace, step } = state,
        prompt = trace.subject.prompt || "",
        tail = prompt.length > 220 ? `…${prompt.slice(-220)}` : prompt;
      let before = -1;
      text.replaceChildren(
        h("span", { class: "tw-tt-prompt" }, tail),
        ...written(trace, step).map((one) => {
          const first = one.step !== before;
          before = one.step;
          return h(
            "span",
            {
              class: `tw-tt-word${one.own ? " tw-tt-ownword" : ""}${first ? " tw-tt-firstword" : ""}${one.step === step ? " tw-tt-now" : ""}`,
            },
            piece(trace, one.token).replace(/\n/g, "↵\n"),
          );
        }),
      );
      text.scrollTop = text.scrollHeight;
    }

    function drawSkyline(state) {
      const { trace, step, width } = state,
        counts = tally(trace),
        pitch = Math.min(22, width / counts.length),
        bar = Math.max(2, pitch - Math.min(4, pitch * 0.3));
      const most = Math.max(...counts.map((c) => c.written)),
        unit = Math.min(9, 54 / most),
        floor = Math.ceil(most * unit) + 4,
        spare = Math.max(...counts.map((c) => c.drafted - c.accepted));
      const below = Math.min(22, spare * 2),
        scale = spare ? below / spare : 0,
        parts = [];
      counts.forEach((c, s) => {
        const x = s * pitch,
          opacity = s > step ? 0.3 : 1;
        const column = svg("g", { class: "tw-tt-column", opacity, "data-step": s });
        for (let i = 0; i < c.written; i++) {
          const own = i === c.written - 1 && c.written > c.accepted;
          column.append(
            svg("rect", {
              x: x + 0.75,
              y: floor - (i + 1) * unit + 0.75,
              width: bar - 1.5,
              height: Math.max(1, unit - 1.5),
              rx: 1.5,
              class: own ? "tw-tt-sky-own" : "tw-tt-sky-accepted",
            }),
          );
        }
        const lost = c.drafted - c.accepted;
        if (lost)
          column.append(
            svg("rect", {
              x: x + 0.5,
              y: floor + 3.5,
              width: bar - 1,
              height: Math.max(1, lost * scale),
              class: "tw-tt-sky-lost",
            }),
          );
        column.append(svg("rect", { x, y: 0, width: pitch, height: floor + below + 6, fill: "transparent" }));
        if (s === step)
          parts.push(svg("path", { d: `M${x + bar / 2 - 4} ${floor + below + 11}h8l-4 -5z`, fill: "var(--tw-ink)" }));
        parts.push(column);
      });
      const tall = floor + below + 12;
      const drawing = svg(
        "svg",
        { width, height: tall, viewBox: `0 0 ${width} ${tall}`, "aria-hidden": "true" },
        svg("line", { x1: 0, x2: pitch * counts.length, y1: floor + 1.5, y2: floor + 1.5, stroke: "var(--tw-line)" }),
        ...parts,
      );
      drawing.addEventListener("click", (event) => {
        const column = event.target.closest("[data-step]");
        if (column) ctx.setStep(Number(column.dataset.step));
      });
      drawing.addEventListener("pointermove", (event) => {
        const column = event.target.closest("[data-step]");
        if (!column) return;
        const c = counts[Number(column.dataset.step)];
        ctx.tip(
          `step ${column.dataset.step}: ${c.written} written, ${c.drafted - c.accepted} of ${c.drafted} drafted for nothing`,
          event.clientX,
          event.clientY,
        );
      });
      skyline.replaceChildren(
        h(
          "div",
          { class: "tw-tt-label" },
          h("span", {}, "tokens written by each forward; below the line: drafted for nothing"),
        ),
        drawing,
      );
    }

    function drawTree(state, walk) {
      const { trace, step, width } = state,
        nodes = nodesOf(trace, step),
        roomy = width >= 760;
      const room = roomy && sideWanted(state) ? width - 268 : width;
      const { places, parent, outline, tall, order: reading } = place(trace, nodes, room),
        focus = focusOf(state);
      order = reading.filter((i) => i < nodes.parent.length);
      const tests = walkOrder(nodes.parent, nodes.state),
        pace = walk && !ctx.reduced() ? Math.min(110, 550 / Math.max(1, tests.length)) : 0;
      const when = places.map((_, i) => (i >= nodes.parent.length ? tests.length : tests.indexOf(i)));
      const drawing = svg("svg", {
        width: room,
        height: tall,
        viewBox: `0 0 ${room} ${tall}`,
        class: outline ? "tw-tt-outline" : "",
        "aria-hidden": "true",
      });
      const edges = svg("g"),
        pills = svg("g");
      places.forEach((at, i) => {
        const kind = STATE_NAMES[at.kind],
          wait = pace && when[i] >= 0 ? { style: { "animation-delay": `${Math.round(when[i] * pace)}ms` } } : {};
        const pop = pace && when[i] >= 0 ? " tw-tt-walk" : "";
        if (i > 0) {
          const q = nodes.q[i],
            up = places[parent[i]];
          const d = outline ? `M${up.x + 9} ${up.y + up.h / 2}V${at.y - 6}q0 6 6 6H${at.x}` : edgePath(up, at);
          edges.append(
            svg("path", {
              d,
              class: `tw-tt-edge tw-tt-${kind}${pop}`,
              "stroke-width": (Number.isFinite(q) ? 1 + 5 * q : 1.5).toFixed(2),
              ...wait,
            }),
          );
        }
        const shape = { x: at.x, y: at.y - at.h / 2, width: at.w, height: at.h, rx: at.kind === 4 ? 4 : at.h / 2 };
        pills.append(
          svg(
            "g",
            { class: `tw-tt-node tw-tt-${kind}${pop}${i === focus ? " tw-tt-focus" : ""}`, "data-node": i, ...wait },
            i === focus
              ? svg("rect", {
                  x: shape.x - 3,
                  y: shape.y - 3,
                  width: shape.width + 6,
                  height: at.h + 6,
                  rx: shape.rx + 3,
                  class: "tw-tt-halo",
                })
              : null,
            svg("rect", { ...shape, class: "tw-tt-pill" }),
            at.kind === 4
              ? svg("rect", {
                  x: shape.x + 2.5,
                  y: shape.y + 2.5,
                  width: shape.width - 5,
                  height: at.h - 5,
                  rx: 2,
                  class: "tw-tt-inner",
                })
              : null,
            svg(
              "text",
              {
                x: at.x + at.w / 2,
                y: at.y + (at.tiny ? 3.7 : 4.7),
                "text-anchor": "middle",
                "font-size": at.tiny ? 11 : null,
              },
              at.word,
            ),
          ),
        );
      });
      drawing.append(edges, pills);
      drawing.addEventListener("click", (event) => {
        const node = event.target.closest("[data-node]");
        if (node && Number(node.dataset.node) < nodes.parent.length) ctx.select({ step, node: Number(node.dataset.node) });
      });
      drawing.addEventListener("pointerover", (event) => {
        const node = event.target.closest("[data-node]");
        if (!node) {
          ctx.tip(null);
          return;
        }
        const i = Number(node.dataset.node),
          box = node.getBoundingClientRect();
        ctx.tip(
          i < nodes.parent.length
            ? nodeWords(trace, step, i)
            : `“${shown(piece(trace, nodes.next))}”: written by the target itself.`,
          box.left + box.width / 2,
          box.top,
        );
      });
      tree.replaceChildren(drawing);
      ctx.stage.classList.toggle("tw-tt-roomy", roomy && sideWanted(state));
    }

    const sideWanted = (state) => nodesOf(state.trace, state.step).parent.length > 1;

    function drawPanel(state) {
      const { trace, step } = state,
        { token, parent, q, p, state: states, draw } = nodesOf(trace, step),
        focus = focusOf(state);
      panel.hidden = parent.length < 2;
      if (panel.hidden) return;
      const above = focus === 0 ? 0 : parent[focus],
        rivals = parent
          .map((up, i) => (up === above ? i : -1))
          .filter((i) => i >= 0)
          .slice(0, 8);
      const bar = (value, name) =>
        h(
          "span",
          { class: "tw-tt-track" },
          h("span", {
            class: `tw-tt-bar tw-tt-bar-${name}`,
            style: { width: Number.isFinite(value) ? `${(100 * Math.min(1, value)).toFixed(1)}%` : "0" },
          }),
        );
      const amount = (value) => (Number.isFinite(value) ? percent(value) : "–");
      panel.replaceChildren(
        ...[
          h(
            "div",
            { class: "tw-tt-label" },
            h("span", {}, "after “", short(shown(piece(trace, token[above])), 14), "”"),
            h(
              "span",
              {},
              h("i", { class: "tw-tt-chip tw-tt-bar-q" }),
              "draft q ",
              h("i", { class: "tw-tt-chip tw-tt-bar-p" }),
              "target p",
            ),
          ),
          ...rivals.map((i) =>
            h(
              "div",
              { class: `tw-tt-rival${i === focus ? " tw-tt-here" : ""}`, onclick: () => ctx.select({ step, node: i }) },
              h(
                "span",
                { class: `tw-tt-name tw-tt-t-${STATE_NAMES[states[i]]}` },
                SIGNS[states[i]],
                short(shown(piece(trace, token[i])), 12),
              ),
              h("span", { class: "tw-tt-bars" }, bar(q[i], "q"), bar(p[i], "p")),
              h("span", { class: "tw-tt-amounts" }, h("span", {}, amount(q[i])), h("span", {}, amount(p[i]))),
            ),
          ),
          draw && Number.isFinite(draw[focus])
            ? h(
                "div",
                { class: "tw-tt-label" },
                h("span", {}, `number drawn for “${short(shown(piece(trace, token[focus])), 12)}”`),
                h("span", {}, draw[focus].toFixed(3)),
              )
            : null,
        ].filter(Boolean),
      );
    }

    function drawMask(state) {
      const { parent, state: states } = nodesOf(state.trace, state.step),
        n = parent.length;
      maskBox.hidden = state.settings.mask === false || n < 2;
      if (maskBox.hidden) return;
      const mask = ancestorMask(parent),
        cell = Math.max(3, Math.min(12, Math.floor(240 / n))),
        gap = cell > 5 ? 1 : 0.5,
        size = n * cell,
        focus = focusOf(state);
      const paths = { path: "", rest: "" };
      for (let i = 0; i < n; i++)
        for (let j = 0; j <= i; j++)
          if (mask[i * n + j])
            paths[states[i] <= 1 ? "path" : "rest"] += `M${j * cell} ${i * cell}h${cell - gap}v${cell - gap}h${gap - cell}Z`;
      const drawing = svg(
        "svg",
        { width: size + 2, height: size + 2, viewBox: `-1 -1 ${size + 2} ${size + 2}`, "aria-hidden": "true" },
        svg("rect", { x: -0.5, y: -0.5, width: size, height: size, fill: "var(--tw-soft)" }),
        svg("path", { d: paths.rest, fill: "var(--tw-evicted)" }),
        svg("path", { d: paths.path, fill: "var(--tw-accepted)" }),
        svg("rect", {
          x: -0.75,
          y: focus * cell - 0.75,
          width: size + 0.5,
          height: cell + 0.5,
          fill: "none",
          stroke: "var(--tw-query)",
          "stroke-width": 1.5,
        }),
      );
      drawing.addEventListener("click", (event) => {
        const box = drawing.getBoundingClientRect(),
          i = Math.floor((event.clientY - box.top - 1) / cell);
        if (i >= 0 && i < n) ctx.select({ step: state.step, node: i });
      });
      maskBox.replaceChildren(
        h("div", { class: "tw-tt-label" }, h("span", {}, `who attends whom, ${n} tokens`)),
        drawing,
        h("div", { class: "tw-tt-hint" }, "A row sees itself and its ancestors; green: the path that was kept."),
      );
    }

    return {
      move(by) {
        const state = ctx.state(),
          at = order.indexOf(focusOf(state)),
          next = order[Math.max(0, Math.min(order.length - 1, at + by))];
        ctx.select({ step: state.step, node: next });
        ctx.say(nodeWords(state.trace, state.step, next));
      },
      draw(state, changed) {
        const fresh = ["trace", "step", "size", "settings"].some((name) => changed.has(name)),
          boxes = [text, tree, side];
        if (changed.has("size")) for (const box of boxes) box.style.minHeight = "";
        if (fresh) {
          drawText(state);
          drawSkyline(state);
        }
        if (fresh || changed.has("selection")) {
          drawTree(state, drawn && changed.has("step"));
          drawPanel(state);
          drawMask(state);
        }
        for (const box of boxes) box.style.minHeight = `${box.offsetHeight}px`; // grow, never shrink: the controls stay put
        drawn = true;
      },
    };
  },
  keys(event, state, ctx, view) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return false;
    view.move(event.key === "ArrowDown" ? 1 : -1);
    return true;
  },
  readout: ({ trace, step }) =>
    `${trace.subject.drafter || trace.method}, ${trace.subject.verifier || "verified"}: ${perForward(trace, step).toFixed(2)} tokens per forward so far`,
  legend: (state) => [
    { node: sample("root"), label: "pending" },
    { node: sample("accepted", "✓"), label: "accepted" },
    { node: sample("rejected", "✕"), label: "rejected" },
    { node: sample("unreached"), label: "not reached" },
    { node: sample("own"), label: "the target's own" },
    ...(state.trace.arrays.q.some(Number.isFinite)
      ? [{ mark: "muted", shape: "line", label: "thicker: the draft was surer" }]
      : []),
  ],
  stepLabel: (state) => `forward ${state.step + 1} of ${state.trace.steps}`,
});

function sample(kind, sign = "") {
  return svg(
    "svg",
    { viewBox: "0 0 24 14", width: 24, height: 14, "aria-hidden": "true", class: `tw-tt-node tw-tt-${kind}` },
    svg("rect", { x: 1, y: 1, width: 22, height: 12, rx: kind === "own" ? 2.5 : 6, class: "tw-tt-pill" }),
    kind === "own" ? svg("rect", { x: 3, y: 3, width: 18, height: 8, rx: 1, class: "tw-tt-inner" }) : null,
    sign ? svg("text", { x: 12, y: 10.6, "font-size": 10, "text-anchor": "middle" }, sign) : null,
  );
}
