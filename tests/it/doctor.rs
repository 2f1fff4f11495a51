//! The doctor finds what is wrong with an account, a database or a host, each by its own check and no other, and has
//! nothing to say of what is right.
//!
//! Each test has users, roles and buckets of its own in the emulator's one account: what the others do wrong with theirs
//! must not be found here.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use broker::aws::{Access, AwsOptions};
use broker::clock::Clock;
use broker::config::Config;
use broker::doctor::estate::Estate;
use broker::doctor::{self, Finding, Severity};
use broker::identity::{self, Tokens};
use broker::role::{Documents, own_policies};
use broker::store;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use tests::program::{Dev, binary, dev_dir, free_port, http, program, text, until};
use tests::stack::{self, Database};
use tests::write_secret;
use time::Duration;
use uuid::Uuid;

const ACCOUNT: &str = "000000000000";

/// Users, roles and buckets of one test's own, made from the documents that they should have; and a configuration that
/// names them.
struct Site {
    prefix: String,
    config: Config,
    dir: TempDir,
    iam: aws_sdk_iam::Client,
    s3: aws_sdk_s3::Client,
    documents: BTreeMap<String, Documents>,
}

const SCOPES: &str = r#"
[accounts]
"000000000000" = "demo"

[environments.staging]
resources = ["arn:aws:s3:::PREFIX-staging-*"]

[environments.backup]
resources = ["arn:aws:s3:::PREFIX-backup-*"]

[[scope]]
name = "staging"
description = "Work on staging"
account = "000000000000"
regions = ["us-east-1"]
role = "PREFIX-staging"
external_id = "us"
actions = ["s3:GetObject", "s3:PutObject"]
resources = ["arn:aws:s3:::PREFIX-staging-data/*"]

[[scope]]
name = "production"
description = "Write production"
account = "000000000000"
regions = ["us-east-1"]
role = "PREFIX-production"
external_id = "us"
actions = ["s3:PutObject"]
resources = ["arn:aws:s3:::PREFIX-prod-data/*"]
signers = { groups = ["ops"] }

[[scope]]
name = "backup"
description = "Delete backups"
account = "000000000000"
regions = ["us-east-1"]
role = "PREFIX-backup"
external_id = "us"
actions = ["s3:DeleteObject"]
resources = ["arn:aws:s3:::PREFIX-backup-data/*"]
signers = { groups = ["ops"] }
"#;

impl Site {
    async fn new() -> Self {
        Self::with(SCOPES, "[dev]\nsoftware_keys = true\n").await
    }

