/** Requests completions at the cursor, on a key or as the user types, and shows them there. */

import { type Extension } from "@codemirror/state";
import { EditorView, ViewPlugin, keymap, type ViewUpdate } from "@codemirror/view";

import { ServerError } from "./errors";
import { accepting, ghostField, ghostText, remainder, setGhost } from "./ghost";
import { post, type CompletionChunk, type Props, type ScoredToken, type Timings } from "./server";
import { modelOf, type Settings } from "./settings";

const DEBOUNCE_MS = 350;
const ALTERNATIVES = 5; // tokens per position that the server is asked for
const MOST_PER_TOKEN = 8; // characters of a text per token of the context: more never fit
const LEAST_PER_TOKEN = 0.5;

/** The completion so far, for the parts of the page that show it. */
export interface Progress {
  state: "waiting" | "streaming" | "done";
  text: string;
  tokens: ScoredToken[];
  firstMs: number;
  totalMs: number;
  truncated: boolean;
  timings: Timings;
}

/** What the completer needs of the page around it. */
export interface Surroundings {
  props: () => Props | null;
  settings: () => Settings;
  onProgress: (progress: Progress) => void;
  onGhost: (isShown: boolean) => void;
  onCancel: () => void;
  onError: (error: unknown) => void;
}

/** The text around the cursor. */
interface Cursor {
  prefix: string;
  suffix: string;
}

/**
 * Returns the body of a request and the endpoint that takes it.
 *
 * Args:
 *   props: the facts about the model.
 *   settings: the user's.
 *   cursor: the text around the cursor, of which the parts far from it may be left out.
 *   perToken: characters that are sent per token of the context.
 */
export function requestOf(
  props: Props,
  settings: Settings,
  cursor: Cursor,
  perToken: number,
): { path: string; body: object } {
  const shared = {
    model: modelOf(props, settings).name,
    n_predict: settings.tokens,
    temperature: settings.temperature,
    stream: true,
    cache_prompt: true,
    // The server computes probabilities after the text: more work, so only where they are shown.
    ...(settings.probabilities ? { n_probs: ALTERNATIVES } : {}),
  };
  const budget = Math.floor(Math.max(props.n_ctx - settings.tokens, 1) * perToken);
  if (!props.infills) {
    return { path: "completion", body: { prompt: cursor.prefix.slice(-budget), ...shared } };
  }
  const body = {
    input_prefix: cursor.prefix.slice(-budget),
    input_suffix: cursor.suffix.slice(0, budget),
    spm: settings.spm ?? props.order === "SPM",
    stop_at_dedent: settings.dedent ?? props.stop_at_dedent,
    stop_at_repetition: settings.repetition ?? props.stop_at_repetition,
  };
  return { path: "infill", body: { ...body, ...shared } };
}

class Completer {
  private timer = 0;
  private request: AbortController | null = null;

  constructor(
    readonly view: EditorView,
    readonly around: Surroundings,
  ) {}

  update(update: ViewUpdate): void {
    if (!update.docChanged && !update.selectionSet) return;
    if (update.state.field(ghostField)) return; // the user typed along with the suggestion
    const accepted = update.transactions.some((transaction) => transaction.annotation(accepting));
    if (accepted) return;
    this.cancel();
    const typed = update.transactions.some(
      (transaction) => transaction.isUserEvent("input") || transaction.isUserEvent("delete"),
    );
    if (update.docChanged && typed && this.around.settings().typing) {
      this.timer = window.setTimeout(() => void this.complete(true), DEBOUNCE_MS);
    }
  }

  /** Ends the request in flight and the one that is due. Returns whether there was one. */
  cancel(): boolean {
    const had = this.request !== null || this.timer !== 0;
    window.clearTimeout(this.timer);
    this.timer = 0;
    this.request?.abort();
    this.request = null;
    if (had) this.around.onCancel();
    return had;
  }

