// The live page: shows what /events tells. Texts from outside only ever become textContent.
import { picture } from "/picture.js";

const at = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 1079px)");
const title = document.title;
const RETRY_MS = 3000;

const wish = { filter: "", open: named(), span: "600" };
let about = { servers: [], interval: 1000, actions: false };
let stream = null, retry = null, before = null, heard = 0, gap = 0, trouble = "";

function named() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // a link that was cut off
  }
}

// --- words ---

function span(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const clock = (ms) => new Date(ms).toISOString().slice(11, 19);
const day = (ms) => new Date(ms).toISOString().slice(0, 10);
const when = (ms) => (day(ms) === day(Date.now()) ? clock(ms) : `${day(ms)} ${clock(ms)}`);
const many = (n, one, more = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;

// --- elements: only what changed is touched, so that focus, selection and a screen reader's place stay ---

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function make(tag, words = "", style = "") {
  const made = document.createElement(tag);
  if (words) made.textContent = words;
  if (style) made.className = style;
  return made;
}

function keyed(parent, items, key, build, fill) {
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  const focus = parent.contains(document.activeElement) ? document.activeElement : null;
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let node = old.get(name);
    old.delete(name);
    if (!node) {
      node = build(item);
      node.dataset.key = name;
    }
    fill(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of old.values()) node.remove();
  if (focus?.isConnected) focus.focus({ preventScroll: true }); // a row that was moved has lost it
}

function cells(row, texts) {
  texts.forEach((text, number) => put(row.children[number], text));
}

function rowOf(styles) {
  return () => {
    const row = make("tr");
    for (const style of styles) row.append(make("td", "", style));
    return row;
  };
}

function list(parent, texts, build = (text) => make("li", text)) {
  const told = JSON.stringify(texts);
  if (parent.dataset.told === told) return;
  parent.dataset.told = told;
  parent.replaceChildren(...texts.map(build));
}

// --- locks ---

function buildLock(lock) {
  const row = make("tr");
  const head = make("th");
  head.scope = "row";
  const button = make("button", lock.resource);
  button.type = "button";
  button.setAttribute("aria-controls", "one");
  button.addEventListener("click", () => choose(wish.open === lock.name ? "" : lock.name));
  head.append(button, make("span", "", "small"), make("span", "", "small tight"), make("span", "", "flags"));
  const left = make("td", "", "left");
  const track = make("span", "", "track");
  track.setAttribute("aria-hidden", "true");
  track.append(make("span", "", "fill"));
  left.append(make("span"), track);
  row.append(head, make("td", "", "roomy"), make("td", "", "wide number"), make("td", "", "number"), left, make("td", "", "wide number"), make("td", "", "wide"));
  return row;
}

function flags(lock) {
  const found = [];
  if (lock.late) found.push([`renewal ${span(lock.late)} late`, "flag bad"]);
  if (lock.wanted) found.push(["wanted", "flag"]);
  if (lock.waiters) found.push([`${lock.waiters} waiting`, "flag"]);
  if (lock.fence === "ahead") found.push(["fence ahead", "flag bad"]);
  if (!lock.held && lock.closed) found.push([`closed for ${span(lock.closed)}`, "flag"]);
  return found;
}

function fillLock(row, lock) {
  const [head, holder, token, age, left, waiting, fence] = row.children;
  const [button, operation, again, marks] = head.children;
  const chosen = lock.name === wish.open;
  row.classList.toggle("chosen", chosen);
  row.classList.toggle("late", lock.late > 0);
  button.setAttribute("aria-expanded", String(chosen));
  put(operation, lock.operation);
  list(marks, flags(lock), ([words, style]) => make("span", words, style));
  row.classList.toggle("free", !lock.held);
  for (const place of [holder, again]) put(place, lock.held ? lock.holder : "free");
  put(token, lock.token);
  put(age, lock.held ? span(lock.age) : "");
  put(left.children[0], lock.held ? `${span(lock.remaining)} of ${span(lock.ttl)}` : "");
  left.children[1].hidden = !lock.held;
  left.children[1].firstChild.style.width = `${Math.min(100, (100 * lock.remaining) / Math.max(1, lock.ttl))}%`;
  put(waiting, lock.waiters ? String(lock.waiters) : "");
  put(fence, lock.fence);
}

function showLocks(facts) {
  const known = facts.locksAt !== null;
  put(at("count"), known ? `${many(facts.held, "held", "held")}, ${facts.waiting.toLocaleString("en")} waiting` : "not known yet");
  keyed(at("lock-rows"), facts.locks, (lock) => lock.name, buildLock, fillLock);
  at("locks").classList.toggle("stale", Boolean(facts.redisFault));
  at("locks").hidden = !facts.locks.length;
  const more = facts.matching - facts.locks.length;
  put(at("more"), more > 0 ? `${more.toLocaleString("en")} more are not shown; filter to see them.`
    : facts.locks.length || !known ? "" : wish.filter ? "No lock fits the filter." : "No lock is held, and there are no waiters.");
}

// --- tables of the database ---

function showTables(facts) {
  const naked = facts.naked.length > 0;
  at("naked").hidden = !naked;
  keyed(at("naked-rows"), facts.naked, (one) => String(one.id), rowOf(["", "wide", "wide number", "", "number"]), (row, one) =>
    cells(row, [one.resource, one.side, one.quantity, one.status, span(facts.at - one.since)]));
  at("naked-more").hidden = !facts.nakedMore;
  at("positions").hidden = naked;
  put(at("positions"), stops(facts));
  put(at("naked-more"), `${facts.nakedMore} more.`);
  const table = at("refused");
  table.hidden = !facts.refusals.length;
  table.classList.toggle("stale", Boolean(facts.databaseFault));
  put(at("no-refused"), facts.refusals.length ? "" : !about.database || facts.tablesAt === null ? "Not known." : "None on record.");
  keyed(at("refused-rows"), facts.refusals, (one) => [one.resource, one.presented, one.reason, one.who].join(" "), buildRefused, fillRefused);
}

function stops(facts) {
  if (!about.database) return "No database is named: positions and refused writes are not shown.";
  if (facts.positions === null) return "Whether each position has a stop is not known: monitoring.positions cannot be read.";
  return facts.positions ? `${many(facts.positions, "open position")}, each with a stop.` : "There are no open positions.";
}

function buildRefused() {
  const row = make("tr");
  for (const style of ["", "", "number"]) {
    const cell = make("td", "", style);
    cell.append(make("span"), make("span", "", "small"));
    row.append(cell);
  }
  return row;
}

function fillRefused(row, one) {
  const by = [one.holder || one.who, one.operation].filter(Boolean).join(", ");
  const tokens = `${one.presented ? `token ${one.presented}` : "no token"}${one.current ? `, in force ${one.current}` : ""}`;
  const texts = [one.resource || "a row without a lock", by, `${one.reason} (${one.code})`, tokens, when(one.at), one.times > 1 ? `${one.times} times` : ""];
  texts.forEach((text, number) => put(row.children[number >> 1].children[number & 1], text));
}

// --- one lock ---

function facts_of(lock) {
  if (!lock) return [["state", "free"]];
  if (!lock.held) return [["state", lock.closed ? `free, closed for ${span(lock.closed)}` : "free"], ["last token", lock.token], ["fence", fence(lock)]];
  return [
    ["holder", lock.holder], ["operation", lock.operation || "-"], ["token", lock.token], ["grant", lock.grant],
    ["held for", span(lock.age)], ["ttl left", `${span(lock.remaining)} of ${span(lock.ttl)}`],
    ["renewals", lock.late ? `${lock.renewals}, the next is ${span(lock.late)} late` : String(lock.renewals)],
    ["fence", fence(lock)], ...(lock.wanted ? [["wanted", lock.wanted]] : []),
  ];
}

function fence(lock) {
  if (!lock.fence) return "never sealed, or not known";
  return `${lock.fence}, token ${lock.fenceToken}`;
}

function showOne(facts) {
  const one = facts.opened;
  if (!one || one.name !== wish.open) return;
  const lock = one.lock;
  list(at("facts"), facts_of(lock).flatMap(([name, words]) => [["dt", name], ["dd", words]]), ([tag, words]) => make(tag, words));
  at("deeds").hidden = !(about.actions && lock && lock.held);
  at("deeds").lock = lock;
  const waiting = lock ? lock.waiters : 0;
  const texts = one.waiters.map((waiter) => `${waiter.holder}, ${waiter.operation || "no operation"}, for ${span(waiter.waiting)}${waiter.silent > 5000 ? `, not heard of for ${span(waiter.silent)}` : ""}`);
  if (waiting > texts.length) texts.push(`and ${waiting - texts.length} more`);
  at("waiters").classList.toggle("none", !waiting);
  list(at("waiters"), waiting ? texts : ["There are no waiters."]);
  if (!(matchMedia("(hover: hover)").matches && at("picture").matches(":hover"))) at("picture").replaceChildren(picture(one.drawing));
  at("story-fault").hidden = !(one.fault || one.reading);
  put(at("story-fault"), one.fault ? `The history cannot be read: ${one.fault}` : "The history is being read.");
  list(at("lines"), one.lines, (line) => {
    const item = make("li", "", line.kind);
    const time = make("time", when(line.at));
    time.dateTime = new Date(line.at).toISOString();
    item.append(time, make("span", line.told));
    return item;
  });
}

function choose(name, focus = true) {
  const from = wish.open;
  wish.open = name;
  history.replaceState(null, "", name ? `#${encodeURIComponent(name)}` : location.pathname);
  layOut();
  if (before) showLocks(before);
  for (const id of ["facts", "waiters", "lines"]) { at(id).replaceChildren(); delete at(id).dataset.told; }
  at("picture").replaceChildren();
  put(at("done"), "");
  connect();
  if (!focus) return;
  if (name) at("one-title").focus();
  else (button_of(from) || at("filter")).focus();
}

function button_of(name) {
  return [...at("lock-rows").children].find((row) => row.dataset.key === name)?.querySelector("button");
}

function layOut() {
  const opened = Boolean(wish.open);
  at("one").hidden = !opened;
  at("main").classList.toggle("opened", opened);
  put(at("one-title"), wish.open.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cn}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`));
  for (const covered of [at("rest"), document.querySelector("header"), document.querySelector("footer")]) covered.inert = opened && narrow.matches;
}

// --- what is said aloud: changes that matter, and not each second's figures ---

function news(now) {
  if (!before) return [];
  const said = [];
  const fault = (name, was, is) => {
    if (is && !was) said.push(`${name} does not answer`);
    if (was && !is) said.push(`${name} answers again`);
  };
  fault("Redis", before.redisFault, now.redisFault);
  fault("The database", before.databaseFault, now.databaseFault);
  const known = new Set(before.naked.map((one) => one.id));
  for (const one of now.naked) if (!known.has(one.id)) said.push(`${one.resource} has no stop`);
  const last = Math.max(0, ...before.refusals.map((one) => one.at));
  for (const one of now.refusals) if (one.at > last) said.push(`a write for ${one.resource || "a row"} was refused`);
  if (now.late && !before.late) said.push(`${many(now.late, "renewal is", "renewals are")} late`);
  const [was, is] = [before.opened, now.opened];
  if (was && is && was.name === is.name && !now.redisFault) {
    const [old, held] = [was.lock?.held ? was.lock : null, is.lock?.held ? is.lock : null];
    if (held && held.grant !== old?.grant) said.push(`${held.resource} is held by ${held.holder} now`);
    if (old && !held) said.push(`${old.resource} is free now`);
  }
  return said.slice(0, 5);
}

function showFaults(facts) {
  const texts = [];
  const since = (ms) => (ms === null ? "Nothing is known yet." : `What is shown is of ${clock(ms)}, ${span(facts.at - ms)} ago.`);
  if (facts.redisFault) texts.push(["Redis does not answer", `${facts.redisFault}. ${since(facts.locksAt)}`]);
  else if (facts.unread) texts.push(["Not every lock can be read", `not listed is ${facts.unread}`]);
  if (facts.databaseFault) texts.push(["The database does not answer", `${facts.databaseFault}. ${since(facts.tablesAt)}`]);
  list(at("faults"), texts, ([name, words]) => {
    const item = make("li");
    item.append(make("b", `${name}: `), words);
    return item;
  });
}

function show(facts) {
  gap = heard && !trouble ? Date.now() - heard : 0; // many locks take longer to list than the interval
  heard = Date.now();
  trouble = "";
  showFaults(facts);
  showLocks(facts);
  showTables(facts);
  showOne(facts);
  const said = news(facts);
  if (said.length) put(at("said"), `${said.join(". ")}.`);
  const marks = [facts.naked.length ? `${facts.naked.length + facts.nakedMore} without a stop` : "", facts.redisFault ? "no Redis" : ""].filter(Boolean);
  document.title = marks.length ? `(!) ${marks.join(", ")} - ${title}` : title;
  before = facts;
  showLife();
}

function showLife() {
  const silent = heard ? Date.now() - heard : 0;
  const on = !trouble && heard > 0 && silent < Math.max(5000, 3 * about.interval, 2 * gap);
  at("live").className = `live ${on ? "on" : trouble || heard ? "off" : ""}`;
  put(at("live-words"), on ? `live, ${clock(before.at)}` : trouble ? `${trouble}${heard ? `; last state ${span(silent)} ago` : ""}` : heard ? `no news for ${span(silent)}` : "connecting");
}

// --- the connection ---

function connect() {
  clearTimeout(retry);
  stream?.close();
  stream = null;
  if (document.hidden) return; // a browser has few connections for one server: hidden pages leave theirs to others
  const width = Math.max(320, Math.floor((at("picture").clientWidth || 480) / 20) * 20);
  const query = new URLSearchParams({ filter: wish.filter, open: wish.open, span: wish.span, width: String(width) });
  const made = (stream = new EventSource(`/events?${query}`));
  made.addEventListener("about", (event) => {
    about = JSON.parse(event.data);
    put(at("servers"), about.servers.join(", "));
  });
  made.addEventListener("message", (event) => made === stream && show(JSON.parse(event.data)));
  made.addEventListener("error", () => made === stream && lost(made));
}

async function lost(made) {
  if (!trouble) put(at("said"), "The connection is lost. The page tries again by itself.");
  trouble = "connection lost, trying again";
  showLife();
  if (made.readyState !== EventSource.CLOSED) return; // the browser tries again
  const answer = await fetch("/icon.svg", { cache: "no-store" }).catch(() => null);
  if (answer && answer.status === 404) trouble = "lockguard web was started anew: open the URL that it printed";
  showLife();
  if (made === stream) retry = setTimeout(connect, RETRY_MS);
}

// --- what the operator does ---

function sure(deed) {
  const lock = at("deeds").lock;
  if (!lock) return;
  const breaks = deed === "break";
  put(at("sure-title"), `${breaks ? "Break" : "Ask for"} ${lock.resource}?`);
  put(at("sure-words"), `${lock.holder} has held it for ${span(lock.age)}${lock.operation ? ` (${lock.operation})` : ""}, token ${lock.token}. ${breaks
    ? "The fence is raised first, so that what this holder still writes is refused. Its orders on the exchange stay."
    : "The holder is asked to end when it can; nothing is forced."}`);
  put(at("sure-yes"), breaks ? "Break it" : "Ask");
  at("sure-yes").className = breaks ? "danger" : "";
  at("sure-fault").hidden = true;
  at("reason").value = "";
  at("sure").deed = { path: `/${deed}`, body: { resource: lock.name, grant: lock.grant } };
  at("sure").showModal();
  at("reason").focus();
}

async function carryOut(event) {
  event.preventDefault();
  const { path, body } = at("sure").deed;
  at("sure-yes").disabled = true;
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Lockguard": "1" },
      body: JSON.stringify({ ...body, reason: at("reason").value }),
    });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    at("sure").close();
    put(at("done"), told.told);
  } catch (fault) {
    put(at("sure-fault"), fault.message);
    at("sure-fault").hidden = false;
  } finally {
    at("sure-yes").disabled = false;
  }
}

let typing = null;
at("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => { wish.filter = at("filter").value; connect(); }, 250);
});
at("span").addEventListener("change", () => { wish.span = at("span").value; connect(); });
at("close").addEventListener("click", () => choose(""));
at("ask").addEventListener("click", () => sure("ask"));
at("break").addEventListener("click", () => sure("break"));
at("sure-no").addEventListener("click", () => at("sure").close());
at("sure-form").addEventListener("submit", carryOut);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && wish.open && !at("sure").open && !event.defaultPrevented) choose("");
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const row = event.target.closest?.("#lock-rows tr");
  const next = step && row && (step > 0 ? row.nextElementSibling : row.previousElementSibling);
  if (next) { event.preventDefault(); next.querySelector("button").focus(); }
});
document.addEventListener("visibilitychange", connect);
narrow.addEventListener("change", () => { layOut(); connect(); });
addEventListener("hashchange", () => { if (named() !== wish.open) choose(named(), false); });
setInterval(showLife, 1000);
layOut();
connect();
