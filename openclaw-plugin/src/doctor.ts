/**
 * Moves settings from `plugins.vestige.settings`, where the deployment guide has them, to where OpenClaw expects them.
 * OpenClaw does not start with the former; `openclaw doctor --fix` calls this.
 */

import { isObject, type JsonObject } from "./json.ts";
import { CONFIG_PATH } from "./settings.ts";

interface LegacyConfigRule {
  path: string[];
  message: string;
}

export const legacyConfigRules: LegacyConfigRule[] = [
  {
    path: ["plugins", "vestige"],
    message: `The settings in plugins.vestige belong in ${CONFIG_PATH}. Run "openclaw doctor --fix" to move them.`,
  },
];

/** Settings that are already in the right place are kept, and so are other members beside `settings`. */
export function normalizeCompatibilityConfig({ cfg }: { cfg: JsonObject }): { config: JsonObject; changes: string[] } {
  const plugins = cfg["plugins"];
  if (!isObject(plugins) || !isObject(plugins["vestige"])) return { config: cfg, changes: [] };
  const { vestige, ...others } = plugins;
  const { settings, ...rest } = vestige;
  const entries = isObject(others["entries"]) ? others["entries"] : {};
  const entry = isObject(entries["vestige"]) ? entries["vestige"] : {};
  const config = { ...rest, ...(isObject(settings) ? settings : {}), ...(isObject(entry["config"]) ? entry["config"] : {}) };
  const moved = { ...others, entries: { ...entries, vestige: { enabled: true, ...entry, config } } };
  return { config: { ...cfg, plugins: moved }, changes: [`Moved plugins.vestige to ${CONFIG_PATH}.`] };
}
