// A simulated browser whose user agrees to every consent page, and the OAuth client provider for TypeScript clients.
const REDIRECT_URL = 'http://127.0.0.1:9/callback'
export const SIGN_IN = 'sign in'

async function agree(url) {
  const cookies = new Map()
  for (let step = 0; step < 20; step++) {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ')
    const answer = await fetch(url, { redirect: 'manual', headers: { cookie } })
    for (const set of answer.headers.getSetCookie()) {
      const [name, ...value] = set.split(';')[0].split('=')
      cookies.set(name, value.join('='))
    }
    const location = answer.headers.get('location')
    if (!location) throw new Error(`${answer.status} ${(await answer.text()).slice(0, 300)}`)
    url = new URL(location, url)
    if (url.href.startsWith(REDIRECT_URL)) return url.searchParams
  }
  throw new Error('the provider did not lead back')
}

export class Consent {
  redirectUrl = REDIRECT_URL
  clientMetadata = {
    client_name: 'interop',
    redirect_uris: [REDIRECT_URL],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none'
  }
  clientInformation = () => this.client
  saveClientInformation = client => { this.client = client }
  tokens = () => this.kept
  saveTokens = tokens => { this.kept = tokens }
  codeVerifier = () => this.verifier
  saveCodeVerifier = verifier => { this.verifier = verifier }
  redirectToAuthorization = async url => { this.answer = await agree(url) }
}

// Connects a client: the first attempt signs the user in, the second sends the token.
export async function signIn(connect, transport, authProvider) {
  const first = transport()
  try {
    await connect(first)
  } catch (error) {
    if (!authProvider.answer) throw error
    await first.finishAuth(authProvider.answer.get('code'), authProvider.answer.get('iss') ?? undefined)
    await connect(transport())
  }
}
