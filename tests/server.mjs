// An MCP server over stdio with all that a legacy server can do, under the names that the conformance suite asks for,
// and with the few tools more that show what became of a call: `wait`, `waits`, `large`, `touch`, `touch_part`. Its
// parser is as strict as Vestige's.
import { setTimeout as sleep } from 'node:timers/promises'
import { Server } from '@modelcontextprotocol/sdk/server/index.js'
import { StdioServerTransport } from '@modelcontextprotocol/sdk/server/stdio.js'
import {
  CallToolRequestSchema,
  CompleteRequestSchema,
  CreateMessageResultSchema,
  ElicitResultSchema,
  GetPromptRequestSchema,
  ListPromptsRequestSchema,
  ListResourcesRequestSchema,
  ListResourceTemplatesRequestSchema,
  ListRootsResultSchema,
  ListToolsRequestSchema,
  McpError,
  ReadResourceRequestSchema,
  SetLevelRequestSchema,
  SubscribeRequestSchema,
  UnsubscribeRequestSchema
} from '@modelcontextprotocol/sdk/types.js'
import { strictInput } from './strict.mjs'

const PNG =
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
const WAV = 'UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA='
const SCHEMA_2020_12 = {
  $schema: 'https://json-schema.org/draft/2020-12/schema',
  type: 'object',
  $defs: {
    address: {
      $anchor: 'addressDef',
      type: 'object',
      properties: { street: { type: 'string' }, city: { type: 'string' } }
    }
  },
  properties: {
    name: { type: 'string' },
    address: { $ref: '#/$defs/address' },
    contactMethod: { type: 'string', enum: ['phone', 'email'] },
    phone: { type: 'string' },
    email: { type: 'string' }
  },
  allOf: [{ anyOf: [{ required: ['phone'] }, { required: ['email'] }] }],
  if: { properties: { contactMethod: { const: 'phone' } }, required: ['contactMethod'] },
  then: { required: ['phone'] },
  else: { required: ['email'] },
  additionalProperties: false
}
const choices = ['first', 'second', 'third'].map(name => ({ const: name, title: `The ${name}` }))
const DEFAULTS = {
  name: { type: 'string', default: 'John Doe' },
  age: { type: 'integer', default: 30 },
  score: { type: 'number', default: 95.5 },
  status: { type: 'string', enum: ['active', 'inactive', 'pending'], default: 'active' },
  verified: { type: 'boolean', default: true }
}
const ENUMS = {
  untitledSingle: { type: 'string', enum: ['option1', 'option2', 'option3'] },
  titledSingle: { type: 'string', oneOf: choices },
  legacyEnum: { type: 'string', enum: ['opt1', 'opt2'], enumNames: ['Option 1', 'Option 2'] },
  untitledMulti: { type: 'array', items: { type: 'string', enum: ['option1', 'option2', 'option3'] } },
  titledMulti: { type: 'array', items: { anyOf: choices } }
}

const server = new Server(
  { name: 'legacy-features', version: '1.0.0' },
  {
    capabilities: {
      completions: {},
      logging: {},
      prompts: { listChanged: true },
      resources: { listChanged: true, subscribe: true },
      tools: { listChanged: true }
    }
  }
)

const text = value => ({ content: [{ type: 'text', text: String(value) }] })
const embedded = uri => ({ type: 'resource', resource: { uri, mimeType: 'text/plain', text: 'embedded' } })
const image = { type: 'image', data: PNG, mimeType: 'image/png' }
const string = { type: 'string' }
const number = { type: 'number' }
const waits = {}
const subscribed = new Set()

async function report(steps, pause, extra) {
  const progressToken = extra._meta?.progressToken
  for (let step = 0; step <= steps; step++) {
    await sleep(pause, undefined, { signal: extra.signal })
    if (progressToken !== undefined) {
      const params = { progressToken, progress: step, total: steps }
      await extra.sendNotification({ method: 'notifications/progress', params })
    }
  }
}

