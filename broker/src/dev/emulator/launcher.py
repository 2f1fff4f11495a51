"""Starts MiniStack as an AWS account that can be trusted to say no.

MiniStack with AUTH=true verifies signatures and evaluates IAM policies, including session policies.
It also keeps doors open that are handy on a laptop and wrong for a demonstration of enforcement, and
leaves out some STS rules that a credential broker depends on. This launcher closes and adds them, by
replacing functions of MiniStack, some of them private: it is written for one version (see
requirements.txt), and `check_names` refuses to start when one of those functions has moved.

The door, before any of MiniStack's own routing:
  * Every request must carry a signature (header or presigned URL) that verifies against an IAM access
    key or STS session which exists here. Unsigned requests and WebSockets are refused. So are
    MiniStack's "root" keys, which it does not check: `test`, the configured key and any twelve-digit
    id.
  * MiniStack's control routes (/_ministack/reset and others) do not exist. Health is answered here.

What STS and IAM do in addition, each with the AWS page that says so:
  * DurationSeconds from 900 to MaxSessionDuration, at most an hour when role chaining (API_AssumeRole)
  * lengths and characters of RoleSessionName, SourceIdentity, ExternalId and tags; at most 50 tags and
    10 policy ARNs (API_AssumeRole)
  * SourceIdentity: sts:SourceIdentity in trust policies, the sts:SetSourceIdentity permission,
    aws:SourceIdentity in the session, kept along a role chain, repeated in the answer
    (id_credentials_temp_control-access_monitor, API_AssumeRole)
  * transitive session tags along a role chain (id_session-tags)
  * aws:PrincipalArn of a role session is the role's ARN, and aws:ResourceAccount of a bucket is its
    owner's (reference_policies_condition-keys)
  * service control policies, one level after the other (orgs_manage_policies_scps_evaluation)
  * AssumeRoleWithWebIdentity is refused: MiniStack does not verify the token

Environment, besides MiniStack's own (AUTH, BIND_HOST, GATEWAY_PORT, STATE_DIR, ...):
  EMULATOR_ADMIN_ACCESS_KEY_ID, EMULATOR_ADMIN_SECRET_ACCESS_KEY
      keys of the IAM user `emulator-admin`, who may do everything and is made here, since without
      root keys nobody else could make the first user
  EMULATOR_INSTANCE               any text; the health answer repeats it
  EMULATOR_ALLOW_SHORT_SESSIONS   `1` lets tests ask for sessions of less than 15 minutes
  EMULATOR_SCP_FILE               a JSON list of service control policies, one per organisation level
"""

import contextvars
import dataclasses
import json
import os
import re
import sys
import uuid
from urllib.parse import parse_qs, quote
from xml.sax.saxutils import escape

os.umask(0o077)  # the saved state holds the secrets of the account's access keys

ADMIN_KEY_ID = os.environ.pop("EMULATOR_ADMIN_ACCESS_KEY_ID")
ADMIN_SECRET = os.environ.pop("EMULATOR_ADMIN_SECRET_ACCESS_KEY")
INSTANCE = os.environ.get("EMULATOR_INSTANCE", "")
SHORT_SESSIONS = os.environ.get("EMULATOR_ALLOW_SHORT_SESSIONS") == "1"
SCP_FILE = os.environ.get("EMULATOR_SCP_FILE")

from ministack import app as ministack_app  # noqa: E402  (reads the environment when imported)
from ministack.core import iam_evaluator as evaluator  # noqa: E402
from ministack.core import responses, router  # noqa: E402
from ministack.core.sigv4 import decode_header_value  # noqa: E402
from ministack.services import iam, s3, sts  # noqa: E402

