//! `brokerd dev` for real: both ways through the product with its own command line and AWS's, on an account that
//! enforces IAM, and what becomes of it all when it is stopped, interrupted and killed.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::program::{Dev, aws_cli, binary, dev_dir, listens, program, text, until};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const STAGING: &str = "staging-app-data";
const PRODUCTION: &str = "prod-app-data";
const CONFIG_KEY: &str = "config/app.json";
const UNSET: &str = "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN; false\n";
/// What AWS's command line ends with when AWS said no: version 1, version 2.
const AWS_SAID_NO: [i32; 2] = [255, 254];
const SOON: Duration = Duration::from_secs(20);

/// What a program did.
#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let code = output.status.code().expect("it was not killed");
        Self { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

impl Ran {
    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// What was printed as JSON, as it is off a terminal.
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("no JSON: {self:#?}"))
    }

    /// That AWS, and not the broker, refused `action`.
    #[track_caller]
    fn refused_by_aws(self, action: &str) -> Self {
        assert!(AWS_SAID_NO.contains(&self.code), "{self:#?}");
        assert!(self.stderr.contains("(AccessDenied)"), "{self:#?}");
        assert!(
            self.stderr.contains(&format!("is not authorized to perform: {action} ")),
            "{self:#?}"
        );
        self
    }
}

async fn ran(mut command: Command) -> Ran {
    command.output().await.expect("it runs").into()
}

async fn broker(dev: &Dev, args: &[&str]) -> Ran {
    dev.broker(args).await.into()
}

/// `broker exec LEASE -- aws COMMAND`.
async fn aws(dev: &Dev, lease: &[&str], command: &[&str]) -> Ran {
    let aws = aws_cli();
    let args: Vec<_> =
        ["exec"].iter().chain(lease).chain(&["--", aws.as_str()]).chain(command).copied().collect();
    broker(dev, &args).await
}

async fn lease(dev: &Dev, args: &[&str]) -> String {
    id(&broker(dev, &[&["lease", "--new"], args].concat()).await.ended(0))
}

fn id(ran: &Ran) -> String {
    ran.json()["id"].as_str().expect("a lease").to_owned()
}

async fn show(dev: &Dev, lease: &str) -> Value {
    broker(dev, &["show", lease]).await.ended(0).json()
}

/// Asks for a write to production, whatever was asked for before: pending.
async fn ask_for_production(dev: &Dev) -> String {
    let arn = format!("arn:aws:s3:::{PRODUCTION}/{CONFIG_KEY}");
    let words = ["--reason", "new worker count", "--rollback", "put the old object back"];
    let what =
        ["lease", "--new", "--scope", "prod-rw", "--action", "s3:PutObject", "--resource", &arn];
    id(&broker(dev, &[&what[..], &words].concat()).await.ended(3))
}

async fn sign(dev: &Dev, lease: &str, person: &str) -> Ran {
    broker(dev, &["sign", lease, "--key", &dev.key(person)]).await
}

/// An AWS command with a long-lived key of the emulator's own, as only its operator has.
async fn with_emulator_key(dev: &Dev, who: &str, args: &[&str]) -> Ran {
    let keys =
        std::fs::read_to_string(dev.dir.join("emulator.keys.json")).expect("the emulator's keys");
    let keys: Value = serde_json::from_str(&keys).expect("JSON");
    let whose = if who == "admin" { &keys[who] } else { &keys["users"][who] };
    let key = |name: &str| whose[name].as_str().expect("a key").to_owned();
    with_key(dev, &key("access_key_id"), &key("secret_access_key"), args).await
}

async fn with_key(dev: &Dev, id: &str, secret: &str, args: &[&str]) -> Ran {
    let mut command = dev.command(aws_cli(), args);
    command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
    ran(command).await
}

async fn ops(dev: &Dev) -> PgConnection {
    PgConnection::connect(&dev.environment["BROKER_OPS_DATABASE_URL"])
        .await
        .expect("operations may look")
}

async fn ask<T>(database: &mut PgConnection, sql: &'static str, lease: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let id: uuid::Uuid = lease.parse().expect("an id");
    sqlx::query_scalar(sql).bind(id).fetch_one(database).await.expect(sql)
}

// --------------------------------------------------------------------------------------------- the agent's path

