/** Refusals of the server and failures of the network, in plain words. */

/** An answer with an HTTP error status, or `status` 0 where no answer came. */
export class ServerError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly retryAfter: number | null = null,
    readonly code = "",
  ) {
    super(message);
  }

  static async of(response: Response): Promise<ServerError> {
    const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    const text = await response.text().catch(() => "");
    let body: unknown = null;
    try {
      body = JSON.parse(text);
    } catch {
      // A proxy's HTML page is no message for the user.
    }
    const retryAfter = Number.isNaN(seconds) ? null : seconds;
    return ServerError.ofBody(response.status, body, retryAfter);
  }

  /** Reads `{"error": {"message": ..., "code": ...}}`. */
  static ofBody(status: number, body: unknown, retryAfter: number | null = null): ServerError {
    const error = (body as { error?: { message?: unknown; code?: unknown } } | null)?.error;
    const message = typeof error?.message === "string" ? error.message : "";
    const code = typeof error?.code === "string" ? error.code : "";
    return new ServerError(status, message, retryAfter, code);
  }
}

/** Returns the sentence to show for an error of a request. */
export function plainWords(error: unknown): string {
  if (!(error instanceof ServerError)) {
    return `The page failed: ${error instanceof Error ? error.message : String(error)}.`;
  }
  const reason = error.message ? `: ${error.message}` : ".";
  switch (error.status) {
    case 0:
      return "The server does not answer. Is codellama-jax serve still running?";
    case 401:
      return `The server did not accept the API key${reason}`;
    case 413:
      return `The text is too long for this server${reason}`;
    case 429:
      return `The server is busy: its queue is full. ${retry(error)}`;
    case 503:
      return `The server cannot take requests now${reason} ${retry(error)}`;
  }
  if (error.status < 500) return `The server refused the request${reason}`;
  return `The server failed (HTTP ${error.status})${reason}`;
}

function retry(error: ServerError): string {
  const seconds = error.retryAfter;
  return seconds ? `Try again in ${seconds} s.` : "Try again in a moment.";
}