  /** Requests a completion at the cursor. `isTyping` tells that no key or button requested it. */
  async complete(isTyping = false): Promise<void> {
    this.cancel();
    const props = this.around.props();
    if (!props) {
      if (!isTyping) this.around.onError(new ServerError(503, "the model is not ready"));
      return;
    }
    // A request's answer is inserted at the cursor and from its first character on: of an earlier
    // suggestion neither the place nor the characters that were typed or accepted may remain.
    this.remove();
    const request = new AbortController();
    this.request = request;
    const { state } = this.view;
    const from = state.selection.main.head;
    const cursor = { prefix: state.sliceDoc(0, from), suffix: state.sliceDoc(from) };
    try {
      await this.send(props, cursor, from, request.signal);
    } catch (error) {
      if (request.signal.aborted) return;
      this.remove();
      this.around.onError(error);
    } finally {
      if (this.request === request) this.request = null;
    }
  }

  /** Sends as much of the text around the cursor as fits in the model's context. */
  private async send(props: Props, cursor: Cursor, from: number, signal: AbortSignal) {
    for (let perToken = MOST_PER_TOKEN; ; perToken /= 2) {
      const { path, body } = requestOf(props, this.around.settings(), cursor, perToken);
      try {
        await this.show(from, post<CompletionChunk>(path, body, signal), signal);
        return;
      } catch (error) {
        const isTooLong = error instanceof ServerError && error.code === "context_length_exceeded";
        if (!isTooLong || perToken <= LEAST_PER_TOKEN) throw error;
      }
    }
  }

  private async show(
    from: number,
    chunks: AsyncGenerator<CompletionChunk>,
    signal: AbortSignal,
  ): Promise<void> {
    const start = performance.now();
    const progress: Progress = {
      state: "waiting",
      text: "",
      tokens: [],
      firstMs: 0,
      totalMs: 0,
      truncated: false,
      timings: {},
    };
    this.around.onProgress(progress);
    for await (const chunk of chunks) {
      if (signal.aborted) return;
      const elapsed = performance.now() - start;
      if (chunk.content) {
        progress.firstMs ||= elapsed;
        progress.totalMs = elapsed;
      }
      progress.state = "streaming";
      this.add(progress, chunk);
      const typed = this.view.state.field(ghostField)?.typed ?? 0;
      const { text, tokens } = progress;
      this.view.dispatch({ effects: setGhost.of({ from, text, typed, tokens: [...tokens] }) });
      this.around.onProgress(progress);
    }
    if (!signal.aborted) this.around.onProgress({ ...progress, state: "done" });
  }

  private add(progress: Progress, chunk: CompletionChunk): void {
    progress.text += chunk.content ?? "";
    // Of one token per event, or of all tokens in the last event.
    progress.tokens.push(...(chunk.completion_probabilities ?? []));
    progress.truncated ||= chunk.truncated === true;
    progress.timings = chunk.timings ?? progress.timings;
  }

  /** Removes the suggestion and ends its request. Returns whether there was anything to remove. */
  dismiss(): boolean {
    const had = this.cancel();
    return this.remove() || had;
  }

  /** Returns whether a suggestion is shown or requested. */
  isActive(): boolean {
    const ghost = this.view.state.field(ghostField);
    return this.request !== null || (ghost !== null && remainder(ghost) !== "");
  }

  private remove(): boolean {
    if (!this.view.state.field(ghostField)) return false;
    this.view.dispatch({ effects: setGhost.of(null) });
    return true;
  }

  destroy(): void {
    this.cancel();
  }
}

/** The completer as extensions of an editor, and the actions that buttons share with keys. */
export function completer(around: Surroundings): {
  extensions: Extension;
  complete: (view: EditorView) => boolean;
  dismiss: (view: EditorView) => boolean;
  isActive: (view: EditorView) => boolean;
} {
  const plugin = ViewPlugin.define((view) => new Completer(view, around));
  const complete = (view: EditorView) => {
    void view.plugin(plugin)?.complete();
    return true;
  };
  const dismiss = (view: EditorView) => view.plugin(plugin)?.dismiss() ?? false;
  const isActive = (view: EditorView) => view.plugin(plugin)?.isActive() ?? false;
  const extensions = [
    ghostText(dismiss),
    plugin,
    keymap.of([{ key: "Ctrl-Space", run: complete }]),
    EditorView.updateListener.of(({ state }) => {
      const ghost = state.field(ghostField);
      around.onGhost(ghost !== null && remainder(ghost) !== "");
    }),
  ];
  return { extensions, complete, dismiss, isActive };
}
