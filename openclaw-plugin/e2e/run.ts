/**
 * The plugin's whole life on the real OpenClaw, with the real bridge, supergateway and server-memory behind it; then its
 * use with a Vestige behind the bridge that serves HTTP itself, for which e2e/standin stands in.
 * Every step prints what it saw; the first that sees something else ends the run with exit status 1.
 */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Stack, stop, TOKEN, type Way } from "../test/stack.ts";
import { ScriptedModel, textOf, type Message } from "./model.ts";
import { installOpenClaw, OpenClaw, run, type Ran } from "./openclaw.ts";

const PLUGIN = join(import.meta.dirname, "..");
const TOOLS = ["vestige_search", "vestige_remember", "vestige_recall_context", "vestige_forget", "vestige_tools", "vestige_call"];

/** What is remembered, and what finds it. */
interface Subject {
  memory: string;
  /** The part of the memory that an answer is known by. */
  answer: string;
  search: string;
  question: string;
}

const SUBJECTS: Record<Way, Subject> = {
  supergateway: {
    memory: "The billing service keeps its invoices in the database PostgreSQL 16",
    answer: "PostgreSQL 16",
    search: "what database does billing use",
    question: "Which database does the billing service keep its invoices in?",
  },
  // The stand-in finds a memory by a part of its text, which these are once the plugin has taken the operators out.
  native: {
    memory: "The billing service keeps its invoices in the database MariaDB 12",
    answer: "MariaDB 12",
    search: "its invoices, in the database?",
    question: "The billing service keeps its invoices in the database?",
  },
};

/** The tokens of the agents, each with a principal of its own on the bridge. */
const WRITER_TOKEN = "a-token-for-the-writer";
const READER_TOKEN = "a-token-for-the-reader";
const TOKENS = [TOKEN, WRITER_TOKEN, READER_TOKEN];

const started = performance.now();

/** Runs one step and prints what it returns. */
async function step(name: string, work: () => Promise<string>): Promise<void> {
  const start = performance.now();
  const saw = await work();
  console.log(`✔ ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)\n    ${saw.trim().replaceAll("\n", "\n    ")}`);
}

function succeeded({ status, stdout, stderr }: Ran): string {
  assert.equal(status, 0, stdout + stderr);
  return stdout;
}

/** What is worth printing of a command's output. */
function brief(text: string, lines = 6): string {
  return text.split("\n").filter((line) => /\w/.test(line)).slice(0, lines).join("\n");
}

const directory = await mkdtemp(join(tmpdir(), "openclaw-e2e-"));
const { home, fresh } = await installOpenClaw();
console.log(`OpenClaw is ${fresh ? "now" : "already"} installed (${seconds()} s)`);

let stack = await Stack.start();
const model = new ScriptedModel();
const modelUrl = await model.start();
const openclaw = new OpenClaw(home, join(directory, "state"), { VESTIGE_TOKEN: TOKEN, WRITER_TOKEN, READER_TOKEN });
try {
  await installed();
  await rescued();
  await checked();
  await Promise.all([gatewayStarted(), withoutPlugin()]);
  await used();
  await managed();
  await recalled();
  await disturbed();
  await separated();
  await moved();
  await used();
  await called();
  await recalled();
  await disturbed();
  console.log(`every step passed (${seconds()} s)`);
} catch (error) {
  console.log(`the gateway's last lines:\n${openclaw.log.split("\n").slice(-25).join("\n")}`);
  throw error;
} finally {
  await openclaw.stopGateway();
  model.stop();
  await stack.stop();
  await rm(directory, { recursive: true, force: true });
}

function seconds(): string {
  return ((performance.now() - started) / 1000).toFixed(0);
}

