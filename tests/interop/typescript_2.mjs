// The TypeScript client 2.x, in the era ERA, or in the one that it negotiates.
// usage: node typescript_2.mjs URL TOKEN PACKAGE [ERA]; instead of URL, the server to start, as JSON.
// If TOKEN is "sign in", the client gets a token from the provider that the bridge names.
import { Consent, SIGN_IN, signIn } from './consent.mjs'
import { drive } from './driver.mjs'

const [url, token, name, era] = process.argv.slice(2)
const { Client, StreamableHTTPClientTransport } = await import(name)
const mode = era ? { pin: era } : 'auto'
const client = new Client({ name: 'interop', version: '1.0.0' }, { versionNegotiation: { mode } })
if (url.startsWith('{')) {
  const { StdioClientTransport } = await import(`${name}/stdio`)
  await client.connect(new StdioClientTransport(JSON.parse(url)))
} else if (token === SIGN_IN) {
  const authProvider = new Consent()
  const transport = () => new StreamableHTTPClientTransport(new URL(url), { authProvider })
  await signIn(it => client.connect(it), transport, authProvider)
} else {
  const requestInit = { headers: { Authorization: `Bearer ${token}` } }
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }))
}
await drive(client, (params, options) => client.callTool(params, options))
