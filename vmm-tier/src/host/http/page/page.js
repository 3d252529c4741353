// The page of the host daemon: figures as they come, a table that is updated in place, a VM's own page, and
// orders for who has the token. Texts of the daemon and of guests become text nodes, never markup.

import {
  NOTHING, SERIES, HEAT_EDGES, bytes, bytesPerSecond, clock, count, drawCurve, drawDrift, drawHeat, drawShares,
  drawSpark, duration, heatSwatch, hitsAt, make, parseSize, percent, rate, ratio, swatch, visible, write,
} from "/draw.js";

const byId = (id) => document.getElementById(id);
/** Figures older than this are shown as old. */
const STALE_MS = 3500;
/** Seconds that the page keeps of each VM. */
const KEPT = 300;
const state = { host: null, atMs: NaN, madeMs: NaN, hello: null, heardAt: NaN };

// --- Life -----------------------------------------------------------------------------------------------

/** How old the figures are, by clocks that never jump. */
function ageMs() {
  const { hello, madeMs } = state;
  if (!hello || !Number.isFinite(madeMs)) return NaN;
  return performance.now() - hello.at + hello.uptime - madeMs;
}

function showLife() {
  const age = ageMs();
  const isStale = !(age < STALE_MS);
  document.body.classList.toggle("stale", isStale && state.host !== null);
  const seen = clock(state.atMs);
  if (state.host === null) write(byId("life-text"), "no figures yet");
  else write(byId("life-text"), isStale ? `last seen ${duration(age / 1000)} ago, at ${seen}` : `${state.isRecording ? "recorded" : "live"}, ${seen}`);
  if (isStale !== showLife.was && state.host !== null) {
    if (showLife.was !== undefined) speak(isStale ? "The daemon gives no figures any more" : "The daemon gives figures again");
    showLife.was = isStale;
  }
}

function speak(text) {
  write(byId("spoken"), text);
}

/** Takes the greeting of a stream. */
export function greet(hello) {
  state.hello = { at: performance.now(), uptime: hello["uptime-ms"] };
  state.isRecording = hello["is-recording"] === true;
  state.takesOrders = hello["takes-orders"] === true;
  write(byId("version"), `vmm-tier ${visible(hello.version)}`);
  showToken();
}

/** Takes figures that were made `madeMs` after the host's start, and shows them. */
export function take(host, madeMs) {
  state.host = host;
  state.atMs = host["at-ms"];
  state.madeMs = madeMs;
  remember(host, Math.floor(madeMs / 1000));
  if (guest.name === null) showHost(host);
  else showGuestOf(host);
  showLife();
}

function connect() {
  const events = new EventSource("/events");
  events.addEventListener("hello", (event) => greet(JSON.parse(event.data)));
  events.addEventListener("host", (event) => take(JSON.parse(event.data), Number(event.lastEventId)));
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  });
}

// --- Tiles ----------------------------------------------------------------------------------------------

/** A list of figures in tiles, made once: `show(key, value, more)`. */
function tiles(list, labels) {
  const made = new Map();
  for (const [key, label] of labels) {
    const value = make("dd", { text: NOTHING });
    const more = make("dd", { class: "sub", text: "" });
    list.append(make("div", {}, make("dt", { text: label }), value, more));
    made.set(key, { value, more });
  }
  return (key, value, more = "") => {
    write(made.get(key).value, value);
    write(made.get(key).more, more);
  };
}

const showTile = tiles(byId("tiles"), [
  ["used", "DRAM used"], ["pool", "Pool"], ["free", "Free"], ["charged", "Charged"], ["jain", "Fairness"],
  ["worst", "Worst served"], ["moves", "Moves"], ["vms", "Guests"], ["mode", "Mode"],
]);
const spark = make("canvas", { id: "jain-hour", role: "img", "aria-label": "Fairness over the last hour" });
spark.style.height = "22px";
byId("tiles").children[4].append(make("dd", {}, spark));

const sum = (values) => values.reduce((total, value) => total + (Number.isFinite(value) ? value : 0), 0);

function showTiles(host) {
  const { fairness, moves, vms, drain } = host;
  const used = sum(vms.map((vm) => vm["fast-bytes"]));
  showTile("used", bytes(used), `by ${count(vms.length)} guests`);
  showTile("pool", bytes(host["pool-bytes"]), `of ${bytes(host["configured-bytes"])} for guests`);
  showTile("free", bytes(host["free-bytes"]), "nobody's share");
  showTile("charged", bytes(host["charged-bytes"]), "held by VMs that do not report");
  showTile("jain", ratio(fairness.jain), "Jain's index, and its last hour");
  showTile("worst", percent(fairness["worst-ratio"]), fairness["worst-vm"] ? `of its due: ${visible(fairness["worst-vm"])}` : "of its due");
  showTile("moves", bytesPerSecond(moves["bytes-per-s"]), `of ${bytesPerSecond(moves["budget-bytes-per-s"])} at most`);
  const states = new Map();
  for (const vm of vms) states.set(vm.state, (states.get(vm.state) ?? 0) + 1);
  const words = [...states].sort().map(([word, number]) => `${number} ${word}`);
  showTile("vms", count(vms.length), words.join(", "));
  const draining = drain ? `drain to ${bytes(drain["to-bytes"])}: ${drain.done ? "done" : `${bytes(drain["left-bytes"])} left`}` : "no drain";
  showTile("mode", host.mode, host.starting ? "starting: shares stay" : draining);
}

