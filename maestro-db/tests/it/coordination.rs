//! Between replicas: notifications, locks, leaders.

use std::time::Duration;

use maestro_db::{Db, ErrorKind, Event};

use crate::support::{config, database, eventually, migrator, read, sandbox};

/// Longest wait for what arrives in milliseconds.
const SOON: Duration = Duration::from_mins(1);

pub(crate) async fn next(listener: &mut maestro_db::Listener) -> Event {
    tokio::time::timeout(SOON, listener.next())
        .await
        .expect("nothing was heard")
        .unwrap()
}

pub(crate) fn text(event: Event) -> (String, String) {
    match event {
        Event::Notification(news) => (news.channel, news.payload),
        other => panic!("{other:?} instead of a notification"),
    }
}

#[tokio::test]
async fn notifications_are_heard_when_their_transaction_commits() {
    let it = database("", &[]).await;
    let mut listener = it.db.listen(&["orders", "Odd \"name"]).await.unwrap();
    let mut tx = it.db.begin().await.unwrap();
    sqlx::query("select pg_notify('orders', $1)")
        .bind("17")
        .execute(&mut tx)
        .await
        .unwrap();
    sqlx::query("select pg_notify('Odd \"name', 'x')")
        .execute(&it.db)
        .await
        .unwrap();
    assert_eq!(
        text(next(&mut listener).await),
        ("Odd \"name".to_owned(), "x".to_owned())
    );
    tx.commit().await.unwrap();
    assert_eq!(
        text(next(&mut listener).await),
        ("orders".to_owned(), "17".to_owned())
    );
}

#[tokio::test]
async fn a_listener_comes_back_by_itself_and_says_that_it_may_have_missed_some() {
    let it = database("", &[]).await;
    let mut listener = it.db.listen(&["orders"]).await.unwrap();
    // The one direct connection among them is the listener's.
    for break_it in [0, 1] {
        if break_it == 0 {
            it.sandbox.postgres_link().reset().await.unwrap();
        } else {
            it.sandbox.postgres_link().cut().await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            it.sandbox.postgres_link().restore().await.unwrap();
        }
        assert_eq!(next(&mut listener).await, Event::Gap);
        eventually("the service works", SOON, || async {
            sqlx::query("select pg_notify('orders', 'again')")
                .execute(&it.db)
                .await
                .is_ok()
        })
        .await;
        assert_eq!(text(next(&mut listener).await).1, "again");
    }
}

#[tokio::test]
async fn a_listener_is_ended_by_the_server_and_listens_again() {
    let it = database("", &[]).await;
    let mut listener = it.db.listen(&["orders"]).await.unwrap();
    // The pool's sessions with it: what a listener asked last is not for a test to know.
    crate::support::administer(format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = '{}'",
        it.db.config().role()
    ))
    .await;
    assert_eq!(next(&mut listener).await, Event::Gap);
}

#[tokio::test]
async fn a_lock_of_a_transaction_is_held_until_it_ends() {
    let it = database("", &[("LOCK_TIMEOUT", "200ms")]).await;
    let mut first = it.db.begin().await.unwrap();
    first.advisory_lock("o'clock\\").await.unwrap();
    let mut second = it.db.begin().await.unwrap();
    second.advisory_lock("another").await.unwrap();
    let refused = second.advisory_lock("o'clock\\").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Timeout);
    first.commit().await.unwrap();
    drop(second);
    let mut third = it.db.begin().await.unwrap();
    third.advisory_lock("o'clock\\").await.unwrap();
}

