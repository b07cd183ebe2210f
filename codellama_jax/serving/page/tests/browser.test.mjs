/** Tests of the page in headless Chromium, against a stand-in for the server: `npm test`. */

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, beforeEach, afterEach, test } from "node:test";
import { chromium } from "playwright-core";

import { startFakeServer } from "./fake_server.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core"), "utf-8");
const PATHS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const ARGUMENTS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const SUGGESTION =
  "if n < 2:\n        return False\n    return all(n % divisor for divisor in range(2, n))";

let browser, server, context, page;
let problems; // console messages, failed scripts and requests to other hosts

before(async () => {
  const executablePath = process.env.CHROMIUM ?? PATHS.find((path) => existsSync(path));
  browser = await chromium.launch({ executablePath, args: ARGUMENTS });
});
after(() => browser.close());
beforeEach(async () => {
  server = await startFakeServer({ delay: 4 });
});
afterEach(async () => {
  await context?.close();
  server.stop();
  assert.deepEqual(problems, []);
});

/** Opens the page. `allowed` are texts of console messages that a test expects. */
async function open({ width = 1440, height = 900, allowed = [], ready = true, ...options } = {}) {
  problems = [];
  context = await browser.newContext({ viewport: { width, height }, ...options });
  page = await context.newPage();
  page.setDefaultTimeout(5000);
  page.on("console", (message) => {
    if (!allowed.some((text) => message.text().includes(text))) problems.push(message.text());
  });
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(server.url)) problems.push(request.url());
  });
  await page.goto(server.url);
  if (ready) await page.waitForSelector("#health[data-state=ready]");
}

const code = () => page.evaluate(() => sessionStorage.getItem("codellama-jax-text"));
const ghost = () => page.locator(".ghost").textContent();
const isGone = (selector) => page.waitForSelector(selector, { state: "detached" });
const contents = (selector) => page.locator(selector).innerText();

async function suggest() {
  await page.locator(".cm-content").focus();
  await page.keyboard.press("Control+Space");
  await page.waitForFunction(() => document.querySelectorAll(".token").length > 20);
}

