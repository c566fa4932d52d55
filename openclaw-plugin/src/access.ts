/**
 * Which agents may use the memory, and the token of each.
 *
 * Invariants: if `authTokens` is set, an agent uses its own token and no other, so an agent without one is rejected
 * and does not get the permissions of another principal. An invalid setting gives no agent access. No message contains
 * a token.
 */

import { ToolAuthorizationError } from "./errors.ts";
import { asObject, asString, asTexts } from "./json.ts";
import { CONFIG_PATH, SettingsError } from "./settings.ts";

/** The token of a call. */
export interface Credential {
  /** Absent for a bridge that requires none. */
  token: string | undefined;
  /** The setting that it comes from, for messages. */
  setting: string;
}

const SHARED = `${CONFIG_PATH}.authToken`;
const OWN = `${CONFIG_PATH}.authTokens`;
const ALLOWED = `${CONFIG_PATH}.allowedAgents`;

/** The value of an agent that has two entries. */
const AMBIGUOUS = Symbol("ambiguous");

export class Access {
  readonly #shared: unknown;
  readonly #own: Map<string, unknown> | undefined;
  readonly #allowed: Set<string> | undefined;

  /** `config` is the plugin's; it is checked when a call needs it. */
  constructor(config: unknown) {
    const { authToken, authTokens, allowedAgents } = asObject(config);
    this.#shared = authToken;
    this.#own = isSet(authTokens) ? byAgent(asObject(authTokens)) : undefined;
    this.#allowed = isSet(allowedAgents) ? new Set(asTexts(allowedAgents).map(normalizeAgentId)) : undefined;
  }

  /** Whether the permissions of a call depend on its agent. */
  get perAgent(): boolean {
    return this.#own !== undefined || this.#allowed !== undefined;
  }

  /** Whether all agents use the same token. */
  get sharesToken(): boolean {
    return this.#own === undefined;
  }

  /** Whether there is a token for commands that name no agent. */
  get hasSharedToken(): boolean {
    return isSet(this.#shared) && asString(this.#shared)?.trim() !== "";
  }

  /** The agents that the settings name. */
  get namedAgents(): string[] {
    return [...new Set([...(this.#own?.keys() ?? []), ...(this.#allowed ?? [])])];
  }

  isAllowed(agentId: string | undefined): boolean {
    return this.#allowed === undefined || (agentId !== undefined && this.#allowed.has(normalizeAgentId(agentId)));
  }

  /**
   * The credential of an agent's calls. Throws a ToolAuthorizationError if the agent has no access, and a SettingsError
   * if its token is invalid. Both messages name the setting.
   */
  credentialOf(agentId: string | undefined): Credential {
    if (agentId === undefined) {
      if (!this.perAgent) return this.#sharedCredential();
      throw new ToolAuthorizationError(`OpenClaw gave no agent id for this call, and ${this.#own === undefined ? ALLOWED : OWN} requires one.`);
    }
    const id = normalizeAgentId(agentId);
    if (!this.isAllowed(id)) throw new ToolAuthorizationError(describeNotAllowed(id));
    if (this.#own === undefined) return this.#sharedCredential();
    const setting = `${OWN}.${id}`;
    const value = this.#own.get(id);
    if (value === AMBIGUOUS) {
      throw new SettingsError(`${OWN} has several entries for the agent ${id}, which differ only in upper and lower case: keep one of them.`);
    }
    const token = readToken(value, setting);
    if (token === undefined) throw new ToolAuthorizationError(this.#describeMissingToken(id, setting));
    return { token, setting };
  }

  /** The credential of a command in a terminal that names no agent; throws a SettingsError if there is none. */
  terminalCredential(): Credential {
    const credential = this.#sharedCredential();
    if (credential.token === undefined && this.#own !== undefined) {
      throw new SettingsError(`Name an agent with --agent to use its token, or set ${SHARED} for commands in a terminal.`);
    }
    return credential;
  }

  #sharedCredential(): Credential {
    return { token: readToken(this.#shared, SHARED), setting: SHARED };
  }

  #describeMissingToken(id: string, setting: string): string {
    const hint = this.hasSharedToken ? " While authTokens is set, authToken is used only by commands in a terminal." : "";
    return `The agent ${id} has no token for the memory: set ${setting}.${hint}`;
  }
}

/** Why an agent may not use the memory. */
export function describeNotAllowed(agentId: string): string {
  return `The agent ${agentId} may not use the memory: ${ALLOWED} does not name it.`;
}

/** OpenClaw compares the ids of agents in lower case. */
export function normalizeAgentId(id: string): string {
  return id.trim().toLowerCase();
}

function isSet(value: unknown): boolean {
  return value !== undefined && value !== null;
}

function byAgent(tokens: Record<string, unknown>): Map<string, unknown> {
  const map = new Map<string, unknown>();
  for (const [key, value] of Object.entries(tokens)) {
    const id = normalizeAgentId(key);
    map.set(id, map.has(id) ? AMBIGUOUS : value);
  }
  return map;
}

function readToken(configured: unknown, setting: string): string | undefined {
  const value = fromEnvironment(configured) ?? configured;
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "string") {
    throw new SettingsError(
      `${setting} is a SecretRef that was not resolved. In a terminal, set the environment variable that it names. Only ` +
        `OpenClaw's gateway resolves references to files and programs; "openclaw secrets audit" checks them.`,
    );
  }
  const token = value.trim();
  // A header with such a character would fail later, with a message that contains the token.
  if (/[^\x21-\x7e]/.test(token)) {
    throw new SettingsError(`${setting} contains a character that a token cannot have, such as a space or a line break.`);
  }
  return token === "" ? undefined : token;
}

/** The gateway resolves SecretRefs before it loads the plugin; a command in a terminal does not. */
function fromEnvironment(value: unknown): string | undefined {
  const { source, id } = asObject(value);
  return source === "env" && typeof id === "string" ? process.env[id] : undefined;
}
