/** Agents with tokens of their own, on a bridge that gives each token other rights. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { after, test } from "node:test";
import { describeStatus } from "../src/cli.ts";
import { Clients } from "../src/clients.ts";
import { Host } from "./host.ts";
import { Stack, stop, type AuditLine } from "./stack.ts";

const TOKENS = { writer: "token-of-the-writer", reader: "token-of-the-reader", terminal: "token-of-the-terminal" };
const SETTING = "plugins.entries.vestige.config";

const stack = await Stack.start();
after(() => stack.stop());
await stop(stack.bridge);
await stack.startBridgeWith({
  writer: { token: TOKENS.writer },
  reader: { token: TOKENS.reader, rights: 'tools = ["search_nodes", "read_graph"]' },
  terminal: { token: TOKENS.terminal, rights: "read_only = true" },
});

const config = {
  serverUrl: stack.url,
  authToken: TOKENS.terminal,
  authTokens: { writer: TOKENS.writer, reader: TOKENS.reader },
};
const ALLOWED = { hooks: { allowConversationAccess: true } };

/** What the agent reads when the call fails; never a token. */
async function failure(host: Host, tool: string, params: unknown, agentId?: string): Promise<string> {
  try {
    await host.call(tool, params, agentId === undefined ? {} : { agentId });
  } catch (error) {
    assert.ok(error instanceof Error);
    // OpenClaw shows the message of such an error to who calls a tool over HTTP, too.
    if (/not allow this|has no token/.test(error.message)) assert.equal(error.name, "ToolAuthorizationError");
    for (const token of Object.values(TOKENS)) assert.equal(error.message.includes(token), false);
    return error.message;
  }
  assert.fail("it should have failed");
}

async function text(host: Host, tool: string, params: unknown, agentId: string): Promise<string> {
  return (await host.call(tool, params, { agentId })).content.map((part) => part.text).join("\n");
}

async function status(settings: unknown, agents: string[], agentId?: string): Promise<{ lines: string[]; failure: string }> {
  const lines: string[] = [];
  let message = "";
  try {
    for await (const line of describeStatus(new Clients(settings), agents, agentId)) lines.push(line);
  } catch (error) {
    assert.ok(error instanceof Error);
    message = error.message;
  }
  for (const token of Object.values(TOKENS)) assert.equal([...lines, message].join("\n").includes(token), false);
  return { lines, failure: message };
}

async function audited(wanted: Partial<AuditLine>): Promise<void> {
  const lines = await stack.audited();
  const fits = (line: AuditLine): boolean => Object.entries(wanted).every(([key, value]) => line[key as keyof AuditLine] === value);
  assert.ok(lines.some(fits), `a line of the audit log: ${JSON.stringify(wanted)}`);
}

test("each agent's calls arrive as its own principal, with that principal's rights", async () => {
  const host = Host.load(config);
  await host.call("vestige_remember", { content: "The shop closes at nine" }, { agentId: "writer" });
  assert.match(await text(host, "vestige_search", { query: "shop closes" }, "reader"), /closes at nine/);
  await audited({ audit: "call", principal: "writer", agent: "writer", tool: "create_entities" });
  await audited({ audit: "call", principal: "reader", agent: "reader", tool: "search_nodes" });
  for (const { principal, agent } of await stack.audited()) assert.equal(principal, agent);
});

test("each agent gets the list of tools of its own token, whoever asked first", async () => {
  const host = Host.load(config);
  assert.match(await text(host, "vestige_tools", {}, "writer"), /^create_entities: /m);
  const list = await text(host, "vestige_tools", {}, "reader");
  assert.deepEqual(list.split("\n").map((line) => line.split(":")[0]).sort(), ["read_graph", "search_nodes"]);
  assert.match(await text(host, "vestige_tools", {}, "writer"), /^create_entities: /m);
});

test("what a token may not see is not offered, and the message names what is", async () => {
  const message = await failure(Host.load(config), "vestige_remember", { content: "x" }, "reader");
  assert.match(message, /^The memory server has no tool for this\. It has: (read_graph, search_nodes|search_nodes, read_graph)\.$/);
});

test("a call that the bridge forbids is answered with the setting of the token, and the bridge writes it down", async () => {
  const settings = { ...config, authTokens: { visitor: TOKENS.terminal } };
  const message = await failure(Host.load(settings), "vestige_remember", { content: "x" }, "visitor");
  assert.match(message, /^vestige-bridge does not allow this: This token is read-only, and /);
  assert.ok(message.endsWith(`The operator of vestige-bridge sets what the token in ${SETTING}.authTokens.visitor may do.`), message);
  await audited({ audit: "refusal", principal: "terminal", agent: "visitor", tool: "create_entities", outcome: "refused" });
});

test("an agent without a token is told where to put one, and nothing is sent", async () => {
  const lines = (await stack.audited()).length;
  const host = Host.load(config);
  assert.ok(host.offered("guest").includes("vestige_search"));
  assert.match(await failure(host, "vestige_search", { query: "shop" }, "guest"), /^The agent guest has no token .*authTokens\.guest\./);
  assert.doesNotMatch(stack.bridgeLog, /agent=guest/);
  assert.equal((await stack.audited()).length, lines);
});

test("a token that the bridge does not accept is answered with the setting of that agent", async () => {
  const message = await failure(Host.load({ ...config, authTokens: { writer: "wrong" } }), "vestige_tools", {}, "writer");
  assert.equal(message, `Set a valid token in ${SETTING}.authTokens.writer, because vestige-bridge does not accept this one.`);
});

