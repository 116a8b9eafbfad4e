// Batches: those that have not ended with their pace, and some that have.

import { byId, duration, el, moment, number, plural } from "./format.js";

const STATUS_WORDS = { in_progress: "in progress" };
const MOST_ENDED = 5;

/** Shows them; `ended` are batches as `/v1/batches` lists them. */
export function showJobs({ jobs, num_jobs }, ended) {
  byId("jobs-card").hidden = jobs === null;
  if (jobs === null) return;
  const shown = jobs.map((job) => article(job.batch, job));
  const others = num_jobs - jobs.length;
  if (others) shown.push(el("p", {}, `and ${number(others)} that wait behind these`));
  shown.push(...ended.slice(0, MOST_ENDED).map((batch) => article(batch)));
  if (!shown.length) shown.push(el("p", {}, "None yet: they come through /v1/files and /v1/batches."));
  byId("jobs").replaceChildren(...shown);
}

function article(batch, open = null) {
  const { total, completed, failed } = batch.request_counts;
  const status = STATUS_WORDS[batch.status] ?? batch.status;
  const about = `${batch.endpoint} · ${status} · created ${moment(batch.created_at)}`;
  const tags = Object.entries(batch.metadata ?? {}).map(([key, value]) => el("li", {}, `${key}: ${value}`));
  const [error] = batch.errors?.data ?? [];
  const name = el("div", {}, el("code", {}, batch.id), el("span", { class: "about" }, about));
  if (tags.length) name.append(el("ul", { class: "tags", "aria-label": "Metadata" }, ...tags));
  return el(
    "article",
    { class: "job", "aria-label": `Batch ${batch.id}` },
    name,
    progress(total, completed, failed, open),
    left(batch, open, total - completed - failed),
    error ? el("p", { class: "trouble" }, error.line ? `Line ${error.line}: ${error.message}` : error.message) : null,
  );
}

function progress(total, completed, failed, open) {
  const done = completed + failed;
  const bar = el("div", {
    class: "bar",
    role: "progressbar",
    "aria-label": "Rows done",
    "aria-valuemin": 0,
    "aria-valuemax": Math.max(total, 1),
    "aria-valuenow": done,
  });
  for (const [kind, count] of [["done", completed], ["failed", failed]]) {
    const piece = el("i", { class: kind });
    piece.style.width = `${(100 * count) / Math.max(total, 1)}%`;
    bar.append(piece);
  }
  const counts = total
    ? `${number(done)} of ${plural(total, "row")}${failed ? `, ${number(failed)} with an error` : ""}`
    : open ? "rows are not counted yet" : "no row was sent";
  return el("div", {}, bar, el("p", { class: "counts" }, counts));
}

function left(batch, open, rows) {
  if (!open) {
    const end = batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at;
    const after = end ? `after ${duration(end - batch.created_at)}` : "";
    return el("div", { class: "left" }, el("strong", {}, batch.status), after);
  }
  if (open.seconds_left !== null && rows) {
    const pace = open.rows_per_second ? `${number(open.rows_per_second)} rows/s` : "waits for those before";
    return el("div", { class: "left" }, el("strong", {}, `${duration(open.seconds_left)} left`), pace);
  }
  const words = { in_progress: rows ? "waiting" : "writing", cancelling: "being cancelled" };
  const word = words[batch.status] ?? batch.status;
  return el("div", { class: "left" }, el("strong", {}, word), `expires ${moment(batch.expires_at)}`);
}
