// Keeps the page true while it is open. Without it everything works but that.
"use strict";

const AGES_EVERY = 30_000;
const body = document.body;

/** Makes `old` like `fresh`, changing only what differs: focus, scroll position and what was typed stay. */
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  for (const { name } of [...old.attributes]) {
    // What was opened stays open.
    if (!fresh.hasAttribute(name) && !(old.nodeName === "DETAILS" && name === "open")) {
      old.removeAttribute(name);
    }
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const known = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  const wanted = [...fresh.childNodes];
  for (const [place, node] of wanted.entries()) {
    const there = old.childNodes[place];
    const same = node.id ? known.get(node.id) : undefined;
    if (same !== undefined && same !== there) old.insertBefore(same, there ?? null);
    const now = old.childNodes[place];
    if (now === undefined) old.append(node);
    else if (same === undefined && now.id && known.has(now.id)) old.insertBefore(node, now);
    else morph(now, node);
  }
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}

function show({ id, html }) {
  const old = document.getElementById(id);
  const fresh = new DOMParser().parseFromString(html, "text/html").body.firstElementChild;
  if (old === null || fresh === null) return;
  morph(old, document.importNode(fresh, true));
  prepare();
}

// As the server tells them.
function ageOf(seconds) {
  const minutes = Math.floor(Math.abs(seconds) / 60);
  if (minutes === 0) return seconds < 0 ? "in a moment" : "just now";
  const hours = Math.round(minutes / 60);
  const long = minutes < 60 ? `${minutes} min` : hours < 48 ? `${hours} h` : `${Math.round(hours / 24)} days`;
  return seconds < 0 ? `in ${long}` : `${long} ago`;
}

function tellAges() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const words = ageOf((Date.now() - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== words) time.textContent = words;
  }
}

function prepare() {
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
}

function lost(words) {
  const banner = document.getElementById("lost");
  banner.hidden = words === "";
  banner.textContent = words;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
  button.textContent = "Copied";
});

// Twice is once: the second click of a double click changes nothing.
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "1";
});
addEventListener("pageshow", () => {
  for (const form of document.forms) delete form.dataset.sent;
});

// A small picture that does not load is shown whole; one that does not load either says so.
document.addEventListener("error", ({ target }) => {
  if (!(target instanceof HTMLImageElement)) return;
  const { whole } = target.dataset;
  if (whole) {
    delete target.dataset.whole;
    target.src = whole;
    document.getElementById("whole").hidden = false;
    return;
  }
  const words = document.createElement("span");
  words.className = "no-picture";
  words.textContent = "does not load";
  target.replaceWith(words);
}, true);

if (body.dataset.live) {
  const events = new EventSource(body.dataset.live);
  events.addEventListener("part", ({ data }) => show(JSON.parse(data)));
  events.addEventListener("again", () => location.reload());
  events.addEventListener("open", () => lost(""));
  events.addEventListener("error", () =>
    lost(
      events.readyState === EventSource.CLOSED
        ? "This window was closed. Open a new one with: npx image-sync open"
        : "The window's server does not answer. Is image-sync open still running? What you see is from before.",
    ));
}
addEventListener("beforeunload", () => lost(""));
setInterval(tellAges, AGES_EVERY);
prepare();
