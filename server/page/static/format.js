// Elements, and numbers as people read them. Whatever comes from outside gets into the page as text, never as HTML.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (those that are null or false are left out) and children. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Three digits, or all of a whole number below a million. */
export function number(value) {
  if (value >= 1e9) return `${digits(value / 1e9)} G`;
  if (value >= 1e6) return `${digits(value / 1e6)} M`;
  return value >= 100 || Number.isInteger(value) ? whole.format(value) : digits(value);
}

function digits(value) {
  if (value >= 10) return value.toFixed(value >= 100 ? 0 : 1);
  return value >= 0.01 ? value.toFixed(2) : value.toPrecision(1);
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1023.5 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit ? digits(value) : value} ${units[unit]}`;
}

export function seconds(value) {
  if (value === 0) return "0 s";
  if (value < 1) return `${digits(value * 1000)} ms`;
  if (value < 60) return `${digits(value)} s`;
  return duration(value);
}

/** In the two largest units. */
export function duration(value) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  let left = Math.round(value);
  if (!left) return "0 s";
  const first = units.findIndex(([, size]) => left >= size);
  const parts = [];
  for (const [name, size] of units.slice(first, first + 2)) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count || !parts.length) parts.push(`${count} ${name}`);
  }
  return parts.join(" ");
}

export function share(part, all) {
  if (!all) return "0 %";
  const percent = (100 * part) / all;
  return `${percent > 0 && percent < 1 ? "< 1" : Math.round(percent)} %`;
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString("en-GB");
}

/** The time, and the day if it is another one. */
export function moment(unixSeconds) {
  const date = new Date(unixSeconds * 1000);
  const isToday = date.toDateString() === new Date().toDateString();
  const day = isToday ? "" : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, `;
  return day + date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}
