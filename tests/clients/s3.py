"""What a program does with boto3: the same as the other clients here. Run with the AWS CLI's Python."""

import os
import sys

sys.path.insert(0, os.path.join(os.environ["CLIENTS"], "python"))

import boto3  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402

s3 = boto3.client("s3")
staging, production, key = (os.environ[it] for it in ("STAGING", "PRODUCTION", "KEY"))
rounds, refusals = 0, set()
# AWS names the session that it refuses.
while rounds < int(os.environ["ROUNDS"]) or len(refusals) < int(os.environ["SESSIONS"]):
    rounds += 1
    s3.put_object(Bucket=staging, Key=key, Body=b"x")
    listed = s3.list_objects_v2(Bucket=staging, Prefix=key)
    assert [it["Key"] for it in listed["Contents"]] == [key]
    s3.delete_object(Bucket=staging, Key=key)
    try:
        s3.delete_object(Bucket=production, Key=key)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "AccessDenied", error
        print("denied", error, flush=True)
        refusals.add(str(error))
    else:
        sys.exit("production was open")