    async fn with(scopes: &str, settings: &str) -> Self {
        let shared = tokio::task::spawn_blocking(stack::shared).await.expect("the stack starts");
        let (key_id, secret) = &shared.admin_key;
        let iam = stack::iam(&shared.endpoint, key_id, secret);
        let s3 = aws_sdk_s3::Config::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .region(aws_sdk_s3::config::Region::new("us-east-1"))
            .endpoint_url(&shared.endpoint)
            .force_path_style(true)
            .credentials_provider(aws_sdk_s3::config::Credentials::new(
                key_id, secret, None, None, "test",
            ));
        let prefix = format!("d{}", &Uuid::new_v4().simple().to_string()[..12]);
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), &prefix, scopes, settings);
        let config = Config::load(dir.path()).expect("it is valid");
        let documents = Documents::all(&config.catalogue, &config.settings.aws.minter.arn);
        let name = |it: &Documents| it.role_arn.rsplit('-').next().expect("a name").to_owned();
        let documents = documents.into_iter().map(|it| (name(&it), it)).collect();
        let s3 = aws_sdk_s3::Client::from_conf(s3.build());
        let site = Self { prefix, config, dir, iam, s3, documents };
        Box::pin(site.make()).await;
        site
    }

    async fn make(&self) {
        let mut profiles = String::new();
        for (name, policy) in own_policies(&self.config.catalogue, &self.config.settings.aws) {
            self.user(name, "own", &policy).await;
            profiles += &self.key(name).await;
        }
        write_secret(&self.dir.path().join("aws.credentials"), &profiles);
        for (name, documents) in &self.documents {
            let role = self.name(name);
            let make = self.iam.create_role().role_name(&role);
            let make = make.assume_role_policy_document(documents.trust_policy.to_string());
            make.send().await.expect("made");
            let boundary = format!("{role}-boundary");
            let policy = self.managed(&boundary, &documents.permissions_boundary).await;
            let attach = self.iam.put_role_permissions_boundary().role_name(&role);
            attach.permissions_boundary(policy).send().await.expect("attached");
            self.inline(name, "own", &documents.permission_policy).await;
        }
        for bucket in ["staging-data", "prod-data", "backup-data"] {
            let bucket = self.name(bucket);
            self.s3.create_bucket().bucket(&bucket).send().await.expect("made");
            let block = self.s3.delete_public_access_block().bucket(&bucket);
            block.send().await.expect("public policies are let through");
        }
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn role(&self, name: &str) -> String {
        format!("arn:aws:iam::{ACCOUNT}:role/{}", self.name(name))
    }

    fn user_arn(&self, name: &str) -> String {
        format!("arn:aws:iam::{ACCOUNT}:user/{}", self.name(name))
    }

    /// A user with a policy.
    async fn user(&self, name: &str, policy_name: &str, policy: &Value) {
        let user = self.name(name);
        let _ = self.iam.create_user().user_name(&user).send().await;
        let put = self.iam.put_user_policy().user_name(&user).policy_name(policy_name);
        put.policy_document(policy.to_string()).send().await.expect("put");
    }

    /// A user who may do `action` on `resource`.
    async fn user_who_may(&self, name: &str, action: &str, resource: &str) {
        self.user(name, "more", &allow(action, resource)).await;
    }

    /// A profile with a new key of a user.
    async fn key(&self, name: &str) -> String {
        let made = self.iam.create_access_key().user_name(self.name(name)).send().await;
        let key = made.expect("made").access_key.expect("a key");
        format!(
            "[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            key.access_key_id, key.secret_access_key
        )
    }

    async fn managed(&self, name: &str, document: &Value) -> String {
        let request = self.iam.create_policy().policy_name(name);
        let answer = request.policy_document(document.to_string()).send().await.expect("made");
        answer.policy.expect("a policy").arn.expect("an ARN")
    }

    async fn inline(&self, role: &str, name: &str, document: &Value) {
        let put = self.iam.put_role_policy().role_name(self.name(role)).policy_name(name);
        put.policy_document(document.to_string()).send().await.expect("put");
    }

    /// Gives a role another trust policy than it should have.
    async fn trust(&self, role: &str, change: impl FnOnce(&mut Value)) {
        let mut document = self.documents[role].trust_policy.clone();
        change(&mut document);
        let put = self.iam.update_assume_role_policy().role_name(self.name(role));
        put.policy_document(document.to_string()).send().await.expect("put");
    }

    /// Lets somebody else into a role, beside the minter.
    async fn let_in(&self, role: &str, principal: Value) {
        let more = json!({ "Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole" });
        self.trust(role, |it| it["Statement"].as_array_mut().expect("statements").push(more)).await;
    }

    /// Gives a role another boundary than it should have.
    async fn boundary(&self, role: &str, change: impl FnOnce(&mut Vec<Value>)) {
        let mut document = self.documents[role].permissions_boundary.clone();
        change(document["Statement"].as_array_mut().expect("statements"));
        let arn = format!("arn:aws:iam::{ACCOUNT}:policy/{}-boundary", self.name(role));
        let put = self.iam.create_policy_version().policy_arn(arn).set_as_default(true);
        put.policy_document(document.to_string()).send().await.expect("put");
    }

    async fn no_boundary(&self, role: &str) {
        let name = self.name(role);
        let without = self.iam.delete_role_permissions_boundary().role_name(name);
        without.send().await.expect("taken off");
    }

    async fn bucket_policy(&self, bucket: &str, principal: Value, condition: Value) {
        let name = self.name(bucket);
        let mut policy = allow("s3:GetObject", &format!("arn:aws:s3:::{name}/*"));
        policy["Statement"][0]["Principal"] = principal;
        if !condition.is_null() {
            policy["Statement"][0]["Condition"] = condition;
        }
        let put = self.s3.put_bucket_policy().bucket(name).policy(policy.to_string());
        put.send().await.expect("put");
    }

    async fn look(&self, pool: Option<&PgPool>) -> Estate {
        self.look_at(stack::shared().aws(), pool).await
    }

    async fn look_at(&self, aws: AwsOptions, pool: Option<&PgPool>) -> Estate {
        let access = Access::new(self.config.settings.aws.clone(), aws);
        doctor::look(&self.config, &access, pool, &Clock::default()).await
    }

    /// What it finds, but that nobody named a database.
    async fn findings(&self) -> Vec<Finding> {
        let mut findings = doctor::examine(&self.look(None).await, &self.config);
        findings.retain(|it| it.check != "database-unread");
        findings
    }

    /// Checks that these and no others found something.
    async fn finds(&self, checks: &[&str]) {
        assert_found(&self.findings().await, checks);
    }

    /// The same, of a database.
    async fn finds_in(&self, database: &Database, checks: &[&str]) {
        let pool = store::pool(&database.app_url).expect("a URL");
        let estate = self.look(Some(&pool)).await;
        assert_found(&doctor::examine(&estate, &self.config), checks);
    }
}

fn assert_found(findings: &[Finding], checks: &[&str]) {
    let mut found: Vec<_> = findings.iter().map(|it| it.check).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, checks, "{findings:#?}");
    assert!(findings.iter().all(|it| {
        !it.subject.is_empty() && !it.found.is_empty() && !it.gains.is_empty() && !it.fix.is_empty()
    }));
}

fn write(dir: &Path, prefix: &str, scopes: &str, settings: &str) {
    let principal = |name: &str| {
        format!(
            "{name} = {{ arn = \"arn:aws:iam::{ACCOUNT}:user/{prefix}-{name}\", profile = \"{name}\" }}\n"
        )
    };
    let text = format!(
        "origin = \"http://localhost:1\"\nlisten = \"127.0.0.1:1\"\ninstance_key = \"instance.pem\"\n\
         [log]\norigin = \"doctor.test/log\"\nkey = \"log.pem\"\nanchors = [{{ kind = \"file\", name = \"folder\", path = \"anchor\" }}]\n\
         [home]\nresources = [\"arn:aws:s3:::{prefix}-log\"]\n\
         [aws]\nregion = \"us-east-1\"\ncredentials_file = \"aws.credentials\"\n{}{}{}\
         administrators = [\"arn:aws:iam::{ACCOUNT}:user/emulator-admin\"]\n{settings}",
        principal("minter"),
        principal("revoker"),
        principal("doctor"),
    );
    std::fs::create_dir(dir.join("policies")).expect("made");
    std::fs::create_dir(dir.join("anchor")).expect("made");
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/policies/agents.cedar");
    std::fs::copy(rules, dir.join("policies/agents.cedar")).expect("copied");
    std::fs::write(dir.join("broker.toml"), text).expect("written");
    std::fs::write(dir.join("scopes.toml"), scopes.replace("PREFIX", prefix)).expect("written");
    for key in ["instance.pem", "log.pem"] {
        write_secret(&dir.join(key), Tokens::generate_key().expose_secret());
    }
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("our own file");
}

