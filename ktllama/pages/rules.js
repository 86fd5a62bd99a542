// Rules: pointing at one shows what it placed, pressing keeps it.

function pick(rule) {
  svg.classList.toggle("picking", rule !== undefined);
  for (const node of svg.querySelectorAll("[data-rule]")) node.classList.toggle("picked", node.dataset.rule === String(rule));
}
function mark(rule) {
  for (const button of byId("rules").querySelectorAll("button")) {
    button.style.background = rule !== undefined && button.dataset.rule === String(rule ?? "none") ? "var(--wash)" : "";
  }
}
function drawRules() {
  const plan = plans[state.plan], parts = partsOf(plan), list = byId("rules");
  list.replaceChildren(...plan.rules.map((rule) => ruleItem(rule, parts.filter((part) => part.rule === rule.index))));
  const rest = parts.filter((part) => part.rule === null);
  if (rest.length) list.append(ruleItem({ index: "none", match: "no rule matches", replace: "", line: null, device: null }, rest));
}
function ruleItem(rule, parts) {
  const key = String(rule.index), none = key === "none";
  const [pattern, cls] = splitMatch(rule.match);
  const meta = [rule.line === null ? "" : `line ${rule.line}`, rule.replace].filter(Boolean).join(" · ");
  const button = el("button", { type: "button", "data-rule": key, "aria-pressed": String(state.pinned === key) },
    el("span", { class: "index num" }, none ? "–" : key),
    none ? el("span", {}, rule.match) : el("code", {}, pattern, cls ? el("span", { class: "cls" }, (pattern ? "\n" : "") + cls) : ""),
    meta ? el("span", { class: "meta" }, meta) : undefined,
    el("span", { class: "places" }, ...places(parts)));
  button.addEventListener("pointerenter", () => pick(key));
  button.addEventListener("pointerleave", () => pick(state.pinned));
  button.addEventListener("focus", () => pick(key));
  button.addEventListener("blur", () => pick(state.pinned));
  button.addEventListener("click", () => {
    state.pinned = state.pinned === key ? undefined : key;
    for (const other of byId("rules").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other.dataset.rule === state.pinned));
    pick(state.pinned ?? key);
  });
  return el("li", {}, button);
}
function splitMatch(match) {
  const at = match.lastIndexOf("class ");
  if (at < 0) return [match, ""];
  return [match.slice(0, at).trim(), match.slice(at + 6).split(".").at(-1)];
}
function places(parts) {
  const found = data.devices.flatMap((device) => {
    const here = parts.filter((part) => part.device === device);
    if (!here.length) return [];
    const weights = here.filter((part) => part.row !== "kv").reduce((sum, part) => sum + part.bytes, 0);
    const caches = here.filter((part) => part.row === "kv").map((part) => Number(part.column));
    const words = [weights ? bytes(weights) : "", caches.length ? `KV of ${ranges(caches)}` : ""].filter(Boolean).join(" + ");
    return [el("span", { class: "num" }, swatch(device), words)];
  });
  return found.length ? found : [el("span", { class: "idle" }, "places nothing of its own")];
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.pinned !== undefined) { state.pinned = undefined; drawRules(); pick(undefined); }
});
