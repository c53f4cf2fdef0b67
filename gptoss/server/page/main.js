/** The page: a conversation, what is asked for it, and what the keys and buttons do. */
import { ApiError, fetchModel, streamChat } from "./api.js";
import { element, fitHeight, isSend } from "./dom.js";
import { AnswerView, problem, UserView } from "./message.js";
import { Settings } from "./settings.js";
import { keep, recall } from "./store.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const scroller = $("scroller");
const input = $("input");
const settings = new Settings($("settings-form"), showProbabilities);

// {role, content}, and of answers: reasoning, tokens, usage …,
// and calls: [{id, name, arguments, result}]
const messages = [];
const views = [];
let previous = [];
let model = null;
let key = recall("sessionStorage", "key") ?? "";
let sendWhenReady = false; // sent before the model was known: goes as soon as it is
let running = null; // the AbortController of the answer being written
let frame = 0;
let following = true; // the newest line stays in view, until the user scrolls up

// ---- The conversation

function add(message) {
  messages.push(message);
  const before = views.at(-1);
  const view = message.role === "user"
    ? new UserView(message, (text) => send(text, message))
    : new AnswerView(message, { again: () => regenerate(message), answer: () => ask() });
  views.push(view);
  log.append(view.root);
  // One that is no longer the last takes no results of tools any more.
  for (const each of [before, view]) if (each instanceof AnswerView) show(each);
  $("intro").hidden = true;
  return view;
}

/** Takes away the messages from this one on, and returns them. */
function cutFrom(message) {
  const index = messages.indexOf(message);
  $("tooltip")?.remove();
  for (const view of views.splice(index)) view.root.remove();
  return messages.splice(index);
}

/** Sends a text, in place of an earlier message and all after it if one is given. */
function send(text, instead = null) {
  if (running || !model?.format || !text.trim()) return false;
  if (instead) cutFrom(instead);
  add({ role: "user", content: text });
  ask();
  return true;
}

function sendInput() {
  sendWhenReady = !model && input.value.trim() !== "";
  if (send(input.value)) input.value = "";
  fitHeight(input);
}

function regenerate(message) {
  if (!running && model) ask(cutFrom(message));
}

function newChat() {
  running?.abort();
  running = null;
  if (messages.length) previous = cutFrom(messages[0]);
  $("intro").hidden = false;
  $("back").hidden = !previous.length;
  setBusy(false);
  save();
  input.focus();
}

/** The conversation that the last new chat took away, for those who did not mean it. */
function goBack() {
  for (const message of previous) add(message);
  previous = [];
  follow(true);
  save();
  input.focus();
}

function save() {
  const all = messages.length ? messages : null;
  if (keep("sessionStorage", "conversation", all)) return;
  // A few megabytes are all there is; probabilities are most of a long conversation.
  keep("sessionStorage", "conversation", all?.map((message) => ({ ...message, tokens: [] })));
}

/** The messages as the API takes them. */
function conversation() {
  const system = model?.format === "harmony" ? settings.system.trim() : "";
  const sent = system ? [{ role: "system", content: system }] : [];
  for (const { role, content, reasoning, calls = [] } of messages) {
    if (role === "assistant" && !content && !reasoning && !calls.length) continue;
    const message = { role, content };
    if (reasoning) message.reasoning_content = reasoning;
    if (calls.length)
      message.tool_calls = calls.map(({ id, name, arguments: written }) =>
        ({ id, type: "function", function: { name, arguments: written } }));
    const answered = calls.filter((call) => call.result !== undefined);
    sent.push(message, ...answered.map(({ id, result }) =>
      ({ role: "tool", tool_call_id: id, content: result })));
  }
  return sent;
}

// ---- Asking

/**
 * Asks for an answer to what is there.
 * @param {object[]} [before] messages that it takes the place of; put back if nothing comes
 */
async function ask(before = []) {
  let body;
  const sent = conversation();
  const message = { role: "assistant", content: "", reasoning: "", calls: [], tokens: [] };
  const control = (running = new AbortController());
  const view = add(message);
  try {
    body = { model: model.id, messages: sent, ...settings.request(model.format === "harmony") };
    setBusy(true);
    say("An answer is being written.");
    follow(true);
    await withKey(async () => {
      const start = performance.now();
      for await (const chunk of streamChat(body, key, control.signal)) {
        receive(message, chunk, (performance.now() - start) / 1000);
        schedule(view);
      }
    });
  } catch (error) {
    if (control.signal.aborted) message.stopped = true;
    else message.error = error.message;
  }
  if (running === control) running = null;
  if (!messages.includes(message)) return; // a new chat was begun meanwhile
  const nothing = !message.content && !message.reasoning && !message.calls.length;
  if (nothing && before.length && (message.error || message.stopped)) {
    cutFrom(message);
    for (const old of before) add(old);
    before[0].error = message.error;
    show(views.at(-before.length));
  } else {
    show(view);
  }
  setBusy(false);
  follow();
  save();
  say(message.error ? "" : message.stopped ? "Stopped." : "The answer is complete.");
  // On to what is typed next, unless the user is elsewhere.
  const field = view.root.querySelector(".calls textarea") ?? input;
  if ([document.body, input].includes(document.activeElement)) field.focus({ preventScroll: true });
}

