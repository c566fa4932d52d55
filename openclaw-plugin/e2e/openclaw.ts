/** A real OpenClaw of its own: installed once into the user's cache, with state and config of this run only. */

import { execFile, spawn, type ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import { access, cp, mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { freePort, stop, waitFor } from "../test/stack.ts";

const GATEWAY_TOKEN = "a-token-for-the-gateway";

/** Where OpenClaw is; installs it when this lockfile was never installed before. */
export async function installOpenClaw(): Promise<{ home: string; fresh: boolean }> {
  const lock = await readFile(join(import.meta.dirname, "package-lock.json"));
  const name = `openclaw-${createHash("sha256").update(lock).digest("hex").slice(0, 12)}`;
  const cache = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "vestige-bridge");
  const home = join(cache, name);
  if (await access(home).then(() => true, () => false)) return { home, fresh: false };
  await mkdir(cache, { recursive: true });
  const staged = await mkdtemp(join(cache, "installing-"));
  try {
    for (const file of ["package.json", "package-lock.json", ".npmrc"]) await cp(join(import.meta.dirname, file), join(staged, file));
    await run("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], { cwd: staged });
    // OpenClaw looks for npm beside the node that runs it, where the Python wheel has one that does not start.
    await mkdir(join(staged, "bin"));
    await cp(process.execPath, join(staged, "bin/node"));
    await rename(staged, home);
  } finally {
    await rm(staged, { recursive: true, force: true });
  }
  return { home, fresh: true };
}

export interface Ran {
  status: number;
  stdout: string;
  stderr: string;
}

export async function run(
  command: string,
  args: string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<Ran> {
  return new Promise((resolve, reject) => {
    execFile(command, args, { ...options, maxBuffer: 64 << 20 }, (error, stdout, stderr) => {
      const status = error === null ? 0 : error.code;
      if (typeof status === "number") resolve({ status, stdout, stderr });
      else reject(new Error(`${command} ${args.join(" ")} did not run to its end`, { cause: error }));
    });
  });
}

export class OpenClaw {
  readonly #home: string;
  readonly #directory: string;
  readonly #env: NodeJS.ProcessEnv;
  #port = 0;
  #gateway: ChildProcess | undefined;
  /** What the gateway printed. */
  log = "";

  constructor(home: string, directory: string, env: NodeJS.ProcessEnv = {}) {
    this.#home = home;
    this.#directory = directory;
    this.#env = {
      ...process.env,
      ...env,
      PATH: [join(home, "bin"), dirname(process.execPath), process.env["PATH"] ?? ""].join(":"),
      OPENCLAW_STATE_DIR: directory,
      OPENCLAW_CONFIG_PATH: this.configFile,
      NO_COLOR: "1",
    };
  }

  get configFile(): string {
    return join(this.#directory, "openclaw.json");
  }

  get #logFile(): string {
    return join(this.#directory, "openclaw.log");
  }

  /** What OpenClaw wrote into its log file, the gateway and the commands alike. */
  async readLog(): Promise<string> {
    return readFile(this.#logFile, "utf8");
  }

  /** The config that every run needs: a gateway and a log of its own. */
  async baseConfig(): Promise<Record<string, unknown>> {
    this.#port ||= await freePort();
    return {
      gateway: {
        mode: "local",
        port: this.#port,
        bind: "loopback",
        auth: { mode: "token", token: GATEWAY_TOKEN },
        http: { endpoints: { chatCompletions: { enabled: true } } },
      },
      logging: { file: this.#logFile },
    };
  }

  async writeConfig(config: Record<string, unknown>): Promise<void> {
    await mkdir(this.#directory, { recursive: true });
    await writeFile(this.configFile, JSON.stringify(config, undefined, 2));
  }

  async readConfig(): Promise<Record<string, unknown>> {
    return JSON.parse(await readFile(this.configFile, "utf8")) as Record<string, unknown>;
  }

  async cli(...args: string[]): Promise<Ran> {
    const entry = join(this.#home, "node_modules/openclaw/openclaw.mjs");
    return run(join(this.#home, "bin/node"), [entry, ...args], { cwd: this.#directory, env: this.#env });
  }

  async startGateway(): Promise<void> {
    const entry = join(this.#home, "node_modules/openclaw/openclaw.mjs");
    const gateway = spawn(join(this.#home, "bin/node"), [entry, "gateway", "run"], {
      cwd: this.#directory,
      env: this.#env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const stream of [gateway.stdout, gateway.stderr]) stream.setEncoding("utf8").on("data", (text: string) => (this.log += text));
    this.#gateway = gateway;
    await waitFor("the OpenClaw gateway", 300, async () => {
      return gateway.exitCode !== null || (await fetch(`http://127.0.0.1:${this.#port}/readyz`)).ok;
    });
    if (gateway.exitCode !== null) throw new Error(`the OpenClaw gateway ended:\n${this.log}`);
  }

  async stopGateway(): Promise<void> {
    if (this.#gateway !== undefined) await stop(this.#gateway);
  }

  /** Calls a tool as `agentId`; gives its text, or the error's. */
  async invoke(tool: string, args: unknown, agentId = "main"): Promise<{ status: number; text: string }> {
    const response = await this.#post("/tools/invoke", { tool, args, agentId });
    const body = (await response.json()) as { result?: { content: { text: string }[] }; error?: { message: string } };
    return { status: response.status, text: body.result?.content.map(({ text }) => text).join("\n") ?? body.error?.message ?? "" };
  }

  /** A user's turn with `agentId`; gives the agent's reply. */
  async ask(agentId: string, content: string): Promise<string> {
    const response = await this.#post("/v1/chat/completions", { model: `openclaw/${agentId}`, messages: [{ role: "user", content }] });
    const text = await response.text();
    if (!response.ok) throw new Error(`the turn failed: ${response.status} ${text}`);
    return (JSON.parse(text) as { choices: [{ message: { content: string } }] }).choices[0].message.content;
  }

  async #post(path: string, body: unknown): Promise<Response> {
    return fetch(`http://127.0.0.1:${this.#port}${path}`, {
      method: "POST",
      headers: { authorization: `Bearer ${GATEWAY_TOKEN}`, "content-type": "application/json" },
      body: JSON.stringify(body),
    });
  }
}
