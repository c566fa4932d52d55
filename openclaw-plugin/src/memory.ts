/** The operations of agents and commands on the memory. */

import type { Caller, Tool, ToolResult, VestigeClient } from "./client.ts";
import { ToolInputError, VestigeError } from "./errors.ts";
import { firstCharacters, type JsonObject } from "./json.ts";
import { isDestructive, plan, type Intent, type Intents } from "./mapping.ts";
import { readMemories, type Memory } from "./memories.ts";

export interface Outcome {
  text: string;
  /** The tool of the memory server that was called. */
  tool: string;
}

const FIND_BY_HANDLE =
  "This version of Vestige finds memories only by exact id or tag, not by words: " +
  "pass one of these, or call vestige_recall_context for an overview.";

/** Performs `intent`; throws if the server has no tool for it or the tool fails. */
export async function perform<I extends Intent>(
  client: VestigeClient,
  intent: I,
  input: Intents[I],
  caller: Caller,
): Promise<Outcome> {
  const { tool, calls, rank, byHandle } = await plan(intent, input, await client.listTools(caller));
  const texts = await callAll(client, tool, calls, caller);
  if (texts.length === 0) return { tool, text: JSON.stringify({ results: [] }, undefined, 2) };
  if (rank !== undefined) {
    const results = readMemories(texts, rank.query).slice(0, rank.limit);
    return { tool, text: JSON.stringify({ results }, undefined, 2) };
  }
  const text = texts.join("\n");
  return { tool, text: byHandle && text.includes('"error"') ? `${text}\n${FIND_BY_HANDLE}` : text };
}

/** The memories that match `query`; undefined if the server cannot search by words. */
export async function findMemories(
  client: VestigeClient,
  query: string,
  limit: number,
  caller: Caller,
): Promise<Memory[] | undefined> {
  const { tool, calls, byHandle } = await plan("search", { query, limit }, await client.listTools(caller));
  if (byHandle) return undefined;
  return readMemories(await callAll(client, tool, calls, caller), query).slice(0, limit);
}

/** Calls a tool of the server by its own name. A call that can delete memories must be confirmed. */
export async function callAny(
  client: VestigeClient,
  name: string,
  args: JsonObject,
  confirm: boolean,
  caller: Caller,
): Promise<Outcome> {
  const tools = await client.listTools(caller);
  const tool = tools.find((candidate) => candidate.name === name);
  if (tool === undefined) {
    throw new ToolInputError(`There is no tool named ${name}. The tools are: ${tools.map((t) => t.name).join(", ")}.`);
  }
  if (isDestructive(tool, args) && !confirm) {
    throw new ToolInputError(`${name} can delete memories permanently: repeat the call with confirm set to true if that is intended.`);
  }
  return { tool: name, text: succeeded(await client.callTool(name, args, caller)) };
}

/** The tools of the server, one per line, or the full description of the one with this name. */
export function describeTools(tools: Tool[], name: string | undefined): string {
  if (name === undefined) {
    return tools.map((tool) => `${tool.name}: ${firstSentence(tool.description)}`).join("\n");
  }
  const tool = tools.find((candidate) => candidate.name === name);
  if (tool === undefined) {
    throw new ToolInputError(`There is no tool named ${name}. The tools are: ${tools.map((t) => t.name).join(", ")}.`);
  }
  return JSON.stringify(tool, undefined, 2);
}

async function callAll(client: VestigeClient, tool: string, calls: JsonObject[], caller: Caller): Promise<string[]> {
  return Promise.all(calls.map(async (args) => succeeded(await client.callTool(tool, args, caller))));
}

function succeeded({ text, failed }: ToolResult): string {
  if (failed) throw new VestigeError(`Vestige reported an error: ${firstCharacters(text, 2000)}`);
  return text;
}

function firstSentence(text: string): string {
  return /^.*?[.!?](?=\s|$)/s.exec(text)?.[0].replace(/\s+/g, " ") ?? text;
}
