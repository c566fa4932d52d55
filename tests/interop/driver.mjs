// Runs behaviours, whose names it reads from standard input, on one connected MCP client; see driver.py.
import assert from 'node:assert/strict'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'

const LARGE = 200_000
const AT_ONCE = 20

async function called(client) {
  assert.equal(await client.call('test_simple_text', {}), 'This is a simple text response for testing.')
}

const behaviours = {
  connect: called,
  call: called,
  async list(client) {
    assert((await client.tools()).includes('test_simple_text'))
  },
  async progress(client) {
    const steps = []
    assert.equal(await client.call('wait', { name: 'progress', steps: 3 }, { onprogress: it => steps.push(it.progress) }), 'progress')
    assert(steps.length >= 3, `steps: ${steps}`)
    assert.deepEqual(steps, steps.toSorted((one, other) => one - other))
  },
  async cancel(client) {
    const controller = new AbortController()
    const options = { signal: controller.signal, onprogress: () => controller.abort('enough') }
    await assert.rejects(client.call('wait', { name: 'cancel', steps: 300 }, options))
    for (let attempt = 0; attempt < 50; attempt++) {
      if ((await client.call('waits', {})).includes('"cancel":"cancelled"')) return
      await sleep(100)
    }
    assert.fail('the server never learnt of it')
  },
  async '200 kB'(client) {
    assert.equal(await client.call('large', { characters: LARGE }), 'x'.repeat(LARGE))
  },
  async remember(client) {
    const tools = await client.tools()
    assert(tools.includes('create_entities') && tools.includes('read_graph'))
    const entity = { name: 'a modern client', entityType: 'client', observations: ['was here'] }
    await client.call('create_entities', { entities: [entity] })
    assert((await client.call('read_graph', {})).includes('a modern client'))
  },
  async '20 at once'(client) {
    const names = Array.from({ length: AT_ONCE }, (_, number) => `call-${number}`)
    assert.deepEqual(await Promise.all(names.map(name => client.call('wait', { name, steps: 1 }))), names)
  }
}

export async function drive(client, callTool) {
  const adapted = {
    tools: async () => (await client.listTools()).tools.map(tool => tool.name),
    async call(name, args, options) {
      const result = await callTool({ name, arguments: args }, options)
      assert(!result.isError, JSON.stringify(result))
      return result.content[0].text
    }
  }
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      const limit = sleep(30_000, undefined, { ref: false }).then(() => Promise.reject(new Error('no answer in 30 s')))
      await Promise.race([behaviours[line](adapted), limit])
      console.log('ok')
    } catch (error) {
      console.log('failed', String(error?.message ?? error).replace(/\s+/g, ' ').slice(0, 300))
    }
  }
  await client.close()
  process.exit()
}
