// The TypeScript client 2.x, in the era that it finds or in the one that it is told.
// usage: node typescript_2.mjs URL TOKEN PACKAGE [ERA]
import { drive } from './driver.mjs'

const [url, token, name, era] = process.argv.slice(2)
const { Client, StreamableHTTPClientTransport } = await import(name)
const mode = era ? { pin: era } : 'auto'
const requestInit = { headers: { Authorization: `Bearer ${token}` } }
const client = new Client({ name: 'interop', version: '1.0.0' }, { versionNegotiation: { mode } })
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }))
await drive(client, (params, options) => client.callTool(params, options))
