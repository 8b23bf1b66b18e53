"""The Lua scripts behind jobs: each is one atomic step. Redis 6.2 commands only, on one server and no cluster.

Each may run twice with the same arguments (`redis_scripts.py` says why). The keys are in `redis_jobs.py`. Ids in a
stream are `<line>-0`: a line is in it once, however often it is added.
"""

from __future__ import annotations

# A Redis that evicts nothing refuses every write when it is full, the holds of limits and keys' quotas among them, and
# jobs are what fills it. So new jobs leave a third of its memory, their results a tenth. It may not say how full it is.
COMMON = """
local function memory_used()
  local told = redis.pcall('INFO', 'memory')
  local text = type(told) == 'string' and told or ''
  local most = tonumber(string.match(text, 'maxmemory:(%d+)') or 0)
  return most > 0 and tonumber(string.match(text, 'used_memory:(%d+)')) / most or 0
end
local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ALL, ACTIVE, NOTICES = 'acemath:jobs:all', 'acemath:jobs:active', 'acemath:jobs:notices'
local function key(id, part) return 'acemath:job:' .. id .. (part or '') end
local function is_active(id)
  local state = redis.call('HGET', key(id), 'state')
  return state == 'queued' or state == 'running'
end
local function end_job(id, state)
  redis.call('HSET', key(id), 'state', state, 'ended', tostring(now))
  redis.call('ZREM', ACTIVE, id)
  redis.call('DEL', key(id, ':lines'))
  local kept = redis.call('HGET', key(id), 'kept')
  for _, part in ipairs({'', ':results', ':done'}) do redis.call('PEXPIRE', key(id, part), kept) end
  if redis.call('HEXISTS', key(id), 'webhook_url') == 1 then
    redis.call('HSET', key(id), 'webhook_state', 'pending')
    redis.call('ZADD', NOTICES, now, id)
  end
end
local function held_by(id, line)
  if redis.call('EXISTS', key(id, ':lines')) == 0 then return nil end
  local pending = redis.call('XPENDING', key(id, ':lines'), 'workers', line, line, 1)
  return pending[1] and pending[1][2] or nil
end
local function shown(id)
  local running = 0
  if is_active(id) and redis.call('EXISTS', key(id, ':lines')) == 1 then
    for _, held in ipairs(redis.call('XPENDING', key(id, ':lines'), 'workers')[4] or {}) do
      if held[1] ~= 'put-back' then running = running + tonumber(held[2]) end
    end
  end
  return {id, running, redis.call('HGETALL', key(id))}
end
local function room(lines, max_stored, max_lines)
  for _, id in ipairs(redis.call('ZRANGE', ALL, 0, -1)) do
    if redis.call('EXISTS', key(id)) == 0 then
      redis.call('ZREM', ALL, id)
      redis.call('ZREM', ACTIVE, id)
    end
  end
  if redis.call('ZCARD', ALL) >= tonumber(max_stored) or memory_used() > 0.67 then return 'full' end
  for _, id in ipairs(redis.call('ZRANGE', ACTIVE, 0, -1)) do
    local of = redis.call('HMGET', key(id), 'total', 'succeeded', 'failed')
    if of[1] then lines = lines + of[1] - of[2] - of[3] end
  end
  if lines > tonumber(max_lines) then return 'full' end
  return nil
end
"""

# ARGV: id, fingerprint, lines, max stored, max lines.  → made (there is room) | known | conflict | full
ROOM = (
    COMMON
    + """
local known = redis.call('HGET', key(ARGV[1]), 'fingerprint')
if known then return known == ARGV[2] and 'known' or 'conflict' end
return room(tonumber(ARGV[3]), ARGV[4], ARGV[5]) or 'made'
"""
)

# KEYS: the stream.  ARGV: number of the first line, lifetime ms, the lines…
# Nobody sees the lines before OPEN; those of a caller that never comes to it run out.
ADD = """
local first, last = tonumber(ARGV[1]), 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  local latest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if latest[1] then last = tonumber(string.match(latest[1][1], '^%d+')) end
end
for i = 3, #ARGV do
  local line = first + i - 3
  if line > last then redis.call('XADD', KEYS[1], line .. '-0', 'body', ARGV[i]) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

# KEYS: the added stream.  ARGV: id, fingerprint, lines, max stored, max lines, owner, window ms, kept ms, webhook url.
# → made | known | conflict | full | lost (some of the lines ran out)
OPEN = (
    COMMON
    + """
