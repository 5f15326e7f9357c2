// Joins the parts of the page: who talks, in which session, and what is asked.

import * as api from "./api.js";
import { Log, converse, showSession } from "./chat.js";
import { compare } from "./compare.js";
import { byId, complain, day, el } from "./dom.js";
import { forgetSelection } from "./forget.js";
import { Panel } from "./panel.js";

const log = new Log(byId("log"));
const panel = new Panel({ onForgotten: () => showTalk(), onDeleted: () => open(null) });

let model = null;
let user = null;
let session = null; // null: a new one, named when something is said in it
let known = []; // users of this server, as far as they were listed
let running = null; // AbortController of the answer in the making

const message = byId("message");

// Who and which session: kept in the address, so that every window has its own

function read() {
  const fields = new URLSearchParams(location.hash.slice(1));
  return { user: fields.get("user"), session: fields.get("session") };
}

function write() {
  const fields = new URLSearchParams(user === null ? {} : { user });
  if (session !== null) fields.set("session", session);
  const hash = fields.size ? `#${fields}` : location.pathname;
  if (location.hash !== hash) history.pushState(null, "", hash);
}

async function open(name, opened = null) {
  running?.abort();
  if (name !== user) panel.show(name);
  [user, session] = [name, opened];
  write();
  closeDrawers();
  byId("who").textContent = user ?? "Nobody yet";
  document.body.classList.toggle("nobody", user === null);
  document.title = user === null ? "Memory" : `${user} · Memory`;
  byId("composer").hidden = byId("sessions-section").hidden = user === null;
  await Promise.all([showUsers(), showSessions()]);
  await showTalk();
  if (user !== null && matchMedia("(hover: hover)").matches) message.focus();
}

async function showTalk() {
  const [name, shown] = [user, session];
  if (name === null) {
    log.clear(welcome("Who is talking?", "What each person says is remembered for them alone.", choices()));
  } else if (shown === null) {
    log.clear(welcome(`Hello, ${name}`, "What is said here is remembered in an adapter, not in the prompt. Tell something about yourself, then ask about it in a new session."));
  }
  if (shown !== null) await showSession(log, name, shown, () => name === user && shown === session);
}

function welcome(title, text, more = null) {
  return el("div", { className: "welcome" }, el("h2", { textContent: title }), el("p", { textContent: text }), more);
}

function choices() {
  const add = el("button", { type: "button", className: "primary", textContent: "New person" });
  add.addEventListener("click", () => {
    document.body.classList.add("show-people");
    byId("new-user-name").focus();
  });
  const people = known.slice(0, 12).map((name) => {
    const button = el("button", { type: "button", textContent: name });
    button.addEventListener("click", guarded(() => open(name)));
    return button;
  });
  return el("div", { className: "choices" }, ...people, add);
}

// Lists on the left

async function showUsers() {
  const page = await api.users();
  known = page.data.map((one) => one.user);
  renderUsers(page.next);
}

function renderUsers(next) {
  const names = user === null || known.includes(user) ? known : [user, ...known];
  const items = names.map((name) => entry(name, name === user, () => open(name)));
  byId("users").replaceChildren(...items);
  const more = byId("more-users");
  more.hidden = next === null;
  more.onclick = guarded(async () => {
    const page = await api.users(next);
    known.push(...page.data.map((one) => one.user));
    renderUsers(page.next);
  });
  showOthers();
}

function showOthers() {
  const others = known.filter((name) => name !== user);
  const choice = byId("other");
  const chosen = choice.value;
  choice.replaceChildren(...others.map((name) => el("option", { value: name, textContent: name })));
  if (others.includes(chosen)) choice.value = chosen;
  const box = methodBox("other");
  box.disabled = others.length === 0;
  box.closest("label").title = box.disabled ? "There is nobody else yet" : "";
  if (box.disabled) box.checked = false;
  showSwitch();
}

async function showSessions() {
  const name = user;
  if (name === null) return;
  const found = await sessionsOf(name);
  if (name !== user) return;
  const items = found.map((one) => {
    const item = entry(title(one), one.session === session, () => open(name, one.session));
    const forget = el("button", { type: "button", className: "icon danger", textContent: "×", title: "Forget this session" });
    forget.setAttribute("aria-label", `Forget the session ${title(one)}`);
    forget.addEventListener("click", () => forgetSession(name, one));
    item.append(forget);
    return item;
  });
  byId("sessions").replaceChildren(...items);
}

async function sessionsOf(name) {
  try {
    return await api.sessions(name);
  } catch (error) {
    if (error.status === 404) return []; // nothing was said yet
    throw error;
  }
}

function title(one) {
  return one.session.startsWith("chat 2") ? day(one.first_at) : one.session;
}

function entry(text, isCurrent, choose) {
  const button = el("button", { type: "button", className: "entry", textContent: text, title: text });
  if (isCurrent) button.setAttribute("aria-current", "true");
  button.addEventListener("click", guarded(choose));
  return el("li", {}, button);
}

