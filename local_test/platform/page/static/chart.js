// <line-chart>: a small chart by uPlot, in the colours of the page. Properties: x, series [{label, values, look}], times.
const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];
const WHOLE = [1, 2, 5].flatMap((each) => [0, 1, 2, 3, 4, 5, 6].map((power) => each * 10 ** power)).sort((a, b) => a - b);
const dark = matchMedia("(prefers-color-scheme: dark)");

class LineChart extends HTMLElement {
  #plot = null;
  #shape = "";
  #data = { x: [], series: [] };
  #size = new ResizeObserver(() => this.#fit());
  #again = () => this.#draw(true);

  connectedCallback() {
    this.#size.observe(this);
    dark.addEventListener("change", this.#again);
    this.#draw(true);
  }

  disconnectedCallback() {
    this.#size.disconnect();
    dark.removeEventListener("change", this.#again);
    this.#plot?.destroy();
    this.#plot = null;
  }

  set data(data) {
    const key = JSON.stringify(data);
    if (key === this.key) return;
    this.key = key;
    this.#data = data;
    if (this.isConnected) this.#draw(false);
  }

  #draw(anew) {
    const { x, series, times = false, unit = "", whole = false } = this.#data;
    const shape = JSON.stringify([series.map((each) => each.label), times]);
    const last = series.map((each) => `${each.label} ${shown(each.values.findLast((value) => value != null))}${unit}`);
    this.setAttribute("role", "img");
    this.setAttribute("aria-label", `Chart, last values: ${last.join(", ")}`);
    const values = [x, ...series.map((each) => each.values)];
    if (this.#plot && !anew && shape === this.#shape) {
      this.#plot.setData(values);
      return;
    }
    this.#shape = shape;
    this.#plot?.destroy();
    const style = getComputedStyle(this);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--muted"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
    };
    const options = {
      width: Math.max(120, this.clientWidth),
      height: 150,
      padding: [10, times ? 24 : 8, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      legend: { live: true },
      scales: { x: { time: times }, y: { range: (plot, low, high) => range(low, high, times) } },
      axes: [
        { ...axis, size: 26, space: 60, ...(times ? { values: (plot, ticks) => ticks.map(clock) } : { incrs: WHOLE }) },
        { ...axis, size: 46, space: 26, values: (plot, ticks) => ticks.map(shown), ...(whole ? { incrs: WHOLE } : {}) },
      ],
      series: [
        { label: "x" }, // not shown
        ...series.map((each, at) => ({
          label: each.label,
          stroke: colour(each.colour ?? COLOURS[at % COLOURS.length]),
          width: 2,
          points: { show: x.length < 40, size: 4 },
          spanGaps: true,
          // Away from the chart the legend has the last value.
          value: (plot, raw, number, at) => named(at == null ? plot.data[number].findLast((value) => value != null) : raw, unit),
        })),
      ],
    };
    this.#plot = new uPlot(options, values, this);
  }

  #fit() {
    if (this.#plot && this.clientWidth > 0 && Math.abs(this.#plot.width - this.clientWidth) > 1) {
      this.#plot.setSize({ width: this.clientWidth, height: 150 });
    }
  }
}

const hour = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const clock = (seconds) => hour.format(seconds * 1000).replace(/\s?[AP]M$/i, "");
const named = (value, unit) => (value == null ? "–" : `${shown(value)}${unit}`);
const shown = (value) => {
  if (value == null) return "";
  const size = Math.abs(value);
  if (size >= 10000) return value.toExponential(0).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
};

// Counts and latencies start at zero. A metric of a job has its own range.
function range(low, high, fromZero) {
  if (low == null || high == null) return [0, 1];
  if (fromZero) return [0, high > 0 ? high * 1.1 : 1];
  const margin = (high - low || Math.abs(high) || 1) * 0.1;
  return [low - margin, high + margin];
}

customElements.define("line-chart", LineChart);
