/* What report.html and the daemon's page do alike: elements, numbers, tables, findings, flamegraphs, charts. */
const root = document.documentElement;
const errors = [];
window.addEventListener("error", event => { errors.push(event.message); root.dataset.errors = errors.join("; "); });
const wanted = new URLSearchParams(location.hash.slice(1));

/* Light or dark: as asked for, else as the system is. */
const button = document.getElementById("theme");
function setTheme(theme) {
  root.dataset.theme = theme;
  button.textContent = theme === "dark" ? "Light" : "Dark";
  root.dispatchEvent(new Event("theme"));
}
setTheme(wanted.get("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
button.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));

/* An element with text or other elements in it: never markup. */
function make(tag, attributes, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...inside.filter(part => part !== null && part !== undefined));
  return element;
}
/* Numbers as people read them. */
const grouped = value => Math.round(value).toString().replace(/\B(?=(\d{3})+(?!\d))/g, ",");
function time(ns) {
  if (Math.abs(ns) >= 1e9) return (ns / 1e9).toFixed(3) + " s";
  if (Math.abs(ns) >= 1e6) return (ns / 1e6).toFixed(2) + " ms";
  return (ns / 1e3).toFixed(1) + " µs";
}
function bytes(value) {
  for (const unit of ["B", "KiB", "MiB"]) { if (value < 1024) return (unit === "B" ? value : value.toFixed(1)) + " " + unit; value /= 1024; }
  return value.toFixed(1) + " GiB";
}
const amount = (value, unit) => unit === "ns" ? time(value) : unit === "bytes" ? bytes(value) : grouped(value);
const unitOf = name => /_ns$/.test(name) ? "ns" : /bytes$/.test(name) ? "bytes" : "";
const percent = share => (share * 100).toFixed(share < 0.1 ? 2 : 1) + " %";

/* A table that can be sorted by its columns. Columns: name, whether it is a number, cell of a row. */
function table(columns, rows, first) {
  const body = make("tbody");
  const shown = rows.slice(0, 500);
  const fill = () => {
    body.replaceChildren(...shown.map(row => make("tr", {}, ...columns.map(column => {
      const value = column.of(row);
      return make("td", { class: column.number ? "number" : "name" }, column.show ? column.show(value, row) : String(value));
    }))));
  };
  const head = make("tr", {}, ...columns.map((column, place) => {
    const sort = make("button", { type: "button" }, column.name);
    let down = place !== first;
    sort.addEventListener("click", () => {
      const order = (a, b) => column.number ? column.of(b) - column.of(a) : String(column.of(a)).localeCompare(String(column.of(b)));
      shown.sort((a, b) => down ? order(a, b) : order(b, a));
      down = !down;
      fill();
    });
    return make("th", { class: column.number ? "number" : "", scope: "col" }, sort);
  }));
  fill();
  const whole = make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), body));
  return rows.length > shown.length ? make("div", {}, whole, make("p", { class: "soft" }, grouped(rows.length - shown.length) + " more: see report.json")) : whole;
}
const number = (name, of, show) => ({ name, number: true, of, show: show || (value => grouped(value)) });
const text = (name, of) => ({ name, number: false, of });

/* Text with parts between backticks as code. */
function prose(line) {
  return line.split("`").map((part, place) => place % 2 ? make("code", {}, part) : part);
}

/* Where wall time went, as a bar. */
const hues = { cpu: "#d9a521", "run queue": "#c0504d", preempted: "#d98880", disk: "#4f81bd", file: "#6fa8dc", lock: "#8064a2", network: "#2e8b83",
  poll: "#93a1a1", pipe: "#76a5af", sleep: "#b0b7bd", fault: "#a64d79", stopped: "#777777", child: "#8f8f8f", other: "#999999", unknown: "#555555" };
function parts(row) {
  const list = [["cpu", row.cpu_ns], ...Object.entries(row.waits), ["unknown", row.unknown_ns]];
  return list.filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
}
function ledgerBar(row) {
  const bar = make("div", { class: "ledger", role: "img", "aria-label": parts(row).map(([name, value]) => `${name} ${percent(value / row.wall_ns)}`).join(", ") });
  for (const [name, value] of parts(row)) {
    const piece = make("span", { title: `${name}: ${time(value)}, ${percent(value / row.wall_ns)}` });
    piece.style.flex = `${value} 0 0`;
    piece.style.background = hues[name] || "#999999";
    bar.append(piece);
  }
  return bar;
}