function receive(message, { choices: [choice], usage }, now) {
  message.firstSeconds ??= now;
  if (usage) message.usage = usage;
  if (!choice) return;
  message.lastSeconds = now;
  const { content, reasoning_content, tool_calls = [] } = choice.delta;
  if (reasoning_content) {
    message.reasoning += reasoning_content;
    message.thinkingSeconds = now - message.firstSeconds;
  }
  if (content) message.content += content;
  for (const piece of tool_calls) {
    const call = (message.calls[piece.index] ??= { id: "", name: "", arguments: "" });
    call.id ||= piece.id;
    call.name ||= piece.function.name;
    call.arguments += piece.function.arguments;
  }
  if (choice.logprobs) message.tokens.push(...choice.logprobs.content);
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

/** Does something that may need the API key, and asks for the key as long as it is refused. */
async function withKey(work) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      const given = await askKey(key !== "");
      if (given === null) throw error;
      key = given;
      keep("sessionStorage", "key", key);
    }
  }
}

function askKey(refused) {
  const dialog = $("key-dialog");
  $("key-refused").hidden = !refused;
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const value = $("key").value.trim();
      resolve(dialog.returnValue === "given" && value ? value : null);
    }, { once: true });
    if (!dialog.open) dialog.showModal();
  });
}

async function findModel() {
  const notice = $("notice");
  try {
    model = await withKey(() => fetchModel(key));
  } catch (error) {
    notice.replaceChildren(problem(error.message, findModel));
    return;
  }
  const taught = model.format === "harmony";
  const hint = element("p", { className: "hint", hidden: taught });
  if (!model.format)
    hint.append(`${model.id} cannot chat here: what its conversations look like is not known.`);
  else
    hint.append(element("strong", {}, `${model.id} was not taught conversations. `),
      "It goes on with the text that it is given, and does not answer questions. Begin something ",
      "that it can continue, such as “Once upon a time”.");
  notice.replaceChildren(hint);
  document.title = `${model.id} · gptoss`;
  $("model").textContent = model.id;
  $("context").textContent = `${model.context_length.toLocaleString("en")} tokens of context`;
  $("taught").disabled = !taught;
  $("intro-title").textContent = taught ? "What is on your mind?" : "How does it begin?";
  input.placeholder = taught ? `Message ${model.id}` : `Text for ${model.id} to go on with`;
  setBusy(false);
  if (sendWhenReady) sendInput();
}

// ---- What is seen

function show(view) {
  const last = view === views.at(-1);
  view.update({ last, running: last && running !== null, byToken: settings.probabilities });
}

/** At most one redrawing a frame, and of one message, however fast tokens come. */
function schedule(view) {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (view !== views.at(-1)) return;
    show(view);
    follow();
  });
}

function showProbabilities() {
  for (const view of views) if (view instanceof AnswerView) show(view);
  $("probabilities").setAttribute("aria-pressed", settings.probabilities);
}

function follow(begin = following) {
  following = begin;
  if (following) scroller.scrollTop = scroller.scrollHeight;
}

function noteScroll() {
  following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  $("newest").hidden = following;
  $("tooltip")?.remove();
}

function setBusy(busy) {
  document.body.classList.toggle("busy", busy);
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("send").disabled = !model?.format || !input.value.trim();
}

function say(words) {
  $("live").textContent = words;
}

function exportConversation() {
  const exported = new Date().toISOString();
  const [values, said] = [settings.values(), conversation()];
  const data = { model: model?.id, exported, settings: values, messages: said };
  const file = new Blob([JSON.stringify(data, null, 2)], { type: "application/json" });
  const href = URL.createObjectURL(file);
  element("a", { href, download: "conversation.json" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

function changeTheme() {
  const chosen = document.documentElement.dataset;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  chosen.theme = (chosen.theme ?? system) === "dark" ? "light" : "dark";
  keep("localStorage", "theme", chosen.theme); // theme.js reads it
}

// ---- Buttons and keys

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  sendInput();
});
input.addEventListener("input", () => {
  fitHeight(input);
  setBusy(running !== null);
});
input.addEventListener("keydown", (event) => {
  if (!isSend(event)) return;
  event.preventDefault();
  sendInput();
});
const clicks = {
  stop: () => running?.abort(),
  new: newChat,
  back: goBack,
  export: exportConversation,
  theme: changeTheme,
  settings: () => $("settings-dialog").showModal(),
  probabilities: () => (settings.probabilities = !settings.probabilities),
  newest: () => follow(true),
};
for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key-dialog").close("given");
});
for (const dialog of document.querySelectorAll("dialog")) {
  // Outside of its form is outside of it. Not "click": a selection may well end there.
  dialog.addEventListener("pointerdown", (event) => event.target === dialog && dialog.close(""));
  for (const button of dialog.querySelectorAll("[data-close]"))
    button.addEventListener("click", () => dialog.close(""));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) running.abort();
  const chord = (event.ctrlKey || event.metaKey) && event.shiftKey;
  if (chord && event.key.toLowerCase() === "o") {
    event.preventDefault();
    newChat();
  }
});
scroller.addEventListener("scroll", noteScroll, { passive: true });
// Opening the thinking makes the page longer: what the user reads must not scroll away.
log.addEventListener("toggle", noteScroll, { capture: true });
addEventListener("pagehide", save);

for (const message of recall("sessionStorage", "conversation") ?? []) add(message);
showProbabilities();
follow(true);
input.focus();
findModel();
