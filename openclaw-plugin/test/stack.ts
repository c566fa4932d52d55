/**
 * What the plugin talks to, each a process of its own: vestige-bridge, and behind it server-memory on supergateway, or
 * a program that serves MCP over HTTP as Vestige does (e2e/standin, which `make e2e-openclaw` builds).
 */

import { spawn, type ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const ROOT = resolve(import.meta.dirname, "../..");
const GATEWAY = join(ROOT, "docker/gateway/node_modules");
const VESTIGE = join(ROOT, "build/standin/vestige");

export const TOKEN = "a-token-for-the-tests";
/** What the bridge shows to a Vestige that serves HTTP itself. */
const UPSTREAM_TOKEN = "a-token-between-bridge-and-vestige";

/** The way from the bridge to the memory. */
export type Way = "supergateway" | "native";

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

/** Polls until `check` gives true; throws with `what` after `seconds`. */
export async function waitFor(what: string, seconds: number, check: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + seconds * 1000;
  while (!(await check().catch(() => false))) {
    if (Date.now() > end) throw new Error(`${what}: not within ${seconds} s`);
    await sleep(100);
  }
}

export async function stop(process: ChildProcess, signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
  if (process.exitCode !== null || process.signalCode !== null) return;
  const gone = once(process, "exit");
  process.kill(signal);
  await gone;
}

/** What a test looks at in a line of the bridge's audit log. */
export interface AuditLine {
  audit: "call" | "refusal";
  principal: string;
  agent: string | null;
  tool: string | null;
  outcome: string;
}

export class Stack {
  readonly way: Way;
  readonly directory: string;
  readonly bridgePort: number;
  readonly #upstreamPort: number;
  #upstream: ChildProcess | undefined;
  #bridge: ChildProcess | undefined;
  /** What the bridge logged since it was first started. */
  bridgeLog = "";

  private constructor(way: Way, directory: string, upstreamPort: number, bridgePort: number) {
    this.way = way;
    this.directory = directory;
    this.#upstreamPort = upstreamPort;
    this.bridgePort = bridgePort;
  }

  static async start(way: Way = "supergateway"): Promise<Stack> {
    const directory = await mkdtemp(join(tmpdir(), "vestige-openclaw-"));
    const stack = new Stack(way, directory, await freePort(), await freePort());
    try {
      await stack.startUpstream();
      await stack.startBridge();
    } catch (error) {
      await stack.stop();
      throw error;
    }
    return stack;
  }

  get #auditLog(): string {
    return join(this.directory, "audit.jsonl");
  }

  get url(): string {
    return `http://127.0.0.1:${this.bridgePort}`;
  }

  /** The process that serves MCP over HTTP. */
  get upstream(): ChildProcess {
    if (this.#upstream === undefined) throw new Error("upstream does not run");
    return this.#upstream;
  }

  get bridge(): ChildProcess {
    if (this.#bridge === undefined) throw new Error("the bridge does not run");
    return this.#bridge;
  }

  async startUpstream(): Promise<void> {
    const upstream = this.way === "native" ? this.#startVestige() : this.#startSupergateway();
    this.#upstream = upstream;
    // Vestige asks anybody for a token first; supergateway has nothing at this path.
    const status = this.way === "native" ? 401 : 404;
    const path = this.way === "native" ? "mcp" : "";
    await waitFor(this.way, 30, async () => {
      return upstream.exitCode !== null || (await fetch(`http://127.0.0.1:${this.#upstreamPort}/${path}`)).status === status;
    });
    if (upstream.exitCode !== null) throw new Error(`upstream (${this.way}) ended with ${upstream.exitCode}`);
  }

  #startSupergateway(): ChildProcess {
    const memory = join(GATEWAY, "@modelcontextprotocol/server-memory/dist/index.js");
    return spawn(
      process.execPath,
      [
        join(GATEWAY, "supergateway/dist/index.js"),
        ...["--stdio", `"${process.execPath}" "${memory}"`, "--outputTransport", "streamableHttp", "--stateful"],
        ...["--port", String(this.#upstreamPort), "--logLevel", "none"],
      ],
      { env: { ...process.env, MEMORY_FILE_PATH: join(this.directory, "memory.json") }, stdio: "ignore" },
    );
  }

  #startVestige(): ChildProcess {
    return spawn(VESTIGE, ["serve", "--port", String(this.#upstreamPort)], {
      env: { HOME: this.directory, VESTIGE_DATA_DIR: this.directory, VESTIGE_AUTH_TOKEN: UPSTREAM_TOKEN },
      stdio: "ignore",
    });
  }

  /** Starts the bridge; `auth` is the part of its environment that says who may use it. */
  async startBridge(auth: Record<string, string> = { VESTIGE_AUTH_TOKEN: TOKEN }): Promise<void> {
    const bridge = spawn(join(ROOT, ".venv/bin/python"), ["-m", "vestige_bridge"], {
      cwd: this.directory,
      env: {
        PATH: process.env["PATH"],
        VESTIGE_MCP_URL: `http://127.0.0.1:${this.#upstreamPort}/mcp`,
        VESTIGE_BRIDGE_AUDIT_LOG: this.#auditLog,
        ...auth,
        ...(this.way === "native" && { VESTIGE_BRIDGE_UPSTREAM_TOKEN: UPSTREAM_TOKEN }),
        VESTIGE_BRIDGE_PORT: String(this.bridgePort),
        VESTIGE_BRIDGE_METRICS_PORT: String(await freePort()),
        VESTIGE_BRIDGE_CHECK_INTERVAL_SECONDS: "1",
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const stream of [bridge.stdout, bridge.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => (this.bridgeLog += text));
    }
    this.#bridge = bridge;
    await waitFor("vestige-bridge", 30, async () => {
      return bridge.exitCode !== null || (await fetch(`${this.url}/readyz`)).ok;
    });
    if (bridge.exitCode !== null) throw new Error(`vestige-bridge ended:\n${this.bridgeLog}`);
  }

  /** Starts the bridge with a file of tokens in which each has the rights that are given after its name. */
  async startBridgeWith(tokens: Record<string, { token: string; rights?: string }>): Promise<void> {
    const file = join(this.directory, "tokens.toml");
    const entries = Object.entries(tokens).map(([name, { token, rights }]) => {
      return `[[token]]\nname = "${name}"\nsha256 = "${createHash("sha256").update(token).digest("hex")}"\n${rights ?? ""}\n`;
    });
    await writeFile(file, entries.join("\n"));
    await this.startBridge({ VESTIGE_AUTH_TOKEN_FILE: file });
  }

  /** The lines of the bridge's audit log, read until none follows: the bridge writes a line soon after its answer. */
  async audited(): Promise<AuditLine[]> {
    let text: string | undefined;
    let known: string | undefined;
    do {
      known = text;
      await sleep(200);
      text = await readFile(this.#auditLog, "utf8").catch(() => "");
    } while (text !== known);
    return text.split("\n").filter((line) => line !== "").map((line) => JSON.parse(line) as AuditLine);
  }

  async stop(): Promise<void> {
    if (this.#bridge !== undefined) await stop(this.#bridge);
    if (this.#upstream !== undefined) await stop(this.#upstream);
    await rm(this.directory, { recursive: true, force: true });
  }
}
