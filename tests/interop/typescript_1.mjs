// The TypeScript SDK 1.x. usage: node typescript_1.mjs URL TOKEN PACKAGE
import { drive } from './driver.mjs'

const [url, token, name] = process.argv.slice(2)
const { Client } = await import(`${name}/client/index.js`)
const { StreamableHTTPClientTransport } = await import(`${name}/client/streamableHttp.js`)
const requestInit = { headers: { Authorization: `Bearer ${token}` } }
const client = new Client({ name: 'interop', version: '1.0.0' })
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }))
await drive(client, (params, options) => client.callTool(params, undefined, options))
