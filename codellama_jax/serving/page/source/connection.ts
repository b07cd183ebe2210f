/** The state of the server: readiness, the model's facts, the API key, and errors of requests. */

import { byId, create } from "./dom";
import { ServerError, plainWords } from "./errors";
import { checkHealth, readProps, storeKey, type Props } from "./server";

const POLL_MS = 1000; // while the model is loaded and compiled, or the server is gone
const WATCH_MS = 15_000; // once it answers

export class Connection {
  props: Props | null = null;
  private readonly health = byId("health");
  private readonly notice = byId("notice");
  private readonly keyForm = byId<HTMLFormElement>("key-form");
  private readonly key = byId<HTMLInputElement>("key");
  private timer = 0;

  /** `onProps` runs when the server's facts have been read, again after it was away. */
  constructor(private readonly onProps: (props: Props) => void) {
    byId("notice-close").addEventListener("click", () => this.hideError());
    this.keyForm.addEventListener("submit", (event) => {
      event.preventDefault();
      storeKey(this.key.value);
      this.keyForm.hidden = true;
      this.hideError();
      void this.check();
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) void this.check();
    });
    void this.check();
  }

  /** Reads the server's health, and its facts once it is ready; checks again after a while. */
  async check(): Promise<void> {
    window.clearTimeout(this.timer);
    try {
      await checkHealth();
      if (!this.props) this.show(await readProps());
      this.setHealth("ready", "Ready");
    } catch (error) {
      this.props = null;
      this.showUnready(error);
    }
    if (document.hidden || !this.keyForm.hidden) return;
    const isReady = this.health.dataset.state === "ready";
    this.timer = window.setTimeout(() => void this.check(), isReady ? WATCH_MS : POLL_MS);
  }

  private show(props: Props): void {
    this.props = props;
    showFacts(props);
    this.onProps(props);
  }

  private showUnready(error: unknown): void {
    const status = error instanceof ServerError ? error.status : null;
    if (status === 0) this.setHealth("failed", "No answer");
    else if (status === 503) this.setHealth("waiting", stateOf(error as ServerError));
    else if (status === 401) this.setHealth("failed", "Needs a key");
    else this.setHealth("failed", "Refused");
    this.health.title = plainWords(error);
    if (status !== 0 && status !== 503) this.showError(error);
  }

  private setHealth(state: "waiting" | "ready" | "failed", text: string): void {
    if (this.health.dataset.state === state && this.health.textContent === text) return;
    this.health.title = "";
    this.health.dataset.state = state;
    this.health.textContent = text;
  }

  /** Shows an error in plain words, and the field for the API key where the server wants one. */
  showError(error: unknown): void {
    const status = error instanceof ServerError ? error.status : null;
    if (status === 401) this.openKeyForm();
    const isFirstTime = status === 401 && !this.key.value;
    byId("notice-text").textContent = plainWords(error);
    this.notice.hidden = isFirstTime;
    if (status === 0 || status === 503) void this.check();
  }

  hideError(): void {
    this.notice.hidden = true;
  }

  private openKeyForm(): void {
    if (!this.keyForm.hidden) return;
    this.keyForm.hidden = false;
    this.key.focus();
    this.key.select();
  }
}

/** Returns the state that "the server is not ready: loading model" names. */
function stateOf(error: ServerError): string {
  const state = error.message.split(": ").at(-1) || "not ready";
  return state.charAt(0).toUpperCase() + state.slice(1);
}

function showFacts(props: Props): void {
  const facts: [string, string][] = [
    ["Name", props.model],
    ["Context", `${props.n_ctx.toLocaleString("en")} tokens`],
    ["Quantized weights", Object.values(props.models).join(", ")],
    ["Quantized KV cache", props.quantization.kv_cache ?? "none"],
    ["Infilling", props.infills ? "yes" : "no"],
    ["Chat", props.chats ? "yes" : "no"],
  ];
  const elements = facts.flatMap(([name, value]) => [
    create("dt", "", name),
    create("dd", "", value),
  ]);
  byId("facts").replaceChildren(...elements);
  byId("model-section").hidden = false;
  byId("model").textContent = props.model;
  byId("model").title = props.model;
  document.title = `${props.model} – codellama-jax`;
}
