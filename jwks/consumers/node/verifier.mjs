// One token verifier as a child process: JSON lines in, JSON lines out.
// First line in: {library, jwks_url, issuer, audience, algorithms}; answered by {"ready":true}.
// Then {id, token}, each answered by {id, ok, why}. Ends at the end of its input.
import { createInterface } from 'node:readline';

const write = (answer) => process.stdout.write(JSON.stringify(answer) + '\n');

// Each returns a function that resolves when the token is accepted. The caches
// and their timings are the library's defaults.
const libraries = {
  async jose({ jwks_url, issuer, audience, algorithms }) {
    const { createRemoteJWKSet, jwtVerify } = await import('jose');
    const keys = createRemoteJWKSet(new URL(jwks_url));
    // jose also knows EdDSA with Ed25519 by the name that RFC 9864 gave it.
    const options = { issuer, audience, algorithms: [...algorithms, 'Ed25519'], requiredClaims: ['exp'] };
    return (token) => jwtVerify(token, keys, options);
  },

  async 'jwks-rsa'({ jwks_url, issuer, audience, algorithms }) {
    const { default: jwksClient } = await import('jwks-rsa');
    const { default: jwt } = await import('jsonwebtoken');
    const client = jwksClient({ jwksUri: jwks_url });
    const key = (header, done) =>
      client.getSigningKey(header.kid).then((k) => done(null, k.getPublicKey()), (err) => done(err));
    return (token) => new Promise((resolve, reject) => {
      jwt.verify(token, key, { issuer, audience, algorithms }, (err) => (err ? reject(err) : resolve()));
    });
  },
};

const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  console.error(`Node.js ${process.versions.node} is too old, 20.19 is needed: run \`make setup\``);
  process.exit(1);
}

let verify;
for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  if (!verify) {
    verify = await libraries[request.library](request);
    write({ ready: true });
    continue;
  }
  // Not awaited: a verification that waits for a fetch must not hold up the others.
  verify(request.token).then(
    () => write({ id: request.id, ok: true, why: '' }),
    (err) => write({ id: request.id, ok: false, why: `${err.code ?? err.name}: ${err.message || 'no message'}`.slice(0, 1000) }),
  );
}
