// Small services for every page: what scrolls can be scrolled by keyboard.
(() => {
  function reachable() {
    for (const box of document.querySelectorAll("pre, .table-scroll, .cell_output .output, .math-wrapper")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      if (scrolls) box.tabIndex = 0;
      else if (!box.classList.contains("table-scroll")) box.removeAttribute("tabindex");
    }
  }
  addEventListener("load", reachable);
  addEventListener("resize", reachable);
})();
