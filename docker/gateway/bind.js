// supergateway listens on every address, without an option to change that, and has no authentication.
// Loaded with `node --import`, this puts every port that it opens on GATEWAY_HOST (127.0.0.1 unless set),
// and ends the process when a port is found anywhere else.
import { BlockList, isIP, Server } from 'node:net'

const host = process.env.GATEWAY_HOST || '127.0.0.1'
const family = address => (isIP(address) === 6 ? 'ipv6' : 'ipv4')

function fail(sentence) {
  process.stderr.write(`gateway: ${sentence}\n`)
  process.exit(1)
}

if (!isIP(host)) fail(`GATEWAY_HOST is ${JSON.stringify(host)}; it must be an IP address such as 127.0.0.1.`)
const asked = new BlockList()
asked.addAddress(host, family(host))

const listen = Server.prototype.listen
Server.prototype.listen = function (port, ...rest) {
  this.once('error', error => fail(`port ${port} could not be opened on ${host}: ${error.message}.`))
  this.once('listening', () => {
    const { address } = this.address()
    if (!asked.check(address, family(address))) fail(`port ${port} was opened on ${address}, not on ${host}.`)
  })
  return listen.call(this, port, host, ...rest)
}
