import assert from "node:assert/strict";
import { test } from "node:test";
import { Access, type Credential } from "../src/access.ts";
import { ToolAuthorizationError } from "../src/errors.ts";
import { SettingsError } from "../src/settings.ts";

const CONFIG = "plugins.entries.vestige.config";

function tokenOf(config: unknown, agentId?: string): string | undefined {
  return new Access(config).credentialOf(agentId).token;
}

/** The message of a refusal, which never holds a token. */
function refusal(credential: () => Credential): string {
  try {
    credential();
  } catch (error) {
    assert.ok(error instanceof SettingsError || error instanceof ToolAuthorizationError);
    assert.doesNotMatch(error.message, /secret-of/);
    return error.message;
  }
  assert.fail("it should have been refused");
}

test("white space round the token is not part of it", () => {
  assert.equal(tokenOf({ authToken: "abc\n" }), "abc");
  assert.equal(tokenOf({ authTokens: { writer: " abc\n" } }, "writer"), "abc");
});

test("an empty token is none", () => {
  assert.equal(tokenOf({ authToken: " " }), undefined);
});

for (const settings of [{ authToken: "secret-of x" }, { authTokens: { writer: "secret-of\nx" } }]) {
  test(`a token in ${Object.keys(settings).join()} that no header can carry is refused without being shown`, () => {
    assert.match(refusal(() => new Access(settings).credentialOf("writer")), /contains a character that a token cannot have/);
  });
}

test("a reference to the environment is resolved where OpenClaw did not", () => {
  process.env["VESTIGE_TOKEN_OF_THE_TEST"] = "abc";
  const reference = { source: "env", provider: "default", id: "VESTIGE_TOKEN_OF_THE_TEST" };
  assert.equal(tokenOf({ authToken: reference }), "abc");
  assert.equal(tokenOf({ authTokens: { writer: reference } }, "writer"), "abc");
});

test("an unresolved secret reference is named as one, and leaves the other agents alone", () => {
  const reference = { source: "env", provider: "default", id: "VESTIGE_TOKEN_THAT_IS_NOT_SET" };
  assert.match(refusal(() => new Access({ authToken: reference }).credentialOf("writer")), /authToken is a SecretRef that was not resolved/);
  const access = new Access({ authToken: "secret-of-all", authTokens: { writer: reference, reader: "secret-of-reader" } });
  assert.match(refusal(() => access.credentialOf("writer")), /authTokens\.writer is a SecretRef that was not resolved/);
  assert.equal(access.credentialOf("reader").token, "secret-of-reader");
});

test("without authTokens every agent shows authToken, and a call without an agent does, too", () => {
  for (const agent of ["writer", "reader", undefined]) assert.equal(tokenOf({ authToken: "shared" }, agent), "shared");
});

const PER_AGENT = { authToken: "secret-of-all", authTokens: { writer: "secret-of-writer", Reader: "secret-of-reader" } };

test("an agent shows its own token, whatever the case of its id", () => {
  assert.deepEqual(new Access(PER_AGENT).credentialOf("writer"), { token: "secret-of-writer", setting: `${CONFIG}.authTokens.writer` });
  assert.deepEqual(new Access(PER_AGENT).credentialOf("reader"), { token: "secret-of-reader", setting: `${CONFIG}.authTokens.reader` });
  assert.equal(tokenOf(PER_AGENT, " WRITER "), "secret-of-writer");
});

for (const agent of ["guest", "constructor", "__proto__", "toString", "writer2", "*", ""]) {
  test(`with authTokens the agent "${agent}", which has no entry, is refused, and authToken is not used for it`, () => {
    const message = refusal(() => new Access(PER_AGENT).credentialOf(agent));
    assert.equal(
      message,
      `The agent ${agent.toLowerCase()} has no token for the memory: set ${CONFIG}.authTokens.${agent.toLowerCase()}. ` +
        "While authTokens is set, authToken is used only by commands in a terminal.",
    );
  });
}

for (const authTokens of [{}, { guest: " " }, { guest: null }, [], "secret-of-nobody"]) {
  test(`authTokens ${JSON.stringify(authTokens)} gives no agent a token`, () => {
    assert.match(refusal(() => new Access({ ...PER_AGENT, authTokens }).credentialOf("guest")), /agent guest has no token/);
  });
}

test("two entries for one agent are refused", () => {
  const access = new Access({ authTokens: { Writer: "secret-of-writer", writer: "secret-of-another" } });
  assert.match(refusal(() => access.credentialOf("writer")), /several entries for the agent writer/);
});

test("with authTokens a call without an agent is refused", () => {
  assert.match(refusal(() => new Access(PER_AGENT).credentialOf(undefined)), /gave no agent id for this call, and .*\.authTokens requires one/);
});

test("an agent that allowedAgents does not name is refused, although it has a token", () => {
  const access = new Access({ ...PER_AGENT, allowedAgents: ["Writer"] });
  assert.equal(access.credentialOf("writer").token, "secret-of-writer");
  assert.equal(access.isAllowed("reader"), false);
  assert.equal(
    refusal(() => access.credentialOf("reader")),
    `The agent reader may not use the memory: ${CONFIG}.allowedAgents does not name it.`,
  );
});

test("allowedAgents also limits who shows authToken, and a call without an agent is refused", () => {
  const access = new Access({ authToken: "secret-of-all", allowedAgents: ["writer"] });
  assert.equal(access.credentialOf("writer").token, "secret-of-all");
  assert.match(refusal(() => access.credentialOf("reader")), /may not use the memory/);
  assert.match(refusal(() => access.credentialOf(undefined)), /gave no agent id for this call, and .*\.allowedAgents requires one/);
});

for (const allowedAgents of [[], [7], "writer", { writer: true }]) {
  test(`allowedAgents ${JSON.stringify(allowedAgents)} allows no agent`, () => {
    const access = new Access({ authToken: "secret-of-all", allowedAgents });
    for (const agent of ["writer", "7", "", undefined]) assert.equal(access.isAllowed(agent), false);
  });
}

test("a command in a terminal shows authToken, and is told of --agent where there is none", () => {
  assert.equal(new Access(PER_AGENT).terminalCredential().token, "secret-of-all");
  assert.equal(new Access({}).terminalCredential().token, undefined);
  const access = new Access({ authTokens: PER_AGENT.authTokens });
  assert.match(refusal(() => access.terminalCredential()), /Name an agent with --agent .* or set .*\.authToken /);
});
