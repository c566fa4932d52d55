import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import { after, test } from "node:test";
import type { VestigeClient } from "../src/client.ts";
import { Clients } from "../src/clients.ts";
import { freePort, Stack, TOKEN, waitFor } from "./stack.ts";

const stack = await Stack.start();
after(() => stack.stop());

function clientOf(serverUrl: string, authToken: string | undefined = TOKEN, timeoutSeconds = 10): VestigeClient {
  return new Clients({ serverUrl, authToken, timeoutSeconds }).ofAgent("writer");
}

async function failure(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    assert.ok(error instanceof Error);
    assert.equal(error.message.includes(TOKEN), false, "the token is never shown");
    return error.message;
  }
  assert.fail("it should have failed");
}

/** A bridge that gives scripted answers, for those that the real one cannot be brought to give. */
async function scripted(listener: RequestListener): Promise<{ url: string; close: () => void }> {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  assert.ok(address !== null && typeof address === "object");
  return { url: `http://127.0.0.1:${address.port}`, close: () => { server.close().closeAllConnections(); } };
}

test("the announced tools are listed, and a tool is called", async () => {
  const client = clientOf(`${stack.url}/mcp///`);
  const tools = await client.listTools({});
  assert.ok(tools.some(({ name }) => name === "search_nodes"));
  const result = await client.callTool("read_graph", {}, {});
  assert.equal(result.failed, false);
  assert.match(result.text, /entities/);
  await waitFor("the agent's name in the bridge's log", 5, () => Promise.resolve(stack.bridgeLog.includes("agent=writer")));
});

test("a wrong token is answered with where to put a valid one", async () => {
  assert.equal(
    await failure(clientOf(stack.url, "wrong").listTools({})),
    "Set a valid token in plugins.entries.vestige.config.authToken, because vestige-bridge does not accept this one.",
  );
});

test("a missing token is answered with where to put one", async () => {
  const client = new Clients({ serverUrl: stack.url }).ofAgent("writer");
  assert.match(await failure(client.listTools({})), /^Set plugins\.entries\.vestige\.config\.authToken, because vestige-bridge requires a token\.$/);
});

test("an unknown host is answered with which setting to check", async () => {
  assert.equal(
    await failure(clientOf("http://no-such-host.invalid:8000").listTools({})),
    "There is no host named no-such-host.invalid: check plugins.entries.vestige.config.serverUrl.",
  );
});

test("an address where nothing listens is answered so", async () => {
  assert.match(await failure(clientOf(`http://127.0.0.1:${await freePort()}`).listTools({})), /Cannot connect to http/);
});

test("an address with a wrong path is answered with which setting to check", async () => {
  assert.match(await failure(clientOf(`${stack.url}/memory`).listTools({})), /has no such path: .*Check .*serverUrl\.$/);
});

test("a request that Vestige refuses carries Vestige's own words", async () => {
  const { text, failed } = await clientOf(stack.url).callTool("no_such_tool", {}, {});
  assert.equal(failed, true);
  assert.match(text, /no_such_tool/);
});

test("a stopped Vestige ends the call at the time limit, and the next call works", async () => {
  const client = clientOf(stack.url, TOKEN, 1);
  stack.upstream.kill("SIGSTOP");
  try {
    assert.match(await failure(client.callTool("read_graph", {}, {})), /^Vestige did not answer within 1 seconds\./);
  } finally {
    stack.upstream.kill("SIGCONT");
  }
  assert.equal((await clientOf(stack.url).callTool("read_graph", {}, {})).failed, false);
});

test("a caller who gives up is not kept waiting", async () => {
  stack.upstream.kill("SIGSTOP");
  try {
    const call = clientOf(stack.url).callTool("read_graph", {}, { signal: AbortSignal.timeout(200) });
    assert.equal(await failure(call), "The call was cancelled.");
  } finally {
    stack.upstream.kill("SIGCONT");
  }
});

