// Drives the daemon's page in a real Chromium. The test program page.rs starts it, and says by the
// environment where the daemon is; it prints what it found, and ends with a status other than 0 at the first
// thing that is not as it should be.
import assert from "node:assert/strict";
import fs from "node:fs";
import { createRequire } from "node:module";
import readline from "node:readline";

const { MODULES, CHROMIUM, ADDRESS, TOKEN, VMS, SHOTS, WORK } = process.env;
const require = createRequire(`${MODULES}/`);
const { chromium } = require("playwright-core");
const axe = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const base = `http://${ADDRESS}`;
const vms = Number(VMS);
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Has the test program do something. */
async function please(what) {
  console.log(`PLEASE ${what}`);
  await lines.next();
}

// Root, as whom tests may run, has no sandbox.
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });

/** A page on which nothing may go wrong unseen. */
async function opened(options = {}, path = "/") {
  const context = await browser.newContext({ viewport: { width: 1280, height: 1500 }, ...options });
  const page = await context.newPage();
  const troubles = [];
  page.on("pageerror", (error) => troubles.push(error.stack));
  page.on("console", (message) => message.type() === "error" && troubles.push(message.text()));
  page.on("dialog", (dialog) => {
    troubles.push(`dialog: ${dialog.message()}`);
    dialog.accept();
  });
  await page.goto(base + path);
  await page.waitForFunction(() => !/connecting|no figures/.test(document.getElementById("life-text").textContent));
  return { page, context, troubles };
}

const text = (page, selector) => page.locator(selector).first().textContent();
/** The test's own VMs: other tests' QEMUs on this host are VMs without an agent. */
const isOwn = (name) => /^vm\d+$/.test(name);
const rowNames = async (page) => (await page.$$eval("#rows tr:not([hidden]) th", (heads) => heads.map((head) => head.textContent))).filter(isOwn);

/** The figures of /metrics: `{ "name domain": value }`. */
async function metrics(page) {
  const answer = await page.request.get(`${base}/metrics`);
  const found = {};
  for (const [, name, labels, value] of (await answer.text()).matchAll(/^(\w+)(?:\{([^}]*)\})? (\S+)$/gm)) {
    const domain = /domain="((?:[^"\\]|\\.)*)"/.exec(labels ?? "");
    found[domain ? `${name} ${domain[1]}` : name] = Number(value);
  }
  return found;
}

/** Whether `look` holds within a few intervals: the page and /metrics are not of the same moment. */
async function soon(page, look, what) {
  let why;
  for (let turn = 0; turn < 20; turn += 1) {
    try {
      return await look();
    } catch (error) {
      why = error;
      await page.waitForTimeout(250);
    }
  }
  throw new Error(`${what}: ${why.message}`);
}

async function figuresAreThoseOfMetrics({ page }) {
  await soon(page, async () => {
    const found = await metrics(page);
    const write = (values) => page.evaluate(async (all) => {
      const { bytes, percent, ratio } = await import("/draw.js");
      return all.map(([how, value]) => ({ bytes, percent, ratio }[how](value)));
    }, values);
    const shown = await page.$$eval("#tiles dd:nth-of-type(1)", (values) => values.map((value) => value.textContent));
    const [pool, free, charged, jain] = await write([
      ["bytes", found.vmm_tier_host_pool_bytes], ["bytes", found.vmm_tier_host_free_bytes],
      ["bytes", found.vmm_tier_host_charged_bytes], ["ratio", found.vmm_tier_fairness_jain_ratio],
    ]);
    assert.deepEqual(shown.slice(1, 5), [pool, free, charged, jain]);
    const all = await page.$$eval("#rows tr", (found) => found.map((row) => [...row.children].map((cell) => cell.textContent)));
    const rows = all.filter(([name]) => isOwn(name));
    assert.equal(rows.length, vms);
    for (const [name, state, share, held, uses, hit] of rows.slice(0, 20)) {
      const of = (figure) => found[`vmm_tier_host_vm_${figure} ${name}`];
      const expected = await write([["bytes", of("share_bytes")], ["bytes", of("entitled_bytes")], ["bytes", of("fast_bytes")], ["bytes", of("demand_bytes")], ["percent", of("hit_ratio")]]);
      assert.deepEqual([share, held, uses, hit], [`${expected[0]} / ${expected[1]}`, ...expected.slice(2)], name);
      assert.equal(state, "reporting");
    }
  }, "figures are those of /metrics");
  console.log("figures: those of /metrics");
}

