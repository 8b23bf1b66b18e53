"""The Lua scripts behind word of the ends of jobs; what `redis_job_scripts.py` says of its own holds for these."""

from __future__ import annotations

from acemath_gateway.adapters.redis_job_scripts import COMMON

# ARGV: lease ms.  → a job as READ gives it
DUE = (
    COMMON
    + """
for _, id in ipairs(redis.call('ZRANGEBYSCORE', NOTICES, '-inf', now)) do
  if redis.call('EXISTS', key(id)) == 1 then
    redis.call('ZADD', NOTICES, now + ARGV[1], id)
    redis.call('HINCRBY', key(id), 'webhook_attempts', 1)
    local job = shown(id)
    job[4] = {}
    return job
  end
  redis.call('ZREM', NOTICES, id)
end
return nil
"""
)

# ARGV: id, state, problem, ms until the next attempt (0: there is none).
NOTICED = (
    COMMON
    + """
if redis.call('EXISTS', key(ARGV[1])) == 0 then return 0 end
redis.call('HSET', key(ARGV[1]), 'webhook_state', ARGV[2], 'webhook_problem', ARGV[3])
if ARGV[4] == '0' then
  redis.call('ZREM', NOTICES, ARGV[1])
else
  redis.call('ZADD', NOTICES, now + ARGV[4], ARGV[1])
end
return 1
"""
)
