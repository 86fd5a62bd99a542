// The layers of a placement: columns to scale, a grid of what is where, and a table. `state` says which of the plans is
// drawn and for how many tokens; `mark` and `pick` are those of rules.js.

const svg = byId("svg");
const { model, columns, rows, plans } = data;

// --- One list of parts from tensors and KV caches

function columnName(column) {
  if (column === "in") return "Input";
  if (column === "out") return "Output";
  return Number(column) >= model.n_trunk_layers ? `MTP block ${column}` : `Layer ${column}`;
}
function partsOf(plan) {
  const parts = plan.parts.map((part) => ({ ...part, bytes: part.tensors.reduce((sum, t) => sum + t.bytes, 0) }));
  const caches = plan.kv.map((kv) => ({
    ...kv, row: "kv", loaded: true, tensors: [], bytes: kv.bytes_per_token * state.tokens,
    why: `follows ${kv.module}`, llama: [`${kv.llama}, the device of layer ${kv.column}`],
  }));
  const devices = (part) => data.devices.indexOf(part.device);
  return [...parts, ...caches].sort((a, b) => devices(a) - devices(b) || (a.rule ?? 1e9) - (b.rule ?? 1e9));
}
function describe(part) {
  const label = rows.find((row) => row.key === part.row).label;
  const outside = part.column === "in" || part.column === "out";
  return outside ? label : `${columnName(part.column)} · ${label}`;
}

// --- The picture

