"""The Lua scripts behind the shared stores: each is one atomic step and one round trip. Redis 6.2 commands only.

Each may run twice with the same arguments and the same result: a connection can break before its answer is here.
"""

from __future__ import annotations

_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

# KEYS: holds, mark.  ARGV: member, sequences, largest sum, lifetime ms, for how many ms a refusal is marked (0: not at
# all, and an existing mark refuses), members to give back first…  → 1 granted, 0 taken.
# The sum is taken over the members themselves, not from a counter: nothing can drift.
TAKE = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREM', KEYS[1], ARGV[1])
for i = 6, #ARGV do redis.call('ZREM', KEYS[1], ARGV[i]) end
local spare_only = ARGV[5] == '0'
if spare_only and redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local held = 0
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  held = held + tonumber(string.match(member, '(%d+)$'))
end
if held + tonumber(ARGV[2]) > tonumber(ARGV[3]) then
  if not spare_only then redis.call('SET', KEYS[2], '1', 'PX', ARGV[5]) end
  return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
return 1
"""
)

# KEYS: holds.  ARGV: how many to give back, those members…, then member and lifetime ms of each that is held…
ASSERT = (
    _NOW
    + """
local back = tonumber(ARGV[1])
for i = 2, back + 1 do redis.call('ZREM', KEYS[1], ARGV[i]) end
for i = back + 2, #ARGV, 2 do redis.call('ZADD', KEYS[1], now + ARGV[i + 1], ARGV[i]) end
return 1
"""
)

# KEYS: answer.  ARGV: owner, fingerprint, claim's lifetime ms.
# → {claimed} | {pending} | {conflict} | {done, status, body}
BEGIN = """
local kept = redis.call('HMGET', KEYS[1], 'fingerprint', 'status', 'body', 'owner')
if not kept[1] or kept[4] == ARGV[1] then
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[2], 'owner', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'claimed'}
end
if kept[1] ~= ARGV[2] then return {'conflict'} end
if kept[2] then return {'done', kept[2], kept[3]} end
return {'pending'}
"""

# KEYS: answer.  ARGV: owner, fingerprint, claim's lifetime ms.  → 1 ours, 0 somebody else has it.
# A claim that a flush took away is made again.
RENEW = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner ~= ARGV[1] and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[2], 'owner', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS: answer.  ARGV: owner, fingerprint, status, body, lifetime ms.  → 1 kept, 0 somebody else has it.
FINISH = """
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner ~= ARGV[1] and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[2], 'status', ARGV[3], 'body', ARGV[4])
redis.call('HDEL', KEYS[1], 'owner')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
"""

# KEYS: answer.  ARGV: owner.
ABANDON = """
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""

# KEYS: record, gateways.  ARGV: instance, generation, counts, lifetime ms.
LEASE = (
    _NOW
    + """
redis.call('HSET', KEYS[1], 'generation', ARGV[2], 'release', ARGV[5], 'counts', ARGV[3], 'at', tostring(now))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], now, ARGV[1])
return 1
"""
)

# KEYS: record, gateways.  ARGV: instance.
WITHDRAW = """
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""
