/**
 * The operator's settings, from `plugins.entries.vestige.config`; access.ts reads those about agents and tokens.
 *
 * They are read when something is called, not when the plugin loads: OpenClaw starts even if they are wrong, and each
 * call fails with a message that names the mistake.
 */

import { asObject } from "./json.ts";

export const CONFIG_PATH = "plugins.entries.vestige.config";

export interface Settings {
  /** The bridge's MCP endpoint. */
  endpoint: string;
  /** The bridge's health document. */
  health: string;
  /** The timeout of a whole call, including its retry. */
  timeoutSeconds: number;
  recall: RecallSettings;
}

export interface RecallSettings {
  enabled: boolean;
  /** The maximum length of what a recall adds before a prompt. */
  maxChars: number;
  /** Between 0 and 1; a memory with a lower score is left out. */
  minScore: number;
  timeoutSeconds: number;
}

export class SettingsError extends Error {
  override readonly name = "SettingsError";
}

/** Validates `config`; throws a SettingsError whose message names the setting. */
export function readSettings(config: unknown): Settings {
  const values = asObject(config);
  const base = readServerUrl(values["serverUrl"]);
  return {
    endpoint: `${base}/mcp`,
    health: `${base}/health`,
    timeoutSeconds: readNumber(values, "timeoutSeconds", 30),
    recall: readRecallSettings(config),
  };
}

/** Only the recall settings: the hook for prompts is registered before an address is needed. */
export function readRecallSettings(config: unknown): RecallSettings {
  const values = asObject(config);
  return {
    enabled: values["autoRecall"] === true,
    maxChars: readNumber(values, "recallMaxChars", 1000),
    minScore: readNumber(values, "recallMinScore", 0.5),
    timeoutSeconds: readNumber(values, "recallTimeoutSeconds", 2),
  };
}

/** The bridge's base address, without trailing slashes and without a trailing `/mcp`. */
function readServerUrl(value: unknown): string {
  if (typeof value !== "string" || value.trim() === "") {
    throw new SettingsError(
      `The address of vestige-bridge is missing: set ${CONFIG_PATH}.serverUrl, for example to http://localhost:8000.`,
    );
  }
  const wrong = (problem: string): SettingsError =>
    new SettingsError(`${CONFIG_PATH}.serverUrl ${problem}; it should look like http://localhost:8000.`);
  const url = URL.parse(value.trim());
  if (url === null) throw wrong("is not a URL");
  if (url.protocol !== "http:" && url.protocol !== "https:") throw wrong("must start with http:// or https://");
  if (url.username !== "" || url.password !== "") {
    throw wrong("must not contain a user name or password (set the token in authToken)");
  }
  if (url.search !== "" || url.hash !== "") throw wrong("must not contain a query or a fragment");
  const path = url.pathname.replace(/\/+$/, "").replace(/\/mcp$/, "").replace(/\/+$/, "");
  return url.origin + path;
}

function readNumber(values: Record<string, unknown>, name: string, otherwise: number): number {
  const value = values[name];
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : otherwise;
}
