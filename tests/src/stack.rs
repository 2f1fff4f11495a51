//! PostgreSQL and the emulator, started once a run, and a database for each test.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};

use broker::aws::AwsOptions;
use broker::dev::place::Place;
use broker::dev::{Options, Stack};
use broker::server::Databases;
use secrecy::ExposeSecret;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

const TEMPLATE: &str = "template_broker";

/// What tests need to know of the running stack.
pub struct Shared {
    pub endpoint: String,
    pub external_id: String,
    /// Profiles of the broker's own principals.
    pub profiles: String,
    /// Of the account's administrator.
    pub admin_key: (String, String),
    superuser_url: String,
    /// URLs of the template database, as `broker_app`, `broker_migrate`, `broker_ops`, `broker_sequencer` and
    /// `broker_retention`.
    urls: [String; 5],
    /// Databases that no test needs any more.
    done: mpsc::Sender<String>,
}

/// The stack, started by whoever asks first. It ends with this process, however that ends.
pub fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let (sender, receiver) = mpsc::channel();
        // A thread of its own, whose runtime outlives each test's.
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.expect("a runtime").block_on(keep(&sender));
        });
        receiver.recv().expect("the stack starts; see the panic above")
    })
}

impl Shared {
    pub fn aws(&self) -> AwsOptions {
        AwsOptions { endpoint: Some(self.endpoint.clone()), credentials: None }
    }
}

async fn keep(started: &mpsc::Sender<Shared>) {
    let (place, dir) = own_dir().await;
    let options = options(&dir);
    let mut stack = Stack::start(&options, false, true).await.expect("the stack starts");
    stack.make_database(TEMPLATE).await.expect("the schema is made");
    let (done, dropped) = mpsc::channel::<String>();
    let admin = stack.emulator.admin_keys();
    widen(&stack).await;
    let text = |url: secrecy::SecretString| url.expose_secret().to_owned();
    let superuser_url = text(stack.postgres.superuser_url("postgres"));
    let shared = Shared {
        endpoint: stack.emulator.endpoint(),
        external_id: stack.emulator.external_id().to_owned(),
        profiles: stack.emulator.profiles(),
        admin_key: (
            admin.access_key_id.clone(),
            admin.secret_access_key.expose_secret().to_owned(),
        ),
        superuser_url: superuser_url.clone(),
        urls: [
            stack.app_url(TEMPLATE),
            stack.admin_url(TEMPLATE),
            stack.ops_url(TEMPLATE),
            stack.sequencer_url(TEMPLATE),
            stack.retention_url(TEMPLATE),
        ]
        .map(text),
        done,
    };
    started.send(shared).unwrap_or_else(|_| panic!("somebody waits for the stack"));
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        while let Ok(name) = dropped.recv() {
            let sql = format!("drop database if exists {name} with (force)");
            runtime.block_on(superuser(&superuser_url, sql));
        }
    });
    stack.postgres.exited().await.expect("PostgreSQL runs as long as the tests");
    drop(place);
}

/// Lets the demo's roles do far more than any scope: what an agent may not do, the session policy of its lease then
/// refuses, and nothing else.
async fn widen(stack: &Stack) {
    let admin = stack.emulator.admin_keys();
    let secret = admin.secret_access_key.expose_secret();
    let iam = iam(&stack.emulator.endpoint(), &admin.access_key_id, secret);
    let everything = r#"{ "Version": "2012-10-17", "Statement": { "Effect": "Allow", "Resource": "*", "Action":
        ["s3:*", "dynamodb:*", "sqs:*", "sns:*", "logs:*", "secretsmanager:*", "ssm:*", "sts:GetAccessKeyInfo"] } }"#;
    for role in ["broker-staging", "broker-production", "broker-backup"] {
        let wide = iam.put_role_policy().role_name(role).policy_name("everything");
        wide.policy_document(everything).send().await.expect("the administrator may");
        let own = iam.delete_role_policy().role_name(role).policy_name("what-it-is-for");
        own.send().await.expect("the administrator may");
        let boundary = iam.delete_role_permissions_boundary().role_name(role);
        boundary.send().await.expect("the administrator may");
    }
}

