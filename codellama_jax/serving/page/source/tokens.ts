/** The list of a completion's tokens, coloured by probability, with the alternatives to each. */

import type { Card } from "./card";
import { byId, create, noun } from "./dom";
import { LEVELS, levelOf, percent, visible } from "./probabilities";
import type { ScoredToken } from "./server";

/** A listbox: the arrow keys, the pointer and touch pick a token and open its card. */
export class TokenList {
  private readonly list = byId("token-list");
  private readonly note = byId("tokens-note");
  private readonly legend = byId("legend");
  private items: HTMLElement[] = [];
  private shown = "";

  constructor(private readonly card: Card) {
    this.legend.append(...LEVELS.map(legendItem));
    this.list.addEventListener("keydown", (event) => this.onKey(event));
    this.list.addEventListener("focusout", () => this.close());
    this.list.addEventListener("pointerleave", (event) => this.onLeave(event));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
    });
    this.show("", [], "none");
  }

  /** Shows the tokens of a completion. `state` tells why there may be none. */
  show(text: string, tokens: ScoredToken[], state: "none" | "running" | "done"): void {
    const key = `${state} ${text} ${tokens.length}`;
    if (key === this.shown) return;
    this.shown = key;
    this.close();
    const isEmpty = tokens.length === 0;
    this.list.hidden = isEmpty;
    this.legend.hidden = isEmpty;
    this.items = tokens.map((token, index) => this.option(token, index));
    // A line breaks between tokens.
    this.list.replaceChildren(...this.items.flatMap((item) => [item, create("wbr")]));
    if (!isEmpty) this.note.textContent = noteOf(text, tokens);
    else if (state === "none") this.note.textContent = "Nothing has been completed yet.";
    else if (state === "running") this.note.textContent = "Waiting for the probabilities.";
    else this.note.textContent = text ? "The answer has no probabilities." : "No tokens.";
  }

  private option(token: ScoredToken, index: number): HTMLElement {
    const text = visible(token.token).replaceAll("↵", "↵\n");
    const item = create("span", `token level-${levelOf(token.logprob)}`, text);
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", "false");
    item.setAttribute("aria-describedby", "alternatives");
    item.setAttribute("aria-label", `${visible(token.token)}, ${percent(token.logprob)}`);
    item.tabIndex = index === 0 ? 0 : -1;
    const open = () => this.open(item, token);
    item.addEventListener("focus", open);
    // Not pointerenter, which a layout without movement of the pointer causes too.
    item.addEventListener("pointermove", open);
    return item;
  }

  /** Closes the card unless the pointer moves onto it, or the keyboard has opened it. */
  private onLeave(event: PointerEvent): void {
    const target = event.relatedTarget as Node | null;
    const isInside = this.list.contains(target) || this.card.contains(target);
    if (!isInside && !this.list.contains(document.activeElement)) this.close();
  }

  private onKey(event: KeyboardEvent): void {
    const { items } = this;
    const index = items.indexOf(event.target as HTMLElement);
    const steps: Record<string, number> = {
      ArrowRight: index + 1,
      ArrowDown: index + 1,
      ArrowLeft: index - 1,
      ArrowUp: index - 1,
      Home: 0,
      End: items.length - 1,
    };
    const next = items[steps[event.key] ?? -1];
    if (!next) return;
    event.preventDefault();
    for (const item of items) item.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  private open(item: HTMLElement, token: ScoredToken): void {
    if (this.card.isAt(item)) return;
    for (const other of this.items) other.setAttribute("aria-selected", "false");
    item.setAttribute("aria-selected", "true");
    this.card.open(item, token);
  }

  private close(): void {
    this.card.close();
    for (const item of this.items) item.setAttribute("aria-selected", "false");
  }
}

/** Tells the number of the tokens. The server may drop all: they leave the cursor's block. */
function noteOf(text: string, tokens: ScoredToken[]): string {
  const count = `${tokens.length} ${noun(tokens.length, "token")}`;
  const dropped = text ? "" : ", none of which belongs at the cursor";
  return `${count}${dropped}; mean ${meanOf(tokens)}.`;
}

function meanOf(tokens: ScoredToken[]): string {
  const sum = tokens.reduce((total, token) => total + token.logprob, 0);
  return `log-probability ${(sum / tokens.length).toFixed(2)}`;
}

function legendItem(bound: number, index: number): HTMLElement {
  const previous = LEVELS[index - 1];
  const item = create("li");
  const text = bound === 0 ? `below ${100 * (previous ?? 1)} %` : `${100 * bound} % or more`;
  item.append(create("span", `swatch level-${index}`), text);
  return item;
}
