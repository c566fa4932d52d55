// Writes memories through the TypeScript SDK 1.x, as several clients at once, and prints the acknowledged names.
// usage: node typescript_1.mjs URL TOKEN COUNT NAME...
import assert from 'node:assert/strict'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'

const [url, token, count, ...names] = process.argv.slice(2)

async function write(name) {
  const client = new Client({ name, version: '1.0.0' })
  const requestInit = { headers: { Authorization: `Bearer ${token}` } }
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }))
  const { tools } = await client.listTools()
  assert(tools.some(tool => tool.name === 'create_entities'))
  const acknowledged = []
  for (let number = 0; number < Number(count); number++) {
    const entity = { name: `${name}-${number}`, entityType: 'memory', observations: [name] }
    const result = await client.callTool({ name: 'create_entities', arguments: { entities: [entity] } })
    assert(!result.isError)
    assert.deepEqual(result.structuredContent, { entities: [entity] })
    acknowledged.push(entity.name)
  }
  await client.transport.terminateSession()
  await client.close()
  return acknowledged
}

console.log(JSON.stringify((await Promise.all(names.map(write))).flat()))
