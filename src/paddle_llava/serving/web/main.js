// The page: what a person does, and what happens then.
import { Conversation } from "./conversation.js";
import { MOST, picturesIn, readPicture } from "./pictures.js";
import * as server from "./server.js";
import { openSettings, settings, startSettings } from "./settings.js";
import * as view from "./view.js";
import { label, language, speak, word } from "./words.js";

const $ = (id) => document.getElementById(id);
const conversation = Conversation.restored();
const list = $("messages");
const field = $("question");
let waiting = []; // pictures for the next question
let samples = [];
let answering = null; // what stops the answer that is coming
let isAtEnd = true;

// --- showing ---------------------------------------------------------------------------------------

function render() {
  const { exchanges } = conversation;
  const caret = list.querySelector(".editing textarea:focus")?.selectionEnd;
  const items = exchanges.flatMap((exchange, number) => [
    view.question(exchange, {
      edit: (text) => put(conversation.again(number, text)),
      large: showLarge,
      drop: conversation.isWithoutAnswer(exchange) ? (picture) => drop(exchange, picture) : null,
    }),
    view.answer(exchange, conversation.pictureOf(number), number === exchanges.length - 1, {
      retry: () => put(conversation.again(number)),
      large: showLarge,
    }),
  ]);
  list.replaceChildren(...items);
  $("welcome").hidden = exchanges.length > 0;
  $("pick-large").hidden = waiting.length > 0;
  $("preview").replaceChildren(...(exchanges.length ? [] : waiting.map((picture) => view.figure(picture, [], showLarge))));
  $("new-chat").hidden = exchanges.length === 0;
  renderComposer();
  toEnd();
  if (document.activeElement === document.body) focusAgain(caret);
}

/** What had the focus may be gone: to the question that is being changed, if there is one. */
function focusAgain(caret) {
  const edited = list.querySelector(".editing textarea");
  if (!edited) return focus();
  edited.focus();
  if (caret !== undefined) edited.setSelectionRange(caret, caret);
}

function renderComposer() {
  $("attached").replaceChildren(
    ...waiting.map((picture) =>
      view.element("div", {}, view.figure(picture, [], showLarge), view.button("close", word("removePicture"), () => remove(picture))),
    ),
  );
  const hasPicture = waiting.length > 0 || conversation.pictureOf(conversation.exchanges.length) !== undefined;
  field.placeholder = word(hasPicture ? "questionAbout" : "question");
  $("find-tool").hidden = !hasPicture;
  $("send-button").hidden = answering !== null;
  $("send-button").disabled = !field.value.trim() && waiting.length === 0;
  $("stop-button").hidden = answering === null;
  $("suggestions").replaceChildren(
    ...suggestions().map((text) => view.element("button", { type: "button", click: () => ask(text) }, text)),
  );
}

/** Questions to click on: those of a sample picture, or a few that fit any, without those that were asked. */
function suggestions() {
  const picture = waiting.at(-1) ?? conversation.pictureOf(conversation.exchanges.length);
  if (!picture || answering) return [];
  const own = samples.find((sample) => sample.name === picture.sample)?.questions[language];
  if (!own && conversation.exchanges.length) return [];
  const asked = new Set(conversation.exchanges.map((exchange) => exchange.text));
  return (own ?? word("ask")).filter((text) => !asked.has(text)).slice(0, 3);
}

/** The part of the last answer that came, without building the rest anew. */
function renderPiece(text) {
  list.lastElementChild?.querySelector(".cursor")?.before(text);
  toEnd();
}

function toEnd(smoothly = false) {
  if (conversation.last && isAtEnd) $("scroll").scrollTo({ top: $("scroll").scrollHeight, behavior: smoothly ? "smooth" : "instant" });
}

function showLarge(picture, boxes) {
  $("large-picture").replaceChildren(view.figure(picture, boxes));
  $("large").showModal();
}

let noticeTimer;
function notice(text) {
  clearTimeout(noticeTimer);
  $("notice").textContent = text;
  $("notice").hidden = false;
  noticeTimer = setTimeout(() => ($("notice").hidden = true), 6000);
}

// --- asking ----------------------------------------------------------------------------------------

function ask(text) {
  const pictures = waiting;
  waiting = [];
  field.value = "";
  grow();
  isAtEnd = true;
  focus();
  return put(conversation.ask(text, pictures));
}

/** Have the last exchange answered. */
async function put(exchange) {
  answering?.abort();
  const mine = (answering = new AbortController());
  $("status").textContent = word("answering");
  conversation.keep();
  render();
  const start = performance.now();
  let first = null;
  try {
    const body = { messages: conversation.messages(settings.systemText), ...settings.sampling };
    for await (const piece of server.answer(body, { key: settings.key, signal: mine.signal })) {
      if (piece.text) {
        first ??= performance.now();
        exchange.answer += piece.text;
        renderPiece(piece.text);
      } else {
        exchange.reason = piece.reason ?? "stop";
        exchange.boxes = piece.boxes;
        exchange.figures = figures(piece.usage, first - start, performance.now() - first);
      }
    }
  } catch (error) {
    exchange.reason = mine.signal.aborted ? "stopped" : "failed";
    if (!mine.signal.aborted) exchange.error = error.message;
    if (error.needsKey) openSettings("api-key");
  }
  if (answering === mine) answering = null;
  if (conversation.last !== exchange || answering) return; // it was asked anew meanwhile
  render();
  const drawn = exchange.boxes.length ? word("boxes", exchange.boxes.length) : "";
  $("status").textContent = exchange.error ?? `${exchange.answer} ${drawn}`;
  conversation.keep();
}

