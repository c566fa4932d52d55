import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import type { Tool } from "../src/client.ts";
import type { JsonObject } from "../src/json.ts";
import { isDestructive, plan, type Intent, type Intents } from "../src/mapping.ts";

type Expected = Record<Intent, [tool: string, args: JsonObject]>;

const INPUT: Intents = {
  search: { query: "billing database", limit: 3 },
  remember: { content: "Billing runs on PostgreSQL", tags: ["billing"], type: "fact" },
  recallContext: { topics: ["billing"], codebase: "shop" },
  forget: { id: "m-1", reason: "asked" },
};

const remembered: JsonObject = { content: "Billing runs on PostgreSQL", tags: ["billing"], node_type: "fact" };
const session: JsonObject = { queries: ["billing"], token_budget: 1500, context: { topics: ["billing"], codebase: "shop" } };

const LINES: Record<string, Expected> = {
  "vestige-2.0": {
    search: ["search", { query: "billing database", limit: 3 }],
    remember: ["smart_ingest", remembered],
    recallContext: ["session_context", session],
    forget: ["memory", { action: "purge", id: "m-1", reason: "asked", confirm: true }],
  },
  "vestige-3.1": {
    search: ["recall", { query: "billing database", limit: 3 }],
    remember: ["smart_ingest", remembered],
    recallContext: ["session_start", session],
    forget: ["purge", { id: "m-1", reason: "asked", confirm: true }],
  },
  "vestige-4.1": {
    search: ["recall", { handle: "billing database" }],
    remember: ["smart_ingest", remembered],
    recallContext: ["session_start", session],
    forget: ["suppress", { id: "m-1", reason: "asked" }],
  },
};

async function recordedTools(line: string): Promise<Tool[]> {
  const text = await readFile(join(import.meta.dirname, "tools-list", `${line}.json`), "utf8");
  const { source, tools } = JSON.parse(text) as { source: string; tools: (Omit<Tool, "annotations"> & { annotations?: JsonObject })[] };
  assert.match(source, /^https:\/\//);
  return tools.map((tool) => ({ annotations: {}, ...tool }));
}

for (const [line, expected] of Object.entries(LINES)) {
  for (const intent of Object.keys(expected) as Intent[]) {
    const [tool, args] = expected[intent];
    test(`on ${line}, ${intent} is ${tool}`, async () => {
      const planned = await plan(intent, INPUT[intent], await recordedTools(line));
      assert.equal(planned.tool, tool);
      assert.deepEqual(planned.calls, [args]);
      assert.equal(planned.byHandle, line === "vestige-4.1" && intent === "search");
    });
  }
}

test("arguments that a tool does not announce are left out", async () => {
  const tools = [{ name: "smart_ingest", description: "", annotations: {}, inputSchema: { properties: { content: {} } } }];
  assert.deepEqual((await plan("remember", INPUT.remember, tools)).calls, [{ content: INPUT.remember.content }]);
});

test("a name made of a memory's beginning never ends in half a character", async () => {
  const tools = [{ name: "create_entities", description: "", annotations: {}, inputSchema: { properties: { entities: {} } } }];
  for (const before of [46, 47, 48]) {
    const content = "x".repeat(before) + "😀".repeat(4);
    const [call] = (await plan("remember", { content }, tools)).calls;
    const [entity] = call?.["entities"] as [{ name: string }];
    assert.ok(entity.name.isWellFormed(), entity.name);
    assert.match(entity.name, new RegExp(`^x{${before}}(😀){${48 - before}} #[0-9a-f]{8}$`, "u"));
  }
});

test("an older memory tool that knows only delete is told to delete", async () => {
  const inputSchema = { properties: { action: { enum: ["get", "delete"] }, id: {} } };
  const planned = await plan("forget", { id: "m-1" }, [{ name: "memory", description: "", annotations: {}, inputSchema }]);
  assert.deepEqual(planned.calls, [{ action: "delete", id: "m-1" }]);
});

test("an intent that no tool serves is answered with the tools that are offered", async () => {
  const tools = [{ name: "echo", description: "", annotations: {}, inputSchema: {} }];
  await assert.rejects(plan("search", { query: "x" }, tools), /no tool for this\. It has: echo\./);
});

test("a call that can destroy something is recognised on every line", async () => {
  const destructive = async (line: string, name: string, args: JsonObject = {}): Promise<boolean> => {
    const tool = (await recordedTools(line)).find((candidate) => candidate.name === name);
    assert.ok(tool, name);
    return isDestructive(tool, args);
  };
  assert.equal(await destructive("vestige-2.0", "search"), false);
  assert.equal(await destructive("vestige-2.0", "memory", { action: "get" }), false);
  assert.equal(await destructive("vestige-2.0", "memory", { action: "purge" }), true);
  assert.equal(await destructive("vestige-2.0", "gc"), true);
  assert.equal(await destructive("vestige-3.1", "purge"), true);
  assert.equal(await destructive("vestige-3.1", "memory_status"), false);
  assert.equal(await destructive("vestige-4.1", "suppress"), true);
  assert.equal(await destructive("vestige-4.1", "smart_ingest"), false);
});

for (const line of ["vestige-2.0", "vestige-3.1"]) {
  const QUERIES = {
    "what's the billing database?": "what s the billing database",
    "salt & pepper, R+D": "salt pepper R D",
    "wie heißt die Prüfung?": "wie heißt die Prüfung",
    "db_url: (a OR b*)": "db_url a OR b",
  };
  for (const [query, words] of Object.entries(QUERIES)) {
    test(`on ${line}, a search for ${query} holds no operators of the full-text search`, async () => {
      const planned = await plan("search", { query }, await recordedTools(line));
      assert.deepEqual(planned.calls, [{ query: words }]);
    });
  }

  test(`on ${line}, the topics of a session are searched for without operators, and named as they were given`, async () => {
    const topics = ["what's new?", "a, b & c+d", "?!", "billing"];
    const planned = await plan("recallContext", { topics }, await recordedTools(line));
    const queries = ["what s new", "a b c d", "billing"];
    assert.deepEqual(planned.calls, [{ queries, token_budget: 1500, context: { topics, codebase: undefined } }]);
  });

  test(`on ${line}, a query without a word searches for nothing`, async () => {
    const planned = await plan("search", { query: "?!" }, await recordedTools(line));
    assert.deepEqual(planned.calls, []);
  });
}

test("a handle is asked for as it is written", async () => {
  const planned = await plan("search", { query: "tag:a+b" }, await recordedTools("vestige-4.1"));
  assert.deepEqual(planned.calls, [{ handle: "tag:a+b" }]);
});