async function installed(): Promise<void> {
  let tarball = "";
  await step("npm pack", async () => {
    const packed = await run("npm", ["pack", "--json", "--pack-destination", directory], { cwd: PLUGIN });
    const output = succeeded(packed);
    const [{ filename, size, files }] = JSON.parse(output.slice(output.indexOf("[\n"))) as [{ filename: string; size: number; files: unknown[] }];
    tarball = join(directory, filename);
    return `${filename}: ${size} bytes, ${files.length} files`;
  });
  await step("openclaw plugins install npm-pack:…", async () => {
    await openclaw.writeConfig(await openclaw.baseConfig());
    return brief(succeeded(await openclaw.cli("plugins", "install", `npm-pack:${tarball}`, "--force", "--accept-capabilities")), 9);
  });
}

/** The deployment guide's own block, which OpenClaw refuses, becomes the block that it wants. */
async function rescued(): Promise<void> {
  const settings = { serverUrl: `${stack.url}///`, authToken: TOKEN };
  await step("config validate, with the guide's block pasted in", async () => {
    const config = await openclaw.readConfig();
    await openclaw.writeConfig({ ...config, plugins: { ...(config["plugins"] as object), vestige: { settings } } });
    const { status, stdout, stderr } = await openclaw.cli("config", "validate");
    assert.notEqual(status, 0, stdout + stderr);
    assert.match(stdout + stderr, /Unrecognized key: "vestige"[^]*openclaw doctor --fix/);
    return `exit status ${status}\n${brief(stdout + stderr)}`;
  });
  await step("doctor --fix", async () => {
    succeeded(await openclaw.cli("doctor", "--fix", "--non-interactive"));
    const { plugins } = (await openclaw.readConfig()) as { plugins: { vestige?: unknown; entries: { vestige: { config: unknown } } } };
    assert.equal(plugins.vestige, undefined);
    assert.deepEqual(plugins.entries.vestige.config, settings);
    return `plugins.entries.vestige = ${JSON.stringify(plugins.entries.vestige)}`;
  });
}

async function checked(): Promise<void> {
  await step("openclaw vestige status, with the rescued settings", async () => {
    const output = succeeded(await openclaw.cli("vestige", "status"));
    assert.match(output, /token +accepted/);
    assert.match(output, /vestige_search → search_nodes/);
    return output;
  });
  await configureAgents();
  await Promise.all([
    step("config validate, with a secret reference, agents and a model", async () => {
      return brief(succeeded(await openclaw.cli("config", "validate")));
    }),
    step("plugins doctor", async () => {
      const output = succeeded(await openclaw.cli("plugins", "doctor"));
      assert.match(output, /checks passed/);
      return brief(output);
    }),
    step("plugins inspect vestige --runtime --json", async () => {
      const inspected = JSON.parse(succeeded(await openclaw.cli("plugins", "inspect", "vestige", "--runtime", "--json"))) as {
        tools: { names: string[]; optional: boolean }[];
        diagnostics: unknown[];
      };
      assert.deepEqual(inspected.tools.flatMap(({ names }) => names), TOOLS);
      assert.deepEqual(inspected.diagnostics, []);
      return inspected.tools.map(({ names, optional }) => `${names.join()}${optional ? " (optional)" : ""}`).join("\n");
    }),
  ]);
}

async function gatewayStarted(): Promise<void> {
  await step("gateway run", async () => {
    await openclaw.startGateway();
    return "the gateway is ready";
  });
}

function reference(id: string): unknown {
  return { source: "env", provider: "default", id };
}

/**
 * Agents, a scripted model, the token by reference, the optional tools allowed, and recall switched on; `settings` are
 * more of the plugin's.
 */
async function configureAgents(settings: Record<string, unknown> = {}): Promise<void> {
  const config = await openclaw.readConfig();
  const scripted = { id: "scripted", name: "Scripted", reasoning: false, input: ["text"], contextWindow: 100_000, maxTokens: 1000 };
  await openclaw.writeConfig({
    ...config,
    agents: { defaults: { model: { primary: "local/scripted" }, skipBootstrap: true, systemAgent: { agentId: "main" } }, ownership: "explicit", entries: { main: {}, writer: {}, reader: {}, guest: {}, late: {} } },
    models: { providers: { local: { baseUrl: modelUrl, apiKey: "none", api: "openai-completions", models: [scripted] } } },
    tools: { alsoAllow: ["vestige"] },
    plugins: {
      entries: {
        vestige: {
          enabled: true,
          hooks: { allowConversationAccess: true },
          config: {
            serverUrl: `${stack.url}/mcp`,
            authToken: reference("VESTIGE_TOKEN"),
            timeoutSeconds: 10,
            autoRecall: true,
            recallTimeoutSeconds: 10,
            ...settings,
          },
        },
      },
    },
  });
}