// --- Alarms ---------------------------------------------------------------------------------------------

const told = { keys: new Set() };

function showAlarms(alarms) {
  const list = byId("alarms");
  const wanted = Math.max(1, alarms.length);
  while (list.children.length > wanted) list.lastChild.remove();
  while (list.children.length < wanted) list.append(make("li", {}, make("b"), document.createTextNode("")));
  if (alarms.length === 0) {
    list.firstChild.className = "none";
    write(list.firstChild.firstChild, "");
    list.firstChild.lastChild.data = "Nothing to tell.";
  }
  alarms.forEach((alarm, at) => {
    const item = list.children[at];
    item.className = alarm.severity === "critical" ? "critical" : "warning";
    write(item.firstChild, alarm.severity === "critical" ? "Critical: " : "Warning: ");
    const text = visible(alarm.text);
    if (item.lastChild.data !== text) item.lastChild.data = text;
  });
  // Each alarm is spoken once, not each second that it lasts longer.
  const keys = new Map(alarms.map((alarm) => [`${alarm.vm ?? ""} ${alarm.severity} ${alarm.text.replace(/\d+/g, "")}`, alarm.text]));
  const fresh = [...keys].filter(([key]) => !told.keys.has(key)).map(([, text]) => visible(text));
  told.keys = new Set(keys.keys());
  if (fresh.length > 0) speak(fresh.length > 3 ? `${fresh.length} new alarms` : fresh.join("; "));
}

// --- Shares over time -----------------------------------------------------------------------------------

/** The last seconds of each VM, in rings: the second is the index, modulo their length. */
const kept = { newest: null, tracks: new Map(), dealt: ring(), entitled: ring(), pool: NaN };
const chart = { top: [], chosenAt: -Infinity, range: 300, hour: null, seed: null, filter: "" };

function ring() {
  return new Float32Array(KEPT).fill(NaN);
}

function track(name) {
  if (!kept.tracks.has(name)) kept.tracks.set(name, { share: ring(), entitled: ring(), seen: 0 });
  return kept.tracks.get(name);
}

function remember(host, second) {
  const isBehind = kept.newest !== null && second < kept.newest;
  if (isBehind) kept.tracks.clear();
  const from = kept.newest === null || isBehind ? second : Math.max(kept.newest + 1, second - KEPT + 1);
  for (let at = from; at <= second; at += 1) {
    const slot = at % KEPT;
    for (const { share, entitled } of kept.tracks.values()) share[slot] = entitled[slot] = NaN;
    kept.dealt[slot] = kept.entitled[slot] = NaN;
  }
  kept.newest = second;
  // A second between two figures that came a little late is like the later one.
  const slots = second - from < 3 ? Array.from({ length: second - from + 1 }, (_, at) => (from + at) % KEPT) : [second % KEPT];
  const entitled = sum(host.vms.map((vm) => vm["entitled-bytes"]));
  for (const slot of slots) {
    for (const vm of host.vms) {
      const it = track(vm.name);
      it.share[slot] = vm["share-bytes"] ?? NaN;
      it.entitled[slot] = vm["entitled-bytes"] ?? NaN;
      it.seen = second;
    }
    kept.dealt[slot] = host["pool-bytes"] - host["free-bytes"];
    kept.entitled[slot] = entitled;
  }
  kept.pool = host["pool-bytes"];
  if (kept.tracks.size > host.vms.length) {
    for (const [name, { seen }] of kept.tracks) if (second - seen > KEPT) kept.tracks.delete(name);
  }
}

/** A ring from its oldest second on. */
function unrolled(values) {
  const first = (kept.newest + 1) % KEPT;
  const all = new Float32Array(KEPT);
  all.set(values.subarray(first));
  all.set(values.subarray(0, first), KEPT - first);
  return all;
}

