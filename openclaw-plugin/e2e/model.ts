/** A model endpoint (OpenAI chat completions) that follows a script and records every prompt. */

import { once } from "node:events";
import { createServer, type Server } from "node:http";

export interface Message {
  role: string;
  content: unknown;
}

/** What the model says next: a text, or a call of one tool. */
export type Reply = string | { tool: string; args: unknown };

export class ScriptedModel {
  readonly #server: Server;
  readonly #replies: Reply[] = [];
  /** The messages of each request, oldest first. */
  readonly prompts: Message[][] = [];
  /** Each request as it came, with the tools that the agent is offered. */
  readonly requests: string[] = [];

  constructor() {
    this.#server = createServer((request, response) => {
      let text = "";
      request.setEncoding("utf8").on("data", (part: string) => (text += part));
      request.on("end", () => {
        const { messages, tools } = JSON.parse(text) as { messages: Message[]; tools?: unknown[] };
        this.prompts.push(messages);
        this.requests.push(text);
        // OpenClaw also asks for titles and the like, without tools; these turns are not in the script.
        const reply = tools === undefined ? undefined : this.#replies.shift();
        response.writeHead(200, { "content-type": "text/event-stream" });
        for (const chunk of chunks(reply ?? "Nothing more to say.")) {
          response.write(`data: ${JSON.stringify(chunk)}\n\n`);
        }
        response.end("data: [DONE]\n\n");
      });
    });
  }

  async start(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("no address");
    return `http://127.0.0.1:${address.port}/v1`;
  }

  say(...replies: Reply[]): void {
    this.#replies.push(...replies);
  }

  stop(): void {
    this.#server.close().closeAllConnections();
  }
}

/** A message's text, whether it came as a string or in parts. */
export function textOf({ content }: Message): string {
  if (typeof content === "string") return content;
  return Array.isArray(content) ? (content as { text?: string }[]).map(({ text }) => text ?? "").join("\n") : "";
}

function* chunks(reply: Reply): Generator {
  const chunk = (delta: unknown, finish_reason: string | null): unknown => ({
    id: "scripted",
    object: "chat.completion.chunk",
    created: 0,
    model: "scripted",
    choices: [{ index: 0, delta, finish_reason }],
  });
  if (typeof reply === "string") {
    yield chunk({ role: "assistant", content: reply }, null);
    yield chunk({}, "stop");
  } else {
    const call = { name: reply.tool, arguments: JSON.stringify(reply.args) };
    yield chunk({ role: "assistant", tool_calls: [{ index: 0, id: "call-1", type: "function", function: call }] }, null);
    yield chunk({}, "tool_calls");
  }
}