async function tableIsFilteredAndSorted({ page }) {
  assert.equal((await rowNames(page))[0], "vm1");
  assert.equal((await rowNames(page))[9], "vm10");
  const head = page.getByRole("columnheader", { name: /^VM/ });
  assert.equal(await head.getAttribute("aria-sort"), "ascending");
  await head.getByRole("button").press("Enter");
  assert.equal(await head.getAttribute("aria-sort"), "descending");
  assert.equal((await rowNames(page))[0], `vm${vms}`);
  await page.getByRole("columnheader", { name: "Weight" }).getByRole("button").click();
  assert.equal(await head.getAttribute("aria-sort"), null);
  await head.getByRole("button").click();
  await page.getByLabel("Filter").fill("VM2");
  const shown = await rowNames(page);
  assert.ok(shown.length > 0 && shown.every((name) => name.startsWith("vm2")), shown.join());
  assert.match(await text(page, "#shown"), /^\d+ of \d+$/);
  await page.getByLabel("Filter").fill("<img");
  assert.deepEqual(await rowNames(page), []);
  await page.getByLabel("Filter").fill("");
  console.log("table: filtered and sorted");
}

async function ordersNeedTheToken({ page, troubles }) {
  await page.goto(`${base}/#vm=vm1`);
  await page.waitForFunction(() => document.getElementById("weight").value !== "");
  const set = page.locator("#terms-form button").first();
  assert.equal(await set.isDisabled(), true, "read-only");
  await page.locator("#operator summary").click();
  await page.getByLabel("Token").fill("0".repeat(64));
  await page.getByRole("button", { name: "Use", exact: true }).click();
  await page.waitForFunction(() => /not the daemon/.test(document.getElementById("token-state").textContent));
  assert.equal(await set.isDisabled(), true, "a wrong token");
  await page.getByLabel("Token").fill(TOKEN);
  await page.getByRole("button", { name: "Use", exact: true }).click();
  await page.waitForFunction(() => /carried out/.test(document.getElementById("token-state").textContent));
  await page.locator("#operator summary").click();
  await page.getByLabel("Weight").fill("2.5");
  await page.getByLabel("Guarantee").fill("1 MiB");
  await set.click();
  await page.waitForFunction(() => /^Done/.test(document.getElementById("terms-note").textContent));
  await soon(page, async () => {
    const found = await metrics(page);
    assert.equal(found["vmm_tier_host_vm_weight vm1"], 2.5);
    assert.equal(found["vmm_tier_host_vm_guarantee_bytes vm1"], 1 << 20);
  }, "the order is carried out");
  await page.getByLabel("Guarantee").fill("900 TiB");
  await set.click();
  await page.waitForFunction(() => /guarantee/i.test(document.getElementById("terms-note").textContent));
  await page.getByLabel("Guarantee").fill("many");
  await set.click();
  await page.waitForFunction(() => /a size is/.test(document.getElementById("terms-note").textContent));
  // What the browser says of answers that refuse.
  const expected = troubles.splice(0).filter((it) => !/status of (401|422)/.test(it));
  assert.deepEqual(expected, []);
  // A token in the address is used, and leaves the address.
  const other = await opened({}, `/#token=${TOKEN}`);
  await other.page.waitForFunction(() => /carried out/.test(document.getElementById("token-state").textContent));
  assert.equal(new URL(other.page.url()).hash, "");
  await other.context.close();
  console.log("orders: with the token only");
}

async function guestHasAPageOfItsOwn({ page }) {
  await page.goto(`${base}/#vm=vm1`);
  await page.waitForFunction(() => document.querySelectorAll("#moves tbody tr").length > 5);
  assert.match(await text(page, "#guest-tiles"), /Slow-tier accesses/);
  assert.match(await text(page, "#tiers"), /fast.*slow/s);
  assert.match(await text(page, "#failures"), /pinned/);
  const heat = page.locator("#heat");
  await heat.click({ position: { x: 40, y: 20 } });
  await page.waitForFunction(() => /Page at 0x/.test(document.getElementById("explained").textContent));
  await heat.press("ArrowRight");
  await heat.press("Enter");
  await page.waitForFunction(() => /why it lies there/.test(document.getElementById("explained").textContent));
  await page.getByRole("button", { name: "Pause moves" }).click();
  await page.waitForFunction(() => /^Done/.test(document.getElementById("terms-note").textContent));
  await page.goto(`${base}/#vm=vm2`);
  await page.waitForFunction(() => /No more is known/.test(document.getElementById("guest-trouble").textContent));
  await page.goto(`${base}/#vm=${encodeURIComponent("<img src=x onerror=alert(1)>")}`);
  await page.waitForFunction(() => /gone/.test(document.getElementById("guest-trouble").textContent));
  assert.match(await text(page, "#guest-name"), /^<img/);
  console.log("a guest's page: shown, explained, paused");
}

