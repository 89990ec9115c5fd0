// Accessibility requirements of a page, as a list of violations.
(() => {
  const wrong = [];
  const name = (node) => node.outerHTML.slice(0, 120);
  const all = (what) => [...document.querySelectorAll(what)];
  if (!document.documentElement.lang) wrong.push("no language");
  if (!document.title) wrong.push("no title");
  if (all("h1").length !== 1) wrong.push(all("h1").length + " first headings");
  if (all("main").length !== 1) wrong.push("not one main");
  for (const table of all("table")) if (!table.caption?.textContent.trim()) wrong.push("no caption: " + name(table));
  for (const cell of all("th")) if (!cell.scope) wrong.push("no scope: " + name(cell));
  for (const section of all("section"))
    if (!section.ariaLabel && !document.getElementById(section.getAttribute("aria-labelledby"))?.textContent)
      wrong.push("no label: " + name(section));
  // What stands in a picture is hidden with it.
  for (const image of all("svg:not(.shapes, svg svg)")) if (image.getAttribute("aria-hidden") !== "true") wrong.push("seen: " + name(image));
  for (const button of all("button, a")) if (!button.textContent.trim()) wrong.push("no name: " + name(button));
  // A state is a shape and a word.
  for (const state of all(".s")) if (!state.querySelector("svg") || !state.textContent.trim()) wrong.push("colour alone: " + name(state));
  const ids = all("[id]").map((node) => node.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push("twice: " + id);
  if (document.documentElement.scrollWidth > window.innerWidth)
    wrong.push("wider than the window: " + document.documentElement.scrollWidth + " > " + window.innerWidth);
  // WCAG 2.2, 1.4.3: 4.5 to 1, or 3 to 1 for large texts.
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
      if (colour[3] > 0) { wrong.push("see-through: " + name(node)); return colour; }
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = texts.nextNode());) {
    const node = text.parentElement;
    if (!text.data.trim() || node.closest("script, .visually-hidden") || !node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const [a, b] = [luminance(parts(style.color)), luminance(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) wrong.push("contrast " + ratio.toFixed(2) + ": " + name(node));
    if (size < 12) wrong.push("small: " + name(node));
  }
  return wrong;
})()
