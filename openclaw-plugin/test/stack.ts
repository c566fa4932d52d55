/** The real parts: server-memory behind supergateway behind vestige-bridge, each a process of its own. */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const ROOT = resolve(import.meta.dirname, "../..");
const GATEWAY = join(ROOT, "docker/gateway/node_modules");

export const TOKEN = "a-token-for-the-tests";

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

export class Stack {
  readonly directory: string;
  readonly bridgePort: number;
  readonly #gatewayPort: number;
  #gateway: ChildProcess | undefined;
  #bridge: ChildProcess | undefined;
  /** What the bridge logged since it was first started. */
  bridgeLog = "";

  private constructor(directory: string, gatewayPort: number, bridgePort: number) {
    this.directory = directory;
    this.#gatewayPort = gatewayPort;
    this.bridgePort = bridgePort;
  }

  static async start(): Promise<Stack> {
    const directory = await mkdtemp(join(tmpdir(), "vestige-openclaw-"));
    const stack = new Stack(directory, await freePort(), await freePort());
    try {
      await stack.startGateway();
      await stack.startBridge();
    } catch (error) {
      await stack.stop();
      throw error;
    }
    return stack;
  }

  get url(): string {
    return `http://127.0.0.1:${this.bridgePort}`;
  }

  get gateway(): ChildProcess {
    if (this.#gateway === undefined) throw new Error("the gateway does not run");
    return this.#gateway;
  }

  get bridge(): ChildProcess {
    if (this.#bridge === undefined) throw new Error("the bridge does not run");
    return this.#bridge;
  }

  async startGateway(): Promise<void> {
    const memory = join(GATEWAY, "@modelcontextprotocol/server-memory/dist/index.js");
    this.#gateway = spawn(
      process.execPath,
      [
        join(GATEWAY, "supergateway/dist/index.js"),
        ...["--stdio", `"${process.execPath}" "${memory}"`, "--outputTransport", "streamableHttp", "--stateful"],
        ...["--port", String(this.#gatewayPort), "--logLevel", "none"],
      ],
      { env: { ...process.env, MEMORY_FILE_PATH: join(this.directory, "memory.json") }, stdio: "ignore" },
    );
    await waitFor("supergateway", 30, async () => (await fetch(`http://127.0.0.1:${this.#gatewayPort}/`)).status === 404);
  }

  async startBridge(token = TOKEN): Promise<void> {
    const bridge = spawn(join(ROOT, ".venv/bin/python"), ["-m", "vestige_bridge"], {
      cwd: this.directory,
      env: {
        PATH: process.env["PATH"],
        VESTIGE_MCP_URL: `http://127.0.0.1:${this.#gatewayPort}/mcp`,
        VESTIGE_AUTH_TOKEN: token,
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

  async stop(): Promise<void> {
    if (this.#bridge !== undefined) await stop(this.#bridge);
    if (this.#gateway !== undefined) await stop(this.#gateway);
    await rm(this.directory, { recursive: true, force: true });
  }
}
