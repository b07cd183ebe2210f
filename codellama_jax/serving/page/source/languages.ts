/** The programming languages of the editor: the seven that Code Llama is evaluated on. */

import { python } from "@codemirror/lang-python";
import { StreamLanguage, type StreamParser, type StringStream } from "@codemirror/language";
import { clike, cpp, csharp, java } from "@codemirror/legacy-modes/mode/clike";
import { typescript } from "@codemirror/legacy-modes/mode/javascript";
import { shell } from "@codemirror/legacy-modes/mode/shell";
import type { Extension } from "@codemirror/state";
import type { Language } from "@codemirror/language";

const PHP_KEYWORDS =
  "abstract and array as break case catch class clone const continue declare default do echo " +
  "else elseif empty enum extends final finally fn for foreach function global goto if implements " +
  "include instanceof interface isset list match namespace new or print private protected public " +
  "readonly require require_once return static switch throw trait try unset use var while xor " +
  "yield";

function words(text: string): Record<string, boolean> {
  return Object.fromEntries(text.split(" ").map((word) => [word, true]));
}

// Only PHP's statements, not a page of HTML with PHP in it.
const php = clike({
  name: "php",
  keywords: words(PHP_KEYWORDS),
  blockKeywords: words("catch do else elseif finally for foreach if switch try while function"),
  atoms: words("true false null TRUE FALSE NULL"),
  hooks: {
    $: (stream: StringStream) => {
      stream.eatWhile(/[\w$]/);
      return "variable-2";
    },
    "#": (stream: StringStream) => {
      stream.skipToEnd();
      return "comment";
    },
  },
});

export interface EditorLanguage {
  language: Language;
  extension: Extension;
  indent: number;
  names: string[]; // of Markdown's code blocks
}

function stream(parser: StreamParser<unknown>, indent: number, names: string[]): EditorLanguage {
  const language = StreamLanguage.define(parser);
  return { language, extension: language, indent, names };
}

const pythonSupport = python();

/** The languages by the name that the page shows. */
export const languages: Record<string, EditorLanguage> = {
  Python: {
    language: pythonSupport.language,
    extension: pythonSupport,
    indent: 4,
    names: ["python", "py", "python3"],
  },
  "C++": stream(cpp, 4, ["cpp", "c++", "c", "h", "cc"]),
  Java: stream(java, 4, ["java"]),
  PHP: stream(php, 4, ["php"]),
  "JavaScript, TypeScript": stream(typescript, 2, ["typescript", "ts", "javascript", "js"]),
  "C#": stream(csharp, 4, ["csharp", "c#", "cs"]),
  Bash: stream(shell, 2, ["bash", "sh", "shell", "console"]),
};

/** Returns the language of a Markdown code block, null for one that the editor does not have. */
export function languageNamed(name: string): EditorLanguage | null {
  const all = Object.values(languages);
  return all.find((language) => language.names.includes(name.toLowerCase())) ?? null;
}
