//! Routes, and the few lines of translation each handler needs.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToSchema};
use uuid::Uuid;

use crate::approval::{Envelope, Jwk};
use crate::broker::Broker;
use crate::error::{Error, Result};
use crate::identity::{self, Caller};
use crate::lease::{LeaseId, LeaseState};
use crate::{pages, store, wire};

/// No log is larger: an index is a number of JSON.
const MAX_LOG_SIZE: u64 = 1 << 53;
/// Larger requests are refused unread.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Longer than a long poll and than any use case; shorter than a client that sends a byte a minute hopes for.
const ANSWER_WITHIN: Duration = Duration::from_secs(45);

type Server = State<Arc<Broker>>;

pub fn router(broker: Arc<Broker>) -> Router {
    let v1 = Router::new()
        .route("/leases", post(request).get(leases))
        .route("/leases/{id}", get(lease))
        .route("/leases/{id}/credentials", post(credentials))
        .route("/leases/{id}/withdraw", post(withdraw))
        .route("/leases/{id}/revoke", post(revoke))
        .route("/freezes", post(freeze).get(freezes))
        .route("/freezes/{id}", get(one_freeze))
        .route("/leases/{id}/statement", get(statement))
        .route("/leases/{id}/signatures", post(sign))
        .route("/statements", post(sign_act).get(acts))
        .route("/statements/drafts", post(propose))
        .route("/statements/{id}", get(act))
        .route("/tasks/{id}/end", post(end_task))
        .route("/leases/{id}/approval", get(approval))
        .route("/audit/events", get(audit_events))
        .route("/audit/events/{id}/proof", get(audit_proof))
        .route("/audit/checkpoint", get(audit_checkpoint))
        .route("/audit/tile/{*path}", get(audit_tile))
        .route("/login/nonce", post(login_nonce))
        .route("/login", post(login))
        .route("/token", post(token))
        .route("/scopes", get(scopes))
        .route("/explain", post(explain))
        .route("/whoami", get(whoami));
    Router::new()
        .nest("/v1", v1.layer(middleware::from_fn_with_state(broker.clone(), refuse_when_behind)))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/openapi.json", get(openapi))
        .route("/.well-known/jwks.json", get(jwks))
        .route("/leases/{id}", get(lease_page))
        .fallback(async || Error::NotFound)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(guard_answers))
        .with_state(broker)
}

/// No answer of ours may be kept by a cache, or read as something else than it is.
async fn guard_answers(request: Request, next: Next) -> Response {
    let mut response = match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
        Ok(response) => response,
        // Most likely a body that never ends. A use case under way goes on: it is detached.
        Err(_) => Error::TooSlow.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A database that is behind its log was restored: what it says of leases, keys and freezes is of before.
async fn refuse_when_behind(State(broker): Server, request: Request, next: Next) -> Response {
    match broker.log.gate() {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "broker",
        description = "Scoped, short-lived cloud credentials for AI agents. Errors are RFC 9457 problem documents."
    ),
    paths(
        request,
        leases,
        lease,
        credentials,
        withdraw,
        revoke,
        freeze,
        freezes,
        one_freeze,
        statement,
        sign,
        propose,
        acts,
        act,
        sign_act,
        end_task,
        approval,
        audit_events,
        audit_proof,
        audit_checkpoint,
        audit_tile,
        login_nonce,
        login,
        token,
        scopes,
        explain,
        whoami,
        healthz,
        readyz,
        jwks,
        lease_page
    ),
    components(schemas(WithdrawBody))
)]
struct ApiDoc;

/// The OpenAPI document of these routes.
pub fn api_document() -> utoipa::openapi::OpenApi {
    ApiDoc::openapi()
}

async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(api_document())
}

/// Asks for a lease.
#[utoipa::path(post, path = "/v1/leases", request_body = wire::LeaseRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same lease")),
    responses((status = 201, body = wire::Lease, description = "Approved, or issued"), (status = 202, body = wire::Lease, description = "Waits for signatures"),
        (status = 429, description = "A budget has no room until `retry_at`; the problem document also has `budget`, `of` and `limit`",
            headers(("Retry-After" = u32, description = "Seconds until then, rounded up")))))]