/* Findings, the plan and the score of a report. */
function tellFindings(found, report) {
  if (report.score) found.append(make("p", {}, make("strong", {}, `Score: ${report.score.value} of 100.`)));
  if (!report.findings.length) found.append(make("p", {}, "Nothing passed a threshold."));
  for (const finding of report.findings) {
    found.append(make("div", { class: "finding " + finding.severity },
      make("div", {}, make("span", { class: "tag" }, `${finding.severity} · ${finding.kind} `), make("strong", {}, ...prose(finding.title))),
      make("div", { class: "soft" }, `${finding.effect > 0 ? `costs ${percent(finding.effect)} of the wall time of the threads concerned; ` : ""}confidence ${percent(finding.confidence)}`),
      make("ul", {}, ...finding.evidence.map(line => make("li", {}, ...prose(line)))),
      make("div", {}, make("em", {}, "To do: "), ...prose(finding.recommendation))));
  }
  if (report.plan.length) {
    found.append(make("h3", {}, "Plan"), make("ol", {}, ...report.plan.map(step => make("li", {}, ...prose(step.action), step.gain > 0 ? ` (wins ${percent(step.gain)} of the wall time at most)` : ""))));
  }
  if (report.score && report.score.deductions.length) {
    found.append(make("h3", {}, "What the score lost"), table([number("points", row => row.points), text("for", row => row.reason.replaceAll("`", ""))], report.score.deductions, 0));
  }
}

/* Flamegraphs. */
const tints = [["_[k]", "kernel", [232, 112, 70]], ["_[i]", "inlined", [110, 196, 206]], ["_[j]", "JIT", [122, 198, 98]], ["_[p]", "interpreted", [170, 152, 226]]];
function tint(name, depth) {
  if (depth === 0) return [200, 200, 200];
  for (const [suffix, , color] of tints) if (name.endsWith(suffix)) return color;
  if (name.startsWith("[")) return name.startsWith("[truncated") || name.startsWith("[lost") ? [158, 158, 158] : [112, 150, 214];
  return [238, 196, 84];
}
function shade(name, depth) {
  let hash = 2166136261;
  for (let place = 0; place < name.length; place++) hash = Math.imul(hash ^ name.charCodeAt(place), 16777619);
  const step = ((hash >>> 8) & 255) / 255 * 0.16 - 0.08;
  return `rgb(${tint(name, depth).map(part => Math.round(Math.min(255, part * (1 + step)))).join(",")})`;
}
const plain = name => name.replace(/_\[[kijp]\]$/, "");
const ROW = 19;
/* The flat list as nodes, each with its place from the left in the flame's own unit. */
function grow(flame) {
  const { nodes, frames } = flame;
  let place = 0;
  const base = { name: "all", value: flame.total, start: 0, depth: -1, children: [], parent: null };
  function read(parent, start) {
    const node = { name: frames[nodes[place]], value: nodes[place + 1], start, depth: parent.depth + 1, children: [], parent };
    let count = nodes[place + 2];
    place += 3;
    for (let at = start; count > 0; count--) { const child = read(node, at); node.children.push(child); at += child.value; }
    return node;
  }
  for (let at = 0; place < nodes.length;) { const child = read(base, at); base.children.push(child); at += child.value; }
  base.height = 0;
  const measure = node => { base.height = Math.max(base.height, node.depth + 1); node.children.forEach(measure); };
  measure(base);
  return base;
}
/* A place for flamegraphs, one of which is shown: `show` takes them, the one to begin with, and those of another range that
   frames are compared with, by their part of the whole. */
