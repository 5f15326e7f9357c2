// Elements and how things are written. Text is only ever set as text, never as markup.

/** The element of an id that the page is known to have. */
export function byId(id) {
  return document.getElementById(id);
}

/** An element with properties (`data` for data-*, `aria` for aria-*) and children. */
export function el(tag, { data = {}, aria = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A term and what it is, for a `dl`. */
export function fact(term, value) {
  return el("div", {}, el("dt", { textContent: term }), el("dd", { textContent: value }));
}

const TIME = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const NUMBER = new Intl.NumberFormat();

/** A time as people write it. */
export function when(iso) {
  return TIME.format(new Date(iso));
}

const DAY = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "numeric",
  hour: "numeric",
  minute: "2-digit",
});

/** The same, shorter. */
export function day(iso) {
  return DAY.format(new Date(iso));
}

/** A number with its thousands apart. */
export function number(value) {
  return NUMBER.format(value);
}

/** "1 turn", "2 turns". */
export function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** Bytes in the unit that fits. */
export function bytes(value) {
  const units = ["bytes", "kB", "MB", "GB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${NUMBER.format(unit ? Number(value.toFixed(1)) : value)} ${units[unit]}`;
}

/** Milliseconds as seconds. */
export function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 1)} s`;
}

/** Say something that happened; screen readers say it too. */
export function tell(text) {
  show(byId("status"), text, 6_000);
}

/** Say what went wrong, until it is closed or something else goes wrong. */
export function complain(error) {
  if (error.name === "AbortError") return;
  show(byId("problem"), error.message, 20_000);
}

const timers = new Map();

function show(place, text, milliseconds) {
  const close = el("button", { type: "button", textContent: "×", title: "Close" });
  const hide = () => place.replaceChildren();
  close.setAttribute("aria-label", "Close");
  close.addEventListener("click", hide);
  place.replaceChildren(el("p", { textContent: text }), close);
  clearTimeout(timers.get(place));
  timers.set(place, setTimeout(hide, milliseconds));
}