#[tokio::test]
async fn an_agent_works_with_its_leases_and_aws_itself_stops_it_where_they_end() {
    let (_root, dir) = dev_dir();
    let dev = Dev::start(&dir, &BTreeMap::new()).await;
    tokio::join!(
        it_works_in_staging(&dev),
        production_is_refused_by_iam_and_the_broker_knows_the_lease(&dev),
        a_narrowed_lease_can_do_less_than_a_full_one(&dev),
        a_shell_evaluates_a_lease(&dev),
        an_aws_profile_takes_its_credentials_from_a_lease(&dev),
        the_account_knows_no_back_door(&dev),
    );
    aws_sees_whose_session_it_is(&dev).await;
    assert!(dev.server.stop("TERM").await.success());
}

async fn it_works_in_staging(dev: &Dev) {
    let lease = ["--scope", "staging-rw", "--reason", "try the new report"];
    let file = dev.dir.join("report.csv");
    std::fs::write(&file, "day,orders\n").expect("our own file");
    let (file, there) = (file.display().to_string(), format!("s3://{STAGING}/reports/new.csv"));
    aws(dev, &lease, &["s3", "cp", &file, &there]).await.ended(0);
    let listed = aws(dev, &lease, &["s3", "ls", &there]).await.ended(0);
    assert!(listed.stdout.contains("new.csv"), "{listed:?}");
    let read = aws(dev, &lease, &["s3", "cp", &there, "-"]).await.ended(0);
    assert_eq!(read.stdout, "day,orders\n");
    aws(dev, &lease, &["s3", "rm", &there]).await.ended(0);
    assert_eq!(aws(dev, &lease, &["s3", "ls", &there]).await.ended(1).stdout, "");
}

async fn production_is_refused_by_iam_and_the_broker_knows_the_lease(dev: &Dev) {
    let delete = ["s3api", "delete-object", "--bucket", PRODUCTION, "--key", CONFIG_KEY];
    let refused =
        aws(dev, &["--scope", "staging-rw"], &delete).await.refused_by_aws("s3:DeleteObject");
    // AWS names the session, which begins with the lease's id.
    let (_, session) =
        refused.stderr.split_once("assumed-role/broker-staging/").expect("the session's ARN");
    let lease = show(dev, session.get(..36).expect("a lease's id")).await;
    assert_eq!((&lease["state"], &lease["scope"]), (&json!("issued"), &json!("staging-rw")));
    assert_eq!(lease["sessions"][0]["state"], "live");

    // The object lives, as who may read it sees; and who may read this may not read more.
    let there = format!("s3://{PRODUCTION}/{CONFIG_KEY}");
    let read = aws(dev, &["--scope", "prod-ro"], &["s3", "cp", &there, "-"]).await.ended(0);
    assert!(read.stdout.contains("\"workers\": 16"), "{read:?}");
    let get = [
        "s3api",
        "get-object",
        "--bucket",
        PRODUCTION,
        "--key",
        "reports/2026-01.csv",
        "/dev/null",
    ];
    aws(dev, &["--scope", "prod-ro"], &get).await.refused_by_aws("s3:GetObject");
}

async fn a_narrowed_lease_can_do_less_than_a_full_one(dev: &Dev) {
    let delete = |key| ["s3api", "delete-object", "--bucket", STAGING, "--key", key];
    let (one, two) = ("tmp/scratch-1.txt", "tmp/scratch-2.txt");
    let reading =
        ["--scope", "staging-rw", "--action", "s3:GetObject", "--action", "s3:ListBucket"];
    let read =
        aws(dev, &reading, &["s3", "cp", &format!("s3://{STAGING}/{two}"), "-"]).await.ended(0);
    assert!(read.stdout.contains("may go"), "{read:?}");
    aws(dev, &reading, &delete(two)).await.refused_by_aws("s3:DeleteObject");

    let arn = format!("arn:aws:s3:::{STAGING}/{one}");
    let only_one = ["--scope", "staging-rw", "--action", "s3:DeleteObject", "--resource", &arn];
    aws(dev, &only_one, &delete(two)).await.refused_by_aws("s3:DeleteObject");
    aws(dev, &only_one, &delete(one)).await.ended(0);

    let full = ["--scope", "staging-rw"];
    let ls = ["s3", "ls", &format!("s3://{STAGING}/tmp/")];
    let left = aws(dev, &full, &ls).await.ended(0).stdout;
    assert!(left.contains("scratch-2.txt") && !left.contains("scratch-1.txt"), "{left}");
    aws(dev, &full, &delete(two)).await.ended(0);
    assert_eq!(aws(dev, &full, &ls).await.ended(1).stdout, "");

    // More than the scope holds is not narrowed down to it: it is denied.
    let wider: [&[&str]; 2] = [
        &["lease", "--scope", "staging-rw", "--action", "s3:PutBucketPolicy"],
        &["lease", "--scope", "staging-rw", "--resource", "arn:aws:s3:::prod-app-data/*"],
    ];
    for args in wider {
        let denied = broker(dev, args).await.ended(4);
        assert_eq!(denied.json()["type"], "/problems/denied", "{denied:?}");
    }
}

