// The grading page in Chromium: two graders by keyboard alone, a reload, a kill and a restart, going back, hostile text, results,
// summaries, dark mode, a phone's width, large text; pictures go to the folder named last.
//
//     npm install playwright-core && node bench/grade.mjs target/debug/russet [/usr/bin/chromium] [/tmp/pictures]
import assert from "node:assert";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync, readFileSync } from "node:fs";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [binary, executablePath = "/usr/bin/chromium", pictures] = process.argv.slice(2);
const folder = mkdtempSync(join(tmpdir(), "grade-"));
const MODELS = ["zebra-9b", "okapi-2b"];
const HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script><b>bold</b>";
const lines = rows => rows.map(row => JSON.stringify(row) + "\n").join("");
const prompts = ["Explain why the sky is blue, to a child of six.", "Write a function that reverses a list.\n\nKeep it short.", HOSTILE, "هل يمكنك أن تشرح لي؟"];
MODELS.forEach((name, hand) => writeFileSync(join(folder, `${name}.jsonl`), lines(prompts.map((prompt, n) => ({ prompt, response:
  n === 2 ? `${HOSTILE} hand ${hand}` : hand ? `Short answer ${n}.\n\ndef reverse(xs):\n    return xs[::-1]` : "A long answer that goes on for a while. ".repeat(12) + "x".repeat(120) })))));
writeFileSync(join(folder, "texts.jsonl"), lines([{ id: 1, source: "Dear all, the meeting moves to Friday at ten. ".repeat(8), use_case: "email" }, { id: 2, source: "Bring cake.", use_case: "message" }]));
writeFileSync(join(folder, "s.jsonl"), lines([{ id: 1, response: "Meeting on Friday, 10:00." }, { id: 2, response: "" }]));