async fn request(
    State(broker): Server,
    Agent(agent): Agent,
    headers: HeaderMap,
    Body(body): Body<wire::LeaseRequest>,
) -> Result<(StatusCode, Json<wire::Lease>)> {
    let key = idempotency_key(&headers)?;
    let lease =
        detached(async move { broker.request(&agent, key.as_deref(), &body).await }).await?;
    let status =
        if lease.state == LeaseState::Pending { StatusCode::ACCEPTED } else { StatusCode::CREATED };
    Ok((status, Json(lease)))
}

/// Lists the leases that the caller may see, newest first.
#[utoipa::path(get, path = "/v1/leases", params(ListQuery), responses((status = 200, body = wire::LeasePage)))]
async fn leases(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListQuery>,
) -> Result<Json<wire::LeasePage>> {
    let page = broker
        .leases(&caller, query.state, query.agent.as_deref(), query.after, query.limit)
        .await?;
    Ok(Json(page))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<LeaseState>,
    agent: Option<String>,
    /// The cursor of the page before.
    after: Option<LeaseId>,
    /// At most 200; 50 when left out.
    limit: Option<u16>,
}

/// Shows a lease; with `wait_seconds`, a pending one only when it is pending no longer, or then.
#[utoipa::path(get, path = "/v1/leases/{id}", params(("id" = String, Path), WaitQuery), responses((status = 200, body = wire::Lease)))]
async fn lease(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(id): Path<LeaseId>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<wire::Lease>> {
    let lease = match query.wait_seconds {
        None | Some(0) => broker.lease(&caller, id).await?,
        Some(seconds) => {
            broker.lease_when_changed(&caller, id, Duration::from_secs(seconds.into())).await?
        }
    };
    Ok(Json(lease))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct WaitQuery {
    /// At most 30.
    wait_seconds: Option<u16>,
}

/// Hands out the lease's credentials to its agent.
#[utoipa::path(post, path = "/v1/leases/{id}/credentials", params(("id" = String, Path)), responses((status = 200, body = wire::Credentials)))]
async fn credentials(
    State(broker): Server,
    Agent(agent): Agent,
    Path(id): Path<LeaseId>,
) -> Result<Json<wire::Credentials>> {
    let credentials = detached(async move { broker.credentials(&agent, id).await }).await?;
    Ok(Json(credentials))
}

/// Takes back a lease that was not used.
#[utoipa::path(post, path = "/v1/leases/{id}/withdraw", params(("id" = String, Path)), request_body = WithdrawBody, responses((status = 200, body = wire::Lease)))]
async fn withdraw(
    State(broker): Server,
    Agent(agent): Agent,
    Path(id): Path<LeaseId>,
    Body(body): Body<WithdrawBody>,
) -> Result<Json<wire::Lease>> {
    Ok(Json(broker.withdraw(&agent, id, body.reason.as_deref()).await?))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WithdrawBody {
    reason: Option<String>,
}

/// Stops a lease: nothing is minted under it any more, and AWS is told to refuse what was. Stopping what is stopped changes
/// nothing.
#[utoipa::path(post, path = "/v1/leases/{id}/revoke", params(("id" = String, Path)), request_body = wire::RevokeRequest,
    responses((status = 200, body = wire::Lease, description = "Revoked here; each session says whether AWS was seen to refuse it")))]
async fn revoke(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(id): Path<LeaseId>,
    Body(body): Body<wire::RevokeRequest>,
) -> Result<Json<wire::Lease>> {
    Ok(Json(detached(async move { broker.revoke(&caller, id, &body.reason).await }).await?))
}

/// Freezes an agent, a sponsor, a scope, an environment or everything: nothing is issued to what it covers, and what was
/// issued is stopped. For people.
#[utoipa::path(post, path = "/v1/freezes", request_body = wire::FreezeRequest, responses((status = 201, body = wire::Freeze)))]
async fn freeze(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Body(body): Body<wire::FreezeRequest>,
) -> Result<(StatusCode, Json<wire::Freeze>)> {
    let freeze = detached(async move { broker.freeze(&caller, &body).await }).await?;
    Ok((StatusCode::CREATED, Json(freeze)))
}

/// The freezes that stand. For people.
#[utoipa::path(get, path = "/v1/freezes", responses((status = 200, body = wire::FreezeList)))]
async fn freezes(
    State(broker): Server,
    Authenticated(caller): Authenticated,
) -> Result<Json<wire::FreezeList>> {
    Ok(Json(broker.freezes(&caller).await?))
}

/// One freeze, standing or not. For people.
#[utoipa::path(get, path = "/v1/freezes/{id}", params(("id" = String, Path)), responses((status = 200, body = wire::Freeze)))]
async fn one_freeze(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(id): Path<Uuid>,
) -> Result<Json<wire::Freeze>> {
    Ok(Json(broker.find_freeze(&caller, id).await?))
}

/// The exact bytes that are signed for a lease.
#[utoipa::path(get, path = "/v1/leases/{id}/statement", params(("id" = String, Path)), responses((status = 200, body = wire::StatementBytes)))]
async fn statement(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(id): Path<LeaseId>,
) -> Result<Json<wire::StatementBytes>> {
    let sealed = broker.statement(&caller, id).await?;
    Ok(Json(wire::StatementBytes {
        id,
        statement: STANDARD.encode(sealed.bytes()),
        sha256: sealed.sha256(),
        short_code: sealed.short_code(),
    }))
}

/// Approves or refuses a lease. Needs no token: the signature says who.
#[utoipa::path(post, path = "/v1/leases/{id}/signatures", params(("id" = String, Path)), request_body = wire::SignatureRequest, responses((status = 200, body = wire::Lease, description = "Counted; the lease as the signer sees it")))]
async fn sign(
    State(broker): Server,
    Path(id): Path<LeaseId>,
    Body(body): Body<wire::SignatureRequest>,
) -> Result<Json<wire::Lease>> {
    Ok(Json(broker.sign(id, &body).await?))
}

/// Draws up a statement for the caller to sign: a task to start, a freeze to end, a key to revoke.
#[utoipa::path(post, path = "/v1/statements/drafts", request_body = wire::ActRequest, responses((status = 201, body = wire::Act)))]
async fn propose(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Body(body): Body<wire::ActRequest>,
) -> Result<(StatusCode, Json<wire::Act>)> {
    Ok((StatusCode::CREATED, Json(broker.propose(&caller, &body).await?)))
}

/// The statements that may still come to something and concern the caller, leases' aside.
#[utoipa::path(get, path = "/v1/statements", responses((status = 200, body = wire::ActList)))]
async fn acts(
    State(broker): Server,
    Authenticated(caller): Authenticated,
) -> Result<Json<wire::ActList>> {
    Ok(Json(broker.open_acts(&caller).await?))
}

/// One statement that concerns the caller.
#[utoipa::path(get, path = "/v1/statements/{id}", params(("id" = String, Path)), responses((status = 200, body = wire::Act)))]
async fn act(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(id): Path<Uuid>,
) -> Result<Json<wire::Act>> {
    Ok(Json(broker.act(&caller, id).await?))
}

/// Signs a statement, or refuses it; what was signed is done, now or after its cool-down. Needs no token: the signature
/// says who.
#[utoipa::path(post, path = "/v1/statements", request_body = wire::ActSignature, responses((status = 200, body = wire::SignedAct)))]
async fn sign_act(
    State(broker): Server,
    Body(body): Body<wire::ActSignature>,
) -> Result<Json<wire::SignedAct>> {
    Ok(Json(detached(async move { broker.sign_act(&body).await }).await?))
}

/// Ends a task, its token, and every lease that is open under it.
#[utoipa::path(post, path = "/v1/tasks/{id}/end", params(("id" = String, Path)), responses((status = 200, body = wire::EndedTask)))]
async fn end_task(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(id): Path<Uuid>,
) -> Result<Json<wire::EndedTask>> {
    Ok(Json(broker.end_task(&caller, id).await?))
}

/// The lease's statement with everybody's signatures, for whoever checks them without us. Its bytes are the file.
#[utoipa::path(get, path = "/v1/leases/{id}/approval", params(("id" = String, Path)), responses((status = 200, body = Envelope, description = "A DSSE envelope in canonical JSON, with one newline at its end"),
    (status = 404, description = "No such lease for this caller; or nobody was asked to sign it")))]