fn allow(action: &str, resource: &str) -> Value {
    json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": action, "Resource": resource }] })
}

// ------------------------------------------------------------------------------------------------------- what is right

#[tokio::test]
async fn an_account_made_from_the_documents_is_quiet() {
    let site = Site::new().await;
    site.finds(&[]).await;
    // A stop is the broker's own doing, and somebody else's rights elsewhere are not about us.
    let stop = json!({ "Version": "2012-10-17", "Statement": { "Effect": "Deny", "Action": "*", "Resource": "*",
        "Condition": { "StringLike": { "aws:userid": "*:x" } } } });
    site.inline("production", "broker-stopped", &stop).await;
    site.user_who_may("colleague", "iam:PutRolePolicy", "arn:aws:iam::000000000000:role/app-*")
        .await;
    let database = Database::new().await;
    site.finds_in(&database, &[]).await;
}

// --------------------------------------------------------------------------------------------------------------- trust

#[tokio::test]
async fn a_role_that_is_not_there() {
    let site = Site::new().await;
    site.no_boundary("backup").await;
    let name = site.name("backup");
    site.iam.delete_role_policy().role_name(&name).policy_name("own").send().await.expect("gone");
    site.iam.delete_role().role_name(&name).send().await.expect("gone");
    site.finds(&["role-missing"]).await;
}

#[tokio::test]
async fn a_trust_policy_with_a_star() {
    let site = Site::new().await;
    site.let_in("staging", json!("*")).await;
    site.finds(&["trust-wildcard"]).await;
}

#[tokio::test]
async fn a_trust_policy_with_a_star_in_a_list() {
    let site = Site::new().await;
    let minter = site.user_arn("minter");
    site.let_in("staging", json!({ "AWS": [minter, "*"] })).await;
    site.finds(&["trust-external-id", "trust-source-identity", "trust-wildcard"]).await;
}

#[tokio::test]
async fn a_trust_policy_with_the_whole_account() {
    for root in ["arn:aws:iam::000000000000:root", "000000000000"] {
        let site = Site::new().await;
        site.let_in("staging", json!({ "AWS": root })).await;
        site.finds(&["trust-other"]).await;
    }
}

#[tokio::test]
async fn a_trust_policy_with_another_user() {
    let site = Site::new().await;
    site.let_in("production", json!({ "AWS": site.user_arn("doctor") })).await;
    site.finds(&["trust-other"]).await;
}

#[tokio::test]
async fn a_trust_policy_with_a_service() {
    let site = Site::new().await;
    site.let_in("production", json!({ "Service": "lambda.amazonaws.com" })).await;
    site.finds(&["trust-other"]).await;
}

#[tokio::test]
async fn a_trust_policy_with_a_federation() {
    let site = Site::new().await;
    let provider = format!("arn:aws:iam::{ACCOUNT}:oidc-provider/example.com");
    site.let_in("production", json!({ "Federated": provider })).await;
    site.finds(&["trust-other"]).await;
}

#[tokio::test]
async fn a_trust_policy_with_somebody_who_was_deleted() {
    let site = Site::new().await;
    site.let_in("production", json!({ "AWS": "AIDA0123456789ABCDEF" })).await;
    site.finds(&["trust-deleted"]).await;
}

#[tokio::test]
async fn a_role_that_trusts_itself_or_a_session_of_another() {
    let site = Site::new().await;
    let own = site.role("staging");
    site.let_in("staging", json!({ "AWS": own })).await;
    let session = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{}/any", site.name("staging"));
    site.let_in("production", json!({ "AWS": session })).await;
    site.finds(&["trust-chaining"]).await;
    assert_eq!(site.findings().await.len(), 2);
}

#[tokio::test]
async fn a_role_elsewhere_that_trusts_a_role_of_leases() {
    let site = Site::new().await;
    let mut trust = site.documents["staging"].trust_policy.clone();
    trust["Statement"][0]["Principal"] = json!({ "AWS": site.role("staging") });
    let make = site.iam.create_role().role_name(site.name("deployer"));
    make.assume_role_policy_document(trust.to_string()).send().await.expect("made");
    site.finds(&["role-chains"]).await;
}

#[tokio::test]
async fn a_trust_policy_that_lets_no_tags_through() {
    let site = Site::new().await;
    let actions = json!(["sts:AssumeRole", "sts:SetSourceIdentity"]);
    site.trust("backup", |it| it["Statement"][0]["Action"] = actions).await;
    site.finds(&["trust-no-minter"]).await;
}

#[tokio::test]
async fn a_trust_policy_that_asks_for_a_source_identity_if_there_is_one() {
    for operator in ["StringLikeIfExists", "ForAllValues:StringLike"] {
        let site = Site::new().await;
        let condition = json!({ operator: { "sts:SourceIdentity": "?*" }, "StringEquals": { "sts:ExternalId": "us" } });
        site.trust("staging", |it| it["Statement"][0]["Condition"] = condition).await;
        site.finds(&["trust-source-identity"]).await;
    }
}

#[tokio::test]
async fn a_trust_policy_with_any_external_id() {
    let site = Site::new().await;
    let condition = json!({ "StringLike": { "STS:sourceidentity": "?*", "sts:ExternalId": "*" } });
    site.trust("staging", |it| it["Statement"][0]["Condition"] = condition).await;
    site.finds(&["trust-external-id"]).await;
}

#[tokio::test]
async fn a_trust_policy_with_another_way_in() {
    let site = Site::new().await;
    let actions = json!(["sts:*"]);
    site.trust("staging", |it| it["Statement"][0]["Action"] = actions).await;
    site.finds(&["trust-actions"]).await;
}

