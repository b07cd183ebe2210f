/** The part of Markdown that models answer with: paragraphs, code and bold text. */

import { classHighlighter, highlightCode } from "@lezer/highlight";

import { create } from "./dom";
import { languageNamed } from "./languages";

/** A paragraph, or a code block with the name of its language. */
export interface Block {
  code: boolean;
  language: string;
  text: string;
}

/** Splits a text at its fences. A code block without its end, as while streaming, is one too. */
export function blocksOf(text: string): Block[] {
  const blocks: Block[] = [];
  let current: Block = { code: false, language: "", text: "" };
  const close = () => {
    const trimmed = current.code ? current.text.replace(/\n$/, "") : current.text.trim();
    if (trimmed || current.code) blocks.push({ ...current, text: trimmed });
  };
  for (const line of text.split("\n")) {
    const fence = /^\s*```+\s*([^\s`]*)[^`]*$/.exec(line);
    if (fence && (!current.code || !fence[1])) {
      close();
      current = { code: !current.code, language: fence[1] ?? "", text: "" };
    } else {
      current.text += `${line}\n`;
    }
  }
  close();
  return blocks;
}

function paragraphs(text: string): HTMLElement[] {
  return text.split(/\n{2,}/).map((paragraph) => {
    const element = create("p");
    // Odd parts are the marked ones, with their marks.
    paragraph.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).forEach((part, index) => {
      if (index % 2 === 0) element.append(part);
      else if (part.startsWith("`")) element.append(create("code", "", part.slice(1, -1)));
      else element.append(create("strong", "", part.slice(2, -2)));
    });
    return element;
  });
}

function highlighted(block: Block): HTMLElement {
  const code = create("code");
  const language = languageNamed(block.language);
  if (!language) {
    code.textContent = block.text;
    return code;
  }
  highlightCode(
    block.text,
    language.language.parser.parse(block.text),
    classHighlighter,
    (text, classes) => code.append(classes ? create("span", classes, text) : text),
    () => code.append("\n"),
  );
  return code;
}

function codeBlock(block: Block, insert: (code: string) => void): HTMLElement {
  const figure = create("figure", "code-block");
  const head = create("figcaption", "", block.language || "code");
  const copy = create("button", "plain", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    // The clipboard exists only on secure origins, of which loopback is one.
    await navigator.clipboard?.writeText(block.text);
    copy.textContent = navigator.clipboard ? "Copied" : "Select it to copy";
  });
  const open = create("button", "plain", "Put into editor");
  open.type = "button";
  open.addEventListener("click", () => insert(block.text));
  head.append(create("span", "grow"), copy, open);
  const pre = create("pre");
  pre.tabIndex = 0;
  pre.append(highlighted(block));
  figure.append(head, pre);
  return figure;
}

/** Renders an answer. `insert` puts a code block into the editor. */
export function render(text: string, insert: (code: string) => void): HTMLElement[] {
  const elements: HTMLElement[] = [];
  for (const block of blocksOf(text)) {
    if (block.code) elements.push(codeBlock(block, insert));
    else elements.push(...paragraphs(block.text));
  }
  return elements;
}
