/** The tabs between the editor and the chat, with the keys of the ARIA tab pattern. */

import { byId } from "./dom";

const NAMES = ["editor", "chat"] as const;
export type TabName = (typeof NAMES)[number];

/** Connects the tabs. Returns the function that shows one of them. */
export function connectTabs(): (name: TabName) => void {
  const tab = (name: TabName) => byId<HTMLButtonElement>(`tab-${name}`);
  const show = (shown: TabName) => {
    for (const name of NAMES) {
      const isShown = name === shown;
      tab(name).setAttribute("aria-selected", String(isShown));
      tab(name).tabIndex = isShown ? 0 : -1;
      byId(`panel-${name}`).hidden = !isShown;
    }
    history.replaceState(null, "", shown === "editor" ? location.pathname : `#${shown}`);
  };
  for (const name of NAMES) {
    tab(name).addEventListener("click", () => show(name));
    tab(name).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other: TabName = name === "editor" ? "chat" : "editor";
      show(other);
      tab(other).focus();
    });
  }
  show(location.hash === "#chat" ? "chat" : "editor");
  return show;
}
