// What stands beside the timeline: the figures of now, layouts and transitions, pools and prefixes.

import { bytes, byId, clock, el, number, plural, seconds, share } from "./format.js";
import { plan } from "./timeline.js";

const MOST_TRANSITIONS = 6;

export function showFacts({ version, models, engine }) {
  byId("version").textContent = version;
  byId("model").textContent = models[0];
  document.title = `${models[0]} - Seesaw`;
  const layouts = [...plan(engine).keys()];
  const facts = [
    el("li", {}, layouts.length > 1 ? "plan " : "layout ", el("strong", {}, layouts.join(" → "))),
    el("li", {}, `${engine.dtype} on ${engine.device}`),
    el("li", {}, `weights ${engine.weights}`),
    el("li", {}, `context of ${number(engine.max_model_len)} tokens`),
    el("li", {}, `at most ${number(engine.max_num_seqs)} decode at once`),
  ];
  if (models.length > 1) facts.push(el("li", {}, `also as ${models.slice(1).join(", ")}`));
  byId("facts").replaceChildren(...facts);
}

const arrow = (change) => change.replace("->", "→");

/** Whether an engine has said how it is: none has while one is started in a dead one's place. */
const isThere = (stats) => stats.layout !== "";

export function showTiles({ stats }, sample) {
  const rate = (value) => (value === undefined || !isThere(stats) ? "–" : number(value));
  const phase = isThere(stats)
    ? [stats.phase, stats.transition ? `changes ${arrow(stats.transition)}` : `in ${stats.layout}`]
    : ["–", "no engine"];
  const tiles = [
    ["Phase", ...phase],
    ["Running", number(stats.requests_running), "decode or prefill"],
    ["Waiting", number(stats.requests_waiting), "for their prefill"],
    ["Hosted", number(stats.requests_hosted), "in host memory"],
    ["Prompt tokens/s", rate(sample?.prompt_tokens_per_second), `${number(stats.prompt_tokens)} so far`],
    ["Generated tokens/s", rate(sample?.generation_tokens_per_second), `${number(stats.generation_tokens)} so far`],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value, note]) =>
      el("div", {}, el("dt", {}, name), el("dd", { class: "value" }, value), el("dd", { class: "note" }, note)),
    ),
  );
}

export function showLayouts({ engine, stats, started_at }, changes) {
  const all = Object.values(stats.phase_seconds).reduce((sum, each) => sum + each, 0);
  const speeds = stats.speeds?.layouts ?? {};
  const rows = [...plan(engine)].map(([layout, phase]) => {
    const speed = speeds[layout];
    const steps = Object.entries(speed?.decode_seconds ?? {}).map(([sequences, s]) => [Number(sequences), s]);
    const fullest = steps.sort(([a], [b]) => b - a)[0];
    return el(
      "tr",
      { class: layout === stats.layout ? "is-now" : null },
      el("th", { scope: "row" }, layout),
      el("td", {}, phase),
      el("td", {}, share(stats.phase_seconds[phase] ?? 0, all)),
      el("td", {}, speed?.prefill_tokens_per_second ? number(speed.prefill_tokens_per_second) : "–"),
      el("td", {}, fullest?.[1] ? `${seconds(fullest[1])} for ${fullest[0]}` : "–"),
    );
  });
  const heads = ["layout", "for", "time", "prefill tok/s", "decode step"].map((each) => el("th", { scope: "col" }, each));
  byId("plan").replaceChildren(
    el("caption", { class: "unseen" }, "Layouts, the share of time in each, and its speed by measured times"),
    el("thead", {}, el("tr", {}, ...heads)),
    el("tbody", {}, ...rows),
  );
  showTransitions(stats, changes, started_at);
}

function showTransitions(stats, changes, started_at) {
  const count = Object.values(stats.transitions).reduce((sum, each) => sum + each, 0);
  const parts = ["drain", "evacuate", "weights"];
  const spent = parts.map((part) => `${part} ${seconds(stats.transition_seconds[part] ?? 0)}`);
  byId("transitions-sum").textContent = count
    ? `${number(count)} since the start: ${spent.join(", ")}.`
    : "None since the start.";
  const table = byId("transitions");
  table.hidden = !changes.length;
  const heads = ["at", "change", ...parts].map((each) => el("th", { scope: "col" }, each));
  const rows = changes.slice(-MOST_TRANSITIONS).reverse().map(({ at_s, changes, seconds: spent }) => {
    const names = Object.entries(changes).map(([name, n]) => arrow(name) + (n > 1 ? ` × ${n}` : ""));
    return el(
      "tr",
      {},
      el("td", {}, clock(started_at + at_s)),
      el("td", {}, names.join(", ")),
      ...parts.map((part) => el("td", {}, seconds(spent[part] ?? 0))),
    );
  });
  table.replaceChildren(
    el("caption", { class: "unseen" }, "The latest transitions and their parts"),
    el("thead", {}, el("tr", {}, ...heads)),
    el("tbody", {}, ...rows),
  );
}

export function showMemory({ engine, stats }) {
  const s = stats, size = engine.block_size;
  const pools = [
    ["Devices", s.device_blocks_used, s.device_blocks_cached, s.device_blocks_total, engine.device_block_bytes],
    ["Host", s.host_blocks_used, s.host_blocks_cached, s.host_blocks_total, engine.host_block_bytes],
  ];
  const there = pools.filter(([name, , , total]) => total || name === "Devices");
  byId("pools").replaceChildren(
    ...(isThere(s) ? there.map((each) => pool(...each, size)) : [el("p", { class: "faint" }, "No engine holds any.")]),
  );
  const { device = 0, host = 0 } = s.prefix_cache_hits;
  const asked = s.prefix_cache_queries;
  byId("prefixes").replaceChildren(
    asked
      ? meter(
          "Found in the cache",
          `${share(device + host, asked)} of ${number(asked)} prompt tokens`,
          [["hits", device / asked], ["host-hits", host / asked]],
          `${number(device)} on the devices, ${number(host)} in host memory`,
        )
      : el("p", { class: "faint" }, "No prompt was looked up yet."),
  );
}

function pool(name, used, cached, total, blockBytes, blockSize) {
  return meter(
    name,
    `${share(used, total)} in use`,
    [["used", used / (total || 1)], ["cached", cached / (total || 1)]],
    `${number(used)} of ${plural(total, "block")} in use, ${number(cached)} cached; room for ` +
      `${number(total * blockSize)} tokens, ${bytes(total * blockBytes)}`,
  );
}

/** A bar of parts (class and share of it), with its words: what a colour says, they say, too. */
export function meter(name, value, parts, below) {
  const bar = el("div", { class: "bar", role: "img", "aria-label": `${name}: ${value}` });
  for (const [kind, part] of parts) {
    const piece = el("i", { class: kind });
    piece.style.width = `${100 * Math.min(part, 1)}%`;
    bar.append(piece);
  }
  const head = el("div", { class: "head" }, el("strong", {}, name), el("span", {}, value));
  return el("div", { class: "meter" }, head, bar, el("p", {}, below));
}
