"""Makes the demo account, or repairs it: users and roles are made to be what they should be; buckets stay as they are.

Environment: EMULATOR_ENDPOINT, EMULATOR_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (of the
emulator's admin), DOCUMENTS: a JSON object of what users and roles should have, and KNOWN_ACCESS_KEY_IDS: a
JSON object, user to the id of the key that was made before.
Prints one line of JSON: an object, user to {"access_key_id": ..., "secret_access_key": ...}, for those
whose known key no longer works.
"""

import json
import os

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

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
STOP_POLICY = "broker-stopped"
OWN_POLICY = "what-it-is-for"


def client(service):
    return botocore.session.get_session().create_client(
        service,
        region_name=os.environ["EMULATOR_REGION"],
        endpoint_url=os.environ["EMULATOR_ENDPOINT"],
        aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
    )


def unless(code, call, **parameters):
    """The answer, or None when the service says `code`: that it exists already, or that it does not."""
    try:
        return call(**parameters)
    except ClientError as error:
        if error.response["Error"]["Code"] == code:
            return None
        raise


def seed_user(iam, user, policy):
    unless("EntityAlreadyExists", iam.create_user, UserName=user)
    iam.put_user_policy(UserName=user, PolicyName=OWN_POLICY, PolicyDocument=json.dumps(policy))


def seed_key(iam, user, known):
    """A new key, or None if the known one still works."""
    keys = iam.list_access_keys(UserName=user)["AccessKeyMetadata"]
    if any(key["AccessKeyId"] == known and key["Status"] == "Active" for key in keys):
        return None
    for key in keys:  # nobody has their secrets any more
        iam.delete_access_key(UserName=user, AccessKeyId=key["AccessKeyId"])
    key = iam.create_access_key(UserName=user)["AccessKey"]
    return {"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}


def seed_boundary(iam, account, role, document):
    """The managed policy that is the role's boundary, with `document` as its only version."""
    name, text = f"{role}-boundary", json.dumps(document)
    arn = f"arn:aws:iam::{account}:policy/{name}"
    if unless("EntityAlreadyExists", iam.create_policy, PolicyName=name, PolicyDocument=text) is None:
        for version in iam.list_policy_versions(PolicyArn=arn)["Versions"]:
            if not version["IsDefaultVersion"]:
                iam.delete_policy_version(PolicyArn=arn, VersionId=version["VersionId"])
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=text, SetAsDefault=True)
    return arn


def seed_role(iam, account, wanted):
    path, role = wanted["role_arn"].split(":role", 1)[1].rsplit("/", 1)
    trust = json.dumps(wanted["trust_policy"])
    unless("EntityAlreadyExists", iam.create_role, RoleName=role, Path=path + "/", AssumeRolePolicyDocument=trust)
    iam.update_assume_role_policy(RoleName=role, PolicyDocument=trust)
    iam.update_role(RoleName=role, MaxSessionDuration=wanted["max_session_duration"])
    boundary = seed_boundary(iam, account, role, wanted["permissions_boundary"])
    iam.put_role_permissions_boundary(RoleName=role, PermissionsBoundary=boundary)
    iam.put_role_policy(
        RoleName=role, PolicyName=OWN_POLICY, PolicyDocument=json.dumps(wanted["permission_policy"]))
    for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
        if name not in (OWN_POLICY, STOP_POLICY):
            iam.delete_role_policy(RoleName=role, PolicyName=name)


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
    documents = json.loads(os.environ["DOCUMENTS"])
    keys = {}
    for user, policy in documents["users"].items():
        seed_user(iam, user, policy)
        keys[user] = seed_key(iam, user, known.get(user))
    for wanted in documents["roles"]:
        seed_role(iam, account, wanted)
    for bucket, objects in BUCKETS.items():
        seed_bucket(s3, bucket, objects)
    print(json.dumps({user: key for user, key in keys.items() if key}))


main()
