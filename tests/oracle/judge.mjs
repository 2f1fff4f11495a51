// Asks iam-simulate what sessions may do. A process of its own, because that library is AGPL and the broker is
// not: it is started with the folder it is installed in as working directory, and speaks lines of JSON.
//
// in:   {"role": policy, "session": policy, "questions": [{"principal", "action", "resource", "account", "context"}]}
// out:  [[verdict, [context keys that were not looked at]]], one for each question, in order
//
// A verdict is Allowed, ImplicitlyDenied or ExplicitlyDenied; or what iam-simulate found wrong with the question,
// like invalid.action for a name that AWS does not have.
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const { runSimulation } = createRequire(process.cwd() + '/')('@cloud-copilot/iam-simulate')

const everything = { Version: '2012-10-17', Statement: [{ Effect: 'Allow', Action: '*', Resource: '*' }] }
// Without a level that allows, nothing would be.
const organization = [{ orgIdentifier: 'root', policies: [{ name: 'everything', policy: everything }] }]

// A KMS key's own policy must let its account's policies decide, and a key is made with one that does.
const keyPolicy = (account) => ({
  Version: '2012-10-17',
  Statement: [{ Effect: 'Allow', Principal: { AWS: `arn:aws:iam::${account}:root` }, Action: 'kms:*', Resource: '*' }]
})

async function judge({ role, session }, { principal, action, resource, account, context }) {
  const answer = await runSimulation(
    {
      request: { principal, action, resource: { resource, accountId: account }, contextVariables: context },
      identityPolicies: [{ name: 'role', policy: role }],
      sessionPolicy: session,
      resourcePolicy: action.startsWith('kms:') ? keyPolicy(account) : undefined,
      serviceControlPolicies: organization,
      resourceControlPolicies: []
    },
    {}
  )
  if (answer.resultType === 'error') return [describe(answer.errors), []]
  const results = answer.resultType === 'single' ? [answer.result] : answer.results
  return [answer.overallResult, results.flatMap((it) => it.ignoredContextKeys ?? [])]
}

function describe({ message, ...details }) {
  return Object.keys(details).length === 0 ? message : `${message}: ${JSON.stringify(details)}`
}

for await (const line of createInterface({ input: process.stdin })) {
  const { questions, ...policies } = JSON.parse(line)
  const verdicts = []
  for (const question of questions) verdicts.push(await judge(policies, question))
  process.stdout.write(JSON.stringify(verdicts) + '\n')
}
