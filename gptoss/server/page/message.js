/** How messages look. What they say is kept in plain objects, which main.js makes and sends. */
import { copyText, element, fitHeight, iconButton, icon, isSend } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { TokenView } from "./tokens.js";

/** A message of the user's, which can be edited and sent again. */
export class UserView {
  /**
   * @param {{content: string}} message
   * @param {(text: string) => void} resend
   */
  constructor(message, resend) {
    this.message = message;
    this.resend = resend;
    this.root = element("article", { className: "user", "aria-label": "You" });
    this.update();
  }

  update() {
    const text = element("div", { className: "bubble" }, this.message.content);
    const copy = iconButton("copy", "Copy", () => copyText(this.message.content, copy));
    const edit = iconButton("edit", "Edit and send again", () => this.#edit());
    this.root.replaceChildren(text, element("div", { className: "actions" }, copy, edit));
  }

  #edit() {
    const value = this.message.content;
    const field = element("textarea", { value, "aria-label": "Your message" });
    const back = () => {
      this.update();
      this.root.querySelector(".actions button:last-child").focus();
    };
    const send = () => field.value.trim() && this.resend(field.value);
    field.addEventListener("input", () => fitHeight(field));
    field.addEventListener("keydown", (event) => {
      if (isSend(event)) send();
      else if (event.key === "Escape") back();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.root.replaceChildren(
      element("div", { className: "editor" }, field,
        element("div", { className: "buttons" },
          element("button", { type: "button", onclick: back }, "Cancel"),
          element("button", { type: "button", className: "main", onclick: send }, "Send"))),
    );
    fitHeight(field);
    field.focus();
  }
}

/** An answer: thinking, text, calls of tools, what went wrong, and what it took. */
export class AnswerView {
  /**
   * @param {object} message
   * @param {{again: () => void, answer: () => void}} actions ask again; go on with tools' results
   */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.thoughts = element("div", { className: "thoughts" });
    this.summary = element("span");
    this.thinking = element("details", { className: "thinking" },
      element("summary", {}, icon("chevron"), this.summary), this.thoughts);
    this.text = element("div", { className: "text" });
    this.tokens = element("div", { className: "tokens" });
    this.calls = element("div", { className: "calls" });
    this.foot = element("div", { className: "foot" });
    this.markdown = new MarkdownView(this.text);
    this.tokenView = new TokenView(this.tokens);
    this.open = false; // whether results of tools are being typed
    this.root = element("article", { className: "answer", "aria-label": "Answer" },
      this.thinking, this.text, this.tokens, this.calls, this.foot);
  }

  /**
   * Shows the message as it is now.
   * @param {{last: boolean, running: boolean, byToken: boolean}} how
   */
  update({ last, running, byToken }) {
    const { message } = this;
    this.root.setAttribute("aria-busy", running);
    const begun = message.reasoning || message.content || message.calls.length > 0;
    this.root.classList.toggle("waiting", running && !begun);
    this.#updateThinking(running);
    const tokens = byToken && message.tokens.length > 0;
    this.text.hidden = tokens || !message.content;
    this.tokens.hidden = !tokens;
    if (tokens) this.tokenView.update(message.tokens);
    else this.markdown.update(message.content);
    const open = last && !running && message.calls.some((call) => call.result === undefined);
    if (!open || !this.open) this.#showCalls(open); // else a result may be half typed
    this.open = open;
    this.foot.replaceChildren(...(running ? [] : this.#ending(tokens)));
  }

  #updateThinking(running) {
    const { reasoning, thinkingSeconds, content, calls } = this.message;
    this.thinking.hidden = !reasoning;
    if (!reasoning) return;
    const now = running && !content && !calls.length;
    this.thinking.classList.toggle("now", now);
    const time = thinkingSeconds < 1 ? "a moment" : seconds(thinkingSeconds);
    this.summary.textContent = now
      ? `Thinking · ${Math.floor(thinkingSeconds)} s` : `Thought for ${time}`;
    // Appended to, so that a selection in it survives.
    const known = this.thoughts.firstChild?.length ?? 0;
    if (!known) this.thoughts.textContent = reasoning;
    else if (reasoning.length > known) this.thoughts.firstChild.appendData(reasoning.slice(known));
  }

  #showCalls(open) {
    const { calls } = this.message;
    const fields = [];
    const send = () => {
      for (const { call, field } of fields) call.result = field.value;
      this.actions.answer();
    };
    const cards = calls.map((call) => {
      const card = element("section", { className: "call", "aria-label": `Call of ${call.name}` },
        element("h3", {}, icon("tool"), element("span", {}, call.name)),
        element("pre", { tabIndex: 0 }, element("code", {}, pretty(call.arguments))));
      if (call.result !== undefined) {
        card.append(element("h4", {}, "Result"), element("pre", {}, call.result));
      } else if (open) {
        const field = element("textarea", { rows: 1, placeholder: "What the tool answers",
          "aria-label": `Result of ${call.name}` });
        field.addEventListener("input", () => fitHeight(field));
        field.addEventListener("keydown", (event) => {
          if (!isSend(event)) return;
          event.preventDefault();
          const next = fields[fields.findIndex((each) => each.field === field) + 1];
          if (next) next.field.focus();
          else send();
        });
        fields.push({ call, field });
        card.append(field);
      }
      return card;
    });
    this.calls.replaceChildren(...cards);
    if (fields.length) {
      const words = fields.length > 1 ? "Send results" : "Send result";
      const button = element("button", { type: "button", className: "main", onclick: send }, words);
      this.calls.append(element("div", { className: "buttons" }, button));
    }
  }

  #ending(byToken) {
    const { message, actions } = this;
    const copy = iconButton("copy", "Copy", () => copyText(message.content, copy));
    const again = iconButton("again", "Answer again", actions.again);
    const stats = statistics(message);
    const cut = message.finish === "length" ? "Ended at the limit of tokens." : "";
    const note = message.stopped ? "Stopped." : cut;
    const broke = message.content ? "The answer broke off: " : "";
    return [
      message.error ? problem(broke + message.error, actions.again) : null,
      note ? element("p", { className: "note" }, note) : null,
      byToken ? legend() : null,
      element("div", { className: "actions" }, message.content ? copy : null, again,
        element("span", { className: "stats", title: stats.long }, stats.short)),
    ].filter(Boolean);
  }
}

