//! The log over the events: what gets a place in it, what is signed, and what an export proves.

use broker::log::verify::{Options, Verdict};
use tests::logs::{check, codes, export, now, story};

#[tokio::test]
async fn an_export_of_what_happened_is_valid_and_every_event_is_in_it() {
    let broker = now().await;
    story(&broker).await;
    let file = export(&broker).await;
    let report = check(&file, Options::default());
    assert_eq!(report.verdict(), Verdict::Good, "{}\n{file}", report.text());
    let events: i64 = sqlx::query_scalar("select count(*) from event")
        .fetch_one(&broker.database.owner)
        .await
        .unwrap();
    assert_eq!(report.entries, u64::try_from(events).unwrap());
    assert_eq!((report.approvals, report.waiting), (1, 0));
    assert!(!report.pinned);
    // A single byte of any line makes it another story.
    for (number, line) in file.lines().enumerate().filter(|(_, it)| it.starts_with("{\"event\"")) {
        let changed = file.replacen(
            line,
            &line.replacen("\"body\":{\"actor\":\"", "\"body\":{\"actor\":\"x", 1),
            1,
        );
        let report = check(&changed, Options::default());
        assert_eq!(codes(&report)[0], "body-changed", "line {number}: {}", report.text());
    }
}
