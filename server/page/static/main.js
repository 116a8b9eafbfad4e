// Asks for /status every second while the page is seen, and shows what comes. Nothing is kept but the key.

import { ApiError, ask, key } from "./api.js";
import { byId, duration } from "./format.js";
import { showJobs } from "./jobs.js";
import { showFacts, showLayouts, showMemory, showTiles } from "./panels.js";
import { Prompt } from "./prompt.js";
import { Timeline } from "./timeline.js";

const POLL_MS = 1000, AWAY_POLL_MS = 3000, ANSWER_MS = 10_000;
const AWAY = "The server does not answer: it is starting, draining, or gone. This page goes on asking.";
const ENDED = ["failed", "completed", "expired", "cancelled"];
const SILENT_S = 5; // an engine that works or idles is heard of more often

const timeline = new Timeline();
const prompt = new Prompt();
let startedAt = null, heardTo = 0; // of the server that answered last
let timer = null, isAsking = false;
let openIds = null, endedBatches = [];

async function poll() {
  clearTimeout(timer);
  if (document.hidden || isAsking) return;
  isAsking = true;
  let wait = POLL_MS;
  try {
    const response = await ask(`status?after=${heardTo}`, { signal: AbortSignal.timeout(ANSWER_MS) });
    await show(await response.json());
  } catch (error) {
    wait = error instanceof ApiError && error.status === 401 ? null : AWAY_POLL_MS;
    fail(error);
  }
  isAsking = false;
  if (wait !== null) timer = setTimeout(poll, wait);
}

async function show(status) {
  if (startedAt !== status.started_at) {
    const isPartial = heardTo > 0;
    [startedAt, heardTo, openIds] = [status.started_at, 0, null];
    timeline.forget();
    showFacts(status);
    prompt.offer(status);
    if (isPartial) return; // this server was asked for what came after another one's time
  }
  heardTo = status.now_s;
  byId("key-form").hidden = true;
  byId("forget-key").hidden = !key.get();
  byId("main").hidden = false;
  byId("main").classList.remove("stale");
  showState(status);
  timeline.take(status);
  showTiles(status, timeline.latest);
  showLayouts(status, timeline.changes);
  showMemory(status);
  await findEnded(status);
  showJobs(status, endedBatches);
}

function showState({ stats, trouble, heard_s_ago }) {
  if (trouble !== null) return say("trouble", "Takes no requests", trouble);
  if (heard_s_ago > SILENT_S) {
    return say("trouble", "Engine is silent", `Nothing was heard of the engine for ${duration(heard_s_ago)}.`);
  }
  const isBusy = stats.requests_running + stats.requests_waiting + stats.requests_hosted > 0;
  say(isBusy ? "busy" : "idle", isBusy ? "Working" : "Idle");
}

/** Only what has changed is written: whoever listens to the page hears it again, else. */
function say(kind, word, trouble = "") {
  const state = byId("state"), box = byId("trouble");
  state.dataset.kind = kind;
  if (byId("state-word").textContent !== word) byId("state-word").textContent = word;
  if (box.textContent !== trouble) box.textContent = trouble;
  box.hidden = !trouble;
}

function fail(error) {
  if (error instanceof ApiError && error.status === 401) {
    if (key.get()) byId("key-hint").textContent = "The server does not take this key.";
    key.set("");
    byId("key-form").hidden = false;
    byId("main").hidden = byId("forget-key").hidden = true;
    say("locked", "Needs a key");
    byId("key").focus();
  } else if (error instanceof ApiError) {
    byId("main").classList.add("stale");
    say("trouble", "Takes no requests", error.message);
  } else {
    byId("main").classList.add("stale");
    say("trouble", "No answer", AWAY);
  }
}

/** Batches end seldom: they are asked for when one that was open is not any more. */
async function findEnded({ jobs }) {
  if (jobs === null) return;
  const ids = jobs.map((job) => job.batch.id).join();
  if (ids === openIds) return;
  const { data } = await (await ask("v1/batches?limit=20")).json();
  endedBatches = data.filter((batch) => ENDED.includes(batch.status));
  openIds = ids;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key").value = "";
  poll();
});
byId("forget-key").addEventListener("click", () => {
  key.set("");
  location.reload();
});
document.addEventListener("visibilitychange", poll);
poll();
