import assert from "node:assert/strict";
import { createServer } from "node:http";
import { once } from "node:events";
import { after, test } from "node:test";
import { describeStatus } from "../src/cli.ts";
import { plan } from "../src/mapping.ts";
import { Clients } from "../src/clients.ts";
import { Host } from "./host.ts";
import { Stack, TOKEN } from "./stack.ts";

const stack = await Stack.start();
after(() => stack.stop());
const host = Host.load({ serverUrl: stack.url, authToken: TOKEN });

interface Found {
  results: { id: string; content: string; score: number }[];
}

async function search(query: string): Promise<Found["results"]> {
  return (JSON.parse(await host.text("vestige_search", { query })) as Found).results;
}

test("the live tools of server-memory are mapped", async () => {
  const tools = await new Clients({ serverUrl: stack.url, authToken: TOKEN }).ofAgent("main").listTools({});
  const mapped = [
    await plan("search", { query: "x" }, tools),
    await plan("remember", { content: "x" }, tools),
    await plan("recallContext", { topics: ["x"] }, tools),
    await plan("recallContext", {}, tools),
    await plan("forget", { id: "x" }, tools),
  ];
  assert.deepEqual(
    mapped.map(({ tool }) => tool),
    ["search_nodes", "create_entities", "search_nodes", "read_graph", "delete_entities"],
  );
});

test("the status goes from the nearest part to the farthest, and stops at the one that fails", async () => {
  const lines: string[] = [];
  const status = async (authToken: string): Promise<void> => {
    lines.length = 0;
    for await (const line of describeStatus(new Clients({ serverUrl: stack.url, authToken }), ["main"])) lines.push(line);
  };
  await status(TOKEN);
  assert.deepEqual(lines.slice(0, 3), [`bridge    ${stack.url}/mcp, ok`, lines[1], "token     accepted"]);
  assert.match(lines[1] ?? "", /^vestige {3}memory-server \d/);
  assert.ok(lines.includes("vestige_forget → delete_entities"));
  await assert.rejects(status("wrong"), /does not accept this one/);
  assert.equal(lines.length, 2);
});

test("what one agent remembers, another finds in other words, and forgetting removes it", async () => {
  await host.call("vestige_remember", { content: "The billing service runs on PostgreSQL 16", tags: ["shop"] }, { agentId: "one" });
  const [memory] = await search("which database does the billing service use");
  assert.ok(memory);
  assert.match(memory.content, /PostgreSQL 16/);
  const result = await host.call("vestige_forget", { id: memory.id, confirm: true }, { agentId: "two" });
  assert.deepEqual(result.details, { tool: "delete_entities" });
  assert.deepEqual(await search("billing service"), []);
});

test("remembering the same thing twice keeps one memory, and two that begin alike are two", async () => {
  const start = "The deployment window of the shop opens on weekdays at ";
  for (const hour of ["nine", "nine", "ten"]) await host.call("vestige_remember", { content: start + hour });
  assert.equal((await search("deployment window")).length, 2);
});

test("a search returns no more than its limit", async () => {
  const text = await host.text("vestige_search", { query: "deployment window", limit: 1 });
  assert.equal((JSON.parse(text) as Found).results.length, 1);
});

test("the context of a session is what fits its topics, or everything", async () => {
  assert.match(await host.text("vestige_recall_context", { topics: ["deployment"] }), /weekdays at ten/);
  assert.match(await host.text("vestige_recall_context", {}), /weekdays at ten/);
});

test("forgetting wants to be confirmed", async () => {
  await assert.rejects(host.call("vestige_forget", { id: "x" }), { name: "ToolInputError", message: /cannot be undone/ });
});

test("every announced tool is listed with a sentence, and one of them in full", async () => {
  const list = await host.text("vestige_tools", {});
  assert.match(list, /^open_nodes: Open specific nodes/m);
  assert.match(await host.text("vestige_tools", { name: "open_nodes" }), /"inputSchema"/);
  await assert.rejects(host.call("vestige_tools", { name: "nope" }), /no tool named nope.*open_nodes/);
});

test("any announced tool can be called, and a destructive one only when confirmed", async () => {
  const entities = [{ name: "Ada", entityType: "person", observations: ["writes programs"] }];
  await host.call("vestige_call", { tool: "create_entities", arguments: { entities } });
  const removal = { tool: "delete_entities", arguments: { entityNames: ["Ada"] } };
  await assert.rejects(host.call("vestige_call", removal), { name: "ToolInputError", message: /confirm set to true/ });
  assert.match(await host.text("vestige_call", { tool: "read_graph" }), /Ada/);
  await host.call("vestige_call", { ...removal, confirm: true });
  assert.doesNotMatch(await host.text("vestige_call", { tool: "read_graph" }), /Ada/);
  await assert.rejects(host.call("vestige_call", { tool: "nope" }), /no tool named nope/);
});

test("a tool's own failure is thrown with its words", async () => {
  const call = host.call("vestige_call", { tool: "add_observations", arguments: { observations: [{ entityName: "Nobody", contents: ["x"] }] } });
  await assert.rejects(call, { name: "VestigeError", message: /reported an error: .*Nobody/ });
});

const WRONG: [tool: string, params: unknown, message: RegExp][] = [
  ["vestige_search", {}, /query must be a non-empty string/],
  ["vestige_search", { query: " " }, /query must be a non-empty string/],
  ["vestige_search", { query: "x", limit: 0 }, /limit must be a whole number/],
  ["vestige_remember", { content: "x", tags: "y" }, /tags must be a list/],
  ["vestige_forget", { confirm: true }, /id must be a non-empty string/],
  ["vestige_call", { tool: "read_graph", arguments: [] }, /arguments must be an object/],
];
for (const [tool, params, message] of WRONG) {
  test(`${tool} refuses ${JSON.stringify(params)} as the caller's mistake`, async () => {
    await assert.rejects(host.call(tool, params), { name: "ToolInputError", message });
  });
}

test("a plugin without settings loads, and each call says what to set", async () => {
  await assert.rejects(Host.load({}).call("vestige_tools", {}), /set plugins\.entries\.vestige\.config\.serverUrl/);
});

test("on a Vestige that finds by handle only, a search that finds nothing says how to search", async () => {
  const server = createServer((request, response) => {
    request.setEncoding("utf8").on("data", (body: string) => {
      const { id, method } = JSON.parse(body) as { id: string; method: string };
      const tools = [{ name: "recall", inputSchema: { properties: { handle: {} } } }];
      const text = '{"error":"handle_required"}';
      const result = method === "tools/list" ? { tools } : { content: [{ type: "text", text }] };
      response.end(JSON.stringify({ jsonrpc: "2.0", id, result }));
    });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  const text = await Host.load({ serverUrl: `http://127.0.0.1:${port}` }).text("vestige_search", { query: "free words" });
  assert.match(text, /handle_required.*\nThis version of Vestige finds memories only by exact id or tag/);
  server.close().closeAllConnections();
});
