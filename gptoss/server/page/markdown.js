/**
 * Markdown as models write it, made into DOM nodes. Only createElement and text nodes are used, and
 * only the elements named here: whatever the text says, it cannot become anything else. HTML in it
 * is text, images are links, links lead to http, https or mail. Every step is linear in the
 * length of the text, or nearly so, and nesting is bounded.
 */
import { copyText, element } from "./dom.js";

// Bounds on what a hostile text can make of the page: levels of blocks, columns of a table, and
// runs of * _ ~ in a paragraph that wait for their end.
const DEPTH = 16;
const COLUMNS = 64;
const OPENERS = 256;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const QUOTE = /^ {0,3}>/;
// A number with nothing after it is an answer (“4.”) rather than a list.
const ITEM = /^( *)([-*+]|\d{1,9}[.)](?= +\S))( +(?=\S)|[ \t]*$)/;
const TABLE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** A text that grows, in an element: blocks that stay as they were are not made again. */
export class MarkdownView {
  sources = [];

  /** @param {Element} root is filled */
  constructor(root) {
    this.root = root;
  }

  /** @param {string} text all of it */
  update(text) {
    const blocks = split(text.split(/\r\n|\n|\r/), 0);
    let same = 0;
    while (same < blocks.length && this.sources[same] === blocks[same].source) same++;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    for (const block of blocks.slice(same)) this.root.append(block.build());
    this.sources = blocks.map((block) => block.source);
  }
}

function fragment(lines, depth) {
  const made = document.createDocumentFragment();
  for (const block of split(lines, depth)) made.append(block.build());
  return made;
}

/** The blocks of some lines: {source, build}, where build makes the node. */
function split(lines, depth) {
  const blocks = [];
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i++;
      continue;
    }
    const kind = depth < DEPTH ? kinds.find((each) => each.starts(lines, i)) : paragraph;
    const end = kind.end(lines, i);
    const own = lines.slice(i, end);
    // The kind is part of it: a paragraph with one more line may be a table.
    blocks.push({ source: kind.name + own.join("\n"), build: () => kind.build(own, depth) });
    i = end;
  }
  return blocks;
}

const code = {
  name: "code",
  starts: (lines, i) => FENCE.test(lines[i]),
  end(lines, i) {
    const fence = FENCE.exec(lines[i])[1];
    for (let j = i + 1; j < lines.length; j++) if (closes(lines[j], fence)) return j + 1;
    return lines.length; // still being written, or never ended
  },
  build(lines) {
    const [, fence, info] = FENCE.exec(lines[0]);
    const indent = lines[0].search(/\S/);
    const ended = lines.length > 1 && closes(lines.at(-1), fence);
    const inner = lines.slice(1, ended ? -1 : undefined);
    const text = inner.map((line) => outdent(line, indent)).join("\n");
    const language = info.trim().split(/\s/)[0];
    const copy = element("button", { type: "button", className: "copy" }, "Copy");
    copy.addEventListener("click", () => copyText(text, copy));
    const head = element("div", { className: "code-head" }, element("span", {}, language), copy);
    return element("div", { className: "code" }, head,
      element("pre", { tabIndex: 0 }, element("code", {}, text)));
  },
};

const oneLine = (lines, i) => i + 1;

