// The memory of the user on the right: its size, turns as they are encoded, versions, what it knows.

import * as api from "./api.js";
import { byId, bytes, complain, count, el, fact, number, tell, when } from "./dom.js";
import { deleteAll, forgetSelection } from "./forget.js";

const PENDING_MS = 1_000;
const IDLE_MS = 5_000;

/** What is stored of one user; follows it while the page is looked at. */
export class Panel {
  constructor({ onForgotten, onDeleted }) {
    this.onForgotten = onForgotten;
    this.onDeleted = onDeleted;
    this.user = null;
    this.listen();
  }

  /** Look at another user's memory, or at nobody's. */
  show(user) {
    this.user = user;
    this.seen = null;
    this.words = "";
    byId("search-words").value = "";
    for (const id of ["overview", "turns", "versions", "profile", "fullness", "memory-badge"]) byId(id).replaceChildren();
    for (const id of ["found", "earlier", "older", "delete-user"]) byId(id).hidden = true;
    this.refresh();
  }

  /** Look again now, and from then on more often while turns wait to be encoded. */
  refresh() {
    clearTimeout(this.timer);
    const user = this.user;
    if (user === null) return;
    this.look(user)
      .catch(complain)
      .finally(() => {
        if (user !== this.user) return;
        clearTimeout(this.timer);
        const isPending = this.overview?.pending_turns > 0;
        this.timer = setTimeout(() => this.refresh(), isPending ? PENDING_MS : IDLE_MS);
      });
  }

  async look(user) {
    if (document.hidden) return;
    const overview = await api.overview(user);
    const seen = JSON.stringify(overview);
    if (user !== this.user || seen === this.seen) return;
    this.overview = overview;
    this.renderOverview(overview);
    if (overview === null) {
      byId("turns").replaceChildren();
      byId("versions").replaceChildren();
    } else {
      await Promise.all([this.showTurns(user), this.showVersions(user)]);
      if (overview.pending_turns === 0) await this.showFullness(user);
    }
    if (user === this.user) this.seen = seen;
  }

  renderOverview(overview) {
    byId("delete-user").hidden = overview === null;
    byId("memory-badge").textContent = overview?.pending_turns ? `${overview.pending_turns} encoding` : "";
    if (overview === null) {
      byId("overview").replaceChildren(el("p", { className: "fine", textContent: "Nothing is remembered yet." }));
      return;
    }
    byId("overview").replaceChildren(
      el(
        "dl",
        { className: "numbers" },
        fact("turns", number(overview.turns)),
        fact("waiting", number(overview.pending_turns)),
        fact("version", number(overview.version)),
        fact("sessions", number(overview.sessions)),
        fact("state", bytes(overview.state_bytes)),
        fact("adapters", bytes(overview.adapters_bytes)),
      ),
    );
  }

  async showFullness(user) {
    const full = await api.fullness(user);
    if (user !== this.user || full === null) return;
    const explained = "Share of the directions that the state can tell apart and that are in use. A full memory takes in something new only by letting go of something.";
    const percent = `${number(Math.round(100 * full))}% full`;
    const meter = el("meter", { value: full, max: 1, title: explained, aria: { label: percent } });
    byId("fullness").replaceChildren(meter, el("span", { className: "fine", textContent: percent, title: explained }));
  }

  // What it knows

  async askProfile() {
    const [user, button] = [this.user, byId("ask-profile")];
    if (user === null) return;
    button.disabled = true;
    byId("profile").replaceChildren(el("li", { className: "fine", textContent: "Asking…" }));
    try {
      const { lines } = await api.profile(user);
      if (user !== this.user) return;
      const none = el("li", { className: "fine", textContent: "Nothing that a turn could be shown for." });
      byId("profile").replaceChildren(...(lines.length ? lines.map(profileItem) : [none]));
    } catch (error) {
      if (user === this.user) byId("profile").replaceChildren();
      complain(error);
    } finally {
      button.disabled = false;
    }
  }

  // Turns

  async showTurns(user) {
    const words = this.words;
    const page = words ? await api.search(user, words) : await api.turns(user);
    if (user !== this.user || words !== this.words) return;
    const newestFirst = words ? page.data : page.data.toReversed();
    keepingFocus(byId("turns"), () => byId("turns").replaceChildren(...this.items(user, newestFirst)));
    byId("found").hidden = !words;
    byId("found-count").textContent = page.next ? "Many found." : `${count(page.data.length, "turn")} found.`;
    byId("forget-found").hidden = page.data.length === 0;
    this.pageFrom(user, words, page.next);
  }

  pageFrom(user, words, before) {
    const button = byId("earlier");
    button.hidden = before === null;
    button.onclick = async () => {
      button.hidden = true;
      const page = words ? await api.search(user, words, before) : await api.turns(user, { before });
      if (user !== this.user || words !== this.words) return;
      byId("turns").append(...this.items(user, words ? page.data : page.data.toReversed()));
      this.pageFrom(user, words, page.next);
    };
  }

