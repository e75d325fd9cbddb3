(() => {
"use strict";
const $ = (id) => document.getElementById(id);
const read = (id) => JSON.parse($(id).textContent);
const D = read("data"), SPECS = read("specs"), SPECIAL = [NaN, 0, Infinity, 1e-36];
const SECOND = "#000000";  // the color of the second cell where both cells would have one color
const views = {}, state = {cell: 0, other: null, module: D.modules[0], quantity: "grad_norm", scale: "log", probe: 0};
window.normstudy = {views, state};

// ---- numbers ----------------------------------------------------------------------------------------

function unpack(text) {  // the inverse of pack.py
  const raw = atob(text), out = new Float64Array(raw.length / 2);
  for (let i = 0; i < out.length; i++) {
    const code = raw.charCodeAt(2 * i) | raw.charCodeAt(2 * i + 1) << 8;
    out[i] = code < 4 ? SPECIAL[code] : Number(`${(code - 4) % 900 + 100}e${Math.floor((code - 4) / 900) - 38}`);
  }
  return out;
}

const unpacked = new WeakMap();
function numbers(run, name) {
  if (!unpacked.has(run)) unpacked.set(run, {});
  const found = unpacked.get(run);
  return found[name] ??= unpack(run[name] ?? "");
}

const short = (value) => Number.isFinite(value) ? String(Number(value.toPrecision(3))) : "none";
const shown = (value) => state.scale === "log" ? value > 0 && value < Infinity : Number.isFinite(value);
const runsOf = (cell) => D.cells[cell].runs.map((i) => D.runs[i]);
const probed = (run) => run.probes === undefined ? [] : D.grids[run.probes];

function stepsOf(cell) {  // the recorded steps of the cell's run that has most of them
  return runsOf(cell).map(probed).reduce((most, steps) => steps.length > most.length ? steps : most, []);
}

function indexAt(run, step) {  // of the run's last recorded step that is not after `step`; -1 if the run ended before
  const steps = probed(run);
  if (!steps.length) return -1;
  const next = steps.findIndex((one) => one > step);
  return next < 0 ? (steps.at(-1) === step || run.state !== "diverged" ? steps.length - 1 : -1) : next - 1;
}

function valuesAt(run, index, quantity, module) {  // [[layer, value], ...]
  if (index < 0) return [];
  if (quantity === "residual") {
    const all = numbers(run, "residual"), n = all.length / probed(run).length;
    return Array.from({length: n}, (_, layer) => [layer, all[index * n + layer]]);
  }
  const layout = D.layouts[run.layout], all = numbers(run, quantity);
  return layout.flatMap(([name, layer], k) => name === module ? [[layer ?? 0, all[index * layout.length + k]]] : []);
}

function geometric(rows) {  // the geometric mean of positive, finite values; NaN if there is none
  const good = rows.filter((value) => value > 0 && value < Infinity);
  return good.length ? Math.exp(good.reduce((sum, value) => sum + Math.log(value), 0) / good.length) : NaN;
}

// ---- what the charts show ---------------------------------------------------------------------------

function chosenCells() {
  const both = state.other === null ? [state.cell] : [state.cell, state.other];
  return both.map((cell, i) => {
    const same = i === 1 && D.cells[cell].color === D.cells[state.cell].color;
    return {cell, color: same ? SECOND : D.cells[cell].color, runs: runsOf(cell), title: D.cells[cell].title};
  });
}

function lossRows(cells) {
  const train = [], val = [];
  for (const {cell, color, runs} of cells) for (const run of runs) {
    const base = {run: run.name, cell, color, width: 1};
    for (const [name, rows, grid] of [["train", train, "train_steps"], ["val", val, "val_steps"]]) {
      if (run[grid] === undefined) continue;
      numbers(run, name).forEach((value, i) => {
        if (shown(value)) rows.push({...base, x: D.grids[run[grid]][i] + 1, step: D.grids[run[grid]][i], value});
      });
    }
  }
  const entropies = D.cells[state.cell].entropies.map(([name, value]) => ({name, value}));
  return {train, val, entropies};
}

function mapRows({cell, runs}) {
  const steps = stepsOf(cell), rows = [];
  steps.forEach((step, i) => {
    const byLayer = new Map();
    for (const run of runs) {
      const index = probed(run).indexOf(step);
      for (const [layer, value] of valuesAt(run, index, state.quantity, state.module)) {
        if (!byLayer.has(layer)) byLayer.set(layer, []);
        byLayer.get(layer).push(value);
      }
    }
    for (const [layer, values] of byLayer) {
      const value = geometric(values);
      if (shown(value)) rows.push({step, x: step + 1, x2: (steps[i + 1] ?? step + 1) + 1, layer, value});
    }
  });
  const at = steps[state.probe];
  return {map: rows, chosen: at === undefined ? [] : [{x: at + 1}]};
}

function lineRows(cells, quantity, step) {
  const rows = [];
  for (const {cell, color, runs} of cells) {
    const byLayer = new Map();
    for (const run of runs) for (const [layer, value] of valuesAt(run, indexAt(run, step), quantity, state.module)) {
      if (shown(value)) rows.push({run: run.name, cell, color, width: 0.7, x: layer, value});
      if (!byLayer.has(layer)) byLayer.set(layer, []);
      byLayer.get(layer).push(value);
    }
    for (const [layer, values] of byLayer) {
      const value = geometric(values);
      if (shown(value)) rows.push({run: "mean", cell, color, width: 2.5, x: layer, value});
    }
  }
  return rows;
}

function means(rows, cell) {
  const said = rows.filter((row) => row.run === "mean" && row.cell === cell).map((row) => `${row.x}: ${short(row.value)}`);
  return said.length ? said.join(", ") : "none";
}

// ---- drawing ----------------------------------------------------------------------------------------

async function draw(id, chart, sets, text) {
  $(id).setAttribute("aria-label", text);
  const kind = chart === "loss" ? `loss-${state.scale}` : state.scale;
  if (views[id] && views[id].kind === kind) {
    for (const [name, rows] of Object.entries(sets)) views[id].view.data(name, rows);
    await views[id].view.runAsync();
    return;
  }
  const spec = structuredClone(SPECS[chart]);
  for (const data of spec.data) if (sets[data.name]) data.values = sets[data.name];
  for (const scale of spec.scales) if (scale.name === "y" && scale.type !== "band" || scale.name === "color" && chart === "map") {
    scale.type = state.scale;
    if (state.scale === "log") delete scale.zero;
  }
  views[id]?.view.finalize();
  const made = await vegaEmbed($(id), spec, {mode: "vega", actions: false, renderer: "svg", ast: true});
  views[id] = {view: made.view, kind};
}

let queue = Promise.resolve();
function update() {  // one drawing after another, since each awaits the view
  queue = queue.then(render).catch((error) => { console.error(error); });
  window.normstudy.ready = queue;
  return queue;
}

async function render() {
  const cells = chosenCells(), steps = stepsOf(state.cell);
  state.probe = Math.min(state.probe, Math.max(0, steps.length - 1));
  const step = steps[state.probe] ?? 0;
  $("step").max = Math.max(0, steps.length - 1);
  $("step").value = state.probe;
  $("step").setAttribute("aria-valuetext", `step ${step}`);
  $("at").textContent = step;
  $("cell").value = state.cell;
  $("other").value = state.other ?? "";
  for (const button of document.querySelectorAll(".cell")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.cell) === state.cell));
    button.classList.toggle("beside", Number(button.dataset.cell) === state.other);
  }
  $("legend").replaceChildren(...cells.flatMap(({title, color, runs}) => {
    const swatch = document.createElement("span"), name = document.createElement("bdi");
    swatch.className = "swatch";
    swatch.style.borderColor = color;
    name.textContent = ` ${title} (${runs.length} run${runs.length === 1 ? "" : "s"})  `;
    return [swatch, name];
  }));
  const what = `${state.quantity} of ${state.module}`;
  $("map-caption").textContent = `${what} by layer and step: ${cells[0].title}; geometric mean over runs`;
  $("profile-caption").textContent = `${what} at step ${step}; thin, runs; bold, their geometric mean`;
  const finals = cells.map((one) => `${one.title}: ${one.runs.map((run) => run.loss === null ? run.state : short(run.loss)).join(", ")}`);
  await draw("loss", "loss", lossRows(cells), `Loss curves. Final losses of ${finals.join("; ")}`);
  const lines = lineRows(cells, state.quantity, step), path = lineRows(cells, "residual", step);
  const told = (rows) => cells.map((one) => `${one.title}: ${means(rows, one.cell)}`).join("; ");
  await draw("map-chart", "map", mapRows(cells[0]), `${what} by layer and step of ${cells[0].title}. At step ${step}, by layer: ${means(lines, state.cell)}`);
  $("second").hidden = cells.length < 2;
  if (cells.length > 1) {
    $("map-b-caption").textContent = `${what} by layer and step: ${cells[1].title}; geometric mean over runs`;
    await draw("map-b", "map", mapRows(cells[1]), `${what} by layer and step of ${cells[1].title}. At step ${step}, by layer: ${means(lines, state.other)}`);
  }
  await draw("profile", "profile", {profile: lines}, `${what} at step ${step} by layer. ${told(lines)}`);
  await draw("residual", "residual", {residual: path}, `Norm of dLoss/dx_l at step ${step}, by l. ${told(path)}`);
  pairTable(cells);
}