/** Another bridge, and behind it a Vestige without supergateway; OpenClaw keeps the plugin, and what agents have said. */
async function moved(): Promise<void> {
  await openclaw.stopGateway();
  await stack.stop();
  stack = await Stack.start("native");
  await configureAgents();
  await gatewayStarted();
}

async function used(): Promise<void> {
  const { memory, answer, search } = SUBJECTS[stack.way];
  await step("an agent remembers, another finds it", async () => {
    await call("vestige_remember", { content: memory, tags: ["billing"] }, "writer");
    const found = await call("vestige_search", { query: search }, "reader");
    assert.ok(found.includes(answer), found);
    for (const agent of ["writer", "reader"]) assert.match(stack.bridgeLog, new RegExp(`agent=${agent}`));
    return `${found}\nthe bridge's log names both agents`;
  });
}

/** Every other tool of the plugin, and its command, on server-memory. */
async function managed(): Promise<void> {
  await step("vestige_recall_context", async () => {
    const context = await call("vestige_recall_context", { topics: ["billing"] }, "reader");
    assert.match(context, /PostgreSQL 16/);
    return brief(context);
  });
  await step("vestige_tools", async () => {
    const list = await call("vestige_tools", {});
    assert.match(list, /^read_graph: /m);
    return brief(list, 20);
  });
  await step("vestige_call", async () => {
    const entities = [{ name: "Ada", entityType: "person", observations: ["writes programs"] }];
    await call("vestige_call", { tool: "create_entities", arguments: { entities } });
    const graph = await call("vestige_call", { tool: "read_graph", arguments: {} });
    assert.match(graph, /Ada/);
    return `read_graph holds Ada and ${graph.split('"entityType"').length - 2} more`;
  });
  await step("vestige_forget, first without confirm", async () => {
    const refused = await openclaw.invoke("vestige_forget", { id: "Ada" });
    assert.equal(refused.status, 400);
    await call("vestige_forget", { id: "Ada", confirm: true });
    assert.doesNotMatch(await call("vestige_search", { query: "Ada writes programs" }), /Ada/);
    return `400 ${refused.text}\nthen, confirmed, it is gone`;
  });
  await step("openclaw vestige search", async () => {
    const output = succeeded(await openclaw.cli("vestige", "search", "invoices", "PostgreSQL"));
    assert.match(output, /PostgreSQL 16/);
    return output;
  });
}

/**
 * The tools of the stand-in, which has four of Vestige's: smart_ingest, search, system_status and backup. It has none for
 * vestige_recall_context (session_start) and vestige_forget (purge), so of these the refusal is what can be seen here.
 */
async function called(): Promise<void> {
  await step("vestige_tools", async () => {
    const list = await call("vestige_tools", {});
    assert.match(list, /^smart_ingest: /m);
    return list;
  });
  await step("vestige_call", async () => {
    const status = await call("vestige_call", { tool: "system_status", arguments: {} });
    assert.deepEqual(JSON.parse(status), { totalMemories: 1 });
    return status;
  });
  for (const [tool, args] of [["vestige_recall_context", {}], ["vestige_forget", { id: "1", confirm: true }]] as const) {
    await step(`${tool}, which this server has no tool for`, async () => {
      const { status, text } = await openclaw.invoke(tool, args);
      assert.equal(status, 400);
      assert.match(text, /The memory server has no tool for this\. It has: .*smart_ingest/);
      return `400 ${text}`;
    });
  }
}

