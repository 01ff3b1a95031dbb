//! What the scripts in `crate::scripts` do, once more: they are the specification, and one suite of
//! tests runs against both.

use std::collections::HashMap;
use std::fmt;

use redis::Value;

use super::keys::{Keys, Refused};
use super::number;
use crate::envelope::Micros;
use crate::scripts;

type Run = fn(&mut Keys, Micros, &[&[u8]], &[&[u8]]) -> Result<Value, Refused>;

/// Scripts by their hash.
pub(super) struct Known(HashMap<String, Run>);

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Known").field(&self.0.len()).finish()
    }
}

impl Known {
    pub(super) fn new() -> Self {
        let known: [(&scripts::Script, Run); 12] = [
            (&scripts::BEGIN, begin),
            (&scripts::STORE, store),
            (&scripts::REMOVE, remove),
            (&scripts::MARK, mark),
            (&scripts::LOCK, lock),
            (&scripts::RENEW, renew),
            (&scripts::RELEASE, release),
            (&scripts::LIMIT, limit),
            (&scripts::PUSH, push),
            (&scripts::COUNT, count),
            (&scripts::SESSION, session),
            (&scripts::TOUCH, touch),
        ];
        let hashed = known.map(|(script, run)| {
            let hash = redis::Script::new(script.body).get_hash().to_owned();
            (hash, run)
        });
        Self(HashMap::from(hashed))
    }

    pub(super) fn find(&self, hash: &[u8]) -> Option<Run> {
        self.0.get(std::str::from_utf8(hash).ok()?).copied()
    }
}

fn arguments<'a, const N: usize>(given: &[&'a [u8]]) -> Result<[&'a [u8]; N], Refused> {
    given.try_into().map_err(|_| Refused::Unknown)
}

fn parse<T: std::str::FromStr>(argument: &[u8]) -> Result<T, Refused> {
    number(argument).ok_or(Refused::Unknown)
}

fn answer(number: u64) -> Value {
    Value::BulkString(number.to_string().into_bytes())
}

fn word(word: &str) -> Value {
    Value::BulkString(word.as_bytes().to_vec())
}

