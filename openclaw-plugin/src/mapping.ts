/**
 * Maps the plugin's stable tool names to the tools of the memory server behind the bridge.
 *
 * Vestige renames its tools from release to release, so the rules do not depend on a version: a rule applies if the
 * server lists its tool with the properties that it needs. The first rule that applies is used.
 */

import { ToolInputError } from "./errors.ts";
import type { Tool } from "./client.ts";
import { significantWords } from "./memories.ts";
import { asArray, asObject, asString, firstCharacters, isObject, type JsonObject } from "./json.ts";

export interface Intents {
  search: { query: string; limit?: number };
  remember: { content: string; tags?: string[]; type?: string };
  recallContext: { topics?: string[]; codebase?: string };
  forget: { id: string; reason?: string };
}

export type Intent = keyof Intents;

export interface Plan {
  tool: string;
  /** The arguments of each call; several calls if the server can search for only one word at a time. */
  calls: JsonObject[];
  /** Present if the results are lists of memories, which are merged and ranked here. */
  rank: Ranking | undefined;
  /** The server finds a memory by its id or its tag, not by its content. */
  byHandle: boolean;
}

export interface Ranking {
  query: string;
  limit: number;
}

interface Rule<Input> {
  tool: string;
  /** Properties that the tool's input schema must have. */
  needs: string[];
  /** Any further condition on the input schema or the input. */
  when?: (schema: JsonObject, input: Input) => boolean;
  calls: (input: Input) => JsonObject[] | Promise<JsonObject[]>;
  rank?: (input: Input) => Ranking;
  byHandle?: true;
}

/** The maximum number of (language model) tokens of a session's initial context. */
const CONTEXT_TOKENS = 1500;

const RULES: { [I in Intent]: Rule<Intents[I]>[] } = {
  search: [
    // Vestige up to 2.1
    { tool: "search", needs: ["query"], calls: wordsOnly },
    // Vestige 4.x, which finds exact handles and does not rank text
    { tool: "recall", needs: ["handle"], calls: ({ query }) => [{ handle: query }], byHandle: true },
    // Vestige 2.2 to 3.x
    { tool: "recall", needs: ["query"], calls: wordsOnly },
    // server-memory, which searches for its query as one string
    {
      tool: "search_nodes",
      needs: ["query"],
      calls: ({ query }) => wordByWord([query]),
      rank: ({ query, limit }) => ({ query, limit: limit ?? 10 }),
    },
  ],
  remember: [
    // every version of Vestige
    {
      tool: "smart_ingest",
      needs: ["content"],
      calls: ({ content, tags, type }) => [{ content, tags, node_type: type }],
    },
    // server-memory
    { tool: "create_entities", needs: ["entities"], calls: async (input) => [{ entities: [await asEntity(input)] }] },
  ],
  recallContext: [
    // Vestige up to 2.1
    { tool: "session_context", needs: ["context"], calls: sessionArguments },
    // Vestige 2.2 and later
    { tool: "session_start", needs: ["context"], calls: sessionArguments },
    // server-memory
    {
      tool: "search_nodes",
      needs: ["query"],
      when: (_schema, { topics }) => topics !== undefined && topics.length > 0,
      calls: ({ topics }) => wordByWord(topics ?? []),
      rank: ({ topics }) => ({ query: (topics ?? []).join(" "), limit: 10 }),
    },
    { tool: "read_graph", needs: [], calls: () => [{}] },
  ],
  forget: [
    // Vestige 3.x, which has a tool for deletion
    { tool: "purge", needs: ["id"], calls: ({ id, reason }) => [{ id, reason, confirm: true }] },
    // Vestige 2.x and 3.x
    {
      tool: "memory",
      needs: ["action", "id"],
      when: (schema) => actions(schema).includes("purge"),
      calls: ({ id, reason }) => [{ action: "purge", id, reason, confirm: true }],
    },
    {
      tool: "memory",
      needs: ["action", "id"],
      when: (schema) => actions(schema).includes("delete"),
      calls: ({ id, reason }) => [{ action: "delete", id, reason, confirm: true }],
    },
    // Vestige 4.x, whose log is append-only
    { tool: "suppress", needs: ["id"], calls: ({ id, reason }) => [{ id, reason }] },
    // server-memory
    { tool: "delete_entities", needs: ["entityNames"], calls: ({ id }) => [{ entityNames: [id] }] },
  ],
};