function flamegraphs(drawn) {
  const choice = make("div", { class: "bar", role: "group", "aria-label": "Origin" });
  const search = make("input", { type: "search", placeholder: "Search (regular expression)", "aria-label": "Search functions", size: "34" });
  const reset = make("button", { type: "button" }, "Reset zoom");
  const matched = make("span", { class: "figure" });
  const told = make("div", { id: "told", "aria-live": "polite" });
  const canvas = make("canvas", { id: "flame", tabindex: "0", "aria-label": "Flamegraph" });
  drawn.append(choice, make("div", { class: "bar" }, search, reset, matched), canvas, told, legend());
  let flames = [], base = [], flame = null, tree, zoomed, boxes = [], pattern = null, before = null;
  function choose(name) {
    flame = flames.find(flame => flame.name === name) || flames[0];
    tree = grow(flame);
    zoomed = tree;
    const other = base.find(one => one.name === flame.name);
    before = base.length ? sharesOf(other) : null;
    for (const button of choice.children) button.setAttribute("aria-pressed", String(button.dataset.name === flame.name));
    told.textContent = `${flame.name}: ${amount(flame.total, flame.unit)} in all` + (flame.left_out ? `; ${amount(flame.left_out, flame.unit)} in boxes too small to be drawn` : "");
    draw();
  }
  function draw() {
    if (!flame) return;
    const width = canvas.parentElement.clientWidth, height = (tree.height + 1) * ROW + 2, scale = devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    canvas.style.height = height + "px";
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = "12px ui-monospace, 'DejaVu Sans Mono', monospace";
    context.textBaseline = "middle";
    const letter = context.measureText("m").width, match = getComputedStyle(root).getPropertyValue("--match").trim();
    boxes = [];
    let sum = 0;
    const unit = width / Math.max(1, zoomed.value);
    function box(node, inMatch) {
      const path = node.start < zoomed.start || node.start + node.value > zoomed.start + zoomed.value;
      const left = Math.max(0, (node.start - zoomed.start) * unit), right = Math.min(width, (node.start + node.value - zoomed.start) * unit);
      if (right - left < 0.4 || right <= 0 || left >= width) {
        if (!(pattern && !inMatch)) return;
      }
      const hit = pattern !== null && pattern.test(plain(node.name));
      if (hit && !inMatch) sum += Math.max(0, Math.min(node.start + node.value, zoomed.start + zoomed.value) - Math.max(node.start, zoomed.start));
      if (right - left >= 0.4) {
        const y = height - (node.depth + 2) * ROW;
        context.globalAlpha = path && node !== zoomed ? 0.5 : 1;
        context.fillStyle = hit ? match : node.depth < 0 ? "#c9ccd0" : before ? changed(node, before, flame) : shade(node.name, node.depth);
        context.fillRect(left, y, Math.max(0.4, right - left - 0.6), ROW - 1);
        const room = Math.floor((right - left - 8) / letter), name = node.depth < 0 ? `all: ${amount(node.value, flame.unit)}` : plain(node.name);
        if (room > 2) {
          context.fillStyle = "#17191b";
          context.fillText(name.length > room ? name.slice(0, room - 1) + "…" : name, left + 4, y + ROW / 2);
        }
        boxes.push({ node, left, right, y });
      }
      for (const child of node.children) box(child, inMatch || hit);
    }
    box(tree, false);
    context.globalAlpha = 1;
    matched.textContent = pattern ? `matched: ${percent(sum / Math.max(1, zoomed.value))}, ${amount(sum, flame.unit)}` : "";
  }
  function under(event) {
    const place = canvas.getBoundingClientRect(), x = event.clientX - place.left, y = event.clientY - place.top;
    return boxes.find(box => x >= box.left && x < box.right && y >= box.y && y < box.y + ROW);
  }
  function tell(node) {
    const stack = [];
    for (let at = node; at && at.depth >= 0; at = at.parent) stack.push(at.name);
    told.textContent = `${plain(node.name)}: ${amount(node.value, flame.unit)}, ${percent(node.value / Math.max(1, flame.total))} of all` +
      (stack.length > 1 ? ` — called by ${stack.slice(1, 6).map(plain).join(" ← ")}` : "");
  }
  canvas.addEventListener("mousemove", event => { const box = under(event); if (box) { tell(box.node); canvas.title = plain(box.node.name); } });
  canvas.addEventListener("click", event => { const box = under(event); if (box) { zoomed = box.node; tell(box.node); draw(); } });
  canvas.addEventListener("keydown", event => {
    const brothers = zoomed.parent ? zoomed.parent.children : [zoomed], place = brothers.indexOf(zoomed);
    const heaviest = zoomed.children.reduce((most, child) => !most || child.value > most.value ? child : most, null);
    const next = { ArrowUp: heaviest, ArrowDown: zoomed.parent, ArrowLeft: brothers[place - 1], ArrowRight: brothers[place + 1], Escape: tree }[event.key];
    if (next) { event.preventDefault(); zoomed = next; tell(next); draw(); }
  });
  reset.addEventListener("click", () => { zoomed = tree; draw(); });
  search.addEventListener("input", () => {
    try { pattern = search.value ? new RegExp(search.value, "i") : null; search.setCustomValidity(""); } catch (error) { pattern = null; search.setCustomValidity(error.message); }
    draw();
  });
  function show(all, name, compared) {
    flames = all;
    base = compared || [];
    choice.replaceChildren();
    canvas.hidden = !flames.length;
    if (!flames.length) { flame = null; told.textContent = "There are no profiles."; return; }
    for (const one of flames) {
      const button = make("button", { type: "button", "data-name": one.name, "aria-pressed": "false" }, one.name);
      button.addEventListener("click", () => choose(one.name));
      choice.append(button);
    }
    choose(name);
  }
  function find(words) { search.value = words; search.dispatchEvent(new Event("input")); }
  /* Not in the observer's own turn, since drawing may change the size again. */
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(drawn);
  root.addEventListener("theme", draw);
  return { show, find, boxes: () => boxes.length, name: () => flame ? flame.name : "" };
}

