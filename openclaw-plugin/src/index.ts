/** The plugin's entry: OpenClaw calls `register` once per load. */

import { registerCommands } from "./cli.ts";
import { Clients } from "./clients.ts";
import type { PluginApi } from "./openclaw.ts";
import { registerRecall } from "./recall.ts";
import { readRecallSettings } from "./settings.ts";
import { registerTools } from "./tools.ts";

export default {
  id: "vestige",
  name: "Vestige memory",
  description: "A shared, lasting memory for every agent, reached through vestige-bridge.",
  register(api: PluginApi): void {
    const clients = new Clients(api.pluginConfig);
    registerCommands(api, clients);
    registerTools(api, clients);
    const recall = readRecallSettings(api.pluginConfig);
    if (recall.enabled) registerRecall(api, recall, clients);
  },
};