fn whole(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

/// The creation in the header of a stored entry.
fn created(keys: &Keys, key: &[u8], now: Micros) -> Option<u64> {
    let head = keys.text(key, now)?.get(..22)?;
    (head.starts_with(b"m1 ") && head.get(5) == Some(&b' ')).then_some(())?;
    number(head.get(6..)?)
}

fn begin(keys: &mut Keys, now: Micros, names: &[&[u8]], given: &[&[u8]]) -> Result<Value, Refused> {
    let [life] = arguments(given)?;
    let life: u64 = parse(life)?;
    for (index, key) in names.iter().enumerate() {
        if keys.text(key, now).is_none() {
            let before = (now.0 - 1).to_string().into_bytes();
            keys.set(key, before, now, (index >= 2).then_some(life));
        }
    }
    Ok(answer(now.0))
}

fn store(keys: &mut Keys, now: Micros, names: &[&[u8]], given: &[&[u8]]) -> Result<Value, Refused> {
    let [began, letters, logical, physical, tags, payload, longest] = arguments(given)?;
    let (began, logical): (u64, u64) = (parse(began)?, parse(logical)?);
    let (physical, longest): (u64, u64) = (parse(physical)?, parse(longest)?);
    let (entry, markers) = names.split_first().ok_or(Refused::Unknown)?;
    let put = began == 0;
    let old = created(keys, entry, now);
    let mut creation = if put {
        now.0.max(old.map_or(0, |old| old + 1))
    } else {
        if now.0.saturating_sub(began) > longest {
            return Ok(word("late"));
        }
        if old.is_some_and(|old| old >= began) {
            return Ok(word("newer"));
        }
        began
    };
    let mut refused = false;
    for (index, key) in markers.iter().enumerate() {
        let is_tag = index >= 2;
        let marker = if let Some(marker) = keys.number(key, now) {
            if put && marker >= creation {
                creation = marker + 1;
            }
            marker
        } else {
            let marker = if put { creation - 1 } else { now.0 };
            let life = is_tag.then_some(2 * physical);
            keys.set(key, marker.to_string().into_bytes(), now, life);
            marker
        };
        refused |= marker >= creation;
        if is_tag && keys.left(key, now).is_some_and(|left| left < physical) {
            keys.expire(key, now, 2 * physical);
        }
    }
    if refused {
        return Ok(word("invalidated"));
    }
    let mut stored = b"m1 ".to_vec();
    stored.extend_from_slice(letters);
    let expires = creation.saturating_add(logical);
    stored.extend_from_slice(format!(" {creation:016} {expires:016} ").as_bytes());
    stored.extend_from_slice(tags);
    stored.push(b'\n');
    stored.extend_from_slice(payload);
    keys.set(entry, stored, now, Some(physical));
    Ok(word(&format!("{creation:016}")))
}

fn remove(
    keys: &mut Keys,
    now: Micros,
    names: &[&[u8]],
    given: &[&[u8]],
) -> Result<Value, Refused> {
    let [life] = arguments(given)?;
    let life = parse(life)?;
    for key in names {
        let old = created(keys, key, now);
        let creation = now.0.max(old.map_or(0, |old| old + 1));
        let tombstone = format!("m1 x- {creation:016} 0000000000000000 []\n");
        keys.set(key, tombstone.into_bytes(), now, Some(life));
    }
    Ok(Value::Int(0))
}

fn mark(keys: &mut Keys, now: Micros, names: &[&[u8]], given: &[&[u8]]) -> Result<Value, Refused> {
    for (key, life) in names.iter().zip(given) {
        let old = keys.number(key, now).unwrap_or(0);
        let text = now.0.max(old).to_string().into_bytes();
        let life: u64 = parse(life)?;
        let life = (life > 0).then(|| life.max(keys.left(key, now).unwrap_or(0)));
        keys.set(key, text, now, life);
    }
    Ok(answer(now.0))
}

/// Who holds a lock, and the token.
fn holder<'a>(keys: &'a Keys, key: &[u8], now: Micros) -> Option<(&'a [u8], &'a [u8])> {
    let held = keys.text(key, now)?;
    let space = held.iter().position(|byte| *byte == b' ');
    let (holder, token) = held.split_at(space.unwrap_or(held.len()));
    Some((holder, token.get(1..).unwrap_or_default()))
}

fn lock(keys: &mut Keys, now: Micros, names: &[&[u8]], given: &[&[u8]]) -> Result<Value, Refused> {
    let [asks, lease, life] = arguments(given)?;
    let [key, last] = arguments(names)?;
    let fence = match holder(keys, key, now) {
        Some((held_by, _)) if held_by != asks => {
            let left = keys.left(key, now).unwrap_or(0);
            return Ok(Value::Array(vec![Value::Int(0), whole(left)]));
        }
        Some((_, token)) => token.to_vec(),
        None => {
            let last_token: u64 = keys.number(last, now).unwrap_or(0);
            let fence = now.0.max(last_token + 1).to_string().into_bytes();
            keys.set(last, fence.clone(), now, Some(parse(life)?));
            fence
        }
    };
    let held = [asks, b" ", &fence].concat();
    keys.set(key, held, now, Some(parse(lease)?));
    Ok(Value::Array(vec![Value::Int(1), Value::BulkString(fence)]))
}

fn renew(keys: &mut Keys, now: Micros, names: &[&[u8]], given: &[&[u8]]) -> Result<Value, Refused> {
    let ([key], [asks, lease]) = (arguments(names)?, arguments(given)?);
    let ours = holder(keys, key, now).is_some_and(|(holder, _)| holder == asks);
    let renewed = ours && keys.expire(key, now, parse(lease)?);
    Ok(Value::Int(i64::from(renewed)))
}

fn release(
    keys: &mut Keys,
    now: Micros,
    names: &[&[u8]],
    given: &[&[u8]],
) -> Result<Value, Refused> {
    let ([key], [asks]) = (arguments(names)?, arguments(given)?);
    let ours = holder(keys, key, now).is_some_and(|(holder, _)| holder == asks);
    Ok(Value::Int(i64::from(ours && keys.delete(key, now))))
}

