// Polls the state, and renders the view that the address names: #endpoint/NAME, #job/KIND/NAME, #pipeline/NAME/...
import { html, render } from "./vendor/lit-html/lit-html.js";
import { shell } from "./views.js";

const EVERY = 1000; // ms
const LISTS = ["", "endpoints", "jobs", "pipelines", "events"];

let state = null;
let tag = "";
let problem = "";
let wake = () => {};
document.body.prepend(Object.assign(document.createElement("div"), { id: "page" }));
const root = document.getElementById("page");

export const route = () => decodeURIComponent(location.hash.replace(/^#\/?/, ""));

function draw() {
  render(shell({ state, route: route(), problem, now: Date.now() / 1000 }), root);
}

async function look(path) {
  const show = LISTS.includes(path) ? "" : path;
  const response = await fetch(`/_platform/api/state?show=${encodeURIComponent(show)}`, {
    headers: tag && state?.show === show ? { "If-None-Match": tag } : {},
    cache: "no-store",
  });
  if (response.status === 304) return;
  if (!response.ok) throw new Error(`status ${response.status}`);
  state = await response.json();
  tag = response.headers.get("ETag") ?? "";
}

async function watch() {
  for (;;) {
    if (!document.hidden) {
      const path = route();
      try {
        await look(path);
        problem = "";
      } catch (error) {
        problem = `The platform does not answer (${error.message}). The page tries again each second.`;
      }
      draw();
      if (path !== route()) continue; // the address has changed meanwhile
    }
    await new Promise((resolve) => {
      wake = resolve;
      setTimeout(resolve, EVERY);
    });
  }
}

addEventListener("hashchange", () => {
  draw();
  scrollTo(0, 0);
  wake();
});
document.addEventListener("visibilitychange", () => wake());
draw();
watch();
