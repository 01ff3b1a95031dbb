//! The scripts that run inside Redis. Each decides by the server's own clock, in one step.
//!
//! Rules they keep together:
//! - an entry lives while it was created after every marker that speaks for it; a marker that is
//!   missing (evicted, or lost with a restarted server) counts as later than the entry, so losing one
//!   invalidates too much and never too little;
//! - the creation of an entry only grows while its key exists; a removal leaves a tombstone with a
//!   creation of its own;
//! - what a loader brought is stored only if nothing that speaks for the key is newer than the moment
//!   the load began, and the load did not begin longer ago than a tombstone lives.
//!
//! Numbers beyond 2^31 are written with `string.format('%.0f', n)`: `tostring` rounds them.

use crate::metrics::Operation;

/// A script and the operation it is reported as.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) operation: Operation,
    pub(crate) body: &'static str,
}

/// Before a load. Keys: markers, those of everything and of the region first. Argument: lifetime of
/// a tag's marker in ms. Makes missing markers and returns the server's time in microseconds.
pub(crate) static BEGIN: Script = Script {
    operation: Operation::Begin,
    body: r"
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
for i = 1, #KEYS do
  if type(redis.pcall('GET', KEYS[i])) ~= 'string' then
    local before = string.format('%.0f', now - 1)
    if i <= 2 then redis.call('SET', KEYS[i], before)
    else redis.call('SET', KEYS[i], before, 'PX', ARGV[1]) end
  end
end
return string.format('%.0f', now)
",
};

/// Stores a value. Keys: entry, marker of everything, marker of the region, markers of tags.
/// Arguments: time the load began (`0`: written by the caller's will, now), encoding letters,
/// logical lifetime in µs, physical lifetime in ms, tags field, payload, longest load in µs.
/// Returns the creation, or why it was refused: `newer`, `invalidated`, `late`.
pub(crate) static STORE: Script = Script {
    operation: Operation::Store,
    body: r"
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local created = tonumber(ARGV[1])
local put = created == 0
local physical = tonumber(ARGV[4])
local head = redis.pcall('GETRANGE', KEYS[1], 0, 21)
local old = type(head) == 'string' and tonumber(string.match(head, '^m1 .. (%d+)$'))
if put then
  created = now
  if old and old >= created then created = old + 1 end
else
  if now - created > tonumber(ARGV[7]) then return 'late' end
  if old and old >= created then return 'newer' end
end
local refused = false
for i = 2, #KEYS do
  local marker = redis.pcall('GET', KEYS[i])
  marker = type(marker) == 'string' and tonumber(marker)
  if not marker then
    if put then marker = created - 1 else marker = now end
    local text = string.format('%.0f', marker)
    if i <= 3 then redis.call('SET', KEYS[i], text)
    else redis.call('SET', KEYS[i], text, 'PX', 2 * physical) end
  elseif put and marker >= created then
    created = marker + 1
  end
  if marker >= created then refused = true end
  if i > 3 then
    local left = redis.call('PTTL', KEYS[i])
    if left >= 0 and left < physical then redis.call('PEXPIRE', KEYS[i], 2 * physical) end
  end
end
if refused then return 'invalidated' end
local text = string.format('%016.0f', created)
local expires = string.format('%016.0f', created + tonumber(ARGV[3]))
redis.call('SET', KEYS[1], 'm1 ' .. ARGV[2] .. ' ' .. text .. ' ' .. expires .. ' ' .. ARGV[5] .. '\n' .. ARGV[6], 'PX', physical)
return text
",
};

/// Removes entries. Keys: entries. Argument: lifetime of a tombstone in ms. Returns how many could
/// not be given a tombstone because the server is out of memory; those were deleted all the same.
pub(crate) static REMOVE: Script = Script {
    operation: Operation::Remove,
    body: r"
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local bare = 0
for i = 1, #KEYS do
  local head = redis.pcall('GETRANGE', KEYS[i], 0, 21)
  local old = type(head) == 'string' and tonumber(string.match(head, '^m1 .. (%d+)$'))
  local created = now
  if old and old >= created then created = old + 1 end
  local tombstone = 'm1 x- ' .. string.format('%016.0f', created) .. ' 0000000000000000 []\n'
  local set = redis.pcall('SET', KEYS[i], tombstone, 'PX', ARGV[1])
  if type(set) == 'table' and set.err then
    redis.call('DEL', KEYS[i])
    bare = bare + 1
  end
end
return bare
",
};

/// Invalidates everything markers speak for. Keys: markers. Arguments: for each its lifetime in ms,
/// `0` for ever. A server without memory deletes the marker instead: a missing marker invalidates.
pub(crate) static MARK: Script = Script {
    operation: Operation::Mark,
    body: r"
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
for i = 1, #KEYS do
  local old = redis.pcall('GET', KEYS[i])
  old = type(old) == 'string' and tonumber(old)
  local text = string.format('%.0f', math.max(now, old or 0))
  local set
  if ARGV[i] == '0' then
    set = redis.pcall('SET', KEYS[i], text)
  else
    local life = math.max(tonumber(ARGV[i]), redis.call('PTTL', KEYS[i]))
    set = redis.pcall('SET', KEYS[i], text, 'PX', life)
  end
  if type(set) == 'table' and set.err then redis.call('DEL', KEYS[i]) end
end
return string.format('%.0f', now)
",
};