async function forgetSession(name, one) {
  const isDone = await forgetSelection(name, { session: one.session }, `the session ${title(one)}`);
  if (!isDone || name !== user) return;
  panel.refresh();
  if (session === one.session) await open(name).catch(complain);
  else await Promise.all([showSessions(), showTalk()]).catch(complain);
}

// What is asked

function methodBox(name) {
  return document.querySelector(`#switch input[value="${name}"]`);
}

function methods() {
  return [...document.querySelectorAll("#switch input:checked")].map((box) => box.value);
}

function showSwitch() {
  if (methods().length === 0) methodBox("own").checked = true;
  const chosen = methods();
  byId("other-label").hidden = !chosen.includes("other");
  byId("compared").hidden = chosen.length === 1 && chosen[0] === "own";
  byId("send").textContent = byId("compared").hidden ? "Send" : "Compare";
  message.placeholder = byId("compared").hidden ? "Say something" : "Ask something";
}

async function submit() {
  const text = message.value.trim();
  if (!text || running || user === null) return;
  const [name, chosen] = [user, methods()];
  const mine = (running = new AbortController());
  showRunning();
  message.value = "";
  fitMessage();
  const why = (question, answer) => api.why(name, question, answer);
  const told = { log, signal: mine.signal, why };
  try {
    if (byId("compared").hidden) {
      if (session === null) {
        session = `chat ${new Date().toISOString().replace("T", " ").slice(0, 23)}`;
        write();
      }
      await converse({ text, user: name, session, model }, told);
    } else {
      const asked = { question: text, methods: chosen, user: name, other: byId("other").value, model };
      await compare(asked, told);
    }
  } catch (error) {
    complain(error);
    if (name === user && error.status !== undefined && !message.value) message.value = text;
  } finally {
    if (running === mine) running = null;
    showRunning();
    if (name === user) {
      panel.refresh();
      await Promise.all([showUsers(), showSessions()]).catch(complain);
    }
  }
}

function showRunning() {
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
}

function fitMessage() {
  message.style.height = "auto";
  message.style.height = `${Math.min(message.scrollHeight + 2, 200)}px`;
}

// Colours, drawers, the key

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function showTheme() {
  byId("theme").setAttribute("aria-pressed", String(isDark()));
}

function closeDrawers() {
  document.body.classList.remove("show-people", "show-memory");
  showDrawers();
}

function showDrawers() {
  const isOpen = matchMedia("(width < 1000px)").matches
    ? document.body.classList.contains("show-memory")
    : !document.body.classList.contains("hide-memory");
  byId("toggle-memory").setAttribute("aria-expanded", String(isOpen));
}

function askForKey(problem) {
  const dialog = byId("key-dialog");
  const value = byId("key-value");
  byId("key-problem").textContent = problem;
  value.value = "";
  if (!dialog.open) dialog.showModal();
  value.focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const isGiven = dialog.returnValue === "use";
        if (isGiven) api.key.set(value.value);
        dialog.returnValue = value.value = "";
        resolve(isGiven);
      },
      { once: true },
    );
  });
}

/** An event handler whose errors are told. */
function guarded(action) {
  return (event) => Promise.resolve(action(event)).catch(complain);
}

function listen() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  message.addEventListener("input", fitMessage);
  byId("stop").addEventListener("click", () => running?.abort());
  byId("switch").addEventListener("change", showSwitch);
  byId("new-session").addEventListener("click", guarded(() => open(user)));
  byId("new-user").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = byId("new-user-name").value.trim();
    byId("new-user-name").value = "";
    if (name) open(name).catch(complain);
  });
  byId("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    localStorage.setItem("theme", theme);
    document.documentElement.dataset.theme = theme;
    showTheme();
  });
  byId("change-key").addEventListener("click", guarded(async () => {
    const is = api.key.get() ? "A key is in use. An empty one ends its use." : "No key is in use.";
    if (await askForKey(is)) await start();
  }));
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  byId("toggle-memory").addEventListener("click", () => {
    const isSmall = matchMedia("(width < 1000px)").matches;
    document.body.classList.toggle(isSmall ? "show-memory" : "hide-memory");
    showDrawers();
  });
  for (const button of document.querySelectorAll("[data-open]")) {
    button.addEventListener("click", () => document.body.classList.add(`show-${button.dataset.open}`));
  }
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", closeDrawers);
  }
  addEventListener("keydown", (event) => event.key === "Escape" && closeDrawers());
  addEventListener("popstate", guarded(() => {
    const { user: name, session: opened } = read();
    return open(name, opened);
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  matchMedia("(width < 1000px)").addEventListener("change", showDrawers);
}

async function start() {
  model = await api.model();
  byId("what").textContent = model.id;
  const { user: name, session: opened } = read();
  await open(name, opened);
}

api.onKeyNeeded(askForKey);
listen();
showTheme();
showDrawers();
showSwitch();
start().catch(complain);
