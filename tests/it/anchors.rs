//! Checkpoints where nobody who has the database or this host can take them back: what waits for them, what their absence means,
//! and what it means that they are ahead of us. And what is done to a log by those who may: another key, months put away.

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use axum::http::{Method, StatusCode};
use broker::audit::{Actor, EventType, Scribe, Subject};
use broker::auditing::{self, Command};
use broker::http::api_document;
use broker::lease::LeaseId;
use broker::log::verify::{MonthFile, Options, Report, Verdict, verify_with};
use broker::log::{Checkpoint, LogKey, SignedCheckpoint, leaf_hash};
use broker::sequencer::LogError;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use tests::program::{Server, binary, program, text};
use tests::{Answer, TestBroker, production_write, stack, write_secret};
use time::macros::date;
use tokio::net::TcpListener;

use crate::log_attacks::{World, check, whole};
use crate::processes::site;

const ORIGIN: &str = "broker.test/log";
/// What the tests' configuration has.
const FOLDER: &str = "anchors = [{ kind = \"file\", name = \"folder\", path = \"anchor\" }]";

/// The anchor's folder.
fn folder(world: &World) -> PathBuf {
    world.broker.config_dir.path().join("anchor")
}

/// Checkpoints in the first epoch of a folder, by name.
fn kept(dir: &std::path::Path) -> Vec<(String, SignedCheckpoint)> {
    let entries = fs::read_dir(dir.join("000001")).expect("an epoch");
    let mut kept: Vec<_> = entries
        .map(|it| {
            let path = it.expect("an entry").path();
            let note = fs::read_to_string(&path).expect("a note");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, SignedCheckpoint::parse(&note).expect("a checkpoint"))
        })
        .collect();
    kept.sort_by(|one, other| one.0.cmp(&other.0));
    kept
}

fn put(dir: &std::path::Path, size: u64, note: &str) {
    fs::create_dir_all(dir.join("000001")).expect("a folder");
    fs::write(dir.join(format!("000001/{size:020}")), note).expect("written");
}

/// A checkpoint that nobody came by honestly, or of another log.
fn forged(key: &LogKey, origin: &str, size: u64) -> String {
    let checkpoint = Checkpoint { origin: origin.into(), size, root: leaf_hash(b"another story") };
    checkpoint.sign(&[key]).expect("signed").note().to_owned()
}

/// The same broker with other anchors in its configuration.
async fn with_anchors(
    broker: &TestBroker,
    anchors: &str,
    aws: broker::aws::AwsOptions,
) -> TestBroker {
    let path = broker.config_dir.path().join("broker.toml");
    let settings = fs::read_to_string(&path).expect("written before");
    assert!(settings.contains(FOLDER));
    fs::write(&path, settings.replace(FOLDER, anchors)).expect("written");
    let other = broker.replica(aws).await;
    fs::write(&path, settings).expect("written");
    other
}

/// A lease to delete with, that everybody who has to has signed. Nothing is anchored.
async fn destruction(broker: &TestBroker) -> LeaseId {
    let mut body = production_write();
    body["scope"] = json!("prod-destructive");
    body["actions"] = json!(["s3:DeleteObject"]);
    let answer = broker.post("/v1/leases", body).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
    let id = answer.id();
    assert_eq!(answer.body["tier"], "destructive");
    for key in [&broker.bob, &broker.carol] {
        if broker.state(id).await == "pending" {
            let signature = key.sign("approve", &broker.statement(id).await);
            let answer = broker.send_signature(id, "approve", &signature).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        }
    }
    assert_eq!(broker.state(id).await, "approved");
    id
}

fn is_not_anchored(answer: &Answer, why: &str) {
    assert_eq!((answer.status, answer.problem()), (StatusCode::CONFLICT, "/problems/not-anchored"));
    let told = answer.body["detail"].as_str().expect("a detail");
    assert!(told.contains(why), "{}", answer.body);
    let next = answer.body["next"].as_str().expect("what to do");
    assert!(next.contains("broker exec --lease"), "{next}");
}

async fn signatures(world: &World) -> i64 {
    world.number("select count(*) from signature").await
}

// --------------------------------------------------------------------------------------------------------- folders

#[tokio::test]
async fn checkpoints_come_to_a_folder_and_are_never_overwritten() {
    let world = World::new().await;
    for _ in 0..3 {
        world.event().await;
        world.broker.anchor().await;
    }
    let there = kept(&folder(&world));
    assert_eq!(there.len(), 3);
    let key = world.key().verifier_key(ORIGIN);
    for (name, signed) in &there {
        assert_eq!(*name, format!("{:020}", signed.checkpoint.size));
        assert_eq!(signed.verify(&key), Ok(()));
    }
    let report = world.check(there.iter().map(|(_, it)| it.clone()).collect()).await;
    assert_eq!((report.verdict(), report.anchors), (Verdict::Good, 3), "{}", report.text());

    // Two servers take checkpoints to the same one.
    let other = world.broker.replica(world.sts.options()).await;
    for broker in [&other, &world.broker, &other] {
        world.event().await;
        world.broker.sequence().await;
        let (one, two) = tokio::join!(broker.broker.log.anchor(), world.broker.broker.log.anchor());
        assert_eq!((one.expect("taken"), two.expect("taken")), (1, 1));
    }
    assert_eq!(kept(&folder(&world)).len(), 6);
    whole(&world.superuser, &other).await;
}

#[tokio::test]
async fn what_destroys_waits_for_an_anchor_and_is_not_signed_again() {
    let world = World::new().await;
    world.broker.anchor().await;
    let id = destruction(&world.broker).await;
    let signed = signatures(&world).await;
    is_not_anchored(&world.broker.claim(id).await, "no anchor has it yet");
    world.broker.sequence().await;

    // The mount is away.
    let (dir, away) = (folder(&world), world.broker.config_dir.path().join("away"));
    fs::rename(&dir, &away).expect("moved");
    assert_eq!(world.broker.broker.log.anchor().await.expect("that is no reason to stop"), 0);
    is_not_anchored(&world.broker.claim(id).await, "folder");
    assert_eq!(world.sts.calls(), 0);
    // Nobody else waits.
    let other = world.broker.staging_lease().await;
    assert_eq!(world.broker.claim(other).await.status, StatusCode::OK);
    let other = world.broker.pending_lease().await;
    assert_eq!(world.broker.approve(other, &world.broker.bob).await.status, StatusCode::OK);
    assert_eq!(world.broker.claim(other).await.status, StatusCode::OK);
    assert_eq!(world.sts.calls(), 2);

    fs::rename(&away, &dir).expect("back");
    world.broker.anchor().await;
    assert_eq!(signatures(&world).await, signed + 1);
    let claimed = world.broker.claim(id).await;
    assert_eq!(claimed.status, StatusCode::OK, "{}", claimed.body);
    world.is_whole().await;
}

