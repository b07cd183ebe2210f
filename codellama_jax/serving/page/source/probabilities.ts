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
 * The text may be shorter than its tokens (a stop string is removed from it) or longer (a character
 * of several tokens): the piece without a token holds the rest.
 */
export function pieces(text: string, tokens: ScoredToken[], start = 0): Piece[] {
  const parts: Piece[] = [];
  let offset = 0;
  for (const token of tokens) {
    if (!token.token || !text.startsWith(token.token, offset)) break;
    const end = offset + token.token.length;
    if (end > start) parts.push({ text: text.slice(Math.max(offset, start), end), token });
    offset = end;
  }
  const rest = text.slice(Math.max(offset, start));
  if (rest) parts.push({ text: rest, token: null });
  return parts;
}

/** Returns a probability as a percentage with two significant digits, such as "93 %" or "0.42 %". */
export function percent(logprob: number): string {
  const value = 100 * Math.exp(logprob);
  if (value >= 99.5) return value > 99.95 ? "100 %" : `${value.toFixed(1)} %`;
  return value < 0.01 ? "< 0.01 %" : `${Number(value.toPrecision(2))} %`;
}

/** Returns a token's text with its white space made visible. */
export function visible(token: string): string {
  if (token === "") return "(end)";
  return token.replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "·");
}