#[tokio::test]
async fn a_role_with_long_sessions() {
    let site = Site::new().await;
    let role = site.name("staging");
    let update = site.iam.update_role().role_name(role).max_session_duration(43_200);
    update.send().await.expect("updated");
    site.finds(&["session-duration"]).await;
}

// ------------------------------------------------------------------------------------------ what a role may, and at most

#[tokio::test]
async fn a_policy_beyond_the_ceiling() {
    let site = Site::new().await;
    let more = allow("s3:Put*", &format!("arn:aws:s3:::{}/*", site.name("staging-data")));
    site.inline("staging", "more", &more).await;
    site.finds(&["policy-beyond-ceiling"]).await;
}

#[tokio::test]
async fn a_policy_without_a_condition_of_the_scopes() {
    let site = Site::new().await;
    let more = allow("s3:PutObject", &format!("arn:aws:s3:::{}/*", site.name("staging-data")));
    site.inline("staging", "more", &more).await;
    site.finds(&["policy-beyond-ceiling"]).await;
}

#[tokio::test]
async fn an_attached_policy_that_allows_all_but_something() {
    let site = Site::new().await;
    // On our own roles only: the emulator does not list other tests' boundaries.
    let mut document = allow("s3:*", &site.role("*"));
    let statement = document["Statement"][0].as_object_mut().expect("a statement");
    let action = statement.remove("Action").expect("an action");
    statement.insert("NotAction".into(), action);
    let arn = site.managed(&site.name("wide"), &document).await;
    let attach = site.iam.attach_role_policy().role_name(site.name("staging")).policy_arn(arn);
    attach.send().await.expect("attached");
    site.finds(&["policy-beyond-ceiling", "policy-credentials"]).await;
}

#[tokio::test]
async fn a_policy_that_lets_a_role_assume_another() {
    let site = Site::new().await;
    site.inline("staging", "more", &allow("sts:AssumeRole", &site.role("production"))).await;
    site.finds(&["policy-beyond-ceiling", "policy-credentials"]).await;
}

#[tokio::test]
async fn a_role_that_may_not_do_what_its_scopes_have() {
    let site = Site::new().await;
    let mut document = site.documents["staging"].permission_policy.clone();
    document["Statement"][0]["Action"] = json!(["s3:GetObject"]);
    site.inline("staging", "own", &document).await;
    site.finds(&["policy-narrow"]).await;
}

#[tokio::test]
async fn a_role_that_the_probe_of_a_stop_says_nothing_about() {
    let site = Site::new().await;
    let mut document = site.documents["staging"].permission_policy.clone();
    let statements = document["Statement"].as_array_mut().expect("statements");
    statements.retain(|it| it["Action"] != json!(["sts:GetAccessKeyInfo"]));
    site.inline("staging", "own", &document).await;
    site.finds(&["policy-no-probe"]).await;
}

#[tokio::test]
async fn a_stop_that_allows_something() {
    let site = Site::new().await;
    site.inline("staging", "broker-stopped", &allow("s3:*", "*")).await;
    site.finds(&["stop-allows"]).await;
}

#[tokio::test]
async fn a_role_without_a_boundary() {
    let site = Site::new().await;
    site.no_boundary("production").await;
    site.finds(&["boundary-missing"]).await;
}

#[tokio::test]
async fn a_boundary_that_does_not_deny_other_credentials() {
    let site = Site::new().await;
    site.boundary("staging", |it| it.retain(|it| it["Sid"] != "NoOtherCredentials")).await;
    site.boundary("production", |it| {
        it[1]["Condition"] = json!({ "Bool": { "aws:MultiFactorAuthPresent": "false" } });
    })
    .await;
    site.finds(&["boundary-credentials"]).await;
    assert_eq!(site.findings().await.len(), 2);
}

#[tokio::test]
async fn a_boundary_that_does_not_deny_other_environments() {
    let site = Site::new().await;
    site.boundary("staging", |it| it.retain(|it| it["Sid"] != "ThisEnvironmentOnly")).await;
    site.finds(&["boundary-environment"]).await;
}

#[tokio::test]
async fn a_boundary_that_does_not_deny_other_accounts() {
    let site = Site::new().await;
    site.boundary("production", |it| it.retain(|it| it["Sid"] != "ThisAccountOnly")).await;
    site.finds(&["boundary-environment"]).await;
}

#[tokio::test]
async fn a_boundary_that_does_not_deny_the_brokers_own() {
    let site = Site::new().await;
    site.boundary("staging", |it| it.retain(|it| it["Sid"] != "NotTheBrokersOwn")).await;
    site.finds(&["boundary-home"]).await;
}

#[tokio::test]
async fn a_boundary_that_allows_everything_else() {
    let site = Site::new().await;
    site.boundary("staging", |it| it[0]["Action"] = json!("*")).await;
    site.finds(&["boundary-wide"]).await;
}

#[tokio::test]
async fn a_production_role_that_reaches_backups() {
    let site = Site::new().await;
    site.no_boundary("production").await;
    let backups = format!("arn:aws:s3:::{}*", site.name("backup"));
    site.inline("production", "more", &allow("s3:DeleteObject", &backups)).await;
    site.finds(&["backup-reach", "boundary-missing", "policy-beyond-ceiling"]).await;
}

#[tokio::test]
async fn a_role_of_two_environments() {
    let scopes = SCOPES.replace("role = \"PREFIX-staging\"", "role = \"PREFIX-production\"");
    let site = Site::with(&scopes, "[dev]\nsoftware_keys = true\n").await;
    site.finds(&["environment-mixed"]).await;
}

// -------------------------------------------------------------------------------------------- principals and resources

#[tokio::test]
async fn a_minter_who_may_do_something_else() {
    let site = Site::new().await;
    site.user_who_may("minter", "s3:ListAllMyBuckets", "*").await;
    site.finds(&["minter-beyond"]).await;
}