/// A client of the emulator's IAM.
pub fn iam(endpoint: &str, key_id: &str, secret: &str) -> aws_sdk_iam::Client {
    let config = aws_sdk_iam::Config::builder()
        .behavior_version(aws_sdk_iam::config::BehaviorVersion::latest())
        .region(aws_sdk_iam::config::Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(aws_sdk_iam::config::Credentials::new(
            key_id, secret, None, None, "test",
        ));
    aws_sdk_iam::Client::from_conf(config.build())
}

/// A directory that PostgreSQL's user can reach and no other run uses. Left-overs of a dead run are taken over.
async fn own_dir() -> (Place, PathBuf) {
    let checkout = env!("CARGO_MANIFEST_DIR")
        .bytes()
        .fold(0_u32, |sum, byte| sum.rotate_left(5) ^ u32::from(byte));
    for number in 0..16 {
        let dir = std::env::temp_dir().join(format!("broker-tests-{checkout:08x}-{number}"));
        let Ok(place) = Place::take(&dir, "tests").await else { continue };
        for entry in std::fs::read_dir(&dir).expect("our own directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                std::fs::remove_dir_all(&path).expect("an old run's files");
            } else if path.extension().is_none_or(|it| it != "lock") {
                std::fs::remove_file(&path).expect("an old run's file");
            }
        }
        return (place, dir);
    }
    panic!("sixteen runs of the tests at once, or none of their directories can be written")
}

pub fn options(dir: &Path) -> Options {
    #[expect(clippy::disallowed_methods, reason = "the edge of the tests")]
    let var = |name: &str| std::env::var(name).ok().filter(|it| !it.is_empty());
    let cache = var("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.or_else(|| var("HOME").map(|it| Path::new(&it).join(".cache"))).expect("HOME is set");
    Options {
        dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().expect("an address"),
        cache_dir: cache.join("broker"),
        search_path: var("PATH").expect("PATH is set").into(),
    }
}

async fn superuser(url: &str, sql: String) {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL answers");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .expect("an administrator may");
    connection.close().await.expect("closed");
}

/// A database of one test, with the schema in it and nothing else.
pub struct Database {
    pub name: String,
    pub app_url: String,
    pub admin_url: String,
    pub ops_url: String,
    pub sequencer_url: String,
    pub retention_url: String,
    pub superuser_url: String,
    /// As the owner of everything: what an administrator's hand could do.
    pub owner: PgPool,
    drop: Arc<DropDatabase>,
}

struct DropDatabase(String);

impl Drop for DropDatabase {
    fn drop(&mut self) {
        // Nobody listens any more when the run ends; the directory is cleared by the next one.
        let _ = shared().done.send(std::mem::take(&mut self.0));
    }
}

impl Database {
    pub async fn new() -> Self {
        Self::like(TEMPLATE).await
    }

    /// Without the schema.
    pub async fn empty() -> Self {
        Self::like("template0").await
    }

    async fn like(template: &str) -> Self {
        let shared = tokio::task::spawn_blocking(shared).await.expect("the stack starts");
        let name = format!("t_{}", Uuid::new_v4().simple());
        superuser(
            &shared.superuser_url,
            format!("create database {name} template {template} owner broker_owner"),
        )
        .await;
        // A template hands on everything but the privileges on the database itself.
        let sql = format!("revoke temporary on database {name} from public");
        superuser(&shared.superuser_url, sql).await;
        let url = |template: &String| template.replace(TEMPLATE, &name);
        let [app_url, admin_url, ops_url, sequencer_url, retention_url] =
            shared.urls.each_ref().map(url);
        let owner = PgPoolOptions::new()
            .max_connections(3)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    sqlx::raw_sql("set role broker_owner").execute(connection).await?;
                    Ok(())
                })
            })
            .connect(&admin_url)
            .await
            .expect("the owner connects");
        let superuser_url = shared.superuser_url.replace("/postgres?", &format!("/{name}?"));
        let superuser_url = if superuser_url == shared.superuser_url {
            let (head, _) = shared.superuser_url.rsplit_once('/').expect("a URL");
            format!("{head}/{name}")
        } else {
            superuser_url
        };
        Self {
            drop: Arc::new(DropDatabase(name.clone())),
            name,
            app_url,
            admin_url,
            ops_url,
            sequencer_url,
            retention_url,
            superuser_url,
            owner,
        }
    }

    /// A copy as it is now: what a base backup would have. Whoever is connected is not any more.
    pub async fn copy(&self) -> Self {
        let sql = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}'",
            self.name
        );
        superuser(&shared().superuser_url, sql).await;
        Self::like(&self.name).await
    }

    /// The server's logins.
    pub fn logins(&self) -> Databases<'_> {
        Databases { app: &self.app_url, sequencer: &self.sequencer_url }
    }

    /// The same database, for another replica.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            name: self.name.clone(),
            app_url: self.app_url.clone(),
            admin_url: self.admin_url.clone(),
            ops_url: self.ops_url.clone(),
            sequencer_url: self.sequencer_url.clone(),
            retention_url: self.retention_url.clone(),
            superuser_url: self.superuser_url.clone(),
            owner: self.owner.clone(),
            drop: self.drop.clone(),
        }
    }
}
