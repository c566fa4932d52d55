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

const serverUrl = "http://localhost:8000";

test("white space round the token is not part of it", () => {
  assert.equal(readSettings({ serverUrl, authToken: "abc\n" }).authToken, "abc");
});

test("an empty token is none", () => {
  assert.equal(readSettings({ serverUrl, authToken: " " }).authToken, undefined);
});

test("a token that no header can carry is refused without being shown", () => {
  assert.throws(() => readSettings({ serverUrl, authToken: "abc def" }), (error: Error) => !error.message.includes("abc"));
});

test("a reference to the environment is resolved where OpenClaw did not", () => {
  process.env["VESTIGE_TOKEN_OF_THE_TEST"] = "abc";
  const authToken = { source: "env", provider: "default", id: "VESTIGE_TOKEN_OF_THE_TEST" };
  assert.equal(readSettings({ serverUrl, authToken }).authToken, "abc");
});

test("an unresolved secret reference is named as one", () => {
  const authToken = { source: "env", provider: "default", id: "VESTIGE_TOKEN_THAT_IS_NOT_SET" };
  assert.throws(() => readSettings({ serverUrl, authToken }), /secret reference/);
});
