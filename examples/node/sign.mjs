// Signs an HTTP request with a request secret of Rotunda (HTTP Message Signatures,
// RFC 9421, with hmac-sha256) and sends it, or prints what curl needs to send it.
// It needs Node 20 or newer and no package.
//
//   ROTUNDA_KEY_ID   the id of the secret's version
//   ROTUNDA_SECRET   the secret: whsec_…
//
// The secret is read from the environment because others can read arguments.
import { createHash, createHmac, randomBytes } from 'node:crypto'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'

// sign returns the headers to add to a request. url is a URL, body a string or Buffer;
// without a body there is no Content-Digest.
export function sign({ keyId, secret, method, url, body, now = Date.now() }) {
  if (!keyId || !/^whsec_[A-Za-z0-9+/]+=*$/.test(secret ?? '')) {
    throw new Error('set ROTUNDA_KEY_ID and ROTUNDA_SECRET (whsec_…)')
  }
  if (!/^[\x20-\x21\x23-\x5b\x5d-\x7e]+$/.test(keyId)) {
    throw new Error('ROTUNDA_KEY_ID is ASCII without quotes and backslashes')
  }
  const key = Buffer.from(secret.slice('whsec_'.length), 'base64')
  const headers = {}
  // What is signed, in this order. url.host has no default port and is in lower case.
  const components = [
    ['@method', method],
    ['@authority', url.host],
    ['@path', url.pathname],
  ]
  if (url.search) components.push(['@query', url.search])
  if (body?.length) {
    const digest = createHash('sha256').update(body).digest('base64')
    headers['Content-Digest'] = `sha-256=:${digest}:`
    components.push(['content-digest', headers['Content-Digest']])
  }
  const names = components.map(([name]) => `"${name}"`).join(' ')
  const created = Math.floor(now / 1000)
  const nonce = randomBytes(16).toString('base64url')
  const params = `(${names});created=${created};keyid="${keyId}";nonce="${nonce}"`
  const base = [...components.map(([name, value]) => `"${name}": ${value}`), `"@signature-params": ${params}`].join('\n')
  headers['Signature-Input'] = `sig1=${params}`
  headers['Signature'] = `sig1=:${createHmac('sha256', key).update(base).digest('base64')}:`
  return headers
}

const usage = `usage: node sign.mjs [flags] URL   (ROTUNDA_KEY_ID and ROTUNDA_SECRET in the environment)
  --method M   method (default GET, or POST with --body)
  --body TEXT  body
  --headers    print the header lines and send nothing: curl -H "$(node sign.mjs --headers URL)" URL
  --curl       print a configuration of curl with URL, method, headers and body: node sign.mjs --curl URL | curl -K -`

async function main() {
  const { values, positionals } = parseArgs({
    args: process.argv.slice(2).map((arg) => arg.replace(/^-(?=(method|body|headers|curl)(=|$))/, '--')), // as Go writes flags
    allowPositionals: true,
    options: { method: { type: 'string' }, body: { type: 'string' }, headers: { type: 'boolean' }, curl: { type: 'boolean' } },
  })
  if (positionals.length !== 1 || (values.headers && values.curl)) throw new Error(usage)
  const url = new URL(positionals[0])
  url.hash = ''
  const body = values.body || undefined
  const method = values.method ?? (body ? 'POST' : 'GET')
  const headers = sign({ keyId: process.env.ROTUNDA_KEY_ID, secret: process.env.ROTUNDA_SECRET, method, url, body })
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
  if (values.headers) {
    console.log(lines.join('\n'))
    return
  }
  if (values.curl) {
    const escapes = { '\\': '\\\\', '"': '\\"', '\n': '\\n', '\r': '\\r', '\t': '\\t' }
    const quote = (s) => `"${s.replace(/[\\"\n\r\t]/g, (c) => escapes[c])}"`
    console.log([
      `url = ${quote(url.href)}`,
      `request = ${quote(method)}`,
      ...(body ? [`data-raw = ${quote(body)}`] : []),
      ...lines.map((line) => `header = ${quote(line)}`),
    ].join('\n'))
    return
  }
  // A redirect would need a signature of its own.
  const res = await fetch(url, { method, headers, body, redirect: 'manual', signal: AbortSignal.timeout(30_000) })
  console.log(`${res.status} ${res.statusText}`)
  process.stdout.write(await res.text())
  if (!res.ok) throw new Error(`the server refused the request with ${res.status}`)
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  main().catch((err) => {
    // fetch says why in the cause.
    console.error(`sign: ${err.message}${err.cause ? `: ${err.cause.message || err.cause.code}` : ''}`)
    process.exitCode = 1
  })
}
