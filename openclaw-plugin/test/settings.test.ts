import assert from "node:assert/strict";
import { test } from "node:test";
import { readSettings, SettingsError } from "../src/settings.ts";

const ADDRESSES = {
  "http://localhost:8000": "http://localhost:8000/mcp",
  "http://localhost:8000///": "http://localhost:8000/mcp",
  "http://localhost:8000/mcp": "http://localhost:8000/mcp",
  " http://localhost:8000/mcp/// ": "http://localhost:8000/mcp",
  "https://memory.example/team/mcp/": "https://memory.example/team/mcp",
  "https://memory.example//mcp": "https://memory.example/mcp",
};

for (const [serverUrl, endpoint] of Object.entries(ADDRESSES)) {
  test(`serverUrl "${serverUrl}" leads to ${endpoint}`, () => {
    assert.equal(readSettings({ serverUrl }).endpoint, endpoint);
  });
}

for (const serverUrl of [undefined, "", " ", 8000, "localhost:8000", "ftp://memory", "not a url", "http://me:pw@memory", "http://memory/?a=b"]) {
  test(`serverUrl ${JSON.stringify(serverUrl)} is refused with what to set`, () => {
    assert.throws(() => readSettings({ serverUrl }), (error: unknown) => {
      assert.ok(error instanceof SettingsError);
      assert.match(error.message, /plugins\.entries\.vestige\.config\.serverUrl.*http:\/\/localhost:8000/);
      assert.doesNotMatch(error.message, /pw/);
      return true;
    });
  });
}
