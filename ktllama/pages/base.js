// Elements, numbers, words, colours and tooltips; `data` is what the page draws.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const tip = byId("tip");
const colours = new Map();
let nGpus = 0;
for (const name of data.devices) colours.set(name, name === "cpu" ? "var(--cpu)" : `var(--gpu${nGpus++ % 8})`);

function el(tag, attributes = {}, ...children) { return filled(document.createElement(tag), attributes, children); }
function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(document.querySelector("svg").namespaceURI, tag), attributes, children);
}
function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== undefined && child !== null && child !== ""));
  return node;
}
function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 999.5 && unit < 4) { n /= 1024; unit++; }
  const digits = unit === 0 ? 0 : Math.max(0, 2 - (n >= 10) - (n >= 100));
  return `${Number(n.toFixed(digits))} ${units[unit]}`;
}
function counted(n, noun) { return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`; }
function ranges(numbers) {
  const runs = [];
  for (const n of [...new Set(numbers)].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && n === last[1] + 1) last[1] = n; else runs.push([n, n]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
}
function swatch(device) {
  const node = el("span", { class: "swatch" });
  node.style.background = colours.get(device);
  return node;
}
function niceStep(wanted) {
  const unit = 1024 ** Math.floor(Math.log(Math.max(wanted, 1)) / Math.log(1024));
  return unit * ([1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * unit >= wanted) ?? 1000);
}
function showTip(content, x, y) {
  tip.replaceChildren(...content);
  tip.style.visibility = "visible";
  const box = tip.getBoundingClientRect(), edge = 8, away = 14;
  const right = x + away + box.width + edge < innerWidth, below = y + away + box.height + edge < innerHeight;
  tip.style.left = `${Math.max(edge, right ? x + away : Math.min(x - away, innerWidth - edge) - box.width)}px`;
  tip.style.top = `${Math.max(edge, below ? y + away : y - away - box.height)}px`;
}
function hideTip() { tip.style.visibility = "hidden"; }

// --- What says its numbers in an attribute: a title, then lines of a name and a value apart by a tab

function attributeTip(words) {
  const [title, ...lines] = words.split("\n");
  return [
    el("div", { class: "head" }, el("span", {}, title)),
    el("ul", {}, ...lines.map((line) => el("li", { class: "line" }, ...line.split("\t").map((part) => el("span", {}, part))))),
  ];
}
function showTipOf(node) {
  const box = node.getBoundingClientRect();
  showTip(attributeTip(node.dataset.tip), box.right, box.bottom);
}
for (const node of document.querySelectorAll("[data-tip]")) {
  node.addEventListener("pointermove", (event) => showTip(attributeTip(node.dataset.tip), event.clientX, event.clientY));
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("focus", () => showTipOf(node));
  node.addEventListener("blur", hideTip);
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
// what gets the focus is scrolled to, and keeps its tooltip
addEventListener("scroll", () => { if (document.activeElement?.dataset.tip) showTipOf(document.activeElement); else hideTip(); }, { passive: true });
