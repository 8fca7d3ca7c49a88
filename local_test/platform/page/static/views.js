// The views, as functions of the state.
import { html, nothing } from "./vendor/lit-html/lit-html.js";
import "./chart.js";
import { pipelineGraph } from "./graph.js";
import "./invoke.js";
import { ago, badge, dot, duration, empty, facts, failure, folded, json, log, moment, number, section, time, took } from "./parts.js";

const KINDS = { training: "Training", processing: "Processing", tuning: "Tuning", transform: "Transform" };
const BESIDE = 8; // newest of each kind in the list at the side
const PERIOD = 10; // seconds of a value in the charts
const MODELS = 60; // shown of an instance
const to = (...names) => `#${names.map(encodeURIComponent).join("/")}`;
const ending = (status) => !["Executing", "Stopping", "InProgress", "Starting", "", undefined].includes(status);

// The frame: the list at the side, and the view of the address.

export function shell(context) {
  const { state, route, problem } = context;
  return html`
    <a class="skip" href="#content" @click=${(event) => {
      event.preventDefault();
      document.getElementById("content").focus();
    }}>Skip to the content</a>
    <nav aria-label="Main">
      <a class="brand" href="#"><img src="/_platform/icon.svg" alt="" width="26" height="26" />
        <span>SageMaker<small>on this machine</small></span></a>
      ${problem ? html`<p class="alert" role="alert">${problem}</p>` : nothing}
      ${group(context, "endpoints", "Endpoints", state?.endpoints, (each) => [to("endpoint", each.name), each.name, each.status, each.created])}
      ${group(context, "jobs", "Jobs", state?.jobs, (each) => [to("job", each.kind, each.name), each.name, each.status, each.created])}
      ${group(context, "pipelines", "Pipelines", state?.pipelines, (each) => [
        to("pipeline", each.name), each.name, each.executions[0]?.status, each.executions[0]?.started])}
      <div class="group"><a class="head" href="#events" aria-current=${route === "events" ? "page" : "false"}>Events</a></div>
    </nav>
    <main id="content" tabindex="-1">${state ? view(context) : empty("Loading…")}</main>`;
}

