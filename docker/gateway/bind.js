// supergateway listens on every address, has no option to change this, and has no authentication. This module is loaded
// with `node --import`: every port is then opened only on GATEWAY_HOST (default 127.0.0.1), and the process ends if a
// port is open on another address.
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
