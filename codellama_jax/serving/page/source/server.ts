/** The requests of the page: JSON answers and streams of server-sent events. */

import { ServerError } from "./errors";

/** `GET /props`: the facts about the served model that the page shows or depends on. */
export interface Props {
  model: string;
  infills: boolean;
  chats: boolean;
  order: "PSM" | "SPM"; // of infilling prompts, unless a request names one
  stop_at_dedent: boolean; // as above
  stop_at_repetition: boolean;
  quantization: Record<string, string>;
  models: Record<string, string>; // names, and the quantization of their weights; first the default
  n_ctx: number;
}

/** One token with the natural logarithm of its probability. */
export interface TokenProbability {
  id: number; // several have the same text: parts of characters, and ids without a text
  token: string;
  logprob: number;
}

/** A generated token and the most likely tokens at its position. */
export interface ScoredToken extends TokenProbability {
  top_logprobs: TokenProbability[];
}

export interface Timings {
  prompt_n?: number;
  prompt_ms?: number;
  predicted_n?: number;
  predicted_ms?: number;
  predicted_per_second?: number;
}

/** One event of `/infill` and `/completion`, or their answer as one object. */
export interface CompletionChunk {
  content: string;
  stop?: boolean;
  truncated?: boolean;
  timings?: Timings;
  completion_probabilities?: ScoredToken[];
}

/** One event of `/v1/chat/completions`. */
export interface ChatChunk {
  choices: { delta?: { content?: string | null }; finish_reason?: string | null }[];
  usage?: { completion_tokens?: number } | null;
}

const KEY = "codellama-jax-api-key";

/** Keeps the API key until the browser's tab is closed. */
export function storeKey(key: string): void {
  sessionStorage.setItem(KEY, key.trim());
}

function headers(): Record<string, string> {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Returns the address of an endpoint beside the page, so that a proxy's path prefix is kept. */
function address(path: string): URL {
  return new URL(path, document.baseURI);
}

async function send(path: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(address(path), init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ServerError(0, "");
  }
  if (!response.ok) throw await ServerError.of(response);
  return response;
}

/** Reads `GET /props`. */
export async function readProps(): Promise<Props> {
  const response = await send("props", { headers: headers() });
  return (await response.json()) as Props;
}

/** Reads `GET /health`. Throws ServerError, with status 503 until the model is compiled. */
export async function checkHealth(): Promise<void> {
  await send("health", { headers: headers() });
}

/**
 * Posts a request and yields the JSON objects of its answer as they arrive.
 *
 * An answer that is no stream is yielded as one object: a server may ignore `stream`.
 * Throws ServerError for a refusal and for an `error` object within the stream.
 */
export async function* post<Chunk>(
  path: string,
  body: object,
  signal: AbortSignal,
): AsyncGenerator<Chunk> {
  const response = await send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify(body),
    signal,
  });
  const type = response.headers.get("Content-Type") ?? "";
  if (!type.startsWith("text/event-stream") || !response.body) {
    yield (await response.json()) as Chunk;
    return;
  }
  for await (const data of readEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw ServerError.ofBody(500, chunk); // the status was sent before
    yield chunk as Chunk;
  }
}

/** Yields the data of each server-sent event: its `data:` lines, joined by line feeds. */
async function* readEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair).getReader();
  let rest = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    // Ends the request when the consumer stops early.
    reader.cancel().catch(() => {});
  }
}