async fn approval(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(id): Path<LeaseId>,
) -> Result<Response> {
    let file = broker.approval(&caller, id).await?.file();
    Ok(([(header::CONTENT_TYPE, "application/json")], file).into_response())
}

/// A part of the log's export, a JSON object a line; the first without parameters. For people who may read everything.
#[utoipa::path(get, path = "/v1/audit/events", params(ExportQuery), responses((status = 200, content_type = "application/x-ndjson", body = String,
    description = "`docs/log.md` has the lines", headers(("Link" = String, description = "`rel=\"next\"`: the part that follows, as long as there is one")))))]
async fn audit_events(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Query(query): Query<ExportQuery>,
) -> Result<Response> {
    let bounds = query.from.zip(query.size).filter(|it| it.0 <= it.1 && it.1 <= MAX_LOG_SIZE);
    if query.from.is_some() && bounds.is_none() {
        return Err(Error::Invalid("pass `from` and `size` as the part before named them".into()));
    }
    let page = broker.export_page(&caller, bounds).await?;
    let mut response =
        ([(header::CONTENT_TYPE, "application/x-ndjson")], page.lines).into_response();
    if let Some((from, size)) = page.next {
        let link = format!("</v1/audit/events?from={from}&size={size}>; rel=\"next\"");
        let link = HeaderValue::from_str(&link).map_err(|it| Error::Internal(it.to_string()))?;
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ExportQuery {
    /// The index to go on from.
    from: Option<u64>,
    /// How many entries the log had when the export began.
    size: Option<u64>,
}

/// Proof that an event is in the log: C2SP tlog-proof, with the event as its extra data. For people who may read everything.
#[utoipa::path(get, path = "/v1/audit/events/{id}/proof", params(("id" = String, Path)), responses((status = 200, content_type = "text/plain", body = String),
    (status = 404, description = "No such event; or none that has its place in the log yet, or whose month is still here")))]