#[tokio::test]
async fn a_minter_whose_group_may_do_something_else() {
    let site = Site::new().await;
    let group = site.name("group");
    site.iam.create_group().group_name(&group).send().await.expect("made");
    let put = site.iam.put_group_policy().group_name(&group).policy_name("more");
    put.policy_document(allow("sqs:*", "*").to_string()).send().await.expect("put");
    let add = site.iam.add_user_to_group().group_name(&group).user_name(site.name("minter"));
    add.send().await.expect("added");
    site.finds(&["minter-beyond"]).await;
}

#[tokio::test]
async fn a_revoker_who_may_do_something_else() {
    let site = Site::new().await;
    site.user_who_may("revoker", "sqs:SendMessage", "*").await;
    site.finds(&["revoker-beyond"]).await;
}

#[tokio::test]
async fn a_doctor_who_may_write() {
    let site = Site::new().await;
    let bucket = format!("arn:aws:s3:::{}", site.name("prod-data"));
    site.user_who_may("doctor", "s3:PutBucketPolicy", &bucket).await;
    site.finds(&["doctor-beyond"]).await;
}

#[tokio::test]
async fn a_revoker_who_cannot_stop_a_role() {
    let site = Site::new().await;
    let without = json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Resource": [site.role("staging"), site.role("backup")],
        "Action": ["iam:GetRolePolicy", "iam:PutRolePolicy", "iam:DeleteRolePolicy"] }] });
    site.user("revoker", "own", &without).await;
    site.finds(&["revoker-unable"]).await;
}

#[tokio::test]
async fn a_principal_that_is_not_there() {
    let site = Site::new().await;
    let name = site.name("revoker");
    site.iam.delete_user_policy().user_name(&name).policy_name("own").send().await.expect("gone");
    let keys = site.iam.list_access_keys().user_name(&name).send().await.expect("keys");
    for key in keys.access_key_metadata {
        let gone = site.iam.delete_access_key().user_name(&name);
        gone.set_access_key_id(key.access_key_id).send().await.expect("gone");
    }
    site.iam.delete_user().user_name(&name).send().await.expect("gone");
    site.finds(&["principal-missing"]).await;
}

#[tokio::test]
async fn somebody_else_who_writes_stops() {
    let site = Site::new().await;
    site.user_who_may("colleague", "iam:*RolePolicy", &site.role("staging")).await;
    // It is also how policies are attached.
    site.finds(&["role-changeable", "stop-writable"]).await;
}

#[tokio::test]
async fn somebody_else_who_deletes_stops() {
    let site = Site::new().await;
    site.user_who_may("colleague", "iam:DeleteRolePolicy", &site.role("staging")).await;
    site.finds(&["stop-writable"]).await;
}

#[tokio::test]
async fn somebody_else_who_changes_trust() {
    let site = Site::new().await;
    let roles = format!("arn:aws:iam::{ACCOUNT}:role/{}-*", site.prefix);
    site.user_who_may("colleague", "iam:UpdateAssumeRolePolicy", &roles).await;
    site.finds(&["role-changeable"]).await;
}

#[tokio::test]
async fn somebody_else_who_changes_a_boundary() {
    let site = Site::new().await;
    let policy = format!("arn:aws:iam::{ACCOUNT}:policy/{}-boundary", site.name("staging"));
    site.user_who_may("colleague", "iam:CreatePolicyVersion", &policy).await;
    site.finds(&["role-changeable"]).await;
}

#[tokio::test]
async fn somebody_else_who_makes_keys_of_the_minter() {
    let site = Site::new().await;
    site.user_who_may("colleague", "iam:CreateAccessKey", &site.user_arn("minter")).await;
    site.finds(&["principal-changeable"]).await;
}

#[tokio::test]
async fn a_bucket_policy_that_names_a_role() {
    let site = Site::new().await;
    site.bucket_policy("staging-data", json!({ "AWS": site.role("staging") }), Value::Null).await;
    site.finds(&["bucket-names-us"]).await;
}

#[tokio::test]
async fn a_bucket_policy_that_names_a_session_or_the_roles_id() {
    let site = Site::new().await;
    let session = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{}/x", site.name("production"));
    site.bucket_policy("prod-data", json!({ "AWS": session }), Value::Null).await;
    let role = site.iam.get_role().role_name(site.name("backup")).send().await.expect("there");
    let id = role.role.expect("a role").role_id;
    let on = json!({ "StringLike": { "aws:userid": format!("{id}:*") } });
    site.bucket_policy("backup-data", json!("*"), on).await;
    site.finds(&["bucket-names-us"]).await;
    assert_eq!(site.findings().await.len(), 2);
}

#[tokio::test]
async fn a_bucket_policy_for_everybody() {
    let site = Site::new().await;
    site.bucket_policy("prod-data", json!({ "AWS": "*" }), Value::Null).await;
    site.finds(&["bucket-public"]).await;
}

// --------------------------------------------------------------------------------------- STS, keys, files, and no answer

#[tokio::test]
async fn a_doctor_who_is_refused_is_critical() {
    let site = Site::new().await;
    let name = site.name("doctor");
    site.iam.delete_user_policy().user_name(name).policy_name("own").send().await.expect("gone");
    site.finds(&["account-unread", "bucket-unread", "keys-unread"]).await;
    let findings = site.findings().await;
    assert_eq!((findings[0].severity, findings[0].check), (Severity::Critical, "account-unread"));
}

#[tokio::test]
async fn an_aws_that_is_away_is_not_critical() {
    let site = Site::new().await;
    let nobody = format!("http://127.0.0.1:{}", free_port().await);
    let aws = AwsOptions { endpoint: Some(nobody), credentials: None };
    let findings = doctor::examine(&site.look_at(aws, None).await, &site.config);
    assert_found(&findings, &["account-unread", "database-unread", "sts-unread"]);
    assert_eq!(findings[0].severity, Severity::High);
}

