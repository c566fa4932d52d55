import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import plugin from "../src/index.ts";
import { readSettings } from "../src/settings.ts";
import { Host } from "./host.ts";

const PACKAGE = join(import.meta.dirname, "..");

interface Manifest {
  id: string;
  name: string;
  description: string;
  version: string;
  contracts: { tools: string[] };
  toolMetadata: Record<string, { optional?: boolean }>;
  configContracts: { secretInputs: { paths: { path: string; ownerKind?: string }[] } };
  uiHints: Record<string, { sensitive?: boolean }>;
  configSchema: { properties: Record<string, { default?: unknown }>; required?: string[] };
}

async function read<T>(file: string): Promise<T> {
  return JSON.parse(await readFile(join(PACKAGE, file), "utf8")) as T;
}

const manifest = await read<Manifest>("openclaw.plugin.json");

test("the manifest declares exactly the tools that are registered, and which of them are optional", () => {
  const { tools } = Host.load({});
  assert.deepEqual(manifest.contracts.tools, [...tools.keys()]);
  for (const [name, { optional }] of tools) assert.equal(manifest.toolMetadata[name]?.optional ?? false, optional, name);
});

test("manifest, package and entry say the same of themselves", async () => {
  const { version } = await read<{ version: string }>("package.json");
  assert.equal(manifest.version, version);
  assert.deepEqual(
    [manifest.id, manifest.name, manifest.description],
    [plugin.id, plugin.name, plugin.description],
  );
});

test("every setting has a hint, and none is required", () => {
  const hinted = Object.keys(manifest.uiHints).filter((path) => !path.includes("."));
  assert.deepEqual(hinted, Object.keys(manifest.configSchema.properties));
  assert.equal(manifest.configSchema.required, undefined);
});

test("every token may be a secret reference and is hidden, and one agent's that fails to resolve stops no other's", () => {
  const { paths } = manifest.configContracts.secretInputs;
  assert.deepEqual(paths.map(({ path, ownerKind }) => [path, ownerKind]), [["authToken", undefined], ["authTokens.*", "capability"]]);
  const sensitive = Object.entries(manifest.uiHints).filter(([, hint]) => hint.sensitive).map(([path]) => path);
  assert.deepEqual(sensitive, paths.map(({ path }) => path));
});

test("the schema's defaults are the code's", () => {
  const { timeoutSeconds, recall } = readSettings({ serverUrl: "http://memory" });
  const defaults = Object.entries(manifest.configSchema.properties).filter(([, { default: value }]) => value !== undefined);
  assert.deepEqual(Object.fromEntries(defaults.map(([name, { default: value }]) => [name, value])), {
    timeoutSeconds,
    autoRecall: recall.enabled,
    recallMaxChars: recall.maxChars,
    recallMinScore: recall.minScore,
    recallTimeoutSeconds: recall.timeoutSeconds,
  });
});

test("the package holds what it needs at run time and nothing more", async (context) => {
  const { stdout } = await promisify(execFile)("npm", ["pack", "--dry-run", "--json"], { cwd: PACKAGE });
  const [pack] = JSON.parse(stdout.slice(stdout.indexOf("["))) as [{ size: number; files: { path: string }[] }];
  context.diagnostic(`the packed tarball has ${pack.size} bytes`);
  const modules = ["access", "cli", "client", "clients", "doctor", "errors", "index", "json", "mapping", "memories", "memory", "recall", "settings", "tools"];
  assert.deepEqual(
    pack.files.map(({ path }) => path).sort(),
    [
      "LICENSE",
      "README.md",
      ...modules.map((name) => `dist/${name}.js`),
      "doctor-contract-api.js",
      "openclaw.plugin.json",
      "package.json",
    ],
  );
  assert.ok(pack.size < 30_000);
  const { dependencies } = await read<{ dependencies?: unknown }>("package.json");
  assert.equal(dependencies, undefined);
});
