/** Tokens of a completion with their probabilities: text pieces, levels, and wording. */

import type { ScoredToken } from "./server";

/** A part of a completion's text, and the token that it came from where the server sent it. */
export interface Piece {
  text: string;
  token: ScoredToken | null;
}

/** Lower bounds of the probability levels; the last level has the least likely tokens. */
export const LEVELS = [0.9, 0.5, 0.2, 0.05, 0];

/** Returns the index into LEVELS of a token's log-probability. */
export function levelOf(logprob: number): number {
  const probability = Math.exp(logprob);
  return LEVELS.findIndex((bound) => probability >= bound);
}

/**
 * Splits a completion's text, from its character `start` on, at the borders of its tokens.
 *
 * Tokens that hold a part of a character have U+FFFD for it: their piece ends at the next token.
 * The text may be shorter than its tokens, where the server removes a stop string.
 */
export function pieces(text: string, tokens: ScoredToken[], start = 0): Piece[] {
  const parts: Piece[] = [];
  let offset = 0;
  let partial: ScoredToken | null = null;
  const add = (end: number, token: ScoredToken | null) => {
    if (end > Math.max(offset, start)) {
      parts.push({ text: text.slice(Math.max(offset, start), end), token });
    }
    offset = end;
  };
  for (const token of tokens) {
    if (token.token.includes("\ufffd")) {
      partial ??= token;
      continue;
    }
    const from = partial ? text.indexOf(token.token, offset) : offset;
    if (from < 0 || !text.startsWith(token.token, from)) break;
    if (partial) add(from, partial);
    partial = null;
    add(from + token.token.length, token);
  }
  add(text.length, partial);
  return parts;
}

/** Returns a probability as a percentage of two significant digits, such as "0.42 %". */
export function percent(logprob: number): string {
  const value = 100 * Math.exp(logprob);
  if (value >= 99.5) return value > 99.95 ? "100 %" : `${value.toFixed(1)} %`;
  return value < 0.01 ? "< 0.01 %" : `${Number(value.toPrecision(2))} %`;
}

/** Returns a token's text with its white space made visible. EOT and other sentinels have none. */
export function visible(token: string): string {
  if (token === "") return "(no text)";
  return token.replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "·");
}