#[tokio::test]
async fn credentials_of_somebody_else() {
    let site = Site::new().await;
    let file = site.dir.path().join("aws.credentials");
    let profiles = std::fs::read_to_string(&file).expect("ours");
    let swapped = profiles.replace("[minter]", "[x]").replace("[revoker]", "[minter]");
    std::fs::write(&file, swapped.replace("[x]", "[revoker]")).expect("ours");
    site.finds(&["minter-other"]).await;
}

#[tokio::test]
async fn an_sts_that_is_not_awss_own() {
    let site = Site::with(SCOPES, "").await;
    site.finds(&["sts-endpoint"]).await;
}

#[tokio::test]
async fn clocks_that_differ_and_hosts_elsewhere() {
    let site = Site::new().await;
    let mut estate = site.look(None).await;
    let minter = estate.cloud.minter.as_mut().expect("it answers");
    assert!(minter.ahead.expect("a time").abs() <= 2);
    minter.ahead = Some(-61);
    minter.host = "sts.amazonaws.com".to_owned();
    let findings = doctor::examine(&estate, &site.config);
    assert_found(&findings, &["aws-clock", "database-unread", "sts-region"]);
    assert_eq!(findings[0].severity, Severity::High);
    estate.cloud.minter.as_mut().expect("it answers").ahead = Some(6);
    let findings = doctor::examine(&estate, &site.config);
    assert!(findings.iter().all(|it| Severity::High < it.severity), "{findings:?}");
}

#[tokio::test]
async fn access_keys_that_are_old() {
    let site = Site::new().await;
    let mut estate = site.look(None).await;
    estate.now += Duration::days(91);
    assert_found(&doctor::examine(&estate, &site.config), &["access-key-old", "database-unread"]);
    estate.now += Duration::days(300);
    let old = ["access-key-old", "database-unread", "instance-key-old"];
    assert_found(&doctor::examine(&estate, &site.config), &old);
}

#[tokio::test]
async fn a_revoker_with_two_keys() {
    let site = Site::new().await;
    site.key("revoker").await;
    site.finds(&["access-key-two"]).await;
}

#[tokio::test]
async fn an_instance_key_that_anybody_here_can_read() {
    let site = Site::new().await;
    mode(&site.dir.path().join("instance.pem"), 0o640);
    site.finds(&["file-open"]).await;
}

#[tokio::test]
async fn a_key_of_before_that_anybody_here_can_read() {
    let mut site = Site::new().await;
    let before = site.dir.path().join("instance-before.pem");
    std::fs::copy(site.dir.path().join("instance.pem"), &before).unwrap();
    site.config.settings.former_instance_keys.push(before.clone());
    mode(&before, 0o600);
    site.finds(&[]).await;
    mode(&before, 0o640);
    site.finds(&["file-open"]).await;
}

#[tokio::test]
async fn a_logs_key_that_anybody_here_can_read() {
    let site = Site::new().await;
    mode(&site.dir.path().join("log.pem"), 0o604);
    site.finds(&["file-open"]).await;
}

#[tokio::test]
async fn a_log_that_nobody_keeps_elsewhere() {
    let mut site = Site::new().await;
    assert!(!site.config.settings.log.anchors.is_empty());
    site.config.settings.log.anchors.clear();
    site.finds(&["log-anchors"]).await;
}

#[tokio::test]
async fn credentials_that_anybody_here_can_read() {
    let site = Site::new().await;
    mode(&site.dir.path().join("aws.credentials"), 0o644);
    site.finds(&["file-open"]).await;
}

// -------------------------------------------------------------------------------------------------------- the database

/// What the owner's, or the administrator's, hand did to a database, and what is found of it.
async fn broken(sql: &'static str, checks: &[&str]) {
    let (site, database) = (Site::new().await, Database::new().await);
    sqlx::raw_sql(sql).execute(&database.owner).await.expect(sql);
    site.finds_in(&database, checks).await;
}

#[tokio::test]
async fn a_checkpoint_that_no_anchor_has_taken_for_long() {
    let (site, database) = (Site::new().await, Database::new().await);
    let begun = "insert into log_state (origin, key, first_origin, first_key, size, frontier) values ('o', 'k', 'o', 'k', 3, sha256('') || sha256(''));
                 insert into log_scan default values;
                 insert into log_checkpoint (epoch, size, root, note, signed_at)
                 select 1, n, sha256(''), 'note', now() - (3 - n) * interval '1 hour' from generate_series(1, 3) n;
                 insert into log_anchored (anchor, epoch, size, anchored_at) values ('folder', 1, 2, now())";
    sqlx::raw_sql(begun).execute(&database.owner).await.expect(begun);
    for pool in [&database.app_url, &database.ops_url].map(|it| store::pool(it).expect("a URL")) {
        let mut estate = site.look(Some(&pool)).await;
        assert_found(&doctor::examine(&estate, &site.config), &[]);
        estate.now += Duration::hours(1);
        assert_found(&doctor::examine(&estate, &site.config), &["log-unanchored"]);
    }
}

#[tokio::test]
async fn the_catalog_is_that_of_a_database_that_was_just_migrated() {
    let database = Database::new().await;
    let pool = store::pool(&database.ops_url).expect("a URL");
    let facts = store::look(&pool, &Clock::default()).await.expect("it answers").facts;
    let mut lines: Vec<_> = facts
        .iter()
        .filter(|it| !it.starts_with("month "))
        .map(|it| {
            let words = it.split(' ').map(|word| match word.strip_prefix("event_") {
                Some(rest) if rest.bytes().all(|it| it.is_ascii_digit()) => "event_MONTH",
                _ => word,
            });
            words.collect::<Vec<_>>().join(" ") + "\n"
        })
        .collect();
    lines.sort();
    lines.dedup();
    let all = lines.concat();
    assert!(all == store::CATALOG, "broker/src/store/catalog.txt should be:\n{all}");
}