function draw() {
  const plan = plans[state.plan], parts = partsOf(plan);
  const narrow = byId("plot").clientWidth < 560;
  const used = rows.filter((row) => parts.some((part) => part.row === row.key));
  const left = narrow ? 97 : 112, aside = 8;
  const column = Math.max(narrow ? 4 : 7, (byId("plot").clientWidth - 8 - left - 2 * aside) / columns.length);
  const gap = column > 9 ? 2 : 1;
  const x = (name) => {
    const i = columns.indexOf(name);
    return left + i * column + (i > 0 ? aside : 0) + (name === "out" ? aside : 0);
  };
  const width = left + columns.length * column + 2 * aside;
  const sky = { top: 14, height: narrow ? 130 : 196 };
  svg.replaceChildren();
  drawSkyline(parts, sky, { x, left, width, column, gap });
  const gridTop = sky.top + sky.height + 30;
  drawLayerNumbers(sky.top + sky.height + 15, { x, column });
  const bottom = drawGrid(parts, used, gridTop, { x, left, column, gap });
  svg.setAttribute("width", width);
  svg.setAttribute("height", bottom + 2);
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + 2}`);
  svg.setAttribute("aria-label", `${model.name}: layers from left to right, modules from top to bottom. Arrow keys move.`);
  svg.classList.toggle("moves", plans.length > 1);
  const first = svg.querySelector(".part");
  if (first) first.setAttribute("tabindex", "0");
  pick(state.pinned);
}
function drawSkyline(parts, { top, height }, { x, left, width, column, gap }) {
  const loaded = parts.filter((part) => part.loaded), columnBytes = new Map();
  for (const part of loaded) columnBytes.set(part.column, (columnBytes.get(part.column) ?? 0) + part.bytes);
  const most = Math.max(1, ...columnBytes.values()), step = niceStep(most / 4);
  for (let at = 0; at <= most * 1.001; at += step) {
    const y = top + height - (at / most) * height;
    svg.append(shape("line", { class: "rule", x1: left, x2: width, y1: y, y2: y }));
    svg.append(shape("text", { class: "tick", x: left - 10, y: y + 3.5, "text-anchor": "end" }, at ? bytes(at) : "0"));
  }
  const reached = new Map();
  for (const slab of slabs(loaded).values()) {
    const from = reached.get(slab.column) ?? 0;
    reached.set(slab.column, from + slab.bytes);
    const h = (slab.bytes / most) * height;
    const rect = shape("rect", {
      class: slab.moved ? "slab moved" : "slab", x: x(slab.column), width: column - gap, y: top + height - (from / most) * height - h,
      height: h + (from ? .6 : 0), fill: colours.get(slab.device), "data-rule": slab.rule ?? "none", "aria-hidden": "true",
    });
    svg.append(rect);
  }
  for (const name of columns) {
    if (!columnBytes.has(name)) continue;
    const hit = shape("rect", { class: "hit", x: x(name) - gap / 2, width: column, y: top, height, "aria-hidden": "true" });
    hit.addEventListener("pointermove", (event) => showTip(columnTip(name, parts), event.clientX, event.clientY));
    hit.addEventListener("pointerleave", hideTip);
    svg.append(hit);
  }
}
function slabs(parts) {
  const found = new Map();
  for (const part of parts) {
    const key = JSON.stringify([part.column, part.device, part.rule, Boolean(part.other)]);
    const slab = found.get(key) ?? { column: part.column, device: part.device, rule: part.rule, moved: Boolean(part.other), bytes: 0 };
    slab.bytes += part.bytes;
    found.set(key, slab);
  }
  return found;
}
function drawLayerNumbers(y, { x, column }) {
  const every = [1, 2, 5, 10, 20].find((n) => n * column >= 26) ?? 50;
  const last = model.n_layers - 1;
  for (const name of columns) {
    const n = Number(name), layer = name !== "in" && name !== "out";
    if (layer && n !== last && (n % every || (last - n) * column < 20)) continue;
    if (!layer && column < 14) continue;
    svg.append(shape("text", { class: "tick", x: x(name) + column / 2 - 1, y, "text-anchor": "middle" }, name));
  }
}
function drawGrid(parts, used, top, { x, left, column, gap }) {
  let y = top;
  for (const row of used) {
    const thin = row.key.endsWith("norm"), height = thin ? 9 : 21;
    svg.append(shape("text", { x: left - 10, y: y + height / 2 + 4, "text-anchor": "end" }, row.label));
    for (const name of columns) {
      const cell = parts.filter((part) => part.row === row.key && part.column === name);
      cell.forEach((part, i) => {
        const h = height / cell.length, apart = i > 0 && cell[i - 1].device !== part.device ? 1 : 0;
        drawPart(part, { x: x(name), y: y + i * h + apart, width: column - gap, height: h - apart, r: cell.length > 1 ? 0 : Math.min(2.5, column / 5) });
      });
    }
    y += height + 4;
  }
  return y;
}
function drawPart(part, { x, y, width, height, r }) {
  const rule = part.rule ?? "none";
  const rect = shape("rect", {
    class: `part${part.other ? " moved" : ""}${part.loaded ? "" : " unloaded"}`, x, y, width, height, rx: r, fill: colours.get(part.device),
    "data-rule": rule, tabindex: "-1", role: "img", "aria-label": spoken(part),
  });
  rect.addEventListener("pointermove", (event) => showTip(partTip(part), event.clientX, event.clientY));
  rect.addEventListener("pointerenter", () => mark(part.rule));
  rect.addEventListener("pointerleave", () => { hideTip(); mark(undefined); });
  rect.addEventListener("focus", () => {
    const box = rect.getBoundingClientRect();
    showTip(partTip(part), box.right, box.bottom);
    mark(part.rule);
  });
  rect.addEventListener("blur", () => { hideTip(); mark(undefined); });
  svg.append(rect);
  if (part.other) {
    const size = Math.min(width * .75, height * .75, 8);
    svg.append(shape("path", { class: "notch", d: `M${x} ${y}h${size}l${-size} ${size}z`, fill: colours.get(part.other), "data-rule": rule }));
  }
}
function spoken(part) {
  const rule = part.rule === null ? "no rule" : `rule ${part.rule}`;
  const moved = part.other ? `, ${movedText(part)}` : "";
  return `${describe(part)}: ${part.device}, ${bytes(part.bytes)}, ${rule}${moved}`;
}
function movedText(part) { return state.plan ? `from ${part.other}` : `goes to ${part.other}`; }

// --- Tooltips

function partTip(part) {
  const plan = plans[state.plan], rule = plan.rules.find((one) => one.index === part.rule);
  const moved = part.other ? [" · ", swatch(part.other), el("span", {}, movedText(part))] : [];
  const shown = part.tensors.slice(0, 10), rest = part.tensors.length - shown.length;
  const lines = shown.map((t) => el("li", {}, el("code", {}, t.name), el("span", {}, t.type), el("span", { class: "num" }, bytes(t.bytes))));
  if (rest > 0) lines.push(el("li", {}, el("span", { style: "text-align: left" }, `and ${rest} more`)));
  const modules = [...new Set(part.tensors.map((t) => t.module).filter(Boolean))];
  const where = modules.length === 1 ? el("code", {}, modules[0]) : undefined;
  if (part.row === "kv") lines.push(el("li", {}, el("span", { style: "text-align: left" }, `${bytes(part.bytes_per_token)} a token`)));
  return [
    el("div", { class: "head" }, el("span", {}, describe(part)), el("span", { class: "num" }, bytes(part.bytes))),
    el("div", { class: "place" }, swatch(part.device), part.device, ...moved),
    where, el("ul", {}, ...lines),
    el("p", { class: "because" }, ruleTitle(rule), rule ? el("code", {}, rule.match) : undefined, part.why === `rule ${part.rule} says so` ? "" : part.why),
    el("p", { class: "because" }, `llama.cpp: ${part.llama.join("; ")}`, part.prefill ? `; streamed to ${part.prefill} for long prompts` : ""),
  ].filter(Boolean);
}
function ruleTitle(rule) {
  if (!rule) return "";
  return rule.line === null ? `Rule ${rule.index}` : `Rule ${rule.index}, line ${rule.line}`;
}
function columnTip(name, parts) {
  const here = parts.filter((part) => part.column === name && part.loaded);
  const total = here.reduce((sum, part) => sum + part.bytes, 0);
  const lines = rows.flatMap((row) => data.devices.map((device) => {
    const found = here.filter((part) => part.row === row.key && part.device === device);
    const sum = found.reduce((all, part) => all + part.bytes, 0);
    return sum ? el("li", {}, el("span", { style: "text-align: left" }, row.label), el("span", {}, device), el("span", { class: "num" }, bytes(sum))) : undefined;
  })).filter(Boolean);
  return [el("div", { class: "head" }, el("span", {}, columnName(name)), el("span", { class: "num" }, bytes(total))), el("ul", {}, ...lines)];
}

// --- The same as a table

function drawTable() {
  const parts = partsOf(plans[state.plan]), head = ["Part", "Layers", "Device", "Bytes", "Rules"];
  const lines = rows.flatMap((row) => data.devices.flatMap((device) => {
    const here = parts.filter((part) => part.row === row.key && part.device === device);
    if (!here.length) return [];
    const layers = ranges(here.map((part) => Number(part.column)).filter((n) => !Number.isNaN(n)));
    const rules = [...new Set(here.map((part) => part.rule ?? "none"))].join(", ");
    const sum = here.reduce((all, part) => all + part.bytes, 0);
    return [el("tr", {}, el("th", { scope: "row" }, row.label), el("td", { class: "layers" }, layers || "–"), el("td", {}, device), el("td", { class: "right num" }, bytes(sum)), el("td", {}, rules))];
  }));
  byId("table").replaceChildren(
    el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col", class: name === "Bytes" ? "right" : undefined }, name)))),
    el("tbody", {}, ...lines));
}

// --- Arrow keys walk

svg.addEventListener("keydown", (event) => {
  const at = event.target.closest?.(".part");
  if (event.key === "Escape") { hideTip(); return; }
  if (!at || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  const next = neighbour(at, event.key);
  if (!next) return;
  at.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
});
function neighbour(from, key) {
  const centre = (node) => { const b = node.getBBox(); return { x: b.x + b.width / 2, y: b.y + b.height / 2 }; };
  const all = [...svg.querySelectorAll(".part")].map((node) => ({ node, ...centre(node) })), here = centre(from);
  const inRow = all.filter((part) => Math.abs(part.y - here.y) < 1).sort((a, b) => a.x - b.x);
  if (key === "Home") return inRow[0].node;
  if (key === "End") return inRow.at(-1).node;
  const across = key === "ArrowLeft" || key === "ArrowRight", sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  const ahead = (part) => sign * (across ? part.x - here.x : part.y - here.y);
  const aside = (part) => Math.abs(across ? part.y - here.y : part.x - here.x);
  const found = all.filter((part) => ahead(part) > 1).sort((a, b) => (ahead(a) + 50 * aside(a)) - (ahead(b) + 50 * aside(b)));
  return found[0]?.node;
}
function drawOnResize() {
  let drawnWidth = 0;
  new ResizeObserver(() => {
    const width = byId("plot").clientWidth;
    if (width !== drawnWidth) { drawnWidth = width; draw(); }
  }).observe(byId("plot"));
}
