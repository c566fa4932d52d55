/**
 * What the plugin's stable tool names become on the memory server that stands behind the bridge.
 *
 * Vestige renames its tools from release to release, so nothing here asks for a version: a rule applies when
 * the tool that it names is announced with the properties that it needs. The first rule that applies wins.
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
  /** One set of arguments for each call; several when the server can look for one word at a time only. */
  calls: JsonObject[];
  /** Present when the answers are lists of memories, to be put together and ranked here. */
  rank: Ranking | undefined;
  /** The server finds a memory by its id or its tag, and not by what it says. */
  byHandle: boolean;
}

export interface Ranking {
  query: string;
  limit: number;
}

interface Rule<Input> {
  tool: string;
  /** Properties that the announced input schema must have. */
  needs: string[];
  /** Any further condition on the input schema or the input. */
  when?: (schema: JsonObject, input: Input) => boolean;
  calls: (input: Input) => JsonObject[] | Promise<JsonObject[]>;
  rank?: (input: Input) => Ranking;
  byHandle?: true;
}

/** Tokens that a session's opening context may take. */
const CONTEXT_TOKENS = 1500;

const RULES: { [I in Intent]: Rule<Intents[I]>[] } = {
  search: [
    // Vestige up to 2.1
    { tool: "search", needs: ["query"], calls: wordsOnly },
    // Vestige 4.x, which resolves exact handles and never ranks text
    { tool: "recall", needs: ["handle"], calls: ({ query }) => [{ handle: query }], byHandle: true },
    // Vestige 2.2 to 3.x
    { tool: "recall", needs: ["query"], calls: wordsOnly },
    // server-memory, which looks for its query as one piece of text
    {
      tool: "search_nodes",
      needs: ["query"],
      calls: ({ query }) => wordByWord([query]),
      rank: ({ query, limit }) => ({ query, limit: limit ?? 10 }),
    },
  ],
  remember: [
    // Vestige of every line
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
    // Vestige 3.x, where erasing has a tool of its own
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

/** How `intent` is carried out with the tools that are announced; throws when it cannot be. */
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

/** Names that change or remove what is stored, for servers that announce no hints. */
const DESTRUCTIVE = /(^|_)(delete|purge|erase|forget|suppress|remove|clear|gc|restore|merge|supersede)(_|$)/;

/** Whether a call can destroy something, by the tool's own hints if it gives any. */
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

/** What separates words. Vestige's full-text search takes some of it for operators, and answers with a syntax error. */
const OPERATORS = /[^\p{L}\p{M}\p{N}_]+/gu;

/** The words of a text, without what separates them; undefined where there is none. */
function words(text: string): string | undefined {
  const found = text.replace(OPERATORS, " ").trim();
  return /[\p{L}\p{N}]/u.test(found) ? found : undefined;
}

/** One search for the words of a query; none where it holds no word. */
function wordsOnly({ query, limit }: Intents["search"]): JsonObject[] {
  const found = words(query);
  return found === undefined ? [] : [{ query: found, limit }];
}

/** The queries go to the full-text search, so they are words alone; the context is passed on as it was given. */
function sessionArguments({ topics, codebase }: Intents["recallContext"]): JsonObject[] {
  const context = topics === undefined && codebase === undefined ? undefined : { topics, codebase };
  const queries = topics?.map(words).filter((query) => query !== undefined);
  return [{ queries, token_budget: CONTEXT_TOKENS, context }];
}

/** The name ends in a digest of the content: the same memory twice is one, two that begin alike are two. */
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

/** The arguments that have a value and that the tool knows. */
function announced(args: JsonObject, tool: Tool): JsonObject {
  const known = properties(tool);
  return Object.fromEntries(Object.entries(args).filter(([name, value]) => value !== undefined && name in known));
}

function actions(schema: JsonObject): unknown[] {
  const action = asObject(schema["properties"])["action"];
  return isObject(action) ? asArray(action["enum"]) : [];
}