#[tokio::test]
async fn a_trigger_that_is_switched_off() {
    broken("alter table lease disable trigger lease_guard", &["trigger-off"]).await;
}

#[tokio::test]
async fn a_trigger_that_a_replica_does_without() {
    broken("alter table signature enable trigger signature_guard", &["trigger-off"]).await;
}

#[tokio::test]
async fn a_trigger_of_one_months_events_that_is_gone() {
    let sql = "do $$ begin execute format('drop trigger event_is_kept on event_%s', to_char(now(), 'YYYYMM')); end $$";
    broken(sql, &["trigger-missing"]).await;
}

#[tokio::test]
async fn a_trigger_that_is_gone() {
    broken("drop trigger person_guard on person", &["trigger-missing"]).await;
}

#[tokio::test]
async fn a_trigger_function_that_refuses_nothing() {
    let sql = "create or replace function signature_guard() returns trigger language plpgsql
               set search_path = pg_catalog, public, pg_temp as $$ begin return new; end $$";
    broken(sql, &["function-changed"]).await;
}

#[tokio::test]
async fn a_function_that_says_that_nothing_is_frozen() {
    let sql = "create or replace function is_frozen(agent text, sponsor text, scope text, environment text)
               returns boolean language sql volatile begin atomic select false; end";
    broken(sql, &["function-changed"]).await;
}

#[tokio::test]
async fn a_function_that_runs_as_the_owner() {
    broken("alter function event_doc(bytea) security definer", &["function-changed"]).await;
}

#[tokio::test]
async fn a_server_that_may_delete() {
    broken("grant delete on login to broker_app", &["grant-app"]).await;
}

#[tokio::test]
async fn a_server_that_may_change_what_is_fixed() {
    broken("grant update (actions) on lease to broker_app", &["grant-app"]).await;
}

#[tokio::test]
async fn operations_that_read_tables_or_write() {
    broken("grant select on session to broker_ops", &["grant-ops"]).await;
    broken("grant insert on person to broker_ops", &["grant-ops"]).await;
}

#[tokio::test]
async fn a_public_that_makes_tables() {
    let (site, database) = (Site::new().await, Database::new().await);
    let sql = format!(
        "grant temporary on database {0} to public; grant create on schema public to public",
        database.name
    );
    let superuser = sqlx::PgPool::connect(&database.superuser_url).await.expect("it answers");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&superuser).await.expect("granted");
    site.finds_in(&database, &["grant-public"]).await;
}

#[tokio::test]
async fn a_right_that_is_gone() {
    broken("revoke select on lease from broker_app", &["grant-missing"]).await;
}

#[tokio::test]
async fn a_table_that_is_somebody_elses() {
    let (site, database) = (Site::new().await, Database::new().await);
    let superuser = sqlx::PgPool::connect(&database.superuser_url).await.expect("it answers");
    let sql = "alter table over_budget owner to broker_migrate";
    sqlx::raw_sql(sql).execute(&superuser).await.expect("altered");
    site.finds_in(&database, &["object-owner"]).await;
}

#[tokio::test]
async fn a_schema_of_another_version() {
    let sql = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (99999999999999, 'x', true, '', 0)";
    broken(sql, &["schema-version"]).await;
}

#[tokio::test]
async fn a_server_that_is_connected_as_an_administrator() {
    let (site, database) = (Site::new().await, Database::new().await);
    let pool = store::pool(&database.superuser_url).expect("a URL");
    let estate = site.look(Some(&pool)).await;
    assert_found(&doctor::examine(&estate, &site.config), &["database-login"]);
}

/// Roles are the cluster's, and every test's: what the catalog would say is written here.
#[tokio::test]
async fn a_login_that_could_do_more() {
    let (site, database) = (Site::new().await, Database::new().await);
    let pool = store::pool(&database.ops_url).expect("a URL");
    let mut estate = site.look(Some(&pool)).await;
    let facts = &mut estate.database.as_mut().expect("it answers").facts;
    for line in
        ["role broker_app superuser", "role broker_ops bypassrls", "role broker_owner login"]
    {
        facts.insert(line.to_owned());
    }
    facts.insert("member broker_app of broker_owner".to_owned());
    facts.insert("grant lease intern SELECT".to_owned());
    let findings = doctor::examine(&estate, &site.config);
    assert_found(&findings, &["grant-other", "role-attributes", "role-members"]);
    assert_eq!(findings.len(), 5, "{findings:?}");
}

#[tokio::test]
async fn a_database_that_is_away_is_not_critical_and_one_that_refuses_is() {
    let (site, database) = (Site::new().await, Database::new().await);
    let away = format!("postgres://broker_app:x@127.0.0.1:{}/x", free_port().await);
    let (_, place) = database.app_url.rsplit_once('@').expect("a login");
    let refused = format!("postgres://broker_app:wrong@{place}");
    for (url, severity) in [(away, Severity::High), (refused, Severity::Critical)] {
        let estate = site.look(Some(&store::pool(&url).expect("a URL"))).await;
        let findings = doctor::examine(&estate, &site.config);
        assert_found(&findings, &["database-unread"]);
        assert_eq!(findings[0].severity, severity, "{findings:?}");
    }
}