function pairTable(cells) {
  const place = $("pairs");
  place.replaceChildren();
  place.hidden = cells.length < 2;
  if (place.hidden) return;
  const [a, b] = cells, rows = [], differences = [];
  for (const run of a.runs) {
    const mate = b.runs.find((other) => other.seeds.every((seed, i) => seed === run.seeds[i]));
    if (!mate) continue;
    const failed = [run, mate].some((one) => one.loss === null || D.failed.includes(one.state));
    const said = (one) => one.loss === null ? one.state : `${short(one.loss)} ${one.state}`;
    const difference = failed ? null : mate.loss - run.loss;
    if (difference !== null) differences.push(difference);
    rows.push([run.seeds[0], said(run), said(mate), difference === null ? "" : difference.toFixed(3)]);
  }
  const table = document.createElement("table"), caption = document.createElement("caption");
  const line = (cellsOf, tag) => {
    const row = document.createElement("tr");
    row.append(...cellsOf.map((text) => { const one = document.createElement(tag); one.textContent = text; return one; }));
    return row;
  };
  caption.textContent = `Pairs of equal seeds. ${summary(differences, rows.length)}`;
  table.append(caption, line(["seed", a.title, b.title, "difference"], "th"), ...rows.map((row) => line(row, "td")));
  place.append(table);
}