test("typing shows ghost text, and Tab accepts it", async () => {
  await open();
  await page.locator(".cm-content").focus();
  await page.keyboard.type("# fast");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".ghost");
  await page.waitForFunction(() => document.querySelectorAll(".token").length > 20);
  assert.equal(await ghost(), SUGGESTION);
  const { length } = server.state.requests;
  const [path, body] = server.state.requests[length - 1];
  assert.equal(path, "infill");
  assert.match(body.input_prefix, /prime number\."""\n {4}# fast\n {4}$/);
  assert.match(body.input_suffix, /^\n\n\ndef primes_below/);
  const fields = [body.stream, body.n_predict, body.temperature, body.spm, body.n_probs];
  assert.deepEqual(fields, [true, 48, 0, false, 5]);
  await page.keyboard.press("Tab");
  await isGone(".ghost");
  assert.ok((await code()).includes(`# fast\n    ${SUGGESTION}\n\n\ndef primes_below`));
  assert.match(await contents("#speed"), /\d+ ms first token.*250\.0 tokens\/s.*25 tokens/s);
  await page.waitForTimeout(500);
  assert.equal(server.state.requests.length, length); // accepting requests nothing
});

test("typing over a selection, of all the text too, violates no policy", async () => {
  await open();
  await page.locator(".cm-content").focus();
  await page.keyboard.press("Control+A");
  await page.keyboard.type("def f(x):");
  await page.keyboard.press("Enter");
  await page.keyboard.type("return");
  await page.keyboard.press("Shift+Home");
  await page.keyboard.type("pass");
  assert.equal(await code(), "def f(x):\n    pass");
  await page.waitForSelector(".ghost"); // it counts as typing
});

test("tokens that the server dropped are not called the suggestion's", async () => {
  server.state.isDropped = true;
  await open();
  await suggest();
  await page.waitForFunction(() => document.querySelector("#speed").innerText.includes("Nothing"));
  assert.equal(await page.locator(".ghost").count(), 0);
  assert.match(await contents("#tokens-note"), /^25 tokens, none of which belongs at the cursor/);
});

test("a word is accepted, typed characters shorten the rest, Escape dismisses it", async () => {
  await open();
  await suggest();
  await page.keyboard.press("Control+ArrowRight");
  assert.equal(await ghost(), SUGGESTION.slice(2));
  await page.keyboard.type(" n <");
  assert.equal(await ghost(), SUGGESTION.slice(6));
  assert.equal(server.state.requests.length, 1);
  await page.keyboard.press("Escape");
  await isGone(".ghost");
  assert.match(await code(), /\n {4}if n <\n\n\ndef/);
  assert.equal(await page.locator("#answering").isVisible(), false);
  await page.keyboard.press("Tab"); // without a suggestion it indents
  assert.match(await code(), /\n {8}if n <\n/);
});

test("a new suggestion is complete, whatever was accepted of the last one", async () => {
  await open();
  await suggest();
  await page.keyboard.press("Control+ArrowRight");
  await page.keyboard.press("Control+Space");
  await page.waitForFunction(
    (text) => document.querySelector("#editor").shadowRoot.textContent.includes(text),
    `    if${SUGGESTION}`,
  );
  await page.keyboard.press("Tab");
  await isGone(".ghost");
  assert.ok((await code()).includes(`    if${SUGGESTION}\n\n\ndef primes_below`));
  await page.keyboard.press("Control+Space");
  await page.waitForFunction(
    (text) => document.querySelector("#editor").shadowRoot.textContent.includes(text),
    `range(2, n))${SUGGESTION.slice(0, 8)}`,
  );
});

test("a setting that changes while a suggestion is awaited is sent at once", async () => {
  server.state.delay = 60;
  await open();
  await page.locator(".cm-content").focus();
  await page.keyboard.press("Control+Space");
  await page.waitForSelector(".ghost");
  await page.locator("#temperature").fill("0.4");
  await page.locator("#temperature").fill("0.6");
  await page.waitForSelector(".ghost");
  const temperatures = server.state.requests.map(([, body]) => body.temperature);
  assert.deepEqual(temperatures, [0, 0.4, 0.6]);
});

test("ids without a text are not called the end, and each is listed", async () => {
  server.state.completion = [
    ["a", 0.9, "", "b"],
    ["", 0.5, "", "c"],
    ["d", 0.9, "e"],
  ];
  await open();
  await page.locator(".cm-content").focus();
  await page.keyboard.press("Control+Space");
  await page.waitForFunction(() => document.querySelectorAll(".token").length === 3);
  assert.equal(await ghost(), "ad");
  await page.locator(".token").nth(1).hover();
  const listed = /\(no text\)\s+50 %\s+\(no text\)\s+25 %\s+c\s+13 %/;
  assert.match(await contents("#alternatives"), listed);
  assert.equal(await page.locator("#alternatives .chosen").count(), 1);
});

test("typing on cancels the request in flight", async () => {
  server.state.delay = 60;
  await open();
  await page.locator(".cm-content").focus();
  await page.keyboard.press("Control+Space");
  await page.waitForSelector(".ghost");
  await page.keyboard.type("x");
  await isGone(".ghost");
  await page.waitForTimeout(150);
  assert.equal(server.state.cancelled, 1);
  await page.waitForSelector(".ghost"); // of the next request
  assert.equal(server.state.requests.length, 2);
  await page.keyboard.press("Escape");
  await isGone(".ghost");
  await page.keyboard.press("ArrowUp"); // moving the cursor requests nothing
  await page.waitForTimeout(500);
  assert.equal(server.state.requests.length, 2);
});

test("settings reach the server and outlive a reload", async () => {
  await open();
  await page.locator("#order-spm + label").click();
  await page.locator("#temperature").fill("0.6");
  await page.locator("#tokens").fill("9999");
  await page.locator("#probabilities").uncheck();
  await page.locator("#dedent").check();
  await page.locator("#typing").uncheck();
  await page.selectOption("#language", "Java");
  await page.reload();
  await page.waitForSelector("#health[data-state=ready]");
  assert.equal(await page.locator("#language").inputValue(), "Java");
  await page.locator(".cm-content").focus();
  await page.keyboard.type("int");
  await page.waitForTimeout(600);
  assert.equal(server.state.requests.length, 0);
  await page.click("#complete");
  await page.waitForSelector(".ghost");
  const [, body] = server.state.requests[0];
  const fields = [body.spm, body.temperature, body.n_predict, body.n_probs, body.stop_at_dedent];
  assert.deepEqual(fields, [true, 0.6, 512, undefined, true]);
  await page.waitForFunction(() => document.querySelector("#speed").innerText.includes("total"));
  assert.match(await contents("#tokens-note"), /no probabilities/);
});

test("the server's defaults are shown and sent", async () => {
  server.state.props.order = "SPM";
  server.state.props.n_ctx = 64;
  await open();
  assert.equal(await page.locator("#order-spm").isChecked(), true);
  assert.equal(await page.locator("#repetition").isChecked(), true);
  await suggest();
  const [, body] = server.state.requests[0];
  assert.deepEqual([body.spm, body.stop_at_repetition, body.n_predict], [true, true, 32]);
  assert.match(await contents("#facts"), /64 tokens\s+Quantized weights\s+int8/);
});

test("the quantization is chosen where the server has several", async () => {
  const models = { toy: "none", "toy:w8a8": "w8a8" };
  server.state.props.models = models;
  await open();
  assert.equal(await page.locator("#quantization").inputValue(), "none");
  await suggest();
  assert.equal(server.state.requests.at(-1)[1].model, "toy");
  await page.selectOption("#quantization", "w8a8");
  await page.waitForFunction(() => document.querySelector("#speed").innerText.includes("total"));
  assert.equal(server.state.requests.at(-1)[1].model, "toy:w8a8");
  assert.match(await contents("#facts"), /Quantized weights\s+none, w8a8/);
  await page.reload();
  await page.waitForSelector("#health[data-state=ready]");
  await page.click("#tab-chat");
  await page.click("summary");
  assert.equal(await page.locator("#chat-quantization").inputValue(), "w8a8");
  await page.selectOption("#chat-quantization", "none");
  await page.fill("#message", "Hello");
  await page.click("#send");
  await page.waitForFunction(() => document.querySelector("#chat-speed").innerText.includes("tok"));
  assert.equal(server.state.requests.at(-1)[1].model, "toy");
  // Another server has no such model.
  await page.selectOption("#chat-quantization", "w8a8");
  server.state.props.models = { toy: "int8" };
  await page.reload();
  await page.waitForSelector("#health[data-state=ready]");
  await page.click("#tab-editor");
  assert.equal(await page.locator("#quantization").isVisible(), false);
  await suggest();
  assert.equal(server.state.requests.at(-1)[1].model, "toy");
});

test("a model that neither infills nor chats continues the text before the cursor", async () => {
  Object.assign(server.state.props, { infills: false, chats: false });
  await open();
  await suggest();
  const [path, body] = server.state.requests[0];
  assert.equal(path, "completion");
  assert.match(body.prompt, /prime number\."""\n {4}$/);
  assert.equal(await page.locator("#order-spm").isDisabled(), true);
  await page.click("#tab-chat");
  assert.match(await contents("#messages"), /code-llama-toy is not an instruct model/);
  assert.equal(await page.locator("#send").isDisabled(), true);
});

