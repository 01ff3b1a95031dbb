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
