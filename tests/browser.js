// What the browser tests ask a page: `look` is there on every page that they open.
window.look = {
  // Folded answers and solutions are part of the page: most questions are asked with them open.
  fold(open) {
    for (const d of document.querySelectorAll("details")) d.open = open;
  },

  // Those of the article that can be seen now.
  findFolds() {
    look.folds = [...document.querySelectorAll("article details")].filter((d) => look.shown(d));
    return look.folds.length;
  },

  // Whether the first thing inside each of them can be seen.
  unfolded() {
    return look.folds.map((d) => look.shown(d.querySelector(":scope > :not(summary)")));
  },

  name(e) {
    const parent = e.parentElement?.className;
    return `${e.outerHTML.slice(0, 90)} in ${parent}: ${e.innerText?.trim().slice(0, 40) ?? ""}`;
  },

  shown(e, opacityProperty = true) {
    const hidden = e.closest("mjx-assistive-mml, .visually-hidden, script, style, noscript");
    return !hidden && e.checkVisibility({ visibilityProperty: true, opacityProperty });
  },

  // Elements that hold words. MathJax draws each glyph in an element of its own, without text.
  *words(root) {
    const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let node = walk.nextNode(); node; node = walk.nextNode())
      if (node.data.trim() && look.shown(node.parentElement)) yield node;
    for (const e of root.querySelectorAll("mjx-c")) if (look.shown(e)) yield e;
  },

  // Words, pictures and controls of the article that lie where no scrolling leads.
  cutOff() {
    const article = document.querySelector("article");
    const things = [...article.querySelectorAll("img, svg, input, button, canvas, video, iframe")];
    const lost = [];
    for (const thing of [...look.words(article), ...things.filter(look.shown)]) {
      const range = document.createRange();
      range.selectNode(thing);
      const { left, right, width } = range.getBoundingClientRect();
      const element = thing.nodeType === Node.TEXT_NODE ? thing.parentElement : thing;
      if (width && !look.reachable(element, left, right)) lost.push(look.name(element));
    }
    return lost;
  },

  reachable(element, left, right) {
    for (let e = element; e; e = e.parentElement) {
      const box = e.getBoundingClientRect();
      const { overflowX, display } = getComputedStyle(e);
      if (overflowX === "visible" || display.startsWith("inline") || e === document.body) continue;
      // scrolling starts at the left edge: what lies before it is lost
      if (left + e.scrollLeft < box.left - 1) return false;
      if (overflowX === "auto" || overflowX === "scroll") ({ left, right } = box);
      else if (right > box.right + 1) return false;
    }
    return left >= -1 && right <= innerWidth + 1;
  },

  rgba(color) {
    look.colors ??= new Map();
    look.canvas ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    if (!look.colors.has(color)) {
      look.canvas.clearRect(0, 0, 1, 1);
      look.canvas.fillStyle = color;
      look.canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = look.canvas.getImageData(0, 0, 1, 1).data;
      look.colors.set(color, [r, g, b, a / 255]);
    }
    return look.colors.get(color);
  },

  over([r, g, b, a], [R, G, B]) {
    const mix = (top, below) => a * top + (1 - a) * below;
    return [mix(r, R), mix(g, G), mix(b, B), 1];
  },

  luminance([r, g, b]) {
    const linear = (c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  },

  // What is behind an element, and how opaque the element is.
  paper(element) {
    const layers = [];
    let opacity = 1;
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      opacity *= style.opacity;
      const layer = look.rgba(style.backgroundColor);
      if (layer[3]) layers.push(layer);
      if (layer[3] === 1) break;
    }
    const canvas = look.rgba("Canvas");
    return [layers.reduceRight((below, top) => look.over(top, below), canvas), opacity];
  },

  // The contrast of an element's words, and what WCAG AA wants of it.
  contrast(element) {
    const style = getComputedStyle(element);
    const [paper, opacity] = look.paper(element);
    const [r, g, b, a] = look.rgba(style.color);
    const ink = look.over([r, g, b, a * opacity], paper);
    const [dark, light] = [look.luminance(ink), look.luminance(paper)].sort((x, y) => x - y);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    return { ratio: (light + 0.05) / (dark + 0.05), wanted: large ? 3 : 4.5 };
  },

  *elementsWithWords() {
    const seen = new Set();
    for (const w of look.words(document.body)) {
      const element = w.nodeType === Node.TEXT_NODE ? w.parentElement : w;
      if (!seen.has(element)) yield element;
      seen.add(element);
    }
  },

  faint() {
    const all = [...look.elementsWithWords()];
    const faint = all
      .map((e) => ({ e, ...look.contrast(e) }))
      .filter(({ ratio, wanted }) => ratio < wanted)
      .map(({ e, ratio }) => `${ratio.toFixed(2)} ${getComputedStyle(e).color} ${look.name(e)}`);
    return { asked: all.length, faint };
  },

  // Mark one element of each look, ink and paper and size: the others have the same contrast.
  markLooks() {
    for (const e of document.querySelectorAll("[data-look]")) delete e.dataset.look;
    const seen = new Set();
    for (const e of look.elementsWithWords()) {
      const { color, fontSize, fontWeight } = getComputedStyle(e);
      const key = [color, fontSize, fontWeight, ...look.paper(e)].join();
      if (!seen.has(key)) e.dataset.look = "";
      seen.add(key);
    }
  },

  // All that the Tab key should reach.
  controls() {
    const all = "a[href], button, summary, input, select, textarea, [tabindex]";
    return [...document.querySelectorAll(all)].filter(
      (e) => e.tabIndex >= 0 && !e.disabled && look.shown(e, false),
    );
  },

  ring(e) {
    return ["", "::before", "::after"].map((part) => {
      const { outlineStyle, outlineWidth, boxShadow } = getComputedStyle(e, part || undefined);
      const outline = outlineStyle !== "none" && parseFloat(outlineWidth) >= 1;
      return `${outline ? outlineStyle + outlineWidth : ""} ${boxShadow}`;
    });
  },

  // Take notes while the tester presses Tab.
  watchFocus() {
    document.activeElement?.blur();
    look.waiting = new Map(look.controls().map((e) => [e, look.ring(e).join()]));
    look.unmarked = [];
    document.addEventListener("focusin", ({ target: e }) => {
      const marked = look.shown(e) && look.ring(e).join() !== look.waiting.get(e);
      if (!marked) look.unmarked.push(look.name(e));
      look.waiting.delete(e);
    });
    return look.waiting.size;
  },

  // The theme's list of sections shows the parts of one section at a time: the others are gone.
  focusNotes() {
    const unreached = [...look.waiting.keys()].filter((e) => look.shown(e, false));
    return { unreached: unreached.map(look.name), unmarked: look.unmarked };
  },
};

// Nothing is asked half-way from one colour to another.
document.addEventListener("DOMContentLoaded", () => {
  const still = document.createElement("style");
  still.textContent = "* { transition: none !important; scroll-behavior: auto !important }";
  document.head.append(still);
});
