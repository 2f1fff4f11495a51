//! What a program does with the Rust SDK: the same as the other clients in `tests/clients`.

use std::collections::BTreeSet;

use aws_config::BehaviorVersion;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::{Client, config};

#[expect(
    clippy::disallowed_methods,
    reason = "a program of the tests, which tell it by its environment"
)]
fn setting(name: &str) -> String {
    std::env::var(name).expect(name)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let loaded = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let config = config::Builder::from(&loaded).force_path_style(true).build();
    let s3 = Client::from_conf(config);
    let [staging, production, key] = ["STAGING", "PRODUCTION", "KEY"].map(setting);
    let [rounds, sessions]: [usize; 2] = [setting("ROUNDS").parse()?, setting("SESSIONS").parse()?];
    let (mut round, mut refusals) = (0, BTreeSet::new());
    // AWS names the session that it refuses.
    while round < rounds || refusals.len() < sessions {
        round += 1;
        s3.put_object().bucket(&staging).key(&key).send().await?;
        let listed = s3.list_objects_v2().bucket(&staging).prefix(&key).send().await?;
        assert_eq!(listed.contents()[0].key(), Some(key.as_str()));
        s3.delete_object().bucket(&staging).key(&key).send().await?;
        let refused = s3.delete_object().bucket(&production).key(&key).send().await;
        let refused = refused.expect_err("production is closed").into_service_error();
        assert_eq!(refused.code(), Some("AccessDenied"), "{refused:?}");
        let message = refused.message().unwrap_or_default();
        println!("denied {message}");
        refusals.insert(message.to_owned());
    }
    Ok(())
}
