// The public HTTP API of this server, and nothing else.

const KEY = "memory-api-key";
const PAGE = 1000;
const MOST_ANSWER_TOKENS = 256;

/** What the server refused, or that it could not be reached. */
export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }
}

/** The API key, kept until this tab is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

let askForKey = async () => false;
let asking = null;

/** Who asks the person for a key when the server demands one: problem -> was one given. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function send(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const used = key.get();
    const headers = used ? { Authorization: `Bearer ${used}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const response = await reached(
      fetch(new URL(path, document.baseURI), {
        method,
        headers,
        body: JSON.stringify(body),
        signal,
        credentials: "omit",
        redirect: "error",
      }),
    );
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401) throw problem;
    if (key.get() !== used) continue; // given meanwhile, for another request
    asking ??= askForKey(problem.message).finally(() => (asking = null));
    if (!(await asking)) throw problem;
  }
}

async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const hint = "The server does not answer. Is `memory serve` still running?";
    throw new ApiError(hint, 0, "unreachable");
  }
}

async function problemOf(response) {
  let { message, code } = { message: `The server said ${response.status}.`, code: "unknown" };
  try {
    ({ message, code } = (await response.json()).error);
  } catch {
    // not one of our errors: a proxy in between
  }
  const wait = response.headers.get("Retry-After");
  if (wait) message += ` (try again in ${wait} s)`;
  return new ApiError(message, response.status, code);
}

async function json(path, options) {
  return (await send(path, options)).json();
}

function query(fields) {
  const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

function of(user, ...rest) {
  if (user === "." || user === "..") {
    throw new ApiError(`"${user}" cannot be a name in an address`, 0, "invalid_input");
  }
  return ["v1/memory/users", encodeURIComponent(user), ...rest].join("/");
}

/** The model that answers: `id` and `max_model_len`. */
export async function model() {
  return (await json("v1/models")).data[0];
}

/** A page of users: `data`, `next`. */
export function users(after = "") {
  return json(`v1/memory/users${query({ after, limit: 100 })}`);
}

/** A memory in numbers; null where nothing is stored yet. */
export async function overview(user) {
  try {
    return await json(of(user));
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** All sessions of a user, the latest first. */
export async function sessions(user) {
  const found = [];
  for (let after = ""; after !== null; ) {
    const page = await json(of(user, `sessions${query({ after, limit: PAGE })}`));
    found.push(...page.data);
    after = page.next;
  }
  return found.sort((one, other) => other.last_at.localeCompare(one.last_at));
}

/** A page of turns, in the order said: `data`, and `next` for the page before it; empty before the first one. */
export async function turns(user, { session, before, limit = 50 } = {}) {
  try {
    return await json(of(user, `turns${query({ session, before, limit })}`));
  } catch (error) {
    if (error.status === 404) return { data: [], next: null };
    throw error;
  }
}

/** All turns that the memory holds, at most so many, in the order said. */
export async function history(user, most) {
  const found = [];
  for (let before = null; before !== undefined && found.length < most; ) {
    const page = await turns(user, { before, limit: PAGE });
    found.unshift(...page.data.filter((turn) => !turn.set_aside));
    before = page.next ?? undefined;
  }
  return found.slice(-most);
}

/** Turns that hold the words, newest first. */
export function search(user, words, before = null) {
  return json(of(user, `search${query({ words, before, limit: 50 })}`));
}

/** Store something a person says, without an answer. */
export function append(user, turn) {
  return json(of(user, "turns"), { method: "POST", body: { turns: [turn] } });
}

/** Versions and what each changed, newest first. */
export function versions(user, before = null) {
  return json(of(user, `history${query({ before, limit: 20 })}`));
}

/** How full the state is, from 0 to 1 over all adapted modules; null where that is not known. */
export async function fullness(user) {
  const { fullness: found } = await json(of(user, "inspect"));
  if (found === null) return null;
  return found.modules.reduce((sum, one) => sum + one.value, 0) / (100 * found.modules.length);
}

/** What the memory says it knows about the person: lines, each with the turn that says so. */
export function profile(user) {
  return json(of(user, "profile"));
}

/** Make the memory hold what a version held. */
export function rollBack(user, version) {
  return json(of(user, "rollback"), { method: "POST", body: { version } });
}

/** Which turns carry an answer: log-likelihoods with and without the memory, and the turns. */
export function why(user, question, answer) {
  return json(of(user, "why"), { method: "POST", body: { question, answer, turns: 3 } });
}

/** What forgetting a selection would take. */
export function previewForgetting(user, selection) {
  return json(of(user, "forget/preview"), { method: "POST", body: selection });
}

/** Forget a selection for good; answers with a receipt. */
export function forget(user, selection) {
  return json(of(user, "forget"), { method: "POST", body: selection });
}

/** Delete all that is stored of a user. */
export function deleteUser(user) {
  return json(of(user), { method: "DELETE" });
}

/**
 * Stream an answer; `onText` gets all of its text so far.
 *
 * Answers `{ text, promptTokens, firstTokenMs, version, session, saved, cut, isWhole }`.
 */
export async function answer(request, { signal, onText }) {
  const started = performance.now();
  const response = await send("v1/chat/completions", {
    method: "POST",
    signal,
    body: {
      temperature: 0,
      max_tokens: MOST_ANSWER_TOKENS,
      stream: true,
      stream_options: { include_usage: true },
      ...request,
    },
  });
  const told = (name) => response.headers.get(`X-Memory-${name}`);
  const made = {
    text: "",
    promptTokens: null,
    firstTokenMs: null,
    version: Number(told("Version")) || null,
    session: told("Session") && decodeURIComponent(told("Session")),
    saved: Number(told("Prompt-Tokens-Saved")),
    cut: Number(told("Cut-Messages")),
    isWhole: false,
  };
  for await (const event of events(response.body)) {
    if (event.error) throw new ApiError(event.error.message, 0, event.error.code);
    made.firstTokenMs ??= performance.now() - started;
    if (event.usage) made.promptTokens = event.usage.prompt_tokens;
    const [choice] = event.choices;
    if (choice?.finish_reason) made.isWhole = choice.finish_reason === "stop";
    if (choice?.delta.content) onText((made.text += choice.delta.content));
  }
  return made;
}

/** The window for a whole history: all of the context but the answer's part. */
export function wholeWindow(contextTokens) {
  return Math.max(1, contextTokens - MOST_ANSWER_TOKENS);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reached(reader.read());
      if (done) throw new ApiError("The answer broke off: the connection ended.", 0, "unreachable");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const data of parts.map((part) => part.replace(/^data: /, ""))) {
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
