/** The card beside a token: its probability among those of the most likely tokens. */

import { byId, create } from "./dom";
import { percent, visible } from "./probabilities";
import type { ScoredToken } from "./server";

const HOVERED = "token-hovered";

/** Has the card follow the pointer over the element of a token, anywhere in the page. */
export function openOnHover(element: HTMLElement, token: ScoredToken): void {
  const send = (detail: ScoredToken | null) => {
    element.dispatchEvent(new CustomEvent(HOVERED, { detail, bubbles: true, composed: true }));
  };
  element.addEventListener("pointermove", () => send(token));
  element.addEventListener("pointerleave", () => send(null));
}

export class Card {
  private readonly element = byId("alternatives");
  private anchor: HTMLElement | null = null;

  constructor() {
    // A list scrolls to a token that gets the focus, so that its card must follow.
    window.addEventListener("scroll", () => this.place(), true);
    this.element.addEventListener("pointerleave", () => {
      // The keyboard's card stays.
      if (this.anchor !== document.activeElement) this.close();
    });
    document.addEventListener(HOVERED, (event) => {
      const { detail } = event as CustomEvent<ScoredToken | null>;
      if (detail) this.open(event.composedPath()[0] as HTMLElement, detail);
      else this.close();
    });
  }

  /** Shows the alternatives to a token beside its element. */
  open(anchor: HTMLElement, token: ScoredToken): void {
    if (this.isAt(anchor)) return;
    this.anchor = anchor;
    this.element.replaceChildren(...rowsOf(token));
    this.element.hidden = false;
    this.place();
  }

  close(): void {
    this.anchor = null;
    this.element.hidden = true;
  }

  isAt(element: HTMLElement): boolean {
    return this.anchor === element;
  }

  /** Closes the card of an element that has been removed. */
  closeIfGone(): void {
    if (!this.anchor?.isConnected) this.close();
  }

  contains(node: Node | null): boolean {
    return this.element.contains(node);
  }

  /** Puts the card below its token, or above it where there is no room. */
  private place(): void {
    if (!this.anchor) return;
    // The last line of a token that spans several.
    const box = [...this.anchor.getClientRects()].at(-1) ?? this.anchor.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const below = box.bottom + 6 + height < innerHeight ? box.bottom + 6 : box.top - 6 - height;
    this.element.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
    this.element.style.top = `${Math.max(8, below)}px`;
  }
}

/** Returns the chosen token, marked, among the most likely ones, by falling probability. */
function rowsOf(token: ScoredToken): HTMLElement[] {
  const rows = token.top_logprobs.filter(({ id }) => id !== token.id);
  rows.push(token);
  rows.sort((left, right) => right.logprob - left.logprob);
  return rows.map((row) => {
    const line = create("div", row.id === token.id ? "row chosen" : "row");
    const bar = create("span", "meter");
    const fill = create("span", "fill");
    fill.style.width = `${Math.max(1, 100 * Math.exp(row.logprob))}%`;
    bar.append(fill);
    const name = create("code", "", visible(row.token));
    line.append(name, bar, create("span", "number", percent(row.logprob)));
    return line;
  });
}
