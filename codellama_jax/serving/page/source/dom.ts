/** Small helpers around the document. */

/** Returns the element of index.html with this id. */
export function byId<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no element #${id}`);
  return element as Kind;
}

/** Creates an element with a class and a text. */
export function create<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  className = "",
  text = "",
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** Has screen readers read a text. */
export function announce(text: string): void {
  byId("announcer").textContent = text;
}

/** Returns the noun that follows a number, such as "tokens". */
export function noun(count: number, singular: string): string {
  return count === 1 ? singular : `${singular}s`;
}

/** Formats a duration in milliseconds as "84 ms" or "1.2 s". */
export function duration(milliseconds: number): string {
  const isShort = milliseconds < 1000;
  return isShort ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** Shows figures with their units, such as [["84 ms", "to the first token"]]. */
export function showFigures(parent: HTMLElement, figures: [string, string][]): void {
  const parts = figures.map(([value, unit]) => {
    const figure = create("span", "figure");
    figure.append(create("b", "", value), ` ${unit}`);
    return figure;
  });
  parent.replaceChildren(...parts);
}