async fn a_shell_evaluates_a_lease(dev: &Dev) {
    let script = r#"
        eval "$("$BROKER_CLI" lease --scope "$SCOPE" -o env)" && "$AWS_CLI" s3 ls s3://staging-app-data/config/
        echo "code $?, token ${AWS_SESSION_TOKEN:+set}"
    "#;
    let shell = async |scope: &str| {
        let mut command = dev.command("sh", &["-c", script]);
        command.env("SCOPE", scope).env("AWS_SESSION_TOKEN", "old");
        ran(command).await.ended(0)
    };
    let issued = shell("staging-ro").await;
    assert!(
        issued.stdout.contains("app.json") && issued.stdout.contains("code 0, token set\n"),
        "{issued:?}"
    );
    let denied = shell("no-such-scope").await;
    assert_eq!(denied.stdout, "code 1, token \n", "{denied:?}");
}

async fn an_aws_profile_takes_its_credentials_from_a_lease(dev: &Dev) {
    let id = lease(dev, &["--scope", "staging-ro"]).await;
    let file = dev.dir.join("aws-config");
    let aws = async |lease: &str| {
        let broker = binary("broker").display().to_string();
        let profile = format!(
            "[profile leased]\ncredential_process = \"{broker}\" credentials --lease {lease}\n"
        );
        std::fs::write(&file, profile).expect("our own file");
        let mut command = dev.command(
            aws_cli(),
            &["--profile", "leased", "s3", "ls", &format!("s3://{STAGING}/config/")],
        );
        command.env("AWS_CONFIG_FILE", &file).env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
        ran(command).await
    };
    for _ in 0..2 {
        let listed = aws(&id).await.ended(0);
        assert!(listed.stdout.contains("app.json"), "{listed:?}");
    }
    // The live session was handed out again.
    assert_eq!(show(dev, &id).await["sessions"].as_array().map(Vec::len), Some(1));
    let mut ops = ops(dev).await;
    assert!(
        1 < ask::<i32>(&mut ops, "select deliveries from live_sessions where lease_id = $1", &id)
            .await
    );

    let nobodys = aws("0198c0de-0000-7000-8000-000000000000").await;
    assert!(nobodys.code != 0 && nobodys.stderr.contains("Not found"), "{nobodys:?}");
    // For a person to read, there is nothing to see.
    assert_eq!(
        broker(dev, &["credentials", "--lease", &id, "-o", "json"]).await.ended(2).json()["type"],
        "/problems/invalid-request"
    );
}

async fn the_account_knows_no_back_door(dev: &Dev) {
    for id in ["test", "000000000000"] {
        for args in [&["s3", "ls"][..], &["sts", "get-caller-identity"]] {
            let refused = with_key(dev, id, "test", args).await;
            assert!(AWS_SAID_NO.contains(&refused.code), "{id} {args:?}: {refused:?}");
        }
    }
    let bucket = format!("s3://{STAGING}");
    let unsigned = ran(dev.command(aws_cli(), &["--no-sign-request", "s3", "ls", &bucket])).await;
    assert!(
        AWS_SAID_NO.contains(&unsigned.code) && unsigned.stderr.contains("AccessDenied"),
        "{unsigned:?}"
    );

    // Not even the broker's own key opens a role without saying for which lease, and without the external id.
    let keys =
        std::fs::read_to_string(dev.dir.join("emulator.keys.json")).expect("the emulator's keys");
    let keys: Value = serde_json::from_str(&keys).expect("JSON");
    let external = keys["external_id"].as_str().expect("an external id");
    let role = [
        "--role-arn",
        "arn:aws:iam::000000000000:role/broker-staging",
        "--role-session-name",
        "mine",
    ];
    let assume = async |who: &str, more: &[&str]| {
        with_emulator_key(dev, who, &[&["sts", "assume-role"], &role[..], more].concat()).await
    };
    let both = ["--external-id", external, "--source-identity", "somebody"];
    assume("broker", &both[..2]).await.refused_by_aws("sts:AssumeRole");
    assume("broker", &both[2..]).await.refused_by_aws("sts:AssumeRole");
    assume("admin", &both).await.refused_by_aws("sts:AssumeRole");
    let minted = assume("broker", &both).await.ended(0);
    assert_eq!(minted.json()["SourceIdentity"], "somebody");
    // By itself it may do nothing.
    with_emulator_key(dev, "broker", &["s3api", "list-buckets"])
        .await
        .refused_by_aws("s3:ListAllMyBuckets");
}

