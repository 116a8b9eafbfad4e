// The ribbon of layouts and phases, and what the server did beside it, over one axis of time.

import { byId, clock, duration, el, number, plural, seconds, share, svg } from "./format.js";

// Seconds, their name, and seconds between ticks: the shortest that shows all there is.
const WINDOWS = [[60, "minute", 15], [120, "two minutes", 30], [300, "five minutes", 60], [600, "ten minutes", 120]];
const KEPT_S = WINDOWS.at(-1)[0];
const GAP_S = 5; // without a sample: nothing was heard
const LANE = 20, TICK = 9, PLOT = 58, AXIS = 18; // pixels high
const LEAST_LABEL = 44; // pixels of a stretch that has its name in it

/** Keeps what came, and draws it. Times are seconds since the server's start. */
export class Timeline {
  constructor() {
    this.container = byId("timeline");
    this.status = null;
    this.window = WINDOWS[0];
    this.pointed = null; // a share of the width, where the pointer is
    this.forget();
    new ResizeObserver(() => this.draw()).observe(this.container);
    this.container.addEventListener("pointermove", (event) => this.point(event));
    this.container.addEventListener("pointerleave", () => this.point(null));
  }

  forget() {
    this.samples = [];
    this.changes = [];
  }

  take(status) {
    this.status = status;
    const { phases, ...columns } = status.samples;
    columns.at_s.forEach((at_s, i) => {
      const shares = Object.entries(phases).map(([phase, values]) => [phase, values[i]]);
      const sample = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[i]]));
      this.samples.push({ ...sample, shares: shares.filter(([, value]) => value > 0) });
    });
    this.changes.push(...status.transitions);
    const first = status.now_s - KEPT_S;
    this.samples = this.samples.filter((each) => each.at_s > first);
    this.changes = this.changes.filter((each) => each.at_s > first);
    const since = this.samples.length ? this.samples[0].at_s - this.samples[0].seconds : status.now_s;
    this.window = WINDOWS.find(([length]) => length >= status.now_s - since) ?? WINDOWS.at(-1);
    this.draw();
  }

  get latest() {
    return this.samples.at(-1);
  }

  draw() {
    if (!this.status) return;
    const { engine, stats } = this.status;
    const layouts = plan(engine);
    if (stats.layout && !layouts.has(stats.layout)) layouts.set(stats.layout, stats.phase);
    if (!this.container.clientWidth) return; // hidden, until a key is given
    const rows = [...layouts].map(([layout, phase]) => this.lane(layout, phase));
    if (layouts.size > 1) rows.push(this.ticks());
    const last = this.latest;
    rows.push(
      this.plot("Prompt tokens/s", last?.prompt_tokens_per_second, [["prefill", "prompt_tokens_per_second"]]),
      this.plot("Generated tokens/s", last?.generation_tokens_per_second, [["decode", "generation_tokens_per_second"]]),
      this.plot("Sequences", null, [
        ["running", "requests_running"],
        ["waiting", "requests_waiting"],
        ["hosted", "requests_hosted"],
      ]),
      row("axis", el("span"), this.axis()),
    );
    this.container.replaceChildren(patterns(), ...rows);
    byId("time-title").textContent = `The last ${this.window[1]}`;
    byId("legend").replaceChildren(...legend([...new Set(layouts.values())], layouts.size > 1));
    this.read();
  }

  get width() {
    const whole = this.container.clientWidth;
    return Math.max(whole > 520 ? whole - 142 : whole, 100);
  }

  x(at_s) {
    return Math.max(0, Math.min(this.width, this.width * (1 + (at_s - this.status.now_s) / this.window[0])));
  }

  picture(height, label, ...children) {
    const attributes = { viewBox: `0 0 ${this.width} ${height}`, height, role: "img", "aria-label": label };
    const at = this.pointed === null ? null : this.pointed * this.width;
    const cursor = at === null ? null : svg("line", { class: "cursor", x1: at, x2: at, y1: 0, y2: height });
    return svg("svg", attributes, ...children, cursor);
  }

  /** When the engine was in a layout: as high as its share of each second, in the colour of the phase. */
  lane(layout, phase) {
    const shapes = [svg("rect", { class: "track", width: this.width, height: LANE, rx: 3 })], names = [];
    const stretches = this.stretches(layout);
    for (const { from, to, share, phase, isIdle } of stretches) {
      const [x0, x1] = [this.x(from), this.x(to)];
      const kind = `phase-${phase}${isIdle ? " is-idle" : ""}`;
      shapes.push(svg("rect", { class: kind, x: x0, width: x1 - x0, y: LANE * (1 - share), height: LANE * share }));
      if (x1 - x0 >= LEAST_LABEL && share === 1) {
        const said = isIdle ? "idle" : phase;
        names.push(svg("text", { class: `on-${said}`, x: (x0 + x1) / 2, y: 14, "text-anchor": "middle" }, said));
      }
    }
    shapes.push(...this.changes.flatMap((change) => this.mark(change, layout)));
    const total = stretches.reduce((sum, { from, to, share }) => sum + share * (to - from), 0);
    const name = el("span", { class: "name" }, el("strong", {}, layout), phase);
    const label = `${layout}: ${seconds(total)} of the last ${this.window[1]}`;
    return row("lane", name, this.picture(LANE, label, ...shapes, ...names));
  }

  /** Which share of when, neighbours that are alike together. */
  stretches(layout) {
    const { engine } = this.status;
    const home = { prefill: engine.prefill, decode: engine.decode, tail: engine.tail || engine.decode };
    const stretches = [];
    for (const { at_s, seconds, shares, ...sample } of this.samples) {
      const { requests_running, requests_waiting, requests_hosted, generation_tokens_per_second } = sample;
      const isIdle = !(requests_running + requests_waiting + requests_hosted + generation_tokens_per_second);
      const from = at_s - seconds;
      for (const [phase, share] of shares) {
        if ((shares.length === 1 ? sample.layout : home[phase]) !== layout) continue;
        const last = stretches.at(-1);
        const isAlike = last && last.phase === phase && last.isIdle === isIdle && last.share === share;
        if (isAlike && from - last.to < 0.01) last.to = at_s;
        else stretches.push({ from, to: at_s, share, phase, isIdle });
      }
    }
    return stretches;
  }

  /** A change as long as it took, where that can be seen: the steps in flight end, then no layout computes. Of several
   *  that were seen at once nobody knows when each was. */
  mark(change, layout) {
    const [[name, count], ...others] = Object.entries(change.changes);
    if (count > 1 || others.length) return [];
    const [start, drained, end] = this.ends(change);
    return [["drain", start, drained], ["change", drained, end]]
      .filter(([kind, from, to]) => to - from > 1 && (kind === "change" || name.startsWith(`${layout}->`)))
      .map(([kind, from, to]) => svg("rect", { class: kind, x: from, width: to - from, height: LANE }));
  }

  ends({ at_s, seconds: { drain = 0, evacuate = 0, weights = 0 } }) {
    return [drain + evacuate + weights, evacuate + weights, 0].map((before) => this.x(at_s - before));
  }

  ticks() {
    const seen = this.changes.filter(({ at_s }) => at_s > this.status.now_s - this.window[0]);
    const count = seen.flatMap(({ changes }) => Object.values(changes)).reduce((sum, each) => sum + each, 0);
    const tick = (change) => svg("rect", { class: "change", x: this.ends(change)[1] - 0.5, width: 1, height: TICK });
    const shapes = seen.map(tick);
    const name = el("span", { class: "name" }, el("strong", {}, number(count)), count === 1 ? "transition" : "transitions");
    return row("lane", name, this.picture(TICK, `${plural(count, "transition")} in the last ${this.window[1]}`, ...shapes));
  }

  plot(title, value, curves) {
    const most = Math.max(1, ...this.samples.flatMap((each) => curves.map(([, column]) => each[column])));
    const y = (value) => PLOT - 1 - ((PLOT - 16) * value) / most;
    const shapes = [0.5, PLOT - 1].map((at) => svg("line", { class: "grid", x1: 0, x2: this.width, y1: at, y2: at }));
    for (const [name, column] of curves) {
      for (const part of parts(this.samples)) {
        const points = part.map((each) => `${this.x(each.at_s).toFixed(1)},${y(each[column]).toFixed(1)}`);
        const [first, last] = [this.x(part[0].at_s), this.x(part.at(-1).at_s)];
        if (curves.length === 1) {
          const outline = [`${first},${PLOT - 1}`, ...points, `${last},${PLOT - 1}`].join(" ");
          shapes.push(svg("polygon", { class: `area-${name}`, points: outline }));
        }
        shapes.push(svg("polyline", { class: `curve line-${name}`, points: points.join(" ") }));
      }
    }
    shapes.push(svg("text", { x: this.width - 3, y: 12, "text-anchor": "end" }, this.samples.length ? number(most) : ""));
    const names = curves.map(([name]) => el("span", {}, sampleOf(name), name));
    const label = el(
      "span",
      { class: "name" },
      value === null ? null : el("strong", {}, value === undefined ? "–" : number(value)),
      curves.length === 1 ? title : el("span", { class: "keys" }, ...names),
    );
    const said = value === null || value === undefined ? "" : `, ${number(value)} now`;
    return row("", label, this.picture(PLOT, `${title}: at most ${number(most)}${said}`, ...shapes));
  }

  axis() {
    const ticks = [];
    const [length, , every] = this.window;
    for (let ago = length; ago >= 0; ago -= this.width < 420 ? length / 2 : every) {
      const x = this.width * (1 - ago / length);
      const anchor = ago === length ? "start" : ago === 0 ? "end" : "middle";
      ticks.push(svg("text", { x, y: 12, "text-anchor": anchor }, ago ? `${duration(ago)} ago` : "now"));
    }
    return svg("svg", { viewBox: `0 0 ${this.width} ${AXIS}`, height: AXIS, "aria-hidden": "true" }, ...ticks);
  }

  point(event) {
    if (event) {
      const box = this.container.querySelector("svg[role=img]")?.getBoundingClientRect();
      if (!box) return;
      const share = (event.clientX - box.left) / box.width;
      this.pointed = share >= 0 && share <= 1 ? share : null;
    } else {
      this.pointed = null;
    }
    this.draw();
  }

  /** The sample of a moment; of the last few seconds, the latest. */
  at(at_s) {
    const last = this.latest;
    if (last && at_s > last.at_s) return at_s - last.at_s < GAP_S ? last : undefined;
    return this.samples.find((each) => each.at_s >= at_s && each.at_s - each.seconds <= at_s);
  }

  /** What was where the pointer is. */
  read() {
    const { started_at, now_s } = this.status;
    let said = "Point at a moment to read its numbers.";
    if (this.pointed !== null) {
      const at_s = now_s - this.window[0] * (1 - this.pointed);
      const sample = this.at(at_s);
      said = `${clock(started_at + at_s)}: ${sample ? inWords(sample) : "nothing was heard"}`;
    }
    byId("readout").textContent = said;
  }
}

