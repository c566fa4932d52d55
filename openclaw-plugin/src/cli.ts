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
    .action(() => report(() => describeStatus(client())));
  vestige
    .command("search <query...>")
    .description("Search the memory")
    .option("--limit <number>", "most results to show")
    .action((words, options) =>
      report(async () => {
        const limit = Number(asObject(options)["limit"] ?? 10);
        if (!Number.isInteger(limit) || limit < 1) throw new Error("--limit must be a whole number of at least 1.");
        return (await perform(client(), "search", { query: (words as string[]).join(" "), limit }, {})).text;
      }),
    );
}

/** Prints what `run` gives, or why there is nothing, with exit status 1. */
async function report(run: () => Promise<string>): Promise<void> {
  try {
    process.stdout.write(`${await run()}\n`);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = 1;
  }
}

async function describeStatus(client: VestigeClient): Promise<string> {
  const { endpoint, authToken } = client.settings;
  const health = await client.health();
  const lines = [`bridge    ${endpoint}, ${asString(health["status"]) ?? "no status"}`];
  const tools = await client.listTools({});
  const server = asObject(health["vestige"]);
  lines.push(`vestige   ${asString(server["name"]) ?? "unnamed"} ${asString(server["version"]) ?? ""}`.trimEnd());
  lines.push(`token     ${authToken === undefined ? "none, and none is wanted" : "accepted"}`);
  lines.push(`tools     ${tools.length}: ${tools.map(({ name }) => name).join(", ")}`);
  const names = {
    vestige_search: plan("search", { query: "" }, tools),
    vestige_remember: plan("remember", { content: "" }, tools),
    vestige_recall_context: plan("recallContext", {}, tools),
    vestige_forget: plan("forget", { id: "" }, tools),
  };
  for (const [name, planned] of Object.entries(names)) {
    lines.push(`${name} → ${await planned.then(({ tool }) => tool, () => "not to be had on this server")}`);
  }
  return lines.join("\n");
}
