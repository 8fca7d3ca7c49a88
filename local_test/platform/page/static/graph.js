// A pipeline's graph: dagre places the steps, links with their state are put there, and the edges are drawn behind.
import { html, nothing, svg } from "./vendor/lit-html/lit-html.js";
import { Graph, layout } from "./vendor/dagre/dagre.esm.js";
import { dot, look, took } from "./parts.js";

const WIDTH = 208;
const HEIGHT = 58;
const SMALLEST = 0.68;
let placed = { key: "", graph: null };

function place(given) {
  const key = JSON.stringify(given);
  if (placed.key !== key) {
    const graph = new Graph().setGraph({ rankdir: "TB", nodesep: 28, ranksep: 44, marginx: 12, marginy: 12 });
    graph.setDefaultEdgeLabel(() => ({}));
    for (const { name } of given.nodes) graph.setNode(name, { width: WIDTH, height: HEIGHT });
    for (const { from, to, label } of given.edges) {
      graph.setEdge(from, to, label ? { label, width: 36, height: 16, labelpos: "c" } : {});
    }
    layout(graph);
    placed = { key, graph };
  }
  return placed.graph;
}

function path(points) {
  const [first, ...rest] = points;
  let { x, y } = first;
  let drawn = `M${x},${y}`;
  for (const next of rest) {
    const middle = (y + next.y) / 2;
    drawn += `C${x},${middle} ${next.x},${middle} ${next.x},${next.y}`;
    ({ x, y } = next);
  }
  return drawn;
}

// `runs`: the steps of an execution by name; `link`: the address of a step; `ended`: whether the execution has.
export function pipelineGraph({ graph: given, runs, link, chosen, ended, now }) {
  if (!given.nodes.length) return nothing;
  const graph = place({ nodes: given.nodes.map(({ name }) => ({ name })), edges: given.edges });
  const { width, height } = graph.graph();
  const edge = ({ from, to, label }) => {
    const { points, x, y } = graph.edge(from, to);
    const followed = runs[from] && runs[to] ? "followed" : "";
    return svg`<path class="edge ${followed}" d=${path(points)} marker-end="url(#arrow)"></path>
      ${label ? svg`<text class="branch" x=${x} y=${y + 4}>${label}</text>` : nothing}`;
  };
  const node = ({ name, title, type }) => {
    const { x, y } = graph.node(name);
    const run = runs[name];
    const status = run?.StepStatus ?? "";
    const note = run
      ? run.CacheHitResult?.SourcePipelineExecutionArn ? "from the cache" : took(run.StartTime, run.EndTime, now)
      : ended ? "did not run" : "";
    return html`<a class="node ${look(status)}" href=${link(name)} data-step=${name} data-status=${status || "none"}
        aria-current=${name === chosen ? "true" : "false"}
        .style=${`left:${x - WIDTH / 2}px;top:${y - HEIGHT / 2}px;width:${WIDTH}px;height:${HEIGHT}px`}>
        <strong>${dot(status)}<span>${title}</span></strong>
        <small><span>${type}</span><span>${note}</span></small>
      </a>`;
  };
  return html`<fit-width class="graph" tabindex="0" role="group" aria-label="Graph of the pipeline">
    <div class="canvas" .style=${`width:${width}px;height:${height}px`}>
      <svg width=${width} height=${height} aria-hidden="true">
        <defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
          <path d="M0,0L8,4L0,8z"></path></marker></defs>
        ${given.edges.map(edge)}
      </svg>
      ${given.nodes.map(node)}
    </div>
  </fit-width>`;
}

// Makes a wide graph smaller, as far as its text stays readable. What is still wider is scrolled, from its middle.
class FitWidth extends HTMLElement {
  #size = new ResizeObserver(() => this.#fit());

  #key = "";

  connectedCallback() {
    this.#size.observe(this);
    this.#size.observe(this.querySelector(".canvas"));
  }

  disconnectedCallback() {
    this.#size.disconnect();
  }

  #fit() {
    const canvas = this.querySelector(".canvas");
    const key = `${canvas.style.width} ${canvas.style.height} ${this.clientWidth}`;
    if (key === this.#key) return;
    this.#key = key;
    canvas.style.zoom = Math.max(SMALLEST, Math.min(1, this.clientWidth / parseFloat(canvas.style.width)));
    this.scrollLeft = (this.scrollWidth - this.clientWidth) / 2;
  }
}
customElements.define("fit-width", FitWidth);
