// One process for the JavaScript oracles: a line of JSON in, a line of JSON out.
// {op, …} is answered by {result} or, when the library refuses, by {refused}.
import { createInterface } from 'node:readline';
import { createPrivateKey, createPublicKey } from 'node:crypto';
import signatures from 'http-message-signatures';
import webhooks from 'standardwebhooks';

const { createSigner, createVerifier, httpbis } = signatures;
const secret = (alg, key) => (alg === 'hmac-sha256' ? Buffer.from(key, 'base64') : undefined);

const operations = {
  sign({ message, alg, key, keyid, fields, params, created, nonce, tag, label }) {
    const signer = createSigner(secret(alg, key) ?? createPrivateKey(key), alg, keyid);
    const paramValues = { created: new Date(created * 1000), nonce, tag };
    return httpbis.signMessage({ key: signer, name: label, fields, params, paramValues }, message).then((m) => m.headers);
  },
  async verify({ message, alg, key, keyid }) {
    const verify = createVerifier(secret(alg, key) ?? createPublicKey(key), alg);
    const keyLookup = async (params) => (params.keyid === keyid ? { id: keyid, algs: [alg], verify } : null);
    if ((await httpbis.verifyMessage({ keyLookup, all: true }, message)) !== true) throw new Error('the signature does not verify');
    return true;
  },
  webhookSign: ({ secret, id, timestamp, body }) => new webhooks.Webhook(secret).sign(id, new Date(timestamp * 1000), body),
  webhookVerify({ secret, headers, body }) {
    new webhooks.Webhook(secret).verify(body, headers, { jsonParse: false });
    return true;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const request = JSON.parse(line);
    answer = { result: await operations[request.op](request) };
  } catch (err) {
    answer = { refused: `${err.name}: ${err.message}`.slice(0, 1000) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
