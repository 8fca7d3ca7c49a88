// <invoke-form>: sends InvokeEndpoint (or InvokeEndpointAsync) as any client does, and shows the answer.
import { html, nothing, render } from "./vendor/lit-html/lit-html.js";

const HEADER = "X-Amzn-SageMaker-";
const TYPES = ["application/json", "text/csv", "text/plain", "text/libsvm", "application/jsonlines"];
const SHOWN = 20000; // characters of an answer

class InvokeForm extends HTMLElement {
  #given = { endpoint: "", models: [], variants: [], multiModel: false, asynchronous: false };
  #answer = null;
  #busy = false;

  set given(given) {
    if (given.endpoint !== this.#given.endpoint) this.#answer = null;
    this.#given = given;
    this.#draw();
  }

  async #send(event) {
    event.preventDefault();
    const fields = Object.fromEntries(new FormData(event.target));
    const headers = {};
    const add = (name, value) => value && (headers[name] = value);
    const { endpoint, asynchronous } = this.#given;
    add(HEADER + "Target-Model", fields.model);
    add(HEADER + "Target-Variant", fields.variant);
    if (asynchronous) {
      add(HEADER + "InputLocation", fields.location);
      add(HEADER + "Content-Type", fields.type);
    } else {
      add("Content-Type", fields.type);
      add("Accept", fields.accept);
    }
    this.#busy = true;
    this.#draw();
    const began = performance.now();
    try {
      const path = asynchronous ? "async-invocations" : "invocations";
      const body = asynchronous ? undefined : fields.body;
      const response = await fetch(`/endpoints/${encodeURIComponent(endpoint)}/${path}`, { method: "POST", headers, body });
      const text = await response.text();
      this.#answer = {
        status: response.status,
        ok: response.ok,
        ms: performance.now() - began,
        type: response.headers.get("Content-Type") ?? "",
        variant: response.headers.get("x-Amzn-Invoked-Production-Variant"),
        error: response.headers.get("x-amzn-ErrorType"),
        output: response.headers.get(HEADER + "OutputLocation"),
        text,
      };
    } catch (error) {
      this.#answer = { status: "no answer", ok: false, ms: performance.now() - began, type: "", text: error.message };
    }
    this.#busy = false;
    this.#draw();
  }

  #draw() {
    const { models, variants, multiModel, asynchronous } = this.#given;
    const submit = (event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && event.target.form.requestSubmit();
    render(
      html`<form @submit=${(event) => this.#send(event)} autocomplete="off">
          <div class="fields">
            ${multiModel
              ? html`<label>TargetModel<input name="model" list="models" required placeholder="model.tar.gz" />
                  <datalist id="models">${models.map((each) => html`<option value=${each}></option>`)}</datalist></label>`
              : nothing}
            ${variants.length > 1
              ? html`<label>TargetVariant<select name="variant"><option value="">by weight</option>
                  ${variants.map((each) => html`<option>${each}</option>`)}</select></label>`
              : nothing}
            <label>ContentType<input name="type" list="types" value="application/json" />
              <datalist id="types">${TYPES.map((each) => html`<option value=${each}></option>`)}</datalist></label>
            ${asynchronous
              ? html`<label class="wide">InputLocation<input name="location" required pattern="s3://.+" placeholder="s3://bucket/key" /></label>`
              : html`<label>Accept<input name="accept" list="types" placeholder="any" /></label>`}
          </div>
          ${asynchronous
            ? nothing
            : html`<label>Body<textarea name="body" rows="5" spellcheck="false" @keydown=${submit} placeholder='{"inputs": ...}'></textarea></label>`}
          <div class="row"><button type="submit" ?disabled=${this.#busy}>${this.#busy ? "Invoking…" : "Invoke"}</button>
            ${asynchronous ? nothing : html`<span class="hint">Ctrl + Enter in the body</span>`}</div>
        </form>
        <div class="answer" aria-live="polite">${this.#answer ? answer(this.#answer) : nothing}</div>`,
      this,
    );
  }
}

function answer({ status, ok, ms, type, variant, error, output, text }) {
  return html`<p class="row">
      <span class="badge ${ok ? "good" : "bad"}" data-answer=${status}>${status}</span>
      ${error ? html`<strong>${error}</strong>` : nothing}
      <span>${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms</span>
      <span class="muted">${type}${variant ? ` · variant ${variant}` : ""}</span>
      ${output ? html`<span>to ${output}</span>` : nothing}
    </p>
    <pre class="json" tabindex="0">${pretty(text)}</pre>`;
}

function pretty(text) {
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // not JSON: as it is
  }
  return text.length > SHOWN ? `${text.slice(0, SHOWN)}\n… ${text.length - SHOWN} more characters` : text;
}

customElements.define("invoke-form", InvokeForm);
