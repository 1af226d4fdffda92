// The chat page in Chromium: asks, streams, stops, goes dark, by keyboard alone; pictures go to the folder named last.
//
//     npm install playwright-core && node bench/page.mjs http://127.0.0.1:8000 [/usr/bin/chromium] [/tmp/pictures]
//
// The server has a model whose answers are long enough to be stopped.
import assert from "node:assert";
import { chromium } from "playwright-core";

const [url, executablePath = "/usr/bin/chromium", pictures] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1000, height: 700 }, colorScheme: "light" });
const problems = [], asked = [];
page.on("pageerror", error => problems.push(String(error)));
page.on("console", message => message.type() === "error" && problems.push(message.text()));
page.on("request", request => asked.push(request.url()));
const picture = async name => pictures && page.screenshot({ path: `${pictures}/${name}.png` });

await page.goto(url);
await page.waitForFunction(() => document.getElementById("model").options.length > 0);
const answers = page.locator("article.assistant");

// Every control has a name to be read out.
for (const control of await page.locator("button, select, input:visible, textarea").all()) {
  const name = await control.evaluate(element => element.ariaLabel || [...(element.labels || [])].map(l => l.textContent).join("") || element.textContent);
  assert(name.trim(), await control.evaluate(element => element.outerHTML));
}

// The cursor stands in the message; Enter sends, Shift+Enter does not.
await page.getByLabel("Most tokens").fill("30");
await page.getByLabel("Message").focus();
await page.keyboard.type("Once upon a time");
await page.keyboard.press("Shift+Enter");
await page.keyboard.type("<b>there</b> was a fox");
assert.equal(await answers.count(), 0);
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelector("article.assistant small")?.textContent.includes("tokens"));
assert.equal(await page.locator("article.user div").textContent(), "Once upon a time\n<b>there</b> was a fox");
assert((await answers.first().locator("div").textContent()).length > 0);
assert.match(await answers.first().locator("small").textContent(), /tokens\/s/);
await picture("light");

// Escape stops.
await page.getByLabel("Most tokens").fill("400");
await page.getByLabel("Message").fill("More");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelectorAll("article.assistant")[1]?.querySelector("div").textContent.length > 5);
assert(await page.getByRole("button", { name: "Stop" }).isEnabled());
await picture("busy");
await page.keyboard.press("Escape");
await page.waitForFunction(() => document.querySelectorAll("article.assistant small").length === 2);
assert.match(await answers.nth(1).locator("small").textContent(), /stopped/);
assert(await page.getByRole("button", { name: "Stop" }).isDisabled());

// An error is told.
await page.getByLabel("Temperature").fill("7");
await page.getByLabel("Message").fill("Hot");
await page.keyboard.press("Enter");
await page.waitForSelector("article.bad");
assert.match(await page.locator("article.bad").textContent(), /temperature/);
problems.splice(0, problems.length, ...problems.filter(problem => !problem.includes("400")));
await page.getByLabel("Temperature").fill("0.8");

// Dark by the button and by the system's wish; a phone's width.
const back = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const light = await back();
await page.getByRole("button", { name: "Dark mode" }).click();
assert.equal(await page.getByRole("button", { name: "Dark mode" }).getAttribute("aria-pressed"), "true");
assert.notEqual(await back(), light);
await picture("dark");
await page.setViewportSize({ width: 390, height: 760 });
assert(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out");
await picture("phone");
await page.getByRole("button", { name: "New chat" }).click();
assert.equal(await answers.count(), 0);

assert.deepEqual(problems, []);
assert(asked.every(address => address.startsWith(url) || address.startsWith("data:")), "nothing is loaded from elsewhere");
await browser.close();
console.log("the page works");