/// Who has the database can write that an anchor has taken a checkpoint. What a server has seen of its anchors counts.
#[tokio::test]
async fn that_an_approval_is_anchored_is_not_taken_from_the_database() {
    let world = World::new().await;
    world.broker.anchor().await;
    let id = destruction(&world.broker).await;
    world.broker.sequence().await;
    world
        .sql(
            "insert into log_anchored (anchor, epoch, size, anchored_at)
             select anchor, epoch, size, now() from log_checkpoint, unnest(array['another', 'third']) as anchor
              order by size desc limit 2",
        )
        .await
        .expect("a superuser may");
    let says = format!("select is_anchored('{id}')");
    let says: bool = sqlx::query_scalar(AssertSqlSafe(says))
        .fetch_one(&world.superuser)
        .await
        .expect("an answer");
    assert!(says, "as far as the database knows, it is");

    is_not_anchored(&world.broker.claim(id).await, "no anchor has it yet");
    let (dir, away) = (folder(&world), world.broker.config_dir.path().join("away"));
    fs::rename(&dir, &away).expect("moved");
    assert_eq!(world.broker.broker.log.anchor().await.expect("that is no reason to stop"), 0);
    is_not_anchored(&world.broker.claim(id).await, "folder");
    // Nor by a server that starts after the row was written, or has no anchor at all.
    let other = world.broker.replica(world.sts.options()).await;
    is_not_anchored(&other.claim(id).await, "no anchor has it yet");
    let alone = with_anchors(&world.broker, "", world.sts.options()).await;
    is_not_anchored(&alone.claim(id).await, "no anchor is configured");
    assert_eq!(world.sts.calls(), 0);
    assert!(world.broker.sessions(id).await.is_empty());

    fs::rename(&away, &dir).expect("back");
    world.broker.anchor().await;
    let claimed = world.broker.claim(id).await;
    assert_eq!(claimed.status, StatusCode::OK, "{}", claimed.body);
    assert_eq!(world.sts.calls(), 1);
}

#[tokio::test]
async fn a_session_for_what_destroys_is_not_written_by_hand_before_it_is_anchored() {
    let world = World::new().await;
    world.broker.anchor().await;
    let id = destruction(&world.broker).await;
    world.broker.sequence().await;
    let by_hand = format!(
        "begin;
         update lease set claimed_at = now() where id = '{id}';
         insert into session (id, lease_id, signed, state, session_name, claimed_at)
         values (gen_random_uuid(), '{id}', true, 'issuing', 'by-hand', now());
         rollback"
    );
    let owner = &world.broker.database.owner;
    let error =
        sqlx::raw_sql(AssertSqlSafe(by_hand.clone())).execute(owner).await.expect_err("refused");
    assert!(error.to_string().contains("is not anchored"), "{error}");
    sqlx::raw_sql("rollback").execute(&world.superuser).await.expect("nothing is open");
    world.broker.anchor().await;
    let other =
        sqlx::PgPool::connect(&world.broker.database.superuser_url).await.expect("it answers");
    let error = sqlx::raw_sql(AssertSqlSafe(by_hand)).execute(&other).await.err();
    assert!(error.is_none(), "{error:?}");
}