  items(user, turns) {
    return turns.map((turn) => {
      const [state, explained] = stateOf(turn);
      const forget = el("button", { type: "button", className: "quiet danger", textContent: "Forget", data: { key: turn.id } });
      forget.setAttribute("aria-label", `Forget: ${turn.text.slice(0, 60)}`);
      forget.addEventListener("click", () => this.forget(user, { turn_ids: [turn.id] }, "this turn"));
      return el(
        "li",
        { data: { state } },
        el(
          "div",
          { className: "line" },
          el("span", { className: "role", textContent: turn.role === "user" ? user : "assistant" }),
          el("time", { dateTime: turn.time, textContent: when(turn.time) }),
          el("span", { className: `badge ${state.replace(" ", "-")}`, textContent: state, title: explained }),
        ),
        el("div", { className: "said" }, el("p", { className: "text", textContent: turn.text }), forget),
      );
    });
  }

  async forget(user, selection, meant) {
    try {
      if (!(await forgetSelection(user, selection, meant))) return;
      this.seen = null;
      this.refresh();
      await this.onForgotten();
    } catch (error) {
      complain(error);
    }
  }

  // Versions

  async showVersions(user) {
    const page = await api.versions(user);
    if (user !== this.user) return;
    const newest = page.data[0]?.version;
    keepingFocus(byId("versions"), () => byId("versions").replaceChildren(...this.versionItems(user, page.data, newest)));
    this.olderFrom(user, page.next, newest);
  }

  olderFrom(user, before, newest) {
    const button = byId("older");
    button.hidden = before === null;
    button.onclick = async () => {
      button.hidden = true;
      const page = await api.versions(user, before);
      if (user !== this.user) return;
      byId("versions").append(...this.versionItems(user, page.data, newest));
      this.olderFrom(user, page.next, newest);
    };
  }

  versionItems(user, versions, newest) {
    return versions.map((one) => {
      const changes = [
        one.added ? `+${count(one.added, "turn")}` : "",
        one.removed ? `−${count(one.removed, "turn")}` : "",
      ].filter(Boolean);
      const made = [one.reason, ...changes, `holds ${number(one.turns)}`, bytes(one.size_bytes)];
      const roll = el("button", { type: "button", className: "quiet", textContent: "Go back", data: { key: one.version } });
      roll.setAttribute("aria-label", `Go back to version ${one.version}`);
      roll.addEventListener("click", () => this.rollBack(user, one.version));
      return el(
        "li",
        {},
        el(
          "div",
          { className: "line" },
          el("strong", { textContent: `Version ${one.version}` }),
          el("time", { dateTime: one.created_at, textContent: when(one.created_at) }),
          one.version === newest ? el("span", { className: "badge encoded", textContent: "in use" }) : null,
        ),
        el(
          "div",
          { className: "said" },
          el("p", { className: "fine", textContent: made.join(" · ") }),
          one.version === newest ? null : roll,
        ),
      );
    });
  }

  async rollBack(user, version) {
    try {
      const receipt = await api.rollBack(user, version);
      tell(`The memory holds what version ${version} held${receipt.version ? `; that is version ${receipt.version} now` : ""}. Turns said since are set aside, not forgotten.`);
      this.seen = null;
      this.refresh();
      await this.onForgotten();
    } catch (error) {
      complain(error);
    }
  }

  listen() {
    byId("append").addEventListener("submit", async (event) => {
      event.preventDefault();
      const [user, field] = [this.user, byId("append-text")];
      const text = field.value.trim();
      if (!text || user === null) return;
      try {
        await api.append(user, { text, session: "notes" });
        field.value = "";
        this.refresh();
      } catch (error) {
        complain(error);
      }
    });
    byId("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.find();
    });
    byId("ask-profile").addEventListener("click", () => this.askProfile());
    byId("search-words").addEventListener("search", () => this.find()); // its cross was pressed
    byId("forget-found").addEventListener("click", () =>
      this.forget(this.user, { matching: this.words }, `what “${this.words}” finds`),
    );
    byId("delete-user").addEventListener("click", async () => {
      const user = this.user;
      if ((await deleteAll(user)) && user === this.user) this.onDeleted();
    });
    document.addEventListener("visibilitychange", () => this.refresh());
    listenToTabs();
  }

  find() {
    const words = byId("search-words").value.trim();
    if (words === this.words || this.user === null) return;
    this.words = words;
    this.showTurns(this.user).catch(complain);
  }
}

function profileItem(line) {
  const sure = `${number(Math.round(100 * line.confidence))}%`;
  return el(
    "li",
    {},
    el(
      "div",
      { className: "line" },
      el("span", { className: "role", textContent: line.topic }),
      el("span", { className: "badge", textContent: sure, title: "How sure the memory is of its words" }),
    ),
    el("p", { className: "text", textContent: line.answer }),
    el("p", { className: "fine", textContent: `because of “${line.turn.text}” (${line.turn.session})` }),
  );
}

function stateOf(turn) {
  if (turn.set_aside) return ["set aside", "A rollback left it out; the memory does not hold it"];
  if (turn.pending) return ["pending", "Stored; not in the adapter yet"];
  return ["encoded", "In the adapter"];
}

/** Make a list anew; the button in it that had the focus has it again. */
function keepingFocus(list, render) {
  const key = list.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  render();
  if (key !== undefined) [...list.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus();
}

function listenToTabs() {
  const tabs = [...document.querySelectorAll("#tabs [role=tab]")];
  const choose = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  };
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(index + step + tabs.length) % tabs.length];
      choose(next);
      next.focus();
    });
  }
}
