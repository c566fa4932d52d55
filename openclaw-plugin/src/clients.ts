/**
 * A client for each agent.
 *
 * Invariant: a client belongs to one agent. Its token, and the bridge's list of tools for that token, are never used
 * for another agent.
 */

import { Access, normalizeAgentId } from "./access.ts";
import { VestigeClient } from "./client.ts";
import type { JsonObject } from "./json.ts";
import { readSettings, type Settings } from "./settings.ts";

export class Clients {
  readonly access: Access;
  readonly #config: unknown;
  readonly #byAgent = new Map<string | undefined, VestigeClient>();
  #settings: Settings | undefined;

  /** `config` is the plugin's; mistakes in it are thrown when a call needs it. */
  constructor(config: unknown) {
    this.#config = config;
    this.access = new Access(config);
  }

  get settings(): Settings {
    return (this.#settings ??= readSettings(this.#config));
  }

  /** The client of an agent, if it may use the memory. */
  ofAgent(agentId: string | undefined): VestigeClient {
    const id = agentId === undefined ? undefined : normalizeAgentId(agentId);
    const known = this.#byAgent.get(id);
    if (known !== undefined) return known;
    const client = new VestigeClient(this.settings, this.access.credentialOf(id), id);
    this.#byAgent.set(id, client);
    return client;
  }

  /** The client of a command in a terminal, which may use the token of an agent. */
  ofTerminal(agentId: string | undefined): VestigeClient {
    // Not cached: no call of an agent may use it.
    return agentId === undefined ? new VestigeClient(this.settings, this.access.terminalCredential()) : this.ofAgent(agentId);
  }

  /** The bridge's health document, which requires no token. */
  async health(): Promise<JsonObject> {
    return new VestigeClient(this.settings, { token: undefined, setting: "" }).health();
  }
}