async fn aws_sees_whose_session_it_is(dev: &Dev) {
    let id = lease(dev, &["--scope", "staging-rw", "--task", "OPS-7"]).await;
    let who = aws(dev, &["--lease", &id], &["sts", "get-caller-identity"]).await.ended(0).json();
    let session = &show(dev, &id).await["sessions"][0]["session_name"];
    let session = session.as_str().expect("a name");
    assert!(session.starts_with(&format!("{id}-")), "{session}");
    assert_eq!(
        who["Arn"],
        format!("arn:aws:sts::000000000000:assumed-role/broker-staging/{session}")
    );

    // IAM tells sessions apart by the source identity and by each tag: what differs in one of them is refused.
    let expected = [
        ("aws:SourceIdentity", id.as_str()),
        ("aws:PrincipalTag/broker:agent", "demo-agent"),
        ("aws:PrincipalTag/broker:sponsor", "alice"),
        ("aws:PrincipalTag/broker:scope", "staging-rw"),
        ("aws:PrincipalTag/broker:task", "OPS-7"),
    ];
    let statements = expected.map(|(key, value)| {
        json!({ "Effect": "Deny", "Action": "s3:GetObject", "Resource": "*", "Condition": { "StringNotEquals": { key: value } } })
    });
    let get = ["s3api", "get-object", "--bucket", STAGING, "--key", CONFIG_KEY, "/dev/null"];
    let under = async |statements: &[Value]| {
        let policy = json!({ "Version": "2012-10-17", "Statement": statements }).to_string();
        let role = [
            "--role-name",
            "broker-staging",
            "--policy-name",
            "test",
            "--policy-document",
            &policy,
        ];
        with_emulator_key(dev, "admin", &[&["iam", "put-role-policy"], &role[..]].concat())
            .await
            .ended(0);
    };
    under(&statements).await;
    aws(dev, &["--lease", &id], &get).await.ended(0);
    for (statement, other) in [
        (&statements[0], ["--new", "--scope", "staging-rw", "--task", "OPS-7"]),
        (&statements[3], ["--new", "--scope", "staging-ro", "--task", "OPS-7"]),
        (&statements[4], ["--new", "--scope", "staging-rw", "--task", "OPS-8"]),
    ] {
        under(std::slice::from_ref(statement)).await;
        aws(dev, &other, &get).await.refused_by_aws("s3:GetObject");
    }
}

// --------------------------------------------------------------------------------------------- the human's path