/** Something that went wrong, and a button to try it again. */
export function problem(text, again) {
  return element("div", { className: "problem", role: "alert" }, element("p", {}, text),
    element("button", { type: "button", onclick: again }, "Try again"));
}

function legend() {
  const steps = [0, 1, 2, 3, 4].map((i) => element("i", { className: `token p${i}` }));
  return element("p", { className: "legend" }, "likely", ...steps, "unlikely");
}

function statistics({ usage, firstSeconds, lastSeconds }) {
  if (!usage) return { short: "", long: "" };
  const written = usage.completion_tokens;
  const thought = usage.completion_tokens_details?.reasoning_tokens ?? 0;
  const took = lastSeconds - firstSeconds;
  const speed = written > 1 && took > 0 ? `${round((written - 1) / took)} tokens/s` : "";
  const long = [
    `${usage.prompt_tokens} tokens read, ${written} written, ${thought} of them thinking`,
    speed && `${speed} after the first`,
    `the first token after ${seconds(firstSeconds)}`,
  ];
  const short = [`${written.toLocaleString("en")} tokens`, speed,
    `first after ${seconds(firstSeconds)}`];
  return { short: short.filter(Boolean).join(" · "), long: long.filter(Boolean).join("\n") };
}

function seconds(value) {
  return `${round(value)} s`;
}

function round(value) {
  return value < 100 ? value.toFixed(value < 0.1 ? 2 : 1) : Math.round(value).toLocaleString("en");
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // not finished, or not JSON: as the model wrote it
  }
}
