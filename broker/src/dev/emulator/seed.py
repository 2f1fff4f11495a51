"""Makes the demo account, or repairs it: what is there already stays as it is.

Environment: EMULATOR_ENDPOINT, EMULATOR_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (of the
emulator's admin), BROKER_EXTERNAL_ID, and KNOWN_ACCESS_KEY_IDS: a JSON object, user to the id of the key
that was made before.
Prints one line of JSON: an object, user to {"access_key_id": ..., "secret_access_key": ...}, for those
whose known key no longer works.
"""

import json
import os

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

ENVIRONMENTS = ("staging", "production", "backup")
BUCKETS = {
    "staging-app-data": {
        "config/app.json": '{"debug": true, "workers": 2}\n',
        "reports/2026-01.csv": "day,orders\n2026-01-01,12\n2026-01-02,9\n",
        "tmp/scratch-1.txt": "made by a test run, may go\n",
        "tmp/scratch-2.txt": "made by a test run, may go\n",
    },
    "prod-app-data": {
        "config/app.json": '{"debug": false, "workers": 16}\n',
        "reports/2026-01.csv": "day,orders\n2026-01-01,4127\n2026-01-02,3988\n",
        "tmp/scratch-1.txt": "left by a deployment\n",
    },
    "backup-app-data": {
        "snapshots/2026-01-01.sql": "-- the state of production on 2026-01-01\n",
        "snapshots/2026-01-02.sql": "-- the state of production on 2026-01-02\n",
    },
}
SESSION_ACTIONS = ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"]
STOP_ACTIONS = ["iam:GetRolePolicy", "iam:PutRolePolicy", "iam:DeleteRolePolicy"]
LOOK_ACTIONS = ["iam:Get*", "iam:List*", "s3:GetBucketPolicy"]
# Wider than any scope should be: what an agent may not do, the session policy of its lease refuses.
ROLE_ACTIONS = ["s3:*", "dynamodb:*", "sqs:*", "sns:*", "logs:*", "secretsmanager:*", "ssm:*", "sts:GetAccessKeyInfo"]


def client(service):
    return botocore.session.get_session().create_client(
        service,
        region_name=os.environ["EMULATOR_REGION"],
        endpoint_url=os.environ["EMULATOR_ENDPOINT"],
        aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
    )


def policy(*statements):
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def unless(code, call, **parameters):
    """The answer, or None when the service says `code`: that it exists already, or that it does not."""
    try:
        return call(**parameters)
    except ClientError as error:
        if error.response["Error"]["Code"] == code:
            return None
        raise


def users(account):
    """The broker's own principals, each with all that it may do."""
    roles = [f"arn:aws:iam::{account}:role/broker-{name}" for name in ENVIRONMENTS]
    return {
        "broker": [{"Effect": "Allow", "Action": SESSION_ACTIONS, "Resource": roles}],
        "broker-revoker": [{"Effect": "Allow", "Action": STOP_ACTIONS, "Resource": roles}],
        "broker-doctor": [{"Effect": "Allow", "Action": LOOK_ACTIONS, "Resource": "*"}],
    }


def seed_user(iam, user, statements):
    unless("EntityAlreadyExists", iam.create_user, UserName=user)
    iam.put_user_policy(UserName=user, PolicyName="what-it-is-for", PolicyDocument=policy(*statements))


def seed_key(iam, user, known):
    """A new key, or None if the known one still works."""
    keys = iam.list_access_keys(UserName=user)["AccessKeyMetadata"]
    if any(key["AccessKeyId"] == known and key["Status"] == "Active" for key in keys):
        return None
    for key in keys:  # nobody has their secrets any more
        iam.delete_access_key(UserName=user, AccessKeyId=key["AccessKeyId"])
    key = iam.create_access_key(UserName=user)["AccessKey"]
    return {"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}


def seed_role(iam, account, name):
    role = f"broker-{name}"
    trust = policy({
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{account}:user/broker"},
        "Action": SESSION_ACTIONS,
        "Condition": {
            "StringLike": {"sts:SourceIdentity": "?*"},
            "StringEquals": {"sts:ExternalId": os.environ["BROKER_EXTERNAL_ID"]},
        },
    })
    unless("EntityAlreadyExists", iam.create_role, RoleName=role, AssumeRolePolicyDocument=trust)
    iam.update_assume_role_policy(RoleName=role, PolicyDocument=trust)
    iam.update_role(RoleName=role, MaxSessionDuration=3600)
    iam.put_role_policy(RoleName=role, PolicyName="everything", PolicyDocument=policy(
        {"Effect": "Allow", "Action": ROLE_ACTIONS, "Resource": "*"}))


def seed_bucket(s3, bucket, objects):
    if unless("404", s3.head_bucket, Bucket=bucket) is not None:
        return  # what was deleted since then stays deleted
    s3.create_bucket(Bucket=bucket)
    for key, text in objects.items():
        if unless("404", s3.head_object, Bucket=bucket, Key=key) is None:
            s3.put_object(Bucket=bucket, Key=key, Body=text.encode())


def main():
    iam, s3 = client("iam"), client("s3")
    account = client("sts").get_caller_identity()["Account"]
    known = json.loads(os.environ["KNOWN_ACCESS_KEY_IDS"])
    keys = {}
    for user, statements in users(account).items():
        seed_user(iam, user, statements)
        keys[user] = seed_key(iam, user, known.get(user))
    for name in ENVIRONMENTS:
        seed_role(iam, account, name)
    for bucket, objects in BUCKETS.items():
        seed_bucket(s3, bucket, objects)
    print(json.dumps({user: key for user, key in keys.items() if key}))


main()
