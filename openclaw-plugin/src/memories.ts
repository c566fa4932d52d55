/** Converts the memories of all servers to one form. */

import { asArray, asObject, asString, isObject, parseJson, type JsonObject } from "./json.ts";

export interface Memory {
  id: string;
  content: string;
  /** Between 0 and 1: the server's score, or the fraction of the query's words that the memory contains. */
  score: number;
}

/** The members of the servers' results that have the list and the score. */
const LISTS = ["results", "nodes", "entities"];
const SCORES = ["combinedScore", "score"];

/** The memories in the texts of results, each once, the best first. */
export function readMemories(texts: string[], query: string): Memory[] {
  const memories = new Map<string, Memory>();
  for (const text of texts) {
    const answer = asObject(parseJson(text));
    for (const entry of LISTS.flatMap((list) => asArray(answer[list])).filter(isObject)) {
      const memory = readMemory(entry, query);
      if (memory !== undefined) memories.set(memory.id, memory);
    }
  }
  return [...memories.values()].sort((a, b) => b.score - a.score);
}

/** The words of a text that a search uses, the longest first. */
export function significantWords(text: string): string[] {
  const words = text.toLowerCase().match(/[\p{L}\p{N}_]{4,}/gu) ?? [];
  return [...new Set(words)].sort((a, b) => b.length - a.length).slice(0, 8);
}

function readMemory(entry: JsonObject, query: string): Memory | undefined {
  const id = asString(entry["id"]) ?? asString(entry["name"]);
  // An entity of server-memory without observations is represented by its name and its type.
  const named = [asString(entry["name"]), asString(entry["entityType"])].filter((it) => it !== undefined).join(", ");
  const content = asString(entry["content"]) ?? (asArray(entry["observations"]).join("\n") || named);
  if (id === undefined || content === "") return undefined;
  const announced = SCORES.map((name) => entry[name]).find((score) => typeof score === "number");
  return { id, content, score: announced ?? overlap(query, content) };
}

function overlap(query: string, content: string): number {
  const text = content.toLowerCase();
  const words = significantWords(query);
  if (words.length === 0) return text.includes(query.trim().toLowerCase()) ? 1 : 0;
  return words.filter((word) => text.includes(word)).length / words.length;
}