test("an answer is repeated once when the bridge says that nothing can run twice", async () => {
  let posts = 0;
  const bridge = await scripted((request, response) => {
    posts += 1;
    request.resume();
    const error = { code: -32010, message: "no session", data: { outcome: "not_sent", retryable: true } };
    response.writeHead(503, { "content-type": "application/json", "retry-after": "0" });
    response.end(JSON.stringify({ jsonrpc: "2.0", id: null, error }));
  });
  assert.match(await failure(clientOf(bridge.url).listTools({})), /^Vestige is not available: no session\. .*try again/);
  assert.equal(posts, 2);
  bridge.close();
});

test("an answer whose outcome is unknown is not repeated, and says so", async () => {
  let posts = 0;
  const bridge = await scripted((request, response) => {
    posts += 1;
    request.resume();
    const error = { code: -32011, message: "the upstream hung up", data: { outcome: "unknown", retryable: false } };
    response.writeHead(502).end(JSON.stringify({ jsonrpc: "2.0", id: null, error }));
  });
  const message = await failure(clientOf(bridge.url).callTool("smart_ingest", { content: "x" }, {}));
  assert.match(message, /the upstream hung up\. The call may have run/);
  assert.equal(posts, 1);
  bridge.close();
});

test("a redirect is not followed, so the token goes nowhere else", async () => {
  let seen = 0;
  const elsewhere = await scripted((_request, response) => { seen += 1; response.end(); });
  const bridge = await scripted((_request, response) => response.writeHead(308, { location: elsewhere.url }).end());
  assert.match(await failure(clientOf(bridge.url).listTools({})), /answers with a redirect: set .*serverUrl/);
  assert.equal(seen, 0);
  bridge.close();
  elsewhere.close();
});

test("a web page instead of JSON is recognised as something else", async () => {
  const bridge = await scripted((_request, response) => response.writeHead(200).end("<html>welcome</html>"));
  assert.match(await failure(clientOf(bridge.url).listTools({})), /Something other than vestige-bridge answered \(HTTP 200\)/);
  bridge.close();
});

test("a server that repeats the token in its error does not make the plugin repeat it", async () => {
  const bridge = await scripted((_request, response) => {
    response.writeHead(400).end(JSON.stringify({ jsonrpc: "2.0", id: null, error: { code: -32600, message: `bad ${TOKEN}` } }));
  });
  assert.equal(await failure(clientOf(bridge.url).listTools({})), "Vestige rejected the call: bad ***.");
  bridge.close();
});

test("a list of tools in pages is read to its end", async () => {
  const bridge = await scripted((request, response) => {
    request.setEncoding("utf8").on("data", (body: string) => {
      const { id, params } = JSON.parse(body) as { id: string; params: { cursor?: string } };
      const result = params.cursor === undefined ? { tools: [{ name: "a" }], nextCursor: "2" } : { tools: [{ name: "b" }] };
      response.end(JSON.stringify({ jsonrpc: "2.0", id, result }));
    });
  });
  assert.deepEqual((await clientOf(bridge.url).listTools({})).map(({ name }) => name), ["a", "b"]);
  bridge.close();
});

test("a bridge killed in the middle of a call is told in a sentence, and once it is back the next call works", async () => {
  const client = clientOf(stack.url);
  await client.listTools({});
  stack.upstream.kill("SIGSTOP");
  const call = failure(client.callTool("read_graph", {}, {}));
  await new Promise((resolve) => setTimeout(resolve, 300));
  const gone = once(stack.bridge, "exit");
  stack.bridge.kill("SIGKILL");
  assert.match(await call, /^vestige-bridge closed the connection before it answered; it may be restarting\./);
  await gone;
  stack.upstream.kill("SIGCONT");
  assert.match(await failure(client.callTool("read_graph", {}, {})), /^Cannot connect to /);
  await stack.startBridge();
  assert.equal((await client.callTool("read_graph", {}, {})).failed, false);
});