/// Microseconds are counted from here, as in the script.
const EPOCH: u64 = 1_700_000_000_000_000;

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what the script computes in doubles, and a cast of a double saturates"
)]
fn limit(
    keys: &mut Keys,
    time: Micros,
    names: &[&[u8]],
    given: &[&[u8]],
) -> Result<Value, Refused> {
    let ([key], [interval, burst, cost, peek]) = (arguments(names)?, arguments(given)?);
    let (interval, burst, cost): (f64, f64, f64) = (parse(interval)?, parse(burst)?, parse(cost)?);
    let now = time.0.saturating_sub(EPOCH) as f64;
    let known: f64 = keys.number(key, time).unwrap_or(now);
    let mut tat = known.max(now).min(now + burst * interval);
    let slack = burst / 64.0;
    let after = tat + cost * interval;
    let early = after - burst * interval - now;
    let allowed = early <= slack;
    if allowed && peek != b"1" && cost > 0.0 {
        tat = after;
        let life = ((tat - now) / 1_000.0).ceil() as u64;
        keys.set(key, format!("{tat:.3}").into_bytes(), time, Some(life));
    }
    let left = ((burst * interval - (tat - now) + slack) / interval).floor();
    let whole = |number: f64| Value::Int(number as i64);
    Ok(Value::Array(vec![
        Value::Int(i64::from(allowed)),
        whole(left.max(0.0)),
        whole(if allowed { 0.0 } else { early.ceil() }),
        whole((tat - now).ceil()),
    ]))
}

fn push(keys: &mut Keys, now: Micros, names: &[&[u8]], given: &[&[u8]]) -> Result<Value, Refused> {
    let ([key], [element, capacity, life]) = (arguments(names)?, arguments(given)?);
    keys.push(key, element, now)?;
    keys.trim(key, parse(capacity)?);
    keys.expire(key, now, parse(life)?);
    Ok(Value::Int(1))
}

fn count(keys: &mut Keys, now: Micros, names: &[&[u8]], given: &[&[u8]]) -> Result<Value, Refused> {
    let ([key], [by, life]) = (arguments(names)?, arguments(given)?);
    let sum = keys.number::<i64>(key, now).unwrap_or(0);
    let sum = sum.checked_add(parse(by)?).ok_or(Refused::Unknown)?;
    let left = keys.left(key, now);
    let life = left.map_or_else(|| parse(life), Ok)?;
    keys.set(key, sum.to_string().into_bytes(), now, Some(life));
    Ok(Value::Int(sum))
}

/// What is left of a session that may live on for `idle` ms and for `max_age` µs in all.
fn session_left(began: u64, now: Micros, idle: u64, max_age: u64) -> u64 {
    let left = began.saturating_add(max_age).saturating_sub(now.0);
    idle.min(left / 1_000)
}

/// When a session began.
fn session_began(keys: &Keys, key: &[u8], now: Micros) -> Option<u64> {
    number(keys.text(key, now)?.get(..16)?)
}

fn session(
    keys: &mut Keys,
    now: Micros,
    names: &[&[u8]],
    given: &[&[u8]],
) -> Result<Value, Refused> {
    let ([key], [payload, idle, max_age, begin]) = (arguments(names)?, arguments(given)?);
    let began = if begin == b"1" {
        now.0
    } else {
        match session_began(keys, key, now) {
            Some(began) => began,
            None => return Ok(Value::Int(0)),
        }
    };
    let life = session_left(began, now, parse(idle)?, parse(max_age)?);
    if life == 0 {
        keys.delete(key, now);
        return Ok(Value::Int(0));
    }
    let stored = [format!("{began:016} ").as_bytes(), payload].concat();
    keys.set(key, stored, now, Some(life));
    Ok(Value::Int(1))
}

fn touch(keys: &mut Keys, now: Micros, names: &[&[u8]], given: &[&[u8]]) -> Result<Value, Refused> {
    let ([key], [idle, max_age]) = (arguments(names)?, arguments(given)?);
    let Some(began) = session_began(keys, key, now) else {
        return Ok(Value::Nil);
    };
    let life = session_left(began, now, parse(idle)?, parse(max_age)?);
    if life == 0 {
        keys.delete(key, now);
        return Ok(Value::Nil);
    }
    keys.expire(key, now, life);
    let payload = keys.text(key, now).and_then(|stored| stored.get(17..));
    Ok(payload.map_or(Value::Nil, |payload| Value::BulkString(payload.to_vec())))
}
