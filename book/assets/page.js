// Small services for every page: what scrolls can be scrolled by keyboard, the sidebar's arrows have a name, and on a phone
// the long tables of claim cards are folded.
(() => {
  function name() {
    for (const summary of document.querySelectorAll("summary")) {
      if (summary.textContent.trim() || summary.ariaLabel) continue;
      const link = summary.closest("li")?.querySelector("a");
      summary.ariaLabel = `Pages below ${link?.textContent.trim() || "this one"}`;
    }
  }

  function reachable() {
    for (const box of document.querySelectorAll("pre, .table-scroll, .cell_output .output, .math-wrapper, mjx-container, .tw-text")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      if (scrolls) box.tabIndex = 0;
      else if (!box.classList.contains("table-scroll")) box.removeAttribute("tabindex");
    }
  }

  function fold() {
    if (innerWidth < 600) for (const more of document.querySelectorAll("details.claim-more")) more.open = false;
  }

  function unfold() {                                       // paper cannot be clicked
    for (const more of document.querySelectorAll("details.claim-more")) more.open = true;
  }
  addEventListener("DOMContentLoaded", name);
  addEventListener("DOMContentLoaded", fold);
  addEventListener("beforeprint", unfold);
  addEventListener("load", reachable);
  addEventListener("resize", reachable);
  let waiting = 0;                                          // figures and formulas arrive after the page: look again then
  new MutationObserver((changes) => {
    const late = (node) => node.classList?.contains("tw") || node.localName === "mjx-container";
    const arrived = changes.some((change) => [...change.addedNodes].some(late));
    if (!arrived) return;
    clearTimeout(waiting);
    waiting = setTimeout(reachable, 200);
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