async function history(query) {
  const answer = await fetch(`/api/history?${new URLSearchParams(query)}`);
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

/** What the daemon remembers of the seconds before the page was opened. */
async function seed(names) {
  for (const name of names) {
    const past = await history({ name, "since-s": KEPT });
    const newest = kept.newest;
    const first = newest - past["begins-s-ago"];
    const [vm] = past.vms;
    const fill = (values, column) => {
      column.forEach((value, step) => {
        for (let at = 0; at < past["step-s"]; at += 1) {
          const second = first + step * past["step-s"] + at;
          if (second > newest - KEPT && second <= newest && Number.isNaN(values[second % KEPT])) values[second % KEPT] = value ?? NaN;
        }
      });
    };
    const it = track(name);
    fill(it.share, vm["share-bytes"].mean);
    fill(it.entitled, vm["entitled-bytes"].mean);
    const free = past.host["free-bytes"].mean;
    fill(kept.dealt, past.host["pool-bytes"].mean.map((pool, at) => (pool === null ? null : pool - (free[at] ?? 0))));
  }
}

async function fetchHour() {
  const parts = await Promise.all(chart.top.map((name) => history({ name, "since-s": 3600, "step-s": 60 }).catch(() => null)));
  const known = parts.filter((part) => part !== null);
  if (known.length > 0) chart.hour = known;
  showShares();
}

/** The hour of the fairness index; any VM's history has the host's beside it. */
async function fetchFairness() {
  const name = state.host?.vms[0]?.name;
  const past = await history(name === undefined ? { "since-s": 3600, "step-s": 60 } : { name, "since-s": 3600, "step-s": 60 });
  const jain = past.host.jain.mean;
  drawSpark(spark, jain);
  const least = Math.min(...past.host.jain.min.filter((value) => value !== null));
  spark.setAttribute("aria-label", `Fairness over the last hour: ${ratio(least)} at worst`);
}

function chooseTop(host) {
  const now = performance.now();
  const found = host.vms.filter((vm) => isFound(vm));
  const names = new Set(found.map((vm) => vm.name));
  const isGood = chart.top.every((name) => names.has(name)) && chart.top.length >= Math.min(SERIES - 1, names.size) && chart.filter === table.filter;
  if (isGood && now - chart.chosenAt < 10000) return;
  chart.chosenAt = now;
  chart.filter = table.filter;
  const most = found.sort((a, b) => (b["share-bytes"] ?? 0) - (a["share-bytes"] ?? 0));
  const top = most.slice(0, SERIES - 1).map((vm) => vm.name);
  // Those that stay keep their colours.
  const stay = chart.top.map((name) => (top.includes(name) ? name : null));
  const fresh = top.filter((name) => !chart.top.includes(name));
  chart.top = stay.map((name) => name ?? fresh.shift()).concat(fresh).filter((name) => name !== undefined);
  makeLegend();
  if (chart.seed === null) {
    chart.seed = seed([...chart.top]).then(() => showShares()).catch(() => {});
    fetchFairness().catch(() => {});
  }
}

const legend = [];

function makeLegend() {
  const list = byId("legend");
  list.replaceChildren();
  legend.length = 0;
  const others = chart.filter === "" ? [null] : [];
  [...chart.top, ...others].forEach((name, at) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const value = make("span");
    const label = name === null ? make("span", { text: "all others" }) : make("a", { class: "name", href: `#vm=${encodeURIComponent(name)}`, text: visible(name) });
    list.append(make("li", {}, canvas, label, value));
    swatch(canvas, name === null ? SERIES - 1 : at);
    legend.push(value);
  });
}

function showShares() {
  if (kept.newest === null) return;
  const canvas = byId("shares");
  // A filter shows its VMs alone.
  const isWhole = chart.filter === "";
  const others = (dealt, all, parts) => {
    const share = dealt.map((value, at) => Math.max(0, value - sum(parts.map((part) => part.share[at]))));
    const entitled = all.map((value, at) => value - sum(parts.map((part) => part.entitled[at])));
    return { share, entitled, colour: SERIES - 1 };
  };
  if (chart.range === 300 || chart.hour === null) {
    const parts = chart.top.map((name, colour) => {
      const it = track(name);
      return { share: unrolled(it.share), entitled: unrolled(it.entitled), colour };
    });
    if (isWhole) parts.push(others(unrolled(kept.dealt), unrolled(kept.entitled), parts));
    drawShares(canvas, parts, KEPT, KEPT, isWhole ? kept.pool : 0);
  } else {
    const parts = chart.hour.map((past, colour) => {
      const numbers = (column) => Float64Array.from(column.mean, (value) => value ?? NaN);
      return { share: numbers(past.vms[0]["share-bytes"]), entitled: numbers(past.vms[0]["entitled-bytes"]), colour };
    });
    const { host, steps } = chart.hour[0];
    const dealt = Float64Array.from(host["pool-bytes"].mean, (pool, at) => (pool ?? NaN) - (host["free-bytes"].mean[at] ?? 0));
    if (isWhole) parts.push(others(dealt, new Float64Array(steps).fill(NaN), parts));
    drawShares(canvas, parts, steps, 3600, isWhole ? kept.pool : 0);
  }
}

function showLegend(host) {
  const known = new Map(host.vms.map((vm) => [vm.name, vm]));
  let [share, entitled] = [0, 0];
  chart.top.forEach((name, at) => {
    const vm = known.get(name);
    share += vm?.["share-bytes"] ?? 0;
    entitled += vm?.["entitled-bytes"] ?? 0;
    write(legend[at], `${bytes(vm?.["share-bytes"])} of ${bytes(vm?.["entitled-bytes"])}`);
  });
  const slot = kept.newest % KEPT;
  const others = legend[chart.top.length];
  if (others) write(others, `${bytes(Math.max(0, kept.dealt[slot] - share))} of ${bytes(Math.max(0, kept.entitled[slot] - entitled))}`);
}

// --- The table of VMs -----------------------------------------------------------------------------------

const { compare: compareTexts } = new Intl.Collator("en", { numeric: true });

/** Texts with their numbers in order; what is not known is least. */
function compare(a, b) {
  if (typeof a === "string" && typeof b === "string") return compareTexts(a, b);
  const [first, second] = [a, b].map((value) => (Number.isFinite(value) ? value : -Infinity));
  return first === second ? 0 : first - second;
}

