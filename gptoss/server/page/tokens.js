/** An answer as the tokens it is made of, coloured by how likely each one was. */
import { element } from "./dom.js";

// From here on down the colours grow stronger; style.css has one for each.
const LIMITS = [0.9, 0.6, 0.3, 0.1];

/**
 * Tokens are pieces of UTF-8, and several may make one character: those that belong together, with
 * the text that they are.
 * @param {{bytes: number[]}[]} entries of `logprobs.content`
 * @returns {{text: string, entries: object[]}[]} the last one may be incomplete
 */
export function group(entries) {
  const groups = [];
  let bytes = [];
  let waiting = [];
  for (const entry of entries) {
    bytes.push(...entry.bytes);
    waiting.push(entry);
    if (missing(bytes)) continue;
    groups.push({ text: decode(bytes), entries: waiting });
    bytes = [];
    waiting = [];
  }
  if (waiting.length) groups.push({ text: decode(bytes), entries: waiting });
  return groups;
}

/** Whether the last character lacks bytes. */
function missing(bytes) {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes.at(-back);
    if (byte < 0x80) return false;
    if (byte >= 0xc0) return back < (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2);
  }
  return false;
}

function decode(bytes) {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes));
}

/** Tokens in an element that is filled as they come, with a tooltip for the one pointed at. */
export class TokenView {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.groups = [];
    this.done = 0; // groups that are shown and complete, and the entries in them
    this.doneEntries = 0;
    root.tabIndex = 0;
    root.setAttribute("aria-label", "Answer by token. Arrow keys go through the tokens.");
    root.addEventListener("pointerover", (event) => this.#show(event.target.closest(".token")));
    root.addEventListener("pointerleave", () => this.#show(null));
    root.addEventListener("blur", () => this.#show(null));
    root.addEventListener("keydown", (event) => {
      const step = { ArrowRight: "nextSibling", ArrowLeft: "previousSibling" }[event.key];
      if (!step) return;
      this.#show(this.shown ? (this.shown[step] ?? this.shown) : root.firstChild);
      event.preventDefault();
    });
  }

  /** @param {object[]} entries all of them */
  update(entries) {
    const groups = group(entries.slice(this.doneEntries));
    while (this.root.childNodes.length > this.done) this.root.lastChild.remove();
    this.groups.length = this.done;
    for (const each of groups) {
      const logprob = each.entries.reduce((sum, entry) => sum + entry.logprob, 0);
      const level = LIMITS.filter((limit) => Math.exp(logprob) < limit).length;
      this.root.append(element("span", { className: `token p${level}` }, each.text));
      this.groups.push(each);
    }
    if (this.shown && !this.shown.isConnected) this.#show(null);
    const complete = groups.slice(0, -1);
    this.done += complete.length;
    this.doneEntries += complete.reduce((sum, each) => sum + each.entries.length, 0);
  }

  #show(token) {
    document.getElementById("tooltip")?.remove();
    this.shown?.classList.remove("shown");
    this.shown = token;
    if (!token) return;
    token.classList.add("shown");
    const { entries } = this.groups[[...this.root.childNodes].indexOf(token)];
    const tip = element("div", { id: "tooltip", role: "tooltip" }, ...entries.map(alternatives));
    document.body.append(tip);
    const box = token.getClientRects()[0];
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, below ? box.bottom + 6 : box.top - tip.offsetHeight - 6)}px`;
  }
}

/** What could have stood there, most likely first, the chosen token among it. */
function alternatives(entry) {
  const same = (other) => String(other.bytes) === String(entry.bytes);
  const top = entry.top_logprobs ?? [];
  const all = top.some(same) ? top : [...top, entry];
  return element("table", {}, element("tbody", {}, ...all.map((each) => {
    const share = Math.exp(each.logprob);
    const bar = element("i", { className: "bar-share" });
    bar.style.width = `${share * 4}rem`;
    return element("tr", { className: same(each) ? "chosen" : "" },
      element("th", {}, visible(each.bytes)),
      element("td", {}, share < 0.0005 ? "<0.1%" : `${(share * 100).toFixed(1)}%`),
      element("td", {}, bar));
  })));
}

/** Bytes as something that can be seen: spaces and line ends too, and parts of characters. */
function visible(bytes) {
  const text = decode(bytes);
  const hex = () => bytes.map((byte) => byte.toString(16).toUpperCase()).join(" ");
  if (text.includes("\ufffd")) return hex();
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "(nothing)";
}