async function call(tool: string, args: unknown, agentId?: string): Promise<string> {
  const { status, text } = await openclaw.invoke(tool, args, agentId);
  assert.equal(status, 200, `${tool}: ${text}`);
  return text;
}

/** What the model is told in the user's name is what the hook made of it. */
async function recalled(): Promise<void> {
  const { answer, question } = SUBJECTS[stack.way];
  await step("autoRecall puts the memory before a user's prompt", async () => {
    const prompt = await promptAfter("reader", question);
    const [, memories, asked] = /<vestige-memories>([^]*)<\/vestige-memories>([^]*)/.exec(prompt) ?? [];
    assert.ok(memories?.includes(answer) && asked?.includes(question), prompt);
    return prompt.slice(prompt.indexOf("<vestige-memories>"));
  });
  await step("a prompt that nothing fits is left alone", async () => {
    assert.doesNotMatch(await promptAfter("writer", "Suggest names for the marketing department's party"), /vestige-memories/);
    return "no memory stands before it";
  });
}

/** Everything that the model reads in the user's name when a user says `message` to the agent. */
async function promptAfter(agentId: string, message: string): Promise<string> {
  const known = model.prompts.length;
  await openclaw.ask(agentId, message);
  const prompt = model.prompts.slice(known).find((messages) => userText(messages).includes(message));
  assert.ok(prompt, "the model was asked");
  return userText(prompt);
}

function userText(messages: Message[]): string {
  return messages.filter(({ role }) => role === "user").map(textOf).join("\n");
}

async function searchAsAgent(): Promise<string> {
  return callAsAgent("writer", "vestige_search", { query: "invoices" });
}

/** What an agent reads when it calls a tool now, the way OpenClaw offers plugins' tools to it by default. */
async function callAsAgent(agentId: string, tool: string, args: unknown): Promise<string> {
  model.say({ tool: "tool_call", args: { id: tool, args } }, "Understood.");
  await openclaw.ask(agentId, "Please look it up");
  const answer = (model.prompts.at(-1) ?? []).findLast(({ role }: Message) => role === "tool");
  assert.ok(answer, "the tool was called");
  return textOf(answer);
}

async function disturbed(): Promise<void> {
  const { answer } = SUBJECTS[stack.way];
  await step("the bridge is killed in the middle of a call", async () => {
    stack.upstream.kill("SIGSTOP");
    const start = performance.now();
    const reading = searchAsAgent();
    await sleep(3000);
    await stop(stack.bridge, "SIGKILL");
    const text = await reading;
    stack.upstream.kill("SIGCONT");
    assert.match(text, /closed the connection before it answered|Cannot connect to|did not answer within/);
    assert.ok(performance.now() - start < 30_000);
    return `the agent reads: ${text}`;
  });
  await step("the bridge is back, the next call works", async () => {
    await stack.startBridge();
    const text = await searchAsAgent();
    assert.ok(text.includes(answer), text);
    return brief(text);
  });
  await step("Vestige is away", async () => {
    await stop(stack.upstream);
    const text = await searchAsAgent();
    assert.match(text, /Vestige is not available/);
    return `the agent reads: ${text}`;
  });
  await step("Vestige is back, the next call works", async () => {
    await stack.startUpstream();
    const text = await searchAsAgent();
    assert.ok(text.includes(answer), text);
    return brief(text);
  });
  await step("the bridge wants another token", async () => {
    await stop(stack.bridge);
    await stack.startBridge({ VESTIGE_AUTH_TOKEN: "another-token" });
    const text = await searchAsAgent();
    assert.match(text, /Set a valid token in plugins\.entries\.vestige\.config\.authToken/);
    assert.doesNotMatch(text, new RegExp(TOKEN));
    return `the agent reads: ${text}`;
  });
  await stop(stack.bridge);
  await stack.startBridge();
}

