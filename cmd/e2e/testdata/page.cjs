// Drives a real browser over the page and tells its progress, a line a step:
// READY, SCALED, FOLLOWED, DONE, or FAILED and why.
const { chromium } = require("playwright-core");

const [base, shots] = process.argv.slice(2);
const flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const say = (...a) => console.log(...a);
const bad = [];

async function open(browser, width, scheme) {
  const context = await browser.newContext({ viewport: { width, height: width < 500 ? 844 : 900 }, colorScheme: scheme });
  const page = await context.newPage();
  // A leader's death may break a request; the page's own errors may not be.
  page.on("console", (m) => { if (m.type() === "error" && !/Failed to load resource|ERR_/.test(m.text())) bad.push("console: " + m.text()); });
  page.on("pageerror", (e) => bad.push("script: " + e));
  page.on("request", (r) => { if (!r.url().startsWith(base + "/") && !r.url().startsWith("data:")) bad.push("off-host: " + r.url()); });
  return page;
}

(async () => {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: flags });
  process.on("SIGINT", () => browser.close().finally(() => process.exit(1)));
  const page = await open(browser, 1280, "light");
  const began = Date.now();
  await page.goto(base + "/");
  await page.waitForSelector(".card");
  const first = Date.now() - began;
  const load = await page.evaluate(() => {
    const all = performance.getEntries().filter((e) => e.encodedBodySize), sum = (k) => all.reduce((n, e) => n + e[k], 0);
    return `${all.length} files, ${sum("encodedBodySize")} bytes compressed, ${sum("decodedBodySize")} bytes in all`;
  });
  const card = page.locator("a.card", { has: page.locator("h2", { hasText: /^api/ }) });
  const size = (n) => card.locator("h2 small", { hasText: new RegExp(`^${n} of at most 3`) });
  await size(1).waitFor({ timeout: 20000 });
  await page.evaluate(() => { window.neverReloaded = true; });
  const leader = (await page.locator("#pulse").textContent()).match(/led by (\S+),/)[1];
  say("READY");
  await size(2).waitFor({ timeout: 40000 });
  say("SCALED");
  await page.waitForFunction((old) => {
    const m = document.getElementById("pulse").textContent.match(/led by (\S+),/);
    return m && m[1] !== old && document.getElementById("banner").hidden;
  }, leader, { timeout: 40000 });
  if (!await page.evaluate(() => window.neverReloaded)) bad.push("the page was loaded anew");
  say("FOLLOWED");

  // By keyboard alone: to the first card, into it, and to another range of time.
  await page.locator("a.card").first().focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => location.hash.startsWith("#/service/") && document.querySelector(".uplot"), null, { timeout: 10000 });
  await page.locator(".range button", { hasText: "1 h" }).focus();
  await page.keyboard.press("Space");
  await page.waitForFunction(() => document.querySelectorAll('.range [aria-pressed=true]').length === 1 && document.querySelector('.range [aria-pressed=true]').textContent === "1 h");
  await page.close();

  for (const [width, scheme] of [[1280, "light"], [1280, "dark"], [390, "light"], [390, "dark"]]) {
    const p = await open(browser, width, scheme);
    await p.goto(base + "/");
    await p.waitForSelector(".card");
    for (const view of ["/", "/service/api", "/machines", "/events", "/jobs", "/alerts", "/mesh"]) {
      await p.evaluate((v) => { location.hash = v; }, view);
      await p.waitForFunction((v) => document.querySelector("main h1") && (!v.startsWith("/service") || document.querySelector(".uplot")), view, { timeout: 10000 });
      await p.waitForTimeout(150);
      if (await p.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth)) bad.push(`${view} is wider than ${width} px`);
      await p.screenshot({ path: `${shots}/${width}-${scheme}${view.replaceAll("/", "_")}.png`, fullPage: true });
    }
    await p.close();
  }
  await browser.close();
  if (bad.length) throw new Error(bad.join("\n"));
  say(`DONE first state after ${first} ms; ${load}, and the live state`);
})().catch((e) => { say("FAILED " + e.message.replaceAll("\n", " | ")); process.exit(1); });
