// The prompt box: a message to the model, or a text that it continues where it has no chat template.

import { ApiError, ask, events } from "./api.js";
import { byId, el, number, plural, seconds } from "./format.js";

const REASONS = { length: "at the most tokens", stop: "at its end" };
const NEAR_END = 24; // pixels: whoever has scrolled up further reads, and is left there

export class Prompt {
  constructor() {
    this.model = "";
    this.isChat = false;
    this.running = null; // what aborts the answer under way
    byId("prompt-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("prompt-card").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("prompt-form").requestSubmit();
      if (event.key === "Escape") this.running?.abort();
    });
  }

  offer({ models, has_chat_template }) {
    this.model = models[0];
    this.isChat = has_chat_template;
    byId("prompt-label").textContent = this.isChat ? "Message" : "Text to continue";
  }

  async send() {
    if (this.running) return;
    this.running = new AbortController();
    const answer = new Answer();
    byId("send").disabled = true;
    byId("stop").disabled = false;
    try {
      const response = await ask(this.isChat ? "v1/chat/completions" : "v1/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(this.body()),
        signal: this.running.signal,
      });
      for await (const event of events(response)) {
        if (event.error) throw new ApiError(event.error.code, event.error.message);
        answer.take(event);
      }
      answer.end();
    } catch (error) {
      answer.end(error);
    } finally {
      this.running = null;
      byId("send").disabled = false;
      byId("stop").disabled = true;
    }
  }

  body() {
    const prompt = byId("prompt").value;
    return {
      model: this.model,
      ...(this.isChat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
      max_tokens: byId("max-tokens").valueAsNumber,
      temperature: byId("temperature").valueAsNumber,
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
  }
}

/** One answer on its way into the page. */
class Answer {
  constructor() {
    this.box = byId("answer");
    this.text = document.createTextNode("");
    this.thought = null;
    this.started = performance.now();
    this.first = this.last = null;
    this.firstTokens = 0; // of the first event that has any
    this.usage = null;
    this.reason = "";
    this.box.replaceChildren(this.text);
    this.box.hidden = false;
    this.box.setAttribute("aria-busy", "true"); // read aloud when it is whole, not piece by piece
    byId("answer-error").hidden = true;
    byId("answer-figures").textContent = "";
  }

  take({ choices, usage }) {
    const [choice] = choices;
    const now = performance.now();
    if (usage?.completion_tokens) {
      if (this.first === null) [this.first, this.firstTokens] = [now, usage.completion_tokens];
      if (choice) this.last = now;
    }
    this.usage = usage ?? this.usage;
    if (choice) {
      this.reason = choice.finish_reason ?? this.reason;
      const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR_END;
      this.think(choice.delta?.reasoning_content ?? "");
      this.text.appendData(choice.delta?.content ?? choice.text ?? "");
      if (atEnd) this.box.scrollTop = this.box.scrollHeight;
    }
    byId("answer-figures").textContent = this.figures();
  }

  think(text) {
    if (!text) return;
    if (this.thought === null) {
      this.thought = document.createTextNode("");
      this.box.prepend(el("span", { class: "thought" }, this.thought));
    }
    this.thought.appendData(text);
  }

  end(error = null) {
    this.box.setAttribute("aria-busy", "false");
    this.box.hidden = !this.box.textContent;
    const isStopped = error?.name === "AbortError";
    const ended = isStopped ? "stopped" : REASONS[this.reason] ?? this.reason;
    byId("answer-figures").textContent = [this.figures(), ended && `ended ${ended}`].filter(Boolean).join(" · ");
    if (error && !isStopped) {
      const said = error instanceof ApiError ? error.message : "The connection to the server was lost.";
      const box = byId("answer-error");
      box.textContent = said;
      box.hidden = false;
    }
  }

  figures() {
    if (!this.usage || this.first === null) return "";
    const { completion_tokens, prompt_tokens, prompt_tokens_details } = this.usage;
    const took = (this.last - this.first) / 1000;
    const cached = prompt_tokens_details?.cached_tokens;
    return [
      plural(completion_tokens, "token"),
      took > 0 ? `${number((completion_tokens - this.firstTokens) / took)} tokens/s` : "",
      `first after ${seconds((this.first - this.started) / 1000)}`,
      `prompt of ${number(prompt_tokens)}${cached ? `, ${number(cached)} cached` : ""}`,
    ].filter(Boolean).join(" · ");
  }
}