const heading = {
  name: "heading",
  starts: (lines, i) => HEADING.test(lines[i]),
  end: oneLine,
  build([line]) {
    const [, marks, text = ""] = HEADING.exec(line);
    const bare = text.trim().replace(/(^|[ \t])#+$/, "");
    return element(`h${marks.length}`, {}, inline(bare.trim()));
  },
};

const rule = {
  name: "rule",
  starts: (lines, i) => RULE.test(lines[i]),
  end: oneLine,
  build: () => element("hr"),
};

const quote = {
  name: "quote",
  starts: (lines, i) => QUOTE.test(lines[i]),
  end(lines, i) {
    let j = i + 1;
    while (j < lines.length && (QUOTE.test(lines[j]) || goesOn(lines, j))) j++;
    return j;
  },
  build: (lines, depth) =>
    element("blockquote", {}, fragment(lines.map((l) => l.replace(/^ {0,3}> ?/, "")), depth + 1)),
};

const list = {
  name: "list",
  starts: (lines, i) => ITEM.test(lines[i]),
  end(lines, i) {
    return this.items(lines, i).end;
  },
  /** Where the items begin and the list ends. Models indent less than they should: two do. */
  items(lines, i) {
    const [, { length: base }, marker] = ITEM.exec(lines[i]);
    const kind = marker.at(-1);
    const starts = [i];
    let fence = begun(lines[i]);
    let j = i + 1;
    for (; j < lines.length; j++) {
      const line = lines[j];
      if (!line.trim()) continue;
      const inside = line.search(/\S/) >= base + 2;
      const afterBlank = !lines[j - 1].trim();
      const item = ITEM.exec(line);
      if (fence) {
        if (closes(line, fence)) fence = null;
        else if (!inside && afterBlank) break;
      } else if (inside) {
        fence = begun(line);
      } else if (item && !RULE.test(line)) {
        if (item[2].at(-1) !== kind) break;
        starts.push(j);
        fence = begun(line);
      } else if (afterBlank || !goesOn(lines, j)) {
        break;
      }
    }
    return { starts, end: j };
  },
  build(lines, depth) {
    const { starts } = this.items(lines, 0);
    const first = ITEM.exec(lines[0])[2];
    const ordered = first.length > 1;
    const made = element(ordered ? "ol" : "ul");
    if (ordered) made.start = Number.parseInt(first, 10);
    const loose = starts.slice(1).some((start) => !lines[start - 1].trim());
    starts.forEach((start, n) => {
      const own = lines.slice(start, starts[n + 1]);
      const [all, indent, marker, gap] = ITEM.exec(own[0]);
      const width = gap.length > 4 || !gap ? indent.length + marker.length + 1 : all.length;
      const inner = own.map((line, k) => (k ? outdent(line, width) : line.slice(width)));
      const item = element("li", {}, fragment(inner, depth + 1));
      const texts = item.querySelectorAll(":scope > p");
      if (!loose && texts.length === 1) texts[0].replaceWith(...texts[0].childNodes);
      made.append(item);
    });
    return made;
  },
};

const table = {
  name: "table",
  starts: (lines, i) =>
    lines[i].includes("|") && i + 1 < lines.length && TABLE.test(lines[i + 1]) &&
    cells(lines[i]).length === cells(lines[i + 1]).length && cells(lines[i]).length <= COLUMNS,
  end(lines, i) {
    let j = i + 2;
    while (j < lines.length && lines[j].includes("|") && !QUOTE.test(lines[j])) j++;
    return j;
  },
  build([head, marks, ...rows]) {
    const sides = cells(marks).map((mark) =>
      mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : "");
    const row = (line, kind) => {
      const texts = cells(line);
      return element("tr", {}, ...sides.map((className, i) =>
        element(kind, { className }, inline(texts[i] ?? ""))));
    };
    return element("div", { className: "table", tabIndex: 0 },
      element("table", {},
        element("thead", {}, row(head, "th")),
        element("tbody", {}, ...rows.map((line) => row(line, "td")))));
  },
};

const paragraph = {
  name: "paragraph",
  starts: () => true,
  end(lines, i) {
    let j = i + 1;
    while (j < lines.length && goesOn(lines, j)) j++;
    return j;
  },
  build: (lines) => element("p", {}, inline(lines.map((line) => line.trim()).join("\n"))),
};

const kinds = [code, heading, rule, quote, list, table, paragraph];

/** Whether a line carries on the paragraph before it. */
function goesOn(lines, i) {
  return lines[i].trim() !== "" && kinds.find((kind) => kind.starts(lines, i)) === paragraph;
}

/** The fence that a list's line begins, perhaps after markers. */
function begun(line) {
  return FENCE.exec(line.replace(/^[ ]*(?:[-*+]|\d{1,9}[.)])? */, ""))?.[1] ?? null;
}

function closes(line, fence) {
  const mark = line.trim();
  return mark.length >= fence.length && mark === fence[0].repeat(mark.length);
}

function outdent(line, width) {
  const indent = line.search(/\S|$/);
  return line.slice(Math.min(indent, width));
}

function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

