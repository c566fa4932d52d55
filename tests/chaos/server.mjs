// An MCP server over stdio that records each call in the file JOURNAL before it answers: one line with one write.
// With the argument `asking` it requests a sample from its client, and answers with this sample's text.
// `write` must not run twice, `set` may, `read` changes nothing. All three do the same, and answer with the call's key.
// The parser is as strict as Vestige's.
import { openSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Server } from '@modelcontextprotocol/sdk/server/index.js'
import { StdioServerTransport } from '@modelcontextprotocol/sdk/server/stdio.js'
import { CallToolRequestSchema, CreateMessageResultSchema, ListToolsRequestSchema } from '@modelcontextprotocol/sdk/types.js'
import { strictInput } from '../strict.mjs'

const journal = openSync(process.env.JOURNAL, 'a')
const tools = { write: {}, set: { idempotentHint: true }, read: { readOnlyHint: true } }
const server = new Server({ name: 'journal', version: '1.0.0' }, { capabilities: { tools: {} } })

server.oninitialized = () => writeSync(journal, 'handshake\n')
server.setRequestHandler(ListToolsRequestSchema, () => ({
  tools: Object.entries(tools).map(([name, annotations]) => ({ name, annotations, inputSchema: { type: 'object' } }))
}))
server.setRequestHandler(CallToolRequestSchema, async ({ params }, { signal, sendNotification, sendRequest }) => {
  const { key, steps = 0, step_ms: ms = 0, block_ms: block = 0, characters = 0 } = params.arguments
  const { failing = false, asking = false } = params.arguments
  writeSync(journal, `${key}\n`)
  if (block) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, block)
  const progressToken = params._meta?.progressToken
  for (let progress = 1; progress <= steps; progress++) {
    await sleep(ms, undefined, { signal })
    if (progressToken === undefined) continue
    await sendNotification({
      method: 'notifications/progress',
      params: { progressToken, progress, total: steps, message: key }
    })
  }
  let told = key
  if (asking) {
    const messages = [{ role: 'user', content: { type: 'text', text: key } }]
    const question = { method: 'sampling/createMessage', params: { messages, maxTokens: 1 } }
    told = (await sendRequest(question, CreateMessageResultSchema, { signal })).content.text
  }
  if (failing) throw new Error(`no ${key}`)
  return { content: [{ type: 'text', text: `${params.name} ${told}${'.'.repeat(characters)}` }] }
})

// After the gateway was killed, an unanswered request to its client must not keep the process alive.
process.stdin.on('end', () => process.exit(0))
await server.connect(new StdioServerTransport(strictInput()))