/** The calls for `intent` with the tools of the server; throws if it has none for it. */
export async function plan<I extends Intent>(intent: I, input: Intents[I], tools: Tool[]): Promise<Plan> {
  for (const rule of RULES[intent]) {
    const tool = tools.find(({ name }) => name === rule.tool);
    if (tool === undefined || !rule.needs.every((property) => property in properties(tool))) continue;
    if (rule.when !== undefined && !rule.when(tool.inputSchema, input)) continue;
    const calls = (await rule.calls(input)).map((args) => announced(args, tool));
    return { tool: tool.name, calls, rank: rule.rank?.(input), byHandle: rule.byHandle ?? false };
  }
  throw new ToolInputError(
    `The memory server has no tool for this. It has: ${tools.map(({ name }) => name).join(", ") || "none"}.`,
  );
}

/** Names of tools and actions that change or remove memories, for servers without annotations. */
const DESTRUCTIVE = /(^|_)(delete|purge|erase|forget|suppress|remove|clear|gc|restore|merge|supersede)(_|$)/;

/** Whether a call can delete memories, by the tool's annotations, its name and its action. */
export function isDestructive(tool: Tool, args: JsonObject): boolean {
  const { readOnlyHint, destructiveHint } = tool.annotations;
  if (readOnlyHint === true) return false;
  const action = asString(args["action"]) ?? "";
  return destructiveHint === true || DESTRUCTIVE.test(tool.name) || DESTRUCTIVE.test(action);
}

function wordByWord(texts: string[]): JsonObject[] {
  const queries = new Set(texts.flatMap((text) => [text, ...significantWords(text)]));
  return [...queries].slice(0, 12).map((query) => ({ query }));
}

/** Characters between words. Vestige's full-text search treats some as operators, and reports a syntax error. */
const OPERATORS = /[^\p{L}\p{M}\p{N}_]+/gu;

/** The words of a text, separated by spaces; undefined if there are none. */
function words(text: string): string | undefined {
  const found = text.replace(OPERATORS, " ").trim();
  return /[\p{L}\p{N}]/u.test(found) ? found : undefined;
}

/** One search for the words of a query; none if it has no words. */
function wordsOnly({ query, limit }: Intents["search"]): JsonObject[] {
  const found = words(query);
  return found === undefined ? [] : [{ query: found, limit }];
}

/** The queries go to the full-text search, so they have only words; the context is passed on unchanged. */
function sessionArguments({ topics, codebase }: Intents["recallContext"]): JsonObject[] {
  const context = topics === undefined && codebase === undefined ? undefined : { topics, codebase };
  const queries = topics?.map(words).filter((query) => query !== undefined);
  return [{ queries, token_budget: CONTEXT_TOKENS, context }];
}

/** The name ends in a digest of the content: equal memories get one name, and memories that only begin alike do not. */
async function asEntity({ content, tags, type }: Intents["remember"]): Promise<JsonObject> {
  const digest = Buffer.from(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(content)));
  const start = firstCharacters(content.replace(/\s+/g, " ").trim(), 48).trim();
  return {
    name: `${start} #${digest.toString("hex", 0, 4)}`,
    entityType: type ?? "memory",
    observations: [content, ...(tags ?? []).map((tag) => `tag: ${tag}`)],
  };
}

function properties(tool: Tool): JsonObject {
  return asObject(tool.inputSchema["properties"]);
}

/** The arguments that have a value and are in the tool's input schema. */
function announced(args: JsonObject, tool: Tool): JsonObject {
  const known = properties(tool);
  return Object.fromEntries(Object.entries(args).filter(([name, value]) => value !== undefined && name in known));
}

function actions(schema: JsonObject): unknown[] {
  const action = asObject(schema["properties"])["action"];
  return isObject(action) ? asArray(action["enum"]) : [];
}