local id, total = ARGV[1], tonumber(ARGV[3])
local known = redis.call('HGET', key(id), 'fingerprint')
local refused = known and (known == ARGV[2] and 'known' or 'conflict')
refused = refused or room(total, ARGV[4], ARGV[5])
refused = refused or (redis.call('XLEN', KEYS[1]) ~= total and 'lost')
if refused then
  redis.call('DEL', KEYS[1])
  return refused
end
redis.call('RENAME', KEYS[1], key(id, ':lines'))
redis.call('XGROUP', 'CREATE', key(id, ':lines'), 'workers', '0')
redis.call('HSET', key(id), 'fingerprint', ARGV[2], 'total', ARGV[3], 'owner', ARGV[6], 'state', 'queued', 'created',
  tostring(now), 'until', tostring(now + ARGV[7]), 'kept', ARGV[8], 'succeeded', 0, 'failed', 0, 'bytes', 0,
  'prompt_tokens', 0, 'completion_tokens', 0)
if ARGV[9] ~= '' then
  redis.call('HSET', key(id), 'webhook_url', ARGV[9], 'webhook_state', 'waiting', 'webhook_attempts', 0)
end
for _, part in ipairs({'', ':lines'}) do redis.call('PEXPIRE', key(id, part), ARGV[7] + ARGV[8]) end
redis.call('ZADD', ALL, now, id)
redis.call('ZADD', ACTIVE, 0, id)
return 'made'
"""
)

# ARGV: id, finished lines to leave out, how many to give.
READ = (
    COMMON
    + """
if redis.call('EXISTS', key(ARGV[1])) == 0 then return nil end
local after, limit, finished = tonumber(ARGV[2]), tonumber(ARGV[3]), {}
if limit > 0 then finished = redis.call('LRANGE', key(ARGV[1], ':done'), after, after + limit - 1) end
local job = shown(ARGV[1])
job[4] = finished
return job
"""
)

# ARGV: owner, limit.
OF_OWNER = (
    COMMON
    + """
local found = {}
for _, id in ipairs(redis.call('ZREVRANGE', ALL, 0, -1)) do
  if #found >= tonumber(ARGV[2]) then break end
  if redis.call('HGET', key(id), 'owner') == ARGV[1] then table.insert(found, shown(id)) end
end
return found
"""
)

# KEYS: results.  ARGV: lines…
RESULTS = "return redis.call('HMGET', KEYS[1], unpack(ARGV))"

# ARGV: id.
CANCEL = COMMON + "if is_active(ARGV[1]) then end_job(ARGV[1], 'cancelled') end return 1"

# KEYS: what this call took.  ARGV: worker, idle ms after which a line is taken from another (0: never).
# → {id, line, runs, body, owner}.  The job that was served longest ago comes first; one that is over its time ends.
TAKE = (
    COMMON
    + """
local function taken(id, line)
  local entry = redis.call('XRANGE', key(id, ':lines'), line, line)[1]
  local pending = redis.call('XPENDING', key(id, ':lines'), 'workers', line, line, 1)[1]
  return {id, line, pending[4], entry[2][2], redis.call('HGET', key(id), 'owner') or ''}
end
local again = redis.call('HMGET', KEYS[1], 'id', 'line')
if again[1] then
  if held_by(again[1], again[2]) == ARGV[1] then return taken(again[1], again[2]) end
  return nil
end
local function orphan(lines)
  if ARGV[2] == '0' then return nil end
  local idle = redis.call('XPENDING', lines, 'workers', 'IDLE', ARGV[2], '-', '+', 1)
  if not idle[1] then return nil end
  redis.call('XCLAIM', lines, 'workers', ARGV[1], 0, idle[1][1])
  return idle[1][1]
end
local function fresh(lines)
  local read = redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'COUNT', 1, 'STREAMS', lines, '>')
  return read and read[1] and read[1][2][1][1] or nil
