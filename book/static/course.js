// What scrolls sideways on a narrow screen can be scrolled with the arrow keys: it takes the focus
// while it is wider than its place. The theme does so too, but not for formulas, and not for what
// was folded when the page opened.
(() => {
  const wide = "pre, table, .pst-scrollable-table-container, mjx-container[display='true']";
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  addEventListener("load", async () => {
    await window.MathJax?.startup?.promise; // pages without a formula have no MathJax
    document.querySelectorAll(`article :is(${wide})`).forEach((e) => watch.observe(e));
  });
})();

// The theme takes the focus from the buttons at the top when they are pressed. Who pressed one
// on the keyboard goes on from there, and comes back there from the menu that it opened.
document.addEventListener("DOMContentLoaded", () => {
  const buttons = ".theme-switch-button, .search-button, .primary-toggle, .secondary-toggle";
  for (const button of document.querySelectorAll(buttons)) {
    button.blur = () => button.matches(":focus-visible") || HTMLElement.prototype.blur.call(button);
  }
});