#[tokio::test]
async fn keys_in_software_the_instances_own_and_old_ones() {
    let (site, database) = (Site::with(SCOPES, "").await, Database::new().await);
    let now = Clock::default().now();
    tests::enrol(&database, "alice", &[], true, now).await;
    tests::enrol(&database, "bob", &[], false, now - Duration::days(366)).await;
    let own = identity::fingerprint(&site.config.settings.instance_key).expect("a key");
    let sql = "insert into person_key (fingerprint, person, public_key, assurance, evidence, enrolled_at) values ($1, 'bob', 'x', 'verified', 'made by a test', now())";
    sqlx::query(sql).bind(own).execute(&database.owner).await.expect("enrolled");
    let expected = ["key-is-instance", "key-old", "key-software", "sts-endpoint"];
    site.finds_in(&database, &expected).await;
}

// --------------------------------------------------------------------------------------------------------- the programs

#[tokio::test]
async fn a_dev_stack_is_quiet_and_what_is_done_to_it_is_found() {
    let (_root, dir) = dev_dir();
    let dev = Dev::start(&dir, &BTreeMap::new()).await;
    let config = dir.join("config").display().to_string();
    let run = async |more: &[&str]| {
        let output =
            dev.run(binary("brokerd"), &[&["doctor", "--config", &config], more].concat()).await;
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = run(&[]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.ends_with("checks found nothing\n"), "{out}");
    let (code, out, _) = run(&["-o", "json"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "{\n  \"findings\": []\n}\n"));
    until("it looked by itself", std::time::Duration::from_secs(20), async || {
        dev.server.log().contains("the doctor found nothing")
    })
    .await;

    mode(&dir.join("config/instance.pem"), 0o644);
    let (code, out, _) = run(&[]).await;
    assert_eq!(code, Some(3), "{out}");
    assert!(out.starts_with("critical  file-open ") && out.contains("fix    chmod 600"), "{out}");
    let (_, out, _) = run(&["-o", "json"]).await;
    let found: Value = serde_json::from_str(&out).expect("JSON");
    let names: Vec<_> =
        found["findings"][0].as_object().expect("a finding").keys().cloned().collect();
    assert_eq!(names, ["severity", "check", "subject", "found", "gains", "fix"]);
    mode(&dir.join("config/instance.pem"), 0o600);

    let mut without = dev.command(binary("brokerd"), &["doctor", "--config", &config]);
    let output = without.env_remove("BROKER_OPS_DATABASE_URL").output().await.expect("it runs");
    assert_eq!(output.status.code(), Some(4), "nobody looked at the database");
    let (code, ..) = {
        let output = dev.run(binary("brokerd"), &["doctor", "--config", "/nonexistent"]).await;
        (output.status.code(), ())
    };
    assert_eq!(code, Some(1));
    assert!(dev.server.stop("TERM").await.success());
}

#[tokio::test]
async fn serve_refuses_critical_findings_unless_it_is_told_otherwise() {
    let often = "[doctor]\nevery = \"1s\"\n";
    let (site, database) = (Site::with(SCOPES, often).await, Database::new().await);
    site.let_in("staging", json!("*")).await;
    let port = free_port().await;
    let file = site.dir.path().join("broker.toml");
    let settings = std::fs::read_to_string(&file).expect("ours");
    std::fs::write(&file, settings.replace(":1\"", &format!(":{port}\""))).expect("ours");
    let config = site.dir.path().display().to_string();
    let environment: BTreeMap<String, String> = [
        ("BROKER_DATABASE_URL", database.app_url.as_str()),
        ("BROKER_SEQUENCER_DATABASE_URL", database.sequencer_url.as_str()),
        ("AWS_ENDPOINT_URL", &stack::shared().endpoint),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let serve = ["serve", "--config", &config];
    let refused = program(binary("brokerd"), &environment).args(serve).output().await;
    let refused = refused.expect("it runs");
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("trust-wildcard") && said.contains("--despite-findings"), "{said}");

    let log = site.dir.path().join("log");
    let serve = [&serve[..], &["--despite-findings"]].concat();
    let server = tests::program::Server::start(&serve, &environment, &log);
    until("it serves", std::time::Duration::from_secs(20), async || {
        http(port, "GET", "/readyz", None, None).await.is_ok_and(|it| it.status == 200)
    })
    .await;
    assert!(server.log().contains("serving in spite of what the doctor found"), "{}", server.log());
    // What the record was told last, whether it has the star in it.
    let last_told = async || {
        let sql = "select doc from event where type = 'doctor.found' order by seq desc limit 1";
        let told: Value = sqlx::query_scalar(sql).fetch_one(&database.owner).await.expect(sql);
        let findings = told["data"]["detail"]["findings"].as_array().cloned().expect("a list");
        findings.iter().any(|it| it["check"] == "trust-wildcard")
    };
    assert!(last_told().await);
    // It goes on looking: what is mended is gone, and what comes back is found again.
    let soon = std::time::Duration::from_secs(30);
    site.trust("staging", |_| {}).await;
    until("it is no longer found", soon, async || !last_told().await).await;
    site.let_in("staging", json!("*")).await;
    until("it is found again", soon, last_told).await;
    assert!(server.stop("TERM").await.success());
}

/// What the documentation's table says, is what the checks say.
#[test]
fn the_documentation_has_every_check() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/doctor.md");
    let documentation = std::fs::read_to_string(path).expect("docs/doctor.md");
    let rows = doctor::checks().map(|it| {
        let severity = it.severity.as_str();
        format!("| `{}` | {severity} | {} | {} | {} |\n", it.id, it.wants, it.gains, it.fix)
    });
    let table = rows.collect::<Vec<_>>().concat();
    assert!(documentation.contains(&table), "docs/doctor.md should have:\n{table}");
    let mut ids: Vec<_> = doctor::checks().map(|it| it.id).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id is there twice");
}
