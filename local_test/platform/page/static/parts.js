// Small pieces that several views use.
import { html, nothing } from "./vendor/lit-html/lit-html.js";

// Any status of AWS's as one of six looks.
const LOOKS = {
  good: ["InService", "Completed", "Succeeded", "Active", "Approved", "OK"],
  busy: ["Creating", "Updating", "SystemUpdating", "InProgress", "Executing", "Starting", "Pending", "Deleting"],
  bad: ["Failed", "RollingBack", "UpdateRollbackFailed", "Rejected", "Alarm"],
  halted: ["Stopped", "Stopping", "OutOfService"],
};
const WORDS = { InService: "In service", InProgress: "In progress", RollingBack: "Rolling back" };

export const look = (status) => Object.keys(LOOKS).find((each) => LOOKS[each].includes(status)) ?? "none";
export const dot = (status) => html`<span class="dot ${look(status)}" title=${status || "not started"}></span>`;
export const badge = (status) =>
  html`<span class="badge ${look(status)}" data-status=${status || "none"}>${dot(status)}${WORDS[status] ?? status ?? ""}</span>`;

const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const hour = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
export const moment = (seconds) => (seconds ? clock.format(seconds * 1000) : "");
export const time = (seconds) => (seconds ? hour.format(seconds * 1000) : "");

export function ago(seconds, now) {
  if (!seconds) return "";
  const past = Math.max(0, now - seconds);
  return past < 5 ? "now" : `${duration(past, true)} ago`;
}

export function duration(seconds, rough = false) {
  if (seconds < 10 && !rough) return `${Math.max(0, seconds).toFixed(1)} s`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = units.findIndex(([, size]) => seconds >= size);
  if (at < 0) return "0 s";
  const [name, size] = units[at];
  const first = Math.floor(seconds / size);
  const next = units[at + 1];
  const rest = next ? Math.floor((seconds % size) / next[1]) : 0;
  return rest && !rough ? `${first} ${name} ${rest} ${next[0]}` : `${first} ${name}`;
}

export const took = (start, end, now) => (start ? duration((end || now) - start) : "");
export const number = (value) => (Number.isInteger(value) ? String(value) : value?.toPrecision(4) ?? "");

export const facts = (pairs) => html`<dl class="facts">
  ${pairs.filter(([, value]) => value !== "" && value != null && value !== nothing).map(
    ([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`,
  )}
</dl>`;

export const failure = (reason) => (reason ? html`<div class="alert" role="alert">${reason}</div>` : nothing);
export const json = (value) => html`<pre class="json" tabindex="0">${JSON.stringify(value, null, 2)}</pre>`;
export const folded = (title, value, open = false) =>
  value && Object.keys(value).length ? html`<details class="card" ?open=${open}><summary>${title}</summary>${json(value)}</details>` : nothing;

export const section = (title, content, extra = nothing) =>
  content === nothing ? nothing : html`<section class="card"><header><h2>${title}</h2>${extra}</header>${content}</section>`;

export const empty = (text) => html`<p class="empty">${text}</p>`;

export function log(lines) {
  if (!lines?.length) return empty("No log lines yet.");
  const streams = new Set(lines.map((each) => each.stream)).size;
  return html`<log-lines .text=${lines
    .map((each) => `${time(each.time)}  ${streams > 1 ? `${each.stream.split("/").pop()}  ` : ""}${each.message}`)
    .join("\n")}></log-lines>`;
}

// Stays at the end of a growing log while the reader is there.
class LogLines extends HTMLElement {
  connectedCallback() {
    this.tabIndex = 0;
    this.setAttribute("role", "log");
    this.setAttribute("aria-live", "off");
    this.scrollTop = this.scrollHeight;
  }

  set text(text) {
    if (text === this.textContent) return;
    const following = this.scrollTop + this.clientHeight >= this.scrollHeight - 8;
    this.textContent = text;
    if (following) requestAnimationFrame(() => (this.scrollTop = this.scrollHeight));
  }
}
customElements.define("log-lines", LogLines);
