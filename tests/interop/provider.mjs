// An identity provider on loopback (oidc-provider), with one user who is always signed in and consents to everything.
// usage: node provider.mjs PORT RESOURCE; it reads one order per line from standard input, and answers each with its counts.
import { createServer } from 'node:http'
import { generateKeyPairSync } from 'node:crypto'
import { createInterface } from 'node:readline'
import Provider, { errors } from 'oidc-provider'

const [port, resource] = process.argv.slice(2)
const issuer = `http://127.0.0.1:${port}`
// The bridge accepts a token for one minute after its expiry.
const LEEWAY_SECONDS = 60
const SHORT_SECONDS = 8
const counts = { registrations: 0, sign_ins: 0, codes: 0, refreshes: 0 }
let keys = [key('first')]
let short = true
let away = false

function key(kid) {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  return { ...privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: 'RS256' }
}

// Registrations and grants are kept when the provider is replaced by one with other keys.
const kept = new Map()
class Adapter {
  constructor(model) { this.key = id => `${model}:${id}` }
  async upsert(id, payload) {
    kept.set(this.key(id), payload)
    if (payload.uid) kept.set(this.key(`uid ${payload.uid}`), payload)
  }
  async find(id) { return kept.get(this.key(id)) }
  async findByUid(uid) { return this.find(`uid ${uid}`) }
  async destroy(id) { kept.delete(this.key(id)) }
  async consume(id) { kept.get(this.key(id)).consumed = Math.floor(Date.now() / 1000) }
  async revokeByGrantId(grantId) {
    for (const [key, payload] of kept) if (payload.grantId === grantId) kept.delete(key)
  }
}

const configuration = () => ({
  adapter: Adapter,
  jwks: { keys },
  cookies: { keys: ['interop'] },
  scopes: ['openid', 'offline_access', 'vestige.read', 'vestige.write'],
  pkce: { required: () => true },
  // A client whose stream and call renew the token at the same time sends the same refresh token twice.
  rotateRefreshToken: false,
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  interactions: { url: (ctx, { uid }) => `/interaction/${uid}` },
  features: {
    devInteractions: { enabled: false },
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo(ctx, indicator) {
        if (indicator !== resource) throw new errors.InvalidTarget()
        return {
          scope: 'vestige.read vestige.write',
          audience: indicator,
          accessTokenFormat: 'jwt',
          accessTokenTTL: short ? SHORT_SECONDS : 600,
          jwt: { sign: { alg: 'RS256', kid: keys[0].kid } }
        }
      }
    }
  },
  formats: {
    customizers: {
      jwt(ctx, token, parts) {
        if (short) parts.payload.exp -= LEEWAY_SECONDS
        return parts
      }
    }
  }
})

let provider = serving()

function serving() {
  const it = new Provider(issuer, configuration())
  it.on('registration_create.success', () => counts.registrations++)
  it.on('grant.success', ctx => {
    if (ctx.oidc.params.grant_type === 'refresh_token') counts.refreshes++
    else counts.codes++
  })
  return { provider: it, callback: it.callback() }
}

async function interact(request, response) {
  const { provider: it } = provider
  const { prompt, params, session, grantId } = await it.interactionDetails(request, response)
  if (prompt.name === 'login') {
    counts.sign_ins++
    return it.interactionFinished(request, response, { login: { accountId: 'alice' } })
  }
  const grant = grantId ? await it.Grant.find(grantId) : new it.Grant({ accountId: session.accountId, clientId: params.client_id })
  grant.addOIDCScope(params.scope)
  for (const [indicator, scopes] of Object.entries(prompt.details.missingResourceScopes ?? {})) {
    grant.addResourceScope(indicator, scopes.join(' '))
  }
  await it.interactionFinished(request, response, { consent: { grantId: await grant.save() } }, { mergeWithLastSubmission: true })
}

const orders = {
  'two keys': () => (keys = [key('second'), keys[0]]),
  'long': () => (short = false),
  'away': () => (away = true),
  'counts': () => {}
}

createServer((request, response) => {
  if (away) return response.writeHead(503).end()
  if (request.url.startsWith('/interaction/')) return interact(request, response).catch(error => response.writeHead(500).end(String(error)))
  provider.callback(request, response)
}).listen(Number(port), '127.0.0.1', () => console.log('listening'))

for await (const line of createInterface({ input: process.stdin })) {
  orders[line]()
  if (line === 'two keys') provider = serving()
  console.log(JSON.stringify(counts))
}
process.exit()
