// A prediction: choices first, the measured answer after. State: chosen (-1: not yet). `themeOf` is in shared.js, above.

/** The verdict in words; pure, tested under node. */
export function verdict(choices, answer, chosen) {
  if (chosen < 0) return "";
  return chosen === answer ? `Yes: ${choices[answer]}.` : `Not this time: ${choices[answer]}.`;
}

function render({ model, el }) {
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const id = `tw-predict-${Math.random().toString(36).slice(2)}`;
  const root = make("section", { class: "tw tw-predict", role: "group", "aria-labelledby": id });
  const question = make("p", { class: "tw-predict-question", id },
    make("span", { class: "tw-predict-mark", "aria-hidden": "true" }, "?"), model.get("question"));
  const list = make("div", { class: "tw-predict-choices" });
  const reveal = make("p", { class: "tw-predict-reveal", "aria-live": "polite" });
  const buttons = model.get("choices").map((text, i) => {
    const button = make("button", { type: "button", "aria-pressed": "false" }, text);
    button.addEventListener("click", () => {
      model.set("chosen", i);
      model.save_changes();
    });
    list.append(button);
    return button;
  });
  root.append(question, list, reveal);
  el.append(root);

  function draw() {
    const chosen = model.get("chosen"), answer = model.get("answer");
    root.classList.toggle("is-open", chosen < 0);
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === chosen));
      button.dataset.state = chosen < 0 ? "" : i === answer ? "right" : i === chosen ? "wrong" : "other";
    });
    reveal.replaceChildren();
    if (chosen >= 0) {
      reveal.append(make("strong", {}, verdict(model.get("choices"), answer, chosen)), " ", model.get("because"));
    }
  }
  const retheme = () => { root.dataset.theme = themeOf(root); };
  const watcher = new MutationObserver(retheme);
  watcher.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme", "theme", "class"] });
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind", "class"] });
  model.on("change:chosen", draw);
  retheme();
  draw();
  return () => {
    watcher.disconnect();
    model.off("change:chosen", draw);
  };
}

export default { render };