async fn audit_proof(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(id): Path<Uuid>,
) -> Result<String> {
    broker.proof(&caller, id).await
}

/// The newest checkpoint (C2SP tlog-checkpoint). For people who may read everything.
#[utoipa::path(get, path = "/v1/audit/checkpoint", responses((status = 200, content_type = "text/plain", body = String)))]
async fn audit_checkpoint(
    State(broker): Server,
    Authenticated(caller): Authenticated,
) -> Result<String> {
    broker.checkpoint(&caller).await
}

/// A tile, `LEVEL/INDEX[.p/WIDTH]`, or a bundle of entries, `entries/INDEX[.p/WIDTH]` (C2SP tlog-tiles). For people who may read
/// everything.
#[utoipa::path(get, path = "/v1/audit/tile/{path}", params(("path" = String, Path)), responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>)))]
async fn audit_tile(
    State(broker): Server,
    Authenticated(caller): Authenticated,
    Path(path): Path<String>,
) -> Result<Vec<u8>> {
    broker.tile(&caller, &path).await
}

/// A nonce to sign for a login.
#[utoipa::path(post, path = "/v1/login/nonce", responses((status = 200, body = wire::LoginNonce)))]
async fn login_nonce(State(broker): Server) -> Json<wire::LoginNonce> {
    let (nonce, expires_at) = broker.tokens.login_nonce(broker.clock.now());
    Json(wire::LoginNonce { nonce, expires_at })
}

/// Opens a person's reading session. It approves nothing.
#[utoipa::path(post, path = "/v1/login", request_body = wire::LoginRequest, responses((status = 200, body = wire::LoginSession)))]
async fn login(
    State(broker): Server,
    Body(body): Body<wire::LoginRequest>,
) -> Result<Json<wire::LoginSession>> {
    Ok(Json(broker.login(&body).await?))
}

/// A page that tells people how to sign for a lease. It shows nothing of the lease, nor whether there is one.
#[utoipa::path(get, path = "/leases/{id}", params(("id" = String, Path)), responses((status = 200, content_type = "text/html", body = String)))]
async fn lease_page(State(broker): Server, Path(id): Path<LeaseId>) -> impl IntoResponse {
    let guards = [
        (header::CONTENT_SECURITY_POLICY, pages::POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (guards, Html(pages::lease(&broker.config.settings.origin, id)))
}

/// Exchanges the token of a workload, signed by a trusted issuer, for a task token (RFC 8693).
#[utoipa::path(post, path = "/v1/token", request_body(content = wire::TokenRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, body = wire::IssuedToken), (status = 401, description = "The token is not exchanged; `reason` says why"),
        (status = 429, description = "The agent starts too many tasks; again at `retry_at`"),
        (status = 503, description = "The issuer's keys cannot be had, or the database is away")))]
