// Calls the tools of server-everything that send requests to their client, answers these, and prints the results.
// usage: node typescript_asked.mjs URL TOKEN NAME
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  ListRootsRequestSchema
} from '@modelcontextprotocol/sdk/types.js'

const [url, token, name] = process.argv.slice(2)
const capabilities = { elicitation: { form: {} }, roots: { listChanged: true }, sampling: {} }
const client = new Client({ name, version: '1.0.0' }, { capabilities })
client.setRequestHandler(CreateMessageRequestSchema, () => ({
  role: 'assistant',
  model: 'none',
  content: { type: 'text', text: `sampled by ${name}` }
}))
client.setRequestHandler(ElicitRequestSchema, () => ({ action: 'accept', content: { name: `elicited from ${name}` } }))
client.setRequestHandler(ListRootsRequestSchema, () => ({ roots: [{ uri: `file:///${name}`, name: `root of ${name}` }] }))
const requestInit = { headers: { Authorization: `Bearer ${token}` } }
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }))

async function call(tool, args = {}) {
  const { content, isError } = await client.callTool({ name: tool, arguments: args })
  return { isError: Boolean(isError), text: content.map(block => block.text).join('\n') }
}

const answers = []
for (let round = 0; round < 5; round++) {
  answers.push(
    ...(await Promise.all([
      call('trigger-sampling-request', { prompt: 'anything' }),
      call('trigger-elicitation-request'),
      call('get-roots-list')
    ]))
  )
}
console.log(JSON.stringify(answers))
await client.transport.terminateSession()
await client.close()
