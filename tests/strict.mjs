// Standard input and output of an MCP server whose parser is as strict as Vestige's (Rust, serde_json): a line with an
// unpaired surrogate escape, or nested deeper than 128 levels, is answered with -32700 and no id, and never parsed.
import { Transform } from 'node:stream'

const MOST_LEVELS = 128
const REFUSAL = '{"jsonrpc":"2.0","error":{"code":-32700,"message":"Parse error"},"id":null}\n'

function depth(value) {
  if (typeof value !== 'object' || value === null) return 0
  return 1 + Math.max(0, ...Object.values(value).map(depth))
}

function isStrict(line) {
  let value
  try {
    value = JSON.parse(line)
  } catch {
    return false
  }
  // What is printed escapes the halves of characters alone, and doubles each backslash of a text.
  const halves = /(?<!\\)(?:\\\\)*\\ud[89a-f][0-9a-f]{2}/.test(JSON.stringify(value))
  return !halves && depth(value) <= MOST_LEVELS
}

/** What of the input the server may read. */
export function strictInput(input = process.stdin, output = process.stdout) {
  let rest = ''
  const lines = new Transform({
    decodeStrings: true,
    transform(chunk, _encoding, done) {
      const all = (rest + chunk.toString('latin1')).split('\n')
      rest = all.pop()
      for (const line of all) {
        const bytes = Buffer.from(line, 'latin1')
        if (isStrict(bytes.toString('utf8'))) this.push(Buffer.concat([bytes, Buffer.from('\n')]))
        else output.write(REFUSAL)
      }
      done()
    }
  })
  return input.pipe(lines)
}