#[tokio::test]
async fn without_an_anchor_nothing_destroys() {
    let world = World::new().await;
    world.broker.anchor().await;
    let alone = with_anchors(&world.broker, "", world.sts.options()).await;
    alone.broker.log.compare().await.expect("there is nobody to ask");
    let id = destruction(&alone).await;
    alone.sequence().await;
    assert_eq!(alone.broker.log.anchor().await.expect("there is none"), 0);
    is_not_anchored(&alone.claim(id).await, "no anchor is configured");
    assert_eq!(world.sts.calls(), 0);
    let other = alone.staging_lease().await;
    assert_eq!(alone.claim(other).await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_command_line_says_that_it_waits_for_an_anchor() {
    let world = World::new().await;
    world.broker.anchor().await;
    let id = destruction(&world.broker).await.to_string();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let router = world.broker.router.clone();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let environment = [("BROKER_URL", url), ("BROKER_TOKEN", world.broker.token.clone())];
    let environment: BTreeMap<_, _> = environment.map(|(it, value)| (it.to_owned(), value)).into();
    let home = tempfile::tempdir().expect("a directory");
    let mut command = program(binary("broker"), &environment);
    command.args(["exec", "--lease", &id, "--", "true"]).env("HOME", home.path());
    let output = command.output().await.expect("it runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.contains("nothing has to be signed again"), "{said}");
    world.broker.anchor().await;
    let output = command.output().await.expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serving.abort();
}

// ------------------------------------------------------------------------------------- anchors that know otherwise

/// That nothing is served, whoever asks.
async fn serves_nothing(broker: &TestBroker, problem: &str) {
    let document = serde_json::to_value(api_document()).expect("JSON");
    let id = uuid::Uuid::nil().to_string();
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        if !path.starts_with("/v1/") && path != "/readyz" {
            continue;
        }
        for method in methods.as_object().expect("methods").keys() {
            asked += 1;
            let method: Method = method.to_uppercase().parse().expect("a method");
            let body = (method == Method::POST).then(|| json!({ "scope": "staging-rw" }));
            for token in [None, Some(broker.token.as_str())] {
                let path = path.replace("{id}", &id);
                let answer = broker.send(method.clone(), &path, token, &[], body.clone()).await;
                let told = (answer.status, answer.problem());
                assert_eq!(told, (StatusCode::SERVICE_UNAVAILABLE, problem), "{method} {path}");
            }
        }
    }
    assert!(asked >= 20, "{asked} routes");
    assert_eq!(broker.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_anchor_that_is_ahead_stops_servers_that_run_and_those_that_start() {
    let world = World::new().await;
    world.broker.anchor().await;
    put(&folder(&world), 1_000, &forged(&world.key(), ORIGIN, 1_000));
    let starts = world.broker.replica(world.sts.options()).await;
    let error = starts.broker.log.compare().await.expect_err("it is ahead");
    assert!(matches!(&error, LogError::Behind(it) if it.contains("1000 entries")), "{error}");
    assert!(error.to_string().contains("brokerd recover"), "{error}");
    let error = world.broker.broker.log.anchor().await.expect_err("it is ahead");
    assert!(matches!(error, LogError::Behind(_)), "{error}");
    for broker in [&starts, &world.broker] {
        serves_nothing(broker, "/problems/log-behind").await;
        assert_eq!(broker.broker.log.tick().await.expect("it does nothing"), 0);
        assert_eq!(broker.broker.log.anchor().await.expect("it does nothing"), 0);
    }
    // Nor is it handed over to another key, whatever process does that.
    let later = world.broker.replica(world.sts.options()).await;
    let key = LogKey::from_bytes(&[9; 32]);
    let rotated = later.broker.log.rotate(&key, world.broker.clock.now());
    assert!(matches!(rotated.await, Err(LogError::Behind(_))));
}

#[tokio::test]
async fn an_anchor_with_another_story_of_the_same_entries_stops_a_server() {
    let world = World::new().await;
    world.broker.sequence().await;
    world.event().await;
    world.broker.sequence().await;
    let size = u64::try_from(world.number("select size from log_state").await).expect("a size");
    put(&folder(&world), size - 1, &forged(&world.key(), ORIGIN, size - 1));
    let starts = world.broker.replica(world.sts.options()).await;
    let error = starts.broker.log.compare().await.expect_err("it is another");
    assert!(matches!(&error, LogError::Behind(it) if it.contains("another story")), "{error}");
    let error = world.broker.broker.log.anchor().await.expect_err("it is another");
    assert!(matches!(error, LogError::Behind(_)), "{error}");
    serves_nothing(&world.broker, "/problems/log-behind").await;
}

#[tokio::test]
async fn an_anchor_that_keeps_something_else_does_not_count_as_one_that_answers() {
    let stranger = LogKey::from_bytes(&[7; 32]);
    for what in ["rubbish", "another key", "another log", "another size", "nothing at all"] {
        let world = World::new().await;
        world.broker.anchor().await;
        let dir = folder(&world);
        let note = match what {
            "rubbish" => "rubbish".to_owned(),
            "another key" => forged(&stranger, ORIGIN, 1_000),
            "another log" => forged(&world.key(), "example.com/log", 1_000),
            "another size" => forged(&world.key(), ORIGIN, 999),
            _ => String::new(),
        };
        let good = kept(&dir);
        put(&dir, 1_000, &note);
        let starts = world.broker.replica(world.sts.options()).await;
        let error = starts.broker.log.compare().await.expect_err("nobody answers");
        assert!(matches!(&error, LogError::NoAnchor(it) if it.starts_with("folder: ")), "{error}");
        // As a server does that tries again.
        starts.broker.log.hold_back(error.to_string());
        serves_nothing(&starts, "/problems/database-unavailable").await;
        // One that runs goes on, without what waits for anchors.
        assert_eq!(world.broker.broker.log.anchor().await.expect("no reason to stop"), 0, "{what}");
        assert!(world.broker.broker.log.gate().is_ok());
        // Another one that keeps nothing yet says nothing of what the first one keeps; one that does is enough.
        fs::create_dir(world.broker.config_dir.path().join("second")).expect("a folder");
        let both = "anchors = [{ kind = \"file\", name = \"folder\", path = \"anchor\" }, { kind = \"file\", name = \"second\", path = \"second\" }]";
        let both = with_anchors(&world.broker, both, world.sts.options()).await;
        let error = both.broker.log.compare().await.expect_err("one has nothing to say");
        assert!(matches!(error, LogError::NoAnchor(_)), "{error}");
        let second = world.broker.config_dir.path().join("second");
        for (_, it) in &good {
            put(&second, it.checkpoint.size, it.note());
        }
        both.broker.log.compare().await.expect("one answers");
        assert_eq!(both.broker.log.anchor().await.expect("one takes it"), 1);

        fs::remove_file(dir.join(format!("000001/{:020}", 1_000))).expect("removed");
        starts.broker.log.compare().await.expect("it answers again");
        assert_eq!(starts.get("/readyz").await.status, StatusCode::OK, "{what}");
    }
}

#[tokio::test]
async fn a_server_that_is_behind_its_anchor_does_not_start() {
    let (_database, site) = site("", "").await;
    let node = site.first().await;
    node.kill().await;
    let key = LogKey::load(&site.config_dir.join("log.pem")).expect("a key");
    put(&site.config_dir.join("anchor"), 1_000_000, &forged(&key, ORIGIN, 1_000_000));
    let log = site.config_dir.join("behind.log");
    let config = site.config_dir.display().to_string();
    let mut server = Server::start(&["serve", "--config", &config], &site.environment, &log);
    let ended = tokio::time::timeout(std::time::Duration::from_mins(1), server.child.wait()).await;
    let ended = ended.expect("it ends by itself").expect("it ends");
    assert_eq!(ended.code(), Some(1));
    assert!(server.log().contains("brokerd recover"), "{}", server.log());
}

/// As a mount that is missing looks.
#[tokio::test]
async fn an_anchor_that_had_checkpoints_and_is_empty_is_none_that_answers() {
    let world = World::new().await;
    world.broker.anchor().await;
    let (dir, away) = (folder(&world), world.broker.config_dir.path().join("away"));
    fs::rename(&dir, &away).expect("moved");
    fs::create_dir(&dir).expect("made");
    let starts = world.broker.replica(world.sts.options()).await;
    let error = starts.broker.log.compare().await.expect_err("nothing to compare with");
    assert!(matches!(&error, LogError::NoAnchor(why) if why.contains("has it no more")), "{error}");
    world.event().await;
    world.broker.sequence().await;
    assert_eq!(world.broker.broker.log.anchor().await.expect("it goes on"), 0);
    assert_eq!(fs::read_dir(&dir).expect("it is there").count(), 0, "nothing begins there anew");
    fs::remove_dir(&dir).expect("removed");
    fs::rename(&away, &dir).expect("moved");
    starts.broker.log.compare().await.expect("it is back");
    assert_eq!(world.broker.broker.log.anchor().await.expect("it goes on"), 1);
}

/// The epoch says that the log was taken up again after a loss; only who holds the key begins one.
#[tokio::test]
async fn an_epoch_that_nobody_signed_is_not_begun() {
    let world = World::new().await;
    world.broker.anchor().await;
    let origin = format!("{ORIGIN}/2");
    let key = world.key().verifier_key(&origin);
    world
        .attack(&format!(
            "truncate log_anchored, log_checkpoint, log_leaf;
             update log_state set origin = '{origin}', epoch = 2, key = '{key}', size = 0, frontier = ''"
        ))
        .await;
    for broker in [&world.broker, &world.broker.replica(world.sts.options()).await] {
        world.event().await;
        let error = broker.broker.log.tick().await.expect_err("nobody signed it");
        assert!(matches!(error, LogError::Changed), "{error}");
        assert_eq!(world.number("select count(*) from log_checkpoint").await, 0);
    }
}

// -------------------------------------------------------------------------------------------------- S3 Object Lock

/// A bucket with Object Lock, and who may do what there.
struct Locked {
    s3: aws_sdk_s3::Client,
    name: String,
    anchors: String,
}

fn s3(key_id: &str, secret: &str) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .endpoint_url(&stack::shared().endpoint)
        .force_path_style(true)
        .credentials_provider(aws_sdk_s3::config::Credentials::new(
            key_id, secret, None, None, "test",
        ));
    aws_sdk_s3::Client::from_conf(config.build())
}

impl Locked {
    /// Makes it; the profile of who writes there goes into the broker's credentials.
    async fn new(world: &World) -> Self {
        let shared = stack::shared();
        let (key_id, secret) = &shared.admin_key;
        let (s3, iam) = (s3(key_id, secret), stack::iam(&shared.endpoint, key_id, secret));
        let name = format!("anchor-{}", uuid::Uuid::new_v4().simple());
        let made = s3.create_bucket().bucket(&name).object_lock_enabled_for_bucket(true);
        made.send().await.expect("the administrator may");
        iam.create_user().user_name(&name).send().await.expect("the administrator may");
        let policy = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": "s3:ListBucketVersions", "Resource": format!("arn:aws:s3:::{name}") },
            { "Effect": "Allow", "Action": ["s3:PutObject", "s3:PutObjectRetention", "s3:GetObject", "s3:GetObjectVersion"],
              "Resource": format!("arn:aws:s3:::{name}/checkpoints/*") } ] });
        let put = iam.put_user_policy().user_name(&name).policy_name("anchor");
        put.policy_document(policy.to_string()).send().await.expect("the administrator may");
        let key = iam.create_access_key().user_name(&name).send().await;
        let key = key.expect("the administrator may").access_key.expect("a key");
        let profile = format!(
            "{}[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            shared.profiles, key.access_key_id, key.secret_access_key
        );
        write_secret(&world.broker.config_dir.path().join("aws.credentials"), &profile);
        let anchors = format!(
            "anchors = [{{ kind = \"s3\", name = \"bucket\", bucket = \"{name}\", region = \"us-east-1\", prefix = \"checkpoints/\",
                           principal = {{ arn = \"arn:aws:iam::000000000000:user/{name}\", profile = \"{name}\" }} }}]"
        )
        .replace('\n', "");
        Self { s3, name, anchors }
    }

    /// Keys with their versions that are no markers, in the order of S3.
    async fn versions(&self) -> Vec<(String, String)> {
        let listed =
            self.s3.list_object_versions().bucket(&self.name).send().await.expect("listed");
        let versions = listed.versions().iter();
        versions
            .map(|it| (it.key().expect("a key").into(), it.version_id().expect("an id").into()))
            .collect()
    }

    async fn put(&self, key: &str, body: &str) {
        let put = self.s3.put_object().bucket(&self.name).key(key);
        put.body(ByteStream::from(body.as_bytes().to_vec())).send().await.expect("put");
    }
}

#[tokio::test]
async fn a_bucket_with_object_lock_keeps_what_an_administrator_of_it_would_remove() {
    let world = World::new().await;
    let bucket = Locked::new(&world).await;
    let broker = with_anchors(&world.broker, &bucket.anchors, stack::shared().aws()).await;
    broker.broker.log.compare().await.expect("it is empty");
    for _ in 0..3 {
        world.event().await;
        broker.anchor().await;
    }
    let kept = bucket.versions().await;
    let sizes = "select array_agg(format('checkpoints/000001/%s', lpad(size::text, 20, '0')) order by size) from log_anchored where anchor = 'bucket'";
    let sizes: Vec<String> =
        sqlx::query_scalar(sizes).fetch_one(&world.superuser).await.expect(sizes);
    assert_eq!(kept.iter().map(|it| it.0.clone()).collect::<Vec<_>>(), sizes);
    let (newest, version) = kept.last().expect("three").clone();

    // What is locked is there until its time, for an administrator too, and whatever is asked to be passed by.
    for bypass in [false, true] {
        let delete =
            bucket.s3.delete_object().bucket(&bucket.name).key(&newest).version_id(&version);
        let error =
            delete.bypass_governance_retention(bypass).send().await.expect_err("it is locked");
        assert_eq!(error.code(), Some("AccessDenied"), "{error:?}");
    }
    let size = u64::try_from(world.number("select size from log_state").await).expect("small");
    let other = bucket.s3.put_object().bucket(&bucket.name).key(&newest).if_none_match("*");
    other.send().await.expect_err("there is one");

    // It can be hidden, and another put over it: what was put there first counts.
    bucket.s3.delete_object().bucket(&bucket.name).key(&newest).send().await.expect("hidden");
    let starts = with_anchors(&world.broker, &bucket.anchors, stack::shared().aws()).await;
    starts.broker.log.compare().await.expect("it is as it was");
    bucket.put(&newest, &forged(&world.key(), ORIGIN, size)).await;
    let starts = with_anchors(&world.broker, &bucket.anchors, stack::shared().aws()).await;
    starts.broker.log.compare().await.expect("it is as it was");
    bucket.s3.delete_object().bucket(&bucket.name).key(&newest).send().await.expect("hidden");
    let before = &kept[0].0;
    let first: u64 = before.rsplit('/').next().and_then(|it| it.parse().ok()).expect("a size");
    world.roll_back(first).await;
    let starts = with_anchors(&world.broker, &bucket.anchors, stack::shared().aws()).await;
    let error = starts.broker.log.compare().await.expect_err("it is behind what is hidden");
    assert!(
        matches!(&error, LogError::Behind(it) if it.contains(&format!("{size} entries"))),
        "{error}"
    );
}

#[tokio::test]
async fn a_bucket_that_is_away_or_refuses_holds_up_what_destroys_until_it_is_back() {
    let world = World::new().await;
    let bucket = Locked::new(&world).await;
    let broker = with_anchors(&world.broker, &bucket.anchors, stack::shared().aws()).await;
    let id = destruction(&broker).await;
    broker.sequence().await;

    let shared = stack::shared();
    let (key_id, secret) = &shared.admin_key;
    let iam = stack::iam(&shared.endpoint, key_id, secret);
    let deny = json!({ "Version": "2012-10-17", "Statement": { "Effect": "Deny", "Action": "s3:*", "Resource": "*" } });
    let put = iam.put_user_policy().user_name(&bucket.name).policy_name("deny");
    put.policy_document(deny.to_string()).send().await.expect("the administrator may");
    assert_eq!(broker.broker.log.anchor().await.expect("no reason to stop"), 0);
    is_not_anchored(&broker.claim(id).await, "bucket: S3 refused: AccessDenied");
    // Somewhere else nobody answers at all.
    let nobody =
        broker::aws::AwsOptions { endpoint: Some("http://127.0.0.1:1".into()), credentials: None };
    let away = with_anchors(&world.broker, &bucket.anchors, nobody).await;
    let error = away.broker.log.compare().await.expect_err("nobody answers");
    assert!(
        matches!(&error, LogError::NoAnchor(it) if it.contains("S3 was not reached")),
        "{error}"
    );
    let other = broker.staging_lease().await;
    assert_eq!(broker.claim(other).await.status, StatusCode::OK);

    let back = iam.delete_user_policy().user_name(&bucket.name).policy_name("deny");
    back.send().await.expect("the administrator may");
    broker.anchor().await;
    let claimed = broker.claim(id).await;
    assert_eq!(claimed.status, StatusCode::OK, "{}", claimed.body);
    assert_eq!(bucket.versions().await.len(), 1);
}

#[tokio::test]
async fn rubbish_in_a_bucket_is_no_answer() {
    let world = World::new().await;
    let bucket = Locked::new(&world).await;
    bucket.put("checkpoints/000001/00000000000000001000", "rubbish").await;
    let broker = with_anchors(&world.broker, &bucket.anchors, stack::shared().aws()).await;
    let error = broker.broker.log.compare().await.expect_err("it is no checkpoint");
    assert!(
        matches!(&error, LogError::NoAnchor(it) if it.contains("is not a checkpoint")),
        "{error}"
    );
}

// --------------------------------------------------------------------------------------------------- another key

#[tokio::test]
async fn a_log_goes_on_under_another_key_and_who_has_the_old_one_signs_no_more() {
    let world = World::new().await;
    world.broker.anchor().await;
    let before = world.check(Vec::new()).await;
    // As `openssl genpkey` writes it.
    let pem = world.broker.config_dir.path().join("log.pem");
    let (old, new_pem) =
        (fs::read_to_string(&pem).expect("a key"), broker::identity::Tokens::generate_key());
    write_secret(&pem, secrecy::ExposeSecret::expose_secret(&new_pem));
    let new = LogKey::load(&pem).expect("a key");
    write_secret(&pem, &old);
    let head =
        world.broker.broker.log.rotate(&new, world.broker.clock.now()).await.expect("rotated");
    assert_eq!(head.key, new.verifier_key(ORIGIN));
    world.event().await;
    let error = world.broker.broker.log.tick().await.expect_err("its key is of before");
    assert!(matches!(error, LogError::OtherKey { .. }), "{error}");
    let error = world.broker.broker.log.anchor().await.expect_err("its key is of before");
    assert!(matches!(error, LogError::OtherKey { .. }), "{error}");

    let first = Some(world.key().verifier_key(ORIGIN));
    write_secret(&pem, secrecy::ExposeSecret::expose_secret(&new_pem));
    let after = world.broker.replica(world.sts.options()).await;
    after.broker.log.compare().await.expect("the anchor's newest is in the database too");
    after.anchor().await;
    let kept = kept(&folder(&world)).into_iter().map(|it| it.1).collect();
    let file = world.export().await;
    let report = check(&file, Options { key: first, anchors: kept, ..Options::default() });
    assert_eq!((report.verdict(), report.waiting), (Verdict::Good, 0), "{}", report.text());
    assert!(before.entries < report.entries);
    // The new one alone does not vouch for the old: it has to be known what the log began with.
    let key = Some(new.verifier_key(ORIGIN));
    let report = check(&file, Options { key, ..Options::default() });
    assert_eq!(report.verdict(), Verdict::NotValid);
}

#[tokio::test]
async fn a_key_that_the_old_one_did_not_hand_over_to_does_not_count() {
    let world = World::new().await;
    world.broker.anchor().await;
    let (old, thief) = (world.key().verifier_key(ORIGIN), LogKey::from_bytes(&[7; 32]));
    // Whoever has the database tells that it was handed over, and signs from there on.
    let told = json!({ "old": old, "new": thief.verifier_key(ORIGIN) });
    let scribe = broker::audit::Scribe { source: "https://broker.test".into() };
    let body = scribe.body(
        broker::audit::EventType::LogRotated,
        broker::audit::Actor::Operator,
        broker::audit::Subject::default(),
        told,
        world.broker.clock.now(),
    );
    sqlx::query("select append_event($1)")
        .bind(body)
        .execute(&world.superuser)
        .await
        .expect("told");
    world.event().await;
    world.broker.sequence().await;
    world.resign_from_rotation(&thief).await;
    let key = Some(old);
    let report = check(&world.export().await, Options { key, ..Options::default() });
    assert_eq!(report.verdict(), Verdict::NotValid, "{}", report.text());
    let codes: Vec<_> = report.findings.iter().map(|it| it.fault.code()).collect();
    assert!(codes.contains(&"checkpoint"), "{}", report.text());
}

// ------------------------------------------------------------------------------------------------ months put away

/// Events of months long ago, before the log gives them a place: alternating, so that the months' indexes overlap at the edge.
async fn old_months(world: &World) {
    world
        .sql(
            "select make_event_partition('2026-02-01'), make_event_partition('2026-03-01'), make_event_partition('2026-04-01');
             insert into event (recorded_at, id, type, occurred_at, actor, body)
             select at, id, 'tests.event', at, 'broker',
                    convert_to(jsonb_build_object('id', id, 'type', 'tests.event', 'time', to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                                                  'actor', 'broker', 'data', '{}'::jsonb)::text, 'UTF8')
               from (select n, '2026-02-28 23:59:57Z'::timestamptz + (n - case when n = 3 then 2 when n = 4 then -1 else 0 end) * interval '1 second' as at, gen_random_uuid() as id
                       from generate_series(0, 9) n order by n) e;
             insert into event (recorded_at, id, type, occurred_at, actor, body)
             select at, id, 'tests.event', at, 'broker',
                    convert_to(jsonb_build_object('id', id, 'type', 'tests.event', 'time', to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                                                  'actor', 'broker', 'data', '{}'::jsonb)::text, 'UTF8')
               from (select '2026-04-01 12:00:00Z'::timestamptz as at, gen_random_uuid() as id from generate_series(0, 2)) e",
        )
        .await
        .expect("a superuser may");
    world.broker.sequence().await;
}

pub(crate) async fn retire(
    world: &World,
    month: time::Date,
    file: &str,
    drop: bool,
) -> Result<String, String> {
    let database_url = world.broker.database.retention_url.clone();
    let file = world.broker.config_dir.path().join(file);
    let command = Command::Retire { database_url, month, file, drop };
    let mut said = String::new();
    let broker = &world.broker.broker;
    let run = auditing::run(&command, &broker.config, &world.broker.clock, |it| said += it);
    Box::pin(run).await.map(|_| said).map_err(|it| format!("{it:#}"))
}

fn refused(outcome: Result<String, String>, why: &str) {
    let error = outcome.expect_err(why);
    assert!(error.contains(why), "{error}");
}

#[tokio::test]
async fn a_month_is_dropped_once_it_is_exported_and_that_is_anchored() {
    let world = World::new().await;
    old_months(&world).await;
    let (february, march) = (date!(2026 - 02 - 01), date!(2026 - 03 - 01));
    refused(retire(&world, february, "none", true).await, "none");
    let said = retire(&world, february, "february", false).await.expect("exported");
    assert!(said.contains("--drop"), "{said}");
    refused(retire(&world, february, "february", false).await, "february");
    refused(retire(&world, february, "february", true).await, "not under an anchored checkpoint");
    world.broker.sequence().await;
    refused(retire(&world, february, "february", true).await, "not under an anchored checkpoint");
    world.broker.anchor().await;

    // Another file, and a month that is not as it was.
    fs::write(world.broker.config_dir.path().join("other"), "x").expect("written");
    refused(retire(&world, february, "other", true).await, "is not the file");
    refused(retire(&world, march, "february", true).await, "is not the file");
    let change = "alter table event_202602 disable trigger all; create table before as select * from event_202602 order by seq limit 1;
                  update event_202602 set body = convert_to(jsonb_set(doc, '{data,forged}', 'true')::text, 'UTF8') where seq = (select seq from before)";
    let back = "update event_202602 e set body = b.body from before b where b.seq = e.seq; drop table before; alter table event_202602 enable always trigger event_is_fixed, enable always trigger event_is_kept";
    world.sql(change).await.expect("a superuser may");
    refused(retire(&world, february, "february", true).await, "is not as it was exported");
    world.sql(back).await.expect("a superuser may");
    let add = "insert into event (recorded_at, seq, id, type, occurred_at, actor, body)
               select recorded_at, -1, id, type, occurred_at, actor, body from event_202602 limit 1";
    world.sql(add).await.expect("a superuser may");
    refused(retire(&world, february, "february", true).await, "is not as it was exported");
    world.sql("set session_replication_role = replica; alter table event_202602 disable trigger all; delete from event_202602 where seq = -1; reset session_replication_role").await.expect("a superuser may");

    // What was exported is still here: that one is gone is no retirement.
    let one = "create table before as select * from event_202602 order by seq desc limit 1; delete from event_202602 where seq = (select seq from before)";
    world.sql(one).await.expect("a superuser may");
    let report = world.check(Vec::new()).await;
    assert_eq!(codes(&report), ["deleted"], "{}", report.text());
    let back = "insert into event (seq, recorded_at, xid, id, type, occurred_at, actor, body) select seq, recorded_at, xid, id, type, occurred_at, actor, body from before; drop table before";
    world.sql(back).await.expect("a superuser may");

    retire(&world, february, "february", true).await.expect("dropped");
    // At once, when nobody has signed that it was dropped, and after the next tick: nobody has seen its events, but for whoever
    // has the file.
    for _ in 0..2 {
        let report = world.check(Vec::new()).await;
        assert_eq!(codes(&report), ["put-away"], "{}", report.text());
        assert_eq!((report.verdict(), report.pruned), (Verdict::Incomplete, 4));
        let report = check_with(&world, &["february"]).await;
        assert_eq!(report.verdict(), Verdict::Good, "{}", report.text());
        assert_eq!((report.pruned, report.put_away), (0, 4));
        world.broker.anchor().await;
    }
    refused(retire(&world, february, "february", true).await, "was not exported");
    // The month after it, whose first entries are between its last ones.
    retire(&world, march, "march", false).await.expect("exported");
    world.broker.anchor().await;
    retire(&world, march, "march", true).await.expect("dropped");
    world.broker.anchor().await;
    let anchors = kept(&folder(&world)).into_iter().map(|it| it.1).collect();
    let report = world.check(anchors).await;
    assert_eq!(codes(&report), ["put-away"], "{}", report.text());
    assert_eq!((report.verdict(), report.pruned), (Verdict::Incomplete, 10));
    let report = check_with(&world, &["february"]).await;
    assert_eq!((codes(&report), report.put_away), (vec!["put-away"], 4), "{}", report.text());
    for files in [["february", "march"], ["march", "february"]] {
        let report = check_with(&world, &files).await;
        assert_eq!((report.verdict(), report.put_away), (Verdict::Good, 10), "{}", report.text());
    }
    // Later on the month in which february's end is told is put away too: march's tells of it again.
    let mut gone = Vec::new();
    let mut later = String::new();
    for line in world.export().await.lines() {
        let tells = line.contains("\"log.partition-") && line.contains("event_202602");
        if tells && !line.contains("event_202603") {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let (index, leaf_hash) = (&line["event"]["index"], &line["event"]["leaf_hash"]);
            later += &json!({ "pruned": { "index": index, "leaf_hash": leaf_hash } }).to_string();
            gone.push(index.as_u64().expect("a number"));
        } else {
            later += line;
        }
        later.push('\n');
    }
    assert_eq!(gone, [gone[0], gone[0] + 1], "one behind the other");
    let report = check(&later, Options::default());
    assert_eq!(codes(&report), ["deleted"], "{}", report.text());
    assert_eq!(report.findings[0].at, gone[0]);

    // A file that says something else than what was logged.
    let file = world.broker.config_dir.path().join("march");
    let march = fs::read_to_string(&file).expect("it is there");
    fs::write(&file, march.replacen("\"data\": {}", "\"data\": {\"n\": 1}", 1)).expect("written");
    let report = check_with(&world, &["february", "march"]).await;
    assert_eq!(codes(&report), ["body-changed"], "{}", report.text());
    fs::write(&file, march.lines().skip(1).fold(String::new(), |all, it| all + it + "\n"))
        .expect("written");
    let report = check_with(&world, &["february", "march"]).await;
    assert_eq!((codes(&report), report.pruned), (vec!["put-away"], 1), "{}", report.text());

    // One that is dropped without all that.
    world.sql("drop table event_202604").await.expect("a superuser may");
    let report = world.check(Vec::new()).await;
    assert_eq!(codes(&report), ["deleted"], "{}", report.text());
}

/// As `verify --with` does.
async fn check_with(world: &World, files: &[&str]) -> Report {
    let open = |name: &&str| -> MonthFile {
        let file = fs::File::open(world.broker.config_dir.path().join(name)).expect("a file");
        Box::new(std::io::BufReader::new(file))
    };
    let months = files.iter().map(open).collect();
    let file = world.export().await;
    verify_with(file.as_bytes(), months, Options::default(), |_| ()).expect("read")
}

fn codes(report: &Report) -> Vec<&'static str> {
    report.findings.iter().map(|it| it.fault.code()).collect()
}

#[tokio::test]
async fn a_month_is_not_dropped_behind_a_long_query_where_every_request_would_wait() {
    let world = World::new().await;
    old_months(&world).await;
    let february = date!(2026 - 02 - 01);
    retire(&world, february, "february", false).await.expect("exported");
    world.broker.anchor().await;
    let mut reader = world.superuser.begin().await.expect("a transaction");
    let read = sqlx::query("select from event limit 1").execute(&mut *reader).await;
    assert_eq!(read.expect("it reads").rows_affected(), 1);
    refused(retire(&world, february, "february", true).await, "lock timeout");
    world.event().await;
    reader.rollback().await.expect("it ends");
    retire(&world, february, "february", true).await.expect("dropped");
}

#[tokio::test]
async fn this_month_and_the_last_one_are_kept() {
    let world = World::new().await;
    world.broker.sequence().await;
    let now = world.broker.clock.now().date();
    let this = now.replace_day(1).expect("a month");
    let last = this.previous_day().expect("a day").replace_day(1).expect("a month");
    world.sql(format!("select make_event_partition('{last}')")).await.expect("made");
    for (month, file) in [(this, "this"), (last, "last")] {
        if month == this {
            retire(&world, month, file, false).await.expect("exported");
            world.broker.anchor().await;
            refused(retire(&world, month, file, true).await, "are kept");
        }
        let dropped = sqlx::query("select log_drop_month($1, now(), '{}')").bind(month);
        let error = dropped.execute(&world.superuser).await.expect_err("kept").to_string();
        assert!(error.contains("are kept"), "{error}");
    }
    world.is_whole().await;
}

#[tokio::test]
async fn the_file_of_a_month_is_lines_of_the_export() {
    let world = World::new().await;
    old_months(&world).await;
    retire(&world, date!(2026 - 03 - 01), "march", false).await.expect("exported");
    let lines = fs::read_to_string(world.broker.config_dir.path().join("march")).expect("a file");
    let whole = world.export().await;
    assert_eq!(lines.lines().count(), 6);
    for line in lines.lines() {
        assert!(whole.lines().any(|it| it == line), "{line}");
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(line["event"]["recorded_at"].as_str().expect("a time").starts_with("2026-03-"));
    }
}

/// That with that login, it is refused for every event but one of that type.
async fn takes_only(url: &str, call: &str, own: EventType) {
    let mut login = sqlx::PgConnection::connect(url).await.expect("it answers");
    let scribe = Scribe { source: "https://broker.test".into() };
    for kind in EventType::ALL.iter().filter(|it| it.as_str() != own.as_str()) {
        let now = broker::clock::Clock::default().now();
        let body = scribe.body(*kind, Actor::Operator, Subject::default(), json!({}), now);
        let called = sqlx::query(AssertSqlSafe(call.to_owned())).bind(body);
        let error = called.execute(&mut login).await.expect_err(kind.as_str());
        let error = error.into_database_error().expect("an answer of the database");
        assert_eq!(error.code().as_deref(), Some("22023"), "{call}: {kind:?}: {error}");
        assert!(error.message().contains(own.as_str()), "{error}");
    }
}

async fn calls(url: &str, call: &str, own: EventType, detail: Value) {
    let mut login = sqlx::PgConnection::connect(url).await.expect("it answers");
    let scribe = Scribe { source: "https://broker.test".into() };
    let now = broker::clock::Clock::default().now();
    let body = scribe.body(own, Actor::Operator, Subject::default(), detail, now);
    let called = sqlx::query(AssertSqlSafe(call.to_owned())).bind(body);
    called.execute(&mut login).await.expect(call);
}

/// Their logins have no other way to write an event that says so.
#[tokio::test]
async fn what_begins_the_log_or_puts_a_month_away_tells_that_and_nothing_else() {
    let world = World::new().await;
    let key = world.key().verifier_key(ORIGIN);
    let database = &world.broker.database;
    let begin = format!("select log_begin('{ORIGIN}', '{key}', $1)");
    takes_only(&database.sequencer_url, &begin, EventType::LogStarted).await;
    assert_eq!(world.number("select count(*) from log_state").await, 0);
    let detail = json!({ "origin": ORIGIN, "key": key });
    calls(&database.sequencer_url, &begin, EventType::LogStarted, detail).await;
    old_months(&world).await;

    let own = EventType::LogPartitionExported;
    let tell = "select log_tell_exported('2026-02-01', 4, 3, 8, sha256(''), now(), $1)";
    takes_only(&database.retention_url, tell, own).await;
    assert_eq!(world.number("select count(*) from log_partition").await, 0);
    retire(&world, date!(2026 - 02 - 01), "february", false).await.expect("exported");
    world.broker.anchor().await;

    let own = EventType::LogPartitionDropped;
    let drop = "select log_drop_month('2026-02-01', now(), $1)";
    takes_only(&database.retention_url, drop, own).await;
    assert_eq!(world.number("select count(*) from event_202602").await, 4);
    let dropped = "select count(dropped_at) from log_partition";
    assert_eq!(world.number(dropped).await, 0);
    world.is_whole().await;
    calls(&database.retention_url, drop, own, json!({ "partition": "event_202602" })).await;
    assert_eq!(world.number(dropped).await, 1);
    world.broker.anchor().await;
    let report = world.check(Vec::new()).await;
    assert_eq!((codes(&report), report.pruned), (vec!["put-away"], 4), "{}", report.text());
}

#[tokio::test]
async fn the_servers_host_says_that_no_anchor_answers_and_that_another_key_signs() {
    let world = World::new().await;
    world.broker.anchor().await;
    let dir = world.broker.config_dir.path();
    let config = dir.display().to_string();
    let url = world.broker.database.ops_url.clone();
    let verify = async || {
        let mut command = program(binary("brokerd"), &BTreeMap::new());
        command.args([
            "audit",
            "verify",
            "-o",
            "json",
            "--config",
            &config,
            "--database-url",
            &url,
        ]);
        let output = command.output().await.expect("it runs");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        let codes: Vec<_> = findings.iter().map(|it| text_of(&it["code"])).collect();
        (output.status.code(), codes, text(&output.stderr))
    };
    let (code, found, said) = verify().await;
    assert_eq!((code, found), (Some(0), vec![]), "{said}");

    let (folder, away) = (folder(&world), dir.join("away"));
    fs::rename(&folder, &away).expect("moved");
    let (code, found, said) = verify().await;
    // As long as it may not have taken one yet.
    assert_eq!((code, found), (Some(0), vec![]), "{said}");
    assert!(said.contains("anchor folder did not answer"), "{said}");
    world.attack("update log_checkpoint set signed_at = signed_at - interval '1 day'").await;
    let (code, found, said) = verify().await;
    assert_eq!((code, found), (Some(3), vec!["no-anchor".to_owned()]), "{said}");
    fs::create_dir(&folder).expect("made");
    let (code, found, said) = verify().await;
    assert_eq!((code, found), (Some(3), vec!["no-anchor".to_owned()]), "{said}");
    assert!(said.contains("and is empty"), "{said}");
    fs::remove_dir(&folder).expect("removed");
    fs::rename(&away, &folder).expect("moved");
    assert_eq!(verify().await.0, Some(0));

    let other = broker::identity::Tokens::generate_key();
    write_secret(&dir.join("log.pem"), secrecy::ExposeSecret::expose_secret(&other));
    let (code, found, said) = verify().await;
    assert_eq!((code, found), (Some(4), vec!["not-our-key".to_owned()]), "{said}");
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The month in which a key was revoked is put away, and somebody has made the database forget that it was: then the key signs.
#[tokio::test]
async fn that_a_key_was_revoked_in_a_month_that_was_put_away_is_not_forgotten() {
    let world = World::new().await;
    let key = world.broker.bob.fingerprint();
    let revoked = format!(
        "select make_event_partition('2026-03-01');
         insert into event (recorded_at, id, type, occurred_at, actor, body)
         select at, id, 'key.revoked', at, 'operator',
                convert_to(jsonb_build_object('id', id, 'type', 'key.revoked', 'time', to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                                              'actor', 'operator', 'data', '{{\"detail\":{{\"act\":{{\"fingerprint\":\"{key}\"}}}}}}'::jsonb)::text, 'UTF8')
           from (select '2026-03-10 12:00:00Z'::timestamptz as at, gen_random_uuid() as id) e"
    );
    world.sql(revoked).await.expect("a superuser may");
    world.broker.sequence().await;
    let id = world.broker.pending_lease().await;
    assert_eq!(world.broker.approve(id, &world.broker.bob).await.status, StatusCode::OK);
    assert_eq!(world.broker.claim(id).await.status, StatusCode::OK);
    world.broker.anchor().await;
    assert_eq!(codes(&world.check(Vec::new()).await), ["key"]);

    let march = date!(2026 - 03 - 01);
    retire(&world, march, "march", false).await.expect("exported");
    world.broker.anchor().await;
    retire(&world, march, "march", true).await.expect("dropped");
    world.broker.anchor().await;
    let report = world.check(Vec::new()).await;
    assert_eq!((codes(&report), report.pruned), (vec!["put-away"], 1), "{}", report.text());
    assert_eq!(codes(&check_with(&world, &["march"]).await), ["key"]);
}
