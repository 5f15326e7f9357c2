// Forgetting: what would go, whether that is meant, and the receipt.

import * as api from "./api.js";
import { byId, count, el, fact, number } from "./dom.js";

const HOW = {
  subtracted: "taken out of the state, exact to the last bit",
  rebuilt: "adapter withdrawn and made anew from the turns that are kept",
  withdrawn: "adapter withdrawn; it is made anew from the turns that are kept",
};

/** Forget turns after showing them; tells whether something was forgotten. */
export async function forgetSelection(user, selection, meant) {
  const found = await api.previewForgetting(user, selection);
  const shown = found.data.slice(0, 5).map((turn) => el("li", { textContent: turn.text }));
  if (found.turns > shown.length) {
    shown.push(el("li", { textContent: `and ${count(found.turns - shown.length, "more turn")}` }));
  }
  return asked({
    title: `Forget ${meant}?`,
    body: [
      el("p", { textContent: `${count(found.turns, "turn")} of ${user} will be forgotten for good, and with it every trace in the adapter and its earlier versions:` }),
      el("ul", { className: "quoted" }, ...shown),
    ],
    action: "Forget",
    async act() {
      const receipt = await api.forget(user, selection);
      return { title: "Forgotten", body: [receiptList(receipt)] };
    },
  });
}

/** Delete a user after asking; tells whether it was done. */
export function deleteAll(user) {
  return asked({
    title: `Delete everything of ${user}?`,
    body: [el("p", { textContent: "Turns, state and all versions of the adapter go. Nothing of it can be brought back." })],
    action: "Delete everything",
    async act() {
      const { deleted } = await api.deleteUser(user);
      const facts = Object.entries(deleted).map(([what, rows]) => fact(what, number(rows)));
      return { title: "Deleted", body: [el("dl", { className: "receipt" }, ...facts)] };
    },
  });
}

/** A receipt of turns that were taken back. */
export function receiptList(receipt) {
  const { erased } = receipt;
  const facts = [
    fact("turns", number(erased.turns)),
    fact("sessions gone with them", number(erased.sessions)),
    fact("versions rewritten", number(erased.rewritten_versions)),
    fact("adapters deleted", number(erased.adapters)),
    fact("how", HOW[receipt.removal] ?? receipt.removal),
  ];
  if (receipt.reason) facts.push(fact("because", receipt.reason));
  if (receipt.version !== null) facts.push(fact("version now", number(receipt.version)));
  if (receipt.state_digest) facts.push(fact("state", receipt.state_digest.slice(0, 16)));
  return el("dl", { className: "receipt" }, ...facts);
}

/** Ask in the dialog, act, and show what came of it. */
function asked({ title, body, action, act }) {
  const [dialog, confirm, cancel] = ["dialog", "confirm", "cancel"].map((name) => byId(`forget-${name}`));
  let isDone = false;
  const show = (heading, children) => {
    byId("forget-title").textContent = heading;
    byId("forget-body").replaceChildren(...children);
  };
  show(title, body);
  cancel.textContent = "Cancel";
  confirm.textContent = action;
  confirm.hidden = confirm.disabled = false;
  confirm.onclick = async () => {
    confirm.disabled = true;
    try {
      const outcome = await act();
      isDone = true;
      show(outcome.title, outcome.body);
    } catch (error) {
      show("Nothing was forgotten", [el("p", { className: "bad", textContent: error.message })]);
    }
    confirm.hidden = true;
    cancel.textContent = "Close";
    cancel.focus();
  };
  dialog.showModal();
  cancel.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(isDone), { once: true });
  });
}