end
for _, id in ipairs(redis.call('ZRANGE', ACTIVE, 0, -1)) do
  local expires = redis.call('HGET', key(id), 'until')
  if not expires then
    redis.call('ZREM', ACTIVE, id)
  elseif tonumber(expires) <= now or redis.call('EXISTS', key(id, ':lines')) == 0 then
    end_job(id, 'expired')
  else
    local line = orphan(key(id, ':lines')) or fresh(key(id, ':lines'))
    if line then
      local latest = redis.call('ZRANGE', ACTIVE, -1, -1, 'WITHSCORES')
      redis.call('ZADD', ACTIVE, latest[2] + 1, id)
      redis.call('HSETNX', key(id), 'started', tostring(now))
      redis.call('HSET', key(id), 'state', 'running')
      redis.call('HSET', KEYS[1], 'id', id, 'line', line)
      redis.call('PEXPIRE', KEYS[1], 10000)
      return taken(id, line)
    end
  end
end
return nil
"""
)

# ARGV: worker, then id and line of each…  → the positions of those that it has no more, from 0
BEAT = (
    COMMON
    + """
local gone = {}
for i = 2, #ARGV, 2 do
  if held_by(ARGV[i], ARGV[i + 1]) == ARGV[1] then
    redis.call('XCLAIM', key(ARGV[i], ':lines'), 'workers', ARGV[1], 0, ARGV[i + 1], 'JUSTID')
  else
    table.insert(gone, (i - 2) / 2)
  end
end
return gone
"""
)

# ARGV: id, line, its number, succeeded | failed, row, prompt tokens, completion tokens, max bytes.
# → kept | known | ended | full
FINISH = (
    COMMON
    + """
local id = ARGV[1]
if redis.call('HEXISTS', key(id, ':results'), ARGV[3]) == 1 then return 'known' end
if not is_active(id) then return 'ended' end
local bytes = redis.call('HINCRBY', key(id), 'bytes', #ARGV[5])
if ARGV[4] == 'succeeded' and (bytes > tonumber(ARGV[8]) or memory_used() > 0.9) then
  redis.call('HINCRBY', key(id), 'bytes', -#ARGV[5])
  return 'full'
end
redis.call('HSET', key(id, ':results'), ARGV[3], ARGV[5])
redis.call('RPUSH', key(id, ':done'), ARGV[3] .. ':' .. ARGV[4])
redis.call('HINCRBY', key(id), ARGV[4], 1)
redis.call('HINCRBY', key(id), 'prompt_tokens', ARGV[6])
redis.call('HINCRBY', key(id), 'completion_tokens', ARGV[7])
redis.call('XACK', key(id, ':lines'), 'workers', ARGV[2])
redis.call('XDEL', key(id, ':lines'), ARGV[2])
local left = redis.call('PTTL', key(id))
for _, part in ipairs({':results', ':done'}) do redis.call('PEXPIRE', key(id, part), left) end
local of = redis.call('HMGET', key(id), 'total', 'succeeded', 'failed')
if of[2] + of[3] >= tonumber(of[1]) then end_job(id, tonumber(of[2]) > 0 and 'completed' or 'failed') end
return 'kept'
"""
)

# ARGV: worker, id, line, idle ms that it is to have, runs that count.
PUT_BACK = (
    COMMON
    + """
if held_by(ARGV[2], ARGV[3]) == ARGV[1] then
  redis.call('XCLAIM', key(ARGV[2], ':lines'), 'workers', 'put-back', 0, ARGV[3],
    'IDLE', ARGV[4], 'RETRYCOUNT', ARGV[5], 'JUSTID')
end
return 1
"""
)

# → {lines without a result, age of the oldest in ms, state, jobs, state, jobs…}
STOCK = (
    COMMON
    + """
local lines, oldest, states = 0, now, {}
for _, id in ipairs(redis.call('ZRANGE', ALL, 0, -1)) do
  local of = redis.call('HMGET', key(id), 'state', 'total', 'succeeded', 'failed', 'created')
  if of[1] then
    states[of[1]] = (states[of[1]] or 0) + 1
    if of[1] == 'queued' or of[1] == 'running' then
      lines = lines + of[2] - of[3] - of[4]
      oldest = math.min(oldest, tonumber(of[5]))
    end
  end
end
local stock = {lines, now - oldest}
for state, jobs in pairs(states) do
  table.insert(stock, state)
  table.insert(stock, jobs)
end
return stock
"""
)