/** Columns: key, heading, class, text, and by what it is sorted. */
const COLUMNS = [
  ["name", "VM", "text", null, (vm) => vm.name],
  ["state", "State", "text", (vm) => vm.state, (vm) => vm.state],
  ["share", "Share / entitled", "text", null, (vm) => vm["share-bytes"] / vm["entitled-bytes"]],
  ["held", "Held", "w2", (vm) => bytes(vm["fast-bytes"]), (vm) => vm["fast-bytes"]],
  ["uses", "Uses", "w2", (vm) => bytes(vm["demand-bytes"]), (vm) => vm["demand-bytes"]],
  ["hit", "Hit ratio", "", (vm) => percent(vm["hit-ratio"]), (vm) => vm["hit-ratio"]],
  ["slowdown", "Slowdown", "w2", (vm) => ratio(vm.slowdown, 2), (vm) => vm.slowdown],
  ["weight", "Weight", "w2", (vm) => ratio(vm.weight, 2).replace(/\.?0+$/, ""), (vm) => vm.weight],
  ["guarantee", "Guarantee", "w2", (vm) => bytes(vm["guarantee-bytes"]), (vm) => vm["guarantee-bytes"]],
  ["cap", "Cap", "w3", (vm) => bytes(vm["cap-bytes"]), (vm) => vm["cap-bytes"]],
  ["moves", "Moves", "w3", (vm) => bytesPerSecond(vm["moves-per-s"]), (vm) => vm["moves-per-s"]],
  ["source", "Source", "text clip w3", (vm) => visible(vm.source ?? NOTHING), (vm) => vm.source ?? ""],
  ["waits", "Waits for", "text clip w3", (vm) => visible(vm["waits-for"] ?? NOTHING), (vm) => vm["waits-for"] ?? ""],
].map(([key, head, style, text, by]) => ({ key, head, style, text, by }));

const table = { rows: new Map(), sort: "name", descending: false, filter: "", sortedAt: -Infinity, shown: 0 };

function makeHeads() {
  for (const column of COLUMNS) {
    const button = make("button", { type: "button", text: column.head });
    const head = make("th", { scope: "col", role: "columnheader", class: column.style }, button);
    column.th = head;
    button.addEventListener("click", () => {
      table.descending = table.sort === column.key ? !table.descending : column.style.includes("text") === false;
      table.sort = column.key;
      showSort();
      if (state.host) sortRows(state.host);
    });
    byId("heads").append(head);
  }
  showSort();
}

function showSort() {
  for (const { key, th } of COLUMNS) {
    if (key === table.sort) th.setAttribute("aria-sort", table.descending ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
}

/** Whether the filter leaves a VM in. */
const isFound = (vm) => table.filter === "" || `${vm.name} ${vm.state} ${vm.source ?? ""} ${vm["waits-for"] ?? ""}`.toLowerCase().includes(table.filter);

/** A row of a VM: its text nodes, which are written where they differ. */
function makeRow(name) {
  const row = make("tr", { role: "row" });
  const cells = {};
  for (const { key, style } of COLUMNS) {
    const text = document.createTextNode("");
    if (key === "name") {
      const link = make("a", { class: "name", href: `#vm=${encodeURIComponent(name)}`, text: visible(name), title: visible(name) });
      row.append(make("th", { scope: "row", role: "rowheader", class: "text" }, link));
    } else if (key === "share") {
      const fill = make("i");
      const gauge = make("span", { class: "gauge", "aria-hidden": "true" }, fill, make("b"));
      const entitled = document.createTextNode("");
      row.append(make("td", { role: "cell", class: style }, gauge, text, make("span", { class: "w2" }, entitled)));
      Object.assign(cells, { fill, gauge, entitled, scale: "" });
    } else {
      row.append(make("td", { role: "cell", class: style }, text));
    }
    cells[key] = text;
  }
  return { row, cells, state: row.children[1], isShown: true, isSeen: true, isInView: true, vm: null };
}

/** Rows that come into view are written then: those that nobody sees cost nothing each second. */
const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const it = table.rows.get(target.dataset.name);
    if (!it) continue;
    it.isInView = isIntersecting;
    if (isIntersecting && it.vm) writeRow(it, it.vm);
  }
}, { rootMargin: "150px" });

function fillRow(it, vm) {
  it.vm = vm;
  const isShown = isFound(vm);
  if (it.isShown !== isShown) {
    it.isShown = isShown;
    it.row.hidden = !isShown;
  }
  if (isShown) table.shown += 1;
  if (isShown && it.isInView) writeRow(it, vm);
}

/** The bar: from nothing to twice what it is entitled to; the mark in the middle is that. */
function writeRow(it, vm) {
  const { cells } = it;
  for (const { key, text } of COLUMNS) {
    if (text === null) continue;
    const now = text(vm);
    if (cells[key].data !== now) cells[key].data = now;
  }
  const [share, entitled] = [vm["share-bytes"], vm["entitled-bytes"]];
  const words = bytes(share);
  if (cells.share.data !== words) cells.share.data = words;
  const due = ` / ${bytes(entitled)}`;
  if (cells.entitled.data !== due) cells.entitled.data = due;
  const part = Number.isFinite(share) && entitled > 0 ? share / entitled / 2 : 0;
  const scale = `scaleX(${Math.min(1, Math.max(0, part)).toFixed(2)})`;
  if (cells.scale !== scale) {
    cells.scale = cells.fill.style.transform = scale;
    cells.gauge.classList.toggle("over", part > 0.505);
  }
  if (it.word !== vm.state) {
    it.word = vm.state;
    it.state.className = `text state-${vm.state}`;
    it.state.title = vm.refused ? visible(vm.refused) : "";
  }
}

