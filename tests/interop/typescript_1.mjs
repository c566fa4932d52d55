// The TypeScript SDK 1.x. usage: node typescript_1.mjs URL TOKEN PACKAGE; instead of URL, the server to start, as JSON.
// If TOKEN is "sign in", the client gets a token from the provider that the bridge names.
import { Consent, SIGN_IN, signIn } from './consent.mjs'
import { drive } from './driver.mjs'

const [url, token, name] = process.argv.slice(2)
const { Client } = await import(`${name}/client/index.js`)
const { StreamableHTTPClientTransport } = await import(`${name}/client/streamableHttp.js`)
const client = new Client({ name: 'interop', version: '1.0.0' })
if (url.startsWith('{')) {
  const { StdioClientTransport } = await import(`${name}/client/stdio.js`)
  await client.connect(new StdioClientTransport(JSON.parse(url)))
} else if (token === SIGN_IN) {
  const authProvider = new Consent()
  const transport = () => new StreamableHTTPClientTransport(new URL(url), { authProvider })
  await signIn(it => client.connect(it), transport, authProvider)
} else {
  const requestInit = { headers: { Authorization: `Bearer ${token}` } }
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }))
}
await drive(client, (params, options) => client.callTool(params, undefined, options))
