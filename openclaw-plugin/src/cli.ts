/** `openclaw vestige …`: the commands for a terminal. */

import { normalizeAgentId } from "./access.ts";
import type { VestigeClient } from "./client.ts";
import type { Clients } from "./clients.ts";
import { VestigeError } from "./errors.ts";
import { asObject, asString } from "./json.ts";
import { plan } from "./mapping.ts";
import { perform } from "./memory.ts";
import type { Command, PluginApi } from "./openclaw.ts";

const NAME = "vestige";
const DESCRIPTION = "Show the status of the shared memory, and search it";
const AS_AGENT = ["--agent <id>", "use the token of this agent"] as const;

export function registerCommands(api: PluginApi, clients: Clients): void {
  api.registerCli(({ program }) => { addCommands(program, clients, configuredAgents(api.config)); }, {
    descriptors: [{ name: NAME, description: DESCRIPTION, hasSubcommands: true }],
  });
}

function addCommands(program: Command, clients: Clients, agents: string[]): void {
  const vestige = program.command(NAME).description(DESCRIPTION);
  vestige
    .command("status")
    .description("Show the bridge, Vestige, its tools, and whether the bridge accepts the token of each agent")
    .option(...AS_AGENT)
    .action((options) => print(() => describeStatus(clients, agents, asString(asObject(options)["agent"]))));
  vestige
    .command("search <query...>")
    .description("Search the memory")
    .option("--limit <number>", "maximum number of results")
    .option(...AS_AGENT)
    .action((words, options) => print(() => search(clients, words as string[], asObject(options))));
}

/** Prints the lines; if they end with an error, prints its message and sets exit status 1. */
async function print(lines: () => AsyncGenerator<string>): Promise<void> {
  try {
    for await (const line of lines()) process.stdout.write(`${line}\n`);
  } catch (error) {
    process.stderr.write(`${messageOf(error)}\n`);
    process.exitCode = 1;
  }
}

async function* search(clients: Clients, words: string[], options: Record<string, unknown>): AsyncGenerator<string> {
  const limit = Number(options["limit"] ?? 10);
  if (!Number.isInteger(limit) || limit < 1) throw new Error("--limit must be a whole number of at least 1.");
  const client = clients.ofTerminal(asString(options["agent"]));
  yield (await perform(client, "search", { query: words.join(" "), limit }, {})).text;
}

/**
 * The status of each part, from the nearest to the farthest. Throws at the part that fails, and at the end if an
 * allowed agent cannot use the memory.
 *
 * `agents` are those of OpenClaw. With `agentId` it is the status of one agent.
 */
export async function* describeStatus(clients: Clients, agents: string[], agentId?: string): AsyncGenerator<string> {
  const health = await clients.health();
  yield `bridge    ${clients.settings.endpoint}, ${asString(health["status"]) ?? "no status"}`;
  const server = asObject(health["vestige"]);
  yield `vestige   ${[server["name"], server["version"]].map(asString).join(" ").trim() || "not connected"}`;
  const { access } = clients;
  const failed = agentId === undefined && access.perAgent ? yield* describeAgents(clients, agents) : 0;
  if (agentId !== undefined || access.sharesToken || access.hasSharedToken) yield* describeTools(clients.ofTerminal(agentId));
  if (failed > 0) throw new VestigeError(`${failed} of the allowed agents cannot use the memory.`);
}

/** A line for each agent of OpenClaw or the settings; returns how many allowed agents cannot use the memory. */
async function* describeAgents(clients: Clients, configured: string[]): AsyncGenerator<string, number> {
  const { access } = clients;
  let failed = 0;
  for (const id of new Set([...configured, ...access.namedAgents])) {
    const unknown = configured.includes(id) ? "" : " (not in agents.entries)";
    try {
      if (access.isAllowed(id)) {
        const client = clients.ofAgent(id);
        const { length } = await client.listTools({});
        yield `agent     ${id}${unknown}: ${access.sharesToken ? "shared" : "own"} token ${describeToken(client)}, tools: ${length}`;
      } else {
        yield `agent     ${id}${unknown}: not in allowedAgents`;
      }
    } catch (error) {
      failed += 1;
      yield `agent     ${id}${unknown}: ${messageOf(error)}`;
    }
  }
  return failed;
}

async function* describeTools(client: VestigeClient): AsyncGenerator<string> {
  const tools = await client.listTools({});
  yield `token     ${describeToken(client)}`;
  yield `tools     ${tools.length}: ${tools.map(({ name }) => name).join(", ")}`;
  const names = {
    vestige_search: plan("search", { query: "" }, tools),
    vestige_remember: plan("remember", { content: "" }, tools),
    vestige_recall_context: plan("recallContext", {}, tools),
    vestige_forget: plan("forget", { id: "" }, tools),
  };
  for (const [name, planned] of Object.entries(names)) {
    yield `${name} → ${await planned.then(({ tool }) => tool, () => "not offered")}`;
  }
}

/** The result of the token check for a request that succeeded. */
function describeToken({ hasToken }: VestigeClient): string {
  return hasToken ? "accepted" : "none, and none is required";
}

/** The agents of OpenClaw's configuration; `main` exists even if none is configured. */
function configuredAgents(config: unknown): string[] {
  const ids = Object.keys(asObject(asObject(asObject(config)["agents"])["entries"])).map(normalizeAgentId);
  return ids.length === 0 ? ["main"] : ids;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