function showTable(host) {
  const { rows } = table;
  table.shown = 0;
  for (const it of rows.values()) it.isSeen = false;
  let isNew = false;
  for (const vm of host.vms) {
    let it = rows.get(vm.name);
    if (!it) {
      it = makeRow(vm.name);
      it.row.dataset.name = vm.name;
      rows.set(vm.name, it);
      inView.observe(it.row);
      isNew = true;
    }
    it.isSeen = true;
    fillRow(it, vm);
  }
  for (const [name, it] of rows) {
    if (it.isSeen) continue;
    inView.unobserve(it.row);
    it.row.remove();
    rows.delete(name);
  }
  // Rows that change places each second can't be read.
  if (isNew || performance.now() - table.sortedAt > 5000) sortRows(host);
  write(byId("shown"), table.shown === host.vms.length ? `${host.vms.length}` : `${table.shown} of ${host.vms.length}`);
}

function sortRows(host) {
  table.sortedAt = performance.now();
  const { by } = COLUMNS.find(({ key }) => key === table.sort);
  const way = table.descending ? -1 : 1;
  const keyed = host.vms.map((vm) => ({ name: vm.name, by: by(vm), row: table.rows.get(vm.name)?.row }));
  keyed.sort((a, b) => way * compare(a.by, b.by) || compare(a.name, b.name));
  const body = byId("rows");
  let next = body.firstChild;
  for (const { row } of keyed) {
    if (!row) continue;
    if (row === next) next = next.nextSibling;
    else body.insertBefore(row, next);
  }
}

function showHost(host) {
  showTiles(host);
  showAlarms(host.alarms ?? []);
  chooseTop(host);
  showLegend(host);
  if (chart.range === 300) showShares();
  showTable(host);
}

// --- A VM's own page ------------------------------------------------------------------------------------

const DRIFT_ROWS = 60;
const DRIFT_COLUMNS = 128;
const guest = { name: null, map: null, chosen: null, shape: null, drift: [], polls: 0, info: null };

const showGuestTile = tiles(byId("guest-tiles"), [
  ["state", "State"], ["share", "Share"], ["held", "DRAM consumed"], ["active", "Active"], ["hit", "Hit ratio"],
  ["slow", "Slow-tier accesses"], ["slowdown", "Slowdown"], ["moves", "Moves"],
]);

const vmOf = (host) => host?.vms.find((vm) => vm.name === guest.name);

function showGuestOf(host) {
  const vm = vmOf(host);
  if (!vm) {
    write(byId("guest-trouble"), "This VM is gone: the figures are its last.");
    return;
  }
  showGuestTile("state", vm.state, vm["agent-state"] ? `agent: ${visible(vm["agent-state"])}` : "no agent");
  showGuestTile("share", bytes(vm["share-bytes"]), `entitled to ${bytes(vm["entitled-bytes"])}`);
  showGuestTile("held", bytes(vm["fast-bytes"]), `kernel: ${bytes(vm["kernel-bytes"])}`);
  showGuestTile("active", bytes(vm["demand-bytes"]), "memory in use");
  showGuestTile("hit", percent(vm["hit-ratio"]), "of accesses in DRAM");
  showGuestTile("slowdown", ratio(vm.slowdown, 3), "against all in DRAM");
  showGuestTile("moves", bytesPerSecond(vm["moves-per-s"]), `of ${bytesPerSecond(vm["move-budget-bytes-per-s"])} at most`);
  const fields = [["weight", vm.weight], ["guarantee", bytes(vm["guarantee-bytes"])], ["cap", bytes(vm["cap-bytes"])]];
  for (const [id, value] of fields) {
    const field = byId(id);
    if (!field.dataset.edited && document.activeElement !== field) field.value = value ?? "";
  }
}

async function askAgent(what) {
  const answer = await fetch(`/api/vm/${encodeURIComponent(guest.name)}${what}`);
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error?.desc ?? `status ${answer.status}`);
  return value;
}

/** Rows of a table: `heads`, then texts; a caption if there is one. */
function fillTable(id, heads, rows, nothing) {
  const head = make("thead", {}, make("tr", {}, ...heads.map(([text, style]) => make("th", { scope: "col", class: style ?? "", text }))));
  const body = make("tbody");
  for (const cells of rows) {
    body.append(make("tr", {}, ...cells.map((text, at) => make("td", { class: heads[at][1] ?? "", text: visible(text) }))));
  }
  if (rows.length === 0) body.append(make("tr", {}, make("td", { class: "text", colspan: heads.length, text: nothing })));
  byId(id).replaceChildren(head, body);
}

const hex = (address) => `0x${Number(address).toString(16)}`;

