// The page of `ktllama explain`: one plan, or two to switch between, at a context that a slider sets.

const slider = byId("context");
const contexts = contextSteps(data.context);
const state = { plan: plans.length - 1, tokens: data.context.shown, pinned: undefined };

function contextSteps({ shortest, longest }) {
  const steps = [];
  for (let n = shortest; n < longest; n *= 2) steps.push(n);
  return [...steps, longest];
}

// --- Totals and settings

function drawTotals() {
  const plan = plans[state.plan], reference = plans.length > 1 && state.plan ? plans[0] : undefined;
  byId("tokens").textContent = `${state.tokens.toLocaleString("en")} tokens`;
  const sizes = data.devices.map((name) => sizeOf(plan, name));
  const all = sizes.reduce((sum, size) => sum + size.total, 0);
  byId("devices").replaceChildren(...data.devices.map((name, i) => {
    const size = sizes[i], device = plan.devices.find((one) => one.name === name);
    const budget = device?.budget_bytes;
    const bar = el("span");
    bar.style.width = `${Math.min(100, Math.max(.8, (100 * size.total) / (budget || all || 1)))}%`;
    bar.style.background = colours.get(name);
    return el("div", { class: "total" },
      el("div", { class: "who" }, swatch(name), name, device ? el("i", {}, device.llama) : ""),
      el("div", { class: "sum num" }, bytes(size.total), change(reference, name, size.total, budget)),
      el("div", { class: "of num" }, `${bytes(size.weights)} weights${size.kv ? `, ${bytes(size.kv)} KV` : ", no KV"}`),
      el("div", { class: "meter" }, bar));
  }));
}
function sizeOf(plan, name) {
  const device = plan.devices.find((one) => one.name === name);
  const weights = device?.weight_bytes ?? 0, kv = (device?.kv_bytes_per_token ?? 0) * state.tokens;
  return { weights, kv, total: weights + kv };
}
function change(reference, name, total, budget) {
  if (!reference) return budget ? el("small", {}, `of ${bytes(budget)}`) : "";
  const by = total - sizeOf(reference, name).total;
  if (!by) return el("small", {}, "unchanged");
  return el("small", {}, `${by > 0 ? "+" : "−"}${bytes(Math.abs(by))}`);
}
function drawSettings() {
  const { settings } = plans[state.plan], list = byId("settings");
  const pairs = [["GPU layers", settings.n_gpu_layers], ["Devices", settings.devices.join(", ") || "none"]];
  if (settings.devices.length > 1) pairs.push(["Split", settings.tensor_split.join(", ")]);
  if (settings.op_offload) pairs.push(["Long prompts", "CPU weights are streamed to the GPU"]);
  list.replaceChildren(...pairs.flatMap(([key, value]) => [el("dt", {}, key), el("dd", { class: "num" }, String(value))]));
  for (const { pattern, device } of settings.overrides) {
    list.append(el("dd", { class: "override" }, el("code", {}, pattern), el("span", {}, ` → ${device}`)));
  }
}

// --- Start

function drawFacts() {
  const plan = plans[state.plan];
  const facts = `${model.architecture}, ${counted(model.n_layers, "layer")}, ${counted(model.n_tensors, "tensor")}, ${bytes(model.n_bytes)}`;
  byId("model").textContent = model.name;
  byId("facts").replaceChildren(facts, model.assumed ? " (assumed sizes)" : "", " — placed by ", el("b", {}, plan.rules_file));
  byId("caption").textContent = (plans.length > 1
    ? `Faded parts stay where they are. The corner of a moved part has the colour of the device ${state.plan ? "it comes from" : "it goes to"}. `
    : "") + "Columns above the numbers are to scale, KV cache included; the grid below shows which part of a layer is where. Point at a rule to see what it placed.";
}
function drawAll() { drawFacts(); drawTotals(); drawRules(); drawSettings(); drawTable(); draw(); }

if (plans.length > 1) {
  byId("switch").hidden = false;
  ["Before", "After"].forEach((name, i) => {
    const button = el("button", { type: "button", "aria-pressed": String(i === state.plan) }, name);
    button.addEventListener("click", () => {
      state.plan = i; state.pinned = undefined;
      [...byId("switch").children].forEach((other, j) => other.setAttribute("aria-pressed", String(i === j)));
      drawAll();
    });
    byId("switch").append(button);
  });
}
slider.max = contexts.length - 1;
slider.value = Math.max(0, contexts.indexOf(state.tokens));
const say = () => slider.setAttribute("aria-valuetext", `${state.tokens} tokens`);
slider.addEventListener("input", () => { state.tokens = contexts[slider.value]; say(); drawTotals(); drawTable(); draw(); });
say();
drawOnResize();
drawAll();