/** Names and figures as nobody should send them. */
async function hostileFiguresAreShown({ page, troubles }) {
  await page.goto(`${base}/`);
  await page.waitForFunction(() => document.querySelectorAll("#rows tr").length > 0);
  const names = ["<img src=x onerror=alert(1)>", "a\u202egnp.exe", "x".repeat(200), "</script><script>alert(2)</script>", "\u200f\u2066", "é日本", "__proto__", "vm 7/../%41"];
  const shown = await page.evaluate(async (all) => {
    const { take } = await import("/page.js");
    const vm = (name, at) => ({
      name, state: "reporting", weight: 1, "guarantee-bytes": -5, "cap-bytes": null, "share-bytes": [null, -4096, 1e300][at % 3],
      "entitled-bytes": [0, null, 4096][at % 3], "fast-bytes": null, "hit-ratio": null, slowdown: null, source: name, "waits-for": name,
    });
    const host = {
      "at-ms": Date.now(), mode: "weighted", "pool-bytes": null, "configured-bytes": null, "free-bytes": null, "charged-bytes": null, drain: null,
      moves: { "bytes-per-s": null, "budget-bytes-per-s": null }, fairness: { jain: null, "worst-ratio": null, "worst-vm": all[0] },
      vms: all.map(vm), alarms: all.map((name) => ({ vm: name, severity: "warning", "since-s": 1, text: `${name} is odd` })),
    };
    const now = performance.now() + 1e7;
    take(host, now);
    // The clock jumps back, and then by a day.
    take(host, now - 500000);
    take(host, now + 86400000);
    return [...document.querySelectorAll("#rows tr")].map((row) => [...row.children].map((cell) => cell.textContent));
  }, names);
  assert.equal(shown.length, names.length);
  const flat = shown.flat().join(" ");
  assert.ok(flat.includes("<img src=x onerror=alert(1)>") && flat.includes("‹U+202E›gnp.exe") && flat.includes("‹U+200F›"), flat);
  assert.ok(!/NaN|undefined|null|Infinity/.test(await page.locator("#host-view").innerText()), await page.locator("#host-view").innerText());
  assert.equal(await page.$$eval("main img, main script", (all) => all.length), 0);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(wide <= 0, `the page is ${wide} px too wide`);
  assert.deepEqual(troubles, []);
  // The next figures of the daemon put all right.
  await page.reload();
  console.log("hostile names and figures: shown, not executed");
}

async function policyHolds({ page }) {
  const tried = await page.evaluate(async () => {
    const found = {};
    try {
      document.body.insertAdjacentHTML("beforeend", "<b>x</b>");
      found.markup = "made";
    } catch (error) {
      found.markup = error.name;
    }
    found.elsewhere = await fetch("http://192.0.2.1/").then(() => "fetched", (error) => error.name);
    return found;
  });
  assert.deepEqual(tried, { markup: "TypeError", elsewhere: "TypeError" });
  const answer = await page.request.post(`${base}/api/command`, { data: { execute: "host-set-mode" }, headers: { Origin: "http://evil.example", Authorization: `Bearer ${TOKEN}` } });
  assert.equal(answer.status(), 403);
  console.log("policy: no markup from texts, nothing from elsewhere");
}

async function nothingHindersAnyone(name, page) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => globalThis.axe.run(document, { runOnly: { type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] } }));
  const told = found.violations.map((it) => `${it.id}: ${it.help}: ${it.nodes.map((node) => node.html).slice(0, 3).join("; ")}`);
  assert.deepEqual(told, [], name);
  console.log(`axe, ${name}: no violation, ${found.passes.length} rules hold`);
}

async function picturesAreTaken() {
  for (const width of [1280, 400]) {
    for (const colorScheme of ["light", "dark"]) {
      const { page, context, troubles } = await opened({ viewport: { width, height: width === 400 ? 2200 : 1500 }, colorScheme });
      await page.waitForTimeout(1500);
      await page.screenshot({ path: `${SHOTS}/host-${width}-${colorScheme}.png` });
      await nothingHindersAnyone(`host, ${width} px, ${colorScheme}`, page);
      await page.goto(`${base}/#vm=vm1`);
      await page.waitForFunction(() => document.querySelectorAll("#moves tbody tr").length > 5);
      await page.screenshot({ path: `${SHOTS}/vm-${width}-${colorScheme}.png`, fullPage: true });
      await nothingHindersAnyone(`a VM, ${width} px, ${colorScheme}`, page);
      assert.deepEqual(troubles, []);
      await context.close();
    }
  }
}