function showInfo(info) {
  guest.info = info;
  const tierName = (rank) => (rank === 0 ? "fast" : rank === 1 ? "slow" : `rank ${rank}`);
  fillTable("tiers", [["Tier", "text"], ["Nodes"], ["Guest has"], ["Limit"], ["Nodes' free"]], info.tiers.map((tier) => [
    tierName(tier.rank), tier.nodes.join(", "), bytes(tier.bytes), bytes(tier["limit-bytes"]), bytes(tier["free-bytes"]),
  ]), "no tiers");
  const pairs = [
    ["Waits for", info["waits-because"] ?? "nothing: pages move, or could at once"],
    ["Page sizes", Object.entries(info["page-sizes"]).map(([size, all]) => `${bytes(all)} in ${bytes(Number(size))}`).join(", ") || NOTHING],
    ["Promoted, demoted", `${bytes(info["promoted-bytes"])}, ${bytes(info["demoted-bytes"])} since the agent's start`],
    ["Policy", `${info.policy}, half-life ${ratio(info["half-life-s"], 1)} s, ${bytesPerSecond(info["rate-bytes-per-s"])} at most`],
    ["Agent's start", `${duration(info["uptime-s"])} ago, at ${clock(Date.now() - info["uptime-s"] * 1000)}`],
  ];
  byId("tier-pairs").replaceChildren(...pairs.flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { text: visible(text) })]));
  fillTable("pins", [["Pin", "text"], ["Bytes"], ["Tier", "text"], ["In place"], ["Elsewhere"]], info.pins.ranges.map((pin) => [
    hex(pin.start), bytes(pin.bytes), pin.tier, bytes(pin["placed-bytes"]), bytes(pin["elsewhere-bytes"]),
  ]), "no pins");
  fillTable("pools", [["Pool of", "text"], ["Node"], ["Pages"], ["Free"], ["Surplus"]], info.pools.flatMap((pool) => pool.nodes.map((node) => [
    bytes(pool["page-size"]), `${node.node}`, count(node.pages), count(node.free), count(node.surplus),
  ])), "no hugetlb pools");
  const failed = Object.entries(info.failed).filter(([, pages]) => pages > 0).sort((a, b) => b[1] - a[1]);
  fillTable("failures", [["Class", "text"], ["Pages"]], failed.map(([word, pages]) => [word, count(pages)]), "none failed");
  fillTable("sources", [["Source", "text"], ["Health", "text"], ["Quality"], ["Covers"], ["Useful a second"]], info.sources.map((source) => [
    source.believed ? `${source.kind} (believed)` : source.kind, source.health, ratio(source.quality, 2), percent(source.coverage), rate(source["accepted-per-s"]),
  ]), "no sources");
}

function showDemand(demand) {
  const points = demand.curve.map((point) => [point.bytes, point["accesses-per-s"]]);
  const total = points.length ? points[points.length - 1][1] : 0;
  const here = guest.info?.tiers[0]?.bytes ?? vmOf(state.host)?.["fast-bytes"];
  drawCurve(byId("curve"), points, here, total);
  const hits = hitsAt(points, here ?? 0);
  const ideal = total > 0 ? percent(hits / total) : NOTHING;
  write(byId("curve-note"), `Upward: share of accesses that so much DRAM could serve with the hottest pages in it. ${bytes(here)} could serve ${ideal} of ${rate(total)} accesses a second.`);
  byId("curve").setAttribute("aria-label", `Demand curve: ${bytes(here)} of DRAM could serve ${ideal} of the accesses`);
  const hit = vmOf(state.host)?.["hit-ratio"];
  const slow = Number.isFinite(hit) ? total * (1 - hit) : NaN;
  showGuestTile("slow", `${rate(slow)}/s`, `of ${rate(total)}/s in all`);
}

function showMap(map) {
  guest.map = map;
  if (guest.chosen === null || guest.chosen >= map.cells.length) guest.chosen = 0;
  guest.shape = drawHeat(byId("heat"), map, guest.chosen);
  showCell();
  const heat = new Float32Array(DRIFT_COLUMNS);
  const fast = new Float32Array(DRIFT_COLUMNS);
  const per = map.cells.length / DRIFT_COLUMNS;
  for (let at = 0; at < DRIFT_COLUMNS; at += 1) {
    const cells = map.cells.slice(Math.floor(at * per), Math.max(Math.floor(at * per) + 1, Math.floor((at + 1) * per)));
    const present = cells.filter((cell) => Number.isFinite(cell["fast-share"]));
    heat[at] = sum(cells.map((cell) => cell.rate)) / cells.length;
    fast[at] = present.length ? sum(present.map((cell) => cell["fast-share"])) / present.length : NaN;
  }
  guest.drift.push({ heat, fast });
  if (guest.drift.length > DRIFT_ROWS) guest.drift.shift();
  drawDrift(byId("drift"), guest.drift, DRIFT_ROWS);
  write(byId("drift-note"), `Memory from 0 to ${bytes(map["ram-bytes"])}, left to right. Each row is ${POLL_MS / 1000 * 2.5} s; the newest is the lowest. Rows since ${clock(guest.openedAt)}.`);
}

