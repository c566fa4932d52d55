// An MCP server over Streamable HTTP whose calls take MILLISECONDS. It records each call as one line in the file JOURNAL.
// It needs almost no CPU time, so that a bridge in front of it is the bottleneck.
import { openSync, writeSync } from 'node:fs'
import { createServer } from 'node:http'

const journal = openSync(process.env.JOURNAL, 'a')
const milliseconds = Number(process.env.MILLISECONDS)
const tools = ['write', 'set', 'read'].map(name => ({ name, inputSchema: { type: 'object' } }))
const serverInfo = { name: 'timed', version: '1.0.0' }

function answer(response, status, message, headers = {}) {
  response.writeHead(status, { 'Content-Type': 'application/json', ...headers })
  response.end(message === undefined ? '' : JSON.stringify(message))
}

function take({ id, method, params }, response) {
  const result = (value, headers) => answer(response, 200, { jsonrpc: '2.0', id, result: value }, headers)
  if (id === undefined) return answer(response, 202)
  if (method === 'initialize') {
    writeSync(journal, 'handshake\n')
    const { protocolVersion } = params
    return result({ protocolVersion, capabilities: { tools: {} }, serverInfo }, { 'Mcp-Session-Id': 'the-only-one' })
  }
  if (method === 'tools/list') return result({ tools })
  if (method !== 'tools/call') return result({})
  const { key } = params.arguments
  writeSync(journal, `${key}\n`)
  setTimeout(() => result({ content: [{ type: 'text', text: `${params.name} ${key}` }] }), milliseconds)
}

createServer((request, response) => {
  if (request.method !== 'POST') return answer(response, request.method === 'DELETE' ? 200 : 405)
  let body = ''
  request.on('data', chunk => (body += chunk))
  request.on('end', () => take(JSON.parse(body), response))
}).listen(Number(process.argv[2]), '127.0.0.1')