#[tokio::test]
async fn a_second_named_human_signs_with_the_command_line_and_nobody_else_can() {
    let (_root, dir) = dev_dir();
    let dev = Dev::start(&dir, &BTreeMap::new()).await;
    tokio::join!(
        bob_signs_and_the_object_is_written(&dev),
        bob_refuses_and_the_agent_is_told_why(&dev),
        destruction_is_signed_on_a_terminal_only(&dev),
        everybody_looks_and_takes_back(&dev),
    );
    assert!(dev.server.stop("TERM").await.success());
}

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn bob_signs_and_the_object_is_written(dev: &Dev) {
    let id = ask_for_production(dev).await;
    let mut ops = ops(dev).await;
    let marker = dev.dir.join("it-ran");
    let touch = ["exec", "--lease", &id, "--", "touch", &marker.display().to_string()];
    assert_eq!(broker(dev, &touch).await.ended(3).stdout, "");
    assert!(!marker.exists(), "no command runs before somebody has signed");
    assert_eq!(broker(dev, &["credentials", "--lease", &id]).await.ended(3).stdout, "");
    assert_eq!(
        broker(dev, &["credentials", "--lease", &id, "-o", "env"]).await.ended(3).stdout,
        UNSET
    );
    let no_session =
        "select session_names is null and access_key_ids is null from lease_history where id = $1";
    assert!(ask::<bool>(&mut ops, no_session, &id).await);

    // The sponsor may look but not sign. Whoever then sits down at this machine sees what she sees, and may not either.
    let stranger = dev.dir.join("stranger");
    let make =
        ["-q", "-t", "ed25519", "-N", "", "-C", "stranger", "-f", &stranger.display().to_string()];
    ran(dev.command("ssh-keygen", &make)).await.ended(0);
    for (key, reason) in [
        (dev.key("alice"), "sponsor"),
        (dev.key("dave"), "not-eligible"),
        (stranger.display().to_string(), "unknown-key"),
    ] {
        let rejected = broker(dev, &["sign", &id, "--key", &key]).await.ended(4);
        let problem = rejected.json();
        assert_eq!(
            (&problem["type"], &problem["reason"]),
            (&json!("/problems/signature-rejected"), &json!(reason))
        );
        assert!(
            rejected.stderr.contains("You are about to APPROVE")
                && rejected.stderr.contains("\nnext: ")
        );
    }
    // With no session but his own, dave does not even learn that there is such a lease; the stranger gets no session.
    for (key, code, problem) in [
        (dev.key("dave"), 2, "/problems/not-found"),
        (stranger.display().to_string(), 4, "/problems/signature-rejected"),
    ] {
        let mut command = dev.command(binary("broker"), &["sign", &id, "--key", &key]);
        command.env("XDG_STATE_HOME", dev.dir.join("elsewhere"));
        let rejected = ran(command).await.ended(code);
        assert_eq!(rejected.json()["type"], problem);
        assert!(!rejected.stderr.contains("APPROVE"), "{rejected:?}");
    }
    let pending = show(dev, &id).await;
    assert_eq!((&pending["state"], &pending["signatures"]), (&json!("pending"), &json!([])));

    let signed = sign(dev, &id, "bob").await.ended(0);
    assert_eq!(signed.json()["state"], "approved");
    for shown in
        [&id, "PRODUCTION-WRITE", "s3:PutObject", "new worker count", "put the old object back"]
    {
        assert!(signed.stderr.contains(shown), "{shown} is not in {}", signed.stderr);
    }
    assert_eq!(sign(dev, &id, "bob").await.ended(4).json()["reason"], "already-signed");
    assert!(ask::<bool>(&mut ops, no_session, &id).await, "a signature mints nothing");

    let file = dev.dir.join("app.json");
    std::fs::write(&file, "{\"workers\": 32}\n").expect("our own file");
    let put = |key| {
        [
            "s3api",
            "put-object",
            "--bucket",
            PRODUCTION,
            "--key",
            key,
            "--body",
            file.to_str().expect("text"),
        ]
    };
    let there = format!("s3://{PRODUCTION}/{CONFIG_KEY}");
    aws(dev, &["--lease", &id], &["s3", "cp", &file.display().to_string(), &there]).await.ended(0);
    let read = aws(dev, &["--scope", "prod-ro"], &["s3", "cp", &there, "-"]).await.ended(0);
    assert_eq!(read.stdout, "{\"workers\": 32}\n");
    aws(dev, &["--lease", &id], &put("config/other.json")).await.refused_by_aws("s3:PutObject");
    let delete = ["s3api", "delete-object", "--bucket", PRODUCTION, "--key", CONFIG_KEY];
    aws(dev, &["--lease", &id], &delete).await.refused_by_aws("s3:DeleteObject");

    // One row tells the whole story; the one session was handed to its agent three times.
    let story = "select state = 'issued' and agent = 'demo-agent' and sponsor = 'alice' and signers = '{bob}'
                        and key_kinds = '{ssh-ed25519}' and assurances = '{software}' and cardinality(access_key_ids) = 1
                        and session_names[1] like id || '-%' and rollback = 'put the old object back'
                   from lease_history where id = $1";
    assert!(ask::<bool>(&mut ops, story, &id).await);
    assert_eq!(
        ask::<i32>(&mut ops, "select deliveries from live_sessions where lease_id = $1", &id).await,
        3
    );
    let trail = "select array_agg(signer || ' ' || decision || ' ' || environment) from approval_trail where lease_id = $1";
    assert_eq!(ask::<Vec<String>>(&mut ops, trail, &id).await, ["bob approve production"]);
    let rejections = "select array_agg(data #>> '{detail,reason}' order by seq) from lease_events
                       where lease_id = $1 and type = 'signature.rejected'";
    let rejections: Vec<String> = ask(&mut ops, rejections, &id).await;
    assert_eq!(rejections, ["sponsor", "not-eligible", "unknown-key", "already-signed"]);
    // Operations read; they change nothing, and the tables below are not theirs.
    for sql in [
        "delete from lease",
        "select * from lease",
        "select append_event('x')",
        "create table mine ()",
    ] {
        let refused = sqlx::raw_sql(sql).execute(&mut ops).await.expect_err(sql);
        let code = refused
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .expect("PostgreSQL said so");
        assert!(["42501", "25006"].contains(&code.as_ref()), "{sql}: {refused}");
    }
}

