/** JSON-RPC to the bridge's `POST /mcp`: no handshake and no session, one request, one response. */

import { setTimeout as sleep } from "node:timers/promises";
import type { Credential } from "./access.ts";
import { describeFetchFailure, describeRefusal, describeTimeout, ToolAuthorizationError, VestigeError } from "./errors.ts";
import { asArray, asObject, asString, isObject, parseJson, type JsonObject } from "./json.ts";
import type { Settings } from "./settings.ts";

export interface Tool {
  name: string;
  description: string;
  inputSchema: JsonObject;
  annotations: JsonObject;
}

export interface ToolResult {
  /** The text blocks, joined. */
  text: string;
  failed: boolean;
}

/** The limits of a request's duration. */
export interface Caller {
  signal?: AbortSignal | undefined;
  /** Less than the timeout of the settings, if the caller cannot wait that long. */
  timeoutSeconds?: number | undefined;
}

/** How long a response to `tools/list` is cached. */
const TOOLS_FRESH_MS = 60_000;
/** The longest that a retry waits, whatever `Retry-After` says. */
const RETRY_WAIT_MS = 5_000;

export class VestigeClient {
  readonly settings: Settings;
  readonly #credential: Credential;
  readonly #agentId: string | undefined;
  #tools: { list: Tool[]; at: number } | undefined;

  /** `agentId` is the agent that the requests are for, if there is one. */
  constructor(settings: Settings, credential: Credential, agentId?: string) {
    this.settings = settings;
    this.#credential = credential;
    this.#agentId = agentId;
  }

  /** Whether the requests have a token. */
  get hasToken(): boolean {
    return this.#credential.token !== undefined;
  }

  /** The tools that the bridge lists for this client's token. */
  async listTools(caller: Caller): Promise<Tool[]> {
    if (this.#tools !== undefined && Date.now() - this.#tools.at < TOOLS_FRESH_MS) return this.#tools.list;
    const list: Tool[] = [];
    let cursor: string | undefined;
    do {
      const page = asObject(await this.#request("tools/list", cursor === undefined ? {} : { cursor }, caller));
      list.push(...asArray(page["tools"]).filter(isObject).map(readTool));
      cursor = asString(page["nextCursor"]);
    } while (cursor !== undefined);
    this.#tools = { list, at: Date.now() };
    return list;
  }

  async callTool(name: string, args: JsonObject, caller: Caller): Promise<ToolResult> {
    try {
      const result = asObject(await this.#request("tools/call", { name, arguments: args }, caller));
      const failed = result["isError"] === true;
      return { text: failed ? this.#redact(readText(result)) : readText(result), failed };
    } catch (error) {
      // The bridge may have another version of Vestige by now.
      this.#tools = undefined;
      throw error;
    }
  }

  /** The bridge's own health document, whatever its status. */
  async health(): Promise<JsonObject> {
    const signal = AbortSignal.timeout(this.settings.timeoutSeconds * 1000);
    const response = await this.#fetch(this.settings.health, { redirect: "manual", signal }, signal);
    const body = await response.json().catch(() => undefined);
    if (!isObject(body)) throw new VestigeError(describeRefusal(response.status, body, this.#credential));
    return body;
  }

  async #request(method: string, params: JsonObject, caller: Caller): Promise<unknown> {
    const seconds = Math.min(caller.timeoutSeconds ?? Infinity, this.settings.timeoutSeconds);
    const timeout = AbortSignal.timeout(seconds * 1000);
    const signal = caller.signal === undefined ? timeout : AbortSignal.any([timeout, caller.signal]);
    try {
      const first = await this.#post(method, params, signal);
      if (first.retryAfterMs === undefined) return this.#read(first);
      await sleep(first.retryAfterMs, undefined, { signal });
      return this.#read(await this.#post(method, params, signal));
    } catch (error) {
      // No cause is attached: OpenClaw would append it to the message for the agent.
      if (caller.signal?.aborted) throw new VestigeError("The call was cancelled.");
      if (timeout.aborted) throw new VestigeError(describeTimeout(seconds));
      throw error;
    }
  }

  async #post(method: string, params: JsonObject, signal: AbortSignal): Promise<Answer> {
    const { endpoint } = this.settings;
    const { token } = this.#credential;
    const id = crypto.randomUUID();
    const headers: Record<string, string> = { "content-type": "application/json", accept: "application/json" };
    if (token !== undefined) headers["authorization"] = `Bearer ${token}`;
    if (this.#agentId !== undefined) headers["x-agent-id"] = encodeURIComponent(this.#agentId);
    const body = JSON.stringify({ jsonrpc: "2.0", id, method, params });
    // A redirect is never followed: it would send the token to an address that is not in the settings.
    const response = await this.#fetch(endpoint, { method: "POST", headers, body, redirect: "manual", signal }, signal);
    const text = await response.text().catch((error: unknown) => this.#failed(error, signal));
    const answer = parseJson(text);
    return { id, status: response.status, body: answer, retryAfterMs: retryAfterMs(response, answer) };
  }

  async #fetch(url: string, init: RequestInit, signal: AbortSignal): Promise<Response> {
    return fetch(url, init).catch((error: unknown) => this.#failed(error, signal));
  }

  /** An abort is rethrown as it is, so that the caller can see which signal caused it. */
  #failed(error: unknown, signal: AbortSignal): never {
    if (signal.aborted) throw error;
    throw new VestigeError(describeFetchFailure(error, this.settings.endpoint));
  }

  #read({ id, status, body }: Answer): unknown {
    const message = asObject(body);
    if (status === 200 && message["id"] === id && "result" in message) return message["result"];
    const why = this.#redact(describeRefusal(status, body, this.#credential));
    throw status === 403 ? new ToolAuthorizationError(why) : new VestigeError(why);
  }

  /** The text of a server without the token. */
  #redact(text: string): string {
    const { token } = this.#credential;
    return token === undefined ? text : text.replaceAll(token, "***");
  }
}

interface Answer {
  id: string;
  status: number;
  body: unknown;
  /** Present if the bridge says that the request can be repeated safely. */
  retryAfterMs: number | undefined;
}

function retryAfterMs(response: Response, body: unknown): number | undefined {
  if (asObject(asObject(asObject(body)["error"])["data"])["retryable"] !== true) return undefined;
  const seconds = Number(response.headers.get("retry-after") ?? 0.25);
  return Math.min(Number.isFinite(seconds) ? seconds * 1000 : 0, RETRY_WAIT_MS);
}

function readTool(tool: JsonObject): Tool {
  return {
    name: asString(tool["name"]) ?? "",
    description: asString(tool["description"]) ?? "",
    inputSchema: asObject(tool["inputSchema"]),
    annotations: asObject(tool["annotations"]),
  };
}

function readText(result: JsonObject): string {
  const blocks = asArray(result["content"]).map(asObject);
  const texts = blocks.map((block) => asString(block["text"]) ?? `[${asString(block["type"]) ?? "content"}]`);
  if (texts.length === 0 && "structuredContent" in result) return JSON.stringify(result["structuredContent"]);
  return texts.join("\n");
}
