import assert from "node:assert/strict";
import { test } from "node:test";
import { normalizeCompatibilityConfig } from "../src/doctor.ts";

const settings = { serverUrl: "http://memory:8000///", authToken: "t" };

test("the guide's block is moved to where OpenClaw wants it, and nothing else changes", () => {
  const cfg = { gateway: { port: 1 }, plugins: { allow: ["vestige"], entries: { other: { enabled: false } }, vestige: { settings } } };
  assert.deepEqual(normalizeCompatibilityConfig({ cfg }), {
    config: {
      gateway: { port: 1 },
      plugins: { allow: ["vestige"], entries: { other: { enabled: false }, vestige: { enabled: true, config: settings } } },
    },
    changes: ["Moved plugins.vestige to plugins.entries.vestige.config."],
  });
});

test("what already stands in the right place wins", () => {
  const entry = { enabled: false, hooks: { allowConversationAccess: true }, config: { authToken: "newer" } };
  const { config } = normalizeCompatibilityConfig({ cfg: { plugins: { entries: { vestige: entry }, vestige: { settings } } } });
  assert.deepEqual(config, {
    plugins: { entries: { vestige: { ...entry, config: { serverUrl: settings.serverUrl, authToken: "newer" } } } },
  });
});

test("settings that stand directly in the block are kept too", () => {
  const { config } = normalizeCompatibilityConfig({ cfg: { plugins: { vestige: { serverUrl: "http://memory" } } } });
  assert.deepEqual(config, { plugins: { entries: { vestige: { enabled: true, config: { serverUrl: "http://memory" } } } } });
});

test("a config without the block is returned as it is", () => {
  for (const cfg of [{}, { plugins: {} }, { plugins: { vestige: true } }]) {
    const repaired = normalizeCompatibilityConfig({ cfg });
    assert.equal(repaired.config, cfg);
    assert.deepEqual(repaired.changes, []);
  }
});