async fn bob_refuses_and_the_agent_is_told_why(dev: &Dev) {
    let id = ask_for_production(dev).await;
    let refuse =
        ["sign", &id, "--key", &dev.key("bob"), "--refuse", "--reason", "not during the sale"];
    assert_eq!(broker(dev, &refuse[..5]).await.ended(2).stdout, "", "a refusal has a reason");
    assert_eq!(broker(dev, &refuse).await.ended(0).json()["state"], "refused");
    let told = broker(dev, &["exec", "--lease", &id, "--", "true"]).await.ended(5);
    assert!(told.stderr.contains("next: "), "{told:?}");
    assert_eq!(show(dev, &id).await["end_reason"], "not during the sale");
    assert_eq!(sign(dev, &id, "carol").await.ended(4).json()["reason"], "not-pending");
}

async fn destruction_is_signed_on_a_terminal_only(dev: &Dev) {
    let arn = format!("arn:aws:s3:::{PRODUCTION}/tmp/scratch-1.txt");
    let words = ["--reason", "left over", "--rollback", "none; it is scratch"];
    let what =
        ["lease", "--scope", "prod-destructive", "--action", "s3:DeleteObject", "--resource", &arn];
    let asked = broker(dev, &[&what[..], &words].concat()).await.ended(3);
    let (id, code) = (id(&asked), asked.json()["short_code"].as_str().expect("a code").to_owned());
    let (broker_cli, key) = (binary("broker").display().to_string(), dev.key("bob"));
    let mut ops = ops(dev).await;
    let events = "select array_agg(type order by seq) from lease_events where lease_id = $1";

    // A session of its own has no terminal.
    let alone = ran(dev.command("setsid", &["--wait", &broker_cli, "sign", &id, "--key", &key]))
        .await
        .ended(2);
    assert!(alone.stderr.contains("on a terminal only"), "{alone:?}");
    assert!(alone.stderr.contains("This DESTROYS something"), "{alone:?}");
    assert_eq!(
        ask::<Vec<String>>(&mut ops, events, &id).await,
        ["lease.pending"],
        "nothing was sent"
    );

    let line = format!("'{broker_cli}' sign {id} --key '{key}'");
    let on_a_terminal = async |typed: &str| {
        let mut command = dev.command("script", &["-qec", &line, "/dev/null"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script runs");
        let mut keyboard = child.stdin.take().expect("a pipe");
        keyboard.write_all(format!("{typed}\n").as_bytes()).await.expect("typed");
        let output = child.wait_with_output().await.expect("it ends");
        drop(keyboard);
        Ran::from(output)
    };
    let wrong = on_a_terminal("0000-0000").await.ended(2);
    assert!(wrong.stdout.contains("that is not the code; nothing was signed"), "{wrong:?}");
    assert_eq!(
        ask::<Vec<String>>(&mut ops, events, &id).await,
        ["lease.pending"],
        "nothing was sent"
    );
    on_a_terminal(&code).await.ended(0);
    assert_eq!(show(dev, &id).await["state"], "approved");
    let delete = ["s3api", "delete-object", "--bucket", PRODUCTION, "--key", "tmp/scratch-1.txt"];
    aws(dev, &["--lease", &id], &delete).await.ended(0);
}

async fn everybody_looks_and_takes_back(dev: &Dev) {
    let id = ask_for_production(dev).await;
    let who = broker(dev, &["whoami"]).await.ended(0).json();
    assert_eq!((&who["agent"], &who["sponsor"]), (&json!("demo-agent"), &json!("alice")));
    let scopes = broker(dev, &["scopes"]).await.ended(0).json();
    let scopes: Vec<_> =
        scopes["scopes"].as_array().expect("scopes").iter().map(|it| it["name"].clone()).collect();
    let all =
        ["backup-destroy", "prod-destructive", "prod-ro", "prod-rw", "staging-ro", "staging-rw"];
    assert_eq!(scopes, all);
    let listed = |ran: Ran| {
        ran.ended(0).json()["leases"].as_array().expect("leases").iter().any(|it| it["id"] == id)
    };
    assert!(listed(broker(dev, &["leases"]).await));
    assert!(listed(broker(dev, &["leases", "--state", "pending"]).await));
    assert!(!listed(broker(dev, &["leases", "--state", "denied"]).await));
    assert!(listed(broker(dev, &["pending"]).await));

    // A person logs in to read: carol, who may sign it, sees it; dave, who has no part in it, does not.
    for (person, sees) in [("carol", true), ("dave", false)] {
        let read = async |args: &[&str]| {
            let mut command = dev.command(binary("broker"), args);
            command
                .env_remove("BROKER_TOKEN")
                .env("XDG_STATE_HOME", dev.dir.join(format!("{person}-state")));
            ran(command).await
        };
        assert_eq!(
            read(&["leases"]).await.ended(8).json()["next"].as_str().map(str::is_empty),
            Some(false)
        );
        let login = read(&["login", "--key", &dev.key(person)]).await.ended(0).json();
        assert_eq!((&login["person"], &login["token"]), (&json!(person), &Value::Null));
        assert_eq!(listed(read(&["pending"]).await), sees, "{person}");
        assert_eq!(read(&["show", &id]).await.code, if sees { 0 } else { 2 }, "{person}");
        assert_eq!(read(&["whoami"]).await.ended(0).json()["person"], person);
        read(&["withdraw", &id]).await.ended(8);
    }

    let withdrawn =
        broker(dev, &["withdraw", &id, "--reason", "found another way"]).await.ended(0).json();
    assert_eq!(
        (&withdrawn["state"], &withdrawn["end_reason"]),
        (&json!("withdrawn"), &json!("found another way"))
    );
    assert!(!listed(broker(dev, &["pending"]).await));
    assert_eq!(broker(dev, &["withdraw", &id]).await.ended(6).json()["reason"], "withdrawn");
    broker(dev, &["exec", "--lease", &id, "--", "true"]).await.ended(6);
    assert_eq!(sign(dev, &id, "bob").await.ended(4).json()["reason"], "not-pending");
    broker(dev, &["show", "0198c0de-0000-7000-8000-000000000000"]).await.ended(2);
}

// ------------------------------------------------------------------------------------------ starting and stopping

#[tokio::test]
async fn it_stops_whole_and_starts_again_where_it_was() {
    let (_root, dir) = dev_dir();
    let dev = Dev::start(&dir, &BTreeMap::new()).await;
    its_environment_is_complete_and_private(&dev);
    its_configuration_is_checked_but_not_served(&dev).await;
    a_second_one_on_the_same_directory_is_refused(&dev).await;

    let file = dir.join("note");
    std::fs::write(&file, "written before\n").expect("our own file");
    let there = format!("s3://{STAGING}/note");
    aws(&dev, &["--scope", "staging-rw"], &["s3", "cp", &file.display().to_string(), &there])
        .await
        .ended(0);
    let id = ask_for_production(&dev).await;
    sign(&dev, &id, "bob").await.ended(0);
    let used = ask_for_production(&dev).await;
    sign(&dev, &used, "bob").await.ended(0);
    broker(&dev, &["exec", "--lease", &used, "--", "true"]).await.ended(0);

    let mut dev = dev;
    for how in ["TERM", "INT", "KILL"] {
        let ports = ports(&dev);
        for port in ports {
            assert!(listens(port).await, "{port}");
        }
        let ended = dev.server.stop(how).await;
        if how == "KILL" {
            until("its ports are closed", SOON, async || !any_listens(&ports).await).await;
        } else {
            assert_eq!(ended.code(), Some(0), "{how}: {ended}");
            assert!(!any_listens(&ports).await, "{how}: something of it still listens");
        }
        until("its processes are gone", SOON, async || processes(&dir).await.is_empty()).await;

        let started = tokio::time::timeout(SOON, Dev::start(&dir, &BTreeMap::new())).await;
        dev = started.unwrap_or_else(|_| panic!("after {how}: not ready again within {SOON:?}"));
        assert_eq!(show(&dev, &id).await["state"], "approved", "after {how}");
        let read = aws(&dev, &["--scope", "staging-ro"], &["s3", "cp", &there, "-"]).await.ended(0);
        assert_eq!(read.stdout, "written before\n", "after {how}");
        // Live sessions are kept in memory only: a signed lease that was used stays used.
        let again = broker(&dev, &["exec", "--lease", &used, "--", "true"]).await.ended(6);
        assert!(again.stderr.contains("Issued already, and only once"), "after {how}: {again:?}");
    }
    aws(&dev, &["--lease", &id], &["sts", "get-caller-identity"]).await.ended(0);
    assert!(dev.server.stop("TERM").await.success());
}

/// Whoever waits for `dev.env` must not find the one of a run that is over.
#[tokio::test]
async fn what_it_says_of_itself_goes_when_it_stops() {
    let (_root, dir) = dev_dir();
    let dev = Dev::start(&dir, &BTreeMap::new()).await;
    assert!(dev.server.stop("TERM").await.success());
    assert!(!dir.join("dev.env").exists(), "dev.env still says that everything is ready");
}

fn its_environment_is_complete_and_private(dev: &Dev) {
    let mode =
        |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&dev.dir.join("dev.env")), 0o600);
    let names: Vec<_> = dev.environment.keys().map(String::as_str).collect();
    let contract = [
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "BROKER_ADMIN_DATABASE_URL",
        "BROKER_KEYS",
        "BROKER_OPS_DATABASE_URL",
        "BROKER_RETENTION_DATABASE_URL",
        "BROKER_SEQUENCER_DATABASE_URL",
        "BROKER_TOKEN",
        "BROKER_URL",
    ];
    assert_eq!(names, contract);
    let value = |name: &str| dev.environment[name].as_str();
    assert!(value("BROKER_URL").starts_with("http://localhost:"));
    assert!(value("AWS_ENDPOINT_URL").starts_with("http://127.0.0.1:"));
    assert_eq!((value("AWS_REGION"), value("AWS_DEFAULT_REGION")), ("us-east-1", "us-east-1"));
    assert!(value("BROKER_OPS_DATABASE_URL").starts_with("postgres://broker_ops:"));
    assert!(value("BROKER_ADMIN_DATABASE_URL").starts_with("postgres://broker_migrate:"));
    for person in ["alice", "bob", "carol", "dave"] {
        assert_eq!(mode(Path::new(&dev.key(person))), 0o600, "{person}");
    }
    for name in
        ["database.logins.json", "emulator.keys.json", "postgres.password", "config/instance.pem"]
    {
        assert_eq!(mode(&dev.dir.join(name)), 0o600, "{name}");
    }
}

