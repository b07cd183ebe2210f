/** The chat view: a conversation with an instruct model, streamed. */

import { announce, byId, create, duration, noun, showFigures } from "./dom";
import { render } from "./markdown";
import { post, type ChatChunk, type Props } from "./server";
import { modelOf, type Settings } from "./settings";

interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

interface Surroundings {
  props: () => Props | null;
  settings: () => Settings;
  insert: (code: string) => void;
  onSend: () => void;
  onError: (error: unknown) => void;
}

export class Chat {
  private readonly log = byId("messages");
  private readonly form = byId<HTMLFormElement>("composer");
  private readonly input = byId<HTMLTextAreaElement>("message");
  private readonly send = byId<HTMLButtonElement>("send");
  private readonly stop = byId<HTMLButtonElement>("stop");
  private readonly speed = byId("chat-speed");
  private conversation: Message[] = [];
  private request: AbortController | null = null;

  constructor(private readonly around: Surroundings) {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.submit();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      void this.submit();
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.request?.abort();
    });
    this.stop.addEventListener("click", () => this.request?.abort());
    byId("new-chat").addEventListener("click", () => this.clear());
    this.showWelcome("Waiting for the server.");
  }

  /** Opens the view for an instruct model; otherwise explains why it stays closed. */
  restrictTo(props: Props): void {
    for (const field of this.form.elements) (field as HTMLButtonElement).disabled = !props.chats;
    if (this.conversation.length) return;
    if (props.chats) this.showWelcome(`Ask ${props.model} to write or explain code.`);
    else this.showWelcome(`${props.model} is not an instruct model: it has no chat template.`);
  }

  private showWelcome(text: string): void {
    this.log.replaceChildren(create("p", "welcome", text));
  }

  private clear(): void {
    this.request?.abort();
    this.conversation = [];
    this.showWelcome("A new conversation.");
    this.input.focus();
  }

  private async submit(): Promise<void> {
    const content = this.input.value.trim();
    if (!content || this.request) return;
    this.around.onSend();
    if (this.conversation.length === 0) this.log.replaceChildren();
    this.conversation.push({ role: "user", content });
    this.input.value = "";
    const question = this.bubble("user", "You");
    question.append(create("p", "", content));
    const answer = this.bubble("assistant", "Model");
    const request = new AbortController();
    this.setRequest(request);
    const text = await this.stream(answer, request.signal);
    this.setRequest(null);
    // A question without an answer would break the alternation of roles in the next request.
    if (text) this.conversation.push({ role: "assistant", content: text });
    else this.takeBack(content, question, answer);
  }

  private takeBack(content: string, ...bubbles: HTMLElement[]): void {
    this.conversation.pop();
    for (const bubble of bubbles) bubble.parentElement?.remove();
    if (!this.input.value) this.input.value = content;
  }

  private body(): object {
    const settings = this.around.settings();
    const props = this.around.props();
    const system: Message[] = settings.system.trim()
      ? [{ role: "system", content: settings.system }]
      : [];
    return {
      ...(props ? { model: modelOf(props, settings).name } : {}),
      messages: [...system, ...this.conversation],
      temperature: settings.chatTemperature,
      max_tokens: settings.chatTokens,
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  /** Streams the answer into its bubble and returns as much of it as came. */
  private async stream(bubble: HTMLElement, signal: AbortSignal): Promise<string> {
    const start = performance.now();
    let [text, first, chunks, tokens, ending] = ["", 0, 0, 0, ""];
    bubble.append(create("p", "typing", "…"));
    try {
      for await (const chunk of post<ChatChunk>("v1/chat/completions", this.body(), signal)) {
        tokens = chunk.usage?.completion_tokens ?? tokens;
        const choice = chunk.choices[0];
        ending = choice?.finish_reason ?? ending;
        const piece = choice?.delta?.content;
        if (!piece) continue;
        first ||= performance.now() - start;
        chunks += 1;
        text += piece;
        this.showAnswer(bubble, text);
      }
    } catch (error) {
      if (!signal.aborted) this.around.onError(error);
    }
    if (!text) return "";
    if (signal.aborted) bubble.append(create("p", "hint", "Stopped."));
    else if (ending === "length") bubble.append(create("p", "hint", "Ended at the most tokens."));
    this.showSpeed(first, performance.now() - start, tokens || chunks);
    announce(`Answer: ${text}`);
    return text;
  }

  private showAnswer(bubble: HTMLElement, text: string): void {
    const { scrollTop, clientHeight, scrollHeight } = this.log;
    const isAtEnd = scrollTop + clientHeight > scrollHeight - 60;
    bubble.replaceChildren(...render(text, this.around.insert));
    if (isAtEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  private showSpeed(firstMs: number, totalMs: number, tokens: number): void {
    const seconds = (totalMs - firstMs) / 1000;
    const rate = tokens > 1 && seconds > 0 ? ((tokens - 1) / seconds).toFixed(1) : "–";
    showFigures(this.speed, [
      [duration(firstMs), "first token"],
      [rate, "tokens/s"],
      [String(tokens), noun(tokens, "token")],
    ]);
  }

  private setRequest(request: AbortController | null): void {
    const hadFocus = [this.send, this.stop].includes(document.activeElement as HTMLButtonElement);
    this.request = request;
    this.stop.hidden = request === null;
    this.send.hidden = request !== null;
    this.log.setAttribute("aria-busy", String(request !== null));
    if (hadFocus) (request ? this.stop : this.input).focus();
  }

  private bubble(role: string, name: string): HTMLElement {
    const article = create("article", `message ${role}`);
    const content = create("div", "content");
    article.append(create("h2", "", name), content);
    this.log.append(article);
    this.log.scrollTop = this.log.scrollHeight;
    return content;
  }
}
