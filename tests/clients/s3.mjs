// What a program does with the JavaScript SDK: the same as the other clients here.
import assert from "node:assert";
import { createRequire } from "node:module";

const load = createRequire(`${process.env.CLIENTS}/`);
const { DeleteObjectCommand, ListObjectsV2Command, PutObjectCommand, S3Client } = load("@aws-sdk/client-s3");

const s3 = new S3Client({ forcePathStyle: true });
const { STAGING, PRODUCTION, KEY, ROUNDS, SESSIONS } = process.env;
// AWS names the session that it refuses.
const refusals = new Set();
for (let round = 0; round < Number(ROUNDS) || refusals.size < Number(SESSIONS); round += 1) {
  await s3.send(new PutObjectCommand({ Bucket: STAGING, Key: KEY, Body: "x" }));
  const listed = await s3.send(new ListObjectsV2Command({ Bucket: STAGING, Prefix: KEY }));
  assert.deepEqual(listed.Contents.map((it) => it.Key), [KEY]);
  await s3.send(new DeleteObjectCommand({ Bucket: STAGING, Key: KEY }));
  const refused = await s3.send(new DeleteObjectCommand({ Bucket: PRODUCTION, Key: KEY })).then(
    () => assert.fail("production was open"),
    (error) => error,
  );
  assert.equal(refused.name, "AccessDenied", refused);
  console.log("denied", refused.message);
  refusals.add(refused.message);
}