/* What the colours of frames mean. */
function legend() {
  const legend = make("p", { class: "soft" });
  for (const [name, color] of [["native", [238, 196, 84]], ...tints.map(([, name, color]) => [name, color]), ["reason", [112, 150, 214]], ["cut or lost", [158, 158, 158]]]) {
    const dot = make("i");
    dot.style.background = `rgb(${color.join(",")})`;
    legend.append(make("span", { class: "key" }, dot, name));
  }
  return legend;
}

/* Where a frame is: its name behind those of the frames that lead to it. */
function pathOf(node) {
  if (node.path === undefined) node.path = (node.parent && node.parent.depth >= 0 ? pathOf(node.parent) : "") + ";" + node.name;
  return node.path;
}
/* Parts of the whole by path, of a flamegraph that another is compared with. */
function sharesOf(flame) {
  const shares = new Map();
  const walk = node => { for (const child of node.children) { shares.set(pathOf(child), child.value / Math.max(1, flame.total)); walk(child); } };
  if (flame) walk(grow(flame));
  return shares;
}
/* Red for what has more of the whole than before, blue for what has less. */
function changed(node, before, flame) {
  const change = node.value / Math.max(1, flame.total) - (before.get(pathOf(node)) || 0);
  const faded = Math.round(235 - 130 * Math.min(1, Math.abs(change) * 10));
  return change >= 0 ? `rgb(245,${faded},${faded})` : `rgb(${faded},${faded},245)`;
}

/* A line of figures over time. */
function chart(name, values, starts) {
  const unit = unitOf(name), known = values.filter(value => value !== null), most = Math.max(...known, 1);
  const end = starts[starts.length - 1] || 1, space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("viewBox", "0 0 400 90");
  picture.setAttribute("preserveAspectRatio", "none");
  let points = "";
  values.forEach((value, place) => { if (value !== null) points += `${starts[place] / end * 400},${86 - value / most * 80} `; });
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", points.trim());
  line.setAttribute("fill", "none");
  line.setAttribute("stroke", "var(--accent)");
  line.setAttribute("stroke-width", "1.5");
  line.setAttribute("vector-effect", "non-scaling-stroke");
  picture.append(line);
  return make("div", { class: "chart" }, make("div", {}, name.replace(/_(ns|bytes)$/, "").replaceAll("_", " "), make("span", { class: "soft" }, ` · most ${amount(most, unit)}`)), picture);
}
