// How the conversation looks. Everything that a person, a model or a server says is put in as text, never as markup.
import { label, word } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 6; // of boxes, in the style sheet
let masks = 0;

/** An element with attributes (a function is what a click does) and children; those that are null are left out. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function drawn(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function icon(name) {
  return drawn("svg", { "aria-hidden": "true" }, drawn("use", { href: `#${name}` }));
}

export function button(name, text, click, attributes = {}) {
  const node = element("button", { type: "button", class: "quiet", click, ...attributes }, icon(name));
  label(node, text);
  return node;
}

/** A picture, with `boxes` (in its pixels) framed, and numbered when there are several; a click shows it large. */
export function figure(picture, boxes, onLarge) {
  const alt = boxes.length ? word("boxAlt") : picture.name || word("pictureAlt");
  const image = element("img", { src: picture.url, alt, width: picture.width, height: picture.height });
  const shown = element("span", { class: "shot" }, image);
  shown.style.setProperty("--aspect", picture.width / picture.height);
  if (boxes.length) shown.append(shade(picture, boxes), ...frames(picture, boxes));
  if (!onLarge) return shown;
  const frame = element("button", { type: "button", class: "open", click: () => onLarge(picture, boxes) }, shown);
  label(frame, alt);
  return frame;
}

/** Darkens all but the boxes. */
function shade({ width, height }, boxes) {
  const mask = `around-${(masks += 1)}`;
  const all = { width, height };
  const holes = boxes.map(([x1, y1, x2, y2]) => drawn("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, fill: "#000" }));
  return drawn(
    "svg",
    { class: "shade", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    drawn("mask", { id: mask }, drawn("rect", { ...all, fill: "#fff" }), ...holes),
    drawn("rect", { ...all, class: "around", mask: `url(#${mask})` }),
  );
}

function frames({ width, height }, boxes) {
  return boxes.map(([x1, y1, x2, y2], number) => {
    const frame = element("i", { class: `box colour-${number % COLOURS}`, "aria-hidden": "true" });
    const place = { left: x1 / width, top: y1 / height, width: (x2 - x1) / width, height: (y2 - y1) / height };
    for (const [side, share] of Object.entries(place)) frame.style[side] = `${100 * share}%`;
    if (boxes.length > 1) frame.append(element("b", { class: place.top > 0.08 ? "above" : null }, `${number + 1}`));
    return frame;
  });
}

/**
 * What the person asked; `actions` has `edit(text)`, `large(picture, boxes)`, and where pictures may be taken away again
 * `drop(picture)`. An `exchange.draft` is a change of it that is being typed.
 */
export function question(exchange, actions) {
  const { text, pictures } = exchange;
  const shown = (picture) => {
    const open = figure(picture, [], actions.large);
    return actions.drop ? element("div", { class: "attached" }, open, button("close", word("removePicture"), () => actions.drop(picture))) : open;
  };
  const bubble = element("p", { class: "bubble" }, text);
  const item = element(
    "li",
    { class: "mine" },
    element("h2", { class: "unseen" }, word("you")),
    pictures.length ? element("div", { class: "pictures" }, ...pictures.map(shown)) : null,
    element("div", { class: "said" }, button("edit", word("edit"), () => editing(item, exchange, actions.edit)), bubble),
  );
  if (exchange.draft !== undefined) editing(item, exchange, actions.edit);
  return item;
}

/** The question as a field to change it in; Enter asks it anew, Escape leaves it. */
function editing(item, exchange, done) {
  const before = [...item.children];
  const text = (exchange.draft ??= exchange.text);
  const field = element("textarea", { rows: Math.min(8, text.split("\n").length + 1), "aria-label": word("edit") });
  field.value = text;
  const leave = () => {
    delete exchange.draft;
    item.replaceChildren(...before);
    item.querySelector(".said button").focus();
  };
  const send = () => {
    const changed = field.value.trim();
    if (changed) done(changed);
  };
  field.addEventListener("input", () => (exchange.draft = field.value));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    else if (isEnter(event)) send();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const buttons = element(
    "div",
    { class: "buttons" },
    element("button", { type: "button", click: leave }, word("cancel")),
    element("button", { type: "button", class: "primary", click: send }, word("send")),
  );
  item.replaceChildren(before[0], ...item.querySelectorAll(".pictures"), element("div", { class: "editing" }, field, buttons));
  field.focus();
}

/** Enter that sends: not while a word is being composed, as Chinese input does, nor with Shift. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

/** What the model answered so far; `actions` has `retry()` and `large(picture, boxes)`. */
export function answer(exchange, picture, isLast, actions) {
  const { answer: text, boxes, reason, error, figures } = exchange;
  const item = element("li", { class: "theirs", "aria-busy": reason === null ? "true" : null });
  item.append(element("h2", { class: "unseen" }, word("model")), element("img", { class: "mark", src: "icon.svg", alt: "" }));
  const body = element("div", { class: "body" }, element("div", { class: "text" }, text));
  if (reason === null) {
    body.firstChild.append(element("i", { class: "cursor" }));
  } else {
    if (picture && boxes.length) body.append(element("div", { class: "found" }, figure(picture, boxes, actions.large)));
    body.append(...remarks(exchange));
    body.append(
      element(
        "div",
        { class: "actions" },
        text && navigator.clipboard ? copying(text) : null, // browsers give it to secure pages and localhost only
        isLast ? button("retry", word("retry"), actions.retry) : null,
        figures ? element("small", {}, word("figures", ...figures)) : null,
      ),
    );
  }
  item.append(body);
  if (error) item.classList.add("failed");
  return item;
}

function* remarks({ answer: text, reason, error }) {
  if (error) yield element("p", { class: "error" }, error);
  else if (reason === "stopped") yield element("p", { class: "remark" }, word("stopped"));
  else if (reason === "length") yield element("p", { class: "remark" }, word("cut"));
  else if (!text) yield element("p", { class: "remark" }, word("emptyAnswer"));
}

function copying(text) {
  const node = button("copy", word("copy"), async () => {
    await navigator.clipboard.writeText(text);
    label(node, word("copied"));
    node.classList.add("done");
    setTimeout(() => {
      label(node, word("copy"));
      node.classList.remove("done");
    }, 1500);
  });
  return node;
}