async function elicit(message, properties, extra) {
  const requestedSchema = { type: 'object', properties, required: [] }
  const params = { mode: 'form', message, requestedSchema }
  return text(JSON.stringify(await extra.sendRequest({ method: 'elicitation/create', params }, ElicitResultSchema)))
}

const tools = {
  test_simple_text: () => text('This is a simple text response for testing.'),
  test_image_content: () => ({ content: [image] }),
  test_audio_content: () => ({ content: [{ type: 'audio', data: WAV, mimeType: 'audio/wav' }] }),
  test_embedded_resource: () => ({ content: [embedded('test://embedded-resource')] }),
  test_multiple_content_types: () => ({
    content: [{ type: 'text', text: 'three kinds' }, image, embedded('test://mixed-content-resource')]
  }),
  test_error_handling: () => ({ ...text('This tool intentionally returns an error for testing'), isError: true }),
  async test_tool_with_logging(_, extra) {
    for (const data of ['Tool execution started', 'Tool processing data', 'Tool execution completed']) {
      await extra.sendNotification({ method: 'notifications/message', params: { level: 'info', data } })
      await sleep(50)
    }
    return text('logged')
  },
  async test_tool_with_progress(_, extra) {
    await report(2, 50, extra)
    return text('done')
  },
  async test_sampling({ prompt }, extra) {
    const messages = [{ role: 'user', content: { type: 'text', text: prompt } }]
    const params = { messages, maxTokens: 100 }
    const answer = await extra.sendRequest({ method: 'sampling/createMessage', params }, CreateMessageResultSchema)
    return text(answer.content.text)
  },
  test_elicitation: ({ message }, extra) => elicit(message, { username: string, email: string }, extra),
  test_elicitation_sep1034_defaults: (_, extra) => elicit('Check these', DEFAULTS, extra),
  test_elicitation_sep1330_enums: (_, extra) => elicit('Choose', ENUMS, extra),
  async roots(_, extra) {
    const { roots } = await extra.sendRequest({ method: 'roots/list' }, ListRootsResultSchema)
    return text(roots.map(root => root.uri).join(' '))
  },
  async test_logging_tool(_, extra) {
    await extra.sendNotification({ method: 'notifications/message', params: { level: 'info', data: 'a log line' } })
    return text('logged')
  },
  test_missing_capability(_, extra) {
    if (server.getClientCapabilities()?.sampling) return tools.test_sampling({ prompt: 'anything' }, extra)
    const data = { requiredCapabilities: { sampling: {} } }
    throw Object.assign(new Error('This tool needs a client that can sample'), { code: -32021, data })
  },
  test_streaming_elicitation: (_, extra) => elicit('In the middle', {}, extra).catch(error => text(error.message)),
  async test_trigger_tool_change() {
    await server.sendToolListChanged()
    return text('changed')
  },
  async test_trigger_prompt_change() {
    await server.sendPromptListChanged()
    return text('changed')
  },
  json_schema_2020_12_tool: args => text(JSON.stringify(args)),
  async wait({ name, steps }, extra) {
    waits[name] = 'running'
    try {
      await report(steps, 100, extra)
      waits[name] = 'done'
    } catch (error) {
      waits[name] = 'cancelled'
      throw error
    }
    return text(name)
  },
  waits: () => text(JSON.stringify(waits)),
  large: ({ characters }) => text('x'.repeat(characters)),
  async touch({ uri }) {
    if (subscribed.has(uri)) await server.sendResourceUpdated({ uri })
    return text(subscribed.has(uri))
  },
  async touch_part({ uri, part }) {
    if (subscribed.has(uri)) await server.sendResourceUpdated({ uri: uri + part })
    return text(subscribed.has(uri))
  }
}
const inputs = {
  test_sampling: { prompt: string },
  test_elicitation: { message: string },
  wait: { name: string, steps: number },
  large: { characters: number },
  touch: { uri: string },
  touch_part: { uri: string, part: string }
}
const reads = { annotations: { readOnlyHint: true } }

