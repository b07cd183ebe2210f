/** Requests completions at the cursor, as the user types or on a key, and shows them as ghost text. */

import { type Extension } from "@codemirror/state";
import { EditorView, ViewPlugin, keymap, type ViewUpdate } from "@codemirror/view";

import { accepting, ghostField, ghostText, remainder, setGhost } from "./ghost";
import { post, type CompletionChunk, type Props, type ScoredToken, type Timings } from "./server";
import type { Settings } from "./settings";

const DEBOUNCE_MS = 350;
const ALTERNATIVES = 5; // tokens per position that the server is asked for
const CHARACTERS_PER_TOKEN = 3; // of source code, on the low side: the server truncates the rest

/** The completion so far, for the parts of the page that show it. */
export interface Progress {
  state: "waiting" | "streaming" | "done";
  text: string;
  tokens: ScoredToken[];
  firstMs: number;
  totalMs: number;
  truncated: boolean;
  cached: number | null;
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

/** Returns the body of a request for `prefix` and `suffix`, and the endpoint that takes it. */
export function requestOf(
  props: Props,
  settings: Settings,
  prefix: string,
  suffix: string,
): { path: string; body: object } {
  const shared = {
    n_predict: settings.tokens,
    temperature: settings.temperature,
    stream: true,
    cache_prompt: true,
    n_probs: ALTERNATIVES,
  };
  const budget = Math.max(props.context - settings.tokens, 16) * CHARACTERS_PER_TOKEN;
  if (!props.infills) {
    return { path: "completion", body: { prompt: prefix.slice(-budget), ...shared } };
  }
  const after = suffix.slice(0, Math.floor(budget / 4));
  const before = prefix.slice(-(budget - after.length));
  const body = { input_prefix: before, input_suffix: after, prompt: "", spm: settings.spm };
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
      this.timer = window.setTimeout(() => this.complete(), DEBOUNCE_MS);
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

  /** Requests a completion at the cursor. */
  async complete(): Promise<void> {
    const props = this.around.props();
    this.cancel();
    if (!props) return;
    const request = new AbortController();
    this.request = request;
    const { state } = this.view;
    const from = state.selection.main.head;
    const { path, body } = requestOf(
      props,
      this.around.settings(),
      state.sliceDoc(0, from),
      state.sliceDoc(from),
    );
    try {
      const chunks = post<CompletionChunk>(path, body, request.signal);
      await this.show(from, chunks, request.signal);
    } catch (error) {
      if (request.signal.aborted) return;
      this.view.dispatch({ effects: setGhost.of(null) });
      this.around.onError(error);
    } finally {
      if (this.request === request) this.request = null;
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
      cached: null,
      timings: {},
    };
    this.around.onProgress(progress);
    for await (const chunk of chunks) {
      if (signal.aborted) return;
      progress.totalMs = performance.now() - start;
      progress.firstMs ||= progress.totalMs;
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
    // The last event of a stream may repeat all of its tokens.
    const repeats = chunk.stop === true && !chunk.content;
    if (!repeats) progress.tokens.push(...(chunk.completion_probabilities ?? []));
    progress.truncated ||= chunk.truncated === true;
    progress.cached = chunk.tokens_cached ?? progress.cached;
    progress.timings = chunk.timings ?? progress.timings;
  }

  /** Removes the suggestion and ends its request. Returns whether there was anything to remove. */
  dismiss(): boolean {
    const had = this.cancel();
    if (!this.view.state.field(ghostField)) return had;
    this.view.dispatch({ effects: setGhost.of(null) });
    return true;
  }

  destroy(): void {
    this.cancel();
  }
}

/** The completer as extensions of an editor, and the actions that buttons share with keys. */
export function completer(around: Surroundings): {
  extensions: (coloured: boolean) => Extension;
  complete: (view: EditorView) => boolean;
  dismiss: (view: EditorView) => boolean;
} {
  const plugin = ViewPlugin.define((view) => new Completer(view, around));
  const complete = (view: EditorView) => {
    void view.plugin(plugin)?.complete();
    return true;
  };
  const dismiss = (view: EditorView) => view.plugin(plugin)?.dismiss() ?? false;
  const extensions = (coloured: boolean) => [
    ghostText(dismiss, coloured),
    plugin,
    keymap.of([{ key: "Ctrl-Space", run: complete }]),
    EditorView.updateListener.of(({ state }) => {
      const ghost = state.field(ghostField);
      around.onGhost(ghost !== null && remainder(ghost) !== "");
    }),
  ];
  return { extensions, complete, dismiss };
}