ADMIN_USER = "emulator-admin"
HEALTH_PATH = "/_ministack/health"
REPLACED_OR_USED = {
    ministack_app: (
        "app", "main", "AUTH", "_get_module", "_credential_failure", "_request_account_scope",
        "_routing_params", "detect_service"),
    evaluator: (
        "is_root_access_key", "caller_verified", "resolve_caller_identity", "pin_signed_request",
        "pin_signed_body", "authenticate", "_anonymous", "_signed_request", "_principal_keys",
        "_resolve_condition_key", "_role_name_from_assumed_arn", "evaluate_trust_policy",
        "resolve_principal", "resolve_credential", "parse_policy_document", "AuthError",
        "CredentialResolutionError", "PrincipalInfo"),
    iam: ("_users", "_roles", "_access_keys", "_user_inline_policies", "_gen_id", "_now"),
    responses: ("set_request_account_id", "set_request_region", "get_account_id"),
    router: ("extract_access_key_id", "extract_region"),
    s3: ("_verify_presigned_sigv4", "_bucket_owner_account"),
    sts: (
        "handle_request", "is_root_access_key", "register_session", "_sessions", "_error",
        "_principal_keys"),
}


def check_names():
    """Ends the process when MiniStack is not the version that this file was written for."""
    gone = [f"{module.__name__}.{name}" for module, names in REPLACED_OR_USED.items()
            for name in names if not hasattr(module, name)]
    if gone:
        sys.exit(f"launcher: not found in this ministack: {', '.join(gone)}")
    if not ministack_app.AUTH:
        sys.exit("launcher: AUTH must be `true`")
    if ministack_app._get_module("sts") is not sts:
        sys.exit("launcher: ministack no longer serves STS from ministack.services.sts")


def check_root_is_gone():
    """Ends the process when a root key still resolves, because something else decides about them now."""
    account = responses.get_account_id()
    for key_id in ("", "test", account, os.environ.get("AWS_ACCESS_KEY_ID", "test")):
        resolved = evaluator.resolve_credential(key_id, account)
        known = not isinstance(resolved, evaluator.CredentialResolutionError)
        if known or evaluator.caller_verified(key_id, account) or evaluator.resolve_caller_identity(key_id):
            sys.exit(f"launcher: ministack still takes the access key id {key_id!r} for root")


# --- The door ------------------------------------------------------------------------------------


def is_root_access_key(_access_key_id):
    return False


NO_SIGNATURE = ("MissingAuthenticationToken", "Request is missing Authentication Token")
UNKNOWN_KEY = ("UnrecognizedClientException", "The security token included in the request is invalid.")


def refusal(service, code, message, headers):
    """A failed authentication in the words and encoding of the service that was asked."""
    failure = evaluator.AuthError(code, message)
    return ministack_app._credential_failure(service, "", str(uuid.uuid4()), failure, headers)


def authenticate(method, path, raw_path, query, raw_headers, headers, body):
    """None for a request whose signature verifies, or else the answer that refuses it."""
    evaluator.pin_signed_request(method, raw_path, query, raw_headers)
    evaluator.pin_signed_body(body)
    responses.set_request_region(router.extract_region(headers, query))
    service = ministack_app.detect_service(
        method, path, headers, ministack_app._routing_params(method, path, headers, body, query))
    if evaluator._anonymous.get():
        return refusal(service, *NO_SIGNATURE, headers)
    request, key_id = evaluator._signed_request.get(), router.extract_access_key_id(headers, query)
    if request is None or not key_id or request.access_key_id != key_id:
        return refusal(service, *UNKNOWN_KEY, headers)
    responses.set_request_account_id(ministack_app._request_account_scope(key_id))
    if request.s3_scoped:
        return s3._verify_presigned_sigv4(method, path, headers, query)
    checked = evaluator.authenticate(key_id, responses.get_account_id())
    if checked is None:
        return refusal(service, *UNKNOWN_KEY, headers)
    if isinstance(checked, evaluator.AuthError):
        return refusal(service, checked.code, checked.message, headers)
    return None