const PLAIN = /[^\\`*_~[\]!<&$h\n]+/y;
const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const MATH = /\\\(.{1,2000}?\\\)|\\\[[^]{1,2000}?\\\]|\$\$[^]{1,2000}?\$\$/y;
// (address), (<address>) or (address "title"); an address may hold pairs of parentheses.
const TARGET = new RegExp(
  String.raw`\(\s*(?:<([^<>\n]{1,2000})>|((?:[^\s()\\]|\\.|\([^\s()]*\)){1,2000}))` +
    String.raw`(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)`, "y");
const BARE = /https?:\/\/[^\s<>"`|\]]{1,2000}/y;
const BREAK = /<br\s?\/?>/iy;
const ENTITY = /&(amp|lt|gt|quot|nbsp|#39);/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', nbsp: "\u00a0", "#39": "'" };
const WORD = /[\p{L}\p{N}]/u;

/** Text with emphasis, code, links and line breaks. */
function inline(text) {
  const made = document.createDocumentFragment();
  const openers = []; // runs of * _ ~ that may begin emphasis: {node, char, count}
  let brackets = []; // "[" that may begin a link: {node, openers}
  let at = 0;
  const take = (pattern) => {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (match) at = pattern.lastIndex;
    return match;
  };
  const say = (words) => made.append(words);
  while (at < text.length) {
    const char = text[at];
    let match = take(PLAIN);
    if (match) say(match[0]);
    else if (char === "\n" || (char === "<" && take(BREAK))) {
      if (char === "\n") at++;
      say(element("br"));
    } else if (char === "\\" || char === "$") {
      if ((match = take(MATH))) say(element("code", { className: "math" }, match[0]));
      else if ((match = take(ESCAPE))) say(match[1]);
      else if (text[at + 1] === "\n") at++; // the line break itself follows
      else say(text[at++]);
    } else if (char === "`") {
      const ticks = /`+/.exec(text.slice(at, at + 100))[0];
      const end = endOfCode(text, at + ticks.length, ticks.length);
      const inner = text.slice(at + ticks.length, end).replaceAll("\n", " ");
      say(end < 0 ? ticks : element("code", {}, inner.replace(/^ (.*\S.*) $/, "$1")));
      at = end < 0 ? at + ticks.length : end + ticks.length;
    } else if ("*_~".includes(char)) {
      let end = at;
      while (text[end] === char) end++;
      emphasise(made, openers, run(text, at, end));
      at = end;
    } else if (char === "[" || (char === "!" && text[at + 1] === "[")) {
      const node = document.createTextNode(char === "!" ? "![" : "[");
      at += node.length;
      brackets.push({ node, openers: openers.length });
      say(node);
    } else if (char === "]") {
      at++;
      const bracket = brackets.pop();
      const from = at;
      match = bracket && take(TARGET);
      const target = match && safe((match[1] ?? match[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
      if (target) {
        openers.length = Math.min(openers.length, bracket.openers);
        const link = anchor(target);
        while (bracket.node.nextSibling) link.append(bracket.node.nextSibling);
        for (const inner of link.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
        bracket.node.replaceWith(link);
        brackets = []; // links do not hold links
      } else {
        at = from;
        say("]");
      }
    } else if (char === "h" && !WORD.test(text[at - 1] ?? "") && (match = take(BARE))) {
      const url = withoutTail(match[0]);
      at -= match[0].length - url.length;
      const target = safe(url);
      say(target ? anchor(target, url) : url);
    } else if (char === "&" && (match = take(ENTITY))) say(ENTITIES[match[1]]);
    else say(text[at++]);
  }
  made.normalize();
  return made;
}

/** A run of * _ ~ and what it may do, by CommonMark's rule of what stands on its two sides. */
function run(text, at, end) {
  const space = (c) => c === undefined || /\s/.test(c);
  const mark = (c) => c !== undefined && /[\p{P}\p{S}]/u.test(c);
  const [before, after] = [text[at - 1], text[end]];
  const left = !space(after) && (!mark(after) || space(before) || mark(before));
  const right = !space(before) && (!mark(before) || space(after) || mark(after));
  const within = text[at] === "_"; // snake_case is not emphasis
  return {
    char: text[at],
    count: end - at,
    opens: left && (!within || !right || mark(before)),
    closes: right && (!within || !left || mark(after)),
  };
}

function emphasise(made, openers, { char, count, opens, closes }) {
  const single = char === "~" ? 2 : 1;
  while (closes && count >= single) {
    const found = openers.findLastIndex((each) => each.char === char && each.count >= single);
    if (found < 0) break;
    const opener = openers[found];
    openers.length = found + 1; // what was opened within and not closed is text
    const used = Math.min(2, count, opener.count) === 2 ? 2 : single;
    const inner = element(char === "~" ? "del" : used === 2 ? "strong" : "em");
    while (opener.node.nextSibling) inner.append(opener.node.nextSibling);
    made.append(inner);
    count -= used;
    opener.count -= used;
    opener.node.data = char.repeat(opener.count);
    if (!opener.count) {
      opener.node.remove();
      openers.pop();
    }
  }
  if (!count) return;
  const node = document.createTextNode(char.repeat(count));
  made.append(node);
  if (opens && openers.length < OPENERS) openers.push({ node, char, count });
}

function endOfCode(text, from, length) {
  for (const match of text.slice(from).matchAll(/`+/g))
    if (match[0].length === length) return from + match.index;
  return -1;
}

/** A URL without the punctuation of the sentence around it. */
function withoutTail(url) {
  let bare = url.replace(/[.,;:!?'*_~\]]+$/, "");
  while (bare.endsWith(")") && bare.split(")").length > bare.split("(").length)
    bare = bare.slice(0, -1).replace(/[.,;:!?'*_~\]]+$/, "");
  return bare;
}

/** The address if it may be linked to, else null: no scripts, no data, nothing of this server. */
function safe(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function anchor(href, ...words) {
  const rel = "noopener noreferrer nofollow";
  return element("a", { href, rel, target: "_blank" }, ...words);
}