async function deadDaemonIsToldAndGreyed({ page, troubles }) {
  await page.goto(`${base}/`);
  await page.waitForFunction(() => /^live/.test(document.getElementById("life-text").textContent));
  assert.equal(await page.evaluate(() => document.body.classList.contains("stale")), false);
  await please("kill");
  await page.waitForFunction(() => /^last seen [4-9] s ago, at \d\d:\d\d:\d\d$/.test(document.getElementById("life-text").textContent), undefined, { timeout: 15000 });
  assert.equal(await page.evaluate(() => document.body.classList.contains("stale")), true);
  assert.match(await text(page, "#spoken"), /no figures any more/);
  await page.screenshot({ path: `${SHOTS}/dead.png` });
  await nothingHindersAnyone("a dead daemon", page);
  await please("start");
  await page.waitForFunction(() => /^live/.test(document.getElementById("life-text").textContent), undefined, { timeout: 20000 });
  troubles.splice(0);
  console.log("a dead daemon: told, greyed, and back");
}

const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];

/** What the page costs: main thread, heap, first paint. */
async function measured() {
  const paints = [];
  for (let turn = 0; turn < 5; turn += 1) {
    const { page, context } = await opened({ viewport: { width: 1280, height: 900 } });
    paints.push(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime));
    await context.close();
  }
  const { page } = await opened({ viewport: { width: 1280, height: 900 } });
  const session = await page.context().newCDPSession(page);
  await page.waitForTimeout(3000);
  await session.send("Performance.enable", { timeDomain: "threadTicks" });
  const busy = async () => (await session.send("Performance.getMetrics")).metrics.find(({ name }) => name === "TaskDuration").value * 1000;
  const costs = [];
  let before = await busy();
  for (let turn = 0; turn < 20; turn += 1) {
    await page.waitForTimeout(1000);
    const now = await busy();
    costs.push(now - before);
    before = now;
  }
  const heap = async () => {
    await session.send("HeapProfiler.collectGarbage");
    return (await session.send("Runtime.getHeapUsage")).usedSize;
  };
  // An hour, as fast as it goes: each figure of each VM changes.
  const hour = (seconds) => page.evaluate(async (all) => {
    const { take } = await import("/page.js");
    const answer = await fetch("/events");
    const reader = answer.body.getReader();
    let said = "";
    while (!/event: host\nid: \d+\ndata: (.*)\n\n/.test(said)) said += new TextDecoder().decode((await reader.read()).value);
    await reader.cancel();
    const frame = JSON.parse(/event: host\nid: \d+\ndata: (.*)\n\n/.exec(said)[1]);
    globalThis.madeMs ??= performance.now() + 1e7;
    for (let second = 0; second < all; second += 1) {
      const host = structuredClone(frame);
      for (const vm of host.vms) for (const key of ["share-bytes", "fast-bytes", "hit-ratio", "moves-per-s"]) vm[key] = (vm[key] ?? 1) * (0.5 + Math.random());
      take(host, (globalThis.madeMs += 1000));
      if (second % 20 === 0) await new Promise(requestAnimationFrame);
    }
  }, seconds);
  await hour(400);
  const first = await heap();
  await hour(3600);
  const grown = (await heap()) - first;
  console.log(`${vms} VMs: first paint ${median(paints).toFixed(0)} ms, main thread ${median(costs).toFixed(1)} ms a second, heap after an hour ${(grown / 2 ** 20).toFixed(2)} MiB more`);
  assert.ok(median(costs) <= 16, `main thread: ${costs}`);
  assert.ok(median(paints) <= 300, `first paint: ${paints}`);
  assert.ok(grown <= 5 << 20, `heap: ${grown} bytes`);
}

try {
  if (WORK === "measure") {
    await measured();
  } else {
    const it = await opened();
    await figuresAreThoseOfMetrics(it);
    await tableIsFilteredAndSorted(it);
    assert.deepEqual(it.troubles, []);
    await ordersNeedTheToken(it);
    await guestHasAPageOfItsOwn(it);
    it.troubles.splice(0);
    await policyHolds(it);
    it.troubles.splice(0);
    await hostileFiguresAreShown(it);
    await picturesAreTaken();
    await deadDaemonIsToldAndGreyed(it);
  }
} finally {
  await browser.close();
}
process.exit(0);