test("a text that is too long for the context is sent again, shorter", async () => {
  Object.assign(server.state.props, { infills: false, n_ctx: 100 });
  server.state.most = 60; // characters of a prompt
  await open({ allowed: ["400"] });
  await suggest();
  const lengths = server.state.requests.map(([, body]) => body.prompt.length);
  assert.ok(lengths.at(-1) <= 60 && lengths.length > 1);
  assert.equal(await page.locator("#notice").isVisible(), false);
});

test("tokens are coloured, and the keyboard and the pointer open their alternatives", async () => {
  await open();
  await suggest();
  assert.equal(await page.locator(".ghost .level-4").textContent(), " divisor");
  assert.equal(await page.locator(".token.level-4").textContent(), "·divisor");
  await page.hover(".ghost .level-4");
  assert.match(await contents("#alternatives"), /·divisor\s+3 %/);
  await page.hover("#speed");
  assert.equal(await page.locator("#alternatives").isVisible(), false);
  await page.hover(".token.level-4");
  assert.match(await contents("#alternatives"), /·i\s+49 %\s+·d\s+24 %\s+·divisor\s+3 %/);
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("#alternatives").isVisible(), false);
  await page.locator(".token").first().focus();
  assert.match(await contents("#alternatives"), /if\s+94 %/);
  await page.keyboard.press("ArrowRight");
  assert.match(await contents("#alternatives"), /·n\s+99 %/);
  await page.keyboard.press("End");
  assert.match(await contents("#alternatives"), /\)\)\s+55 %/);
});

