// Signs statements with passkeys in a real browser whose authenticator is virtual (Chrome DevTools Protocol,
// domain WebAuthn), and writes what the browser answered to stdout: broker/src/verify/fixtures/chromium.json.
// It encodes what is signed by itself, so that our own encoding is judged too. README.md says how it is run.

import { createHash } from 'node:crypto'
import { execFileSync } from 'node:child_process'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium'
// Resolved from the working directory: the driver is installed outside of the repository.
const require = createRequire(`${process.cwd()}/`)
const { chromium } = require('playwright-core')
const driver = require('playwright-core/package.json').version

const RP_ID = 'localhost'
const BROKER = 'http://localhost:8750'
const OTHER_PORT = 'http://localhost:8751'
const ES256 = -7
const EDDSA = -8

const BODY = '{"lease":"read the bucket"}'
const OTHER_BODY = '{"lease":"drop the bucket"}'
const MEANINGS = {
  'lease-approval': 'application/vnd.broker.lease-approval.v1+json',
  'lease-refusal': 'application/vnd.broker.lease-refusal.v1+json',
  login: 'application/vnd.broker.login.v1+json',
}

function challenge(meaning, body) {
  const type = MEANINGS[meaning]
  const message = `DSSEv1 ${type.length} ${type} ${Buffer.byteLength(body)} ${body}`
  return createHash('sha256').update(message).digest('base64url')
}

// Runs in the page.
async function enrol({ algorithm, rpId }) {
  const credential = await navigator.credentials.create({
    publicKey: {
      rp: { id: rpId, name: 'broker' },
      user: { id: new Uint8Array([1, 2, 3, 4]), name: 'bob', displayName: 'Bob' },
      challenge: new Uint8Array(32),
      pubKeyCredParams: [{ type: 'public-key', alg: algorithm }],
      authenticatorSelection: { userVerification: 'preferred' },
    },
  })
  const { response } = credential.toJSON()
  return { id: credential.id, publicKey: response.publicKey, authenticatorData: response.authenticatorData }
}

// Runs in the page, or in a frame of it.
async function sign({ id, challenge, rpId, userVerification }) {
  const options = PublicKeyCredential.parseRequestOptionsFromJSON({
    challenge, rpId, userVerification, allowCredentials: [{ id, type: 'public-key' }],
  })
  const credential = await navigator.credentials.get({ publicKey: options })
  return credential.toJSON()
}

async function withAuthenticator(browser, settings, algorithm, use) {
  const context = await browser.newContext()
  const page = await context.newPage()
  await page.goto(BROKER)
  const devtools = await context.newCDPSession(page)
  await devtools.send('WebAuthn.enable')
  const { authenticatorId } = await devtools.send('WebAuthn.addVirtualAuthenticator', {
    options: {
      protocol: 'ctap2', ctap2Version: 'ctap2_1', transport: 'internal', hasResidentKey: true,
      hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true, ...settings,
    },
  })
  const enrolled = await page.evaluate(enrol, { algorithm, rpId: RP_ID })
  const flags = Buffer.from(enrolled.authenticatorData, 'base64url')[32]
  const key = {
    backup_eligible: (flags & 0x08) !== 0,
    credential_id: enrolled.id,
    public_key: enrolled.publicKey,
    rp_id: RP_ID,
  }
  const forgetPin = () => devtools.send('WebAuthn.setUserVerified', { authenticatorId, isUserVerified: false })
  await use(page, key, forgetPin)
  await context.close()
}

const cases = []

async function record(name, where, key, { meaning = 'lease-approval', body = BODY, ask = 'required' } = {}) {
  const assertion = await where.evaluate(sign, {
    id: key.credential_id, challenge: challenge(meaning, body), rpId: RP_ID, userVerification: ask,
  })
  cases.push({ name, key, meaning, body, assertion })
}

const FRAMED = '<iframe allow="publickey-credentials-get *" src="' + BROKER + '"></iframe>'
const servers = [BROKER, OTHER_PORT].map(origin =>
  createServer((request, response) => {
    response.setHeader('content-type', 'text/html')
    response.end(request.url === '/framed' ? FRAMED : '<!doctype html><title>passkeys</title>')
  }).listen(new URL(origin).port, '127.0.0.1'))
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] })

await withAuthenticator(browser, {}, ES256, async (page, key) => {
  await record('es256', page, key)
  await record('another statement', page, key, { body: OTHER_BODY })
  await record('refusal', page, key, { meaning: 'lease-refusal' })
  await record('login', page, key, { meaning: 'login' })
  await page.goto(OTHER_PORT)
  await record('another port', page, key)
  await page.goto(`${OTHER_PORT}/framed`)
  const frame = page.frames().find(it => it.url().startsWith(BROKER))
  await record('in a frame of another origin', frame, key)
})
await withAuthenticator(browser, {}, EDDSA, (page, key) => record('eddsa', page, key))
await withAuthenticator(browser, {}, ES256, async (page, key, forgetPin) => {
  await forgetPin()
  await record('without PIN', page, key, { ask: 'discouraged' })
})
await withAuthenticator(browser, { defaultBackupEligibility: true, defaultBackupState: true }, ES256,
  (page, key) => record('synced', page, key))

await browser.close()
servers.forEach(server => server.close())
const version = execFileSync(CHROMIUM, ['--version'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
const madeBy = `${version.split(' ').slice(0, 2).join(' ').trim()}, playwright-core ${driver}`
console.log(JSON.stringify({ made_by: madeBy, origin: BROKER, cases }, null, 2))