async fn token(
    State(broker): Server,
    Form(request): Form<wire::TokenRequest>,
) -> Result<Json<wire::IssuedToken>> {
    Ok(Json(detached(async move { broker.exchange(&request).await }).await?))
}

/// What a request would come to, and why. No lease is made.
#[utoipa::path(post, path = "/v1/explain", request_body = wire::LeaseRequest, responses((status = 200, body = wire::Explanation)))]
async fn explain(
    State(broker): Server,
    Agent(agent): Agent,
    Body(body): Body<wire::LeaseRequest>,
) -> Result<Json<wire::Explanation>> {
    Ok(Json(broker.explain(&agent, &body).await?))
}

/// The scopes that the agent may ask for.
#[utoipa::path(get, path = "/v1/scopes", responses((status = 200, body = wire::ScopeList)))]
async fn scopes(State(broker): Server, Agent(agent): Agent) -> Result<Json<wire::ScopeList>> {
    Ok(Json(broker.scopes(&agent).await?))
}

/// Who the caller is.
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, body = wire::WhoAmI)))]
async fn whoami(
    State(broker): Server,
    Authenticated(caller): Authenticated,
) -> Result<Json<wire::WhoAmI>> {
    Ok(Json(broker.whoami(&caller).await?))
}

/// The keys of this installation (RFC 7517): those that its tokens, its approvals and its statements are of.
#[utoipa::path(get, path = "/.well-known/jwks.json", responses((status = 200)))]
async fn jwks(State(broker): Server) -> Json<serde_json::Value> {
    let keys = broker.tokens.public_keys().map(|it| Jwk::of(it).published());
    Json(serde_json::json!({ "keys": keys.collect::<Vec<_>>() }))
}

/// The process runs.
#[utoipa::path(get, path = "/healthz", responses((status = 200)))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// The database answers, with the schema that this program was built for.
#[utoipa::path(get, path = "/readyz", responses((status = 200), (status = 503)))]
async fn readyz(State(broker): Server) -> Response {
    if let Err(error) = broker.log.gate() {
        return error.into_response();
    }
    match store::ready(&broker.pool).await {
        Ok(true) => "ready\n".into_response(),
        Ok(false) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the schema is of another version; run `brokerd migrate`\n",
        )
            .into_response(),
        Err(error) => Error::from(error).into_response(),
    }
}

/// Runs a use case to its end even when the client hangs up: a claim must end in `settle`.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.map_err(|error| Error::Internal(error.to_string()))?
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|it| (1..=255).contains(&it.len()));
    key.map(|it| Some(it.to_owned())).ok_or_else(|| {
        Error::Invalid("an Idempotency-Key has 1 to 255 printable ASCII characters".into())
    })
}

/// `axum`'s extractors, but what they reject becomes a problem document like any other error.
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(Error))]
struct Body<T>(T);

#[derive(FromRequest)]
#[from_request(via(axum::Form), rejection(Error))]
struct Form<T>(T);

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Error))]
struct Path<T>(T);

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Error))]
struct Query<T>(T);

/// Whoever sent the request. Having one means that its token is ours and fresh.
struct Authenticated(Caller);

impl FromRequestParts<Arc<Broker>> for Authenticated {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self> {
        let value = parts.headers.get(header::AUTHORIZATION).and_then(|it| it.to_str().ok());
        match broker.authenticate(value) {
            Ok(caller) => Ok(Self(caller)),
            Err(error) => {
                broker.refuse_token(&error).await;
                Err(error.into())
            }
        }
    }
}

/// The agent that sent the request.
struct Agent(identity::Agent);

impl FromRequestParts<Arc<Broker>> for Agent {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, broker: &Arc<Broker>) -> Result<Self> {
        match Authenticated::from_request_parts(parts, broker).await?.0 {
            Caller::Agent(agent) => Ok(Self(agent)),
            Caller::Person(_) => Err(Error::OtherCaller("an agent")),
        }
    }
}