async def read_body(receive):
    """The whole body, or None when the client left before sending it."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def answer(send, status, headers, body):
    headers = {**headers, "Content-Length": str(len(body))}
    await send({"type": "http.response.start", "status": status,
                "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": body})


def behind_the_door(inner):
    """Wraps MiniStack's ASGI application; nothing reaches it that was not authenticated here."""

    async def http(scope, receive, send):
        method, path = scope["method"], scope["path"]
        if path == HEALTH_PATH:
            body = json.dumps({"status": "ok", "instance": INSTANCE}).encode()
            return await answer(send, 200, {"Content-Type": "application/json"}, body)
        if path.startswith("/_"):  # no bucket's name does
            return await answer(send, 404, {}, b"")
        body = await read_body(receive)
        if body is None:
            return None
        headers = {}
        for name, value in scope["headers"]:
            name, value = name.decode("latin-1").lower(), decode_header_value(value)
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        query = parse_qs(scope["query_string"].decode("utf-8", "replace"), keep_blank_values=True)
        raw_path = (scope.get("raw_path") or quote(path).encode()).decode("latin-1")
        # In a copy of the context: MiniStack pins and checks the request again for itself.
        refused = contextvars.copy_context().run(
            authenticate, method, path, raw_path, query, scope["headers"], headers, body)
        if refused:
            status, refused_headers, refused_body = refused
            return await answer(send, status, refused_headers, b"" if method == "HEAD" else refused_body)
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay():
            return next(parts, None) or await receive()

        return await inner(scope, replay, send)

    async def lifespan(scope, receive, send):
        async def send_with_admin(message):
            if message["type"] == "lifespan.startup.complete":  # the saved state is loaded by now
                make_admin()
            await send(message)

        await inner(scope, receive, send_with_admin)

    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(scope, receive, send)
        elif scope["type"] == "http":
            await http(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    return application


def make_admin():
    """The one user with every permission, with today's keys and no others."""
    for key_id, key in list(iam._access_keys.items()):
        if key["UserName"] == ADMIN_USER:
            del iam._access_keys[key_id]
    if ADMIN_USER not in iam._users:
        iam._users[ADMIN_USER] = {
            "UserName": ADMIN_USER,
            "Arn": f"arn:aws:iam::{responses.get_account_id()}:user/{ADMIN_USER}",
            "UserId": iam._gen_id("AIDA"),
            "CreateDate": iam._now(),
            "Path": "/",
            "PermissionsBoundary": "",
            "AttachedPolicies": [],
            "Tags": [],
        }
    iam._user_inline_policies[ADMIN_USER] = {"everything": json.dumps({
        "Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}})}
    iam._access_keys[ADMIN_KEY_ID] = {
        "UserName": ADMIN_USER,
        "AccessKeyId": ADMIN_KEY_ID,
        "SecretAccessKey": ADMIN_SECRET,
        "Status": "Active",
        "CreateDate": iam._now(),
    }


# --- STS -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RoleRequest:
    """What an AssumeRole call that is being served adds to its session."""

    source_identity: str | None
    inherited_tags: dict
    transitive_keys: frozenset


_role_request = contextvars.ContextVar("role_request", default=None)

NAME = re.compile(r"[\w+=,.@-]*", re.ASCII)
EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]*", re.ASCII)
TAG_TEXT = re.compile(r"[\w\s.:/=+\-@]*")


def sts_error(code, message, status=400):
    return sts._error(status, code, escape(message), ns="sts")


def members(params, pattern):
    """Values of numbered parameters: `Tags.member.N.Key` by their number."""
    found = {}
    for name, value in params.items():
        match = re.fullmatch(pattern, name)
        if match:
            found[int(match[1])] = value
    return found


def session_tags(params):
    values = members(params, r"Tags\.member\.(\d+)\.Value")
    return {key: values.get(n, "") for n, key in members(params, r"Tags\.member\.(\d+)\.Key").items()}


def text_problem(name, value, low, high, pattern):
    if low <= len(value) <= high and pattern.fullmatch(value):
        return None
    return sts_error("ValidationError", f"1 validation error detected: Value at '{name}' failed to satisfy "
                                        f"constraint: length {low} to {high}, pattern {pattern.pattern}")


def names_problem(params):
    problem = text_problem("roleSessionName", params.get("RoleSessionName", ""), 2, 64, NAME)
    if not problem and "SourceIdentity" in params:
        problem = text_problem("sourceIdentity", params["SourceIdentity"], 2, 64, NAME)
        if not problem and params["SourceIdentity"].lower().startswith("aws:"):
            problem = sts_error("ValidationError", "SourceIdentity must not begin with aws:")
    if not problem and "ExternalId" in params:
        problem = text_problem("externalId", params["ExternalId"], 2, 1224, EXTERNAL_ID)
    return problem


def lists_problem(params):
    tags = session_tags(params)
    if len(tags) > 50:
        return sts_error("ValidationError", "'tags': Member must have length less than or equal to 50")
    for key, value in tags.items():
        if not (1 <= len(key) <= 128 and len(value) <= 256
                and TAG_TEXT.fullmatch(key) and TAG_TEXT.fullmatch(value)):
            return sts_error("ValidationError", "1 validation error detected at 'tags'")
    if len(members(params, r"PolicyArns\.member\.(\d+)\.arn")) > 10:
        return sts_error("ValidationError", "'policyArns': Member must have length less than or equal to 10")
    return None


def duration_problem(params, chaining):
    text = params.get("DurationSeconds", "3600")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        return sts_error("ValidationError", "DurationSeconds must be an integer")
    seconds, shortest = int(text), 1 if SHORT_SESSIONS else 900
    if not shortest <= seconds <= 43200:
        return sts_error("ValidationError", f"1 validation error detected: Value '{seconds}' at "
                         "'durationSeconds' failed to satisfy constraint: between 900 and 43200")
    arn = params.get("RoleArn", "")
    account, name = (arn.split(":") + [""] * 5)[4], arn.rsplit("/", 1)[-1]
    role = iam._roles.get_scoped(account, None, name)
    if role and seconds > int(role.get("MaxSessionDuration") or 3600):
        return sts_error("ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration "
                                            "set for this role.")
    if chaining and seconds > 3600:
        return sts_error("ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit "
                                            "for roles assumed by role chaining.")
    return None


def chain_problem(params, caller, inherited_tags):
    source_identity = caller.get("SourceIdentity")
    if source_identity and params.get("SourceIdentity", source_identity) != source_identity:
        return sts_error("AccessDenied", "SourceIdentity cannot be changed in a role chain", 403)
    given = {key.lower() for key in session_tags(params)}
    if given & {key.lower() for key in inherited_tags}:
        return sts_error("InvalidParameterValue", "One of the specified transitive tag keys can't be set "
                         "because it conflicts with a transitive tag key from the calling session.")
    return None


async def sts_request(method, path, headers, body, query_params):
    if "amz-json" in headers.get("content-type", ""):
        return sts_error("InvalidAction", "STS speaks the query protocol only")
    params = {k: v[0] if isinstance(v, list) else v for k, v in query_params.items()}
    if body and method == "POST":
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        params.update({k: v[0] for k, v in form.items()})
    action = params.get("Action")
    if action in ("AssumeRoleWithWebIdentity", "AssumeRoleWithSAML"):
        return sts_error("AccessDenied", f"Not authorized to perform sts:{action}", 403)
    if action != "AssumeRole":
        return await _sts_request(method, path, headers, body, query_params)

    caller = sts._sessions.get(router.extract_access_key_id(headers, query_params)) or {}
    chaining = caller.get("PrincipalType") == "AssumedRole"
    kept = set(caller.get("TransitiveTagKeys") or ()) if chaining else set()
    inherited = {t["Key"]: t["Value"] for t in caller.get("SessionTags") or [] if t["Key"] in kept}
    problem = (names_problem(params) or lists_problem(params) or duration_problem(params, chaining)
               or chain_problem(params, caller, inherited))
    if problem:
        return problem
    asked = members(params, r"TransitiveTagKeys\.member\.(\d+)").values()
    request = RoleRequest(
        source_identity=params.get("SourceIdentity") or caller.get("SourceIdentity"),
        inherited_tags=inherited,
        transitive_keys=frozenset(asked) | frozenset(inherited),
    )
    token = _role_request.set(request)
    try:
        status, answer_headers, answer_body = await _sts_request(method, path, headers, body, query_params)
    finally:
        _role_request.reset(token)
    if status == 200 and request.source_identity:
        identity = f"<SourceIdentity>{escape(request.source_identity)}</SourceIdentity>".encode()
        end = b"</AssumeRoleResult>"
        if answer_body.count(end) != 1:
            raise RuntimeError("launcher: the AssumeRole answer has changed its form")
        answer_body = answer_body.replace(end, identity + end)
    return status, answer_headers, answer_body


def register_session(access_key, session):
    request = _role_request.get()
    if request:
        if request.source_identity:
            session["SourceIdentity"] = request.source_identity
        inherited = [{"Key": k, "Value": v} for k, v in request.inherited_tags.items()]
        session["SessionTags"] = (session.get("SessionTags") or []) + inherited
        session["TransitiveTagKeys"] = sorted(request.transitive_keys)
    return _register_session(access_key, session)


# --- Policies ------------------------------------------------------------------------------------


def evaluate_trust_policy(document, caller_arn, context=None):
    request = _role_request.get()
    if not request or context is None or not request.source_identity:
        return _evaluate_trust_policy(document, caller_arn, context)
    keys = {**context.service_context, "sts:sourceidentity": request.source_identity}
    context = dataclasses.replace(context, service_context=keys)
    allowed = _evaluate_trust_policy(document, caller_arn, context)
    if allowed and context.action == "sts:AssumeRole":
        context = dataclasses.replace(context, action="sts:SetSourceIdentity")
        allowed = _evaluate_trust_policy(document, caller_arn, context)
    return allowed


def principal_keys(credential):
    keys = _principal_keys(credential)
    session = sts._sessions.get(credential.access_key_id) or {}
    if session.get("SourceIdentity"):
        keys["aws:sourceidentity"] = session["SourceIdentity"]
    return keys


def resolve_condition_key(key, context):
    name = key.lower()
    if name == "aws:principalarn" and ":assumed-role/" in context.principal_arn:
        role_name = evaluator._role_name_from_assumed_arn(context.principal_arn)
        role = iam._roles.get_scoped(context.principal_account, None, role_name) or {}
        return role.get("Arn") or f"arn:aws:iam::{context.principal_account}:role/{role_name}"
    of_bucket = context.resource_arn.startswith("arn:aws:s3:::")
    if of_bucket and name in ("aws:resourceaccount", "s3:resourceaccount"):
        bucket = context.resource_arn.removeprefix("arn:aws:s3:::").split("/", 1)[0]
        return s3._bucket_owner_account(bucket) or context.principal_account
    return _resolve_condition_key(key, context)


def resolve_principal(*args, **kwargs):
    principal = _resolve_principal(*args, **kwargs)
    if CONTROL_POLICIES and isinstance(principal, evaluator.PrincipalInfo) and principal.policies is not None:
        principal.limits = [*principal.limits, *CONTROL_POLICIES]
    return principal


def control_policies():
    if not SCP_FILE:
        return []
    with open(SCP_FILE, encoding="utf-8") as file:
        return [[evaluator.parse_policy_document(document)] for document in json.load(file)]


# --- Start ---------------------------------------------------------------------------------------

check_names()
CONTROL_POLICIES = control_policies()

_sts_request, sts.handle_request = sts.handle_request, sts_request
_register_session, sts.register_session = sts.register_session, register_session
_evaluate_trust_policy, evaluator.evaluate_trust_policy = evaluator.evaluate_trust_policy, evaluate_trust_policy
_resolve_condition_key = evaluator._resolve_condition_key
evaluator._resolve_condition_key = resolve_condition_key
_resolve_principal, evaluator.resolve_principal = evaluator.resolve_principal, resolve_principal
_principal_keys = evaluator._principal_keys
evaluator._principal_keys = sts._principal_keys = principal_keys
evaluator.is_root_access_key = sts.is_root_access_key = is_root_access_key
check_root_is_gone()

ministack_app.app = behind_the_door(ministack_app.app)
sys.argv = ["ministack"]
ministack_app.main()
