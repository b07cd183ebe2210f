/** The settings of completion and chat: their form fields, and their values between visits. */

import { byId } from "./dom";
import { languages } from "./languages";
import type { Props } from "./server";

/** Null stands for the server's choice. */
export interface Settings {
  language: string;
  quantization: string; // "" for the server's first
  spm: boolean | null;
  dedent: boolean | null;
  repetition: boolean | null;
  temperature: number;
  tokens: number;
  typing: boolean;
  probabilities: boolean;
  system: string;
  chatTemperature: number;
  chatTokens: number;
}

const DEFAULTS: Settings = {
  language: "Python",
  quantization: "",
  spm: null,
  dedent: null,
  repetition: null,
  temperature: 0,
  tokens: 48,
  typing: true,
  probabilities: true,
  system: "",
  chatTemperature: 0.2,
  chatTokens: 512,
};
const CHECKBOXES = ["typing", "probabilities", "dedent", "repetition"] as const;
const QUANTIZATIONS = ["quantization", "chat-quantization"]; // of completion and chat: one value
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

/** Returns the model of the chosen quantization, or the server's first where it has none. */
export function modelOf(props: Props, settings: Settings): { name: string; scheme: string } {
  const models = Object.entries(props.models);
  const [name, scheme] = models.find(([, scheme]) => scheme === settings.quantization) ??
    models[0] ?? [props.model, ""];
  return { name, scheme };
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
    for (const id of QUANTIZATIONS) this.quantization(id);
    this.radio("order-psm", false);
    this.radio("order-spm", true);
    for (const name of CHECKBOXES) this.checkbox(name);
    this.number("tokens", "tokens");
    this.number("chat-tokens", "chatTokens");
    this.range("temperature", "temperature");
    this.range("chat-temperature", "chatTemperature");
    const system = byId<HTMLTextAreaElement>("system");
    system.value = this.values.system;
    system.addEventListener("input", () => this.set("system", system.value));
  }

  /** Shows the server's choices, and disables the fields that the model has no use for. */
  restrictTo(props: Props): void {
    const schemes = Object.values(props.models);
    for (const id of QUANTIZATIONS) {
      const select = byId<HTMLSelectElement>(id);
      select.replaceChildren(...schemes.map((scheme) => new Option(scheme)));
      select.value = modelOf(props, this.values).scheme;
      byId(`${id}-field`).hidden = schemes.length < 2;
    }
    byId<HTMLFieldSetElement>("infilling").disabled = !props.infills;
    byId("order-note").textContent = props.infills
      ? "Prefix, suffix, middle; or the suffix first."
      : "This model does not infill: it continues the text before the cursor.";
    byId<HTMLInputElement>("order-psm").checked = !(this.values.spm ?? props.order === "SPM");
    byId<HTMLInputElement>("order-spm").checked = this.values.spm ?? props.order === "SPM";
    byId<HTMLInputElement>("dedent").checked = this.values.dedent ?? props.stop_at_dedent;
    byId<HTMLInputElement>("repetition").checked =
      this.values.repetition ?? props.stop_at_repetition;
    for (const id of ["tokens", "chat-tokens"]) {
      const field = byId<HTMLInputElement>(id);
      field.max = String(Math.min(Number(field.max), Math.max(props.n_ctx >> 1, 1)));
      field.dispatchEvent(new Event("change"));
    }
  }

  private set<Name extends keyof Settings>(name: Name, value: Settings[Name]): void {
    if (this.values[name] === value) return;
    this.values[name] = value;
    localStorage.setItem(STORE, JSON.stringify(this.values));
    this.onChange(name);
  }

  private quantization(id: string): void {
    const select = byId<HTMLSelectElement>(id);
    select.addEventListener("change", () => {
      for (const other of QUANTIZATIONS) byId<HTMLSelectElement>(other).value = select.value;
      this.set("quantization", select.value);
    });
  }

  private radio(id: string, spm: boolean): void {
    const field = byId<HTMLInputElement>(id);
    field.addEventListener("change", () => this.set("spm", spm));
  }

  private checkbox(name: (typeof CHECKBOXES)[number]): void {
    const field = byId<HTMLInputElement>(name);
    field.checked = this.values[name] ?? false;
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
