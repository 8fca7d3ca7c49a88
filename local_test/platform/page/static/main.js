// Polls the state, and renders the view that the address names: #endpoint/NAME, #job/KIND/NAME, #pipeline/NAME/...
import { render } from "./vendor/lit-html/lit-html.js";
import { shell } from "./views.js";

const EVERY = 1000; // ms
const LISTS = ["", "endpoints", "jobs", "pipelines", "events"];

let state = null;
let tag = "";
let problem = "";
let shownStep = "";
let shownThing = "";
let wake = () => {};
document.body.prepend(Object.assign(document.createElement("div"), { id: "page" }));
const root = document.getElementById("page");

const route = () => decodeURIComponent(location.hash.replace(/^#\/?/, ""));

function draw() {
  render(shell({ state, route: route(), problem, now: Date.now() / 1000 }), root);
  // Where a step is shown below the graph, it is brought into view.
  const step = document.querySelector(".step")?.dataset.shownStep ?? "";
  if (step && step !== shownStep && matchMedia("(max-width: 960px)").matches) {
    document.querySelector(".step").scrollIntoView();
  }
  shownStep = step;
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
  const thing = route().split("/").slice(0, 2).join("/");
  if (thing !== shownThing) scrollTo(0, 0); // another step or execution of the same pipeline stays where it is
  shownThing = thing;
  wake();
});
document.addEventListener("visibilitychange", () => wake());
draw();
watch();