const running = [];
async function start(...more) {
  const child = spawn(resolve(binary), ["--json", "grade", ...more], { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
  running.push(child);
  const ended = once(child, "exit").then(([code]) => { throw new Error(`russet grade ended with ${code} before it listened`); });
  const [line] = await Promise.race([once(createInterface(child.stdout), "line"), ended]);
  ended.catch(() => {}); // killed later, as the script wants it
  return { child, ...JSON.parse(line) };
}
async function kill({ child }) {
  child.kill("SIGKILL");
  await once(child, "exit");
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const problems = [], asked = [], told = [];
async function open(url) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, colorScheme: "light" });
  const page = await context.newPage();
  page.on("pageerror", error => problems.push(String(error)));
  page.on("console", message => message.type() === "error" && problems.push(message.text()));
  page.on("request", request => asked.push(request.url()));
  page.on("response", async reply => told.push(await reply.text().catch(() => "")));
  await page.goto(url);
  return page;
}
const picture = async (page, name, fullPage = true) => pictures && page.screenshot({ path: `${pictures}/${name}.png`, fullPage });
const far = (page, text) => page.waitForFunction(text => document.getElementById("far").textContent.includes(text), text);
const fits = async page => assert(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out");
const named = async page => {
  for (const control of await page.locator("button:visible, input:visible").all()) {
    const name = await control.evaluate(element => element.ariaLabel || [...(element.labels || [])].map(l => l.textContent).join("") || element.textContent);
    assert(name.trim(), await control.evaluate(element => element.outerHTML));
  }
};

try {
  let served = await start("--responses", "zebra-9b.jsonl", "--responses", "okapi-2b.jsonl", "--port", "0");
  const port = new URL(served.url).port;
  const page = await open(served.url);
  await page.getByLabel("Your name").waitFor();
  await named(page);
  await picture(page, "begin");
  // The cursor stands in the name; keys there are letters.
  await page.keyboard.type("susan");
  await page.keyboard.press("Enter");
  await far(page, "susan: 0 of 4");
  await named(page);
  await picture(page, "pairs");

  // Enter without an answer says what is missing.
  await page.keyboard.press("Enter");
  assert.match(await page.getByRole("alert").textContent(), /Which response is better/);
  // Digits choose and go on: A better, then all eight grades.
  await page.keyboard.press("2");
  assert(await page.getByRole("alert").isHidden(), "what is there is missing no longer");
  for (let n = 0; n < 8; n++) await page.keyboard.press("3");
  assert(await page.getByRole("radio", { name: "A is better", exact: true }).isChecked());
  assert.equal(await page.locator("input:checked").count(), 9);
  await picture(page, "answered");
  const first = await page.locator("#asked").textContent();
  await page.keyboard.press("Enter");
  await far(page, "susan: 1 of 4");

  // A reload, a kill and a restart: the same task is there, and the same progress.
  const second = await page.locator("#asked").textContent();
  assert.notEqual(second, first);
  await page.reload();
  await far(page, "susan: 1 of 4");
  assert.equal(await page.locator("#asked").textContent(), second);
  await kill(served);
  await page.keyboard.press("9");
  await page.locator("#save").click();
  await page.waitForFunction(() => document.getElementById("bad").textContent.includes("does not get through"));
  await picture(page, "gone");
  assert(await page.getByRole("radio", { name: "B is significantly better" }).isChecked(), "the choice stays");
  problems.length = 0;
  served = await start("--port", port);
  await page.locator("#save").click();
  await far(page, "susan: 2 of 4");

  // Back: what was said is there again.
  await page.keyboard.press("u");
  await far(page, "susan: 1 of 4");
  assert.equal(await page.locator("#asked").textContent(), second);
  assert(await page.getByRole("radio", { name: "B is significantly better" }).isChecked());
  await page.keyboard.press("Enter");
  await far(page, "susan: 2 of 4");

  // Later, and J and K go from question to question.
  await page.keyboard.press("s");
  await far(page, "1 for later");
  await page.keyboard.press("j");
  assert.equal(await page.evaluate(() => document.activeElement.name), "0:instruction_following");
  await page.keyboard.press("2");
  await page.keyboard.press("k");
  await page.keyboard.press("0");
  assert.equal(await page.locator("input:checked").count(), 0, "0 clears");
  await page.keyboard.press("k");
  assert.equal(await page.evaluate(() => document.activeElement.name), "better");
  await page.keyboard.press("5");
  await page.keyboard.press("Enter");
  await far(page, "3 of 4");
  assert(await page.getByText("You put this one off before").isVisible());

  // Another grader at once; nobody is named.
  const other = await open(served.url);
  await other.getByLabel("Your name").fill("Ann <b>& Co</b>");
  await other.keyboard.press("Enter");
  await far(other, "Ann <b>& Co</b>: 0 of 4");
  const results = await open(`${served.url}/results`);
  await results.getByRole("heading", { name: /Russet/ }).waitFor();
  await results.waitForFunction(() => document.querySelector("#results table"));
  assert.match(await results.locator("#results").textContent(), /model 1/);
  await picture(results, "results-hidden");
  assert(told.every(text => MODELS.every(name => !text.includes(name))), "no model is named before all is graded");

  // Hostile text is text, wherever it stands.
  for (let n = 0; n < 4; n++) {
    const texts = await other.locator(".text").allTextContents();
    if (texts[0] === HOSTILE) assert(texts.slice(1).every(text => text.startsWith(HOSTILE)));
    assert.equal(await other.locator(".text *").count(), 0);
    if (texts[0] === HOSTILE) await picture(other, "hostile");
    await other.keyboard.press("4");
    await other.keyboard.press("Enter");
    await far(other, `: ${n + 1} of 4`);
  }
  assert.equal(await other.title(), "Russet: grading");
  await other.getByText("All is graded").waitFor();
  await picture(other, "done");
  await page.keyboard.press("1");
  await page.keyboard.press("Enter");
  await far(page, "4 of 4");

  // Then the results have names, agreement and files.
  await results.reload();
  await results.waitForFunction(() => document.querySelector("#results a"));
  const text = await results.locator("#results").textContent();
  for (const word of [...MODELS, "kappa", "Bradley-Terry", "Truthfulness"]) assert(text.includes(word), word);
  assert.equal(await results.locator("#results b").count(), 0, "a grader's name is text too");
  const [download] = await Promise.all([results.waitForEvent("download"), results.getByRole("link", { name: "judgements.jsonl" }).click()]);
  const judged = readFileSync(await download.path(), "utf8").trim().split("\n").map(JSON.parse);
  assert.equal(judged.length, 8);
  await results.evaluate(() => scrollTo(0, 0));
  await picture(results, "results");
  await results.setViewportSize({ width: 390, height: 800 });
  await fits(results);

  // Back from the end; dark; a phone; large text.
  await page.keyboard.press("u");
  await far(page, "3 of 4");
  const back = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await back();
  await page.getByRole("button", { name: "Dark mode" }).click();
  assert.notEqual(await back(), light);
  await picture(page, "dark");
  await page.setViewportSize({ width: 390, height: 800 });
  await fits(page);
  await picture(page, "phone");
  await page.evaluate(() => { document.documentElement.style.fontSize = "200%"; });
  await fits(page);
  await page.locator("#between").scrollIntoViewIfNeeded();
  await picture(page, "large", false);
  await kill(served);

  // Summaries: five dimensions.
  served = await start("--kind", "summaries", "--task", "texts.jsonl", "--responses", "s.jsonl", "--keep", "s.sqlite", "--port", "0");
  const summaries = await open(`${served.url}/?grader=susan`);
  await far(summaries, "susan: 0 of 2");
  for (let n = 0; n < 5; n++) await summaries.keyboard.press(n === 2 ? "2" : "1");
  await picture(summaries, "summaries");
  await summaries.keyboard.press("Enter");
  await far(summaries, "1 of 2");
  for (let n = 0; n < 5; n++) await summaries.keyboard.press("3");
  await summaries.keyboard.press("Enter");
  await far(summaries, "2 of 2");
  await summaries.goto(`${served.url}/results`);
  await summaries.waitForFunction(() => document.querySelector("#results a"));
  await picture(summaries, "summaries-results");
  await summaries.setViewportSize({ width: 390, height: 800 });
  await fits(summaries);

  assert.deepEqual(problems, []);
  assert(asked.every(address => /^(http:\/\/127\.0\.0\.1:|data:|blob:)/.test(address)), "nothing is loaded from elsewhere");
  console.log("the grading page works");
} finally {
  await browser.close();
  for (const child of running) child.kill("SIGKILL");
  rmSync(folder, { recursive: true });
}
