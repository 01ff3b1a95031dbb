//! What the server in memory holds, and its plain commands.

use std::collections::{HashMap, VecDeque};

use redis::Value;

use super::number;
use crate::envelope::Micros;

/// Why a command was refused.
#[derive(Debug)]
pub(super) enum Refused {
    WrongType,
    Unknown,
}

/// Keys with their lifetimes.
#[derive(Debug, Default)]
pub(super) struct Keys {
    slots: HashMap<Vec<u8>, Slot>,
    changed: Vec<Vec<u8>>,
    /// Size at which what has expired is swept out next.
    sweep_at: usize,
}

#[derive(Debug)]
struct Slot {
    held: Held,
    /// `None`: for ever.
    ends: Option<Micros>,
}

#[derive(Debug)]
enum Held {
    Text(Vec<u8>),
    /// Newest first.
    List(VecDeque<Vec<u8>>),
}

impl Keys {
    fn live(&self, key: &[u8], now: Micros) -> Option<&Slot> {
        let slot = self.slots.get(key)?;
        slot.ends.is_none_or(|ends| now < ends).then_some(slot)
    }

    pub(super) fn exists(&self, key: &[u8], now: Micros) -> bool {
        self.live(key, now).is_some()
    }

    /// The text of a key; `None` also for a list.
    pub(super) fn text(&self, key: &[u8], now: Micros) -> Option<&[u8]> {
        match &self.live(key, now)?.held {
            Held::Text(text) => Some(text),
            Held::List(_) => None,
        }
    }

    /// The number a text begins with the text of.
    pub(super) fn number<T: std::str::FromStr>(&self, key: &[u8], now: Micros) -> Option<T> {
        number(self.text(key, now)?)
    }

    /// Milliseconds that are left; `None` for a key that is not there or stays for ever.
    pub(super) fn left(&self, key: &[u8], now: Micros) -> Option<u64> {
        let ends = self.live(key, now)?.ends?;
        Some((ends.0 - now.0).div_ceil(1_000))
    }

    /// `millis`: `None` for ever.
    pub(super) fn set(&mut self, key: &[u8], text: Vec<u8>, now: Micros, millis: Option<u64>) {
        let slot = Slot {
            held: Held::Text(text),
            ends: millis.map(|millis| after(now, millis)),
        };
        self.insert(key, slot, now);
    }

    pub(super) fn push(&mut self, key: &[u8], element: &[u8], now: Micros) -> Result<(), Refused> {
        let mut list = match self.live(key, now).map(|slot| &slot.held) {
            Some(Held::Text(_)) => return Err(Refused::WrongType),
            Some(Held::List(list)) => list.clone(),
            None => VecDeque::new(),
        };
        list.push_front(element.to_vec());
        let held = Held::List(list);
        self.insert(key, Slot { held, ends: None }, now);
        Ok(())
    }

    pub(super) fn trim(&mut self, key: &[u8], length: usize) {
        if let Some(Slot {
            held: Held::List(list),
            ..
        }) = self.slots.get_mut(key)
        {
            list.truncate(length);
        }
    }

    pub(super) fn expire(&mut self, key: &[u8], now: Micros, millis: u64) -> bool {
        if !self.exists(key, now) {
            return false;
        }
        if let Some(slot) = self.slots.get_mut(key) {
            slot.ends = Some(after(now, millis));
        }
        true
    }

    pub(super) fn delete(&mut self, key: &[u8], now: Micros) -> bool {
        let existed = self.exists(key, now);
        self.slots.remove(key);
        if existed {
            self.changed.push(key.to_vec());
        }
        existed
    }

    /// Names that changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.changed)
    }

    fn insert(&mut self, key: &[u8], slot: Slot, now: Micros) {
        if self.slots.len() >= self.sweep_at {
            self.slots
                .retain(|_, slot| slot.ends.is_none_or(|ends| now < ends));
            self.sweep_at = (self.slots.len() * 2).max(1_024);
        }
        self.slots.insert(key.to_vec(), slot);
        self.changed.push(key.to_vec());
    }
}

fn after(now: Micros, millis: u64) -> Micros {
    Micros(now.0.saturating_add(millis.saturating_mul(1_000)))
}

/// Runs a command that is no script.
pub(super) fn command(
    keys: &mut Keys,
    now: Micros,
    name: &[u8],
    arguments: &[&[u8]],
) -> Result<Value, Refused> {
    let get = |keys: &Keys, key: &[u8]| {
        keys.text(key, now)
            .map_or(Value::Nil, |text| Value::BulkString(text.to_vec()))
    };
    match (name, arguments) {
        (b"GET", [key]) => match keys.live(key, now).map(|slot| &slot.held) {
            Some(Held::List(_)) => Err(Refused::WrongType),
            _ => Ok(get(keys, key)),
        },
        (b"MGET", names) => Ok(Value::Array(
            names.iter().map(|key| get(keys, key)).collect(),
        )),
        (b"SET", [key, value, b"NX", b"PX", millis]) => {
            if keys.exists(key, now) {
                return Ok(Value::Nil);
            }
            keys.set(key, value.to_vec(), now, number(millis));
            Ok(Value::Okay)
        }
        (b"DEL", [key]) => Ok(Value::Int(i64::from(keys.delete(key, now)))),
        (b"LRANGE", [key, b"0", last]) => {
            let last: usize = number(last).ok_or(Refused::Unknown)?;
            match keys.live(key, now).map(|slot| &slot.held) {
                None => Ok(Value::Array(Vec::new())),
                Some(Held::Text(_)) => Err(Refused::WrongType),
                Some(Held::List(list)) => Ok(Value::Array(
                    list.iter()
                        .take(last.saturating_add(1))
                        .map(|element| Value::BulkString(element.clone()))
                        .collect(),
                )),
            }
        }
        _ => Err(Refused::Unknown),
    }
}
