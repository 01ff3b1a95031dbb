use super::*;
use proptest::prelude::*;

fn none() -> Option<fn(&u64) -> bool> {
    None
}

fn settled(attribution: &mut Attribution<u64>) -> Vec<(u64, Verdict)> {
    let mut verdicts = Vec::new();
    attribution.settle(|_, item, verdict| verdicts.push((item, verdict)));
    verdicts.sort_by_key(|(item, _)| *item);
    verdicts
}

#[test]
fn a_confirm_without_return_is_routed_at_once() {
    let mut attribution = Attribution::new();
    let first = attribution.published(1);
    attribution.published(2);
    attribution.ack(first, none());
    assert_eq!(settled(&mut attribution), [(1, Verdict::Routed)]);
    assert_eq!(attribution.into_lost().collect::<Vec<_>>(), [(1, 2)]);
}

#[test]
fn a_return_belongs_to_the_message_it_names_not_to_the_confirm_it_came_with() {
    let mut attribution = Attribution::new();
    let routed = attribution.published(1);
    let unrouted = attribution.published(2);
    attribution.ack(routed, Some(|item: &u64| *item == 2));
    attribution.ack(unrouted, none());
    assert_eq!(
        settled(&mut attribution),
        [(1, Verdict::Routed), (2, Verdict::Unrouted)]
    );
}

#[test]
fn a_confirm_that_took_an_earlier_return_waits_for_proof() {
    let mut attribution = Attribution::new();
    let first = attribution.published(1);
    let second = attribution.published(2);
    // Both are unrouted; the second is confirmed first and takes the first one's return.
    attribution.ack(second, Some(|item: &u64| *item == 1));
    assert_eq!(settled(&mut attribution), []);
    attribution.ack(first, Some(|item: &u64| *item == 2));
    assert_eq!(
        settled(&mut attribution),
        [(1, Verdict::Unrouted), (2, Verdict::Unrouted)]
    );
}

#[test]
fn an_empty_line_proves_earlier_confirms_routed() {
    let mut attribution = Attribution::new();
    let waiting = attribution.published(0);
    let unrouted = attribution.published(1);
    let routed = attribution.published(2);
    let last = attribution.published(3);
    attribution.ack(routed, Some(|item: &u64| *item == 1));
    assert_eq!(settled(&mut attribution), []);
    attribution.ack(last, none());
    assert_eq!(
        settled(&mut attribution),
        [(2, Verdict::Routed), (3, Verdict::Routed)]
    );
    attribution.ack(unrouted, none());
    attribution.ack(waiting, none());
    assert_eq!(
        settled(&mut attribution),
        [(0, Verdict::Routed), (1, Verdict::Unrouted)]
    );
}

#[test]
fn what_cannot_be_proven_when_the_channel_ends_is_lost_and_not_guessed() {
    let mut attribution = Attribution::new();
    let first = attribution.published(1);
    let second = attribution.published(2);
    attribution.ack(second, Some(|item: &u64| *item == 1));
    attribution.lost(first);
    assert_eq!(
        settled(&mut attribution),
        [(1, Verdict::Lost), (2, Verdict::Lost)]
    );
}

#[test]
fn a_refusal_is_certain_whatever_it_carries() {
    let mut attribution = Attribution::new();
    let refused = attribution.published(1);
    let unrouted = attribution.published(2);
    attribution.nack(refused, Some(|item: &u64| *item == 2));
    attribution.ack(unrouted, none());
    assert_eq!(
        settled(&mut attribution),
        [(1, Verdict::Refused), (2, Verdict::Unrouted)]
    );
}

/// The broker and the driver as they behave: returns in publishing order and before their confirm,
/// confirms in any order, each confirm taking the first return in the line.
fn driver(
    fates: &[u8],
    confirm_order: &[usize],
    published_ahead: &[usize],
) -> Vec<(usize, Option<usize>)> {
    let mut line = VecDeque::new();
    let mut processed = 0;
    let mut reports = Vec::new();
    for (step, &message) in confirm_order.iter().enumerate() {
        // The broker has processed at least up to the message it confirms, perhaps further.
        let ahead = published_ahead.get(step).copied().unwrap_or_default();
        let until = (message + 1 + ahead).max(processed).min(fates.len());
        for (at, fate) in fates.iter().enumerate().take(until).skip(processed) {
            if *fate == 1 {
                line.push_back(at);
            }
        }
        processed = until;
        reports.push((message, line.pop_front()));
    }
    reports
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn every_verdict_is_the_brokers_own(
        (fates, confirm_order) in proptest::collection::vec(0_u8..3, 1..40).prop_flat_map(|fates| {
            let order = Just((0..fates.len()).collect::<Vec<_>>()).prop_shuffle();
            (Just(fates), order)
        }),
        ahead in proptest::collection::vec(0_usize..6, 40),
        cuts in proptest::collection::vec(1_usize..5, 40),
        shuffle in any::<u64>(),
    ) {
        // Fates: 0 routed, 1 unrouted, 2 refused.
        let reports = driver(&fates, &confirm_order, &ahead);
        let mut attribution = Attribution::new();
        for message in 0..fates.len() {
            attribution.published(message);
        }
        let mut verdicts = vec![None; fates.len()];
        let mut reports = reports.into_iter();
        let mut random = fastrand::Rng::with_seed(shuffle);
        for cut in cuts.iter().cycle() {
            let mut pass: Vec<_> = reports.by_ref().take(*cut).collect();
            if pass.is_empty() {
                break;
            }
            random.shuffle(&mut pass);
            for (message, returned) in pass {
                let returned = returned.map(|returned| move |item: &usize| *item == returned);
                if fates[message] == 2 {
                    attribution.nack(message as u64, returned);
                } else {
                    attribution.ack(message as u64, returned);
                }
            }
            attribution.settle(|_, item, verdict| verdicts[item] = Some(verdict));
        }
        let expected: Vec<_> = fates
            .iter()
            .map(|fate| Some([Verdict::Routed, Verdict::Unrouted, Verdict::Refused][usize::from(*fate)]))
            .collect();
        prop_assert_eq!(verdicts, expected);
        prop_assert_eq!(attribution.span(), 0);
    }
}
