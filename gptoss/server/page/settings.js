/** The settings: a form, kept in localStorage, and what they add to a request. */
import { keep, recall } from "./store.js";

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const TOP_LOGPROBS = 5;

export class Settings {
  /**
   * @param {HTMLFormElement} form with a field for each setting
   * @param {() => void} onChange
   */
  constructor(form, onChange) {
    this.form = form;
    this.#fill(recall("localStorage", "settings") ?? {});
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => this.#changed(onChange));
    // After the fields have their first values again.
    form.addEventListener("reset", () => setTimeout(() => this.#changed(onChange)));
  }

  /** Whether token probabilities are wanted. */
  get probabilities() {
    return this.form.elements.probabilities.checked;
  }

  set probabilities(wanted) {
    this.form.elements.probabilities.checked = wanted;
    this.form.dispatchEvent(new Event("input"));
  }

  get system() {
    return this.form.elements.system.value;
  }

  /**
   * The declared tools.
   * @throws {Error} saying why there are none
   */
  tools() {
    const text = this.form.elements.tools.value.trim();
    if (!text) return [];
    let tools;
    try {
      tools = JSON.parse(text);
    } catch (error) {
      throw new Error(`Tools: this is not JSON. ${error.message}`);
    }
    if (!Array.isArray(tools)) throw new Error("Tools: a JSON array is expected: […]");
    return tools;
  }

  /**
   * The fields of a request. A number that is not given is left to the server.
   * @param {boolean} taught whether the model knows conversations
   */
  request(taught) {
    const fields = this.form.elements;
    const body = {};
    for (const name of NUMBERS)
      if (fields[name].value !== "") body[name] = Number(fields[name].value);
    if (this.probabilities) Object.assign(body, { logprobs: true, top_logprobs: TOP_LOGPROBS });
    if (!taught) return body;
    body.reasoning_effort = fields.reasoning_effort.value;
    const tools = this.tools();
    if (tools.length) body.tools = tools;
    return body;
  }

  /** All fields by name, also those that the model has no use for. */
  values() {
    const values = {};
    for (const { name, type, value, checked } of this.form.elements) {
      if (type === "checkbox") values[name] = checked;
      else if (name && (type !== "radio" || checked)) values[name] = value;
    }
    return values;
  }

  #changed(onChange) {
    const fields = this.form.elements;
    let mistake = "";
    try {
      this.tools();
    } catch (error) {
      mistake = error.message;
    }
    fields.tools.setAttribute("aria-invalid", mistake !== "");
    document.getElementById("tools-mistake").textContent = mistake;
    keep("localStorage", "settings", this.values());
    onChange();
  }

  #fill(values) {
    for (const [name, value] of Object.entries(values)) {
      const field = this.form.elements[name];
      if (field?.type === "checkbox") field.checked = value;
      else if (field) field.value = value;
    }
  }
}
