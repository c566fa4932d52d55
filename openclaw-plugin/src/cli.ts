/** `openclaw vestige …`: what a person asks from a terminal. */

import type { VestigeClient } from "./client.ts";
import { asObject, asString } from "./json.ts";
import { plan } from "./mapping.ts";
import { perform } from "./memory.ts";
import type { Command, PluginApi } from "./openclaw.ts";

const NAME = "vestige";
const DESCRIPTION = "Look at and search the shared memory";

export function registerCommands(api: PluginApi, client: () => VestigeClient): void {
  api.registerCli(({ program }) => { addCommands(program, client); }, {
    descriptors: [{ name: NAME, description: DESCRIPTION, hasSubcommands: true }],
  });
}

function addCommands(program: Command, client: () => VestigeClient): void {
  const vestige = program.command(NAME).description(DESCRIPTION);
  vestige
    .command("status")
    .description("Show the bridge, Vestige behind it, its tools and whether the token is good")
    .action(() => print(() => describeStatus(client())));
  vestige
    .command("search <query...>")
    .description("Search the memory")
    .option("--limit <number>", "most results to show")
    .action((words, options) => print(() => search(client(), words as string[], asObject(options)["limit"] ?? 10)));
}

/** Prints what `lines` gives, and why it ends early if it does, with exit status 1. */
async function print(lines: () => AsyncGenerator<string>): Promise<void> {
  try {
    for await (const line of lines()) process.stdout.write(`${line}\n`);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = 1;
  }
}

async function* search(client: VestigeClient, words: string[], most: unknown): AsyncGenerator<string> {
  const limit = Number(most);
  if (!Number.isInteger(limit) || limit < 1) throw new Error("--limit must be a whole number of at least 1.");
  yield (await perform(client, "search", { query: words.join(" "), limit }, {})).text;
}

/** What can be said, from the nearest part to the farthest; throws at the part that fails. */
export async function* describeStatus(client: VestigeClient): AsyncGenerator<string> {
  const { endpoint, authToken } = client.settings;
  const health = await client.health();
  yield `bridge    ${endpoint}, ${asString(health["status"]) ?? "no status"}`;
  const server = asObject(health["vestige"]);
  yield `vestige   ${[server["name"], server["version"]].map(asString).join(" ").trim() || "not connected"}`;
  const tools = await client.listTools({});
  yield `token     ${authToken === undefined ? "none, and none is wanted" : "accepted"}`;
  yield `tools     ${tools.length}: ${tools.map(({ name }) => name).join(", ")}`;
  const names = {
    vestige_search: plan("search", { query: "" }, tools),
    vestige_remember: plan("remember", { content: "" }, tools),
    vestige_recall_context: plan("recallContext", {}, tools),
    vestige_forget: plan("forget", { id: "" }, tools),
  };
  for (const [name, planned] of Object.entries(names)) {
    yield `${name} → ${await planned.then(({ tool }) => tool, () => "not to be had on this server")}`;
  }
}
