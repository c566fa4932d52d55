/** The tools that agents get. Their names are the same for all versions of Vestige. */

import { describeNotAllowed } from "./access.ts";
import type { Caller, VestigeClient } from "./client.ts";
import type { Clients } from "./clients.ts";
import { ToolInputError } from "./errors.ts";
import { asObject, isObject, type JsonObject } from "./json.ts";
import { callAny, describeTools, perform, type Outcome } from "./memory.ts";
import type { AgentTool, PluginApi } from "./openclaw.ts";

interface ToolDefinition {
  name: string;
  label: string;
  description: string;
  parameters: JsonObject;
  /** The operator has to allow it by name. */
  optional?: true;
  /** It returns text from others, so OpenClaw marks it as untrusted. */
  resultContentSource?: "network";
  run: (client: VestigeClient, params: Params, caller: Caller) => Promise<Outcome>;
}

const TOOLS: ToolDefinition[] = [
  {
    name: "vestige_search",
    label: "Search memory",
    description:
      "Search the long-term memory that all agents share. Use it before you answer from what the user may have said, " +
      "decided or preferred earlier, and before you store something that may already be known. Changes nothing.",
    parameters: object({ query: string("What to look for, in a few plain words."), limit: integer("Maximum number of results.") }, [
      "query",
    ]),
    resultContentSource: "network",
    run: (client, params, caller) =>
      perform(client, "search", { query: params.text("query"), ...params.optionalInteger("limit") }, caller),
  },
  {
    name: "vestige_remember",
    label: "Remember",
    description:
      "Store one fact, preference or decision in the long-term memory that all agents share. Use it when the user asks " +
      "you to remember, or when something will matter in later sessions. Write it so that it can be understood without context. " +
      "Never store passwords, keys or other secrets: every agent can read what is stored.",
    parameters: object(
      {
        content: string("The memory, as one self-contained statement."),
        tags: strings("Short labels to find it by later."),
        type: string("Kind of memory, for example fact, preference, decision, event, person, place, pattern."),
      },
      ["content"],
    ),
    run: (client, params, caller) =>
      perform(
        client,
        "remember",
        { content: params.text("content"), ...params.optionalTexts("tags"), ...params.optionalText("type") },
        caller,
      ),
  },
  {
    name: "vestige_recall_context",
    label: "Recall context",
    description:
      "Get the memories that matter for the current task, in one call. Use it once, when a session starts or the subject " +
      "changes. Changes nothing.",
    parameters: object({
      topics: strings("What the session is about."),
      codebase: string("Name of the project or repository, if there is one."),
    }),
    resultContentSource: "network",
    run: (client, params, caller) =>
      perform(client, "recallContext", { ...params.optionalTexts("topics"), ...params.optionalText("codebase") }, caller),
  },
  {
    name: "vestige_forget",
    label: "Forget",
    description:
      "Remove one memory, for all agents. This cannot be undone. Use it only when the user asks for it, with the id " +
      "that vestige_search returned. A Vestige that cannot delete a memory hides it permanently instead.",
    parameters: object(
      {
        id: string("The memory's id, exactly as vestige_search returned it."),
        confirm: { type: "boolean", description: "Must be true, as confirmation that the user wants to remove this memory." },
        reason: string("The reason, which Vestige records."),
      },
      ["id", "confirm"],
    ),
    optional: true,
    run: (client, params, caller) => {
      if (!params.flag("confirm")) {
        throw new ToolInputError("Removing a memory cannot be undone: repeat the call with confirm set to true if the user wants it.");
      }
      return perform(client, "forget", { id: params.text("id"), ...params.optionalText("reason") }, caller);
    },
  },
  {
    name: "vestige_tools",
    label: "List memory tools",
    description:
      "List the tools of this version of Vestige. With a name, describe that tool in full, including its input schema. " +
      "Use it before vestige_call. Changes nothing.",
    parameters: object({ name: string("The tool to describe in full.") }),
    run: async (client, params, caller) => ({
      tool: "tools/list",
      text: describeTools(await client.listTools(caller), params.optionalText("name").name),
    }),
  },
  {
    name: "vestige_call",
    label: "Call a memory tool",
    description:
      "Call any tool that vestige_tools lists, by its own name and with its own arguments. Use it if no other vestige_* " +
      "tool does what you need. Some of these tools cannot be undone; they need confirm.",
    parameters: object(
      {
        tool: string("The tool's name, from vestige_tools."),
        arguments: { type: "object", description: "The tool's arguments.", additionalProperties: true },
        confirm: { type: "boolean", description: "Must be true for a tool that can delete memories." },
      },
      ["tool"],
    ),
    optional: true,
    resultContentSource: "network",
    run: (client, params, caller) =>
      callAny(client, params.text("tool"), params.object("arguments"), params.flag("confirm"), caller),
  },
];

