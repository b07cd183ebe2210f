/** The code editor, in a shadow root so that its styles need no inline style element. */

import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import {
  bracketMatching,
  indentOnInput,
  indentUnit,
  syntaxHighlighting,
} from "@codemirror/language";
import { Compartment, EditorState, type Extension } from "@codemirror/state";
import {
  EditorView,
  drawSelection,
  highlightActiveLine,
  highlightActiveLineGutter,
  keymap,
  lineNumbers,
} from "@codemirror/view";
import { classHighlighter } from "@lezer/highlight";

import { languages } from "./languages";
import { theme } from "./theme";

const TEXT = "codellama-jax-text";
const BEFORE = `def is_prime(n: int) -> bool:
    """Returns whether n is a prime number."""
    `;
// A browser that replaces a selection itself gives the new text the style of the old one inline,
// which the policy forbids: it would report an error for each such keystroke.
const typeOver = EditorView.domEventHandlers({
  beforeinput(event, view) {
    const isTypedOver = event.inputType === "insertText" && !view.state.selection.main.empty;
    if (!isTypedOver || !event.data || view.composing) return false;
    const change = view.state.replaceSelection(event.data);
    view.dispatch(change, { userEvent: "input.type", scrollIntoView: true });
    event.preventDefault();
    return true;
  },
});
const AFTER = `


def primes_below(limit: int) -> list[int]:
    """Returns the prime numbers smaller than limit, in order."""
    return [n for n in range(limit) if is_prime(n)]
`;

/** An editor whose language can be replaced. */
export class Editor {
  readonly view: EditorView;
  private readonly language = new Compartment();

  constructor(parent: HTMLElement, language: string, completion: Extension) {
    const root = parent.attachShadow({ mode: "open", delegatesFocus: true });
    const text = sessionStorage.getItem(TEXT);
    const state = EditorState.create({
      doc: text ?? BEFORE + AFTER,
      selection: { anchor: (text ?? BEFORE).length },
      extensions: [
        completion,
        typeOver,
        lineNumbers(),
        highlightActiveLineGutter(),
        highlightActiveLine(),
        history(),
        drawSelection(),
        indentOnInput(),
        bracketMatching(),
        syntaxHighlighting(classHighlighter),
        EditorState.tabSize.of(4),
        EditorView.contentAttributes.of({
          tabindex: "0",
          "aria-label": "Code. Tab indents; press Escape and then Tab to leave the editor.",
        }),
        keymap.of([...defaultKeymap, ...historyKeymap, indentWithTab]),
        this.language.of(languageExtension(language)),
        EditorView.updateListener.of((update) => {
          if (update.docChanged) sessionStorage.setItem(TEXT, update.state.doc.toString());
        }),
        theme,
      ],
    });
    this.view = new EditorView({ state, parent: root as unknown as Element, root });
  }

  setLanguage(name: string): void {
    this.view.dispatch({ effects: this.language.reconfigure(languageExtension(name)) });
  }

  /** Inserts a text in place of the selection. */
  insert(text: string): void {
    this.view.dispatch(this.view.state.replaceSelection(text), { scrollIntoView: true });
    this.view.focus();
  }
}

function languageExtension(name: string): Extension {
  const language = languages[name];
  if (!language) return [];
  return [language.extension, indentUnit.of(" ".repeat(language.indent))];
}
