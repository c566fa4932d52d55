/** The plugin's entry: OpenClaw calls `register` once per load. */

import { registerCommands } from "./cli.ts";
import { VestigeClient } from "./client.ts";
import type { PluginApi } from "./openclaw.ts";
import { registerRecall } from "./recall.ts";
import { readRecallSettings, readSettings } from "./settings.ts";
import { registerTools } from "./tools.ts";

export default {
  id: "vestige",
  name: "Vestige memory",
  description: "A shared, lasting memory for every agent, reached through vestige-bridge.",
  register(api: PluginApi): void {
    let made: VestigeClient | undefined;
    const client = (): VestigeClient => (made ??= new VestigeClient(readSettings(api.pluginConfig)));
    registerCommands(api, client);
    registerTools(api, client);
    const recall = readRecallSettings(api.pluginConfig);
    if (recall.enabled) registerRecall(api, recall, client);
  },
};
