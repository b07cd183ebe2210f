/** The editor's styles, and the switch between the light and the dark theme of the page. */

import { EditorView } from "@codemirror/view";

import { byId } from "./dom";

// Custom properties of page.css are inherited into the editor's shadow root.
const levels = Object.fromEntries(
  [0, 1, 2, 3, 4].map((level) => [
    `.level-${level}`,
    { backgroundColor: `var(--level-${level})`, borderRadius: "3px" },
  ]),
);

const SELECTION = { backgroundColor: "var(--selection)" };

/** The editor's theme for both colour schemes. */
export const theme = EditorView.theme({
  "&": { height: "100%", color: "var(--text)", backgroundColor: "var(--page)", fontSize: "14px" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.6", overflow: "auto" },
  ".cm-content": { padding: "14px 0 40vh", caretColor: "var(--accent)" },
  ".cm-line": { padding: "0 16px 0 10px" },
  ".cm-gutters": {
    backgroundColor: "var(--page)",
    color: "var(--quiet)",
    border: "none",
    paddingLeft: "6px",
  },
  ".cm-lineNumbers .cm-gutterElement": { minWidth: "30px", padding: "0 8px 0 4px" },
  ".cm-activeLine": { backgroundColor: "var(--active)" },
  ".cm-activeLineGutter": { backgroundColor: "var(--active)", color: "var(--text)" },
  ".cm-cursor": { borderLeft: "2px solid var(--accent)" },
  ".cm-selectionBackground": SELECTION,
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground": SELECTION,
  "&.cm-focused .cm-matchingBracket": { backgroundColor: "var(--selection)" },
  ".ghost": { color: "var(--ghost)", fontStyle: "italic", whiteSpace: "pre" },
  ...levels,
  ".tok-keyword": { color: "var(--keyword)" },
  ".tok-string, .tok-string2": { color: "var(--string)" },
  ".tok-comment": { color: "var(--quiet)", fontStyle: "italic" },
  ".tok-number, .tok-bool, .tok-atom": { color: "var(--number)" },
  ".tok-typeName, .tok-className, .tok-namespace": { color: "var(--type)" },
  ".tok-definition": { color: "var(--definition)" },
  ".tok-variableName2": { color: "var(--type)" },
});

const STORE = "codellama-jax-theme";

/** Connects the theme switch. The system's theme is followed until the user picks the other one. */
export function connectThemeSwitch(): void {
  const button = byId<HTMLButtonElement>("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const systemTheme = () => (system.matches ? "dark" : "light");
  const show = () => {
    const chosen = localStorage.getItem(STORE);
    document.documentElement.dataset.theme = chosen ?? "system";
    button.setAttribute("aria-pressed", String((chosen ?? systemTheme()) === "dark"));
  };
  button.addEventListener("click", () => {
    const next = button.getAttribute("aria-pressed") === "true" ? "light" : "dark";
    if (next === systemTheme()) localStorage.removeItem(STORE);
    else localStorage.setItem(STORE, next);
    show();
  });
  system.addEventListener("change", show);
  show();
}
