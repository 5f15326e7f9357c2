// The conversation: what was said in a session, and the answer that is being made.

import * as api from "./api.js";
import { whyButton } from "./compare.js";
import { count, el, number, seconds } from "./dom.js";

const NEAR_END_PX = 120;

/** The list of what was said; stays at its end while one reads there. */
export class Log {
  constructor(element) {
    this.element = element;
  }

  clear(...children) {
    this.element.replaceChildren(...children);
    this.element.scrollTop = this.element.scrollHeight;
  }

  add(child) {
    this.element.querySelector(".welcome")?.remove();
    this.element.append(child);
    this.element.scrollTop = this.element.scrollHeight;
  }

  prepend(...children) {
    const before = this.element.scrollHeight;
    this.element.prepend(...children);
    this.element.scrollTop += this.element.scrollHeight - before;
  }

  /** Go on to the end, unless someone has scrolled back to read. */
  follow() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    if (scrollHeight - scrollTop - clientHeight < NEAR_END_PX) this.element.scrollTop = scrollHeight;
  }
}

/** One thing that was said. */
export function bubble(role, text) {
  return el(
    "article",
    { className: `bubble ${role}`, aria: { label: role === "user" ? "You" : "Answer" } },
    el("p", { className: "text", textContent: text }),
  );
}

/** Show a session's stored turns, the last page of them. */
export async function showSession(log, user, session, isWanted) {
  const page = await api.turns(user, { session, limit: 100 });
  if (!isWanted()) return;
  log.clear(...bubbles(page));
  if (page.next) log.prepend(earlierButton(log, user, session, page.next));
}

function bubbles(page) {
  return page.data.filter((turn) => !turn.set_aside).map(({ role, text }) => bubble(role, text));
}

function earlierButton(log, user, session, before) {
  const button = el("button", { type: "button", className: "wide", textContent: "Earlier" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    const page = await api.turns(user, { session, before, limit: 100 });
    button.remove();
    log.prepend(...bubbles(page));
    if (page.next) log.prepend(earlierButton(log, user, session, page.next));
  });
  return button;
}

/** Say something in a session and stream the answer; both sides are stored. */
export async function converse({ text, user, session, model }, { log, signal, why }) {
  log.add(bubble("user", text));
  const answer = bubble("assistant", "");
  const words = answer.querySelector(".text");
  answer.classList.add("busy");
  answer.setAttribute("aria-busy", "true"); // read out when it is whole, not word by word
  log.add(answer);
  try {
    const request = {
      model: model.id,
      user,
      messages: [{ role: "user", content: text }],
      memory: { mode: "read_write", session },
    };
    const made = await api.answer(request, {
      signal,
      onText(so_far) {
        words.textContent = so_far;
        log.follow();
      },
    });
    if (!made.text) words.textContent = "(no words)";
    answer.append(footer(text, made, why));
    log.follow();
  } catch (error) {
    answer.classList.add("failed");
    const stopped = error.name === "AbortError";
    answer.append(el("footer", { textContent: stopped ? "Stopped." : "No whole answer." }));
    throw error;
  } finally {
    answer.classList.remove("busy");
    answer.setAttribute("aria-busy", "false");
  }
}

function footer(question, made, why) {
  const told = [
    count(made.promptTokens, "prompt token"),
    `${seconds(made.firstTokenMs)} to the first`,
    made.version ? `memory version ${number(made.version)}` : "nothing encoded yet",
  ];
  if (made.saved) told.push(`${number(made.saved)} tokens of history saved`);
  if (made.cut) told.push(`${count(made.cut, "message")} out of the window`);
  if (!made.isWhole) told.push("cut at its longest");
  const place = el("footer", {}, el("span", { textContent: told.join(" · ") }));
  if (made.version && why) place.append(whyButton(() => why(question, made.text)));
  return place;
}
