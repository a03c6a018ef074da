// Small services for every page: what scrolls can be scrolled by keyboard, and the sidebar's arrows have a name.
(() => {
  function name() {
    for (const summary of document.querySelectorAll("summary")) {
      if (summary.textContent.trim() || summary.ariaLabel) continue;
      const link = summary.closest("li")?.querySelector("a");
      summary.ariaLabel = `Pages below ${link?.textContent.trim() || "this one"}`;
    }
  }

  function reachable() {
    for (const box of document.querySelectorAll("pre, .table-scroll, .cell_output .output, .math-wrapper, .tw-text")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      if (scrolls) box.tabIndex = 0;
      else if (!box.classList.contains("table-scroll")) box.removeAttribute("tabindex");
    }
  }
  addEventListener("DOMContentLoaded", name);
  addEventListener("load", reachable);
  addEventListener("resize", reachable);
  let waiting = 0;                                          // figures arrive after the page: look again when one does
  new MutationObserver((changes) => {
    const arrived = changes.some((change) => [...change.addedNodes].some((node) => node.classList?.contains("tw")));
    if (!arrived) return;
    clearTimeout(waiting);
    waiting = setTimeout(reachable, 200);
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