/**
 * Registers all tools. An agent that may not use the memory gets none. Other mistakes in the settings are thrown at each
 * call.
 */
export function registerTools(api: PluginApi, clients: Clients): void {
  const logged = new Set<string>();
  const isOffered = (agentId: string | undefined): boolean => {
    if (clients.access.isAllowed(agentId)) return true;
    if (agentId !== undefined && !logged.has(agentId)) api.logger.info(describeNotAllowed(agentId));
    if (agentId !== undefined) logged.add(agentId);
    return false;
  };
  for (const { optional, ...tool } of TOOLS) {
    api.registerTool(({ agentId }) => (isOffered(agentId) ? build(tool, clients, agentId) : null), {
      name: tool.name,
      ...(optional && { optional }),
    });
  }
}

/** The tool as one agent gets it. */
function build({ run, ...about }: Omit<ToolDefinition, "optional">, clients: Clients, agentId: string | undefined): AgentTool {
  return {
    ...about,
    async execute(_callId, params, signal) {
      const { text, tool } = await run(clients.ofAgent(agentId), new Params(params), { signal });
      return { content: [{ type: "text", text }], details: { tool } };
    },
  };
}

/** The arguments of one call. OpenClaw validates a model's arguments, but not those of `/tools/invoke`. */
class Params {
  readonly #values: JsonObject;

  constructor(values: unknown) {
    this.#values = asObject(values);
  }

  text(name: string): string {
    const value = this.#values[name];
    if (typeof value !== "string" || value.trim() === "") throw new ToolInputError(`${name} must be a non-empty string.`);
    return value;
  }

  optionalText<Name extends string>(name: Name): Partial<Record<Name, string>> {
    return this.#has(name) ? ({ [name]: this.text(name) } as Record<Name, string>) : {};
  }

  optionalTexts<Name extends string>(name: Name): Partial<Record<Name, string[]>> {
    if (!this.#has(name)) return {};
    const value = this.#values[name];
    if (!Array.isArray(value) || !value.every((item) => typeof item === "string")) {
      throw new ToolInputError(`${name} must be a list of strings.`);
    }
    return { [name]: value } as Record<Name, string[]>;
  }

  optionalInteger<Name extends string>(name: Name): Partial<Record<Name, number>> {
    if (!this.#has(name)) return {};
    const value = this.#values[name];
    if (typeof value !== "number" || !Number.isInteger(value) || value < 1) {
      throw new ToolInputError(`${name} must be a whole number of at least 1.`);
    }
    return { [name]: value } as Record<Name, number>;
  }

  object(name: string): JsonObject {
    if (!this.#has(name)) return {};
    const value = this.#values[name];
    if (!isObject(value)) throw new ToolInputError(`${name} must be an object.`);
    return value;
  }

  flag(name: string): boolean {
    return this.#values[name] === true;
  }

  #has(name: string): boolean {
    return this.#values[name] !== undefined && this.#values[name] !== null;
  }
}

function object(properties: JsonObject, required: string[] = []): JsonObject {
  return { type: "object", properties, required, additionalProperties: false };
}

function string(description: string): JsonObject {
  return { type: "string", description };
}

function strings(description: string): JsonObject {
  return { type: "array", items: { type: "string" }, description };
}

function integer(description: string): JsonObject {
  return { type: "integer", minimum: 1, maximum: 100, description };
}