/** Agents with tokens of their own, on a bridge that gives each token other rights. */
async function separated(): Promise<void> {
  const { answer, question } = SUBJECTS[stack.way];
  await openclaw.stopGateway();
  await stop(stack.bridge);
  await stack.startBridgeWith({
    terminal: { token: TOKEN },
    writer: { token: WRITER_TOKEN },
    reader: { token: READER_TOKEN, rights: "read_only = true" },
  });
  await configureAgents({
    authTokens: { writer: reference("WRITER_TOKEN"), reader: "${READER_TOKEN}", late: reference("A_VARIABLE_THAT_NOBODY_SET") },
    allowedAgents: ["writer", "reader", "guest", "late"],
  });
  await step("config validate, with tokens for two agents", async () => {
    return brief(succeeded(await openclaw.cli("config", "validate")));
  });
  await step("gateway run, although one agent's secret reference does not resolve", async () => {
    await openclaw.startGateway();
    return "the gateway is ready";
  });
  await step("openclaw vestige status, with tokens for two of four agents that are allowed", async () => {
    const { status, stdout, stderr } = await openclaw.cli("vestige", "status");
    assert.equal(status, 1);
    assert.match(stdout, /^agent +main: not in allowedAgents$/m);
    assert.match(stdout, /^agent +writer: own token accepted, tools: 9$/m);
    assert.match(stdout, /^agent +reader: own token accepted, tools: 9$/m);
    assert.match(stdout, /^agent +guest: The agent guest has no token .*authTokens\.guest\./m);
    assert.match(stdout, /^agent +late: .*authTokens\.late is a SecretRef that was not resolved/m);
    assert.match(stderr, /2 of the allowed agents cannot use the memory\./);
    return stdout + stderr;
  });
  await step("openclaw vestige status --agent reader", async () => {
    return brief(succeeded(await openclaw.cli("vestige", "status", "--agent", "reader")), 3);
  });
  await step("what the writer remembers, the reader finds, each as a principal of its own", async () => {
    const before = (await stack.audited()).length;
    await call("vestige_remember", { content: "The reports are due on the fifth workday", tags: ["reports"] }, "writer");
    assert.match(await callAsAgent("reader", "vestige_search", { query: "reports due" }), /fifth workday/);
    assert.match(await callAsAgent("writer", "vestige_search", { query: "reports due" }), /fifth workday/);
    const lines = (await stack.audited()).slice(before);
    for (const { principal, agent } of lines) assert.equal(principal, agent);
    const calls = new Set(lines.map(({ principal, tool, outcome }) => `principal=${principal} tool=${tool} outcome=${outcome}`));
    for (const wanted of ["writer tool=create_entities", "reader tool=search_nodes", "writer tool=search_nodes"]) {
      assert.ok(calls.has(`principal=${wanted} outcome=answered`), wanted);
    }
    for (const agent of ["writer", "reader"]) assert.match(stack.bridgeLog, new RegExp(`principal=${agent} agent=${agent} `));
    return `the audit log says:\n${[...calls].join("\n")}`;
  });
  await step("the reader may not remember", async () => {
    const content = { content: "The reader wrote this" };
    const text = await callAsAgent("reader", "vestige_remember", content);
    assert.match(text, /vestige-bridge does not allow this: This token is read-only, .*authTokens\.reader may do\./);
    const invoked = await openclaw.invoke("vestige_remember", content, "reader");
    assert.equal(invoked.status, 403);
    assert.match(invoked.text, /does not allow this/);
    assert.doesNotMatch(await call("vestige_search", { query: "reader wrote" }, "writer"), /reader wrote/);
    const refused = (await stack.audited()).filter(({ audit }) => audit === "refusal");
    assert.ok(refused.length >= 2);
    for (const { principal, tool } of refused) assert.deepEqual([principal, tool], ["reader", "create_entities"]);
    return `the agent reads: ${text}`;
  });
  // The words of any other error are OpenClaw's own where a tool is called over HTTP.
  for (const [agent, status, sentence] of [
    ["guest", 403, /The agent guest has no token for the memory: set plugins\.entries\.vestige\.config\.authTokens\.guest\./],
    ["late", 500, /authTokens\.late is a SecretRef that was not resolved/],
  ] as const) {
    await step(`the agent ${agent} has no token`, async () => {
      const before = (await stack.audited()).length;
      const text = await callAsAgent(agent, "vestige_search", { query: "reports due" });
      assert.match(text, sentence);
      const invoked = await openclaw.invoke("vestige_search", { query: "reports due" }, agent);
      assert.equal(invoked.status, status);
      if (status === 403) assert.match(invoked.text, sentence);
      assert.doesNotMatch(await promptAfter(agent, question), /vestige-memories/);
      assert.equal((await stack.audited()).length, before);
      assert.doesNotMatch(stack.bridgeLog, new RegExp(`agent=${agent}`));
      return `the agent reads: ${text}`;
    });
  }
  await step("the agent main is not allowed", async () => {
    const known = model.requests.length;
    const before = (await stack.audited()).length;
    const prompt = await promptAfter("main", question);
    assert.doesNotMatch(prompt, /vestige-memories/);
    assert.doesNotMatch(model.requests.slice(known).join("\n"), /vestige_search/);
    const text = await callAsAgent("main", "vestige_search", { query: "reports due" });
    assert.doesNotMatch(text, /fifth workday/);
    const invoked = await openclaw.invoke("vestige_search", { query: "reports due" });
    assert.equal(invoked.status, 404);
    assert.equal((await stack.audited()).length, before);
    const logged = /The agent main may not use the memory: \S+ does not name it\./.exec(openclaw.log);
    assert.ok(logged, "the gateway's log says why");
    return `the agent reads: ${text}\n${invoked.status} ${invoked.text}\nthe gateway's log says: ${logged[0]}`;
  });
  await step("autoRecall uses the token of the agent whose prompt it is", async () => {
    const before = (await stack.audited()).length;
    const prompt = await promptAfter("reader", question);
    assert.ok(prompt.includes("<vestige-memories>") && prompt.includes(answer), prompt);
    const principals = new Set((await stack.audited()).slice(before).map(({ principal }) => principal));
    assert.deepEqual([...principals], ["reader"]);
    return `principal: ${[...principals].join()}`;
  });
  await step("openclaw vestige search, as nobody and as an agent", async () => {
    const before = (await stack.audited()).length;
    succeeded(await openclaw.cli("vestige", "search", "reports"));
    succeeded(await openclaw.cli("vestige", "search", "reports", "--agent", "writer"));
    const principals = [...new Set((await stack.audited()).slice(before).map(({ principal }) => principal))];
    assert.deepEqual(principals, ["terminal", "writer"]);
    return `principals: ${principals.join(", ")}`;
  });
  await step("no token is in a log, in a prompt or in the audit log", async () => {
    const audit = JSON.stringify(await stack.audited());
    const texts = [openclaw.log, await openclaw.readLog(), stack.bridgeLog, audit, ...model.requests];
    for (const token of TOKENS) for (const text of texts) assert.equal(text.includes(token), false);
    return `${texts.reduce((length, text) => length + text.length, 0)} characters hold none of ${TOKENS.length} tokens`;
  });
}

/** The way without the plugin. */
async function withoutPlugin(): Promise<void> {
  await step("openclaw mcp probe vestige, without the plugin", async () => {
    const plain = new OpenClaw(home, join(directory, "plain"), { VESTIGE_AUTH_TOKEN: TOKEN });
    const headers = { Authorization: "Bearer ${VESTIGE_AUTH_TOKEN}" };
    const vestige = { url: `${stack.url}/mcp`, transport: "streamable-http", headers };
    await plain.writeConfig({ ...(await plain.baseConfig()), mcp: { servers: { vestige } } });
    const output = succeeded(await plain.cli("mcp", "probe", "vestige", "--json"));
    const { servers } = JSON.parse(output) as { servers: { vestige: { tools: number } } };
    assert.ok(servers.vestige.tools >= 9);
    return `${servers.vestige.tools} tools`;
  });
}