function group({ route, now }, list, title, items = [], of) {
  const under = route.split("/")[0] === list.slice(0, -1);
  return html`<div class="group">
    <a class="head ${under ? "under" : ""}" href="#${list}" aria-current=${route === list ? "page" : "false"}>${title}<span class="count">${items.length || ""}</span></a>
    <ul>${items.slice(0, BESIDE).map((each) => {
      const [href, name, status, when] = of(each);
      const short = name.replace(/^pipelines-[a-z0-9]{12}-/, ""); // of a pipeline's job the step's name
      const here = `#${route}`;
      return html`<li><a href=${href} title=${name} aria-current=${here === href || here.startsWith(`${href}/`) ? "page" : "false"}>
        ${dot(status)}<span>${short}</span><time>${ago(when, now)}</time></a></li>`;
    })}</ul>
  </div>`;
}

function view(context) {
  const { state, route } = context;
  const [kind] = route.split("/");
  if (kind === "") return overview(context);
  if (kind === "endpoints") return list("Endpoints", endpoints(context, state.endpoints));
  if (kind === "jobs") return list("Jobs", jobs(context, state.jobs));
  if (kind === "pipelines") return list("Pipelines", pipelines(context, state.pipelines));
  if (kind === "events") return list("Events", events(state.events));
  if (state.show !== route) return empty("Loading…");
  if (!state.shown) return html`<h1>Not found</h1>${empty(`The platform has no ${route.replaceAll("/", " ")}. It may have been deleted.`)}`;
  return { endpoint, job: jobView, pipeline }[kind](context, state.shown);
}

const list = (title, content) => html`<h1>${title}</h1><section class="card">${content}</section>`;

// Lists

function table(heads, rows, none) {
  if (!rows.length) return empty(none);
  return html`<div class="scroll"><table>
    <thead><tr>${heads.map((each) => html`<th scope="col">${each}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr>${row.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

const endpoints = ({ now }, items) =>
  table(
    ["Name", "Status", "Created"],
    items.map((each) => [html`<a href=${to("endpoint", each.name)}>${each.name}</a>`, badge(each.status), ago(each.created, now)]),
    "No endpoint yet.",
  );

const jobs = ({ now }, items) =>
  table(
    ["Name", "Kind", "Status", "Duration", "Created"],
    items.map((each) => [
      html`<a href=${to("job", each.kind, each.name)}>${each.name}</a>`,
      KINDS[each.kind],
      badge(each.status),
      took(each.created, each.ended ?? (ending(each.status) ? each.created : 0), now),
      ago(each.created, now),
    ]),
    "No job yet.",
  );

const pipelines = ({ now }, items) =>
  table(
    ["Name", "Last execution", "Executions", "Started"],
    items.map((each) => [
      html`<a href=${to("pipeline", each.name)}>${each.name}</a>`,
      each.executions.length ? badge(each.executions[0].status) : "",
      each.executions.length,
      ago(each.executions[0]?.started, now),
    ]),
    "No pipeline yet.",
  );

const GOOD = ["load", "ready", "hit"];
const BAD = ["error", "failed", "bad-ping", "replace", "killed"];
const events = (items) =>
  items.length
    ? html`<ol class="events">${items.map((each) => html`<li>
        <time>${time(each.time)}</time>
        <b class=${GOOD.includes(each.event) ? "good" : BAD.includes(each.event) ? "bad" : "none"}>${each.event}</b>
        <span>${each.subject}</span><span class="muted">${each.ms == null ? "" : `${milliseconds(each.ms)} `}${each.detail ?? ""}</span>
      </li>`)}</ol>`
    : empty("No event yet.");

const milliseconds = (ms) => (ms >= 10000 ? duration(ms / 1000) : `${ms < 10 ? ms : Math.round(ms)} ms`);

function overview(context) {
  const { state } = context;
  const more = (items, where) => (items.length > 5 ? html`<a href="#${where}">all ${items.length}</a>` : nothing);
  const nothingYet = !state.endpoints.length && !state.jobs.length && !state.pipelines.length;
  return html`<h1>Overview</h1>
    ${nothingYet
      ? section("Start", html`<p>Nothing is here yet. A shell with these variables makes every AWS client use this platform:</p>
          <pre class="json" tabindex="0">export AWS_ENDPOINT_URL=${location.origin}
export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local AWS_DEFAULT_REGION=us-east-1
aws sagemaker list-endpoints</pre>`)
      : nothing}
    ${section("Endpoints", endpoints(context, state.endpoints.slice(0, 5)), more(state.endpoints, "endpoints"))}
    ${section("Jobs", jobs(context, state.jobs.slice(0, 5)), more(state.jobs, "jobs"))}
    ${section("Pipelines", pipelines(context, state.pipelines.slice(0, 5)), more(state.pipelines, "pipelines"))}
    ${section("Newest events", events(state.events.slice(0, 8)), state.events.length > 8 ? html`<a href="#events">all</a>` : nothing)}`;
}

// Endpoints

function endpoint({ now }, shown) {
  const { description, config, fleets, models } = shown;
  const variants = description.ProductionVariants ?? [];
  const containers = Object.values(models).flatMap((each) => (each.Containers?.length ? each.Containers : [each.PrimaryContainer ?? {}]));
  const multiModel = containers.some((each) => each.Mode === "MultiModel");
  const inMemory = fleets.flatMap((fleet) => fleet.variants.flatMap((each) => each.instances.flatMap((one) => one.containers.flatMap((box) => box.models ?? []))));
  const asynchronous = Boolean(description.AsyncInferenceConfig);
  return html`<div class="title"><p class="kicker">Endpoint</p><h1>${description.EndpointName}</h1>${badge(description.EndpointStatus)}</div>
    ${failure(description.FailureReason)}
    ${facts([
      ["Endpoint config", description.EndpointConfigName],
      ["Kind", [multiModel ? "multi-model" : containers.length > 1 ? "several containers" : "one model", asynchronous ? "asynchronous" : "", variants.some((each) => each.CurrentServerlessConfig) ? "serverless" : ""].filter(Boolean).join(", ")],
      ["Created", moment(description.CreationTime)],
      ["Changed", ago(description.LastModifiedTime, now)],
    ])}
    ${charts(shown.metrics)}
    ${alarms(shown.alarms, now)}
    ${section("Fleets", fleets.length ? html`${fleets.map((fleet) => fleetView(fleet, fleets.length > 1, shown.scaling))}` : empty("No fleet runs."))}
    ${description.EndpointStatus === "Creating" || description.EndpointStatus === "Failed"
      ? nothing
      : section("Invoke", html`<invoke-form .given=${{
          endpoint: description.EndpointName,
          models: [...new Set(inMemory.map((each) => each.name))],
          variants: variants.map((each) => each.VariantName),
          multiModel,
          asynchronous,
        }}></invoke-form>`)}
    ${section("Log", log(shown.log))}
    ${folded("Endpoint config", config)}
    ${Object.entries(models).map(([name, model]) => folded(`Model ${name}`, model))}`;
}

function fleetView(fleet, several, scaling) {
  const range = (name) => {
    const found = scaling.find((each) => each.ResourceId.endsWith(`/variant/${name}`));
    return found ? ` · scaled from ${found.MinCapacity} to ${found.MaxCapacity}` : "";
  };
  const variant = (each, shadow) => html`<div class="variant" data-variant=${each.name}>
    <h3>${each.name} <small>${shadow ? "shadow" : `weight ${number(each.weight)}`} · ${each.instances.length} ${each.instances.length === 1 ? "instance" : "instances"}${range(each.name)}</small></h3>
    <div class="instances">${each.instances.map(instance)}</div>
  </div>`;
  return html`${several ? html`<p class="muted">${fleet.config}: ${Math.round(fleet.share * 100)} % of the calls</p>` : nothing}
    ${fleet.variants.map((each) => variant(each, false))}${fleet.shadows.map((each) => variant(each, true))}`;
}

const instance = (each) => html`<div class="instance">
  <p class="row">${dot(each.status)}<strong>${each.name}</strong><span class="muted">${each.in_flight} in flight</span></p>
  ${each.containers.map((box) => html`<p class="muted image">${each.containers.length > 1 ? `${box.name}: ` : ""}${box.image}${box.running ? "" : " (not running)"}</p>
    ${box.models
      ? html`<p class="label">${box.models.length} ${box.models.length === 1 ? "model" : "models"} in memory</p>
          <ul class="chips">${box.models.slice(0, MODELS).map((model) => html`<li class=${model.stage} title="${model.stage}, ${model.users} calls">${model.name}</li>`)}
          ${box.models.length > MODELS ? html`<li>${box.models.length - MODELS} more</li>` : nothing}</ul>`
      : nothing}`)}
</div>`;

function charts(metrics) {
  const variants = new Set(metrics.map((each) => each.variant)).size;
  // Counts have no value where there was no call: that is 0. Other metrics have a gap there.
  const chart = (title, labels, { scale = 1, unit = "", none = null, whole = false } = {}) => {
    const found = metrics.filter((each) => each.name in labels && each.times.length);
    if (!found.length) return nothing;
    const x = steps(found);
    const series = found.map((each) => {
      const at = new Map(each.times.map((when, index) => [when, each.values[index] * scale]));
      const label = labels[each.name];
      return { label: variants > 1 ? `${each.variant} ${label}`.trim() : label, values: x.map((when) => at.get(when) ?? none) };
    });
    return html`<figure data-metric=${title}><figcaption>${title}</figcaption><line-chart .data=${{ x, series, times: true, unit, whole }}></line-chart></figure>`;
  };
  const drawn = [
    chart("Calls in 10 s", { Invocations: variants > 1 ? "" : "calls" }, { none: 0, whole: true }),
    chart("Errors in 10 s", { Invocation4XXErrors: "4XX", Invocation5XXErrors: "5XX" }, { none: 0, whole: true }),
    chart("Latency", { ModelLatency: "model", OverheadLatency: "overhead" }, { scale: 1e-3, unit: " ms" }),
    chart("Wait for a model's load", { ModelLoadingWaitTime: "wait" }, { scale: 1e-3, unit: " ms" }),
    chart("Models in memory", { LoadedModelCount: "models" }, { whole: true }),
    chart("Processor and memory", { CPUUtilization: "processor", MemoryUtilization: "memory" }, { unit: " %" }),
  ].filter((each) => each !== nothing);
  return drawn.length ? html`<section class="charts" aria-label="Metrics of the last 30 minutes">${drawn}</section>` : nothing;
}

// Every period from the one before the first value to the last.
function steps(metrics) {
  const times = metrics.flatMap((each) => each.times);
  const first = Math.min(...times) - PERIOD;
  return Array.from({ length: Math.round((Math.max(...times) - first) / PERIOD) + 1 }, (_, at) => first + at * PERIOD);
}

function alarms(items, now) {
  if (!items.length) return nothing;
  return section("Alarms", table(
    ["Name", "State", "Metric", "Since"],
    items.map((each) => [
      each.AlarmName,
      badge(each.StateValue === "ALARM" ? "Alarm" : each.StateValue === "OK" ? "OK" : "No data"),
      `${each.MetricName} ${COMPARISONS[each.ComparisonOperator] ?? ""} ${each.Threshold}`,
      ago(each.StateUpdatedTimestamp, now),
    ]),
    "",
  ));
}

const COMPARISONS = {
  GreaterThanOrEqualToThreshold: "≥", GreaterThanThreshold: ">", LessThanThreshold: "<", LessThanOrEqualToThreshold: "≤",
};

// Jobs

function jobView({ now }, shown) {
  const { kind, name, description: d } = shown;
  return html`<div class="title"><p class="kicker">${KINDS[kind]} job</p><h1>${name}</h1>${badge(shown.status)}
      ${d.SecondaryStatus && d.SecondaryStatus !== shown.status ? html`<span class="muted">${d.SecondaryStatus}</span>` : nothing}</div>
    ${failure(d.FailureReason)}
    ${jobFacts(shown, now)}
    ${curves(shown.curves, d.FinalMetricDataList)}
    ${kind === "tuning" ? trials(shown, now) : section("Log", log(shown.log))}
    ${parameters("Hyperparameters", d.HyperParameters)}
    ${parameters("Environment", d.Environment)}
    ${folded("Description", d)}`;
}

function jobFacts({ kind, description: d }, now) {
  const cluster = d.ResourceConfig ?? d.ProcessingResources?.ClusterConfig ?? d.TransformResources ?? {};
  const start = d.TrainingStartTime ?? d.ProcessingStartTime ?? d.TransformStartTime ?? d.CreationTime;
  const end = d.TrainingEndTime ?? d.ProcessingEndTime ?? d.TransformEndTime ?? d.HyperParameterTuningEndTime;
  return facts([
    ["Started", moment(start)],
    ["Duration", end || !ending(statusOf(d)) ? took(start, end, now) : ""],
    ["Instances", cluster.InstanceType ? `${cluster.InstanceCount} × ${cluster.InstanceType}` : ""],
    ["Image", d.AlgorithmSpecification?.TrainingImage ?? d.AppSpecification?.ImageUri],
    ["Model", kind === "transform" ? d.ModelName : ""],
    ["Objective", objective(d)],
    ["Output", d.ModelArtifacts?.S3ModelArtifacts ?? d.TransformOutput?.S3OutputPath],
  ]);
}

function objective(d) {
  const asked = d.HyperParameterTuningJobConfig?.HyperParameterTuningJobObjective;
  const best = d.BestTrainingJob?.FinalHyperParameterTuningJobObjectiveMetric?.Value;
  return asked ? `${asked.Type} ${asked.MetricName}${best == null ? "" : `, best ${number(best)}`}` : "";
}

const statusOf = (d) => d.TrainingJobStatus ?? d.ProcessingJobStatus ?? d.TransformJobStatus ?? d.HyperParameterTuningJobStatus;

function curves(found, final) {
  const names = Object.keys(found);
  if (!names.length) return final?.length ? section("Metrics", facts(final.map((each) => [each.MetricName, number(each.Value)]))) : nothing;
  // train:rmse and validation:rmse in one chart
  const together = Map.groupBy ? Map.groupBy(names, measure) : grouped(names);
  return html`<section class="charts" aria-label="Metrics">${[...together].map(([title, members]) => {
    const length = Math.max(...members.map((each) => found[each].length));
    const x = Array.from({ length }, (_, at) => at + 1);
    const series = members.map((each) => ({ label: each, values: x.map((_, at) => found[each][at] ?? null) }));
    return html`<figure data-metric=${title}><figcaption>${title}</figcaption><line-chart .data=${{ x, series }}></line-chart></figure>`;
  })}</section>`;
}

const measure = (name) => name.slice(name.indexOf(":") + 1);
function grouped(names) {
  const found = new Map();
  for (const each of names) found.set(measure(each), [...(found.get(measure(each)) ?? []), each]);
  return found;
}

function trials({ trainings, description: d }, now) {
  const best = d.BestTrainingJob?.TrainingJobName;
  const tuned = [...new Set(trainings.flatMap((each) => Object.keys(each.TunedHyperParameters ?? {})))];
  return section("Training jobs", table(
    ["Name", "Status", "Objective", ...tuned, "Duration"],
    trainings.map((each) => [
      html`<a href=${to("job", "training", each.TrainingJobName)}>${each.TrainingJobName}</a>${each.TrainingJobName === best ? html` <span class="badge good">best</span>` : nothing}`,
      badge(each.TrainingJobStatus),
      number(each.FinalHyperParameterTuningJobObjectiveMetric?.Value),
      ...tuned.map((name) => each.TunedHyperParameters?.[name] ?? ""),
      took(each.TrainingStartTime ?? each.CreationTime, each.TrainingEndTime, now),
    ]),
    "No training has started.",
  ));
}

const parameters = (title, given) =>
  given && Object.keys(given).length
    ? section(title, table(["Name", "Value"], Object.entries(given).map(([name, value]) => [name, html`<code>${value}</code>`]), ""))
    : nothing;

// Pipelines

function pipeline({ now }, shown) {
  const { name, execution, executions, graph, declared } = shown;
  const id = execution?.id;
  const runs = Object.fromEntries((shown.steps ?? []).map((each) => [each.StepName, each]));
  const status = execution?.PipelineExecutionStatus;
  const started = execution?.CreationTime;
  const given = Object.fromEntries((shown.parameters ?? []).map((each) => [each.Name, each.Value]));
  const link = (step) => (id ? to("pipeline", name, id, step) : to("pipeline", name));
  return html`<div class="title"><p class="kicker">Pipeline</p><h1>${name}</h1>${status ? badge(status) : nothing}</div>
    ${failure(execution?.FailureReason)}
    ${facts([
      ["Execution", id],
      ["Started", moment(started)],
      ["Duration", status ? took(started, ending(status) ? execution.LastModifiedTime : 0, now) : ""],
      ["Steps", status ? `${(shown.steps ?? []).filter((each) => each.StepStatus === "Succeeded").length} of ${graph.nodes.length} succeeded` : String(graph.nodes.length)],
    ])}
    <div class="watch ${shown.step ? "with-step" : ""}">
      <section class="card graph-card"><header><h2>Graph</h2></header>
        ${graph.nodes.length ? pipelineGraph({ graph, runs, link, chosen: shown.step?.name, ended: ending(status), now }) : empty("The definition has no step.")}</section>
      ${shown.step ? stepView(shown, runs[shown.step.name], graph.nodes.find((each) => each.name === shown.step.name), to("pipeline", name, id), now) : nothing}
    </div>
    <div class="pair">
      ${section("Executions", table(
        ["Execution", "Status", "Started"],
        executions.map((each) => [
          html`<a href=${to("pipeline", name, each.id)} aria-current=${each.id === id ? "true" : "false"}>${each.title || each.id}</a>`,
          badge(each.status),
          ago(each.started, now),
        ]),
        "The pipeline has not been started yet.",
      ))}
      ${section("Parameters", table(
        ["Name", "Type", "Value"],
        declared.map((each) => [each.Name, each.Type, html`<code>${given[each.Name] ?? each.DefaultValue ?? ""}</code>`]),
        "The pipeline has no parameter.",
      ))}
    </div>
    ${folded("Definition", graph.nodes.map((each) => ({ Name: each.name, ...each.step })))}`;
}

function stepView({ step }, run, node, back, now) {
  const { Arguments: given, ...rest } = node?.step ?? {};
  const job = step.job;
  const metadata = run?.Metadata ?? {};
  return html`<section class="card step" data-shown-step=${step.name} aria-label="Step ${step.name}">
    <header><h2>${node?.title ?? step.name}</h2>${badge(run?.StepStatus ?? "not started")}<a class="close" href=${back} aria-label="Close">×</a></header>
    ${failure(run?.FailureReason ?? job?.description?.FailureReason)}
    ${facts([
      ["Type", node?.type],
      ["Started", time(run?.StartTime)],
      ["Duration", took(run?.StartTime, run?.EndTime, now)],
      ["Attempts", run?.AttemptCount > 1 ? run.AttemptCount : ""],
      ["Cache", run?.CacheHitResult ? html`hit: ${run.CacheHitResult.SourcePipelineExecutionArn?.split("/").pop()}` : ""],
      ["Outcome", metadata.Condition?.Outcome],
      ["Job", job ? html`<a href=${to("job", job.kind, job.name)}>${job.name}</a>` : ""],
    ])}
    ${job ? curves(job.curves, job.description.FinalMetricDataList) : nothing}
    ${job && job.kind !== "tuning" ? html`<h3>Log</h3>${log(job.log)}` : nothing}
    ${given ? html`<h3>Arguments</h3>${json(given)}` : nothing}
    ${Object.keys(metadata).length && !job ? html`<h3>Result</h3>${json(step.properties ?? metadata)}` : nothing}
    ${job ? html`<details><summary>Properties</summary>${json(job.description)}</details>` : nothing}
    <details><summary>Definition of the step</summary>${json(rest)}</details>
  </section>`;
}
