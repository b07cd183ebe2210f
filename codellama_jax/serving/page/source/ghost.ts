/** Ghost text: a suggestion drawn at the cursor that is not yet part of the document. */

import {
  Annotation,
  EditorState,
  Prec,
  StateEffect,
  StateField,
  type Extension,
  type Transaction,
} from "@codemirror/state";
import { Decoration, EditorView, WidgetType, keymap, type DecorationSet } from "@codemirror/view";

import { openOnHover } from "./card";
import { levelOf, pieces, type Piece } from "./probabilities";
import type { ScoredToken } from "./server";

/** A suggestion at `from`, of which the user has typed the first `typed` characters already. */
export interface Ghost {
  from: number;
  text: string;
  typed: number;
  tokens: ScoredToken[];
}

/** Shows a suggestion, replaces it by a longer one, or removes it with null. */
export const setGhost = StateEffect.define<Ghost | null>();

/** Marks the transactions that insert a suggestion, so that they request no new one. */
export const accepting = Annotation.define<boolean>();

/** Returns the part of a suggestion that is still to be inserted. */
export function remainder(ghost: Ghost): string {
  return ghost.text.slice(ghost.typed);
}

/** The current suggestion. Typing its next characters shortens it, any other change removes it. */
export const ghostField = StateField.define<Ghost | null>({
  create: () => null,
  update(ghost, transaction) {
    for (const effect of transaction.effects) {
      if (effect.is(setGhost)) return effect.value;
    }
    if (!ghost || (!transaction.docChanged && !transaction.selection)) return ghost;
    return typedOn(ghost, transaction);
  },
});

function typedOn(ghost: Ghost, transaction: Transaction): Ghost | null {
  const cursor = ghost.from + ghost.typed;
  const selection = transaction.state.selection.main;
  let inserted: string | null = "";
  transaction.changes.iterChanges((from, to, _newFrom, _newTo, text) => {
    const atCursor = from === cursor && to === cursor && inserted === "";
    inserted = atCursor ? text.toString() : null;
  });
  if (inserted === null || !remainder(ghost).startsWith(inserted)) return null;
  const typed = ghost.typed + (inserted as string).length;
  const isThere = selection.empty && selection.head === ghost.from + typed;
  return isThere ? { ...ghost, typed } : null;
}

class GhostWidget extends WidgetType {
  constructor(readonly parts: Piece[]) {
    super();
  }

  override eq(other: GhostWidget): boolean {
    return JSON.stringify(this.parts) === JSON.stringify(other.parts);
  }

  override toDOM(): HTMLElement {
    const ghost = document.createElement("span");
    ghost.className = "ghost";
    ghost.setAttribute("aria-hidden", "true");
    for (const { text, token } of this.parts) {
      const span = document.createElement("span");
      span.textContent = text;
      if (token) {
        span.className = `level-${levelOf(token.logprob)}`;
        openOnHover(span, token);
      }
      ghost.append(span);
    }
    return ghost;
  }
}

function draw(state: EditorState): DecorationSet {
  const ghost = state.field(ghostField);
  if (!ghost || !remainder(ghost)) return Decoration.none;
  const widget = new GhostWidget(pieces(ghost.text, ghost.tokens, ghost.typed));
  return Decoration.set(Decoration.widget({ widget, side: 1 }).range(ghost.from + ghost.typed));
}

function insert(view: EditorView, text: string): void {
  const head = view.state.selection.main.head;
  view.dispatch({
    changes: { from: head, insert: text },
    selection: { anchor: head + text.length },
    annotations: accepting.of(true),
    userEvent: "input.complete",
    scrollIntoView: true,
  });
}

/** Inserts the complete suggestion. Returns false where there is none, for the next key binding. */
export function acceptAll(view: EditorView): boolean {
  const ghost = view.state.field(ghostField);
  if (!ghost || !remainder(ghost)) return false;
  insert(view, remainder(ghost));
  return true;
}

/** Inserts the suggestion's next word with the space before it, and keeps the rest. */
export function acceptWord(view: EditorView): boolean {
  const ghost = view.state.field(ghostField);
  if (!ghost || !remainder(ghost)) return false;
  const word = /^\s*(\w+|[^\w\s]+)/.exec(remainder(ghost));
  insert(view, word ? word[0] : remainder(ghost));
  return true;
}

/** Ghost text with its keys. Tokens are tinted by their probability where the server sent it. */
export function ghostText(dismiss: (view: EditorView) => boolean): Extension {
  return [
    ghostField,
    EditorView.decorations.compute([ghostField], (state) => draw(state)),
    Prec.highest(
      keymap.of([
        { key: "Tab", run: acceptAll },
        { key: "Ctrl-ArrowRight", run: acceptWord },
        { key: "Escape", run: dismiss },
      ]),
    ),
  ];
}