async fn its_configuration_is_checked_but_not_served(dev: &Dev) {
    let config = dev.dir.join("config");
    let config = config.to_str().expect("text");
    let checked =
        ran(dev.command(binary("brokerd"), &["check", "--config", config])).await.ended(0);
    let tier = |scope: &str| {
        let row = checked.stdout.lines().find(|it| it.split_whitespace().next() == Some(scope));
        row.and_then(|it| it.split_whitespace().nth(1)).map(str::to_owned)
    };
    assert_eq!(tier("staging-rw").as_deref(), Some("staging-write"), "{checked:?}");
    assert_eq!(tier("prod-destructive").as_deref(), Some("destructive"), "{checked:?}");

    let mut serve = dev.command(binary("brokerd"), &["serve", "--config", config]);
    serve.env("BROKER_DATABASE_URL", &dev.environment["BROKER_OPS_DATABASE_URL"]);
    let served = tokio::time::timeout(SOON, ran(serve)).await.expect("it ends by itself").ended(1);
    assert!(
        served.stderr.contains("broker.toml: [dev]") && served.stderr.contains("remove the table"),
        "{served:?}"
    );
}

async fn a_second_one_on_the_same_directory_is_refused(dev: &Dev) {
    let before = std::fs::read_to_string(dev.dir.join("dev.env")).expect("it is there");
    let dir = dev.dir.to_str().expect("text");
    let second =
        ran(dev.command(binary("brokerd"), &["dev", "--dir", dir, "--listen", "127.0.0.1:0"]));
    let second = tokio::time::timeout(SOON, second).await.expect("it ends by itself").ended(1);
    assert!(second.stderr.contains(&format!("{dir} is in use")), "{second:?}");
    assert!(second.stderr.contains("choose another `--dir`"), "{second:?}");
    let listen = format!("127.0.0.1:{}", port(&dev.environment["BROKER_URL"]));
    let other = dev.dir.with_extension("other").display().to_string();
    let taken = ran(dev.command(binary("brokerd"), &["dev", "--dir", &other, "--listen", &listen]))
        .await
        .ended(1);
    assert!(taken.stderr.contains(&format!("cannot listen on {listen}")), "{taken:?}");

    // The first one has not noticed.
    assert_eq!(std::fs::read_to_string(dev.dir.join("dev.env")).expect("it is there"), before);
    aws(dev, &["--scope", "staging-ro"], &["s3", "ls", &format!("s3://{STAGING}")]).await.ended(0);
}

/// Of the broker, the emulator and PostgreSQL.
fn ports(dev: &Dev) -> [u16; 3] {
    ["BROKER_URL", "AWS_ENDPOINT_URL", "BROKER_OPS_DATABASE_URL"]
        .map(|name| port(&dev.environment[name]))
}

/// The port in a URL, with or without a path behind it.
fn port(url: &str) -> u16 {
    let (_, end) = url.rsplit_once(':').expect("a port");
    end.split('/').next().expect("a port").parse().expect("a port")
}

async fn any_listens(ports: &[u16]) -> bool {
    for port in ports {
        if listens(*port).await {
            return true;
        }
    }
    false
}

/// Command lines of all processes that name `dir`.
async fn processes(dir: &Path) -> Vec<String> {
    let output = program("ps", &BTreeMap::new())
        .args(["-ww", "-A", "-o", "args="])
        .output()
        .await
        .expect("ps runs");
    let dir = dir.display().to_string();
    text(&output.stdout).lines().filter(|it| it.contains(&dir)).map(str::to_owned).collect()
}
