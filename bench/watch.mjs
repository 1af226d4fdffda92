// The page of a run in Chromium: curves that grow, zoom, smoothing, logarithms, what the run said, hostile names, a lost server,
// dark mode, a phone's width; pictures go to the folder named last.
//
//     npm install playwright-core && node bench/watch.mjs target/debug/russet [/usr/bin/chromium] [/tmp/pictures]
import assert from "node:assert";
import { spawn } from "node:child_process";
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [binary, executablePath = "/usr/bin/chromium", pictures] = process.argv.slice(2);
const folder = mkdtempSync(join(tmpdir(), "watch-")), logs = join(folder, "03-pretrain.log"), log = join(logs, "log.jsonl");
const HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>";
mkdirSync(logs);
const line = (step, fields) => JSON.stringify({ step, wall_seconds: step * 1.5, ...fields }) + "\n";
const trained = step => line(step, { loss: 9 - 1.2 * Math.log(step) + 0.25 * Math.sin(step * 7.3), learning_rate: 0.004 * Math.min(1, step / 50), gradient_norm: 1 + 3 / Math.sqrt(step),
  tokens_per_second: 12000 + 800 * Math.sin(step), mfu: 0.48, skipped_steps: 0, steps: 400, tokens_books: 2400 * step, [`tokens_${HOSTILE}`]: 1200 * step });
let text = "";
for (let step = 1; step <= 300; step++) {
  text += trained(step);
  if (step % 50 === 0) text += line(step, { validation_loss: 9.1 - 1.2 * Math.log(step), validation_bits_per_byte: 3 - 0.3 * Math.log(step) });
}
text += line(230, { text: { spike: `step 230: the loss is 9.1, 17 standard deviations above its running mean; the step saw documents 3, 9 of ${HOSTILE}` } });
writeFileSync(log, text);

const running = [];
async function start(port) {
  const child = spawn(resolve(binary), ["--json", "watch", folder, "--page", "--port", String(port)], { stdio: ["ignore", "pipe", "inherit"] });
  running.push(child);
  const ended = once(child, "exit").then(([code]) => { throw new Error(`russet watch ended with ${code} before it listened`); });
  const [said] = await Promise.race([once(createInterface(child.stdout), "line"), ended]);
  return { child, url: JSON.parse(said).url };
}

let { child, url } = await start(0);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const problems = [], asked = new Set();
page.on("pageerror", error => problems.push(String(error)));
page.on("console", message => message.type() === "error" && problems.push(message.text()));
page.on("request", request => asked.add(new URL(request.url()).origin));
const picture = async name => pictures && page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });

await page.goto(url);
await page.waitForFunction(() => document.querySelectorAll("figure .uplot").length === 5);
const tiles = () => page.locator("#last").innerText();
assert.match(await tiles(), /300 of 400/);
assert.match(await tiles(), /48 %/);
assert.equal(await page.locator("#pace").innerText(), "running");
assert.match(await page.locator("#said").innerText(), /17 standard deviations.*<img src=x/s);
assert.match(await page.locator("#sources").innerText(), /books.*66\.7 %/s);
assert.equal(await page.locator("#held tbody tr").count(), 6);
assert.match(await page.locator("#first .uplot").getAttribute("aria-label"), /^Loss: .* at step 300, held out/);
for (const control of await page.locator("button, input").all()) {
  const name = await control.evaluate(element => element.ariaLabel || [...(element.labels || [])].map(label => label.textContent).join("") || element.textContent);
  assert(name.trim(), await control.evaluate(element => element.outerHTML));
}
await picture("light");

// It grows by itself.
for (let step = 301; step <= 310; step++) appendFileSync(log, trained(step));
await page.waitForFunction(() => document.getElementById("last").innerText.includes("310 of 400"));
assert.match(await page.title(), /310\/400/);

// All curves are zoomed together, stay so while the run goes on, and come back.
const shown = () => page.evaluate(() => [...charts.values()].map(({ chart }) => [chart.scales.x.min, chart.scales.x.max].map(Math.round)));
const over = await page.locator("#first .u-over").boundingBox();
await page.mouse.move(over.x + over.width * 0.5, over.y + 50);
await page.mouse.down();
await page.mouse.move(over.x + over.width * 0.75, over.y + 60, { steps: 5 });
await page.mouse.up();
const zoomed = await shown();
assert(zoomed.every(([low, high]) => Math.abs(low - 155) < 4 && Math.abs(high - 232) < 4), JSON.stringify(zoomed));
await picture("zoomed");
appendFileSync(log, trained(311));
await page.waitForFunction(() => document.getElementById("last").innerText.includes("311 of 400"));
assert.deepEqual(await shown(), zoomed);
await page.mouse.dblclick(over.x + over.width * 0.5, over.y + 50);
await page.waitForFunction(() => [...charts.values()].every(({ chart }) => chart.scales.x.max >= 311));

// Smoothing, logarithms, without the beginning.
const smoothed = () => page.evaluate(() => charts.get("loss").chart.data[2].filter(value => value !== null));
const before = await smoothed();
await page.getByLabel("Smoothing").focus();
await page.keyboard.press("End");
assert.notDeepEqual(await smoothed(), before);
await page.keyboard.press("Home");
assert.deepEqual(await smoothed(), before);
await page.getByLabel("Logarithmic").check();
assert.equal(await page.evaluate(() => charts.get("loss").chart.scales.y.distr), 3);
await page.getByLabel("Without the first tenth").check();
assert.equal(await page.evaluate(() => charts.get("loss").chart.data[0][0]), 32);
await page.getByLabel("Without the first tenth").uncheck();
await page.getByLabel("Logarithmic").uncheck();

// Dark, narrow.
await page.getByRole("button", { name: "Dark mode" }).click();
assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
await picture("dark");
await page.setViewportSize({ width: 360, height: 760 });
await page.waitForFunction(() => document.querySelector("#first canvas").getBoundingClientRect().right <= innerWidth);
assert(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing is wider than a phone");
await picture("phone");

// A lost server is told, and one that comes again is found.
child.kill("SIGKILL");
await page.waitForSelector("#bad:not([hidden])", { timeout: 5000 });
assert.match(await page.locator("#bad").innerText(), /lost its server/);
problems.splice(0, problems.length, ...problems.filter(problem => !/ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET/.test(problem)));
({ child } = await start(new URL(url).port));
await page.waitForSelector("#bad", { state: "hidden", timeout: 5000 });

// A log that is none is told by its line; the one beside it is not mended.
appendFileSync(log, "no line\n" + trained(312));
await page.waitForFunction(() => /line \d+ is not a line of a run log/.test(document.getElementById("bad").textContent));
problems.splice(0, problems.length, ...problems.filter(problem => !/ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|500/.test(problem)));

assert.deepEqual(problems, []);
assert.deepEqual([...asked], [url]);
assert.doesNotMatch(await page.title(), /owned/);
child.kill("SIGTERM");
assert.equal((await once(child, "exit"))[0], 0);
await browser.close();
rmSync(folder, { recursive: true });
console.log("the page of a run: all is well");
