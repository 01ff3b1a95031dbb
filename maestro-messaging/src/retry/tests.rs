use super::*;
use lapin::types::FieldTable;
use maestro_config::Environment;
use proptest::prelude::*;

fn failure(reaction: Reaction) -> Failure {
    Failure {
        reaction,
        reason: None,
        error_type: "Broken".into(),
        message: "no".into(),
        chain: String::new(),
    }
}

fn seconds(all: &[u64]) -> Vec<Duration> {
    all.iter().copied().map(Duration::from_secs).collect()
}

fn identity() -> Identity {
    Environment::from_pairs([
        ("MAESTRO_SERVICE_NAME", "conductor"),
        ("MAESTRO_ENVIRONMENT", "test"),
    ])
    .read()
    .unwrap()
}

#[test]
fn a_failing_message_climbs_every_rung_once_and_then_dies() {
    let rungs = seconds(&[1, 10, 60]);
    let mut attempt = 0;
    let mut delays = Vec::new();
    let reason = loop {
        match route(&failure(Reaction::Retry), attempt, &rungs) {
            Route::Rung {
                delay,
                attempt: next,
            } => {
                delays.push(delay);
                attempt = next;
            }
            Route::Dead(reason) => break reason,
            Route::Back => panic!("a retry never goes straight back"),
        }
    };
    assert_eq!(delays, rungs);
    assert_eq!(attempt, 3);
    assert_eq!(reason, DeadReason::Exhausted);
}

#[test]
fn an_outage_costs_no_attempt() {
    let rungs = seconds(&[1, 10]);
    assert_eq!(
        route(&failure(Reaction::Unavailable), 1, &rungs),
        Route::Rung {
            delay: rungs[1],
            attempt: 1
        }
    );
    assert_eq!(
        route(&failure(Reaction::Unavailable), 2, &rungs),
        Route::Rung {
            delay: rungs[1],
            attempt: 2
        }
    );
    assert_eq!(route(&failure(Reaction::Unavailable), 0, &[]), Route::Back);
}

#[test]
fn a_wanted_delay_takes_the_shortest_rung_that_is_long_enough() {
    let rungs = seconds(&[1, 10, 60]);
    let wanted = |secs| failure(Reaction::RetryAfter(Duration::from_secs(secs)));
    let delay = |secs, attempt| match route(&wanted(secs), attempt, &rungs) {
        Route::Rung { delay, .. } => delay.as_secs(),
        other => panic!("{other:?}"),
    };
    assert_eq!(delay(0, 0), 1);
    assert_eq!(delay(2, 0), 10);
    assert_eq!(delay(3_600, 1), 60);
    assert_eq!(
        route(&wanted(1), 3, &rungs),
        Route::Dead(DeadReason::Exhausted)
    );
}

#[test]
fn a_dead_letter_tells_what_happened_and_a_replay_forgets_it() {
    let mut table = FieldTable::default();
    headers::set_text(&mut table, "x-death", "broker's");
    headers::set_text(&mut table, "invoice", "7");
    headers::set_count(&mut table, headers::ATTEMPT, 2);
    let original = BasicProperties::default()
        .with_message_id("id".into())
        .with_type("order.placed.v1".into())
        .with_expiration("500".into())
        .with_delivery_mode(1)
        .with_headers(table);
    let origin = ("orders.events".to_owned(), "order.placed.v1".to_owned());
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    let mut failed = failure(Reaction::Retry);
    failed.message = "m".repeat(10_000);
    let dead = dead(
        &original,
        &origin,
        3,
        DeadReason::Exhausted,
        &failed,
        &identity(),
        now,
    );
    let table = dead.headers().clone().unwrap();
    assert_eq!(
        headers::text(&table, headers::DEAD_REASON).as_deref(),
        Some("exhausted")
    );
    assert_eq!(
        headers::text(&table, headers::FAILED_SERVICE).as_deref(),
        Some("conductor")
    );
    assert_eq!(
        headers::text(&table, headers::EXCHANGE).as_deref(),
        Some("orders.events")
    );
    assert_eq!(headers::count(&table, headers::ATTEMPT), Some(3));
    assert_eq!(
        headers::integer(&table, headers::LAST_FAILED_AT),
        Some(1_700_000_000_123)
    );
    assert_eq!(
        headers::text(&table, headers::ERROR_MESSAGE).map(|m| m.len()),
        Some(2_048)
    );
    assert!(!table.contains_key("x-death"));
    assert_eq!(dead.delivery_mode(), &Some(2));
    assert_eq!(dead.expiration(), &None);

    let replay = replayed(&dead, now);
    let table = replay.headers().clone().unwrap();
    assert_eq!(headers::count(&table, headers::REPLAYS), Some(1));
    assert_eq!(headers::count(&table, headers::ATTEMPT), None);
    assert!(!table.contains_key(headers::DEAD_REASON));
    assert_eq!(headers::text(&table, "invoice").as_deref(), Some("7"));
    assert_eq!(
        headers::text(&table, headers::EXCHANGE).as_deref(),
        Some("orders.events")
    );
    assert_eq!(
        headers::count(
            &replayed(&replay, now).headers().clone().unwrap(),
            headers::REPLAYS
        ),
        Some(2)
    );
}

#[test]
fn the_first_failure_keeps_its_time() {
    let origin = (String::new(), String::new());
    let first = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    let later = SystemTime::UNIX_EPOCH + Duration::from_mins(15);
    let once = retried(&BasicProperties::default(), &origin, 1, first);
    let twice = retried(&once, &origin, 2, later);
    let table = twice.headers().clone().unwrap();
    assert_eq!(
        headers::integer(&table, headers::FIRST_FAILED_AT),
        Some(100_000)
    );
}

proptest! {
    #[test]
    fn a_message_is_retried_at_most_as_often_as_there_are_rungs(
        rungs in proptest::collection::vec(1_u64..1_000, 0..8),
        wanted in proptest::collection::vec(proptest::option::of(0_u64..2_000), 1..20),
    ) {
        let rungs = seconds(&rungs);
        let mut attempt = 0;
        for step in 0.. {
            let reaction = match wanted[step % wanted.len()] {
                Some(secs) => Reaction::RetryAfter(Duration::from_secs(secs)),
                None => Reaction::Retry,
            };
            match route(&failure(reaction), attempt, &rungs) {
                Route::Rung { delay, attempt: next } => {
                    prop_assert!(rungs.contains(&delay));
                    prop_assert_eq!(next, attempt + 1);
                    attempt = next;
                }
                Route::Dead(_) => break,
                Route::Back => prop_assert!(false, "went straight back"),
            }
        }
        prop_assert_eq!(attempt as usize, rungs.len());
    }
}