#[tokio::test]
async fn a_lock_of_a_session_is_one_replicas_at_a_time() {
    let it = database("", &[]).await;
    let mut lock = it
        .db
        .advisory_lock("report", Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    lock.check().await.unwrap();
    assert!(
        it.db
            .advisory_lock("report", Duration::from_millis(100))
            .await
            .unwrap()
            .is_none()
    );
    let waiting = it.db.advisory_lock("report", SOON);
    let (got, ()) = tokio::join!(waiting, async { lock.release().await.unwrap() });
    drop(got.unwrap().unwrap());
    // Dropping it releases it, too.
    drop(it.db.advisory_lock("report", SOON).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_lock_whose_session_was_lost_says_so() {
    let it = database("", &[]).await;
    let mut lock = it
        .db
        .advisory_lock("report", Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    it.sandbox.postgres_link().reset().await.unwrap();
    assert_eq!(
        lock.check().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

/// Renewed every third of it, and relied on for four fifths: a machine that stands still for five
/// seconds changes no leader.
const LEASE: Duration = Duration::from_secs(12);

async fn electing(settings: &[(&str, &str)]) -> (maestro_testkit::Sandbox, Db) {
    let sandbox = sandbox().await;
    let db = Db::builder(config(&sandbox, settings))
        .leases()
        .wait_for_server(SOON)
        .connect()
        .await
        .unwrap();
    db.migrate(&migrator(&[])).await.unwrap();
    (sandbox, db)
}

/// When the one lease there is runs out.
async fn expiry(db: &Db) -> chrono::DateTime<chrono::Utc> {
    sqlx::query_scalar("select expires_at from maestro.leases")
        .fetch_one(db)
        .await
        .unwrap()
}

#[tokio::test]
async fn one_candidate_leads_and_the_next_one_follows_with_a_higher_token() {
    let (_sandbox, db) = electing(&[]).await;
    let (one, two) = (db.elect("scheduler", LEASE), db.elect("scheduler", LEASE));
    let first = one.try_lead().await.unwrap().unwrap();
    assert!(first.is_leader());
    assert!(two.try_lead().await.unwrap().is_none());
    // It renews its lease for as long as it lives.
    for _ in 0..2 {
        let until = expiry(&db).await;
        eventually("it is renewed", SOON, async || expiry(&db).await > until).await;
    }
    assert!(first.is_leader());
    assert!(two.try_lead().await.unwrap().is_none());

    let token = first.token();
    let (second, ()) = tokio::join!(two.lead(), async { first.resign().await.unwrap() });
    let second = second.unwrap();
    assert!(second.token() > token);
    // Dropped without a word: the lease runs out.
    let token = second.token();
    drop(second);
    let third = tokio::time::timeout(SOON, one.lead())
        .await
        .unwrap()
        .unwrap();
    assert!(third.token() > token);
}

#[tokio::test]
async fn a_leader_that_is_cut_off_knows_before_another_one_leads() {
    let (sandbox, db) = electing(&[("ACQUIRE_TIMEOUT", "3s"), ("CONNECT_TIMEOUT", "3s")]).await;
    // Past the link that will be cut.
    let direct = read(sandbox.direct_environment(), &[]);
    let other = Db::builder(direct).leases().connect().await.unwrap();
    let leader = db.elect("scheduler", LEASE).lead().await.unwrap();
    sandbox.postgres_link().blackhole().await.unwrap();
    let follower = other.elect("scheduler", LEASE);
    let next = tokio::time::timeout(SOON, follower.lead())
        .await
        .unwrap()
        .unwrap();
    assert!(!leader.is_leader(), "two leaders at once");
    assert!(next.is_leader());
    tokio::time::timeout(SOON, leader.lost()).await.unwrap();
    sandbox.postgres_link().restore().await.unwrap();
    // The old one does not come back by itself.
    eventually("the service works", SOON, || async {
        sqlx::query("select 1").execute(&db).await.is_ok()
    })
    .await;
    assert!(!leader.is_leader());
    assert!(next.is_leader());
}

#[tokio::test]
async fn an_election_without_its_table_says_so_at_once() {
    let it = database("", &[]).await;
    let error = it.db.elect("scheduler", LEASE).lead().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected, "{error}");
}
