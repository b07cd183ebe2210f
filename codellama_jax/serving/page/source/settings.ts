/** The settings of completion and chat: their form fields, and their values between visits. */

import { byId } from "./dom";
import { languages } from "./languages";
import type { Props } from "./server";

export interface Settings {
  language: string;
  spm: boolean;
  temperature: number;
  tokens: number;
  typing: boolean;
  colours: boolean;
  system: string;
  chatTemperature: number;
  chatTokens: number;
}

const DEFAULTS: Settings = {
  language: "Python",
  spm: false,
  temperature: 0,
  tokens: 48,
  typing: true,
  colours: true,
  system: "",
  chatTemperature: 0.2,
  chatTokens: 512,
};
const STORE = "codellama-jax-settings";

function stored(): Settings {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(STORE) ?? "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

/** Returns a field's number within its bounds, or `otherwise` where the field is empty. */
function bounded(field: HTMLInputElement, otherwise: number): number {
  const value = Number.parseFloat(field.value);
  if (Number.isNaN(value)) return otherwise;
  return Math.min(Math.max(value, Number(field.min)), Number(field.max));
}

/** Connects the form fields with the settings, and reports every change of the user. */
export class SettingsForm {
  readonly values = stored();

  constructor(private readonly onChange: (name: keyof Settings) => void) {
    const select = byId<HTMLSelectElement>("language");
    select.append(...Object.keys(languages).map((name) => new Option(name)));
    if (!(this.values.language in languages)) this.values.language = DEFAULTS.language;
    select.value = this.values.language;
    select.addEventListener("change", () => this.set("language", select.value));
    this.radio("order-psm", false);
    this.radio("order-spm", true);
    this.checkbox("typing", "typing");
    this.checkbox("colours", "colours");
    this.number("tokens", "tokens");
    this.number("chat-tokens", "chatTokens");
    this.range("temperature", "temperature");
    this.range("chat-temperature", "chatTemperature");
    const system = byId<HTMLTextAreaElement>("system");
    system.value = this.values.system;
    system.addEventListener("input", () => this.set("system", system.value));
  }

  /** Disables the fields that the served model has no use for. */
  restrictTo(props: Props): void {
    byId<HTMLFieldSetElement>("order").disabled = !props.infills;
    if (!props.infills) {
      byId("order-note").textContent =
        "This model does not infill: it continues the text before the cursor.";
    }
    for (const id of ["tokens", "chat-tokens"]) {
      const field = byId<HTMLInputElement>(id);
      field.max = String(Math.min(Number(field.max), Math.max(props.context - 1, 1)));
      field.dispatchEvent(new Event("change"));
    }
  }

  private set<Name extends keyof Settings>(name: Name, value: Settings[Name]): void {
    if (this.values[name] === value) return;
    this.values[name] = value;
    localStorage.setItem(STORE, JSON.stringify(this.values));
    this.onChange(name);
  }

  private radio(id: string, spm: boolean): void {
    const field = byId<HTMLInputElement>(id);
    field.checked = this.values.spm === spm;
    field.addEventListener("change", () => this.set("spm", spm));
  }

  private checkbox(id: string, name: "typing" | "colours"): void {
    const field = byId<HTMLInputElement>(id);
    field.checked = this.values[name];
    field.addEventListener("change", () => this.set(name, field.checked));
  }

  private number(id: string, name: "tokens" | "chatTokens"): void {
    const field = byId<HTMLInputElement>(id);
    field.value = String(this.values[name]);
    field.addEventListener("change", () => {
      const value = Math.round(bounded(field, DEFAULTS[name]));
      field.value = String(value);
      this.set(name, value);
    });
  }

  private range(id: string, name: "temperature" | "chatTemperature"): void {
    const field = byId<HTMLInputElement>(id);
    const output = byId<HTMLOutputElement>(`${id}-value`);
    const show = () => {
      output.value = this.values[name] === 0 ? "0 (greedy)" : this.values[name].toFixed(2);
    };
    field.value = String(this.values[name]);
    show();
    field.addEventListener("input", () => {
      this.set(name, bounded(field, DEFAULTS[name]));
      show();
    });
  }
}