test("errors of the server are shown in plain words", async () => {
  await open({ allowed: ["429", "503", "400", "500", "ERR_"] });
  const cases = [
    [
      { status: 429, headers: { "Retry-After": "2" }, body: { error: { message: "full" } } },
      /The server is busy: its queue is full\. Try again in 2 s\./,
    ],
    [
      { status: 503, body: { error: { message: "out of memory" } } },
      /cannot take requests now: out of memory/,
    ],
    [
      { status: 400, body: { error: { message: "temperature is -1: it must be at least 0" } } },
      /refused the request: temperature is -1: it must be at least 0/,
    ],
    [{ status: 500, body: "<html>" }, /The server failed \(HTTP 500\)\./],
  ];
  for (const [failure, words] of cases) {
    server.state.failure = failure;
    await page.click("#complete");
    await page.waitForFunction(
      ([source]) => new RegExp(source).test(document.querySelector("#notice").innerText),
      [words.source],
    );
    await page.click("#notice-close");
    assert.equal(await page.locator("#notice").isVisible(), false);
  }
  server.state.failure = null;
  await suggest();
  server.stop();
  server.closeAll();
  await page.click("#complete");
  await page.waitForSelector("#health[data-state=failed]");
  assert.match(await contents("#notice"), /does not answer\. Is codellama-jax serve still running/);
});

test("a server that is not ready is waited for", async () => {
  server.state.health = 503;
  await open({ allowed: ["503"], ready: false });
  await page.waitForSelector("#health:text-is('Loading model')");
  server.state.health = 200;
  await page.waitForSelector("#health[data-state=ready]");
});

test("the API key is requested once, sent, and kept for the session only", async () => {
  server.state.key = "secret";
  await open({ allowed: ["401"], ready: false });
  await page.waitForSelector("#key:focus");
  await page.keyboard.type("wrong");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#notice:not([hidden])");
  assert.match(await contents("#notice"), /did not accept the API key: invalid API key/);
  await page.fill("#key", "secret");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#health[data-state=ready]");
  await suggest();
  assert.equal(await page.locator("#key-form").isVisible(), false);
  const kept = await page.evaluate(() => JSON.stringify({ ...localStorage }));
  assert.ok(!kept.includes("secret"));
  await page.reload();
  await page.waitForSelector("#health[data-state=ready]");
});

test("a chat is streamed, stopped, and its code put into the editor", async () => {
  await open();
  await page.click("#tab-chat");
  await page.locator(".chat-settings summary").click();
  await page.fill("#system", "Answer briefly.");
  await page.fill("#message", "Is 97 prime?");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".code-block .tok-keyword");
  await page.waitForSelector("#send:not([hidden])");
  const [path, body] = server.state.requests[0];
  assert.equal(path, "v1/chat/completions");
  assert.deepEqual(body.messages, [
    { role: "system", content: "Answer briefly." },
    { role: "user", content: "Is 97 prime?" },
  ]);
  assert.match(await contents("#chat-speed"), /ms first token.*tokens\/s.*96 tokens/s);
  assert.equal(await page.locator(".message.assistant p code").first().innerText(), "is_prime(97)");
  server.state.delay = 40;
  await page.fill("#message", "Again");
  await page.keyboard.press("Enter");
  await page.locator(".message.assistant").nth(1).getByText("A prime").waitFor();
  await page.click("#stop");
  await page.waitForSelector("text=Stopped.");
  const messages = server.state.requests[1][1].messages.map(({ role }) => role);
  assert.deepEqual(messages, ["system", "user", "assistant", "user"]);
  await page.locator("text=Put into editor").first().click();
  assert.match(await code(), /return all\(n % d for d in range\(2, math\.isqrt\(n\) \+ 1\)\)/);
});