/** What is told of an answer: tokens, seconds to the first, tokens a second after it. */
function figures(usage, first, rest) {
  const tokens = usage?.completion_tokens;
  if (!(tokens > 1 && rest > 100)) return null; // milliseconds: of less no speed can be told
  return [tokens, (first / 1000).toFixed(2), ((1000 * (tokens - 1)) / rest).toFixed(0)];
}

async function add(blobs) {
  for (const blob of blobs) {
    if (waiting.length === MOST) {
      notice(word("tooMany", MOST));
      break;
    }
    try {
      waiting.push(await readPicture(blob));
    } catch (error) {
      notice(error.message);
    }
  }
  render();
  focus();
}

/** Take a picture from a question that failed, which it would otherwise go along with for good. */
function drop(exchange, picture) {
  exchange.pictures = exchange.pictures.filter((it) => it !== picture);
  conversation.keep();
  render();
  focus();
}

function remove(picture) {
  waiting = waiting.filter((it) => it !== picture);
  render();
  focus();
}

// --- what a person does ----------------------------------------------------------------------------

function grow() {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight / 3)}px`;
}

/** To the question, where that does not bring a keyboard up over the page. */
function focus() {
  if (matchMedia("(hover: hover)").matches) field.focus();
}

function submit(event) {
  event.preventDefault();
  const text = field.value.trim() || (waiting.length ? word("ask")[0] : "");
  if (text && !answering) ask(text);
}

function begin() {
  answering?.abort();
  answering = null;
  conversation.clear();
  conversation.keep();
  waiting = [];
  $("status").textContent = "";
  render();
  focus();
}

/** LLaVA's own words for asking where something is, around what was typed so far. */
function find() {
  const [before, , after] = word("findPrompt");
  const thing = field.value.trim().replace(/[.。]$/, "");
  field.value = before + thing + after;
  field.setSelectionRange(before.length, before.length + thing.length);
  grow();
  renderComposer();
  field.focus();
}

function listen() {
  $("composer").addEventListener("submit", submit);
  $("stop-button").addEventListener("click", () => answering?.abort());
  $("new-chat").addEventListener("click", begin);
  $("find-tool").addEventListener("click", find);
  for (const id of ["pick", "pick-large"]) $(id).addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    add([...$("file").files]);
    $("file").value = "";
  });
  field.addEventListener("input", () => {
    grow();
    renderComposer();
  });
  field.addEventListener("keydown", (event) => {
    if (view.isEnter(event)) submit(event);
    if (event.key === "ArrowUp" && !field.value && !answering) editLast(event);
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && answering && !document.querySelector("dialog[open]")) answering.abort();
  });
  addEventListener("paste", (event) => {
    const pictures = picturesIn(event.clipboardData);
    if (!pictures.length) return;
    event.preventDefault();
    add(pictures);
  });
  $("scroll").addEventListener("scroll", () => {
    const { scrollTop, clientHeight, scrollHeight } = $("scroll");
    isAtEnd = scrollHeight - scrollTop - clientHeight < 60;
    $("to-end").hidden = isAtEnd || conversation.exchanges.length === 0;
  });
  $("to-end").addEventListener("click", () => {
    isAtEnd = true;
    toEnd(true);
  });
  $("language").addEventListener("click", () => say(language === "en" ? "zh" : "en"));
  $("large").addEventListener("click", (event) => event.target === $("large") && $("large").close());
  listenForDrops();
}

function editLast(event) {
  const edits = list.querySelectorAll(".said button");
  if (!edits.length) return;
  event.preventDefault();
  edits[edits.length - 1].click();
}

function listenForDrops() {
  let depth = 0; // each element that is entered and left tells of it
  const show = (isOver) => {
    depth = isOver ? depth : 0;
    $("drop").hidden = !isOver;
  };
  addEventListener("dragenter", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    depth += 1;
    show(true);
  });
  addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) show(false);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    show(false);
    const { files } = event.dataTransfer;
    if (files.length) add([...files]);
  });
}

// --- beginning -------------------------------------------------------------------------------------

function say(wanted) {
  speak(wanted);
  settings.keep("language", language);
  settings.showTheme();
  for (const node of $("samples").children) label(node, node.dataset[language]);
  render();
}

async function showSamples() {
  samples = await server.samples().catch(() => []);
  $("samples").replaceChildren(
    ...samples.map(({ name, questions }) => {
      const picture = view.element("img", { src: server.samplePath(name), alt: "", loading: "lazy" });
      const node = view.element("button", { type: "button", click: () => takeSample(name) }, picture);
      node.dataset.en = `${name}: ${questions.en[0]}`;
      node.dataset.zh = `${name}：${questions.zh[0]}`;
      label(node, node.dataset[language]);
      return node;
    }),
  );
  renderComposer();
}

async function takeSample(name) {
  try {
    waiting = [{ ...(await readPicture(await server.sample(name), name)), sample: name }];
  } catch (error) {
    notice(error.message);
  }
  render();
  focus();
}

async function showModel() {
  try {
    $("model").textContent = await server.modelName(settings.key);
  } catch (error) {
    notice(error.message);
    if (error.needsKey) openSettings("api-key");
  }
}

startSettings(showModel);
listen();
say(settings.kept("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
showModel();
showSamples();
focus();