function summary(differences, pairs) {
  const n = differences.length;
  if (!n) return `No pair of ${pairs} in which neither run failed.`;
  const mean = differences.reduce((sum, one) => sum + one, 0) / n;
  const spread = Math.sqrt(differences.reduce((sum, one) => sum + (one - mean) ** 2, 0) / (n - 1));
  const half = n > 1 ? D.t[n - 2] * spread / Math.sqrt(n) : NaN;
  const interval = n > 1 ? ` [${(mean - half).toFixed(3)}, ${(mean + half).toFixed(3)}]` : "";
  return `Mean difference in the ${n} of ${pairs} in which neither failed: ${mean.toFixed(3)}${interval} nats (95 % t interval, not adjusted).`;
}

// ---- what the reader does ---------------------------------------------------------------------------

const buttons = [...document.querySelectorAll(".cell")];
const focusable = (one) => buttons.forEach((button) => { button.tabIndex = button === one ? 0 : -1; });
buttons.forEach((button) => {
  button.addEventListener("click", () => { state.cell = Number(button.dataset.cell); focusable(button); update(); });
  button.addEventListener("keydown", (event) => {
    const cell = button.closest("td"), row = cell.parentElement, rows = [...row.parentElement.rows], i = rows.indexOf(row);
    const column = (of) => [...of.cells].map((one) => one.querySelector(".cell"));
    const across = column(row).filter(Boolean), down = rows.map((one) => one.cells[cell.cellIndex].querySelector(".cell")).filter(Boolean);
    const moves = {
      ArrowRight: across[across.indexOf(button) + 1], ArrowLeft: across[across.indexOf(button) - 1],
      ArrowDown: down[down.indexOf(button) + 1], ArrowUp: down[down.indexOf(button) - 1],
      Home: across[0], End: across.at(-1),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    if (moves[event.key]) { focusable(moves[event.key]); moves[event.key].focus(); }
  });
});
if (buttons.length) focusable(buttons[0]);

$("cell").addEventListener("change", (event) => { state.cell = Number(event.target.value); update(); });
$("other").addEventListener("change", (event) => { state.other = event.target.value === "" ? null : Number(event.target.value); update(); });
for (const name of ["module", "quantity", "scale"]) {
  $(name).addEventListener("change", (event) => { state[name] = event.target.value; update(); });
}
$("step").addEventListener("input", (event) => { state.probe = Number(event.target.value); update(); });

const body = $("runs").tBodies[0], rows = [...body.rows], outcome = [...$("runs").tHead.rows[0].cells].findIndex((one) => one.textContent === "outcome");
const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
function list() {
  const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), only = $("state").value;
  let n = 0;
  for (const row of rows) {
    row.hidden = !wanted.every((word) => words.get(row).includes(word)) || only !== "" && row.cells[outcome].textContent !== only;
    n += !row.hidden;
  }
  $("listed").textContent = `${n} of ${rows.length} runs`;
}
$("filter").addEventListener("input", list);
$("state").addEventListener("change", list);

for (const button of document.querySelectorAll(".sort")) button.addEventListener("click", () => {
  const head = button.closest("th"), i = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const order = new Intl.Collator("en", {numeric: true}), number = /^[-+]?[\d.]+(e[-+]?\d+)?$/i;
  rows.sort((a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[i].textContent);
    if (!x || !y) return !x - !y;  // empty cells last, in both directions
    const by = number.test(x) && number.test(y) ? Number(x) - Number(y) : order.compare(x, y);
    return up ? by : -by;
  });
  body.append(...rows);
});

for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", async () => {
  const text = button.nextElementSibling.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // without a secure context, as in a notebook's frame, there is no clipboard
    const field = document.createElement("textarea");
    field.value = text;
    button.after(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = "copied";
  $("said").textContent = "The command was copied.";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
});

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

if (D.cells.length) update();
})();