test("a refused message is kept for another try", async () => {
  await open({ allowed: ["429"] });
  server.state.failure = { status: 429, body: {} };
  await page.click("#tab-chat");
  await page.fill("#message", "Hello");
  await page.click("#send");
  await page.waitForSelector("#notice:not([hidden])");
  assert.equal(await page.locator("#message").inputValue(), "Hello");
  assert.equal(await page.locator(".message").count(), 0);
});

test("the theme follows the system until the switch is pressed", async () => {
  await open({ colorScheme: "dark" });
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  assert.equal(await background(), "rgb(18, 20, 26)");
  await page.emulateMedia({ colorScheme: "light" });
  assert.equal(await background(), "rgb(255, 255, 255)");
  await page.click("#theme");
  assert.equal(await background(), "rgb(18, 20, 26)");
  assert.equal(await page.getAttribute("#theme", "aria-pressed"), "true");
  await page.reload();
  assert.equal(await background(), "rgb(18, 20, 26)");
});

test("every control is reached with Tab, shows its focus, and is left again", async () => {
  await open();
  await suggest();
  await page.keyboard.press("Escape");
  await page.click("h1"); // from here Tab starts
  const visited = [];
  const current = () =>
    page.evaluate(() => {
      const element = document.activeElement;
      const target = element.matches(".segments input") ? element.nextElementSibling : element;
      const style = getComputedStyle(target);
      const shows = style.outlineStyle !== "none" || style.boxShadow !== "none";
      return [element.id || element.className, shows];
    });
  for (;;) {
    await page.keyboard.press("Tab");
    const [name, shows] = await current();
    if (name === "") break; // after the last control
    visited.push(name);
    assert.ok(shows, `${name} shows no focus`);
    // The editor keeps Tab for itself until Escape.
    if (name === "editor") await page.keyboard.press("Escape");
  }
  const ids = "tab-editor theme language complete editor temperature tokens typing probabilities";
  for (const id of [...ids.split(" "), "order-psm", "dedent", "repetition"]) {
    assert.ok(visited.includes(id), `${id} is not reached: ${visited}`);
  }
  await page.focus("#tab-editor");
  await page.keyboard.press("ArrowRight");
  assert.equal(await page.locator("#panel-chat").isVisible(), true);
});

for (const colorScheme of ["light", "dark"]) {
  for (const [width, height] of [
    [1440, 900],
    [390, 844],
  ]) {
    test(`nothing overflows and axe finds nothing, ${colorScheme}, ${width} px`, async () => {
      await open({ width, height, colorScheme, hasTouch: width < 500 });
      await suggest();
      await page.locator(".token").nth(15).hover();
      await audit();
      await page.click("#tab-chat");
      await page.locator(".chat-settings summary").click();
      await page.fill("#message", "Is 97 prime?");
      await page.keyboard.press("Enter");
      await page.waitForSelector("#send:not([hidden])");
      await audit();
    });
  }
}

async function audit() {
  const overflow = await page.evaluate(() => {
    const { scrollWidth, clientWidth } = document.documentElement;
    return scrollWidth - clientWidth;
  });
  assert.equal(overflow, 0);
  await page.evaluate(AXE);
  const found = await page.evaluate(async () => {
    const { violations } = await globalThis.axe.run(document);
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html)}`);
  });
  assert.deepEqual(found, []);
}
