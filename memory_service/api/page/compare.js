// One question, answered with the memory, without, with another's, and with the whole history.

import * as api from "./api.js";
import { complain, el, fact, number, seconds } from "./dom.js";

const MOST_TOKENS = 96; // a comparison is about the first sentence
const MOST_MESSAGES = 1_999;
const CHARS_PER_TOKEN = 8;

const TITLES = {
  own: () => "Memory",
  none: () => "No memory",
  other: (other) => `Memory of ${other}`,
  history: () => "Whole history",
};

/** Ask each way, one after the other so that no time holds another's work. */
export async function compare({ question, methods, user, other, model }, { log, signal, why }) {
  const cards = new Map(methods.map((method) => [method, card(TITLES[method](other))]));
  log.add(
    el(
      "section",
      { className: "comparison", aria: { label: `Comparison: ${question}` } },
      el("h3", { textContent: question }),
      el("div", { className: "cards" }, ...[...cards.values()].map((one) => one.element)),
    ),
  );
  for (const [method, one] of cards) {
    try {
      one.begin();
      const request = await requestOf(method, { question, user, other, model });
      const made = await api.answer(request, { signal, onText: (text) => one.say(text) });
      one.end(made, why && method === "own" && made.version ? () => why(question, made.text) : null);
    } catch (error) {
      one.fail(error.name === "AbortError" ? "Stopped." : error.message);
      if (error.name === "AbortError") return;
    }
    log.follow();
  }
}

async function requestOf(method, { question, user, other, model }) {
  const messages = [{ role: "user", content: question }];
  const request = { model: model.id, messages, max_tokens: MOST_TOKENS };
  if (method === "own") return { ...request, user, memory: { mode: "read" } };
  if (method === "other") return { ...request, user: other, memory: { mode: "read" } };
  if (method === "none") return { ...request, memory: { mode: "off" } };
  const window_tokens = api.wholeWindow(model.max_model_len);
  const said = await api.history(user, MOST_MESSAGES);
  const kept = withinChars(alternating(said), window_tokens * CHARS_PER_TOKEN);
  return { ...request, messages: [...kept, ...messages], memory: { mode: "off", window_tokens } };
}

/** Turns as messages; chat templates want the roles in turn. */
function alternating(turns) {
  const messages = [];
  for (const { role, text } of turns) {
    if (messages.at(-1)?.role === role) messages.at(-1).content += `\n${text}`;
    else messages.push({ role, content: text });
  }
  if (messages.at(-1)?.role === "user") messages.push({ role: "assistant", content: "I see." });
  return messages;
}

/** The last messages that could fit into the window at all; what does, the server decides. */
function withinChars(messages, most) {
  let chars = 0;
  let first = messages.length;
  while (first > 0 && (chars += messages[first - 1].content.length) <= most) first -= 1;
  return messages.slice(first);
}

function card(title) {
  const text = el("p", { className: "text", tabIndex: 0 }); // long ones scroll
  const costs = el("dl", { className: "costs" });
  const element = el(
    "article",
    { className: "card", aria: { busy: "true" } },
    el("h4", { textContent: title }),
    text,
    costs,
  );
  const done = () => {
    element.classList.remove("busy");
    element.setAttribute("aria-busy", "false");
  };
  return {
    element,
    begin: () => element.classList.add("busy"),
    say: (so_far) => (text.textContent = so_far),
    end(made, why) {
      done();
      if (!made.text) text.textContent = "(no words)";
      costs.replaceChildren(
        fact("prompt tokens", number(made.promptTokens)),
        fact("first token", seconds(made.firstTokenMs)),
        ...(made.version ? [fact("version", number(made.version))] : []),
        ...(made.cut ? [fact("did not fit", `${number(made.cut)} messages`)] : []),
      );
      if (why) element.append(whyButton(why));
    },
    fail(problem) {
      done();
      element.classList.add("failed");
      text.textContent = problem;
    },
  };
}

/** "Why?": below the button, once asked, the turns that carry an answer. */
export function whyButton(ask) {
  const button = el("button", { type: "button", className: "why quiet", textContent: "Why?" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Leaving turns out…";
    try {
      button.replaceWith(reasons(await ask()));
    } catch (error) {
      complain(error);
      button.disabled = false;
      button.textContent = "Why?";
    }
  });
  return button;
}

function reasons(found) {
  const carried = found.log_likelihood - found.log_likelihood_without_memory;
  const turns = found.turns.map((turn) =>
    el(
      "li",
      {},
      el("span", { textContent: turn.text }),
      el("small", { textContent: turn.loss === null ? " not left out" : ` ${signed(-turn.loss)} without it` }),
    ),
  );
  const all = `${signed(carried)} nats a token by the memory; by turn:`;
  return el("div", { className: "reasons" }, el("p", { textContent: all }), el("ol", {}, ...turns));
}

function signed(value) {
  return `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`;
}