function inWords(sample) {
  const phases = sample.shares.map(([phase, part]) => (part < 0.995 ? `${phase} ${share(part, 1)}` : phase));
  const [prompt, generated] = [sample.prompt_tokens_per_second, sample.generation_tokens_per_second].map(number);
  return (
    `${sample.layout}, ${phases.join(", ")}; ${prompt} prompt and ${generated} generated tokens/s; ` +
    `${sample.requests_running} running, ${sample.requests_waiting} waiting, ${sample.requests_hosted} hosted`
  );
}

/** The layouts, each with the phase that it is there for. */
export function plan(engine) {
  const { prefill, decode, tail } = engine;
  const layouts = new Map();
  for (const [layout, phase] of [[prefill, "prefill"], [decode, "decode"], [tail, "tail"]]) {
    if (layout && !layouts.has(layout)) layouts.set(layout, prefill === decode && !tail ? "decode" : phase);
  }
  return layouts;
}

function row(kind, name, picture) {
  return el("div", { class: `row ${kind}` }, name, picture);
}

/** Samples in runs without a gap. */
function parts(samples) {
  const runs = [];
  for (const sample of samples) {
    const last = runs.at(-1);
    if (last && sample.at_s - sample.seconds - last.at(-1).at_s < GAP_S) last.push(sample);
    else runs.push([sample]);
  }
  return runs;
}

function sampleOf(name) {
  const line = svg("line", { class: `curve line-${name}`, x1: 0, x2: 22, y1: 5, y2: 5 });
  return svg("svg", { width: 22, height: 10, viewBox: "0 0 22 10", "aria-hidden": "true" }, line);
}

function patterns() {
  const stroke = svg("line", { class: "drain-line", x1: 0, x2: 0, y1: 0, y2: 6 });
  const size = { width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  const pattern = svg("pattern", { id: "drain", ...size }, stroke);
  return svg("svg", { width: 0, height: 0, "aria-hidden": "true", class: "unseen" }, svg("defs", {}, pattern));
}

function legend(phases, changes) {
  const size = { width: 14, height: 10 };
  const key = (kind, name) =>
    el("li", {}, svg("svg", { ...size, "aria-hidden": "true" }, svg("rect", { class: kind, ...size, rx: 2 })), name);
  return [
    ...phases.map((phase) => key(`phase-${phase}`, phase)),
    ...(changes ? [key("drain", "drains"), key("change", "changes layout")] : []),
  ];
}