/// Takes a lock. Keys: lock, its last fencing token. Arguments: who asks, lease in ms, lifetime of
/// the token in ms. Returns `{1, token}`, or `{0, ms left}` when somebody else holds it. Whoever
/// holds it already is given the same answer again, so that it may be sent twice.
///
/// A token is at least the server's time in microseconds: it grows even when the last one was lost.
pub(crate) static LOCK: Script = Script {
    operation: Operation::Lock,
    body: r"
local held = redis.call('GET', KEYS[1])
local fence
if held then
  local holder, token = string.match(held, '^(%S+) (%d+)$')
  if holder ~= ARGV[1] then return {0, redis.call('PTTL', KEYS[1])} end
  fence = token
else
  local t = redis.call('TIME')
  local now = t[1] * 1000000 + t[2]
  local last = tonumber(redis.call('GET', KEYS[2]) or 0) or 0
  fence = string.format('%.0f', math.max(last + 1, now))
  redis.call('SET', KEYS[2], fence, 'PX', ARGV[3])
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. fence, 'PX', ARGV[2])
return {1, fence}
",
};

/// Renews a lease. Key: lock. Arguments: who holds it, lease in ms. Returns 0 when it is lost.
pub(crate) static RENEW: Script = Script {
    operation: Operation::Renew,
    body: r"
local held = redis.call('GET', KEYS[1])
if not held or string.match(held, '^%S+') ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
",
};

/// Releases a lock, if its holder asks. Key: lock. Argument: who holds it.
pub(crate) static RELEASE: Script = Script {
    operation: Operation::Release,
    body: r"
local held = redis.call('GET', KEYS[1])
if not held or string.match(held, '^%S+') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
",
};

/// The generic cell rate algorithm. Key: what is known of the caller, the *theoretical arrival time*
/// of its next request. Arguments: µs between two requests at the rate, burst, cost, 1 to look only.
/// Returns allowed, requests left, µs to wait, µs until everything is forgotten.
///
/// Microseconds are counted from 2023-11-14, so that a double keeps 1/64 µs of them. That is also
/// the slack per request of a burst by which sums of them may be off.
pub(crate) static LIMIT: Script = Script {
    operation: Operation::Limit,
    body: r"
local t = redis.call('TIME')
local now = (t[1] - 1700000000) * 1000000 + t[2]
local interval, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tat = tonumber(redis.call('GET', KEYS[1]) or now) or now
-- Behind us, or further ahead than any burst leads (the clock was set back).
tat = math.min(math.max(tat, now), now + burst * interval)
local slack = burst / 64
local after = tat + cost * interval
local early = after - burst * interval - now
local allowed = early <= slack
if allowed and ARGV[4] ~= '1' and cost > 0 then
  tat = after
  redis.call('SET', KEYS[1], string.format('%.3f', tat), 'PX', math.ceil((tat - now) / 1000))
end
local left = math.floor((burst * interval - (tat - now) + slack) / interval)
return {allowed and 1 or 0, math.max(left, 0), allowed and 0 or math.ceil(early), math.ceil(tat - now)}
",
};

/// Adds to a recent list. Key: list. Arguments: element, most elements, lifetime in ms.
pub(crate) static PUSH: Script = Script {
    operation: Operation::List,
    body: r"
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
",
};

/// Adds to a counter. Key: counter. Arguments: how much, lifetime in ms of a new one.
pub(crate) static COUNT: Script = Script {
    operation: Operation::Counter,
    body: r"
local sum = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return sum
",
};

/// Writes a session. Key: session. Arguments: payload, longest idle time in ms, longest age in µs, 1 to
/// begin it. Returns 0 when there is none to change. Stored is the beginning in µs, then the payload.
pub(crate) static SESSION: Script = Script {
    operation: Operation::Session,
    body: r"
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local began = now
if ARGV[4] ~= '1' then
  began = tonumber(string.match(redis.call('GETRANGE', KEYS[1], 0, 16), '^(%d+) '))
  if not began then return 0 end
end
local life = math.min(tonumber(ARGV[2]), math.floor((began + ARGV[3] - now) / 1000))
if life <= 0 then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], string.format('%016.0f ', began) .. ARGV[1], 'PX', life)
return 1
",
};

/// Reads a session and lets it live on. Key: session. Arguments: longest idle time in ms, longest age
/// in µs.
pub(crate) static TOUCH: Script = Script {
    operation: Operation::Session,
    body: r"
local stored = redis.call('GET', KEYS[1])
local began = stored and tonumber(string.match(stored, '^(%d+) '))
if not began then return false end
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local life = math.min(tonumber(ARGV[1]), math.floor((began + ARGV[2] - now) / 1000))
if life <= 0 then
  redis.call('DEL', KEYS[1])
  return false
end
redis.call('PEXPIRE', KEYS[1], life)
return string.sub(stored, 18)
",
};
