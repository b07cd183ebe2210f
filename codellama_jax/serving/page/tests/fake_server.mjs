/** A stand-in for `codellama-jax serve`: the page's endpoints with answers that tests choose. */

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const BUILT = join(dirname(fileURLToPath(import.meta.url)), "..", "built");
const TYPES = { html: "text/html", js: "text/javascript", css: "text/css", svg: "image/svg+xml" };
// The strictest one that the page works under.
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const COMPLETION = [
  ["if", 0.94, "return", "for"],
  [" n", 0.99, " not", " n"],
  [" <", 0.81, " ==", " in"],
  [" ", 0.98, "=", " "],
  ["2", 0.97, "1", "3"],
  [":", 0.995, " or", ":"],
  ["\n        ", 0.98, " return", "\n"],
  ["return", 0.99, "raise", "return"],
  [" False", 0.96, " True", " n"],
  ["\n    ", 0.93, "\n\n", "\n        "],
  ["return", 0.46, "for", "if"],
  [" all", 0.62, " not", " n"],
  ["(", 0.98, "([", "("],
  ["n", 0.91, "(", "limit"],
  [" %", 0.97, " &", " //"],
  [" divisor", 0.03, " i", " d"],
  [" for", 0.35, " !=", " =="],
  [" divisor", 0.88, " i", " d"],
  [" in", 0.99, " of", ","],
  [" range", 0.97, " primes", " ("],
  ["(", 0.99, "((", "("],
  ["2", 0.95, "3", "1"],
  [",", 0.99, ")", ", "],
  [" n", 0.12, " int", " math"],
  ["))", 0.55, "**", ")"],
];
const ANSWER =
  "A prime has no divisor but 1 and itself, so it is enough to try those up " +
  "to its square root.\n\n" +
  "```python\nimport math\n\n\ndef is_prime(n: int) -> bool:\n    if n < 2:  # 0 and 1 are none\n" +
  "        return False\n    return all(n % d for d in range(2, math.isqrt(n) + 1))\n```\n\n" +
  "Call it as `is_prime(97)`, which returns `True`.";

function scored([token, probability, ...others]) {
  const rest = (1 - probability) / 2;
  const alternatives = others.filter((text) => text === "" || text !== token);
  const chosen = { id: 0, token, logprob: Math.log(probability) };
  return {
    ...chosen,
    top_logprobs: [
      chosen,
      ...alternatives.map((text, index) => ({
        id: 1 + index, // compared within these alternatives only
        token: text,
        logprob: Math.log(rest / (index + 1)),
      })),
    ],
  };
}

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

/** Starts the server on a free loopback port. `options` may be changed while it runs. */
export async function startFakeServer(options = {}) {
  const state = {
    props: {
      model: "code-llama-toy",
      infills: true,
      chats: true,
      order: "PSM",
      stop_at_dedent: false,
      stop_at_repetition: true,
      quantization: { weights: "int8", kv_cache: "none" },
      models: { "code-llama-toy": "int8" },
      n_ctx: 16384,
    },
    health: 200, // the status of GET /health
    failure: null, // {status, body, headers} for the next POST requests
    key: "", // the API key that requests need
    delay: 25, // milliseconds per token
    most: Infinity, // characters of a prompt
    completion: COMPLETION,
    isDropped: false, // whether no token's text is sent
    requests: [], // [path, body]
    cancelled: 0,
    ...options,
  };
  const server = createServer((request, response) => {
    answer(state, request, response).catch((error) => response.destroy(error));
  });
  await new Promise((done) => server.listen(Number(process.env.PORT ?? 0), "127.0.0.1", done));
  const url = `http://127.0.0.1:${server.address().port}/`;
  const stop = () => server.close();
  return { state, url, stop, closeAll: () => server.closeAllConnections() };
}

async function answer(state, request, response) {
  response.setHeader("Content-Security-Policy", POLICY);
  const path = new URL(request.url, "http://localhost").pathname.slice(1);
  if (request.method === "GET" && !["health", "props"].includes(path)) {
    return sendFile(path ? path.replace("page/", "") : "index.html", response);
  }
  if (path === "health") {
    const error = { message: "the server is not ready: loading model", code: "unavailable" };
    return sendJson(response, state.health, state.health === 200 ? { status: "ok" } : { error });
  }
  if (state.key && request.headers.authorization !== `Bearer ${state.key}`) {
    return sendJson(response, 401, { error: { message: "invalid API key" } });
  }
  if (path === "props") return sendJson(response, 200, state.props);
  let text = "";
  for await (const part of request) text += part;
  const body = JSON.parse(text);
  state.requests.push([path, body]);
  if (state.failure) {
    const { status, body: failure, headers } = state.failure;
    for (const [name, value] of Object.entries(headers ?? {})) response.setHeader(name, value);
    return sendJson(response, status, failure);
  }
  if (body.prompt?.length > state.most) {
    const error = { message: "the prompt is too long", code: "context_length_exceeded" };
    return sendJson(response, 400, { error });
  }
  return stream(state, path, body, response);
}

async function stream(state, path, body, response) {
  response.setHeader("Content-Type", "text/event-stream");
  const isOpen = () => !response.destroyed && !response.closed;
  response.on("close", () => (state.cancelled += response.writableFinished ? 0 : 1));
  const write = (data) => response.write(`data: ${JSON.stringify(data)}\n\n`);
  if (path === "v1/chat/completions") {
    for (const content of ANSWER.match(/\s*\S+/g)) {
      await wait(state.delay);
      if (!isOpen()) return;
      write({ choices: [{ delta: { content } }] });
    }
    write({ choices: [{ delta: {}, finish_reason: "stop" }] });
    write({ choices: [], usage: { completion_tokens: 96 } });
    response.end("data: [DONE]\n\n");
    return;
  }
  const tokens = state.completion.slice(0, body.n_predict).map(scored);
  await wait(3 * state.delay);
  for (const { token } of tokens) {
    await wait(state.delay);
    if (!isOpen()) return;
    write({ content: state.isDropped ? "" : token, stop: false });
  }
  const timings = {
    prompt_n: 97,
    predicted_n: tokens.length,
    predicted_per_second: 1000 / state.delay,
  };
  const probabilities = body.n_probs ? { completion_probabilities: tokens } : {};
  write({ content: "", stop: true, truncated: false, timings, ...probabilities });
  response.end();
}

async function sendFile(name, response) {
  const type = TYPES[name.split(".").pop()];
  try {
    const data = await readFile(join(BUILT, name.replaceAll("/", "")));
    response.setHeader("Content-Type", type ?? "text/plain");
    response.end(data);
  } catch {
    sendJson(response, 404, { error: { message: "not found" } });
  }
}

function sendJson(response, status, body) {
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify(body));
}
