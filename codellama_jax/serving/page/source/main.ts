/** Starts the page and connects its parts. */

import { Card } from "./card";
import { Chat } from "./chat";
import { completer, type Progress } from "./completer";
import { Connection } from "./connection";
import { announce, byId, create, duration, noun, showFigures } from "./dom";
import { Editor } from "./editor";
import { acceptAll, acceptWord } from "./ghost";
import { SettingsForm, type Settings } from "./settings";
import { connectTabs } from "./tabs";
import { connectThemeSwitch } from "./theme";
import { TokenList } from "./tokens";

const HINT = "Type, or press Ctrl Space, for a suggestion.";
// Settings of which a change replaces the suggestion that is shown or requested.
const REQUESTED: (keyof Settings)[] = [
  "quantization",
  "spm",
  "dedent",
  "repetition",
  "temperature",
  "tokens",
  "probabilities",
];

connectThemeSwitch();
const showTab = connectTabs();
const card = new Card();
const tokens = new TokenList(card);
const form = new SettingsForm(onSetting);
const completion = completer({
  props: () => connection.props,
  settings: () => form.values,
  onProgress: showProgress,
  onGhost: (isShown) => {
    byId("answering").hidden = !isShown;
    card.closeIfGone();
  },
  onCancel: () => showHint("Cancelled."),
  onError: (error) => {
    showHint(HINT);
    tokens.show("", [], "none");
    connection.showError(error);
  },
});
const editor = new Editor(byId("editor"), form.values.language, completion.extensions);
const chat = new Chat({
  props: () => connection.props,
  settings: () => form.values,
  insert: (code) => {
    showTab("editor");
    editor.insert(code);
  },
  onSend: () => connection.hideError(),
  onError: (error) => connection.showError(error),
});
const connection = new Connection((props) => {
  form.restrictTo(props);
  chat.restrictTo(props);
});

function onSetting(name: keyof Settings): void {
  if (name === "language") editor.setLanguage(form.values.language);
  const isActive = completion.isActive(editor.view);
  if (isActive && REQUESTED.includes(name)) completion.complete(editor.view);
}

function showProgress(progress: Progress): void {
  const { state, text } = progress;
  if (state === "waiting") {
    connection.hideError();
    showHint("Waiting for the first token");
    tokens.show("", [], "running");
    return;
  }
  tokens.show(text, progress.tokens, state === "done" ? "done" : "running");
  showFigures(byId("speed"), figuresOf(progress));
  if (state === "done") announce(text ? `Suggestion: ${text}` : "No suggestion.");
}

function figuresOf({ state, text, firstMs, totalMs, timings, truncated }: Progress) {
  const figures: [string, string][] = [];
  if (text) figures.push([duration(firstMs), "first token"]);
  else if (state === "done") figures.push(["Nothing", "to add here"]);
  if (state !== "done" || !text) return figures;
  figures.push([duration(totalMs), "total"]);
  if (timings.predicted_per_second) {
    figures.push([timings.predicted_per_second.toFixed(1), "tokens/s"]);
  }
  const { predicted_n: count, prompt_n: read } = timings;
  if (count) figures.push([String(count), noun(count, "token")]);
  if (read) figures.push([read.toLocaleString("en"), noun(read, "prompt token")]);
  if (truncated) figures.push(["Truncated", "to the context"]);
  return figures;
}

function showHint(text: string): void {
  byId("speed").replaceChildren(create("span", "hint", text));
}

/** Connects a button of the editor's bars with an action, and returns the focus to the editor. */
function onPress(id: string, action: (view: Editor["view"]) => void): void {
  byId(id).addEventListener("click", () => {
    action(editor.view);
    editor.view.focus();
  });
}

onPress("complete", completion.complete);
onPress("accept", acceptAll);
onPress("accept-word", acceptWord);
onPress("dismiss", completion.dismiss);
showHint(HINT);