function showCell() {
  const cell = guest.map?.cells[guest.chosen];
  if (!cell) return;
  const share = cell["fast-share"];
  const place = Number.isFinite(share) ? `${percent(share)} in DRAM` : "nothing present";
  const size = guest.map["ram-bytes"] / guest.map.cells.length;
  write(byId("heat-cell"), `${hex(cell.gpa)}, ${bytes(size)}: ${rate(cell.rate)} accesses a second for each 4 KiB, ${place}`);
}

async function explainCell() {
  const cell = guest.map?.cells[guest.chosen];
  if (!cell) return;
  const box = byId("explained");
  try {
    const told = await askAgent(`/explain?address=${cell.gpa}`);
    const lines = told.sentences?.length ? told.sentences : [told["would-move-if"]];
    box.replaceChildren(make("strong", { text: `Page at ${hex(told.gpa)}` }), ...lines.map((text) => make("p", { text: visible(text) })));
  } catch (error) {
    box.replaceChildren(make("p", { text: visible(error.message) }));
  }
}

function showMoves(answer) {
  const words = { promote: "to DRAM", demote: "to slow memory" };
  fillTable("moves", [["When", "text"], ["At", "text"], ["Address", "text"], ["Way", "text"], ["Outcome", "text"], ["Node"]], answer.moves.map((move) => [
    `${duration(move["seconds-ago"])} ago`, clock(Date.now() - move["seconds-ago"] * 1000),
    Number.isFinite(move.gpa) ? hex(move.gpa) : NOTHING, words[move.direction] ?? move.direction, move.outcome, `${move.node ?? NOTHING}`,
  ]), "none yet");
}

const POLL_MS = 2000;

/** Asks the agent while its page is open and can be seen: figures each time, what costs more less often. */
async function poll() {
  const { name } = guest;
  if (name === null || document.hidden) return;
  const isStill = () => guest.name === name;
  const all = [askAgent("").then((value) => isStill() && showInfo(value)).then(() => askAgent("/demand")).then((value) => isStill() && showDemand(value))];
  const slow = Math.floor(guest.polls * 0.4) !== Math.floor((guest.polls - 1) * 0.4);
  guest.polls += 1;
  if (slow) {
    all.push(askAgent("/heatmap").then((value) => isStill() && showMap(value)));
    all.push(askAgent("/moves").then((value) => isStill() && showMoves(value)));
  }
  const failed = (await Promise.allSettled(all)).find(({ status }) => status === "rejected");
  if (isStill()) write(byId("guest-trouble"), failed ? `No more is known than what the daemon knows: ${visible(failed.reason.message)}` : "");
}

function showView() {
  const found = /^#vm=(.*)$/.exec(location.hash);
  let name = null;
  try {
    name = found ? decodeURIComponent(found[1]) : null;
  } catch {
    // No name that a link of this page has.
  }
  if (name !== guest.name) Object.assign(guest, { name, map: null, chosen: null, drift: [], polls: 0, info: null, openedAt: Date.now() });
  byId("host-view").hidden = name !== null;
  byId("guest-view").hidden = name === null;
  document.title = name === null ? "vmm-tier host" : `${visible(name)} – vmm-tier`;
  if (name !== null) {
    byId("guest-name").textContent = visible(name);
    byId("explained").replaceChildren();
    for (const id of ["tiers", "tier-pairs", "pins", "pools", "failures", "sources", "moves"]) byId(id).replaceChildren();
    for (const id of ["weight", "guarantee", "cap"]) delete byId(id).dataset.edited;
    byId("guest-name").focus({ preventScroll: true });
    scrollTo(0, 0);
    if (state.host) showGuestOf(state.host);
    poll();
  } else if (state.host) {
    showHost(state.host);
  }
}

function chooseCell(at) {
  if (!guest.map) return;
  guest.chosen = Math.max(0, Math.min(guest.map.cells.length - 1, at));
  guest.shape = drawHeat(byId("heat"), guest.map, guest.chosen);
  showCell();
}

function wireHeat() {
  const canvas = byId("heat");
  canvas.addEventListener("click", (event) => {
    if (!guest.shape) return;
    const { columns, rows, wide, high } = guest.shape;
    const column = Math.min(columns - 1, Math.floor(event.offsetX / wide));
    const row = Math.min(rows - 1, Math.floor(event.offsetY / high));
    chooseCell(row * columns + column);
    explainCell();
  });
  canvas.addEventListener("keydown", (event) => {
    const columns = guest.shape?.columns ?? 1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    if (event.key === "Enter") explainCell();
    else if (steps[event.key]) chooseCell((guest.chosen ?? 0) + steps[event.key]);
    else return;
    event.preventDefault();
  });
  const list = byId("heat-legend");
  const words = [`below ${HEAT_EDGES[0]}`, ...HEAT_EDGES.map((edge) => `from ${rate(edge)}`)];
  const kinds = [...words.map((word, at) => [at, word]), ["slow", "slow tier"], ["mixed", "both tiers"], ["absent", "not present"]];
  for (const [kind, word] of kinds) {
    const square = make("canvas", { "aria-hidden": "true" });
    square.dataset.kind = kind;
    list.append(make("li", {}, square, make("span", { text: word })));
  }
}

function drawLegendOfHeat() {
  for (const square of byId("heat-legend").querySelectorAll("canvas")) {
    const { kind } = square.dataset;
    heatSwatch(square, /^\d+$/.test(kind) ? Number(kind) : kind);
  }
}