server.setRequestHandler(ListToolsRequestSchema, () => ({
  tools: Object.keys(tools).map(name => ({
    name,
    description: `The tool ${name}`,
    inputSchema:
      name === 'json_schema_2020_12_tool' ? SCHEMA_2020_12 : { type: 'object', properties: inputs[name] ?? {} },
    ...(name === 'waits' || name === 'large' ? reads : {})
  }))
}))
server.setRequestHandler(CallToolRequestSchema, ({ params }, extra) => {
  const tool = tools[params.name]
  if (!tool) throw new McpError(-32602, `Unknown tool: ${params.name}`)
  return tool(params.arguments ?? {}, extra)
})

const template = /^test:\/\/template\/(.*)\/data$/
const watched = /^test:\/\/watched/
server.setRequestHandler(ListResourcesRequestSchema, () => ({
  resources: [
    { uri: 'test://static-text', name: 'Static text', mimeType: 'text/plain' },
    { uri: 'test://static-binary', name: 'Static binary', mimeType: 'image/png' },
    { uri: 'test://watched-resource', name: 'Watched', mimeType: 'text/plain' }
  ]
}))
server.setRequestHandler(ListResourceTemplatesRequestSchema, () => ({
  resourceTemplates: [{ uriTemplate: 'test://template/{id}/data', name: 'Template', mimeType: 'application/json' }]
}))
server.setRequestHandler(ReadResourceRequestSchema, ({ params: { uri } }) => {
  const [, id] = uri.match(template) ?? []
  if (id) return { contents: [{ uri, mimeType: 'application/json', text: JSON.stringify({ id }) }] }
  if (uri === 'test://static-binary') return { contents: [{ uri, mimeType: 'image/png', blob: PNG }] }
  if (uri === 'test://static-text' || watched.test(uri)) {
    return { contents: [{ uri, mimeType: 'text/plain', text: 'This is the content of the static text resource.' }] }
  }
  throw new McpError(-32002, 'Resource not found', { uri })
})
server.setRequestHandler(SubscribeRequestSchema, ({ params }) => {
  subscribed.add(params.uri)
  return {}
})
server.setRequestHandler(UnsubscribeRequestSchema, ({ params }) => {
  subscribed.delete(params.uri)
  return {}
})

const argument = name => ({ name, description: `The argument ${name}`, required: true })
const prompts = {
  test_simple_prompt: () => [{ type: 'text', text: 'This is a simple prompt for testing.' }],
  test_prompt_with_arguments: ({ arg1, arg2 }) => [{ type: 'text', text: `arg1='${arg1}', arg2='${arg2}'` }],
  test_prompt_with_embedded_resource: ({ resourceUri }) => [embedded(resourceUri)],
  test_prompt_with_image: () => [image]
}
const promptArguments = {
  test_prompt_with_arguments: [argument('arg1'), argument('arg2')],
  test_prompt_with_embedded_resource: [argument('resourceUri')]
}
server.setRequestHandler(ListPromptsRequestSchema, () => ({
  prompts: Object.keys(prompts).map(name => ({
    name,
    description: `The prompt ${name}`,
    arguments: promptArguments[name] ?? []
  }))
}))
server.setRequestHandler(GetPromptRequestSchema, ({ params }) => {
  const prompt = prompts[params.name]
  if (!prompt) throw new McpError(-32602, `Unknown prompt: ${params.name}`)
  return { messages: prompt(params.arguments ?? {}).map(content => ({ role: 'user', content })) }
})
server.setRequestHandler(CompleteRequestSchema, ({ params }) => ({
  completion: { values: [`${params.argument.value}ing`], total: 1, hasMore: false }
}))
server.setRequestHandler(SetLevelRequestSchema, () => ({}))

await server.connect(new StdioServerTransport(strictInput()))