test("an agent that is not allowed is offered no tools, which the log says once", () => {
  const host = Host.load({ ...config, allowedAgents: ["writer"] });
  assert.deepEqual(host.offered("reader"), []);
  assert.deepEqual(host.offered("Writer"), [...host.tools.keys()]);
  assert.deepEqual(host.messages, [`The agent reader may not use the memory: ${SETTING}.allowedAgents does not name it.`]);
});

test("recall uses the token of the agent whose prompt it is, and leaves the prompts of other agents alone", async () => {
  const host = Host.load({ ...config, autoRecall: true, allowedAgents: ["writer", "reader", "guest"] }, ALLOWED);
  assert.ok(host.recall);
  const recall = async (agentId: string): Promise<string | undefined> => {
    return (await host.recall?.({ prompt: "When is it that the shop closes?" }, { agentId, trigger: "user" }))?.prependContext;
  };
  const calls = (await stack.audited()).length;
  assert.match((await recall("reader")) ?? "", /closes at nine/);
  const lines = (await stack.audited()).slice(calls);
  assert.deepEqual([...new Set(lines.map(({ principal }) => principal))], ["reader"]);
  assert.equal(await recall("main"), undefined);
  assert.deepEqual(host.warnings, []);
  assert.equal(await recall("guest"), undefined);
  assert.match(host.warnings.join("\n"), /^autoRecall added nothing to the prompt: The agent guest has no token/);
});

test("many agents at once are kept apart", async () => {
  const seen: IncomingHttpHeaders[] = [];
  const server = createServer((request, response) => {
    seen.push(request.headers);
    request.setEncoding("utf8").on("data", (body: string) => {
      const { id, method } = JSON.parse(body) as { id: string; method: string };
      const mine = request.headers.authorization?.replace("Bearer token-of-", "only-for-");
      const result = method === "tools/list" ? { tools: [{ name: mine }] } : { content: [{ type: "text", text: mine }] };
      setTimeout(() => response.end(JSON.stringify({ jsonrpc: "2.0", id, result })), Math.random() * 20);
    });
  }).listen(0, "127.0.0.1");
  after(() => { server.close().closeAllConnections(); });
  await once(server, "listening");
  const agents = Array.from({ length: 20 }, (_, number) => `agent-${number}`);
  const authTokens = Object.fromEntries(agents.map((agent) => [agent, `token-of-${agent}`]));
  const host = Host.load({ serverUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, authTokens });
  await Promise.all(
    agents.flatMap((agent) => [
      text(host, "vestige_tools", {}, agent).then((list) => { assert.equal(list, `only-for-${agent}: `); }),
      text(host, "vestige_call", { tool: `only-for-${agent}` }, agent).then((answer) => { assert.equal(answer, `only-for-${agent}`); }),
    ]),
  );
  for (const headers of seen) assert.equal(headers.authorization, `Bearer token-of-${String(headers["x-agent-id"])}`);
});

test("the status shows each agent, whether the bridge accepts its token, and who is allowed", async () => {
  const settings = {
    ...config,
    authTokens: { ...config.authTokens, late: "wrong", ghost: TOKENS.reader },
    allowedAgents: ["writer", "reader", "guest", "late", "ghost"],
  };
  const { lines, failure } = await status(settings, ["main", "writer", "reader", "guest", "late"]);
  const agents = lines.filter((line) => line.startsWith("agent "));
  assert.equal(agents[0], "agent     main: not in allowedAgents");
  assert.match(agents[1] ?? "", /^agent {5}writer: own token accepted, tools: \d+$/);
  assert.equal(agents[2], "agent     reader: own token accepted, tools: 2");
  assert.match(agents[3] ?? "", /^agent {5}guest: The agent guest has no token .*authTokens\.guest\./);
  assert.equal(agents[4], `agent     late: Set a valid token in ${SETTING}.authTokens.late, because vestige-bridge does not accept this one.`);
  assert.equal(agents[5], "agent     ghost (not in agents.entries): own token accepted, tools: 2");
  assert.equal(agents.length, 6);
  assert.equal(failure, "2 of the allowed agents cannot use the memory.");
  assert.ok(lines.includes("token     accepted"), "the token of the terminal is shown, too");
});

test("the status of one agent is what its own token gets", async () => {
  const { lines, failure } = await status(config, ["writer", "reader"], "reader");
  assert.equal(failure, "");
  assert.deepEqual(lines.slice(2), [
    "token     accepted",
    lines[3],
    "vestige_search → search_nodes",
    "vestige_remember → not offered",
    "vestige_recall_context → read_graph",
    "vestige_forget → not offered",
  ]);
  assert.match(lines[3] ?? "", /^tools {5}2: /);
});

test("the status of a bridge with tokens for agents alone needs no token for the terminal", async () => {
  const { lines, failure } = await status({ serverUrl: stack.url, authTokens: config.authTokens }, ["writer", "reader"]);
  assert.equal(failure, "");
  assert.deepEqual(lines.map((line) => line.split(" ")[0]), ["bridge", "vestige", "agent", "agent"]);
});

test("with allowedAgents alone the status says that the agents share a token", async () => {
  const settings = { serverUrl: stack.url, authToken: TOKENS.writer, allowedAgents: ["writer"] };
  const { lines } = await status(settings, ["main", "writer"]);
  assert.equal(lines[2], "agent     main: not in allowedAgents");
  assert.match(lines[3] ?? "", /^agent {5}writer: shared token accepted, tools: \d+$/);
});