// --- Orders ---------------------------------------------------------------------------------------------

const TOKEN = "vmm-tier token";
let token = sessionStorage.getItem(TOKEN) ?? "";

/** Whether orders can be given now. */
function showToken(words) {
  const may = token !== "" && state.takesOrders === true;
  for (const button of document.querySelectorAll(".orders button")) button.disabled = !may;
  const standing = state.takesOrders === false ? "This server takes no orders." : may ? "Orders are carried out." : "Read-only. Orders need the token that the daemon keeps in its run directory.";
  write(byId("token-state"), words ?? standing);
}

async function send(order) {
  const head = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  return fetch("/api/command", { method: "POST", headers: head, body: JSON.stringify(order) });
}

/** Has an order carried out, and says in `place` what became of it. */
async function order(wanted, place) {
  try {
    const answer = await send(wanted);
    if (answer.status === 401) forgetToken();
    const value = await answer.json();
    write(place, answer.ok ? `Done at ${clock(Date.now())}.` : visible(value.error?.desc ?? `status ${answer.status}`));
    return answer.ok;
  } catch {
    write(place, "The daemon can't be reached.");
    return false;
  }
}

function forgetToken() {
  token = "";
  sessionStorage.removeItem(TOKEN);
  showToken("This is not the daemon's token.");
}

/** Takes a token if the daemon knows it: an order that there is none of tells. */
async function useToken(text) {
  token = text.trim();
  try {
    const answer = await send({ execute: "nothing" });
    if (answer.status === 401) return forgetToken();
    sessionStorage.setItem(TOKEN, token);
    showToken();
  } catch {
    showToken("The daemon can't be reached.");
  }
}

function wireOrders() {
  const onSubmit = (id, work) => byId(id).addEventListener("submit", (event) => {
    event.preventDefault();
    work();
  });
  const place = byId("order-answer");
  onSubmit("token-form", () => {
    const field = byId("token");
    const text = field.value;
    field.value = "";
    useToken(text);
  });
  onSubmit("mode-form", () => order({ execute: "host-set-mode", arguments: { mode: byId("mode").value } }, place));
  onSubmit("drain-form", () => {
    const size = parseSize(byId("drain").value);
    if (Number.isNaN(size)) write(place, "A size is 12 GiB, 512M or 0.");
    else if (confirm(`Have all guests leave DRAM down to ${bytes(size)}?`)) order({ execute: "host-drain", arguments: { bytes: size } }, place);
  });
  byId("drain-end").addEventListener("click", () => order({ execute: "host-drain", arguments: { cancel: true } }, place));
  const note = byId("terms-note");
  const fields = ["weight", "guarantee", "cap"].map(byId);
  for (const field of fields) field.addEventListener("input", () => (field.dataset.edited = "yes"));
  onSubmit("terms-form", async () => {
    const wanted = { name: guest.name };
    if (byId("weight").dataset.edited) wanted.weight = Number(byId("weight").value);
    if (byId("guarantee").dataset.edited) wanted["guarantee-bytes"] = parseSize(byId("guarantee").value);
    if (byId("cap").dataset.edited) wanted["cap-bytes"] = parseSize(byId("cap").value);
    if (Object.keys(wanted).length === 1) write(note, "Nothing was changed.");
    else if (Object.values(wanted).some(Number.isNaN)) write(note, "A weight is a number; a size is 12 GiB, 512M or 0.");
    else if (await order({ execute: "host-set-vm", arguments: wanted }, note)) for (const field of fields) delete field.dataset.edited;
  });
  for (const id of ["pause", "resume"]) byId(id).addEventListener("click", () => order({ execute: `tier-${id}`, vm: guest.name }, note));
}

// --- Start ----------------------------------------------------------------------------------------------

const given = /^#token=([0-9a-f]+)$/.exec(location.hash);
if (given) window.history.replaceState(null, "", "/");
makeHeads();
wireHeat();
wireOrders();
if (given) useToken(given[1]);
showView();
connect();
setInterval(showLife, 500);
setInterval(poll, POLL_MS);
setInterval(() => {
  if (document.hidden || guest.name !== null) return;
  fetchFairness().catch(() => {});
  if (chart.range === 3600) fetchHour();
}, 60000);
addEventListener("hashchange", () => {
  showView();
  if (guest.name !== null) drawLegendOfHeat();
});
if (guest.name !== null) drawLegendOfHeat();
for (const range of [300, 3600]) {
  byId(`range-${range}`).addEventListener("click", () => {
    chart.range = range;
    for (const each of [300, 3600]) byId(`range-${each}`).setAttribute("aria-pressed", String(each === range));
    if (range === 3600) fetchHour();
    else showShares();
  });
}
byId("filter").addEventListener("input", (event) => {
  table.filter = event.target.value.trim().toLowerCase();
  if (state.host) showHost(state.host);
});
const redraw = () => {
  if (guest.name === null) {
    makeLegend();
    if (state.host) showHost(state.host);
  } else if (guest.map) {
    guest.shape = drawHeat(byId("heat"), guest.map, guest.chosen);
    drawDrift(byId("drift"), guest.drift, DRIFT_ROWS);
    drawLegendOfHeat();
  }
};
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
